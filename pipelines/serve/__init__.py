"""The policy server on Ray Serve: engines, adapters, an OpenAI-compatible API, and a web page."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pipelines.serve.deployments import build
    from pipelines.serve.engines import GenerationRequest, Sampling, engine_name, make_host
    from pipelines.serve.http import add_key
    from pipelines.serve.local_gateway import gateway_here
    from pipelines.serve.policies import refuse_missing_policies
    from pipelines.serve.requests import CompareRequest, CompareResponse, CompareSide, Gateway
    from pipelines.serve.serve_config import ServeConfig, load_serve_config
else:
    __getattr__ = lazy_exports(__name__)
