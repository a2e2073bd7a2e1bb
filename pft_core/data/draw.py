"""Draw a few records of each axis of a data set."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable

from pft_core.data.records import PairedExample


def drawn(records: Iterable[PairedExample], per_axis: int, *, seed: int) -> list[PairedExample]:
    """Return `per_axis` records of each axis, drawn with the seed, in the order of `records`.

    The order of the records does not change the draw, and a larger draw contains a smaller one. Twins, which are two
    records of an axis with the same options, are drawn together, unless only one more record is wanted.
    """
    records = list(records)
    alike: dict[tuple[str, ...], list[PairedExample]] = defaultdict(list)
    for record in records:
        alike[record.axis, *(option.text for option in record.options)].append(record)
    ranked: dict[str, list[tuple[str, str, str]]] = defaultdict(list)
    for members in alike.values():
        first = min(_rank(record, seed) for record in members)
        for record in members:
            own = _rank(record, seed)
            ranked[record.axis].append((first if len(members) == 2 else own, own, record.id))
    chosen = {(axis, record_id) for axis, ranks in ranked.items() for *_, record_id in sorted(ranks)[:per_axis]}
    return [record for record in records if (record.axis, record.id) in chosen]


def _rank(record: PairedExample, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{record.id}".encode()).hexdigest()
