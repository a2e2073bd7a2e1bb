"""Engines run the scorer, sum gradients over ranks and bins, and update the weights."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.training.engines.build import build_engine
    from pft_core.training.engines.engine import Engine, NonFiniteError
    from pft_core.training.engines.settings import EngineSettings, OptimizerSettings
    from pft_core.training.engines.torch_engine import TorchEngine
else:
    __getattr__ = lazy_exports(__name__)
