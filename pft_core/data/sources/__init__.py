"""Sources of raw rows: each format has a pure function that turns a row into a record or a reject."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.data.sources.checks import AcceptedRow, Outcome, RowFault, accept, row_parser, shipped_axes, text_of
    from pft_core.data.sources.questions import question_of, refuse_unused
    from pft_core.data.sources.readers import FilePart, file_parts, files_in, is_hub_name, load_hub, read_rows
    from pft_core.data.sources.registry import SOURCES, SourceEntry, parse_rows
    from pft_core.data.sources.toyworld import Split, generate
    from pft_core.data.sources.toyworld_words import ACTIONS, MANNERS, NAMES, SITUATIONS, THINGS
else:
    __getattr__ = lazy_exports(__name__)
