"""Build the engine that a serving recipe names, with its host and its adapter cache."""

from pathlib import Path
from typing import Any

import torch

from pft_core.errors import UserError
from pft_core.policies import Precision, load_config
from pft_core.registry import load_code
from pipelines.serve.engine_registry import AUTO, SERVING_ENGINES
from pipelines.serve.engines.engine_host import EngineHost
from pipelines.serve.engines.serving_engine import ServingEngine
from pipelines.serve.policies import AdapterCache
from pipelines.serve.serve_config import ServeConfig

DEFAULT_CACHE = Path.home() / ".cache" / "pft" / "adapters"


def make_host(config: ServeConfig, model: str, template_digest: str, *, lora: bool) -> EngineHost:
    """Load the model into the engine. Raises UserError if it cannot be loaded or the engine is not installed.

    model: folder or hub name; template_digest: of the prompt template that steering vectors were extracted with; lora:
    whether any policy of the server has an adapter.
    """
    build = load_code(SERVING_ENGINES[engine_name(config)].build)
    engine: ServingEngine = build(config, model, template_digest=template_digest, lora=lora)
    return EngineHost(engine, make_cache(config))


def with_model_limit(config: ServeConfig, model: str) -> ServeConfig:
    """Return the config with a max_length that the model supports: the model's own if the recipe sets none.

    Raises UserError if the recipe sets a longer one.
    """
    limits, wanted = _limits(config, load_config(model)), config.engine.max_length
    limit = min(limits, default=wanted)
    if wanted <= limit:
        return config
    if "max_length" in config.engine.model_fields_set:
        raise UserError(f"engine.max_length={wanted}: {model!r} takes {limit} tokens{limits[limit]}: lower it")
    return config.model_copy(update={"engine": config.engine.model_copy(update={"max_length": limit})})


def _limits(config: ServeConfig, model_config: Any) -> dict[int, str]:
    """Return the limits on a text's tokens, each with an explanation for the error message."""
    positions = getattr(model_config, "max_position_embeddings", None)
    limits = {} if positions is None else {int(positions): ""}
    rope = getattr(model_config, "rope_parameters", None) or {}
    by_layer = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    original = [each["original_max_position_embeddings"] for each in by_layer if each.get("rope_type") == "longrope"]
    if original and engine_name(config) == "transformers":
        # Beyond it, the cache would mix keys of both encodings: log-probabilities were off by 5 nats, as they are in
        # transformers itself.
        limits[min(original)] = " on engine.name=transformers (longrope re-encodes a longer text from its start)"
    return limits


def make_cache(config: ServeConfig) -> AdapterCache:
    """Return this node's cache of adapters."""
    folder = Path(config.store.cache) if config.store.cache else DEFAULT_CACHE
    return AdapterCache(folder, max_copies=config.store.max_cached, registry=config.store.registry)


def engine_name(config: ServeConfig) -> str:
    """Return the name of the engine to run. Raises UserError if the recipe names one that is not installed."""
    name = config.engine.name
    if name == AUTO:
        entries = {name: SERVING_ENGINES[name] for name in SERVING_ENGINES}
        steering = config.steering is not None
        return next(name for name, e in entries.items() if e.is_installed and (e.steers or not steering))
    if not SERVING_ENGINES[name].is_installed:
        others = " or ".join(f"engine.name={other}" for other in SERVING_ENGINES if other != name)
        raise UserError(f"engine.name={name}: {SERVING_ENGINES[name].install}, or {others}")
    return name


def vllm_engine(config: ServeConfig, model: str, *, template_digest: str, lora: bool) -> ServingEngine:
    """Build the vLLM engine: continuous batching, shared prefixes, many adapters."""
    from pipelines.serve.engines.vllm_engine import VllmEngine, VllmSettings

    engine = config.engine
    return VllmEngine(
        VllmSettings(
            model=model,
            precision=_precision(config),
            max_length=engine.max_length,
            max_batch=engine.max_batch,
            max_loaded_adapters=engine.max_loaded_adapters,
            max_adapter_rank=engine.max_adapter_rank,
            gpu_memory=engine.gpu_memory,
            cpu_cache_gib=engine.cpu_cache_gib,
            threads=engine.threads,
            enable_lora=lora,
        )
    )


def transformers_engine(config: ServeConfig, model: str, *, template_digest: str, lora: bool) -> ServingEngine:
    """Build the transformers engine: continuous batching and steering."""
    from pft_core.evaluation import SteeringVectors
    from pft_core.policies import base_digest
    from pipelines.serve.engines.transformers_engine import TransformersEngine, TransformersSettings

    torch.set_num_threads(config.engine.threads)
    vectors = None
    if config.steering is not None:
        file = Path(config.steering.vectors)
        read = SteeringVectors.load(file, template_digest=template_digest, base_digest=base_digest(model))
        vectors = (read, config.steering.layer)
    engine = config.engine
    return TransformersEngine(
        TransformersSettings(
            model=model,
            precision=_precision(config),
            device="cuda" if torch.cuda.is_available() else "cpu",
            max_batch=engine.max_batch,
            tokens_per_batch=engine.tokens_per_batch,
            max_loaded_adapters=engine.max_loaded_adapters,
            vectors=vectors,
        )
    )


def _precision(config: ServeConfig) -> Precision:
    return config.engine.precision or ("bf16" if torch.cuda.is_available() else "fp32")
