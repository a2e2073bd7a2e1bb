"""Raw rows in, records or rejects out: one pure function per released format."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from pft_core.data.records import Reject
from pft_core.data.sources.bqd import bqd_row
from pft_core.data.sources.checks import Accepted, Outcome, shipped_axes
from pft_core.data.sources.own import own_row
from pft_core.data.sources.readers import Located, Part, file_parts, files_in, is_hub_name, load_hub, read_rows
from pft_core.data.sources.trl import is_prompt_completion, join_prompt_completions, preference_row
from pft_core.data.sources.vcd import vcd_row

__all__ = [
    "SOURCES",
    "Accepted",
    "Outcome",
    "Part",
    "file_parts",
    "files_in",
    "is_hub_name",
    "is_prompt_completion",
    "join_prompt_completions",
    "load_hub",
    "parse_rows",
    "read_rows",
    "shipped_axes",
]

SOURCES: dict[str, Callable[[Any, str, str | None], Outcome]] = {
    "vcd": vcd_row,
    "bqd": bqd_row,
    "trl": preference_row,
    "json": own_row,
}


def parse_rows(rows: Iterable[Located], *, source: str, axis: str | None) -> Iterator[tuple[str, Outcome]]:
    """Yield (where, outcome) of each row, in order. rows: as `read_rows` gives them."""
    parse = SOURCES[source]
    for where, row in rows:
        yield where, row if isinstance(row, Reject) else parse(row, where, axis)
