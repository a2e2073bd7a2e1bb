"""Scenarios of a prepared data set, for the page to offer."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pft_core.data import DatasetManifest

PER_AXIS = 4


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """Return the first scenarios of every axis, options as shown. Raises UserError for an unprepared folder."""
    manifest = DatasetManifest.load(folder)
    found: dict[str, list[dict[str, Any]]] = {axis.name: [] for axis in manifest.space.axes}
    for shard in manifest.shards:
        for row in pq.read_table(folder / shard.path).to_pylist():
            if len(found[row["axis"]]) < PER_AXIS and row["presentation"] == "choice":
                options = [option["text"] for option in row["options"]]
                found[row["axis"]].append({"axis": row["axis"], "scenario": row["scenario"], "options": options})
        if all(len(examples) == PER_AXIS for examples in found.values()):
            break
    return [example for examples in found.values() for example in examples]
