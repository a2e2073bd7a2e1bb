"""A gateway over an engine in this process, without Ray and HTTP."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from pft_core.policies import load_tokenizer
from pipelines.serve.engines import make_host, with_model_limit
from pipelines.serve.metrics import Metrics
from pipelines.serve.policies import Catalog
from pipelines.serve.requests import Gateway
from pipelines.serve.serve_config import ServeConfig


@contextmanager
def gateway_here(config: ServeConfig) -> Iterator[Gateway]:
    """Load the policy of a serving config, and yield a gateway to it. Raises UserError if it cannot be loaded."""
    catalog = Catalog(config, load_tokenizer)
    config = with_model_limit(config, catalog.model)
    ref = catalog.default.ref
    host = make_host(config, catalog.model, ref.template_digest, lora=ref.adapter is not None)
    try:
        yield Gateway(config, catalog, host, Metrics())
    finally:
        asyncio.run(host.engine.close())
