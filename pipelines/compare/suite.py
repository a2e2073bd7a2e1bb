"""A suite: methods, seeds, variants and data to compare, at each of two sizes."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from pft_core.data import MANIFEST_NAME
from pft_core.errors import UserError, did_you_mean
from pft_core.evaluation import metrics_where
from pft_core.settings import Place, Settings
from pipelines.compare.methods import method
from pipelines.compare.stages import refuse_idle_knobs, stage_configs
from pipelines.config import import_plugins, place_plugins, refuse_unplaceable, source_of
from pipelines.plugins import PluggedSettings, place_of
from pipelines.validated_yaml import apply_override, build, read_yaml

SUITES = Path(__file__).parent / "suites"
SIZES = Path(__file__).with_name("sizes.yaml")
ManyT = TypeVar("ManyT", bound=Sequence[Any])
Size = Literal["tiny", "paper"]
# Files of the released data sets below PFT_DATA; BQD has no validation split.
FILES = {
    "vcd": {"train": "vcd/train.json", "validation": "vcd/val.json", "test": "vcd/test.json"},
    "bqd": {"train": "bqd/*/train.json", "test": "bqd/*/test_ab.json"},
}


class Variant(Settings):
    """One variant of a suite: its value in the report, and its changes."""

    value: str | int | float  # what the variant is called in the report
    set: dict[str, Any] = Field(default_factory=dict)  # changes to the run config, such as train.max_steps: 50
    train_size: PositiveInt | None = None  # number of training records; null: all
    axes: list[str] | None = Field(default=None, min_length=1)  # axes of training and test; null: all


class SuiteSize(Settings):
    """The scale of a suite: data, base model, seeds, and the run config that every method starts from."""

    data: Place  # a prepared folder, toyworld, or vcd or bqd (read from PFT_DATA; toyworld if it is unset)
    base: Place  # a folder, a hub name, toyworld, or text (a tiny model trained on the training texts)
    seeds: list[NonNegativeInt] = Field(min_length=1)  # seeds of every method, with one cell for each
    notes: list[str] = Field(default_factory=list)  # sentences for readers of the tables
    run: dict[str, Any] = Field(default_factory=dict)  # sections of the run config, for every method
    of_method: dict[str, dict[str, Any]] = Field(default_factory=dict)  # changes by method, such as train.lr: 1e-4
    # The questions that are asked: choose one, or all that fit.
    forms: list[Literal["one", "all"]] = Field(default=["one"], min_length=1)
    test_per_axis: PositiveInt | None = None  # test items of an axis, drawn with seed 0; null: all
    resources: dict[str, PositiveFloat] = Field(
        default_factory=lambda: {"CPU": 1.0}
    )  # resources of one cell; with a GPU, it trains and evaluates there
    capability: str | None = None  # a two-choice file below PFT_DATA, asked before and after training if it exists
    lm_eval: list[Place] = Field(
        default_factory=list
    )  # lm-eval tasks by name or YAML file, asked before and after training

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, seeds: list[int]) -> list[int]:
        return require_distinct(seeds, "seed")

    @field_validator("resources")
    @classmethod
    def _a_cell_can_be_placed(cls, resources: dict[str, float]) -> dict[str, float]:
        refuse_unplaceable(resources)
        return resources

    @field_validator("data")
    @classmethod
    def _data_is_there(cls, data: str) -> str:
        if data not in ("toyworld", *FILES) and not _is_prepared(Path(data)):
            known = did_you_mean(data, ["toyworld", *FILES])
            raise ValueError(f"{data!r} is not a data set or a folder written by `pft prepare`.{known}")
        return data

    @field_validator("of_method")
    @classmethod
    def _methods_exist(cls, changes: dict[str, Any]) -> dict[str, Any]:
        for name in changes:
            _known(method, name)
        return changes

    @property
    def summary(self) -> str:
        """Return a line on its data, base model, seeds and resources."""
        resources = ", ".join(f"{amount:g} {name}" for name, amount in self.resources.items())
        return f"{self.data}, {self.base}, {len(self.seeds)} seeds, a cell needs {resources}"


class Suite(PluggedSettings):
    """A comparison of methods."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")  # name of the suite's folder and figures
    title: str  # title of the report
    methods: list[str] = Field(min_length=1)  # registered methods, in the order of the tables
    reference: str = "pft"  # the method that the others are tested against
    notes: list[str] = Field(default_factory=list)  # sentences for readers of the tables, at every size
    # Registered metrics of the tables.
    metrics: list[str] = Field(default=["one", "all", "both_right", "flip", "leak", "unparsed"], min_length=1)
    varies: str | None = None  # the name of what the variants change
    variants: list[Variant] = Field(default_factory=list)
    sizes: dict[Size, SuiteSize] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_exist(self) -> Self:
        for name in require_distinct(self.methods, "method"):
            _known(method, name)
        require_distinct([variant.value for variant in self.variants], "variant")
        if self.reference not in self.methods:
            raise ValueError(f"reference={self.reference!r} is not among the methods {self.methods}: add it to them")
        known = metrics_where(can_be_asked_for=True)
        for metric in self.metrics:
            if metric not in known:
                raise ValueError(f"metric {metric!r} does not exist.{did_you_mean(metric, known)}")
        if (self.varies is None) != (not self.variants):
            raise ValueError("varies and variants go together: name what the variants change, or leave both out")
        return self

    @model_validator(mode="after")
    def _runs_can_be_made(self) -> Self:
        # Checked here, before a cluster starts and data is written.
        for name, size in self.sizes.items():
            _check_runs(self, size, f"sizes.{name}")
        return self


def _is_prepared(folder: Path) -> bool:
    """Return whether `pft prepare` wrote this folder, or the folders train and test in it."""
    return all((part / MANIFEST_NAME).is_file() for part in (folder / "train", folder / "test")) or (
        (folder / MANIFEST_NAME).is_file() and not (folder / "test").is_dir()
    )


def _check_runs(suite: Suite, size: SuiteSize, place: str) -> None:
    """Raise UserError for an invalid run config, and for a knob that no method it is set for takes."""
    taken = {name: _knobs_taken(suite, size, name, place) for name in dict.fromkeys([*suite.methods, *size.of_method])}
    by_any = set().union(*(taken[name] for name in suite.methods))
    nobody = "no method of the suite"
    refuse_idle_knobs(size.run, by_any, place=f"{place}.run", by=nobody)
    for i, variant in enumerate(suite.variants):
        refuse_idle_knobs(variant.set, by_any, place=f"variants.{i}.set", by=nobody)
    for name, own in size.of_method.items():
        refuse_idle_knobs(own, taken[name], place=f"{place}.of_method.{name}", by=f"no training of {name}")


def _knobs_taken(suite: Suite, size: SuiteSize, name: str, place: str) -> set[str]:
    if method(name).asked_by == "yardstick":  # it answers from the records alone and has no run
        return set()
    own = size.of_method.get(name, {})
    configs = [
        config
        for changes in [variant.set for variant in suite.variants] or [{}]
        for config in stage_configs(name, size.run, method_changes=own, variant_changes=changes, fixed={}, source=place)
    ]
    return {knob for config in configs for knob in config.train.entry.knobs} if method(name).stages else set()


def require_distinct(values: ManyT, what: str) -> ManyT:
    """Return the values. Raises ValueError if one is named twice, since its runs would count twice."""
    for i, value in enumerate(values):
        if value in values[:i]:
            raise ValueError(f"{what} {value!r} is named twice: name it once")
    return values


def _known(look_up: Any, name: str) -> None:
    try:
        look_up(name)
    except UserError as error:
        raise ValueError(str(error)) from None


def load_suite(name: str, overrides: Sequence[str] = (), plugins: Sequence[str] = ()) -> Suite:
    """Read a shipped suite by name, or a YAML file, with dotted overrides and more plugins.

    Raises UserError.
    """
    path = suite_path(name)
    raw = with_defaults(read_yaml(path))
    place_plugins(raw, path.parent)
    source = source_of(path, [apply_override(raw, override, Suite) for override in overrides])
    place_plugins(raw, Path.cwd())
    import_plugins(raw, source)
    more = [place_of(plugin, Path.cwd()) for plugin in plugins]
    import_plugins({"plugins": more}, lambda _: "")
    if more and isinstance(plugin_list := raw.get("plugins", []), list):  # other values are refused below
        raw["plugins"] = [*plugin_list, *more]
    return build(Suite, raw, source=source)


def with_defaults(raw: dict[str, Any]) -> dict[str, Any]:
    """Fill what each of the suite's sizes leaves out from sizes.yaml."""
    sizes = raw.get("sizes")
    if not isinstance(sizes, Mapping):
        return raw
    defaults = read_yaml(SIZES)
    return raw | {"sizes": {size: _with_size_defaults(defaults.get(size, {}), own) for size, own in sizes.items()}}


def _with_size_defaults(defaults: Mapping[str, Any], own: Any) -> Any:
    """Merge a size with its defaults; without PFT_DATA, a size on released data uses the embedded data instead."""
    if not isinstance(own, Mapping) or os.environ.get("PFT_DATA"):
        return _merged(defaults, own)
    data = own.get("data", defaults.get("data"))
    if data not in FILES or defaults.get("data") != "toyworld":
        return _merged(defaults, own)
    rest = {key: value for key, value in own.items() if key not in ("data", "base", "run", "of_method")}
    note = f"Data: the embedded toyworld instead of {data}, because PFT_DATA is not set."
    return _merged(defaults, rest | {"notes": [*own.get("notes", defaults.get("notes", [])), note]})


def _merged(defaults: Any, own: Any) -> Any:
    if not (isinstance(defaults, Mapping) and isinstance(own, Mapping)):
        return own
    return {**defaults, **{key: _merged(defaults.get(key), value) for key, value in own.items()}}


def suite_path(name: str) -> Path:
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        if not path.is_file():
            raise UserError(f"{path}: no such file: give a suite file, or a name from `pft compare --list`")
        return path
    shipped = shipped_suites()
    if name not in shipped:
        raise UserError(f"suite {name!r} does not exist.{did_you_mean(name, shipped)} See `pft compare --list`.")
    return shipped[name]


def shipped_suites() -> dict[str, Path]:
    """Return the paths of the suites in the package, by name."""
    return {path.stem: path for path in sorted(SUITES.glob("*.yaml"))}
