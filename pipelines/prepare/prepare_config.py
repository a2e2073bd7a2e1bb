"""Settings of `prepare`, and checks that their inputs exist, which run before Ray or transformers are imported."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from pft_core.data import SOURCES, files_in, is_hub_name
from pft_core.encoding import EncodingSettings
from pft_core.errors import UserError
from pft_core.files import refuse_unwritable, restore_folder
from pft_core.policies import refuse_unknown_data_set, refuse_unusable_model
from pft_core.prompts import PromptSettings
from pft_core.settings import Place
from pipelines.plugins import PluggedSettings

InputFile = tuple[Path, str]  # its path, and its name as the user wrote it
# File formats that are mistaken for a source.
FORMATS_OF_JSON = {"csv": "CSV", "tsv": "TSV", "jsonl": "JSON lines", "parquet": "Parquet"}
SPLIT = r"^\w+(\.\w+)*$"  # allowed names of splits on the Hugging Face Hub


class PrepareConfig(PluggedSettings):
    """Raw input, its format, and the output folder of the records."""

    source: str  # format of the rows: a registered source, such as json, trl, vcd, dilemmas
    output: Place  # the folder of the data set
    input: list[Place] = Field(default_factory=list)  # files, folders, or Hugging Face data sets as owner/name[:config]
    # Axis of rows that do not name one; null: for bqd, the name of the file's folder; for persona and
    # prefeval, that of the file.
    axis: str | None = Field(default=None, min_length=1)
    # Questions to prepare: choose one option (as in the paper), all that fit, or both.
    forms: list[Literal["one", "all"]] = Field(default=["one"], min_length=1)
    split: str = Field(default="train", pattern=SPLIT)  # split of embedded data, or of a Hugging Face data set
    seed: int = Field(default=0, ge=0, lt=2**63)  # seed of toyworld
    num_per_axis: PositiveInt = 400  # records that toyworld generates for each axis
    max_reject_fraction: float = Field(default=0.5, ge=0, le=1)  # stop if more than this share of the rows is rejected
    split_by: Literal["scenario"] | None = None  # also write train, validation and test, which share no scenario
    # Shares of train, validation and test; null: 0.8, 0.1, 0.1.
    parts: list[PositiveFloat] | None = Field(default=None, min_length=3, max_length=3)
    num_workers: PositiveInt | None = None  # number of parallel tasks; null: one per CPU of the cluster
    model: Place | None = None  # base model to encode for; null: training encodes
    prompt: PromptSettings = PromptSettings()
    encoding: EncodingSettings = EncodingSettings()

    @field_validator("source")
    @classmethod
    def _is_registered(cls, name: str) -> str:
        try:
            SOURCES[name]
        except UserError as error:
            kind = FORMATS_OF_JSON.get(name.lower())
            raise UserError(f"{error} ({kind} is read by --source json)") if kind else error from None
        return name

    @model_validator(mode="after")
    def _what_is_given_applies(self) -> Self:
        entry = SOURCES[self.source]
        idle = {"seed": "reads files", "num_per_axis": "reads files"} if entry.reads_files else {}
        if entry.reads_files and not any(map(is_hub_name, self.input)):
            idle["split"] = "reads files, and none is a Hugging Face data set"
        if not entry.reads_files:
            fixed = {"seed", "num_per_axis"} - set(entry.takes)
            idle = {"axis": "has rows that name their axis"} | dict.fromkeys(fixed, "always has the same rows")
        for name in sorted(self.model_fields_set & idle.keys()):
            value = getattr(self, name)
            raise UserError(f"{name}={value} has no effect: source={self.source} {idle[name]}: leave it out")
        if not entry.reads_files and self.split not in entry.splits:
            raise UserError(f"split={self.split!r}: source={self.source} has {', '.join(entry.splits)}")
        return self

    @model_validator(mode="after")
    def _the_axis_is_known(self) -> Self:
        from_hub = [name for name in self.input if is_hub_name(name)]
        if SOURCES[self.source].axis_is_file and self.axis is None and from_hub:
            raise UserError(
                f"axis is not set: source={self.source} takes it from the name of a file, and {from_hub[0]} is a "
                "Hugging Face data set: add axis=NAME (--axis NAME)"
            )
        return self

    @model_validator(mode="after")
    def _parts_are_of_a_split(self) -> Self:
        if self.parts and self.split_by is None:
            raise ValueError("parts has no effect without a split: add split_by=scenario (--split-by scenario)")
        if self.parts and abs(sum(self.parts) - 1) > 1e-6:
            raise ValueError(
                f"parts={','.join(map(str, self.parts))}: the shares must add up to 1, not {sum(self.parts):g}"
            )
        return self


def refuse_missing_inputs(config: PrepareConfig) -> None:
    """Raise UserError if an input or the model is missing, or the output cannot be written.

    Old data that a killed process left in the way is restored first, even if this process then fails.
    """
    if not Path(config.output).resolve().name:
        raise UserError(f"output={config.output}: is the root folder: choose a folder below it")
    restore_folder(Path(config.output).resolve())
    local_files(config)
    refuse_unwritable(Path(config.output))
    for name in filter(is_hub_name, config.input):
        refuse_unknown_data_set(name)
    if config.model is not None:
        refuse_unusable_model(config.model, wants_chat=config.prompt.template == "chat")


def local_files(config: PrepareConfig) -> list[InputFile]:
    """Return the files of the local inputs. Raises UserError."""
    reads_files = SOURCES[config.source].reads_files
    if config.input and not reads_files:
        raise UserError(f"input={config.input}: source={config.source} generates its rows: leave input out")
    if reads_files and not config.input:
        raise UserError(f"input is not set: source={config.source} reads files: add --input PATH...")
    return [(path, str(path)) for name in config.input if not is_hub_name(name) for path in files_in(name)]
