"""The definition of a metric: everything that rows, tables, captions and charts need to know about it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from pft_core.data import Form
from pft_core.registry import load_code, refuse_no_code, refuse_unknown

# pole: an outcome under one pole; pair: under both poles; base: without a condition, against the base; run: a whole run
Subject = Literal["pole", "pair", "base", "run"]
Best = Literal["highest", "lowest"]


@dataclass(frozen=True)
class Metric:
    """A metric of a report.

    measure: a function, or its import path "package.module:name". For a pole it takes an outcome and a side, for a pair
    or the base an outcome, and returns a numerator and a denominator. For a run it takes the run's result and returns a
    number or None. A metric without a measure is computed elsewhere, and a suite cannot request it.
    """

    label: str
    meaning: str  # completes the sentence "<label>: ...", without a final period
    of: Subject
    measure: Callable[..., Any] | str | None
    form: Form = "one"  # the form of the questions whose outcomes it uses
    best: Best | None = None  # None: neither
    title: str | None = None  # the title of its section of a table; None: the label
    is_right: bool = False  # whether it is a share of right answers with a position baseline; charts show it
    is_tested: bool = False  # whether a comparison tests the reference method against the others on it
    is_size: bool = False  # whether the value is the absolute mean
    is_share: bool = True  # shown as a percentage
    has_baseline: bool = True  # whether position alone and the yardsticks have a value; without effect for a base
    in_evaluation: bool = True  # whether `pft evaluate` reports rows of it
    over_variants: bool = False  # whether it is charted over a suite's variants, as metrics with is_right always are

    def __post_init__(self) -> None:
        refuse_unknown("of", self.of, get_args(Subject))
        refuse_unknown("form", self.form, get_args(Form))
        refuse_unknown("best", self.best, (*get_args(Best), None))
        if self.measure is not None:
            refuse_no_code("measure", self.measure)

    @property
    def counts_outcomes(self) -> bool:
        """Whether it is computed from outcomes rather than from a run's result."""
        return self.of != "run"

    @property
    def can_be_asked_for(self) -> bool:
        """Whether a suite can request it."""
        return self.measure is not None

    @property
    def has_poles(self) -> bool:
        """Whether it has a value for each pole."""
        return self.of == "pole"

    @property
    def needs_base(self) -> bool:
        """Whether it needs the answers of the policy's base."""
        return self.of == "base"

    @property
    def has_yardsticks(self) -> bool:
        """Whether position alone and the yardsticks have a value: they choose only under a condition."""
        return self.has_baseline and not self.needs_base

    @cached_property
    def code(self) -> Callable[..., Any]:
        """The measure, imported if it is an import path."""
        measure: Callable[..., Any] = load_code(self.measure)
        return measure
