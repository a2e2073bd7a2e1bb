"""Name the rows behind a loss that is not finite, and what to try."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pft_core.data import DatasetManifest, read_places, read_shard

SHOWN = 3
REMEDY = "check these rows, or try a lower train.lr, a longer train.warmup_steps or train.precision=fp32"


def nonfinite_rows(data: Path, manifest: DatasetManifest, example_ids: Sequence[str]) -> str:
    """Return the raw and prepared rows of these examples (`record id:form`), each with the start of its text."""
    ids = {name.rpartition(":")[0] for name in example_ids}
    places = list(itertools.islice(_places(data, manifest, ids, read_places(data, ids)), SHOWN))
    more = f" and {len(example_ids) - len(places)} more" if len(example_ids) > len(places) else ""
    return f" ({'; '.join(places)}{more}): {REMEDY}" if places else f": {REMEDY}"


def _places(data: Path, manifest: DatasetManifest, record_ids: set[str], raw: Mapping[str, str]) -> Iterator[str]:
    for shard in manifest.shards:
        for number, record in enumerate(read_shard(data / shard.path)):
            if record.id in record_ids:
                prepared = f"{data / shard.path}:row {number}"
                place = f"{raw[record.id]}, prepared as {prepared}" if record.id in raw else prepared
                yield f"{place}, {record.scenario[:60]!r}"
