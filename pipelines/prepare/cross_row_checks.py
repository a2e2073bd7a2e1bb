"""Decisions of `prepare` over all rows: settle the wording of each axis, and reject repeated items.

`rows` is a table with one line per raw row, in input order; a row with a `reason` is rejected. It holds no texts and
takes about 250 bytes per row, so that the driver can hold millions of rows.
"""

import json
from dataclasses import replace
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pft_core.data import Axis, PreferenceSpace, shipped_axes
from pft_core.errors import UserError
from pipelines.prepare.prepare_tasks import REJECT_SCHEMA


def read_outcomes(files: list[str]) -> tuple[pd.DataFrame, list[int]]:
    """Read the staged files; return the table of rows, and the number of rows in each file."""
    columns = [*REJECT_SCHEMA.names, "id", "item_key", "axis_wording", "presentation"]
    tables = [pq.read_table(file, columns=columns, read_dictionary=["axis_wording"]) for file in files]
    rows = pa.concat_tables(tables).unify_dictionaries().to_pandas()
    return rows, [table.num_rows for table in tables]


def settle_axes(rows: pd.DataFrame) -> tuple[Axis, ...]:
    """Return the axes in the rows: shipped ones first, in their order, then the others by name.

    Rows whose poles or pole descriptions differ from those of most rows are rejected in place.
    """
    counts = sorted(rows["axis_wording"].value_counts().items(), key=lambda item: (-item[1], item[0]))
    wordings = {wording: axis_from(str(wording)) for wording, count in counts if count}
    axes: dict[str, Axis] = {}
    for axis in wordings.values():
        settled = axes.setdefault(axis.name, axis)
        if names_of(axis) == names_of(settled):
            axes[axis.name] = with_descriptions_of(settled, axis)
    for wording, axis in wordings.items():
        settled = axes[axis.name]
        here = rows["axis_wording"] == wording
        if names_of(axis) != names_of(settled):
            here_poles, usual_poles = ("/".join(names_of(a)) for a in (axis, settled))
            detail = f"the poles of {axis.name!r} are {here_poles} here but {usual_poles} in other rows"
            reject(rows, here, "axis", "conflicting_poles", detail)
        elif with_descriptions_of(axis, settled) != settled:
            detail = f"the poles of {axis.name!r} are described differently in other rows"
            reject(rows, here, "descriptions", "conflicting_descriptions", detail)
    order = {name: i for i, name in enumerate(shipped_axes())}
    return tuple(sorted(axes.values(), key=lambda axis: (order.get(axis.name, len(order)), axis.name)))


def names_of(axis: Axis) -> list[str]:
    return [pole.name for pole in axis.poles]


def with_descriptions_of(axis: Axis, other: Axis) -> Axis:
    """Return the axis with missing pole descriptions taken from the other axis."""
    first, second = (
        replace(pole, description=pole.description or more.description)
        for pole, more in zip(axis.poles, other.poles, strict=True)
    )
    return Axis(axis.name, first, second)


def axis_from(wording: str) -> Axis:
    return PreferenceSpace.from_dict({"name": "", "axes": [json.loads(wording)]}).axes[0]


def reject_repeated(rows: pd.DataFrame) -> None:
    """Keep the first of the rows with the same item; reject the others in place.

    Rows that assign the answers of an item to opposite poles count as the same: at most one can be correct.
    """
    _reject_later(rows, "id", "duplicate_id", "same content as ")
    _reject_later(rows, "item_key", "swapped_poles", "same item with swapped poles as ")


def _reject_later(rows: pd.DataFrame, key: str, reason: str, detail: str) -> None:
    accepted = rows["reason"].isna()
    repeated = accepted & rows[key].where(accepted).duplicated()
    if repeated.any():
        first = rows[accepted & ~repeated].set_index(key)["row"]
        reject(rows, repeated, "", reason, detail + rows.loc[repeated, key].map(first))


def refuse_all_of_free_answers(rows: pd.DataFrame) -> None:
    """Raise UserError if a row has free answers: it lists no options for the choose-all question."""
    free = rows.loc[rows["presentation"] == "response", "row"]
    if len(free):
        raise UserError(
            f"forms: {free.iloc[0]} has free answers and no options, so it cannot ask for all of them: use forms=one"
        )


def reject(rows: pd.DataFrame, chosen: Any, key_path: str, reason: str, detail: Any) -> None:
    rows.loc[chosen, "key_path"] = key_path
    rows.loc[chosen, "reason"] = reason
    rows.loc[chosen, "detail"] = detail
