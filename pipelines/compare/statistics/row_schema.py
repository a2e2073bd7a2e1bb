"""What the rows and the tests of a comparison hold: the keys are those of its report.json."""

from typing import Literal, TypedDict


class VariedKnob(TypedDict):
    """What a suite varies, and the value that a row is of."""

    name: str
    value: str | int | float


class MethodHead(TypedDict):
    """Whose runs a row is made from. variant: None where nothing varies, and over all variants."""

    method: str
    variant: VariedKnob | None
    run_ids: list[str]


class RowHead(MethodHead):
    """What a row is of. axis, pole: None where it is over all. position_baseline: None where position has no part."""

    axis: str | None
    pole: str | None
    metric: str
    position_baseline: float | None


class ComparisonRow(RowHead):
    """A mean over seeds. sd: None for one seed. low, high: the 95 % interval; None, as n_items, of whole runs."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None
    n_items: int | None
    n_seeds: int


class PairHead(TypedDict):
    """Two methods that are tested against each other, and on what; axis: None for the mean over axes."""

    a: str
    b: str
    metric: str
    axis: str | None
    pole: None
    variant: VariedKnob | None
    run_ids: list[str]


class PairedTest(PairHead):
    """difference: a's mean minus b's. n: seeds, or the items of McNemar's test."""

    difference: float
    n: int
    test: Literal["paired_t", "permutation", "mcnemar"]
    p: float


class CorrectedTest(PairedTest):
    """p_holm: after Holm's correction over the test's family."""

    p_holm: float
