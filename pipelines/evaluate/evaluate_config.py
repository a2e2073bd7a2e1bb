"""What a user asks of an evaluation, and what of that is not there: known before Ray or transformers are imported."""

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import PositiveInt, model_validator

from pft_core.data import DatasetManifest, Form
from pft_core.errors import UserError
from pft_core.evaluation import OUTCOMES_NAME, TASKS
from pft_core.files import contents, read_json, refuse_unwritable
from pft_core.policies import MODEL_REF_NAME, ModelRef, refuse_unusable_model
from pft_core.prompts import PromptSettings
from pft_core.settings import Place, Threads
from pipelines.jobs import refuse_unusable_environment
from pipelines.plugins import PluggedSettings
from pipelines.reporting import REPORT_NAMES
from pipelines.tracking import SPOOL_NAME, START_NAME, TrackingSettings

REJECTS_NAME = "rejects.jsonl"
OWN_NAMES = {*REPORT_NAMES, OUTCOMES_NAME, REJECTS_NAME, SPOOL_NAME, START_NAME}


class EvaluateConfig(PluggedSettings):
    """What to evaluate, on which prepared data, and how to ask."""

    model: Place | None = None  # a model reference (file or folder), a model folder, or a hub name; a served one's name
    endpoint: str | None = None  # URL of a `pft serve`, which is asked instead of a model that is loaded here
    adapter: Place | None = None  # None: the reference's
    task: str = "choices"  # what is asked: a registered task
    data: Place  # a folder written by `pft prepare`; for another task what it reads
    output: Place
    policy: str | None = None  # its name in the report; None: the name of the model's folder
    scoring: Literal["letter", "option", "generate"] | None = None  # None: likelihood, in the answer style of training
    prompt: PromptSettings = PromptSettings()  # for a model without a reference
    forms: list[Form] | None = None  # None: the data set's
    limit_per_axis: PositiveInt | None = None  # None: every item
    max_length: PositiveInt = 2048  # tokens of prompt and answer; longer items are rejected
    max_new_tokens: PositiveInt = 256
    tokens_per_batch: PositiveInt = 8192
    num_workers: PositiveInt = 1
    threads_per_worker: Threads = 1
    use_gpu: bool | None = None  # None: where the cluster has GPUs
    precision: Literal["bf16", "fp32"] | None = None  # None: bf16 on GPUs, fp32 on CPUs
    tracking: TrackingSettings = TrackingSettings()

    @model_validator(mode="after")
    def _the_task_is_there_and_can_be_asked_so(self) -> Self:
        options = {"endpoint": self.endpoint, "forms": self.forms, "scoring": self.scoring}
        given = [
            name for name, value in {**options, "limit_per_axis": self.limit_per_axis}.items() if value is not None
        ]
        if not TASKS[self.task].asks_records and given:
            raise ValueError(f"task={self.task} has questions of its own: leave {', '.join(given)} out")
        return self

    @model_validator(mode="after")
    def _someone_is_asked(self) -> Self:
        if self.endpoint is None and self.model is None:
            raise ValueError("model is not set: give --model, or --endpoint of a server")
        if self.endpoint is not None and self.adapter is not None:
            raise ValueError("adapter and endpoint: a server has its own adapters: give --model NAME as it lists them")
        if self.endpoint is not None and "num_workers" in self.model_fields_set:
            raise ValueError("num_workers and endpoint: a server has its own replicas: leave num_workers out")
        return self


def trained_reference(config: EvaluateConfig) -> ModelRef | None:
    """Return the reference that `model` names, None where it is a plain model."""
    path = Path(str(config.model)).resolve()
    return ModelRef.load(path) if path.is_file() or (path / MODEL_REF_NAME).is_file() else None


def weights_reference(config: EvaluateConfig) -> ModelRef | None:
    """Return the reference that tells how the asked weights were trained; None where nothing does.

    Of an adapter given beside the model this is the reference of the run that it lies in.
    """
    if config.adapter is None:
        return trained_reference(config)
    adapter = Path(config.adapter).resolve()
    if not (adapter.parent / MODEL_REF_NAME).is_file():
        return None
    ref = ModelRef.load(adapter.parent)
    return ref if ref.adapter is not None and Path(ref.adapter).resolve() == adapter else None


def refuse_other_output(config: EvaluateConfig, *, fresh: bool = False) -> None:
    """Raise UserError where the output holds anything but an evaluation of the same request.

    fresh: whether an evaluation of another request is replaced; nothing else ever is.
    """
    output = Path(config.output)
    names = {path.name for path in contents(output)} if output.is_dir() else set()
    if not names <= OWN_NAMES or (names and OUTCOMES_NAME not in names):
        raise UserError(f"output={output}: holds files that no evaluation wrote: choose another folder")
    if fresh or not (output / REPORT_NAMES[0]).is_file():
        return
    found = read_json(output / REPORT_NAMES[0], what="the report of an evaluation").get("config", {})
    other = [key for key, value in asked_for(config).items() if key in found and found[key] != value]
    if other:
        raise UserError(
            f"output={output}: holds an evaluation with another {', '.join(other)}: choose another folder, or let "
            "--fresh replace it"
        )


def asked_for(config: EvaluateConfig) -> dict[str, Any]:
    """What of a config decides the report, as report.json holds it."""
    how_fast = {"output", "num_workers", "threads_per_worker", "tokens_per_batch", "use_gpu", "plugins", "tracking"}
    return dict(json.loads(config.model_dump_json(exclude=how_fast)))


def refuse_missing_inputs(config: EvaluateConfig, *, fresh: bool = False) -> None:
    """Say that data, policy or room for the report are not there. Raises UserError."""
    if TASKS[config.task].asks_records:
        DatasetManifest.load(Path(config.data))
    elif not Path(config.data).exists():
        raise UserError(f"data={config.data}: no such file or folder")
    TASKS[config.task].refuse_other_data(Path(config.data))
    refuse_other_output(config, fresh=fresh)
    refuse_unwritable(Path(config.output))
    if config.adapter is not None and not (Path(config.adapter) / "adapter_config.json").is_file():
        raise UserError(f"adapter={config.adapter}: no adapter_config.json there: give a folder with a LoRA adapter")
    if config.endpoint is not None:
        return
    trained = trained_reference(config)
    if trained is None:
        refuse_unusable_model(str(config.model), wants_chat=config.prompt.template == "chat")
    else:
        refuse_unusable_model(trained.weights or trained.base, wants_chat=False)
    refuse_unusable_environment()
