"""Scenarios from a prepared data set for the page to offer."""

from pathlib import Path
from typing import Any

from pft_core.data import DatasetManifest, read_records

PER_AXIS = 4


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """Return the first scenarios of every axis with their options. Raises UserError if the folder is not prepared."""
    manifest = DatasetManifest.load(folder)
    by_axis: dict[str, list[dict[str, Any]]] = {axis.name: [] for axis in manifest.space.axes}
    for record in read_records(folder, manifest):
        if len(by_axis[record.axis]) < PER_AXIS and record.presentation == "choice":
            options = [option.text for option in record.options]
            by_axis[record.axis].append({"axis": record.axis, "scenario": record.scenario, "options": options})
        if all(len(examples) == PER_AXIS for examples in by_axis.values()):
            break
    return [example for examples in by_axis.values() for example in examples]
