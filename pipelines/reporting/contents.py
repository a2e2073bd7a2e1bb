"""What the report of a run holds: the keys are those of report.json."""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

from pft_core.evaluation import EvaluationRow
from pipelines.tracking import StepMetrics

REPORT_NAMES = ("report.json", "report.html")
ItemCounts = TypedDict("ItemCounts", {"in": int, "out": int, "rejected": int, "rejected_by_reason": dict[str, int]})


class ExampleOption(TypedDict):
    """An answer that was shown, and the pole that it is of."""

    text: str
    pole: str


class Example(TypedDict):
    """An item, how it went (kind), and the text that was chosen under each pole."""

    kind: str
    axis: str
    scenario: str
    options: list[ExampleOption]
    chosen: dict[str, str]


class RunReport(TypedDict):
    """timings: seconds. training: by policy, what was logged at each step. items: how many were asked and answered.

    notes, cautions: sentences below the title, and those that stand under "Read this first".
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
