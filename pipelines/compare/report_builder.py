"""Build the report of a suite from the results of its cells: rows, tests, captions, and the origin of each number."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pft_core.data import DatasetManifest, count_shared_scenarios, opened, read_records
from pft_core.errors import UserError, said_of
from pft_core.evaluation import METRICS, YARDSTICKS, CapabilityAnswer, Outcome, read_outcomes, value_of_run
from pft_core.files import digest, read_json
from pipelines.compare.cell_pool import Result
from pipelines.compare.cells import CAPABILITY_NAME, NO_SEED, Cell
from pipelines.compare.method_answerers import notes_on
from pipelines.compare.methods import method
from pipelines.compare.plan import VariantPlan
from pipelines.compare.report import ComparisonReport, LearningCurve, RunLine, RunOrigin
from pipelines.compare.statistics import (
    ComparisonRow,
    MethodOutcomes,
    PairedTest,
    VariantValue,
    area_rows,
    capability_rows,
    holm_corrected,
    on_common_items,
    rows_of,
    run_rows,
    significance_against,
)
from pipelines.compare.suite import Size, Suite, SuiteSize
from pipelines.compare.suite_data import released_file
from pipelines.evaluate import read_items
from pipelines.jobs import code_digest
from pipelines.tracking import commit, read_metrics


def assemble(
    suite: Suite, size: Size, plans: Sequence[VariantPlan], results: Sequence[Result], *, seconds: float
) -> ComparisonReport:
    """Build one report from all results. Raises UserError if no cell finished, or if results do not fit together."""
    refuse_nothing_finished(results)
    remaining = iter(results)
    results_by_plan = [(plan, [(cell, next(remaining)) for cell in plan.cells]) for plan in plans]
    outcomes: list[MethodOutcomes] = []
    notes: list[str] = []
    rows: list[ComparisonRow] = []
    tests: list[PairedTest] = []
    for plan, pairs in results_by_plan:
        refuse_mixed_digests(pairs)
        of_plan, item_notes = on_common_items(list(method_outcomes(suite, suite.sizes[size], plan, pairs)))
        notes += item_notes
        rows += [row for f in of_plan for row in rows_of(f, plan.space, suite.metrics)]
        tests += tests_of(suite, of_plan, plan)
        for metric in (m for m in suite.metrics if not METRICS[m].counts_outcomes):
            rows += run_rows(metric, [(f, run_values(metric, f, pairs)) for f in of_plan])
        outcomes += of_plan
    rows += [row for plan, pairs in results_by_plan for row in capability_of(suite, plan, pairs)]
    area, area_tests = area_rows(outcomes, suite.reference)
    all_pairs = [pair for _, pairs in results_by_plan for pair in pairs]
    return {
        "suite": suite.name,
        "title": suite.title,
        "size": size,
        "cautions": cautions(suite, plans),
        "captions": [*captions(suite, size, all_pairs), *dict.fromkeys(notes)],
        "rows": rows + area,
        "tests": holm_corrected(tests + area_tests),
        "curves": [curve(cell, result) for cell, result in all_pairs if cell.layers and "error" not in result],
        "runs": [line for plan, pairs in results_by_plan for line in run_lines(suite, plan, pairs)],
        "timings": {"total": seconds},
        "config": suite.model_dump(),
        "digests": {"code": code_digest(), "commit": commit()},
    }


def capability_of(suite: Suite, plan: VariantPlan, pairs: Sequence[tuple[Cell, Result]]) -> Iterator[ComparisonRow]:
    """Yield the rows of general capability of each measured method, and of the drop if the method was trained."""
    for name in suite.methods:
        by_seed = {
            cell.seed: (result["run_id"], capability)
            for cell, result in pairs
            if cell.name == name and "error" not in result and (capability := general_answers(result))
        }
        if by_seed:
            after = {seed: (run_id, answers(capability["after"])) for seed, (run_id, capability) in by_seed.items()}
            before = [answers(capability["before"]) for _, capability in by_seed.values() if "before" in capability]
            yield from capability_rows(name, describe(suite, plan), before=next(iter(before), None), by_seed=after)


def general_answers(result: Result) -> dict[str, Any] | None:
    path = Path(result["run_dir"]) / CAPABILITY_NAME
    return read_json(path, what="answers to general questions") if path.is_file() else None


def answers(part: dict[str, Any]) -> list[CapabilityAnswer]:
    return [CapabilityAnswer(**answer) for answer in part["answers"]]


def run_values(metric: str, outcomes: MethodOutcomes, pairs: Sequence[tuple[Cell, Result]]) -> list[float]:
    """Return a metric's value for each finished seed of a method that it can measure."""
    finished = [result for cell, result in pairs if cell.name == outcomes.method and "error" not in result]
    with said_of(f"method {outcomes.method}"):
        return [value for result in finished if (value := value_of_run(metric, result)) is not None]


def method_outcomes(
    suite: Suite, size: SuiteSize, plan: VariantPlan, pairs: Sequence[tuple[Cell, Result]]
) -> Iterator[MethodOutcomes]:
    """Yield the outcomes of each method under one variant; leave out methods without a finished seed."""
    for name in suite.methods:
        finished = [(cell, result) for cell, result in pairs if cell.name == name and "error" not in result]
        variant = describe(suite, plan)
        if name in YARDSTICKS:
            yield MethodOutcomes(
                name, variant, {NO_SEED: (yardstick_id(name, plan), yardstick(name, size, plan))}, 1, is_yardstick=True
            )
        elif finished:
            by_seed = {
                cell.seed: (result["run_id"], read_outcomes(Path(result["outcomes"]))) for cell, result in finished
            }
            yield MethodOutcomes(name, variant, by_seed, len(size.seeds) if method(name).seeded else 1)


def describe(suite: Suite, plan: VariantPlan) -> VariantValue | None:
    return None if plan.variant is None else {"name": str(suite.varies), "value": plan.variant.value}


def yardstick(name: str, size: SuiteSize, plan: VariantPlan) -> list[Outcome]:
    """Return the outcomes of a yardstick."""
    entry = YARDSTICKS[name]
    manifest = DatasetManifest.load(plan.data.test)
    test = [r for r, _ in read_items(plan.data.test, manifest, forms=["one"], limit_per_axis=size.test_per_axis)]
    train = list(read_records(plan.data.train)) if entry.reads_training else []
    return [outcome for form in size.forms for outcome in entry.outcomes(train, test, form, space=manifest.space)]


def captions(suite: Suite, size: Size, pairs: Sequence[tuple[Cell, Result]]) -> list[str]:
    """Return sentences on the data, the models and how they were asked."""
    lines = [*suite.notes, *suite.sizes[size].notes]
    if size == "tiny":
        lines.append(
            "Tiny models: these numbers compare methods at small scale; they say nothing about policies for real use."
        )
    capability = suite.sizes[size].capability
    if capability and not released_file(capability):
        lines.append(f"General capability was not measured: PFT_DATA is not a folder with {capability}.")
    finished = [(cell, result) for cell, result in pairs if "error" not in result]
    return lines + merge_notes([note for cell, result in finished for note in notes_of(cell, result)])


def cautions(suite: Suite, plans: Sequence[VariantPlan]) -> list[str]:
    """Warn about test scenarios that are also in the training data."""
    warnings = []
    for plan in (plan for plan in plans if any(cell.layers for cell in plan.cells)):
        num_shared, num_tested = count_shared_scenarios(*opened(str(plan.data.train), str(plan.data.test)))
        place = "" if plan.variant is None else f"{suite.varies} {plan.variant.value}: "
        if num_shared:
            warnings.append(
                f"{place}{num_shared} of the {num_tested} test scenarios are also in the training data: the numbers "
                "show how well these are remembered, not how new ones are answered."
            )
    return warnings


def merge_notes(notes: Sequence[tuple[str, str]]) -> list[str]:
    """Merge equal notes into one, after the names of all methods it concerns ("" names none)."""
    names: dict[str, dict[str, None]] = {}
    for name, text in notes:
        names.setdefault(text, {})[name] = None
    return [f"{', '.join(filter(None, of))}{': ' * any(of)}{text}" for text, of in names.items()]


def notes_of(cell: Cell, result: Result) -> Iterator[tuple[str, str]]:
    """Yield notes on one run: how it was asked, and what was rejected or not measured."""
    for note in notes_on(Path(result["run_dir"])):
        yield cell.name, f"{note}."
    if result["pairs_rejected"]:
        yield cell.name, f"{result['pairs_rejected']} training pairs were too long and were left out."
    if result["capability_error"]:
        yield "", f"General capability was not measured: {result['capability_error']}."
    capability = general_answers(result)
    if capability and capability["after"]["rejected"]:
        yield "", f"{capability['after']['rejected']} general questions were too long or unreadable, and were left out."


def tests_of(suite: Suite, outcomes: Sequence[MethodOutcomes], plan: VariantPlan) -> list[PairedTest]:
    reference = next((f for f in outcomes if f.method == suite.reference), None)
    others = [f for f in outcomes if f.method != suite.reference]
    return significance_against(reference, others, plan.space) if reference else []


def refuse_nothing_finished(results: Sequence[Result]) -> None:
    errors = [result["error"] for result in results if "error" in result]
    if len(errors) == len(results):
        raise UserError(f"no cell has finished; first error: {errors[0] if errors else 'no cell was planned'}")


def refuse_mixed_digests(pairs: Sequence[tuple[Cell, Result]]) -> None:
    """Raise UserError if runs of one variant used different data, or seeds of one method different prompts."""
    for key, per_method in (("data_digest", False), ("test_digest", False), ("template_digest", True)):
        first: dict[str, tuple[Cell, Result]] = {}
        for cell, result in pairs:
            if "error" in result:
                continue
            before, earlier = first.setdefault(cell.name if per_method else "", (cell, result))
            if result[key] != earlier[key]:
                raise UserError(
                    f"{key} differs between rows: {earlier[key]} in {earlier['run_dir']} ({before.name}), "
                    f"{result[key]} in {result['run_dir']} ({cell.name}): remove the outdated folder "
                    "and run the suite again"
                )


def run_lines(suite: Suite, plan: VariantPlan, pairs: Sequence[tuple[Cell, Result]]) -> Iterator[RunLine]:
    """Yield the origin of one variant's numbers: every cell, and the yardsticks."""
    for cell, result in pairs:
        error = result.get("error")
        yield {
            **origin_of(result),
            "method": cell.name,
            "seed": None if cell.seed == NO_SEED else cell.seed,
            "status": "failed" if error else "finished",
            "error": error,
            "variant": value_of_plan(plan),
        }
    for name in (name for name in suite.methods if name in YARDSTICKS):
        digests = {key: DatasetManifest.load(folder).data_digest for key, folder in yardstick_data(plan).items()}
        yield {
            **origin_of({"run_id": yardstick_id(name, plan), **digests, "commit": commit()}),
            "error": None,
            "method": name,
            "seed": None,
            "status": "finished",
            "variant": value_of_plan(plan),
        }


def origin_of(result: Result) -> RunOrigin:
    return {
        "run_id": result.get("run_id"),
        "data_digest": result.get("data_digest"),
        "test_digest": result.get("test_digest"),
        "template_digest": result.get("template_digest"),
        "base_digest": result.get("base_digest"),
        "capability_digest": result.get("capability_digest"),
        "commit": result.get("commit"),
        "seconds": result.get("seconds"),
        "items_rejected": result.get("items_rejected"),
        "pairs_rejected": result.get("pairs_rejected"),
    }


def yardstick_data(plan: VariantPlan) -> dict[str, Path]:
    return {"data_digest": plan.data.train, "test_digest": plan.data.test}


def yardstick_id(name: str, plan: VariantPlan) -> str:
    """Return an id for a yardstick, which has no run: a digest of its data and code."""
    digests = [DatasetManifest.load(folder).data_digest for folder in yardstick_data(plan).values()]
    return f"{name}-{digest([*digests, code_digest()])[:8]}"


def value_of_plan(plan: VariantPlan) -> str | int | float | None:
    return None if plan.variant is None else plan.variant.value


def curve(cell: Cell, result: Result) -> LearningCurve:
    keys = ("step", "loss", "loss_first", "loss_second", "gradient_cosine")
    steps = [{key: row[key] for key in keys if key in row} for row in read_metrics(Path(result["run_dir"]))]
    variant = None if cell.variant is None else cell.variant.value
    return {"method": cell.name, "seed": cell.seed, "variant": variant, "steps": steps}
