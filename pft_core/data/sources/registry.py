"""The registry of sources. A new source is a function that reads a row, and an entry here or in a plugin."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pft_core.data.records import Reject
from pft_core.data.sources.checks import Outcome
from pft_core.errors import UserError
from pft_core.registry import Registry, load_code, refuse_no_code

if TYPE_CHECKING:
    from pft_core.data.sources.readers import Located


@dataclass(frozen=True)
class SourceEntry:
    """How the rows of a source are read. Each function may be its place as "package.module:name".

    row: a function (row, where, axis) -> AcceptedRow or Reject, as `row_parser` makes it. axis_is_folder, axis_is_file:
    whether the name of the folder, or of the file without its suffix, is the axis of rows that name none.
    needs_joining: a function that judges by the first row whether two rows make a record. join: the function
    (rows, axis) that joins the rows of one axis. generate: for a source that reads no rows, a function (split, and what
    `takes` names) that yields (where, AcceptedRow). splits, takes: of `generate` only.
    """

    row: str | Callable[[Any, str, str | None], Outcome] | None = None
    axis_is_folder: bool = False
    axis_is_file: bool = False
    needs_joining: str | Callable[[Any], bool] | None = None
    join: str | Callable[["Iterable[Located]", str | None], Iterator[tuple[str, Outcome]]] | None = None
    generate: str | Callable[..., Iterator[tuple[str, Outcome]]] | None = None
    splits: tuple[str, ...] = ("train", "validation", "test")
    takes: tuple[str, ...] = ("seed", "num_per_axis")

    def __post_init__(self) -> None:
        if self.row is None and self.generate is None:
            raise UserError("SourceEntry: neither row nor generate is set: give the function that reads or makes rows")
        if (self.needs_joining is None) != (self.join is None):
            raise UserError("SourceEntry: needs_joining and join go together: give both, or neither")
        if self.axis_is_folder and self.axis_is_file:
            raise UserError("SourceEntry: axis_is_folder and axis_is_file exclude each other: give one of them")
        for what in ("row", "needs_joining", "join", "generate"):
            if getattr(self, what) is not None:
                refuse_no_code(what, getattr(self, what))

    @property
    def reads_files(self) -> bool:
        """Whether the rows come from files."""
        return self.generate is None

    def axis_of(self, path: Path) -> str | None:
        """Return the axis that a file's place names, for rows that name none; None if it names none."""
        if self.axis_is_folder:
            return path.parent.name
        if not self.axis_is_file:
            return None
        from pft_core.data.sources.streams import name_without_suffix  # imports Arrow, which a config must not

        return name_without_suffix(path)

    def is_joined(self, first_row: Any) -> bool:
        """Return whether the rows of an input must be joined, judged by its first row."""
        return self.needs_joining is not None and bool(load_code(self.needs_joining)(first_row))


# The registered sources, by the name that `pft prepare --source` takes.
SOURCES: Registry[SourceEntry] = Registry("source", SourceEntry)

_HERE = "pft_core.data.sources"

SOURCES.add("vcd", SourceEntry(f"{_HERE}.released.vcd:vcd_row"))
SOURCES.add("bqd", SourceEntry(f"{_HERE}.released.bqd:bqd_row", axis_is_folder=True))
SOURCES.add("persona", SourceEntry(f"{_HERE}.released.persona:persona_row", axis_is_file=True))
SOURCES.add("moralchoice", SourceEntry(f"{_HERE}.released.moralchoice:moralchoice_row"))
SOURCES.add(
    "prefeval",
    SourceEntry(
        f"{_HERE}.released.prefeval:prefeval_row",
        axis_is_file=True,
        needs_joining=f"{_HERE}.released.prefeval:is_half",
        join=f"{_HERE}.released.prefeval:join_halves",
    ),
)
SOURCES.add(
    "trl",
    SourceEntry(
        f"{_HERE}.trl:preference_row",
        needs_joining=f"{_HERE}.trl:is_prompt_completion",
        join=f"{_HERE}.trl:join_prompt_completions",
    ),
)
SOURCES.add("json", SourceEntry(f"{_HERE}.user_pairs:own_row"))
SOURCES.add("toyworld", SourceEntry(generate=f"{_HERE}.toyworld:generated_rows"))
SOURCES.add(
    "dilemmas",
    SourceEntry(
        generate=f"{_HERE}.dilemmas:stored_rows",
        splits=("train", "train_twins", "validation", "test", "twins"),
        takes=(),
    ),
)


def parse_rows(rows: "Iterable[Located]", *, source: str, axis: str | None) -> Iterator[tuple[str, Outcome]]:
    """Yield (where, outcome) of each row, in order. rows: as `read_rows` yields them."""
    parse = load_code(SOURCES[source].row)
    for where, row in rows:
        yield where, row if isinstance(row, Reject) else parse(row, where, axis)
