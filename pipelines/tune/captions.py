"""The findings of a search in sentences, all computed from the rows."""

from collections.abc import Sequence

from scipy.stats import spearmanr

from pipelines.tune.conclusions import candidates
from pipelines.tune.search_points import ratio_name, share_of
from pipelines.tune.search_schema import FigureName, Findings, MeasuredTrial, Mode, SoupGap, TrialRow, Verification

ENDS = ((0.0, "first"), (1.0, "second"))  # (share of the first side, pole without weight at that share)


def sentences(rows: Sequence[TrialRow], findings: Findings) -> list[str]:
    """Say what was picked and why, where the front lies, and how far soups can be trusted."""
    if findings["pick"] is None:
        return ["No trial has finished, so no ratio was picked."]
    best = candidates(rows)[findings["pick"]["trial"]]
    lines = [
        f"Picked {point_name(best)} ({findings['pick']['why']}): its worse pole is right in "
        f"{share(best, 'worse_pole')}, and both poles of the same scenario are right in {share(best, 'both_right')}."
    ]
    lines += against_base(rows, best)
    lines += [at_end(rows, best, end, pole) for end, pole in ENDS if trained_at(rows, end)]
    lines += equal_weights(rows)
    lines.append(f"The front of both poles' accuracy dominates {findings['hypervolume']:.3f} of the unit square.")
    if findings["knee"] is not None:
        lines[-1] += f" Its knee is at {ratio(rows[findings['knee']])}."
    return lines + [soup_gap(rows, line) for line in findings["verification"]] + early_stops(rows)


def ratio(row: TrialRow) -> str:
    return ratio_name(row["t"])


def point_name(row: TrialRow) -> str:
    """Return the ratio and the other changes of a trial."""
    return " with ".join([ratio(row), *(f"{key}={value}" for key, value in row["changes"].items())])


def share(row: MeasuredTrial, name: FigureName) -> str:
    low, high = row["intervals"][name]
    return f"{row[name]:.1%} ({low:.1%} to {high:.1%})"


def trained_at(rows: Sequence[TrialRow], place: float) -> MeasuredTrial | None:
    """Return the best finished trial at this share of the first side."""
    trials = [row for row in candidates(rows).values() if share_of(row["alpha"], row["beta"]) == place]
    return max(trials, key=lambda row: row["worse_pole"], default=None)


def against_base(rows: Sequence[TrialRow], best: MeasuredTrial) -> list[str]:
    """Say whether the pick beats the untrained base, if it was evaluated, on the worse pole and on both right."""
    base = next((row for row in rows if row["source"] == "base" and row["status"] == "finished"), None)
    if base is None:
        return []
    names: tuple[FigureName, ...] = ("worse_pole", "both_right")
    above = [n for n in names if best["intervals"][n][0] > base["intervals"][n][1]]
    verdict = " and ".join(name.replace("_", " ") for name in above)
    base_shares = f"{share(base, 'worse_pole')} on its worse pole and {share(base, 'both_right')} on both right"
    pick_is = f"clearly above it on {verdict}" if above else "not clearly above it on either"
    return [f"The base has {base_shares}: the pick is {pick_is}."]


def at_end(rows: Sequence[TrialRow], best: MeasuredTrial, end: float, pole: str) -> str:
    """Say whether a pole without weight scores worse than at the pick, with intervals that do not overlap."""
    row = trained_at(rows, end)
    name: FigureName = "pole_first" if pole == "first" else "pole_second"
    assert row is not None, "called only if this end was trained"
    if row is best:
        return f"The pick gives no weight to the {pole} side, whose pole is right in {share(row, name)}."
    fails = row["intervals"][name][1] < best["intervals"][name][0]
    verdict = "it fails there" if fails else "it does not clearly fail there"
    return (
        f"Without weight on the {pole} side ({ratio(row)}), the {pole} pole is right in {share(row, name)}, "
        f"compared with {share(best, name)} at the pick: {verdict}."
    )


def equal_weights(rows: Sequence[TrialRow]) -> list[str]:
    """Say whether equal weights are best on the worse pole."""
    row = trained_at(rows, 0.5)
    if row is None:
        return []
    best = max(candidates(rows).values(), key=lambda r: r["worse_pole"])
    if best["worse_pole"] <= row["worse_pole"]:
        return ["Equal weights are best on the worse pole."]
    within = "within" if best["worse_pole"] <= row["intervals"]["worse_pole"][1] else "beyond"
    return [
        f"Equal weights are not best on the worse pole: {ratio(best)} has {best['worse_pole']:.1%}, equal weights "
        f"{share(row, 'worse_pole')}; the difference is {within} the interval of equal weights."
    ]


def soup_gap(rows: Sequence[TrialRow], line: Verification) -> str:
    """Say how far a soup is from a training at its ratio."""
    parts = [
        f"{name.replace('_', ' ')} {m['soup']:.1%} and {m['trained']:.1%} (gap {m['low']:+.1%} to {m['high']:+.1%})"
        for name, m in line["metric"].items()
    ]
    return f"The soup at {ratio(rows[line['soup']])} and a training at that ratio: {'; '.join(parts)}."


def is_apart(metric: SoupGap) -> bool:
    return not metric["low"] <= 0 <= metric["high"]


def early_stops(rows: Sequence[TrialRow]) -> list[str]:
    """Say how many trials were stopped early, and whether early losses predict how trials end."""
    num_stopped = sum(row["status"] == "stopped" for row in rows)
    if not any(row["rung_losses"] for row in rows):
        return []
    sentence = f"{num_stopped} of {len(rows)} trials were stopped early for the validation loss of their worse side."
    finished = [row for row in candidates(rows).values() if row["rung_losses"]]
    if len({row["worse_pole"] for row in finished}) > 2:
        first_losses, worse_poles = [r["rung_losses"][0] for r in finished], [r["worse_pole"] for r in finished]
        rank = -spearmanr(first_losses, worse_poles).statistic
        sentence += f" Among finished trials, the rank correlation of the first rung with the worse pole is {rank:.2f}."
    return [sentence]


def warnings(rows: Sequence[TrialRow], verification: Sequence[Verification]) -> list[str]:
    """List what a reader must know before trusting a number."""
    messages = [f"{point_name(row)} failed: {row['error']}" for row in rows if row["status"] == "failed"]
    apart = [ratio(rows[line["soup"]]) for line in verification if any(is_apart(m) for m in line["metric"].values())]
    if apart:
        messages.append(
            f"Soups differ from training here: at {' and '.join(apart)} the gap's interval excludes 0. Treat soups as "
            "policies of their own, and train a ratio before you rely on it."
        )
    rejected = max((row["items_rejected"] or 0 for row in rows), default=0)
    if rejected:
        messages.append(
            f"{rejected} validation items are longer than encoding.max_length and are not counted in any number."
        )
    return messages


def notes(*, mode: Mode, is_embedded: bool) -> list[str]:
    """List what the figures rest on."""
    lines = [
        "Cells with the same ratio share one training: under AdamW with clipping, only the ratio of alpha to beta "
        "matters, not their size.",
        "All figures come from the validation data that the ratio is picked on: evaluate the picked policy on test "
        "data before you trust them.",
        "Each ratio was trained once, with one seed; the intervals cover the choice of items, not of seeds.",
    ]
    if mode == "soup":
        lines.append("Soups are linear in alpha / (alpha + beta) between the nearest trained ratios on either side.")
    if is_embedded:
        lines.append("Tiny model on generated data: this shows that the search works, and nothing about a real policy.")
    return lines
