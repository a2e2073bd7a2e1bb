"""Summary cards and sentences about each policy of a report, all computed from its rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pft_core.evaluation import METRICS, MIN_CLUSTERS, TASKS, EvaluationRow, metrics_where
from pipelines.reporting.number_formats import number
from pipelines.reporting.report_schema import ItemCounts

NUM_COLORS = 5  # for policies: a gray and four others


@dataclass(frozen=True)
class SummaryCard:
    """A policy in brief, on one part of the report's data, None for all of it.

    rows: of the headline metric. color: its color index on the page.
    """

    policy: str
    part: str | None
    color: int
    rows: list[EvaluationRow]
    both_right: list[EvaluationRow]

    @property
    def title(self) -> str:
        return f"{self.policy}, {self.part}" if self.part else self.policy

    @property
    def worst(self) -> EvaluationRow:
        """The row of its weakest pole, by which a policy for both sides is judged."""
        return min(self.rows, key=lambda row: row["value"])

    @property
    def trained(self) -> list[EvaluationRow]:
        return [row for row in self.rows if row["trained_pole"]]

    @property
    def untrained(self) -> list[EvaluationRow]:
        return [row for row in self.rows if row["trained_pole"] is False]

    @property
    def of_few(self) -> list[EvaluationRow]:
        """Rows with too few scenarios for their interval to show how uncertain the value is."""
        return [row for row in self.rows if has_few_scenarios(row)]

    @property
    def above_position(self) -> list[EvaluationRow]:
        """Rows of enough scenarios whose whole interval lies above the position baseline."""
        judged = [row for row in self.rows if not has_few_scenarios(row)]
        return [row for row in judged if (base := row["position_baseline"]) is not None and row["low"] > base]


def leading_metrics() -> list[str]:
    """List the metrics that count right answers per pole; the first one in a report is its headline."""
    return metrics_where(is_right=True, has_poles=True)


def headline_metric(rows: Sequence[EvaluationRow]) -> str:
    present = {row["metric"] for row in rows}
    leading = leading_metrics()
    return next((metric for metric in leading if metric in present), leading[0])


def policy_cards(rows: Sequence[EvaluationRow], headline: str) -> list[SummaryCard]:
    """Make one card for each policy and part, in the order of the rows."""
    colors = policy_colors(rows)
    by_card: dict[tuple[str, str | None], list[EvaluationRow]] = {}
    for row in rows:
        by_card.setdefault((row["policy"], row.get("part")), []).append(row)
    return [
        SummaryCard(
            policy,
            part,
            colors[policy],
            [row for row in card_rows if row["metric"] == headline and row["pole"] is not None],
            [row for row in card_rows if row["metric"] == "both_right"],
        )
        for (policy, part), card_rows in by_card.items()
    ]


def policy_colors(rows: Sequence[EvaluationRow]) -> dict[str, int]:
    """Return each policy's color index: 0 (gray) if untrained beside trained ones, 1 for the last, the main subject."""
    colors = dict.fromkeys((row["policy"] for row in rows), 0)
    trained = dict.fromkeys(row["policy"] for row in rows if row["trained_pole"] is not None)
    colored = list(trained or colors)
    return colors | {policy: 1 + i % (NUM_COLORS - 1) for i, policy in enumerate(reversed(colored))}


def summary(cards: Sequence[SummaryCard], headline: str) -> list[str]:
    """Say how each policy scores on the poles it was trained on, and on the others."""
    return [" ".join(_sentences(card, METRICS[headline].label)) for card in cards]


def _sentences(card: SummaryCard, name: str) -> list[str]:
    if card.trained:
        scores = f"{span(card.trained)} on the {count(card.trained)} it was trained on"
        scores += f" and {span(card.untrained)} on the other {count(card.untrained)}" if card.untrained else ""
    else:
        scores = f"{span(card.rows)} on {count(card.rows)}"
    sentences = [f"{card.title}: {name} is {scores}."]
    if card.both_right:
        cases = cases_of(card.both_right) if card.of_few else "cases"
        sentences.append(
            f"Both poles of the same scenario are right in {span(card.both_right, percent=True)} of {cases}."
        )
    if num_judged := len(card.rows) - len(card.of_few):
        above = f"{len(card.above_position)} of {num_judged} pole{'s' * (num_judged != 1)}"
        sentences.append(f"The whole interval is above the position baseline on {above}.")
    if card.of_few:
        few = f"On {count(card.of_few)}, fewer than {MIN_CLUSTERS} scenarios are too few to say whether"
        sentences.append(f"{few} {card.policy} is above the position baseline.")
    return sentences


def has_few_scenarios(row: EvaluationRow) -> bool:
    return bool(row.get("num_scenarios", row["n"]) < MIN_CLUSTERS)


def cases_of(rows: Sequence[EvaluationRow]) -> str:
    """Return the number of items behind each of the rows, such as "4 cases" or "4 to 12 cases"."""
    fewest, most = (choose(row["n"] for row in rows) for choose in (min, max))
    return f"{fewest} cases" if fewest == most else f"{fewest} to {most} cases"


def task_sentences(rows: Sequence[EvaluationRow]) -> list[str]:
    """Say how each policy scores on tasks other than prepared records."""
    return [_task_sentence(row) for row in rows if row["metric"] in TASKS]


def _task_sentence(row: EvaluationRow) -> str:
    place = " / ".join(name for name in (row["axis"], row["pole"]) if name)
    name = f"{TASKS[row['metric']].label}{f' on {place}' if place else ''}"
    score = f"{row['policy']}: {name} is {number(row['value'])} ({number(row['low'])} to {number(row['high'])})"
    baseline = row["position_baseline"]
    position = "" if baseline is None else f"; the position baseline is {number(baseline)}"
    return f"{score} on {row['n']} items{position}."


def warnings(rows: Sequence[EvaluationRow], items: ItemCounts | None) -> list[str]:
    """List what a reader must know before trusting a number."""
    messages = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        policy_rows = [row for row in rows if row["policy"] == policy]
        below = [row for row in policy_rows if row["metric"] in leading_metrics() and _is_below_position(row)]
        if below:
            places = ", ".join(
                f"{r['axis']} / {r['pole']} {METRICS[r['metric']].label} {number(r['value'])} "
                f"(position {number(r['position_baseline'])})"
                for r in below
            )
            messages.append(f"{policy} is below the position baseline: {places}.")
        unparsed = max(row["unparsed"] for row in policy_rows)
        if unparsed > 0:
            messages.append(
                f"{policy} gave answers that could not be parsed: up to {unparsed:.1%} of the answers in a row."
            )
    if items and items["rejected"]:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in items["rejected_by_reason"].items())
        messages.append(
            f"{items['rejected']} of {items['in']} items were rejected and are not counted in any number ({reasons})."
        )
    return messages


def _is_below_position(row: EvaluationRow) -> bool:
    return row["position_baseline"] is not None and row["value"] < row["position_baseline"]


def span(rows: Iterable[EvaluationRow], *, percent: bool = False) -> str:
    """Return the range of some rows' values, as one number if its ends look the same."""
    values = [row["value"] for row in rows]
    low, high = (f"{v:.0%}" if percent else number(v) for v in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def count(rows: Sequence[EvaluationRow]) -> str:
    return f"{len(rows)} pole{'s' * (len(rows) != 1)}"
