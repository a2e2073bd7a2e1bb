"""The embedded `dilemmas`: short scenarios in plain English over four axes, written for this project.

The files hold the options in the order in which they are shown, so that each pole comes first equally often.

Half of the items are twins: two scenarios with the same option texts, whose poles the scenarios swap. Twins show their
options in the same order, so that a policy that goes by the position or by the words of the options alone is right on
exactly half of them. Both twins lie in the same split. The splits `train` and `test` have plain items, `train_twins`
and `twins` have twins, and `validation` has both.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from pft_core.data.preferences import load_space
from pft_core.data.records import Option, PairedExample, content_id
from pft_core.data.sources.checks import AcceptedRow

FOLDER = Path(__file__).parents[1] / "dilemmas"


def stored_rows(*, split: str) -> Iterator[tuple[str, AcceptedRow]]:
    """Yield each record of a split as the row of a source: its place, and the record with its axis."""
    space = load_space("dilemmas")
    for number, line in enumerate((FOLDER / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(), start=1):
        row = json.loads(line)
        axis = space.axis(row["axis"])
        options = tuple(Option(option["text"], axis.side(option["pole"])) for option in row["options"])
        record = PairedExample(content_id(axis.name, row["scenario"], options), axis.name, row["scenario"], options)
        yield f"dilemmas:{split}:{number}", AcceptedRow(record, axis)
