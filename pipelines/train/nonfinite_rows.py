"""Name the rows behind a loss that is not finite, and what to try."""

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from pft_core.data import DatasetManifest, read_places, read_records

SHOWN = 3


def remedy(precision: str) -> str:
    """Return what to try after a non-finite loss or gradient at this `train.precision`."""
    if precision == "fp32":
        return "try a lower train.lr or a longer train.warmup_steps"
    return "try a lower train.lr, a longer train.warmup_steps or train.precision=fp32"


def nonfinite_rows(data: Path, model: str, manifest: DatasetManifest, example_ids: Sequence[str]) -> str:
    """Return up to three of these examples (`record id:form`): the row in the user's file and in the data set, and the
    start of its text; then the command that shows the first. Returns "" if none is found."""
    ids = {name.rpartition(":")[0] for name in example_ids}
    found = list(itertools.islice(_rows(data, manifest, ids, read_places(data, ids)), SHOWN))
    if not found:
        return ""
    more = f" and {len(example_ids) - len(found)} more" if len(example_ids) > len(found) else ""
    command = f"pft show prompt {shlex.quote(str(data))} --model {shlex.quote(model)} --row {found[0][0]}"
    return f"{'; '.join(text for _, text in found)}{more}. Look at the first one: {command}"


def _rows(
    data: Path, manifest: DatasetManifest, record_ids: set[str], raw: Mapping[str, str]
) -> Iterator[tuple[int, str]]:
    """Yield row numbers as `pft show prompt` counts them: from 1, over all parts of the data set."""
    for number, record in enumerate(read_records(data, manifest), start=1):
        if record.id in record_ids:
            row = f"row {number} of {data}"
            place = f"{raw[record.id]}, prepared as {row}" if record.id in raw else row
            yield number, f"{place}, {record.scenario[:60]!r}"
