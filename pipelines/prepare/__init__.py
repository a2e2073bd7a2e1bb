"""The `prepare` job: raw rows into hashed records."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.prepare.parts import PARTS
    from pipelines.prepare.prepare_config import PrepareConfig, refuse_missing_inputs
else:
    __getattr__ = lazy_exports(__name__)
