"""Scenarios of a prepared data set, for the page to offer."""

from pathlib import Path
from typing import Any

from pft_core.data import DatasetManifest, read_records

PER_AXIS = 4


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """Return the first scenarios of every axis, options as shown. Raises UserError for an unprepared folder."""
    manifest = DatasetManifest.load(folder)
    found: dict[str, list[dict[str, Any]]] = {axis.name: [] for axis in manifest.space.axes}
    for record in read_records(folder, manifest):
        if len(found[record.axis]) < PER_AXIS and record.presentation == "choice":
            options = [option.text for option in record.options]
            found[record.axis].append({"axis": record.axis, "scenario": record.scenario, "options": options})
        if all(len(examples) == PER_AXIS for examples in found.values()):
            break
    return [example for examples in found.values() for example in examples]
