"""What the report of a search holds: the keys are those of its report.json."""

from collections.abc import Mapping
from typing import Any, Literal, TypedDict

from pft_core.data import Form
from pipelines.tune.search_points import Source

Mode = Literal["grid", "soup", "asha", "optuna"]
FigureName = Literal["pole_first", "pole_second", "worse_pole", "both_right"]
POLES: tuple[FigureName, ...] = ("pole_first", "pole_second")
FIGURES: tuple[FigureName, ...] = (*POLES, "worse_pole", "both_right")  # of a trial, each with an interval


class TriedPoint(TypedDict):
    """What a trial tried. t: log(alpha / beta), "-inf" and "inf" at the ends, None for the base."""

    alpha: float
    beta: float
    t: float | str | None
    source: Source
    changes: Mapping[str, Any]


class TrialRun(TypedDict):
    """Where a trial ran. attempt: None where it never started. parents: of a soup, as numbers of trials."""

    run_id: str
    run_dir: str
    attempt: int | None
    rung_losses: list[float]
    parents: list[int]
    weights: list[float]


class MeasuredFigures(TypedDict):
    """What a trial reached. all_first, all_second: None where *All* was not asked. low, high: of both_right."""

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
    """The same of a trial that has reached nothing."""

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
    """A trial that has finished."""

    status: Literal["finished"]
    error: None


class UnmeasuredTrial(TriedPoint, TrialRun, UnmeasuredFigures):
    """A trial that failed, or was stopped early."""

    status: Literal["failed", "stopped"]
    error: str | None


TrialRow = MeasuredTrial | UnmeasuredTrial  # a trial, as the report of a search holds it


class GridCell(TypedDict):
    """A cell of the grid with the number of the trial that answers it, and what that reached."""

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
    """A soup beside a training of its ratio. gap: trained minus soup, with its interval."""

    soup: float
    trained: float
    gap: float
    low: float
    high: float


class Verification(TypedDict):
    """A soup whose ratio was trained too: both trials by number, and the gap of each figure."""

    t: float | str | None
    soup: int
    trained: int
    metric: dict[FigureName, SoupGap]


class PickedTrial(TypedDict):
    """The trial to take, and why."""

    trial: int
    alpha: float
    beta: float
    t: float | str | None
    source: Source
    why: str


class TradeOff(TypedDict):
    """front, knee: trials by number."""

    front: list[int]
    hypervolume: float | None
    knee: int | None


class Findings(TradeOff):
    """What the trials say together. pick: None where none has finished."""

    pick: PickedTrial | None
    verification: list[Verification]


class AxisPoles(TypedDict):
    """An axis and its two poles by name."""

    name: str
    first: str
    second: str


class SearchReport(Findings):
    """timings: seconds by part."""

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
    """A report with what was written beside it: the recipe's file, and the model's name, None where none has one."""

    recipe: str
    model: str | None
