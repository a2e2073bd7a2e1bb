"""What a data set gives away before any training: yardsticks, repeated texts, leaks between parts, balance."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

from pft_core.data import PairedExample, PreferenceSpace
from pft_core.evaluation.metrics import METRICS
from pft_core.evaluation.yardsticks import YARDSTICKS
from pft_core.files import digest

Records = Sequence[PairedExample]
TWINS = 2  # scenarios that may share the options of one item


def check(parts: Mapping[str, Records], space: PreferenceSpace) -> dict[str, Any]:
    """Return for each part its axes and yardsticks, and the texts that two parts share.

    parts: records by the name of the part. Words are learned from the part `train`; without it, each half of a part is
    measured by the other half. Yardsticks are shares of right items, by axis of two poles: `one` (both poles averaged)
    and `both_right`.
    """
    choices = {name: [r for r in records if r.presentation == "choice"] for name, records in parts.items()}
    return {
        "parts": {
            name: {
                "records": len(records),
                "repeated_scenarios": repeated(record.scenario for record in records),
                "repeated_options": repeated(options_of(record) for record in records),
                "axes": {axis: balance(of_axis) for axis, of_axis in by_axis(records).items()},
                "yardsticks": yardsticks(choices, name, space) if choices[name] else {},
            }
            for name, records in parts.items()
        },
        "leaks": leaks(parts),
    }


def by_axis(records: Records) -> dict[str, list[PairedExample]]:
    groups: dict[str, list[PairedExample]] = {}
    for record in records:
        groups.setdefault(record.axis, []).append(record)
    return groups


def plain(text: str) -> str:
    """Return a text without differences of case and white space."""
    return " ".join(text.lower().split())


def options_of(record: PairedExample) -> str:
    return " | ".join(sorted(plain(option.text) for option in record.options))


def common_options(records: Records) -> set[str]:
    """Return the options that more scenarios share than twins do, such as Yes and No: these identify no item."""
    scenarios: dict[str, set[str]] = {}
    for record in records:
        scenarios.setdefault(options_of(record), set()).add(plain(record.scenario))
    return {options for options, sharing in scenarios.items() if len(sharing) > TWINS}


def repeated(texts: Iterable[str]) -> int:
    """Return how many texts repeat an earlier one."""
    return sum(number - 1 for number in Counter(map(plain, texts)).values())


def balance(records: Records) -> dict[str, Any]:
    """Return the records of an axis, the share whose first shown option shows the first pole, and words per option.

    Records whose options are all longer for one pole can be solved by length.
    """
    words = [[len(o.text.split()) for r in records for o in r.options if o.side == side] for side in (0, 1)]
    return {
        "records": len(records),
        "first_option_shows_first_pole": sum(r.options[0].side == 0 for r in records) / len(records),
        "words_per_option": [sum(each) / len(each) for each in words],
        "options": dict(sorted(Counter(str(len(r.options)) for r in records).items())),
    }


def leaks(parts: Mapping[str, Records]) -> list[dict[str, Any]]:
    """Return for each two parts with a text in common the number of shared scenarios and of shared sets of options.

    Sets that identify no item do not count.
    """
    common = set[str]().union(*map(common_options, parts.values()))
    found = []
    for one, other in combinations(parts, 2):
        shared = {
            "scenarios": {plain(r.scenario) for r in parts[one]} & {plain(r.scenario) for r in parts[other]},
            "options": ({options_of(r) for r in parts[one]} & {options_of(r) for r in parts[other]}) - common,
        }
        if any(shared.values()):
            found.append({"parts": [one, other], **{name: len(texts) for name, texts in shared.items()}})
    return found


def yardsticks(parts: Mapping[str, Records], name: str, space: PreferenceSpace) -> dict[str, Any]:
    """Return the scores of each yardstick on a part, by axis; None for one that cannot learn from so few records.

    Axes of one pole are left out: yardsticks choose for two.
    """
    axes = {axis: of_axis for axis, of_axis in by_axis(parts[name]).items() if axis not in space.one_pole_axes}
    return {
        yardstick: {axis: scores(yardstick, parts, records, axis, space) for axis, records in axes.items()}
        for yardstick in YARDSTICKS
    }


def scores(
    yardstick: str, parts: Mapping[str, Records], records: Records, axis: str, space: PreferenceSpace
) -> dict[str, float] | None:
    entry = YARDSTICKS[yardstick]
    train = [record for record in parts.get("train", ()) if record.axis == axis]
    is_train = not train or train == list(records)
    folds = halves(records) if entry.reads_training and is_train else [(train, records)]
    if entry.reads_training and any(not learnable(kept) for kept, _ in folds):
        return None
    outcomes = [o for kept, asked in folds for o in entry.outcomes(kept, asked, "one", space=space)]
    right = [[METRICS["one"].code(outcome, side)[0] for side in (0, 1)] for outcome in outcomes]
    return {
        "one": sum(map(sum, right)) / (2 * len(right)),
        "both_right": sum(first * second for first, second in right) / len(right),
    }


def halves(records: Records) -> list[tuple[Records, Records]]:
    """Return two folds, each (training, asked): records with the same options, such as twins, lie in the same half.

    Where options identify no item, those with the same scenario do.
    """
    common = common_options(records)
    first: list[PairedExample] = []
    second: list[PairedExample] = []
    for record in records:
        options = options_of(record)
        key = plain(record.scenario) if options in common else options
        (first if int(digest([key])[:8], 16) % 2 else second).append(record)
    return [(first, second), (second, first)]


def learnable(records: Records) -> bool:
    return len({record.scenario for record in records}) >= 2
