"""What the report of a run holds: the keys are those of report.json."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from pft_core.evaluation import EvaluationRow
from pipelines.tracking import StepMetrics

REPORT_NAMES = ("report.json", "report.html")  # the files of every report
# How many items were read, asked and rejected, and the rejects by reason.
ItemCounts = TypedDict("ItemCounts", {"in": int, "out": int, "rejected": int, "rejected_by_reason": dict[str, int]})


class ExampleOption(TypedDict):
    """An answer that was shown, the pole that it is of, and how likely it was under each pole, where that is known."""

    text: str
    pole: str
    probabilities: NotRequired[dict[str, float]]


class Example(TypedDict):
    """An item, how it went (kind), and the text that was chosen under each pole."""

    kind: str
    axis: str
    scenario: str
    options: list[ExampleOption]
    chosen: dict[str, str]


class Difference(TypedDict):
    """A metric or task of two policies on the same items; axis, pole: None where it is over all.

    difference: a minus b; low, high: its 95 % interval. test: mcnemar (on items) or paired_t (over scenarios); p_holm:
    after Holm's correction over the metric's tests. None where there is none.
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
    """timings: seconds. training: by policy, what was logged at each step. items: how many were asked and answered.

    notes, cautions: sentences below the title, and those that stand under "Read this first".
    compared: the two policies of differences, the first one's name first.
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
