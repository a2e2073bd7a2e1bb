"""Who computes: transformers with continuous batching, or vLLM, behind one contract."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.serve.engines.build import chosen_engine, fitted, make_host
    from pipelines.serve.engines.engine import (
        EngineFault,
        GenerationRequest,
        Grammar,
        RequestFault,
        Sampling,
        Steering,
        Step,
        Token,
    )
    from pipelines.serve.engines.engine_host import Backend, UnavailableError
else:
    __getattr__ = lazy_exports(__name__)
