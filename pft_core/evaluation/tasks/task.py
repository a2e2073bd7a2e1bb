"""What a task says of itself: its items, each a prompt, and the score of an answer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pft_core.registry import load_code, refuse_no_code

if TYPE_CHECKING:
    from pft_core.data import Reject
    from pft_core.evaluation.answers import AnswerSettings

Reply = tuple[int, ...] | str  # places of the likeliest answers (several where they are equal), or what was written


@dataclass(frozen=True)
class TaskItem:
    """One prompt: the user's message, which the policy is shown in the frame that it was trained in.

    answers: to choose from by likelihood, in the order in which they are shown; none: the policy writes freely.
    gold: whatever the score needs. scenario: what bootstrap draws together; empty: the item alone. axis and side: of
    the preference that the prompt states, where it states one.
    """

    id: str
    prompt: str
    answers: tuple[str, ...] = ()
    gold: Any = None
    scenario: str = ""
    axis: str | None = None
    side: int | None = None


@dataclass(frozen=True)
class Task:
    """What `pft evaluate --task` asks; its rows carry its name as their metric.

    items: from the place of the data and the way of asking to items, and rejects for what is none. score: from an item
    and the place of an answer, or the text written, to a score; None: unparsed. Both are code or
    "package.module:name". check: likewise, light, and raises UserError for a place whose data is none of the
    task's before anything starts. Without items it is that of prepared records, whose rows are those of the metrics.
    """

    label: str
    meaning: str
    items: "Callable[[Path, AnswerSettings], Iterable[TaskItem | Reject]] | str | None" = None
    score: Callable[[TaskItem, Any], float | None] | str | None = None
    check: Callable[[Path], Any] | str | None = None

    def __post_init__(self) -> None:
        if self.items is not None or self.score is not None:
            refuse_no_code("items", self.items)
            refuse_no_code("score", self.score)

    @property
    def asks_records(self) -> bool:
        """Whether the task asks prepared records, not items of its own."""
        return self.items is None

    def refuse_other_data(self, data: Path) -> None:
        """Raise UserError, before a model is loaded, where the data is none of the task's and the task can tell."""
        if self.check is not None:
            load_code(self.check)(data)

    def read(self, data: Path, settings: "AnswerSettings") -> "list[TaskItem | Reject]":
        """Return the items of a file or folder. Raises UserError where it cannot be read."""
        return list(load_code(self.items)(data, settings))
