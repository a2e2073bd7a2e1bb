"""Schema of the rows and tests of a comparison; the keys are those of its report.json."""

from typing import Literal, TypedDict


class VariantValue(TypedDict):
    """The name of what a suite varies, and its value for a row."""

    name: str
    value: str | int | float


class MethodHead(TypedDict):
    """The method and runs behind a row. variant: None if nothing varies, and for a row over all variants."""

    method: str
    variant: VariantValue | None
    run_ids: list[str]


class RowHead(MethodHead):
    """The place of a row. axis, pole: None for a row over all. position_baseline: None if the metric has none."""

    axis: str | None
    pole: str | None
    metric: str
    position_baseline: float | None


class ComparisonRow(RowHead):
    """A mean over seeds. sd: None for one seed. low, high: the 95% interval. They and n_items are None for runs."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n_items: int | None
    n_seeds: int


class PairHead(TypedDict):
    """Two methods tested against each other, and the place of the test. axis: None for the mean over axes."""

    a: str
    b: str
    metric: str
    axis: str | None
    pole: None
    variant: VariantValue | None
    run_ids: list[str]


class PairedTest(PairHead):
    """A paired test. difference: a's mean minus b's. n: seeds, or items for McNemar's test."""

    difference: float
    n: int
    test: Literal["paired_t", "permutation", "mcnemar"]
    p: float


class CorrectedTest(PairedTest):
    """A paired test with p_holm: p after Holm's correction over the test's family."""

    p_holm: float
