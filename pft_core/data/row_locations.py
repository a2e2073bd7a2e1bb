"""The places in the raw files of a prepared folder's records. Only messages use them, never training.

They are kept in a separate file beside the shards, so that no digest depends on file names. Older folders lack it.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_NAME = "records/places.parquet"
_SCHEMA = pa.schema([("id", pa.string()), ("place", pa.string())])


def write_places(folder: Path, ids: Sequence[str], places: Sequence[str]) -> None:
    """Write the place of each record (`file:line` or `file:row N`), by record id."""
    (path := folder / _NAME).parent.mkdir(exist_ok=True)
    columns = [pa.array(ids, pa.string()), pa.array(places, pa.string())]
    pq.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA), path, compression="zstd")


def read_places(folder: Path, ids: Collection[str]) -> dict[str, str]:
    """Return the places of these records by id, as far as the folder has them."""
    path = folder / _NAME
    if not path.is_file():
        return {}
    places = pq.read_table(path)
    selected = places.filter(pc.is_in(places["id"], pa.array(list(ids), pa.string()))).to_pydict()
    return dict(zip(selected["id"], selected["place"], strict=True))


def pass_places_on(source: Path, folder: Path, ids: Sequence[str]) -> None:
    """Copy the places of these records from one prepared folder to another, which holds a subset of its records."""
    places = read_places(source, ids)
    if places:
        write_places(folder, list(places), list(places.values()))
