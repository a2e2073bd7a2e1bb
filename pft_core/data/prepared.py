"""The records of a prepared folder, in the order of its manifest's shards."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from pft_core.data.manifest import DatasetManifest
from pft_core.data.records import PairedExample
from pft_core.errors import UserError

# Small enough that memory does not follow the shard's size.
_ROWS_AT_ONCE = 512


def read_records(
    folder: Path, manifest: DatasetManifest | None = None, *, per_axis: int | None = None
) -> Iterator[PairedExample]:
    """Yield the records in order, of each axis only the first `per_axis` where that is given.

    manifest: the folder's own, where it is read already. Raises UserError for a folder that is not prepared, or lacks
    a shard.
    """
    seen: Counter[str] = Counter()
    for shard in (manifest or DatasetManifest.load(folder)).shards:
        for record in read_shard(folder / shard.path):
            seen[record.axis] += 1
            if per_axis is None or seen[record.axis] <= per_axis:
                yield record


def read_shard(path: Path) -> Iterator[PairedExample]:
    """Yield the records of one shard, a few hundred in memory at once. Raises UserError where there is no such file."""
    if not path.is_file():
        raise UserError(f"{path}: no such file, though the manifest beside it lists it: run `pft prepare` again")
    with pq.ParquetFile(path) as shard:
        for batch in shard.iter_batches(_ROWS_AT_ONCE):
            yield from map(PairedExample.from_row, batch.to_pylist())
