"""Settings of `prepare`, and checks that their inputs exist, which run before Ray or transformers are imported."""

from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from pft_core.data import SOURCES, Split, files_in, is_hub_name
from pft_core.encoding import EncodingSettings
from pft_core.errors import UserError
from pft_core.files import refuse_unwritable, restore_folder
from pft_core.policies import refuse_unknown_data_set, refuse_unusable_model
from pft_core.prompts import PromptSettings
from pft_core.settings import Place
from pipelines.plugins import PluggedSettings

InputFile = tuple[Path, str]  # its path, and its name as the user wrote it
SPLIT = r"^\w+(\.\w+)*$"  # allowed names of splits on the Hugging Face Hub


class PrepareConfig(PluggedSettings):
    """Raw input, its format, and the output folder of the records."""

    source: str  # format of the rows: vcd, bqd, trl, json, toyworld, or one from a plugin
    output: Place  # the folder of the data set
    input: list[Place] = Field(default_factory=list)  # files, folders, or Hugging Face data sets as owner/name[:config]
    # Axis of rows that do not name one; null: for bqd, the name of the file's folder.
    axis: str | None = Field(default=None, min_length=1)
    # Questions to prepare: choose one option (as in the paper), all that fit, or both.
    forms: list[Literal["one", "all"]] = Field(default=["one"], min_length=1)
    split: str = Field(default="train", pattern=SPLIT)  # split of toyworld, or of a Hugging Face data set
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
        SOURCES[name]
        return name

    @model_validator(mode="after")
    def _what_is_given_applies(self) -> Self:
        reads_files = SOURCES[self.source].reads_files
        made = {"seed", "num_per_axis"} | (set() if any(map(is_hub_name, self.input)) else {"split"})
        for name in sorted(self.model_fields_set & (made if reads_files else {"axis"})):
            what = "reads files" if name != "split" else "reads files, and none is a Hugging Face data set"
            why = what if reads_files else "generates rows that name their axis"
            raise UserError(f"{name}={getattr(self, name)} has no effect: source={self.source} {why}: leave it out")
        if not reads_files and self.split not in get_args(Split):
            raise UserError(f"split={self.split!r}: source={self.source} has {', '.join(get_args(Split))}")
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
