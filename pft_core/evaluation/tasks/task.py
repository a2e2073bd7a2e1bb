"""The definition of a task: its items, each a prompt, and the score of an answer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pft_core.registry import load_code, refuse_no_code

if TYPE_CHECKING:
    from pft_core.data import Reject
    from pft_core.evaluation.answers import AnswerSettings

Reply = tuple[int, ...] | str  # places of the likeliest answers (several if they are tied), or the generated text


@dataclass(frozen=True)
class TaskItem:
    """One prompt: the user's message, which the policy gets in the frame it was trained in.

    answers: the answers to choose from by likelihood, in the order shown; if empty, the policy generates text. gold:
    whatever the score needs. scenario: the bootstrap cluster; if empty, the item is its own cluster. axis, side: those
    of the condition in the prompt, None without one.
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
    """A task of `pft evaluate --task`; its report rows have the task's name as their metric.

    items: maps the data's path and the answer settings to items, with rejects for bad rows. score: maps an item and the
    place of an answer, or the generated text, to a score, or to None if it is unparsed. check: a light function that
    raises UserError before anything starts if a path does not hold the task's data. Each is a function or its import
    path "package.module:name". The task without items evaluates prepared records, and its rows are the metrics' rows.
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
        """Whether the task evaluates prepared records."""
        return self.items is None

    def refuse_other_data(self, data: Path) -> None:
        """Raise UserError, before a model is loaded, if the task has a check and the data fails it."""
        if self.check is not None:
            load_code(self.check)(data)

    def read(self, data: Path, settings: "AnswerSettings") -> "list[TaskItem | Reject]":
        """Return the items of a file or folder. Raises UserError if it cannot be read."""
        return list(load_code(self.items)(data, settings))
