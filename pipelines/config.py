"""What a run is made of: strict models, read from a recipe and dotted overrides.

A default is the paper's value or the safe one; the comment says which where it matters.
"""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from pft_core.errors import UserError, did_you_mean
from pipelines.strict import apply_override, build, read_yaml

RECIPES = Path(__file__).parent / "recipes"


UNWEIGHTED = ("one_sided:first", "one_sided:second", "mixed")  # objectives that alpha and beta do not reach
SEARCHABLE = ("pft", "k_way", "dpo", "ipo", "simpo")  # those that the ratio of alpha and beta decides, whole
MOST_WEIGHT, MOST_T = 1e6, 20.0  # of a search; beyond, a side has no weight that a float32 could feel


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PromptConfig(Section):
    """How a record becomes text."""

    condition_position: Literal["before", "after"] = "before"  # the paper's prompt
    answer: Literal["letter", "option"] = "letter"
    template: Literal["plain", "chat"] = "plain"
    condition: Literal["description", "control_token"] = "description"  # control_token: Controllable PO


class EncodingConfig(Section):
    """Token budget and masks of one side of a pair."""

    max_length: PositiveInt = 1024  # tokens; the paper's 512 cuts about half of the VCD answers
    mask: Literal["exact", "paper"] = "exact"
    overlong: Literal["reject", "cut_prompt"] = "reject"


class LoraConfig(Section):
    """Low-rank adapter; the defaults are the paper's."""

    r: PositiveInt = 8
    alpha: PositiveInt = 32
    dropout: float = Field(default=0.05, ge=0, lt=1)
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
    ]


class TrainConfig(Section):
    """The objective and the optimisation; lr, epochs, pairs_per_step and warm-up are the paper's."""

    objective: Literal[
        "pft", "k_way", "one_sided:first", "one_sided:second", "mixed",
        "dpo", "dpo:first", "dpo:second", "dpo_nll", "ipo", "simpo",
    ] = "pft"  # fmt: skip
    alpha: float = Field(default=1.0, ge=0)
    beta: float = Field(default=1.0, ge=0)
    update: Literal["synchronous", "asynchronous"] = "synchronous"
    preference_beta: PositiveFloat = 0.1  # of dpo, ipo and simpo; the paper's for DPO, SimPO's authors take 2.0 to 2.5
    simpo_gamma: float = Field(default=1.0, ge=0)  # SimPO's target margin; its authors take half of beta
    nll_weight: float = Field(default=1.0, ge=0)  # of dpo_nll
    diagnostics_every: int = Field(default=0, ge=0)  # steps; gradient cosines, and displacement at every step; 0: never
    normalization: Literal["step", "micro_batch"] = "step"
    pairs_per_step: PositiveInt = 16
    pairs_per_microbatch: PositiveInt | None = None  # only with normalization=micro_batch
    tokens_per_microbatch: PositiveInt = 8192
    epochs: PositiveFloat = 3
    max_steps: PositiveInt | None = None
    lr: PositiveFloat = 5e-5
    schedule: Literal["linear", "cosine"] = "linear"
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: PositiveFloat = 1.0
    precision: Literal["bf16", "fp32"] = "bf16"
    gradient_checkpointing: bool | Literal["auto"] = "auto"  # auto: only where activations would not fit into memory
    attention_backend: Literal["auto", "separate", "split", "flex"] = "auto"  # how the sides of a pair share its prefix
    validate_every: int = Field(default=0, ge=0)  # steps; 0: never
    checkpoint_every: int = Field(default=50, ge=0)  # steps; 0: at the end only

    @model_validator(mode="after")
    def _microbatches_fit_the_normalization(self) -> Self:
        if (self.normalization == "micro_batch") != (self.pairs_per_microbatch is not None):
            raise ValueError(
                "pairs_per_microbatch and normalization=micro_batch go together: set both, or neither "
                "(normalization=step cuts a step by tokens_per_microbatch)"
            )
        if self.pairs_per_microbatch is not None and self.pairs_per_step % self.pairs_per_microbatch:
            raise ValueError(
                f"pairs_per_step={self.pairs_per_step} is not a multiple of "
                f"pairs_per_microbatch={self.pairs_per_microbatch}: change one of them"
            )
        return self

    @model_validator(mode="after")
    def _something_is_trained(self) -> Self:
        if self.objective not in UNWEIGHTED and self.alpha == 0 and self.beta == 0:
            raise ValueError("alpha and beta are both 0: give at least one side a weight")
        if self.update == "asynchronous" and self.objective != "pft":
            raise ValueError(f"update=asynchronous needs objective=pft, not {self.objective}")
        return self


class EngineConfig(Section):
    """Plain torch, or DeepSpeed at a ZeRO stage; DeepSpeed's JSON is derived from this."""

    name: Literal["torch", "deepspeed"] = "torch"
    zero_stage: Literal[0, 1, 2, 3] = 2


class ScalingConfig(Section):
    """Mirrors ray.train.ScalingConfig."""

    num_workers: PositiveInt = 1
    use_gpu: bool = False
    resources_per_worker: dict[str, float] | None = None
    threads_per_worker: PositiveInt = 1  # CPU threads of torch; two workers with two threads each thrash on 2 cores


class TrackingConfig(Section):
    """Where MLflow keeps the run; None: the environment's MLFLOW_TRACKING_URI, else SQLite in the storage folder."""

    uri: str | None = None
    experiment: str = "pft"
    parent: str | None = None  # the run key of the search or comparison that the run is a part of


class Range(Section):
    """Numbers from low to high; log: as many to be tried between 1 and 2 as between 2 and 4."""

    low: int | float  # two whole numbers: whole numbers are tried
    high: int | float
    log: bool = False

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"low={self.low:g} is not below high={self.high:g}: there is nothing between them")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low:g}: a logarithmic range starts above 0")
        return self


Weight = Annotated[float, Field(ge=0, le=MOST_WEIGHT)]
SEARCHED_KEYS = re.compile(r"(train|lora)\.[a-z_]+|seed")


class SearchConfig(Section):
    """What `pft tune` tries; nothing else reads it. The defaults of alphas and betas span the paper's Figure 5."""

    alphas: list[Weight] = Field(default=[0, 0.25, 0.5, 1, 2], min_length=1)  # of grid, soup and asha
    betas: list[Weight] = Field(default=[0, 0.25, 0.5, 1, 2], min_length=1)
    t: Range = Range(low=-math.log(8), high=math.log(8))  # of optuna: log(alpha / beta)
    space: dict[str, Annotated[list[Any], Field(min_length=1)] | Range] = Field(default_factory=dict)  # train.lr: [..]
    num_trials: PositiveInt = 16  # of optuna
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"  # of optuna; all three know two goals
    form: Literal["one", "all"] = "one"  # whose accuracy the poles' is
    metric: Literal["worse_pole", "both_right", "pole_first", "pole_second"] = "worse_pole"  # what the pick maximises
    verify: int = Field(default=2, ge=0)  # of soup: how many soups are held against a real training
    trials: Literal["ray_train", "warm"] = "ray_train"  # warm: one process a trial, kept for the next; torch engine
    limit_per_axis: PositiveInt | None = None  # validation items that a trial is asked; None: all

    @model_validator(mode="after")
    def _something_is_searched(self) -> Self:
        if not any(self.alphas) and not any(self.betas):
            raise ValueError("alphas and betas hold only 0, which trains nothing: give at least one weight above 0")
        if tiny := [weight for weight in [*self.alphas, *self.betas] if 0 < weight < 1 / MOST_WEIGHT]:
            raise ValueError(f"the weight {tiny[0]:g} is next to nothing: give 0, or at least {1 / MOST_WEIGHT:g}")
        if max(abs(self.t.low), abs(self.t.high)) > MOST_T:
            raise ValueError(f"t reaches beyond {MOST_T:g}, where one side has no weight left: lower it")
        for key, values in self.space.items():
            _refuse_unsearched(key, values)
        return self


def _refuse_unsearched(key: str, values: list[Any] | Range) -> None:
    """Raises ValueError for a key that a search does not vary, and for values that stand twice or do not belong."""
    if key in ("train.alpha", "train.beta"):
        raise ValueError(f"space: {key}: alphas and betas are searched already, as search.alphas and betas")
    if not SEARCHED_KEYS.fullmatch(key):
        raise ValueError(f"space: {key} cannot be searched: give keys of train or lora, such as train.lr, or seed")
    for i, value in enumerate([] if isinstance(values, Range) else values):
        if value in values[:i]:  # type: ignore[index]
            raise ValueError(f"space: {key}: {value!r} stands twice")
        if key == "train.objective" and value not in SEARCHABLE:
            raise ValueError(f"space: {key}: {value!r} is not decided by a ratio: give {', '.join(SEARCHABLE)}")


class RunConfig(Section):
    """A training run: the whole of it, as `pft show config` prints it."""

    name: str = Field(default="train", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    data: str | None = None  # a folder written by `pft prepare`
    validation_data: str | None = None
    model: str | None = None  # a local folder, or a hub name
    storage: str = "runs"
    seed: int = Field(default=0, ge=0, lt=2**63)
    prompt: PromptConfig = PromptConfig()
    encoding: EncodingConfig = EncodingConfig()
    lora: LoraConfig | None = LoraConfig()  # None: full fine-tuning
    train: TrainConfig = TrainConfig()
    engine: EngineConfig = EngineConfig()
    scaling: ScalingConfig = ScalingConfig()
    tracking: TrackingConfig = TrackingConfig()
    search: SearchConfig = SearchConfig()
    max_reject_fraction: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _diagnostics_see_whole_gradients(self) -> Self:
        if self.train.diagnostics_every and self.engine.name != "torch":
            raise ValueError(
                "train.diagnostics_every needs whole gradients on every worker: set engine.name=torch, or leave it at 0"
            )
        return self

    @model_validator(mode="after")
    def _storage_is_a_folder(self) -> Self:
        if "://" in self.storage:
            raise ValueError(f"storage={self.storage!r} is a URL: give a folder on a file system that all nodes see")
        return self


def load_config(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a shipped recipe by its bare name, or a YAML file, and apply `train.lr=1e-4`-like overrides.

    Raises UserError with place, value and what to do.
    """
    path = recipe_path(recipe)
    raw = read_yaml(path)
    given = [apply_override(raw, override) for override in overrides]

    def source(key: str) -> str:
        on_the_command_line = any(f"{g}.".startswith(f"{key}.") or key.startswith(f"{g}.") for g in given)
        return "" if on_the_command_line else f"{path.name}: "

    return build(RunConfig, raw, source=source)


def changed(raw: Mapping[str, Any], changes: Sequence[Mapping[str, Any]], *, source: str) -> RunConfig:
    """Build a run config from sections and dotted changes, the later ones winning. Raises UserError, naming source."""
    result: dict[str, Any] = _copied(raw)
    for key, value in (item for change in changes for item in change.items()):
        *sections, last = key.split(".")
        place = result
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise UserError(f"{source}: {section} is a section, this is {place!r}")
        place[last] = value
    return build(RunConfig, result, source=lambda _: f"{source}: ")


def _copied(raw: Any) -> Any:
    return {key: _copied(value) for key, value in raw.items()} if isinstance(raw, Mapping) else raw


def recipe_path(recipe: str | Path, *, folder: Path = RECIPES, kind: str = "recipe") -> Path:
    """Return the file of a recipe: a bare name is one of those shipped in the folder, anything else a path.

    Raises UserError.
    """
    path = Path(recipe)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            raise UserError(f"{path}: no such {kind} file")
        return path
    shipped = {file.stem: file for file in folder.glob("*.yaml")}
    if str(recipe) not in shipped:
        raise UserError(f"{kind} {str(recipe)!r} does not exist.{did_you_mean(str(recipe), shipped)}")
    return shipped[str(recipe)]


def total_pairs(config: RunConfig, num_examples: int) -> int:
    """Positions of the whole run: `max_steps` whole steps where it is given, else `epochs` over the examples."""
    if config.train.max_steps is not None:
        return config.train.max_steps * config.train.pairs_per_step
    return max(1, round(config.train.epochs * num_examples))


def resolved(config: RunConfig) -> dict[str, Any]:
    """Return the whole config and, under `derived`, the numbers that follow from it.

    They need no model: `pairs` is what the data holds before pairs beyond encoding.max_length are rejected.
    Raises UserError where `data` is a folder that was not prepared.
    """
    train, scaling = config.train, config.scaling
    sides = 1 if train.objective.startswith("one_sided") else 2
    pair_tokens = sides * config.encoding.max_length
    pairs_per_bin = train.pairs_per_microbatch or train.tokens_per_microbatch // pair_tokens
    pairs_per_worker = math.ceil(train.pairs_per_step / scaling.num_workers)
    derived: dict[str, Any] = {
        "longest_pair_tokens": pair_tokens,
        "longest_pair_fits_a_microbatch": pair_tokens <= train.tokens_per_microbatch,
        "pairs_per_step_and_worker": pairs_per_worker,
        "microbatches_per_step_at_most": math.ceil(pairs_per_worker / max(1, pairs_per_bin)),
        "lora_scale": config.lora.alpha / config.lora.r if config.lora else None,
    }
    return config.model_dump() | {"derived": derived | _schedule(config)}


def _schedule(config: RunConfig) -> dict[str, Any]:
    train = config.train
    pairs = None
    if config.data is not None and Path(config.data).is_dir():  # it may be on the cluster only
        from pft_core.data import DatasetManifest

        pairs = DatasetManifest.load(Path(config.data)).pairs_out
    if pairs is None and train.max_steps is None:
        return {"pairs": None, "steps": None, "warmup_share": None}
    total = total_pairs(config, pairs or 0)
    steps = math.ceil(total / train.pairs_per_step)
    return {
        "pairs": pairs,
        "pairs_seen": total,
        "epochs": round(total / pairs, 3) if pairs else None,
        "steps": steps,
        "warmup_share": round(min(1.0, train.warmup_steps / steps), 3),
    }
