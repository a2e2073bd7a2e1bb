"""Each policy of a report in brief, and what is said of it; every sentence is computed from the rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pft_core.evaluation import METRICS, TASKS, EvaluationRow, metrics_where
from pipelines.reporting.number_formats import number
from pipelines.reporting.report_schema import ItemCounts

NUM_COLOURS = 5  # of policies, a grey and four others


@dataclass(frozen=True)
class PolicyCard:
    """A policy in brief: its rows of the headline metric, and the colour (an index) that it has everywhere."""

    policy: str
    colour: int
    rows: list[EvaluationRow]
    both_right: list[EvaluationRow]

    @property
    def worst(self) -> EvaluationRow:
        """The pole that it serves least: the number that a policy for both sides is judged by."""
        return min(self.rows, key=lambda row: row["value"])

    @property
    def trained(self) -> list[EvaluationRow]:
        return [row for row in self.rows if row["trained_pole"]]

    @property
    def untrained(self) -> list[EvaluationRow]:
        return [row for row in self.rows if row["trained_pole"] is False]

    @property
    def above_position(self) -> list[EvaluationRow]:
        """Rows whose whole interval lies above what position alone would reach."""
        return [
            row
            for row in self.rows
            if (by_position := row["position_baseline"]) is not None and row["low"] > by_position
        ]


def leading_metrics() -> list[str]:
    """The shares of right answers of each pole; the first that a report has is its headline."""
    return metrics_where(is_right=True, has_poles=True)


def headline_metric(rows: Sequence[EvaluationRow]) -> str:
    present = {row["metric"] for row in rows}
    leading = leading_metrics()
    return next((metric for metric in leading if metric in present), leading[0])


def policy_cards(rows: Sequence[EvaluationRow], headline: str) -> list[PolicyCard]:
    """One card per policy, in the order of the rows."""
    of_policy: dict[str, list[EvaluationRow]] = {}
    for row in rows:
        of_policy.setdefault(row["policy"], []).append(row)
    colours = policy_colours(of_policy)
    return [
        PolicyCard(
            policy,
            colours[policy],
            [row for row in own if row["metric"] == headline and row["pole"] is not None],
            [row for row in own if row["metric"] == "both_right"],
        )
        for policy, own in of_policy.items()
    ]


def policy_colours(of_policy: Mapping[str, Sequence[EvaluationRow]]) -> dict[str, int]:
    """Index 0, a grey, is for what was not trained beside others; the last policy, which a report is about, has 1."""
    trained = [p for p, rows in of_policy.items() if any(r["trained_pole"] is not None for r in rows)]
    coloured = trained or list(of_policy)
    colours = dict.fromkeys(of_policy, 0)
    return colours | {policy: 1 + i % (NUM_COLOURS - 1) for i, policy in enumerate(reversed(coloured))}


def summary(cards: Sequence[PolicyCard], headline: str) -> list[str]:
    """Say in plain words what each policy does on the poles that it was trained on, and on the others."""
    return [" ".join(_sentences(card, METRICS[headline].label)) for card in cards]


def _sentences(card: PolicyCard, name: str) -> list[str]:
    if card.trained:
        said = [f"{card.policy} reaches {name} {span(card.trained)} on the {count(card.trained)} it was trained on"]
        said[0] += f", and {span(card.untrained)} on the other {count(card.untrained)}." if card.untrained else "."
    else:
        said = [f"{card.policy} reaches {name} {span(card.rows)} on {count(card.rows)}."]
    if card.both_right:
        said.append(f"The same scenario is right on both sides in {span(card.both_right, percent=True)} of the cases.")
    above = len(card.above_position)
    said.append(f"{above} of {count(card.rows)} lie{'s' * (above == 1)} clearly above what position alone reaches.")
    return said


def of_tasks(rows: Sequence[EvaluationRow]) -> list[str]:
    """Say what each policy does on tasks that are not prepared records."""
    return [_of_task(row) for row in rows if row["metric"] in TASKS]


def _of_task(row: EvaluationRow) -> str:
    place = " / ".join(name for name in (row["axis"], row["pole"]) if name)
    where = f"{TASKS[row['metric']].label}{f' on {place}' if place else ''}"
    found = f"{row['policy']} reaches {number(row['value'])} ({number(row['low'])} to {number(row['high'])}) on {where}"
    by_position = row["position_baseline"]
    beside = "" if by_position is None else f"; position alone reaches {number(by_position)}"
    return f"{found}, {row['n']} items{beside}."


def warnings(rows: Sequence[EvaluationRow], items: ItemCounts | None) -> list[str]:
    """What a reader must know before believing a number."""
    found = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        below = [row for row in own if row["metric"] in leading_metrics() and _is_below_position(row)]
        if below:
            places = ", ".join(
                f"{r['axis']} / {r['pole']} {METRICS[r['metric']].label} {number(r['value'])} "
                f"(position {number(r['position_baseline'])})"
                for r in below
            )
            found.append(f"{policy} is below the position baseline: {places}.")
        unparsed = max(row["unparsed"] for row in own)
        if unparsed > 0:
            found.append(f"{policy} gave answers that could not be read: up to {unparsed:.1%} of a row's answers.")
    if items and items["rejected"]:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in items["rejected_by_reason"].items())
        found.append(f"{items['rejected']} of {items['in']} items were rejected and are in no number ({reasons}).")
    return found


def _is_below_position(row: EvaluationRow) -> bool:
    return row["position_baseline"] is not None and row["value"] < row["position_baseline"]


def span(rows: Iterable[EvaluationRow], *, percent: bool = False) -> str:
    """Return the range of some rows' values, as one number where its ends look the same."""
    values = [row["value"] for row in rows]
    low, high = (f"{v:.0%}" if percent else number(v) for v in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def count(rows: Sequence[EvaluationRow]) -> str:
    return f"{len(rows)} pole{'s' * (len(rows) != 1)}"
