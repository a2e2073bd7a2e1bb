"""`data check`: measure what a prepared data set gives away, and say what to look at."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from pft_core.data import MANIFEST_NAME, DatasetManifest, PreferenceSpace, read_records
from pft_core.errors import UserError
from pft_core.evaluation import YARDSTICKS, check
from pipelines.console import console

SUSPICIOUS = 0.65  # of `one`, where chance is 0.5: what is above can be solved without understanding the scenario
UNBALANCED = 0.1  # off a half
LENGTHS = 1.3  # ratio of words per option between the poles


def run(folder: Path) -> dict[str, Any]:
    """Check a prepared folder, or all prepared folders in it. Result: folder, parts, leaks, findings.

    Raises UserError if there is none.
    """
    folders = parts_of(folder)
    manifests = {name: DatasetManifest.load(path) for name, path in folders.items()}
    axes = {axis.name: axis for manifest in manifests.values() for axis in manifest.space.axes}
    space = PreferenceSpace(folder.resolve().name, tuple(axes.values()))
    measured = check({name: list(read_records(path)) for name, path in folders.items()}, space)
    result = {"folder": str(folder), **measured, "findings": list(findings(measured))}
    console.print(table_of(measured))
    for finding in result["findings"] or ["nothing stands out"]:
        console.print(finding, soft_wrap=True, highlight=False)
    return result


def parts_of(folder: Path) -> dict[str, Path]:
    """Return the prepared folders of a data set by name. A split folder's own records are those of its parts."""
    inner = {path.name: path for path in sorted(folder.glob("*")) if (path / MANIFEST_NAME).is_file()}
    if inner:
        return dict(sorted(inner.items(), key=lambda item: item[0] != "train"))
    if not (folder / MANIFEST_NAME).is_file():
        raise UserError(f"{folder}: no data here that `pft prepare` wrote: give its --output folder")
    return {folder.resolve().name: folder}


def table_of(measured: dict[str, Any]) -> Table:
    table = Table(title="One without a policy (chance 0.5)", caption="both poles averaged; -: too few records or poles")
    for heading in ("part", "axis", "records", "first option", *(YARDSTICKS[name].label for name in YARDSTICKS)):
        table.add_column(heading, justify="left" if heading in ("part", "axis") else "right")
    for name, part in measured["parts"].items():
        for axis, balance in part["axes"].items():
            of_axis = [part["yardsticks"].get(yardstick, {}).get(axis) for yardstick in YARDSTICKS]
            shown = [f"{scores['one']:.2f}" if scores else "-" for scores in of_axis]
            first = f"{balance['first_option_shows_first_pole']:.2f}"
            table.add_row(name, axis, str(balance["records"]), first, *shown)
    return table


def findings(measured: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each figure that a reader of results on this data must know."""
    for leak in measured["leaks"]:
        one, other = leak["parts"]
        yield (
            f"{one} and {other} share {leak['scenarios']} scenarios and {leak['options']} sets of options: a test on "
            "them measures memory"
        )
    for name, part in measured["parts"].items():
        if part["repeated_scenarios"]:
            yield f"{name}: {part['repeated_scenarios']} of {part['records']} records repeat a scenario of another"
        for axis, balance in part["axes"].items():
            yield from of_balance(f"{name}, {axis}", balance)
        for yardstick, by_axis in part["yardsticks"].items():
            for axis, scores in by_axis.items():
                if scores and scores["one"] >= SUSPICIOUS:
                    entry = YARDSTICKS[yardstick]
                    yield f"{name}, {axis}: right in {scores['one']:.0%} by the {entry.label} alone ({entry.says})"


def of_balance(place: str, balance: dict[str, Any]) -> Iterator[str]:
    share = balance["first_option_shows_first_pole"]
    if abs(share - 0.5) > UNBALANCED and balance["records"] >= 30:
        yield f"{place}: the first option shows the first pole in {share:.0%} of the records"
    first, second = balance["words_per_option"]
    if max(first, second) > LENGTHS * min(first, second):
        yield f"{place}: {first:.1f} words per option of the first pole, {second:.1f} of the second: length tells them"
