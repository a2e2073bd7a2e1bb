"""Data, from raw rows to validated records: preference axes, records, manifests and sources."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.data.draw import drawn
    from pft_core.data.manifest import MANIFEST_NAME, DatasetManifest, Shard, opened
    from pft_core.data.preferences import SIDES, Axis, Pole, PreferenceSpace, load_space, worded_as
    from pft_core.data.prepared import read_records, read_shard
    from pft_core.data.record_schema import RECORD_SCHEMA
    from pft_core.data.records import LETTERS, Form, Option, PairedExample, Presentation, Reject, Turn
    from pft_core.data.row_locations import pass_places_on, read_places, write_places
    from pft_core.data.scenarios import (
        SCENARIOS_NAME,
        count_shared_scenarios,
        read_trained_scenarios,
        scenarios_and_axes,
        scenarios_of,
        write_trained_scenarios,
    )
    from pft_core.data.sources import (
        ACTIONS,
        MANNERS,
        NAMES,
        SITUATIONS,
        SOURCES,
        THINGS,
        AcceptedRow,
        FilePart,
        Outcome,
        RowFault,
        SourceEntry,
        Split,
        accept,
        file_parts,
        files_in,
        generate,
        is_hub_name,
        load_hub,
        parse_rows,
        question_of,
        read_rows,
        refuse_unused,
        row_parser,
        shipped_axes,
        text_of,
    )
else:
    __getattr__ = lazy_exports(__name__)
