"""What a server is made of: strict models, read from a serving recipe and dotted overrides."""

import ipaddress
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from pft_core.settings import Place as GivenPlace
from pft_core.settings import Settings, Threads
from pipelines.config import TOYWORLD, recipe_path, refuse_unplaceable, source_of
from pipelines.serve.engine_registry import AUTO, SERVING_ENGINES
from pipelines.validated_yaml import apply_override, build, read_yaml

APPLICATION = "pft"  # its name in Ray Serve
RECIPES = Path(__file__).parent / "recipes"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
IDLE_S = 75  # how long a connection may be open without a request
NAME = r"^[a-z0-9][a-z0-9._-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME)]


def absolute(place: str) -> str:
    """Return a place with a local path made absolute: replicas and `serve deploy` run in other folders."""
    elsewhere = "://" in place or place.startswith("models:/")
    return place if elsewhere else str(Path(place).expanduser().absolute())


def policy_place(place: str) -> str:
    """Return a place as `absolute` does; a base model's name stays one: `toyworld`, or OWNER/NAME on the Hub."""
    first = Path(place).expanduser().parts[:1]
    is_here = Path(place).expanduser().exists() or any(Path(part).is_dir() for part in first)
    is_name = place == TOYWORLD or (HUB_NAME.fullmatch(place) is not None and not is_here)
    return place if is_name else absolute(place)


Place = Annotated[GivenPlace, AfterValidator(absolute)]


MOST_AT_ONCE = 100_000  # Ray Serve and vLLM reserve room for each


class ServingEngineSettings(Settings):
    """What runs the model."""

    name: str = AUTO  # auto: vLLM where it is installed, transformers elsewhere and for steering
    precision: Literal["bf16", "fp32"] | None = None  # None: bf16 on GPUs, fp32 on CPUs
    # Tokens of prompt and answer; the model's own limit where that is lower, which of longrope on transformers is the
    # original one.
    max_length: PositiveInt = 2048
    max_batch: int = Field(default=64, ge=1, le=MOST_AT_ONCE)  # sequences that are continued at once
    tokens_per_batch: PositiveInt = 8192  # padded tokens that are scored at once
    # More than these take turns in the engine, the least recently used first out.
    max_loaded_adapters: int = Field(default=8, ge=1, le=MOST_AT_ONCE)
    max_adapter_rank: Literal[8, 16, 32, 64, 128, 256] = 64  # an interpolated adapter has its ends' ranks added up
    gpu_memory: float = Field(default=0.9, gt=0, le=1)  # vLLM: share of a GPU's memory
    cpu_cache_gib: PositiveInt = 1  # vLLM on a CPU: memory of its key-value cache
    threads: Threads = 1  # CPU threads of one replica

    @field_validator("name")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        if name != AUTO:
            SERVING_ENGINES[name]
        return name


class ReplicaSettings(Settings):
    """Replicas of the engine, and how much each takes on before clients are sent away."""

    min_replicas: int = Field(default=1, ge=1, le=MOST_AT_ONCE)
    max_replicas: int = Field(default=1, ge=1, le=MOST_AT_ONCE)
    max_ongoing_requests: int = Field(default=64, ge=1, le=MOST_AT_ONCE)  # in one replica
    max_queued_requests: int = Field(default=64, ge=0, le=MOST_AT_ONCE)  # waiting for a replica; beyond: 429
    num_cpus: PositiveFloat = 1
    num_gpus: float = Field(default=0, ge=0)
    drain_s: PositiveFloat = 30  # how long a replica that leaves may finish what it has begun

    @model_validator(mode="after")
    def _least_is_not_most(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas={self.min_replicas} is above max_replicas={self.max_replicas}")
        refuse_unplaceable({"num_cpus": self.num_cpus, "num_gpus": self.num_gpus})
        return self


class LimitsSettings(Settings):
    """What one request may ask for."""

    timeout_s: PositiveFloat = 120  # for the body to come, and as long again for the answer
    body_bytes: PositiveInt = 1_000_000
    max_tokens: PositiveInt = 1024
    default_max_tokens: PositiveInt = 256
    completions: PositiveInt = 8  # `n` of a request
    branches: PositiveInt = 128  # answers that one request may have scored
    requests_per_minute: PositiveInt | None = None  # of each key that names no limit of its own; None: no limit
    requests_in_flight_per_key: PositiveInt | None = None  # being answered at once; None: as many as there are places


class SteeringConfig(Settings):
    """CAA: a file of vectors written by `pft compare`, and the setting that its sweep picked."""

    vectors: Place
    layer: NonNegativeInt
    multiplier: float


class EndsConfig(Settings):
    """The two policies between which the slider moves: trained for the first poles, and for the second.

    What lies between them moves along all axes that they were trained on at once; a request's axis says which end is
    which pole.
    """

    first: Place
    second: Place
    steps: PositiveInt = 20  # weights are rounded to 1/steps, so that a slider asks for a bounded number of adapters

    def nearest(self, first_weight: float) -> float:
        """Return the weight that is asked of an adapter in place of this one."""
        return round(first_weight * self.steps) / self.steps


class AdapterStoreConfig(Settings):
    """Where adapters come from besides those named, and where their copies are kept."""

    root: Place | None = None  # a folder, or s3://: its subfolders are served by name, on demand
    cache: Place | None = None  # folder on the node; None: in the user's cache folder
    max_cached: PositiveInt = 64  # copies on a node's disk
    registry: str | None = None  # MLflow's URI, for models:/ places; None: MLFLOW_TRACKING_URI, else runs/mlflow.db
    alias_ttl_s: PositiveFloat = 5  # how long an alias is taken to point where it did


class ServeConfig(Settings):
    """A server. A place is a folder written by `pft train`, s3://bucket/folder, or models:/NAME@ALIAS."""

    # What answers where a request names no other: a place, or a base model as it is: a folder, OWNER/NAME, `toyworld`.
    policy: Annotated[GivenPlace, AfterValidator(policy_place)]
    name: Name = "policy"
    adapters: dict[Name, Place] = Field(default_factory=dict)  # further policies on the same base: name -> place
    ends: EndsConfig | None = None
    steering: SteeringConfig | None = None
    store: AdapterStoreConfig = AdapterStoreConfig()
    engine: ServingEngineSettings = ServingEngineSettings()
    scaling: ReplicaSettings = ReplicaSettings()
    limits: LimitsSettings = LimitsSettings()
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)  # 0: a free one
    keys: Place | None = None  # file written by `pft key`; needed beyond this machine
    access_log: Place | None = None  # file to which a line of JSON is added for each request; None: stderr
    examples: Place | None = None  # a folder written by `pft prepare`: scenarios that the page offers

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        reserved = {"base", "slider", "steered"}
        if self.name in reserved:
            raise ValueError(f"name: {self.name!r} is taken: choose another")
        if taken := sorted((reserved | {self.name}) & set(self.adapters)):
            raise ValueError(f"adapters: the name {taken[0]!r} is taken: choose another")
        return self

    @model_validator(mode="after")
    def _steering_reaches_the_layers(self) -> Self:
        if self.steering is None or self.engine.name == AUTO:
            return self
        engine = SERVING_ENGINES[self.engine.name]
        if not engine.steers:
            able = " or ".join(f"engine.name={name}" for name in SERVING_ENGINES if SERVING_ENGINES[name].steers)
            raise ValueError(f"steering: {engine.why_not}: set {able}")
        return self

    @model_validator(mode="after")
    def _strangers_need_keys(self) -> Self:
        if self.keys is None and not is_loopback(self.host):
            raise ValueError(
                f"host={self.host!r} can be reached from other machines: give keys=FILE (make one with `pft key`), or "
                "bind 127.0.0.1"
            )
        return self


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def load_serve_config(recipe: str | Path, overrides: Sequence[str] = ()) -> ServeConfig:
    """Read a shipped serving recipe by its bare name, or a YAML file, with overrides. Raises UserError."""
    path = recipe_path(recipe, folder=RECIPES, kind="serving recipe")
    raw: dict[str, Any] = read_yaml(path)
    given = [apply_override(raw, override, ServeConfig) for override in overrides]
    return build(ServeConfig, raw, source=source_of(path, given))
