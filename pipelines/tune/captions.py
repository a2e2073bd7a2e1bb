"""A search's findings in plain words; every sentence is computed from the rows."""

from collections.abc import Sequence

from scipy.stats import spearmanr

from pipelines.tune.conclusions import candidates
from pipelines.tune.search_points import ratio_name, share_of
from pipelines.tune.search_schema import FigureName, Findings, MeasuredTrial, Mode, SoupGap, TrialRow, Verification

ENDS = ((0.0, "first"), (1.0, "second"))  # share of the first side, and the pole that has no weight there


def sentences(rows: Sequence[TrialRow], found: Findings) -> list[str]:
    """Say what was picked and what speaks for it, where the front lies, and how far soups can be believed."""
    if found["pick"] is None:
        return ["No trial has finished, so no ratio is picked."]
    best = candidates(rows)[found["pick"]["trial"]]
    said = [
        f"Picked {named(best)} ({found['pick']['why']}): its worse pole is right in {share(best, 'worse_pole')}, both "
        f"poles of the same scenario in {share(best, 'both_right')}."
    ]
    said += against_base(rows, best)
    said += [at_end(rows, best, end, pole) for end, pole in ENDS if trained_at(rows, end)]
    said += middle(rows)
    said.append(f"The front of both poles' accuracy dominates {found['hypervolume']:.3f} of the unit square.")
    if found["knee"] is not None:
        said[-1] += f" Its knee is at {ratio(rows[found['knee']])}."
    return said + [verified(rows, line) for line in found["verification"]] + stopped(rows)


def ratio(row: TrialRow) -> str:
    return ratio_name(row["t"])


def named(row: TrialRow) -> str:
    """The ratio, and what else was changed."""
    return " with ".join([ratio(row), *(f"{key}={value}" for key, value in row["changes"].items())])


def share(row: MeasuredTrial, name: FigureName) -> str:
    low, high = row["intervals"][name]
    return f"{row[name]:.1%} ({low:.1%} to {high:.1%})"


def trained_at(rows: Sequence[TrialRow], place: float) -> MeasuredTrial | None:
    """The best finished trial at this share of the first side."""
    held = [row for row in candidates(rows).values() if share_of(row["alpha"], row["beta"]) == place]
    return max(held, key=lambda row: row["worse_pole"], default=None)


def against_base(rows: Sequence[TrialRow], best: MeasuredTrial) -> list[str]:
    """Whether the pick does better than the untrained base, where that was asked, on its worse pole and on both."""
    base = next((row for row in rows if row["source"] == "base" and row["status"] == "finished"), None)
    if base is None:
        return []
    names: tuple[FigureName, ...] = ("worse_pole", "both_right")
    above = [n for n in names if best["intervals"][n][0] > base["intervals"][n][1]]
    verdict = " and ".join(name.replace("_", " ") for name in above)
    asked = f"The base has {share(base, 'worse_pole')} and {share(base, 'both_right')}"
    return [f"{asked}: the pick is " + (f"above it on {verdict}." if above else "not shown to be above it.")]


def at_end(rows: Sequence[TrialRow], best: MeasuredTrial, end: float, pole: str) -> str:
    """Whether a pole without weight is answered worse than at the pick, beyond both intervals."""
    row = trained_at(rows, end)
    name: FigureName = "pole_first" if pole == "first" else "pole_second"
    assert row is not None, "only asked where it was trained"
    if row is best:
        return f"The pick gives no weight to the {pole} side, whose pole is right in {share(row, name)}."
    fails = row["intervals"][name][1] < best["intervals"][name][0]
    verdict = "it fails there" if fails else "it does not fail there beyond the intervals"
    return (
        f"Without weight on the {pole} side ({ratio(row)}) the {pole} pole is right in {share(row, name)}, against "
        f"{share(best, name)} at the pick: {verdict}."
    )


def middle(rows: Sequence[TrialRow]) -> list[str]:
    """Whether equal weights are best on the worse pole."""
    row = trained_at(rows, 0.5)
    if row is None:
        return []
    best = max(candidates(rows).values(), key=lambda r: r["worse_pole"])
    if best["worse_pole"] <= row["worse_pole"]:
        return ["The balanced middle is best on the worse pole."]
    within = "within" if best["worse_pole"] <= row["intervals"]["worse_pole"][1] else "beyond"
    return [
        f"The balanced middle is not best on the worse pole: {ratio(best)} has {best['worse_pole']:.1%}, the middle "
        f"{share(row, 'worse_pole')}; the difference is {within} the middle's interval."
    ]


def verified(rows: Sequence[TrialRow], line: Verification) -> str:
    """How far a soup is from a real training of its ratio."""
    parts = [
        f"{name.replace('_', ' ')} {m['soup']:.1%} against {m['trained']:.1%} ({m['low']:+.1%} to {m['high']:+.1%})"
        for name, m in line["metric"].items()
    ]
    return f"The soup at {ratio(rows[line['soup']])}, held against a real training: {'; '.join(parts)}."


def is_apart(metric: SoupGap) -> bool:
    return not metric["low"] <= 0 <= metric["high"]


def stopped(rows: Sequence[TrialRow]) -> list[str]:
    """How many trials were stopped early, and whether early losses tell how trials end."""
    early = sum(row["status"] == "stopped" for row in rows)
    if not any(row["rung_losses"] for row in rows):
        return []
    said = f"{early} of {len(rows)} trials were stopped early, by the validation loss of their worse side."
    held = [row for row in candidates(rows).values() if row["rung_losses"]]
    if len({row["worse_pole"] for row in held}) > 2:
        rank = -spearmanr([row["rung_losses"][0] for row in held], [row["worse_pole"] for row in held]).statistic
        said += (
            f" Among those that finished, the first rung's rank correlation with the final worse pole is {rank:.2f}."
        )
    return [said]


def warnings(rows: Sequence[TrialRow], verification: Sequence[Verification]) -> list[str]:
    """What a reader has to know before believing a number."""
    said = [f"{named(row)} failed: {row['error']}" for row in rows if row["status"] == "failed"]
    apart = [ratio(rows[line["soup"]]) for line in verification if any(is_apart(m) for m in line["metric"].values())]
    if apart:
        said.append(
            f"A soup is not what a training gives here: at {' and '.join(apart)} they differ beyond the interval. Take "
            "soups for policies of their own, and train a ratio before relying on it."
        )
    rejected = max((row["items_rejected"] or 0 for row in rows), default=0)
    if rejected:
        said.append(f"{rejected} validation items are longer than encoding.max_length, and are in no number.")
    return said


def notes(*, mode: Mode, is_embedded: bool) -> list[str]:
    """What the figures rest on."""
    said = [
        "Cells of one ratio share one training: under AdamW with clipping the ratio of alpha and beta decides, not "
        "their size.",
        "The figures are those of the validation data that the ratio is picked by: evaluate the picked policy on test "
        "data before believing them.",
        "One training with one seed stands behind each ratio; intervals speak of the items, not of other seeds.",
    ]
    if mode == "soup":
        said.append("Soups are linear in alpha / (alpha + beta) between the trained ratios on either side.")
    if is_embedded:
        said.append("Tiny model on generated data: the search works, which says nothing of how a real policy does.")
    return said
