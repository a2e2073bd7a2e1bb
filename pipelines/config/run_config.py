"""The config of a training run: the settings of every part in one model.

A default is the paper's value or a safe one; a comment says which if it matters.
"""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, PositiveInt, model_validator

from pft_core.encoding import EncodingSettings
from pft_core.policies import LoraSettings
from pft_core.prompts import PromptSettings
from pft_core.settings import Place, Settings, Threads
from pft_core.training import EngineSettings, TrainSettings
from pipelines.config.search_settings import SearchSettings
from pipelines.plugins import PluggedSettings
from pipelines.tracking import TrackingSettings

MOST_RESOURCES, LEAST_RESOURCE = 1e9, 1e-4  # 1e-4 is Ray's own resolution


def refuse_unplaceable(resources: Mapping[str, float], place: str = "") -> None:
    """Raise ValueError for amounts of resources that Ray never grants. place: prefix of the message."""
    for name, amount in resources.items():
        if not name.strip():
            raise ValueError(f"{place}a resource needs a name, such as CPU")
        if amount > 1 and amount != int(amount):
            raise ValueError(f"{place}{name}={amount:g}: above 1, Ray grants whole units only: round it")
        if 0 < amount < LEAST_RESOURCE:
            raise ValueError(f"{place}{name}={amount:g}: Ray grants at least {LEAST_RESOURCE:g}")
        if amount > MOST_RESOURCES:
            raise ValueError(f"{place}{name}={amount:g}: Ray grants at most {MOST_RESOURCES:g}")


class ScalingSettings(Settings):
    """Number and resources of the training workers, named as in ray.train.ScalingConfig."""

    num_workers: PositiveInt = 1  # training processes; a step's pairs are shared among them
    use_gpu: bool = False  # whether each worker trains on a GPU of its own
    # What Ray reserves for each worker, such as CPU: 8; null: one CPU, or one GPU.
    resources_per_worker: dict[str, Annotated[float, Field(ge=0, le=MOST_RESOURCES)]] | None = None
    threads_per_worker: Threads = 1  # CPU threads of torch in each worker

    @model_validator(mode="after")
    def _a_worker_can_be_placed(self) -> Self:
        refuse_unplaceable(self.resources_per_worker or {}, "resources_per_worker: ")
        if self.resources_per_worker is not None and (self.resources_per_worker.get("GPU", 0) > 0) != self.use_gpu:
            said = "names no GPU: add GPU: 1" if self.use_gpu else "names a GPU: add use_gpu=true"
            raise ValueError(f"use_gpu={str(self.use_gpu).lower()}, but resources_per_worker {said}, or leave one out")
        return self

    @property
    def worker_resources(self) -> dict[str, float]:
        """Logical resources of one worker; the default is one CPU, and one GPU if use_gpu is set."""
        return self.resources_per_worker or {"CPU": 1.0} | ({"GPU": 1.0} if self.use_gpu else {})


TOYWORLD = "toyworld"  # name of the embedded data set and base model
JOB_NAME = "job.json"  # in the folder of every run: its key and status


class RunConfig(PluggedSettings):
    """The whole config of a training run, as `pft show config` prints it."""

    # The run's folder below storage.
    name: str = Field(default="train", max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: Place | None = None  # a folder written by `pft prepare`
    validation_data: Place | None = None  # a folder written by `pft prepare`; null: no validation
    model: Place | None = None  # a folder, a .gguf file, a Hugging Face name, smollm2-135m, or toyworld
    storage: Place = "runs"  # a folder that all nodes share; it holds the runs
    seed: int = Field(default=0, ge=0, lt=2**63)  # seed of the order of pairs, the adapter's first weights and dropout
    prompt: PromptSettings = PromptSettings()
    encoding: EncodingSettings = EncodingSettings()
    lora: LoraSettings | None = LoraSettings()  # an adapter; null: full fine-tuning
    train: TrainSettings = TrainSettings()
    engine: EngineSettings = EngineSettings()
    scaling: ScalingSettings = ScalingSettings()
    tracking: TrackingSettings = TrackingSettings()
    search: SearchSettings = SearchSettings()
    # Stop if more than this share of the pairs cannot be encoded.
    max_reject_fraction: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _diagnostics_see_whole_gradients(self) -> Self:
        if self.train.diagnostics_every and not self.engine.entry.has_whole_gradients:
            raise ValueError(
                "train.diagnostics_every needs whole gradients on every worker: set engine.name=torch, or leave it at 0"
            )
        return self

    @model_validator(mode="after")
    def _storage_is_a_folder(self) -> Self:
        if "://" in self.storage:
            raise ValueError(f"storage={self.storage!r} is a URL: give a folder on a file system that all nodes share")
        return self
