"""From the results of a suite's cells to its report: rows, tests, captions, and where every number comes from."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pft_core.artifacts import read_json
from pft_core.errors import UserError
from pft_core.evaluation.capability import Answered
from pft_core.evaluation.tasks import Outcome
from pft_core.evaluation.yardsticks import bag_of_words, position_only
from pipelines.capability import capability_rows
from pipelines.compare.area import area_rows
from pipelines.compare.asking import notes_on
from pipelines.compare.cells import CAPABILITY_NAME, NO_SEED, Cell
from pipelines.compare.data import limited, read_records
from pipelines.compare.methods import METHODS
from pipelines.compare.plan import YARDSTICKS, VariantPlan
from pipelines.compare.pool import Result
from pipelines.compare.rows import Found, Row, corrected, rate_rows, refuse_other_items, rows_of, significance_against
from pipelines.compare.suite import Size, Suite, SuiteSize
from pipelines.jobs import code_digest, commit
from pipelines.tracking import read_metrics


def assemble(
    suite: Suite, size: Size, plans: Sequence[VariantPlan], results: Sequence[Result], *, seconds: float
) -> dict[str, Any]:
    """Put what the cells found into one report. Raises UserError where nothing finished, or results do not fit."""
    refuse_nothing_finished(results)
    left = iter(results)
    done = [(plan, [(cell, next(left)) for cell in plan.cells]) for plan in plans]
    found: list[Found] = []
    rows: list[Row] = []
    tests: list[Row] = []
    for plan, pairs in done:
        refuse_mixed_digests(pairs)
        of_plan = list(found_of(suite, suite.sizes[size], plan, pairs))
        refuse_other_items(of_plan)
        rows += [row for f in of_plan for row in rows_of(f, plan.space, suite.metrics)]
        tests += tests_of(suite, of_plan, plan)
        if "pairs_per_s" in suite.metrics:
            rows += rate_rows([(f, rates_of(f, pairs)) for f in of_plan])
        found += of_plan
    rows += [row for plan, pairs in done for row in capability_of(suite, plan, pairs)]
    area, area_tests = area_rows(found, suite.reference)
    every = [pair for _, pairs in done for pair in pairs]
    return {
        "suite": suite.name,
        "title": suite.title,
        "size": size,
        "captions": captions(suite, size, plans, every),
        "rows": rows + area,
        "tests": corrected(tests + area_tests),
        "curves": [curve(cell, result) for cell, result in every if cell.layers and "error" not in result],
        "runs": [run_line(cell, result) for cell, result in every],
        "timings": {"total": seconds},
        "config": suite.model_dump(),
        "digests": {"code": code_digest(), "commit": commit()},
    }


def capability_of(suite: Suite, plan: VariantPlan, pairs: Sequence[tuple[Cell, Result]]) -> Iterator[Row]:
    """The rows of general capability of each method that was asked for it, and of its drop where it was trained."""
    for name in suite.methods:
        found = {
            cell.seed: (result["run_id"], read_json(path, what="answers to general questions"))
            for cell, result in pairs
            if cell.name == name and "error" not in result
            if (path := Path(result["run_dir"]) / CAPABILITY_NAME).is_file()
        }
        if found:
            after = {seed: (run_id, answers(told["after"])) for seed, (run_id, told) in found.items()}
            before = [answers(told["before"]) for _, told in found.values() if "before" in told]
            yield from capability_rows(name, describe(suite, plan), before=next(iter(before), None), by_seed=after)


def answers(told: dict[str, Any]) -> list[Answered]:
    return [Answered(**answer) for answer in told["answers"]]


def rates_of(found: Found, pairs: Sequence[tuple[Cell, Result]]) -> list[float]:
    """Pairs a second of each finished seed of a method; none where nothing is trained."""
    mine = [result for cell, result in pairs if cell.name == found.method]
    return [result["pairs_per_s"] for result in mine if result.get("pairs_per_s") is not None]


def found_of(suite: Suite, size: SuiteSize, plan: VariantPlan, pairs: Sequence[tuple[Cell, Result]]) -> Iterator[Found]:
    """What each method chose under one variant; a method of which no seed has finished is left out."""
    for name in suite.methods:
        mine = [(cell, result) for cell, result in pairs if cell.name == name and "error" not in result]
        variant = describe(suite, plan)
        if METHODS[name].asked in YARDSTICKS:
            yield Found(name, variant, {NO_SEED: ("", yardstick(name, size, plan))}, 1, is_yardstick=True)
        elif mine:
            by_seed = {cell.seed: (result["run_id"], read_outcomes(Path(result["outcomes"]))) for cell, result in mine}
            yield Found(name, variant, by_seed, len(size.seeds) if METHODS[name].seeded else 1)


def describe(suite: Suite, plan: VariantPlan) -> dict[str, Any] | None:
    return None if plan.variant is None else {"name": suite.varies, "value": plan.variant.value}


def yardstick(name: str, size: SuiteSize, plan: VariantPlan) -> list[Outcome]:
    """What position alone, or the words of the options alone, would choose."""
    test = list(limited(read_records(plan.data.test), size.test_per_axis))
    if name == "position":
        return [outcome for form in size.forms for outcome in position_only(test, form)]
    train = list(read_records(plan.data.train))
    return [outcome for form in size.forms for outcome in bag_of_words(train, test, seed=0, form=form)]


def captions(suite: Suite, size: Size, plans: Sequence[VariantPlan], pairs: Sequence[tuple[Cell, Result]]) -> list[str]:
    """What a reader has to know of the data, the models and how they were asked, in sentences."""
    chosen, data = suite.sizes[size], plans[0].data
    lines = [*suite.notes, *chosen.notes]
    if data.name != chosen.data:
        lines.append(f"Data: the embedded {data.name}, since PFT_DATA names no folder with {chosen.data}.")
    if size == "tiny":
        lines.append("Tiny models: these numbers compare methods under small means, not policies for use.")
    finished = [(cell.name, Path(done["run_dir"])) for cell, done in pairs if "error" not in done]
    notes = [f"{name}: {note}." for name, run_dir in finished for note in notes_on(run_dir)]
    return lines + list(dict.fromkeys(notes))


def read_outcomes(path: Path) -> list[Outcome]:
    return [Outcome.from_json(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tests_of(suite: Suite, found: Sequence[Found], plan: VariantPlan) -> list[dict[str, Any]]:
    reference = next((f for f in found if f.method == suite.reference), None)
    others = [f for f in found if f.method != suite.reference]
    return significance_against(reference, others, plan.space) if reference else []


def refuse_nothing_finished(results: Sequence[Result]) -> None:
    errors = [result["error"] for result in results if "error" in result]
    if len(errors) == len(results):
        raise UserError(f"no cell has finished; the first error: {errors[0] if errors else 'no cell was planned'}")


def refuse_mixed_digests(pairs: Sequence[tuple[Cell, Result]]) -> None:
    """Raise UserError where runs of one variant stand on other data, or seeds of one method on other wording."""
    for key, per_method in (("data_digest", False), ("test_digest", False), ("template_digest", True)):
        first: dict[str, tuple[Cell, Result]] = {}
        for cell, result in pairs:
            if "error" in result:
                continue
            before, earlier = first.setdefault(cell.name if per_method else "", (cell, result))
            if result[key] != earlier[key]:
                raise UserError(
                    f"{key} differs between rows: {earlier[key]} in {earlier['run_dir']} ({before.name}), "
                    f"{result[key]} in {result['run_dir']} ({cell.name}): remove the folder that is out of date, "
                    "and run it again"
                )


def run_line(cell: Cell, result: Result) -> dict[str, Any]:
    return {
        "run_id": result.get("run_id"),
        "method": cell.name,
        "seed": None if cell.seed == NO_SEED else cell.seed,
        "variant": None if cell.variant is None else cell.variant.value,
        "data_digest": result.get("data_digest"),
        "test_digest": result.get("test_digest"),
        "template_digest": result.get("template_digest"),
        "commit": result.get("commit"),
        "status": "failed" if "error" in result else "finished",
        "error": result.get("error"),
        "seconds": result.get("seconds"),
    }


def curve(cell: Cell, result: Result) -> dict[str, Any]:
    kept = ("step", "loss", "loss_first", "loss_second", "gradient_cosine")
    steps = [{key: row[key] for key in kept if key in row} for row in read_metrics(Path(result["run_dir"]))]
    variant = None if cell.variant is None else cell.variant.value
    return {"method": cell.name, "seed": cell.seed, "variant": variant, "steps": steps}
