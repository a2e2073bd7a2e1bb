"""Schema of the report of a run; the keys are those of report.json."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from pft_core.evaluation import EvaluationRow
from pipelines.tracking import StepMetrics

REPORT_NAMES = ("report.json", "report.html")  # the files of every report
# How many items were read, asked and rejected, and the rejects by reason.
ItemCounts = TypedDict("ItemCounts", {"in": int, "out": int, "rejected": int, "rejected_by_reason": dict[str, int]})


class ExampleOption(TypedDict):
    """An option as shown, its pole, and its probability under each pole, if known."""

    text: str
    pole: str
    probabilities: NotRequired[dict[str, float]]


class Example(TypedDict):
    """An item, how it was answered (kind), and the text chosen under each pole."""

    kind: str
    axis: str
    scenario: str
    options: list[ExampleOption]
    chosen: dict[str, str]


class Difference(TypedDict):
    """A metric or task of two policies on the same items; axis and pole are None for a row over all.

    difference: a minus b; low, high: its 95% interval. test: mcnemar (on items) or paired_t (over scenarios).
    p_holm: p after Holm's correction over the metric's tests. A value that does not exist is None.
    """

    metric: str
    axis: str | None
    pole: str | None
    n: int
    a: float
    b: float
    difference: float
    low: float | None
    high: float | None
    test: str | None
    p: float | None
    p_holm: float | None


class RunReport(TypedDict):
    """The report of a training run or an evaluation.

    timings: seconds. training: by policy, the metrics logged at each step. items: counts of items asked and answered.
    notes: sentences below the title; cautions: sentences under "Read this first".
    compared: the names of the two policies of `differences`, in order.
    """

    title: NotRequired[str]
    rows: list[EvaluationRow]
    items: NotRequired[ItemCounts]
    timings: dict[str, float]
    config: dict[str, Any]
    digests: Mapping[str, Any]
    training: NotRequired[Mapping[str, Sequence[StepMetrics]]]
    notes: NotRequired[list[str]]
    cautions: NotRequired[list[str]]
    examples: NotRequired[list[Example]]
    differences: NotRequired[list[Difference]]
    compared: NotRequired[list[str]]
