"""Who computes: transformers with continuous batching, or vLLM, behind one contract."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.serve.engines.engine import EngineFault, GenerationRequest, Sampling, Steering, Step, Token
    from pipelines.serve.engines.host import Backend, UnavailableError
    from pipelines.serve.engines.registry import fitted, make_host, runs_vllm
else:
    __getattr__ = lazy_exports(__name__)
