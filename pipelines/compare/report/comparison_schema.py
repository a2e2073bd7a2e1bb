"""Schema of the report of a comparison; the keys are those of its report.json."""

from typing import Any, Literal, NotRequired, TypedDict

from pipelines.compare.statistics import ComparisonRow, CorrectedTest
from pipelines.tracking import StepMetrics


class RunOrigin(TypedDict):
    """The origin of a run and its numbers of rejects; None for what a yardstick or a failed run lacks."""

    run_id: str | None
    data_digest: str | None
    test_digest: str | None
    template_digest: str | None
    base_digest: str | None
    capability_digest: str | None
    commit: str | None
    seconds: float | None
    items_rejected: int | None
    pairs_rejected: int | None


class RunLine(RunOrigin):
    """One run of a comparison, or a yardstick (seed: None).

    variant: its value, None if nothing varies. error: the message of a failed run.
    """

    method: str
    seed: int | None
    status: Literal["finished", "failed"]
    error: str | None
    variant: str | int | float | None


class LearningCurve(TypedDict):
    """The losses of one training run, step by step."""

    method: str
    seed: int
    variant: str | int | float | None
    steps: list[StepMetrics]


class ComparisonReport(TypedDict):
    """The report of a comparison. timings: seconds. cautions: what a reader must know first; absent in old reports."""

    suite: str
    title: str
    size: str
    captions: list[str]
    cautions: NotRequired[list[str]]
    rows: list[ComparisonRow]
    tests: list[CorrectedTest]
    curves: list[LearningCurve]
    runs: list[RunLine]
    timings: dict[str, float]
    config: dict[str, Any]
    digests: dict[str, str | None]
