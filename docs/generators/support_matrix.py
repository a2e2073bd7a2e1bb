"""The support matrix: architectures by features, registered entries, and combinations that validation refuses."""

import ast
from typing import Any, get_args

from benchmarks.house import source_files
from docs.generators.architectures import architectures
from docs.generators.markdown import code, page, table
from docs.generators.public_names import imported
from docs.generators.refusals import refusals
from docs.generators.source_text import first_sentence, parsed
from pft_core.data import SOURCES
from pft_core.evaluation import METRICS, TASKS, YARDSTICKS
from pft_core.objectives import KNOBS, OBJECTIVES
from pft_core.training.engines.registry import ENGINES
from pipelines.cli_options import MODES
from pipelines.config import SearchSettings
from pipelines.serve.engine_registry import SERVING_ENGINES

YES, NO = "yes", ""
SAMPLERS = get_args(SearchSettings.model_fields["sampler"].annotation)
SEARCHES = {
    "grid": "Every ratio of `search.alphas` and `search.betas`, with every combination in `search.space`.",
    "soup": "The ends and the middle are trained; the ratios between are mixed from their weights.",
    "asha": "The grid, from equal weights outwards; a trial stops early if its worse side falls behind.",
    "optuna": f"`search.num_trials` points that a sampler proposes: {', '.join(SAMPLERS)}.",
}


def pages() -> dict[str, str]:
    return {"support-matrix.md": matrix_page()}


def matrix_page() -> str:
    return page(
        "# Support matrix",
        "This page is made from the registries, from the names of the tests that cover each architecture, and by "
        "validating configs.",
        "## Architectures",
        architectures(),
        "## Training",
        "### Objectives",
        objectives(),
        "### Engines",
        engines(),
        "### Searches",
        table(("`--mode`", "What it tries"), [(code(name), SEARCHES[name]) for name in MODES]),
        "## Data",
        sources(),
        "## Evaluation",
        "### Metrics",
        metrics(),
        "### Tasks",
        table(("Task", "What it asks"), [(code(name), capitalized(TASKS[name].meaning)) for name in TASKS]),
        "### Yardsticks",
        yardsticks(),
        "## Serving engines",
        serving_engines(),
        "## Refused combinations",
        "Each pair of values was validated, with everything else at its default. The message is the product's own.",
        refusals(),
    )


def objectives() -> str:
    rows = []
    for name in OBJECTIVES:
        entry = OBJECTIVES[name]
        knobs = ", ".join(code(f"train.{knob}") for knob in KNOBS if knob in entry.knobs)
        rows.append((code(name), caption(entry.build), knobs, YES if entry.is_searchable else NO))
    return table(("Objective", "Loss", "Keys that it reads", "`pft tune`"), rows)


def engines() -> str:
    rows = [
        (code(name), caption(ENGINES[name].build), YES if ENGINES[name].has_whole_gradients else NO) for name in ENGINES
    ]
    return table(("Engine", "What it is", "`train.diagnostics_every`"), rows)


def sources() -> str:
    rows = []
    for name in SOURCES:
        entry = SOURCES[name]
        kind = "generated" if not entry.reads_files else "rows, or halves that are joined" if entry.join else "rows"
        axis = "the folder's name, or `--axis`" if entry.axis_is_folder else "the row's, or `--axis`"
        rows.append((code(name), caption(entry.row or entry.generate), kind, axis if entry.reads_files else "its own"))
    return table(("Source", "Records", "Input", "Axis"), rows)


def metrics() -> str:
    names = {"pole": "a pole", "pair": "a pair", "base": "the policy against its base", "run": "a run"}
    rows = [
        (
            code(name),
            capitalized(each.meaning),
            names[each.of],
            f"`{each.form}`" if each.counts_outcomes else "",
            each.best or "",
        )
        for name, each in ((name, METRICS[name]) for name in METRICS)
    ]
    return table(("Metric", "What it measures", "Of", "Form", "Best"), rows)


def yardsticks() -> str:
    rows = [
        (
            code(name),
            capitalized(YARDSTICKS[name].says),
            "training records" if YARDSTICKS[name].reads_training else "nothing",
        )
        for name in YARDSTICKS
    ]
    return table(("Yardstick", "How it answers", "What it learns from"), rows)


def serving_engines() -> str:
    rows = [
        (code(name), code(each.package), YES if each.steers else NO, each.why_not)
        for name, each in ((name, SERVING_ENGINES[name]) for name in SERVING_ENGINES)
    ]
    return table(("Engine", "Package", "Steering vectors", "Why not"), rows)


def capitalized(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def caption(place: Any) -> str:
    """Return the first sentence of the docstring of an entry's code, which is read and not loaded."""
    module, _, name = str(place).partition(":")
    path = source_files()[module]
    for node in parsed(path).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return first_sentence(ast.get_docstring(node))
    home = next(each for each, names in imported(path).items() if name in names)
    return caption(f"{home}:{name}")
