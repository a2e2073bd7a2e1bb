"""Where in the raw files the records of a prepared folder stand: for messages, and no part of what is trained on.

A file of its own beside the shards, so that no digest depends on how files are named; older folders have none.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_NAME = "records/places.parquet"
_SCHEMA = pa.schema([("id", pa.string()), ("place", pa.string())])


def write_places(folder: Path, ids: Sequence[str], places: Sequence[str]) -> None:
    """Keep the place of each record (`file:line`, `file:row N`), by its id."""
    (path := folder / _NAME).parent.mkdir(exist_ok=True)
    columns = [pa.array(ids, pa.string()), pa.array(places, pa.string())]
    pq.write_table(pa.Table.from_arrays(columns, schema=_SCHEMA), path, compression="zstd")


def read_places(folder: Path, ids: Collection[str]) -> dict[str, str]:
    """Return the places of these records, as far as the folder tells them."""
    path = folder / _NAME
    if not path.is_file():
        return {}
    places = pq.read_table(path)
    found = places.filter(pc.is_in(places["id"], pa.array(list(ids), pa.string()))).to_pydict()
    return dict(zip(found["id"], found["place"], strict=True))


def pass_places_on(source: Path, folder: Path, ids: Sequence[str]) -> None:
    """Keep in a folder of some of the records what another one tells of these."""
    places = read_places(source, ids)
    if places:
        write_places(folder, list(places), list(places.values()))
