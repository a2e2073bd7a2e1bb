"""Readers for the records of a prepared folder."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from pft_core.data.manifest import DatasetManifest
from pft_core.data.records import PairedExample
from pft_core.errors import UserError

# Small enough that memory use does not grow with the size of a shard.
_ROWS_AT_ONCE = 512


def read_records(
    folder: Path, manifest: DatasetManifest | None = None, *, per_axis: int | None = None
) -> Iterator[PairedExample]:
    """Yield the records in the order of the manifest's shards.

    manifest: the folder's own, if it was read already. per_axis: the number of records to yield per axis; default all.
    Raises UserError if the folder is not a prepared one, or a shard is missing.
    """
    seen: Counter[str] = Counter()
    for shard in (manifest or DatasetManifest.load(folder)).shards:
        for record in read_shard(folder / shard.path):
            seen[record.axis] += 1
            if per_axis is None or seen[record.axis] <= per_axis:
                yield record


def read_shard(path: Path) -> Iterator[PairedExample]:
    """Yield the records of one shard, with a few hundred in memory at a time. Raises UserError if it is missing."""
    if not path.is_file():
        raise UserError(f"{path}: no such file, though the manifest beside it lists it: run `pft prepare` again")
    with pq.ParquetFile(path) as shard:
        for batch in shard.iter_batches(_ROWS_AT_ONCE):
            yield from map(PairedExample.from_row, batch.to_pylist())
