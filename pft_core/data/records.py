"""Validated records: checked once at the door (`sources`), then trusted."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Presentation = Literal["choice", "response"]
Form = Literal["one", "all"]  # of a question: choose one option, or all that fit


@dataclass(frozen=True)
class Option:
    """One answer to a scenario and the side (0 first pole, 1 second pole) that it shows."""

    text: str
    side: int


@dataclass(frozen=True)
class PairedExample:
    """A scenario with answers of both poles of one axis, in the order in which they are shown.

    `choice`: the options are listed in the prompt and one (or all) of a pole is to be chosen.
    `response`: free answers, one per side, that the prompt does not show.
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
        """16 hex digits of axis, scenario and answers, the same whichever pole an answer is said to show."""
        content = [self.axis, self.scenario, sorted(option.text for option in self.options)]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]

    def to_row(self) -> dict[str, Any]:
        """Return the record as a row of RECORD_SCHEMA."""
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
        """Return the record of a row that `to_row` wrote."""
        options = tuple(Option(o["text"], int(o["side"])) for o in row["options"])
        return PairedExample(row["id"], row["axis"], row["scenario"], options, row["presentation"])


@dataclass(frozen=True)
class Reject:
    """A row that was not accepted: where it is (file:line or file:row N), a short reason code, what was found."""

    row: str
    key_path: str
    reason: str
    detail: str


def content_id(axis: str, scenario: str, options: Sequence[Option]) -> str:
    """Return 16 hex digits that depend on the content only, not on the order in which a file lists the options."""
    content = [axis, scenario, sorted((o.text, o.side) for o in options)]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:16]


def counterbalanced(options: Sequence[Option], item_id: str) -> tuple[Option, ...]:
    """Order options by a hash of the item id.

    Files list the first pole first, so position alone scores 85 % on released VCD: the order must carry no information.
    """
    return tuple(sorted(options, key=lambda o: hashlib.sha256(f"{item_id}:{o.text}".encode()).digest()))


def paired_example(
    axis: str, scenario: str, options: Sequence[Option], presentation: Presentation = "choice"
) -> PairedExample:
    """Build a record: content id and counterbalanced option order."""
    item_id = content_id(axis, scenario, options)
    return PairedExample(item_id, axis, scenario, counterbalanced(options, item_id), presentation)


LETTERS = "ABCDEFGHIJ"  # that name the options of a question
