"""A server's configuration: strict models, read from a serving recipe and dotted overrides."""

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from pft_core.policies import SMOLLM2
from pft_core.settings import Place as GivenPlace
from pft_core.settings import Settings, Threads
from pipelines.config import TOYWORLD, recipe_path, refuse_unplaceable, source_of
from pipelines.serve.engine_registry import AUTO, SERVING_ENGINES
from pipelines.validated_yaml import apply_override, build, read_yaml

APPLICATION = "pft"  # the application's name in Ray Serve
RECIPES = Path(__file__).parent / "recipes"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
IDLE_S = 75  # a connection without a request is closed after this time
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]


def absolute(place: str) -> str:
    """Return a place with a local path made absolute, because replicas and `serve deploy` run in other folders."""
    elsewhere = "://" in place or place.startswith("models:/")
    return place if elsewhere else str(Path(place).expanduser().absolute())


def policy_place(place: str) -> str:
    """Return a place as `absolute` does, but keep a base model's name: `toyworld`, `smollm2-135m` or OWNER/NAME."""
    first = Path(place).expanduser().parts[:1]
    is_here = Path(place).expanduser().exists() or any(Path(part).is_dir() for part in first)
    is_name = place in (TOYWORLD, SMOLLM2) or (HUB_NAME.fullmatch(place) is not None and not is_here)
    return place if is_name else absolute(place)


Place = Annotated[GivenPlace, AfterValidator(absolute)]


MAX_AT_ONCE = 100_000  # Ray Serve and vLLM reserve memory for each


class ServingEngineSettings(Settings):
    """The engine that runs the model, and its limits."""

    name: str = AUTO  # vllm, transformers, or auto: vLLM if it is installed and steering is not set
    precision: Literal["bf16", "fp32"] | None = None  # number format of the weights; null: bf16 on GPUs, fp32 on CPUs
    # Tokens of prompt and answer, or the model's own limit if that is lower. For a longrope model on transformers that
    # limit is the original context length.
    max_length: PositiveInt = 2048
    max_batch: int = Field(default=64, ge=1, le=MAX_AT_ONCE)  # sequences that are generated at once
    tokens_per_batch: PositiveInt = 8192  # padded tokens that are scored at once
    # Adapters in memory. If more are in use, they take turns: the least recently used one is unloaded first.
    max_loaded_adapters: int = Field(default=8, ge=1, le=MAX_AT_ONCE)
    # Highest rank of an adapter. The rank of an interpolated adapter is the sum of its ends' ranks.
    max_adapter_rank: Literal[8, 16, 32, 64, 128, 256] = 64
    gpu_memory: float = Field(default=0.9, gt=0, le=1)  # share of a GPU's memory that vLLM takes
    cpu_cache_gib: PositiveInt = 1  # memory of vLLM's key-value cache on a CPU
    threads: Threads = 1  # CPU threads of one replica

    @field_validator("name")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        if name != AUTO:
            SERVING_ENGINES[name]
        return name


class ReplicaSettings(Settings):
    """Replicas of the engine, and how many requests each accepts before clients are rejected."""

    min_replicas: int = Field(default=1, ge=1, le=MAX_AT_ONCE)  # replicas that are kept without requests
    max_replicas: int = Field(default=1, ge=1, le=MAX_AT_ONCE)  # most replicas under load
    max_ongoing_requests: int = Field(default=64, ge=1, le=MAX_AT_ONCE)  # requests that a replica answers at once
    max_queued_requests: int = Field(default=64, ge=0, le=MAX_AT_ONCE)  # requests that wait; further ones get 429
    num_cpus: PositiveFloat = 1  # CPUs of one replica
    num_gpus: float = Field(default=0, ge=0)  # GPUs of one replica; a fraction shares a GPU
    drain_s: PositiveFloat = 30  # seconds in which a stopping replica may finish its requests

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} exceeds max_replicas={self.max_replicas}")
        refuse_unplaceable({"num_cpus": self.num_cpus, "num_gpus": self.num_gpus})
        return self


class LimitsSettings(Settings):
    """Limits on one request and on each API key."""

    timeout_s: PositiveFloat = 120  # seconds for receiving the body, and again for the answer
    body_bytes: PositiveInt = 1_000_000  # largest body of a request
    max_tokens: PositiveInt = 1024  # most tokens that a request may generate
    default_max_tokens: PositiveInt = 256  # tokens to generate if a request sets no max_tokens
    completions: PositiveInt = 8  # most texts of one request: `n` times the prompts
    branches: PositiveInt = 128  # most answers that one request may score
    requests_per_minute: PositiveInt | None = None  # limit of a key that has none of its own; null: no limit
    requests_in_flight_per_key: PositiveInt | None = None  # most at once; null: only the server's own limit


class SteeringConfig(Settings):
    """Steering by CAA: a file of vectors from `pft compare`, with the layer and multiplier that its sweep selected."""

    vectors: Place  # the file of vectors
    layer: NonNegativeInt  # the layer whose output is shifted, from 0
    multiplier: float  # multiplier of the vector


class EndsConfig(Settings):
    """The slider's two end policies: one trained for the first poles, one for the second.

    The slider moves along all axes that the two were trained on at once. A request's axis says which end is which pole.
    """

    first: Place  # place of the policy trained for the first poles
    second: Place  # place of the policy trained for the second poles
    steps: PositiveInt = 20  # weights are rounded to 1/steps, which bounds the number of interpolated adapters

    def nearest(self, first_weight: float) -> float:
        """Return the weight rounded to the nearest step."""
        return round(first_weight * self.steps) / self.steps


class AdapterStoreConfig(Settings):
    """Sources of adapters that the recipe does not name, and each node's folder of copies."""

    root: Place | None = None  # a folder or s3:// address whose subfolders are served by name, on demand
    cache: Place | None = None  # folder of copies on each node; null: ~/.cache/pft/adapters
    max_cached: PositiveInt = 64  # most copies of adapters on a node's disk
    registry: str | None = None  # MLflow URI for models:/ places; null: MLFLOW_TRACKING_URI, else runs/mlflow.db
    alias_ttl_s: PositiveFloat = 5  # seconds for which a resolved alias is cached


class ServeConfig(Settings):
    """A server. A place is a folder from `pft train`, s3://bucket/folder, or models:/NAME@ALIAS."""

    # The default policy: a place, or an unchanged base model as a folder or GGUF file, OWNER/NAME on the Hub,
    # `smollm2-135m` or `toyworld`.
    policy: Annotated[GivenPlace, AfterValidator(policy_place)]
    name: Name = "policy"  # the default policy's name in requests
    adapters: dict[Name, Place] = Field(default_factory=dict)  # further policies on the same base: name -> place
    ends: EndsConfig | None = None
    steering: SteeringConfig | None = None
    store: AdapterStoreConfig = AdapterStoreConfig()
    engine: ServingEngineSettings = ServingEngineSettings()
    scaling: ReplicaSettings = ReplicaSettings()
    limits: LimitsSettings = LimitsSettings()
    host: str = "127.0.0.1"  # the address that the server listens on
    port: int = Field(default=8000, ge=0, le=65535)  # port that the server listens on; 0: any free one
    keys: Place | None = None  # API key file from `pft key`; required unless host is this machine only
    access_log: Place | None = None  # file that gets one JSON line per request; null: stderr
    examples: Place | None = None  # folder from `pft prepare` with scenarios for the page to offer

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        reserved = {"base", "slider", "steered"}
        if self.name in reserved:
            raise ValueError(f"name: {self.name!r} is taken: choose another")
        if taken := sorted((reserved | {self.name}) & set(self.adapters)):
            raise ValueError(f"adapters: the name {taken[0]!r} is taken: choose another")
        return self

    @model_validator(mode="after")
    def _check_engine_can_steer(self) -> Self:
        if self.steering is None or self.engine.name == AUTO:
            return self
        engine = SERVING_ENGINES[self.engine.name]
        if not engine.steers:
            able = " or ".join(f"engine.name={name}" for name in SERVING_ENGINES if SERVING_ENGINES[name].steers)
            raise ValueError(f"steering: {engine.why_not}: set {able}")
        return self

    @model_validator(mode="after")
    def _check_remote_access_has_keys(self) -> Self:
        if self.keys is None and not is_loopback(self.host):
            raise ValueError(
                f"host={self.host!r} is reachable from other machines: set keys=FILE (create it with `pft key`), or "
                "set host=127.0.0.1"
            )
        return self


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_serve_config(recipe: str | Path, overrides: Sequence[str] = ()) -> ServeConfig:
    """Read a serving recipe, by the bare name of a shipped one or as a YAML file. Raises UserError if it is invalid."""
    path = recipe_path(recipe, folder=RECIPES, kind="serving recipe")
    raw: dict[str, Any] = read_yaml(path)
    applied = [apply_override(raw, override, ServeConfig) for override in overrides]
    return build(ServeConfig, raw, source=source_of(path, applied))
