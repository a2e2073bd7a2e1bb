"""One self-contained page per run, and the same content as JSON. Every sentence on it is computed from the rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pft_core.files import write_json, write_text
from pipelines.reporting import charts
from pipelines.reporting.charts import Row
from pipelines.reporting.pages import render_template
from pipelines.tracking import flatten, mask_credentials

POLE_METRICS = ("one", "all")  # the headline is the first of these that the rows have
NUM_COLOURS = 5
METRICS = {
    "one": ("One", "the one option that the policy chooses shows the pole that was asked for"),
    "all": (
        "All",
        "1 where exactly the options of the asked pole are chosen, 0 with a wrong one, else the share found",
    ),
    "both_right": ("Both right", "the same scenario is answered right under the first pole and under the second"),
    "flip": ("Flip", "the chosen pole changes when the opposite one is asked for"),
    "leak": ("Leak", "how far the policy, asked for no pole, has moved from its base (0 is best)"),
    "precision": ("Precision", "share of the chosen options that show the asked pole"),
    "recall": ("Recall", "share of the options of the asked pole that are chosen"),
    "f1": ("F1", "harmonic mean of precision and recall"),
}
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
    cards = policy_cards(rows, headline)
    return {
        "title": report.get("title") or "Evaluation of " + ", ".join(card.policy for card in cards),
        "sentences": summary(cards, headline),
        "warnings": warnings(rows, report.get("items")),
        "notes": report.get("notes", []),
        "cards": cards,
        "span": span,
        "colour": {card.policy: card.colour for card in cards},
        "headline": METRICS[headline][0],
        "bars": [(METRICS[m], panels) for m in POLE_METRICS if (panels := charts.bar_panels(rows, m))],
        "training": [training_view(policy, steps) for policy, steps in report.get("training", {}).items() if steps],
        "rows": rows,
        "metrics": {name: METRICS.get(name, (name, "")) for name in dict.fromkeys(row["metric"] for row in rows)},
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


def headline_metric(rows: Sequence[Row]) -> str:
    present = {row["metric"] for row in rows}
    return next((metric for metric in POLE_METRICS if metric in present), "one")


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
    return [" ".join(_sentences(card, METRICS[headline][0])) for card in cards]


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


def warnings(rows: Sequence[Row], items: Mapping[str, Any] | None) -> list[str]:
    """What a reader must know before believing a number."""
    found = []
    for policy in dict.fromkeys(row["policy"] for row in rows):
        own = [row for row in rows if row["policy"] == policy]
        below = [r for r in own if r["metric"] in POLE_METRICS and r["value"] < r["position_baseline"]]
        if below:
            places = ", ".join(
                f"{r['axis']} / {r['pole']} {METRICS[r['metric']][0]} {number(r['value'])} "
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
