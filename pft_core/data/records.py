"""Validated records. `sources` checks a row once; later code trusts it."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Presentation = Literal["choice", "response"]  # of a record: options that its prompt lists, or free answers
Form = Literal["one", "all"]  # of a question: choose one option, or all that fit


@dataclass(frozen=True)
class Option:
    """One answer to a scenario, and the side that it shows (0: first pole, 1: second pole)."""

    text: str
    side: int


@dataclass(frozen=True)
class PairedExample:
    """A scenario with answers of both poles of one axis, in the order in which the prompt shows them.

    presentation: `choice` if the prompt lists the options and the answer chooses one (or all) of a pole; `response`
    if the options are free answers, one per side, which the prompt does not show.
    Invariant: both sides occur among the options.
    """

    id: str
    axis: str
    scenario: str
    options: tuple[Option, ...]
    presentation: Presentation = "choice"

    def of_side(self, side: int) -> tuple[int, ...]:
        """Return the indices of the options that show that side."""
        return tuple(i for i, option in enumerate(self.options) if option.side == side)

    @property
    def item_key(self) -> str:
        """16 hex digits of axis, scenario and answers, which do not depend on the sides of the answers."""
        content = [self.axis, self.scenario, sorted(option.text for option in self.options)]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]

    def to_row(self) -> dict[str, Any]:
        """Return the record as a row of `RECORD_SCHEMA`."""
        options = [{"text": o.text, "side": o.side} for o in self.options]
        return {
            "id": self.id,
            "axis": self.axis,
            "scenario": self.scenario,
            "options": options,
            "presentation": self.presentation,
        }

    @staticmethod
    def from_row(row: dict[str, Any]) -> "PairedExample":
        """Build a record from a row of `RECORD_SCHEMA`."""
        options = tuple(Option(o["text"], int(o["side"])) for o in row["options"])
        return PairedExample(row["id"], row["axis"], row["scenario"], options, row["presentation"])


@dataclass(frozen=True)
class Reject:
    """A row that was not accepted, and why.

    row: its place (`file:line` or `file:row N`). key_path: the faulty key. reason: a short code that is counted.
    detail: the fault in words.
    """

    row: str
    key_path: str
    reason: str
    detail: str


def content_id(axis: str, scenario: str, options: Sequence[Option]) -> str:
    """Return 16 hex digits that depend only on the content, not on the order in which a file lists the options."""
    content = [axis, scenario, sorted((o.text, o.side) for o in options)]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]


def counterbalanced(options: Sequence[Option], item_id: str) -> tuple[Option, ...]:
    """Order options by a hash of the item id and their text, so that the position carries no information.

    Released VCD files list the first pole first: there, position alone scores 85 %.
    """
    return tuple(sorted(options, key=lambda o: hashlib.sha256(f"{item_id}:{o.text}".encode()).digest()))


def paired_example(
    axis: str, scenario: str, options: Sequence[Option], presentation: Presentation = "choice"
) -> PairedExample:
    """Build a record with its content id and a counterbalanced option order."""
    item_id = content_id(axis, scenario, options)
    return PairedExample(item_id, axis, scenario, counterbalanced(options, item_id), presentation)


LETTERS = "ABCDEFGHIJ"  # that name the options of a question
