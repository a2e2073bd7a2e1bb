"""One self-contained page per run, and the same content as JSON. Every sentence on it is computed from the rows."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pft_core.evaluation import METRICS, TASKS, Metric, Task, metrics_where
from pft_core.files import write_json, write_text
from pft_core.registry import Registry
from pipelines.reporting.bars import Bar, BarGroup, bar_chart, rows_by_pole
from pipelines.reporting.curves import Curve, loss_chart, points_of, spark_line, steps_per_point
from pipelines.reporting.drawing import INK, short
from pipelines.reporting.pages import Row, render_template
from pipelines.reporting.svg import inline_svg
from pipelines.tracking import flatten, mask_credentials

COLOURS = INK | {  # of the page and its drawings, where it is not dark; c0 to c4 are of policies
    "c0": "#8b93a1",
    "c1": "#0b6bcb",
    "c2": "#d9730d",
    "c3": "#128a5e",
    "c4": "#a2409c",
    "first": "#6b4de6",
    "second": "#0a8f86",
}
NUM_COLOURS = 5
CURVE_NAMES = {"loss_first": "first pole", "loss_second": "second pole", "loss": "loss", "val_loss": "validation"}
CURVE_COLOURS = {"loss_first": COLOURS["first"], "loss_second": COLOURS["second"], "val_loss": COLOURS["c0"]}
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
    filters = {"number": number, "seconds": seconds}
    return render_template("report.html.j2", page_of(report), filters=filters)


def page_of(report: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the template shows."""
    rows, timings = report["rows"], dict(report["timings"])
    total_s = timings.pop("total", None) or sum(timings.values())
    headline = headline_metric(rows)
    policies = policy_cards(rows, headline)
    cards = [card for card in policies if card.rows]
    colour = {card.policy: card.colour for card in policies}
    return {
        "title": report.get("title") or "Evaluation of " + ", ".join(card.policy for card in policies),
        "sentences": [*summary(cards, headline), *of_tasks(rows)],
        "warnings": warnings(rows, report.get("items")),
        "notes": report.get("notes", []),
        "cards": cards,
        "span": span,
        "colours": COLOURS,
        "colour": colour,
        "headline": METRICS[headline].label,
        "bars": [(named(m), panels) for m in leading_metrics() if (panels := bar_panels(rows, m, colour))],
        "training": [
            training_view(policy, steps, COLOURS[f"c{colour.get(policy, 0)}"])
            for policy, steps in report.get("training", {}).items()
            if steps
        ],
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


def bar_panels(rows: Sequence[Row], metric: str, colour: Mapping[str, int]) -> dict[str, Markup]:
    """Draw the bars of each axis; colour: the index of each policy's."""
    return {
        axis: inline_svg(
            bar_chart([bar_group(pole, found, colour) for pole, found in poles.items()]),
            f"{METRICS[metric].label} of every policy on {axis}",
            COLOURS,
        )
        for axis, poles in rows_by_pole(rows, metric).items()
    }


def bar_group(pole: str, rows: Sequence[Row], colour: Mapping[str, int]) -> BarGroup:
    """Say what the bars of one pole are."""
    bars = [_bar(row, COLOURS[f"c{colour[row['policy']]}"]) for row in rows]
    return BarGroup(pole, f"n = {rows[0]['n']}", bars, rows[0]["position_baseline"])


def _bar(row: Row, colour: str) -> Bar:
    value, low, high = (number(row[key], 3) for key in ("value", "low", "high"))
    place = f"{row['policy']}, {row['axis']} / {row['pole']}"
    return Bar(
        short(row["policy"]),
        row["value"],
        row["low"],
        row["high"],
        number(row["value"]),
        f"{place}: {value}, 95 % interval {low} to {high}, n = {row['n']}",
        colour,
        is_pale=row["trained_pole"] is False,
    )


@dataclass(frozen=True)
class TrainingView:
    """The loss curves of a policy, and small ones of what else is worth a glance: (caption, drawing, last value)."""

    policy: str
    loss: Markup | None
    steps_per_point: int
    small: list[tuple[str, Markup, float]]


def training_view(policy: str, steps: Sequence[Row], colour: str) -> TrainingView:
    curves = [
        Curve(caption, CURVE_COLOURS.get(name, colour), points)
        for name, caption in CURVE_NAMES.items()
        if (points := points_of(steps, name))
    ]
    loss = inline_svg(loss_chart(curves), f"Loss curves of {policy}", COLOURS) if curves else None
    small = [
        (caption, inline_svg(spark_line(points, colour), f"{caption} of {policy}", COLOURS), points[-1][1])
        for name, caption in SMALL_CURVES.items()
        if (points := points_of(steps, name))
    ]
    return TrainingView(policy, loss, steps_per_point(len(steps)), small)


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
