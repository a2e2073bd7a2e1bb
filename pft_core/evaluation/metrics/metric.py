"""What a metric says of itself: all that rows, tables, captions and drawings need to know of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from pft_core.data import Form
from pft_core.registry import load_code, refuse_no_code, refuse_unknown

# pole: an outcome under one pole; pair: under both; base: with no condition, beside its base; run: a whole run
Subject = Literal["pole", "pair", "base", "run"]
Best = Literal["highest", "lowest"]


@dataclass(frozen=True)
class Metric:
    """A number of a report.

    measure: code, or its "package.module:name". Of a pole it takes an outcome and a side, of a pair or the base an
    outcome, and returns numerator and denominator; of a run it takes the run's result and returns a number or None.
    None: its rows are made elsewhere, and no suite can ask for it.
    """

    label: str
    meaning: str  # ends a sentence that the label begins, without a full stop
    of: Subject
    measure: Callable[..., Any] | str | None
    form: Form = "one"  # the form of question whose outcomes it is computed from
    best: Best | None = None  # None: neither
    title: str | None = None  # of its part of a table; None: the label
    is_right: bool = False  # a share of right answers, which position alone must not reach: it leads and is drawn
    is_tested: bool = False  # whether a comparison tests the reference method's against the others'
    is_size: bool = False  # whether the size of a mean counts, and not its sign
    is_share: bool = True  # shown in percent
    has_baseline: bool = True  # whether position alone, and yardsticks, have a value
    in_evaluation: bool = True  # whether `pft evaluate` has rows of it
    over_variants: bool = False  # whether it is drawn over what a suite varies, as what is_right always is

    def __post_init__(self) -> None:
        refuse_unknown("of", self.of, get_args(Subject))
        refuse_unknown("form", self.form, get_args(Form))
        refuse_unknown("best", self.best, (*get_args(Best), None))
        if self.measure is not None:
            refuse_no_code("measure", self.measure)

    @property
    def counts_outcomes(self) -> bool:
        """Whether the metric is computed from outcomes, item by item."""
        return self.of != "run"

    @property
    def can_be_asked_for(self) -> bool:
        """Whether a suite may name the metric; one without a measure follows from the suite."""
        return self.measure is not None

    @property
    def has_poles(self) -> bool:
        """Whether each pole has a value of its own."""
        return self.of == "pole"

    @property
    def needs_base(self) -> bool:
        """Whether the metric compares the policy with its base model."""
        return self.of == "base"

    @cached_property
    def code(self) -> Callable[..., Any]:
        """The measure itself, imported when it is first used."""
        return load_code(self.measure)
