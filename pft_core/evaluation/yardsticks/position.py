"""The position yardstick: choose by the place of an option alone."""

from collections.abc import Iterable

from pft_core.data import Form, PairedExample
from pft_core.evaluation.metrics import Choice, Outcome, always_by_position
from pft_core.files import digest


def position_only(records: Iterable[PairedExample], form: Form) -> list[Outcome]:
    """Always choose the first option for the first pole, and the second option for the second."""
    return [always_by_position(outcome_of(record, form, (None, None))) for record in records]


def outcome_of(record: PairedExample, form: Form, chosen: tuple[Choice, Choice]) -> Outcome:
    """Return the outcome of a record from the choices under the first and the second pole."""
    sides = tuple(option.side for option in record.options)
    return Outcome(record.id, digest(record.scenario), record.axis, form, sides, chosen)
