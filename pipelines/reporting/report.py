"""One self-contained page per run, and the same content as JSON. Every sentence on it is computed from the rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pft_core.evaluation import METRICS, TASKS, Metric, Task, metrics_where
from pft_core.files import write_json, write_text
from pft_core.registry import Registry
from pipelines.reporting import charts
from pipelines.reporting.charts import Row
from pipelines.reporting.pages import render_template
from pipelines.tracking import flatten, mask_credentials

NUM_COLOURS = 5
CURVE_NAMES = {"loss_first": "first pole", "loss_second": "second pole", "loss": "loss", "val_loss": "validation"}
SMALL_CURVES = {"grad_norm": "gradient norm", "lr": "learning rate", "pairs_per_s": "pairs per second"}


def write_report(report: Mapping[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write report.json and report.html into a folder; return their paths.

    report: `rows`, `timings` (seconds), `config`, `digests`, and where there are some: `title`, `training` (per policy
    the rows of its metrics), `items` (in, out, rejected, rejected_by_reason), `notes`.
    """
    report = {**report, "config": without_credentials(report["config"])}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", render(report))
    return folder / "report.json", folder / "report.html"


def render(report: Mapping[str, Any]) -> str:
    """Return the page: no scripts, nothing from elsewhere, every text escaped."""
    filters = {"number": number, "seconds": seconds, "short": charts.short}
    return render_template("report.html.j2", page_of(report), filters=filters)


def page_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template shows."""
    rows, timings = report["rows"], dict(report["timings"])
    total_s = timings.pop("total", None) or sum(timings.values())
    headline = headline_metric(rows)
    policies = policy_cards(rows, headline)
    cards = [card for card in policies if card.rows]
    return {
        "title": report.get("title") or "Evaluation of " + ", ".join(card.policy for card in policies),
        "sentences": [*summary(cards, headline), *of_tasks(rows)],
        "warnings": warnings(rows, report.get("items")),
        "notes": report.get("notes", []),
        "cards": cards,
        "span": span,
        "colour": {card.policy: card.colour for card in policies},
        "headline": METRICS[headline].label,
        "bars": [(named(m), panels) for m in leading_metrics() if (panels := charts.bar_panels(rows, m))],
        "training": [training_view(policy, steps) for policy, steps in report.get("training", {}).items() if steps],
        "rows": rows,
        "metrics": {name: named(name) for name in dict.fromkeys(row["metric"] for row in rows)},
        "timings": timings,
        "total_s": total_s,
        "config": flatten(report["config"]),
        "digests": flatten(report["digests"]),
    }


@dataclass(frozen=True)
class PolicyCard:
    """A policy in brief: its rows of the headline metric, and the colour (an index) that it has everywhere."""

    policy: str
    colour: int
    rows: list[Row]
    both_right: list[Row]

    @property
    def worst(self) -> Row:
        """The pole that it serves least: the number that a policy for both sides is judged by."""
        return min(self.rows, key=lambda row: row["value"])

    @property
    def trained(self) -> list[Row]:
        return [row for row in self.rows if row["trained_pole"]]

    @property
    def untrained(self) -> list[Row]:
        return [row for row in self.rows if row["trained_pole"] is False]

    @property
    def above_position(self) -> list[Row]:
        """Rows whose whole interval lies above what position alone would reach."""
        return [row for row in self.rows if row["low"] > row["position_baseline"]]


def named(metric: str) -> tuple[str, str]:
    """Return the label and meaning of a metric or task; of one that is not registered here, its name."""
    kinds: list[Registry[Metric] | Registry[Task]] = [METRICS, TASKS]
    said = next((kind[metric] for kind in kinds if metric in kind), None)
    return (said.label, said.meaning) if said else (metric, "")


def leading_metrics() -> list[str]:
    """The shares of right answers of each pole; the first that a report has is its headline."""
    return metrics_where(is_right=True, has_poles=True)


def headline_metric(rows: Sequence[Row]) -> str:
    present = {row["metric"] for row in rows}
    leading = leading_metrics()
    return next((metric for metric in leading if metric in present), leading[0])


def policy_cards(rows: Sequence[Row], headline: str) -> list[PolicyCard]:
    """One card per policy, in the order of the rows."""
    of_policy: dict[str, list[Row]] = {}
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


def policy_colours(of_policy: Mapping[str, Sequence[Row]]) -> dict[str, int]:
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


def of_tasks(rows: Sequence[Row]) -> list[str]:
    """Say what each policy does on tasks that are not prepared records."""
    return [_of_task(row) for row in rows if row["metric"] in TASKS]


def _of_task(row: Row) -> str:
    place = " / ".join(name for name in (row["axis"], row["pole"]) if name)
    where = f"{TASKS[row['metric']].label}{f' on {place}' if place else ''}"
    found = f"{row['policy']} reaches {number(row['value'])} ({number(row['low'])} to {number(row['high'])}) on {where}"
    by_position = row["position_baseline"]
    beside = "" if by_position is None else f"; position alone reaches {number(by_position)}"
    return f"{found}, {row['n']} items{beside}."


def warnings(rows: Sequence[Row], items: Mapping[str, Any] | None) -> list[str]:
    """What a reader must know before believing a number."""
    found = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        below = [r for r in own if r["metric"] in leading_metrics() and r["value"] < r["position_baseline"]]
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


@dataclass(frozen=True)
class TrainingView:
    """The loss curves of a policy, and small ones of what else is worth a glance: (caption, panel)."""

    policy: str
    loss: charts.CurvePanel | None
    names: Mapping[str, str]
    small: list[tuple[str, charts.CurvePanel]]


def training_view(policy: str, steps: Sequence[Row]) -> TrainingView:
    panels = [
        (caption, charts.curve_panel(steps, [name], width=150.0, height=56.0, right=4.0))
        for name, caption in SMALL_CURVES.items()
    ]
    loss = charts.curve_panel(steps, list(CURVE_NAMES))
    return TrainingView(policy, loss, CURVE_NAMES, [(caption, panel) for caption, panel in panels if panel])


def span(rows: Iterable[Row], *, percent: bool = False) -> str:
    """Return the range of some rows' values, as one number where its ends look the same."""
    values = [row["value"] for row in rows]
    low, high = (f"{v:.0%}" if percent else number(v) for v in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def count(rows: Sequence[Row]) -> str:
    return f"{len(rows)} pole{'s' * (len(rows) != 1)}"


def number(value: float | None, digits: int = 2) -> str:
    """Write a value for reading; empty where there is none."""
    return "" if value is None else f"{value:.{digits}f}"


def seconds(value: float) -> str:
    """Write a duration: 0.3 s, 42 s, 3 min 05 s."""
    if value < 60:
        return f"{value:.1f} s" if value < 9.95 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest:02d} s"


def without_credentials(content: Any) -> Any:
    """Copy JSON-like content with the credentials of its URIs masked."""
    if isinstance(content, Mapping):
        return {key: without_credentials(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_credentials(value) for value in content]
    return mask_credentials(content) if isinstance(content, str) else content
