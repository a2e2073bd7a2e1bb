"""Serving engines behind one protocol: transformers with continuous batching, and vLLM."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.serve.engines.engine_builders import engine_name, make_host, with_model_limit
    from pipelines.serve.engines.engine_host import Backend, UnavailableError
    from pipelines.serve.engines.serving_engine import (
        EngineFault,
        GenerationRequest,
        Grammar,
        RequestFault,
        Sampling,
        Steering,
        Step,
        Token,
    )
else:
    __getattr__ = lazy_exports(__name__)
