"""Schema of the report of a search; the keys are those of report.json."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from pft_core.data import Form
from pipelines.tune.search_points import Source

Mode = Literal["grid", "soup", "asha", "optuna"]
FigureName = Literal["pole_first", "pole_second", "worse_pole", "both_right"]
POLES: tuple[FigureName, ...] = ("pole_first", "pole_second")
FIGURES: tuple[FigureName, ...] = (*POLES, "worse_pole", "both_right")  # figures of a trial, each with an interval


class TriedPoint(TypedDict):
    """The point of a trial. t: log(alpha / beta), "-inf" and "inf" at the ends, None for the base."""

    alpha: float
    beta: float
    t: float | str | None
    source: Source
    changes: Mapping[str, Any]


class TrialRun(TypedDict):
    """Where a trial ran. attempt: None if it never started. parents: the trials of a soup, by number."""

    run_id: str
    run_dir: str
    attempt: int | None
    rung_losses: list[float]
    parents: list[int]
    weights: list[float]


class MeasuredFigures(TypedDict):
    """The figures of a finished trial. all_first, all_second: None if *All* was not asked. low, high: of both_right."""

    pole_first: float
    pole_second: float
    worse_pole: float
    both_right: float
    all_first: float | None
    all_second: float | None
    steps: int
    seconds: float
    items_rejected: int
    low: float
    high: float
    intervals: dict[FigureName, list[float]]


class UnmeasuredFigures(TypedDict):
    """The same keys for a trial without figures."""

    pole_first: None
    pole_second: None
    worse_pole: None
    both_right: None
    all_first: None
    all_second: None
    steps: None
    seconds: None
    items_rejected: None
    low: None
    high: None
    intervals: dict[FigureName, list[float]]


class MeasuredTrial(TriedPoint, TrialRun, MeasuredFigures):
    """A finished trial."""

    status: Literal["finished"]
    error: None


class UnmeasuredTrial(TriedPoint, TrialRun, UnmeasuredFigures):
    """A trial that failed or was stopped early."""

    status: Literal["failed", "stopped"]
    error: str | None


TrialRow = MeasuredTrial | UnmeasuredTrial  # a trial, as the report of a search holds it


class GridCell(TypedDict):
    """A cell of the grid, the number of the trial that stands for it, and that trial's figures."""

    alpha: float
    beta: float
    t: float | str | None
    source: Source | Literal["same_ratio"]
    trial: int
    pole_first: float | None
    pole_second: float | None
    worse_pole: float | None
    both_right: float | None
    all_first: float | None
    all_second: float | None
    low: float | None
    high: float | None
    intervals: dict[FigureName, list[float]]
    status: Literal["finished", "failed", "stopped"]
    changes: Mapping[str, Any]


class SoupGap(TypedDict):
    """A soup compared with a training of its ratio. gap: trained minus soup, with its interval."""

    soup: float
    trained: float
    gap: float
    low: float
    high: float


class Verification(TypedDict):
    """A soup whose ratio was also trained: both trials by number, and the gap of each figure."""

    t: float | str | None
    soup: int
    trained: int
    metric: dict[FigureName, SoupGap]


class PickedTrial(TypedDict):
    """The picked trial, and why."""

    trial: int
    alpha: float
    beta: float
    t: float | str | None
    source: Source
    why: str


class TradeOff(TypedDict):
    """The front of both poles' accuracy. front, knee: trials by number."""

    front: list[int]
    hypervolume: float | None
    knee: int | None


class Findings(TradeOff):
    """The conclusions from all trials. pick: None if no trial has finished."""

    pick: PickedTrial | None
    verification: list[Verification]


class AxisPoles(TypedDict):
    """An axis and its two poles by name."""

    name: str
    first: str
    second: str


class SearchReport(Findings):
    """The report of a search. timings: seconds by part."""

    title: str
    mode: Mode
    name: str
    metric: FigureName
    form: Form
    axes: list[AxisPoles]
    cells: list[GridCell]
    trials: list[TrialRow]
    sentences: list[str]
    warnings: list[str]
    notes: list[str]
    timings: dict[str, float]
    config: dict[str, Any]
    digests: dict[str, str]


class PublishedSearch(SearchReport):
    """A report with the recipe's file and the registered model's name, None if the model was not registered."""

    recipe: str
    model: str | None
