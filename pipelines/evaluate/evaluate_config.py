"""The config of an evaluation and checks of its inputs, made before Ray or transformers are imported."""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import PositiveInt, model_validator

from pft_core.data import DatasetManifest, Form
from pft_core.errors import UserError
from pft_core.evaluation import OUTCOMES_NAME, TASKS
from pft_core.files import contents, read_json, refuse_unwritable
from pft_core.policies import MODEL_REF_NAME, ModelRef, reference_at, refuse_unusable_model
from pft_core.prompts import PromptSettings
from pft_core.settings import Place, ThreadsOrAuto
from pipelines.jobs import refuse_unusable_environment
from pipelines.plugins import PluggedSettings
from pipelines.reporting import REPORT_NAMES
from pipelines.tracking import SPOOL_NAME, START_NAME, TrackingSettings

REJECTS_NAME = "rejects.jsonl"
GROUPS_NAME = "finished_groups"  # the folder of an evaluation that has no report yet
OTHER_REQUEST = {  # how a request of another evaluation differs, by key; for other keys "with another KEY"
    "model": "of another model",
    "endpoint": "of another server",
    "adapter": "of another adapter",
    "task": "of another task",
    "data": "of other data",
    "policy": "under another policy name",
    "prompt": "with other prompt settings",
    "forms": "of other forms",
    "scoring": "with other scoring",
    "precision": "in another precision",
}
OWN_NAMES = {*REPORT_NAMES, OUTCOMES_NAME, REJECTS_NAME, GROUPS_NAME, SPOOL_NAME, START_NAME}

# Keys of loading and running a model, which have no effect on a server.
SET_BY_SERVER = {"max_length", "tokens_per_batch", "num_workers", "threads_per_worker", "use_gpu", "precision"}


class EvaluateConfig(PluggedSettings):
    """The policy to evaluate, the data, and how to ask."""

    model: Place | None = None  # model reference (file or folder), model folder, GGUF file, or name (hub or server)
    endpoint: str | None = None  # URL of a `pft serve` to ask instead of loading a model here
    adapter: Place | None = None  # LoRA adapter of the model; null: the trained run's own
    task: str = "choices"  # a registered task
    data: Place  # a folder written by `pft prepare`; for other tasks, the data they read
    output: Place  # the folder of the report
    policy: str | None = None  # name in the report; null: the name of the model's folder
    # How a choice is made; null: by likelihood, in the answer style of training.
    scoring: Literal["letter", "option", "generate"] | None = None
    prompt: PromptSettings = PromptSettings()  # for a model without a reference; a reference has its own
    forms: list[Form] | None = None  # questions to ask; null: those of the data set
    limit_per_axis: PositiveInt | None = None  # records of each axis to ask, drawn with `seed`; null: all
    seed: int = 0  # of the draw of limit_per_axis
    max_length: PositiveInt = 2048  # tokens of prompt and answer; longer items are rejected
    max_new_tokens: PositiveInt = 256  # most tokens of a generated reply
    tokens_per_batch: PositiveInt = 8192  # most tokens of one forward pass
    num_workers: PositiveInt = 1  # processes that evaluate; each loads the policy
    threads_per_worker: ThreadsOrAuto = "auto"  # CPU threads of torch; auto: the node's cores shared among its workers
    use_gpu: bool | None = None  # whether the model runs on GPUs; null: if the cluster has them
    precision: Literal["bf16", "fp32"] | None = None  # number format of the weights; null: bf16 on GPUs, fp32 on CPUs
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _the_task_takes_these_options(self) -> Self:
        options = {"endpoint": self.endpoint, "forms": self.forms, "scoring": self.scoring}
        set_options = [
            name for name, value in {**options, "limit_per_axis": self.limit_per_axis}.items() if value is not None
        ]
        if not TASKS[self.task].asks_records and set_options:
            raise ValueError(f"task={self.task} has its own questions: leave {', '.join(set_options)} out")
        return self

    @model_validator(mode="after")
    def _a_seed_draws(self) -> Self:
        if self.seed and self.limit_per_axis is None:
            raise ValueError(f"seed={self.seed} has no effect without limit_per_axis: leave it out")
        return self

    @model_validator(mode="after")
    def _a_policy_is_set(self) -> Self:
        if self.endpoint is None and self.model is None:
            raise ValueError("model is not set: give --model, or --endpoint with the URL of a server")
        if self.endpoint is not None and self.adapter is not None:
            raise ValueError(
                "adapter and endpoint: a server has its own adapters: give --model NAME, a name that the server lists"
            )
        return self

    @model_validator(mode="after")
    def _a_server_has_its_own_limits(self) -> Self:
        own = sorted(SET_BY_SERVER & self.model_fields_set)
        if self.endpoint is not None and own:
            raise ValueError(f"{own[0]} and endpoint: the recipe of the server sets this: leave {', '.join(own)} out")
        return self


def trained_reference(config: EvaluateConfig) -> ModelRef | None:
    """Return the reference that `model` names, None for a plain model."""
    return reference_at(str(config.model))


def weights_reference(config: EvaluateConfig) -> ModelRef | None:
    """Return the reference that records how the evaluated weights were trained; None if there is none.

    For an adapter given with --adapter, this is the reference of the run folder it lies in.
    """
    if config.adapter is None:
        return trained_reference(config)
    adapter = Path(config.adapter).resolve()
    if not (adapter.parent / MODEL_REF_NAME).is_file():
        return None
    ref = ModelRef.load(adapter.parent)
    return ref if ref.adapter is not None and Path(ref.adapter).resolve() == adapter else None


def refuse_other_output(config: EvaluateConfig, *, fresh: bool = False) -> None:
    """Raise UserError if the output holds anything but an evaluation of the same request.

    fresh: replace an evaluation of another request; other files are never replaced.
    """
    output = Path(config.output)
    names = {path.name for path in contents(output)} if output.is_dir() else set()
    if not names <= OWN_NAMES or (names - {GROUPS_NAME} and OUTCOMES_NAME not in names):
        raise UserError(f"output={output}: the folder holds files that no evaluation wrote: choose another folder")
    if fresh or not (output / REPORT_NAMES[0]).is_file():
        return
    previous = read_json(output / REPORT_NAMES[0], what="the report of an evaluation").get("config", {})
    request = {key: value for key, value in request_of(config).items() if key in previous}
    if None in (config.precision, previous.get("precision")):
        request.pop("precision", None)  # null stands for what the cluster decides later; older reports hold null
    different = [key for key, value in request.items() if previous[key] != value]
    if different:
        how = ", ".join(OTHER_REQUEST.get(key, f"with another {key}") for key in different)
        raise UserError(
            f"output={output}: the folder holds an evaluation {how}: choose another folder, or replace it with --fresh"
        )


def request_of(config: EvaluateConfig) -> dict[str, Any]:
    """Return the part of a config that decides the report, in the form of report.json."""
    other_keys = {"output", "num_workers", "threads_per_worker", "tokens_per_batch", "use_gpu", "plugins", "tracking"}
    return dict(json.loads(config.model_dump_json(exclude=other_keys)))


def refuse_missing_inputs(config: EvaluateConfig, *, fresh: bool = False) -> None:
    """Raise UserError if data or policy are missing, or the output is not usable."""
    if TASKS[config.task].asks_records:
        DatasetManifest.load(Path(config.data))
    elif not Path(config.data).exists():
        raise UserError(f"data={config.data}: no such file or folder")
    TASKS[config.task].refuse_other_data(Path(config.data))
    refuse_other_output(config, fresh=fresh)
    refuse_unwritable(Path(config.output))
    if config.adapter is not None and not (Path(config.adapter) / "adapter_config.json").is_file():
        raise UserError(f"adapter={config.adapter}: no adapter_config.json in it: give a folder with a LoRA adapter")
    if config.endpoint is not None:
        return
    trained = trained_reference(config)
    if trained is None:
        refuse_unusable_model(str(config.model), wants_chat=config.prompt.template == "chat")
    else:
        refuse_unusable_model(trained.weights or trained.base, wants_chat=False)
    refuse_unusable_environment()
