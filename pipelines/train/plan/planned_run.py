"""`train --dry-run`: resolve and check everything that a run checks, print its plan, and start nothing."""

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pft_core.data import MANIFEST_NAME, DatasetManifest
from pft_core.training import examples_for, refuse_pairs_over_budget
from pipelines.config import RunConfig, with_precision
from pipelines.console import console
from pipelines.embedded_data import with_embedded
from pipelines.tables import facts, print_table, size
from pipelines.train.inputs import warn_of_long_warmup
from pipelines.train.plan.counted_memory import CountedMemory, count_memory, load_scorer, why_not_counted
from pipelines.train.plan.planned_folder import PlannedFolder, planned_files, planned_folder
from pipelines.train.plan.planned_pairs import PlannedPairs, planned_pairs
from pipelines.train.plan.planned_steps import PlannedSteps, loop_settings, planned_steps
from pipelines.train.resolved_run import ResolvedRun, resolve
from pipelines.train.training_summary import print_cautions


def dry_run(config: RunConfig, *, fresh: bool = False) -> dict[str, Any]:
    """Print the plan of a training run without Ray, MLflow or a run folder.

    Result: run_dir, state, from_step, data, steps, memory (needed, free and weights in bytes, fits; None for what
    cannot be counted here), files. Raises UserError for what would stop the run before its first step.
    """
    with tempfile.TemporaryDirectory(prefix="pft-plan-") as scratch:
        run = resolve(data_in_place(config, Path(scratch)))
        warn_of_long_warmup(run.config, run.manifest)
        print_cautions(run)
        folder = planned_folder(config, run.key(kind="train"), fresh=fresh)
        pairs = {
            use: planned_pairs(run, data, manifest, make_folder(Path(scratch) / f"sample-{use}"))
            for use, (data, manifest) in zip(("train", "validation"), run.inputs, strict=False)
            if use == "train" or run.config.train.validate_every
        }
        steps, memory, reason = steps_and_memory(run, pairs["train"])
        moved = Path(scratch).resolve(), str(Path(config.storage).resolve())
        files = planned_files(config, folder.run_dir, [each.place for each in pairs.values()], moved)
    plan = {
        "run_dir": str(folder.run_dir),
        "state": folder.state,
        "from_step": folder.from_step,
        "data": {use: data_part(each) for use, each in pairs.items()},
        "steps": asdict(steps) | {"tokens": steps.tokens, "is_estimate": pairs["train"].is_sample},
        "memory": memory_part(memory, reason, run),
        "files": files,
    }
    print_plan(plan, folder, pairs, steps, memory)
    return plan


def make_folder(path: Path) -> Path:
    path.mkdir()
    return path


def data_in_place(config: RunConfig, scratch: Path) -> RunConfig:
    """Return the config with embedded data: the folder in storage if it is the same, else one in the scratch folder."""
    placed = with_precision(with_embedded(config.model_copy(update={"storage": str(scratch)})))
    own = {
        name: str(Path(config.storage).resolve() / Path(folder).relative_to(scratch.resolve()))
        for name in ("data", "validation_data")
        if (folder := getattr(placed, name)) and Path(folder).is_relative_to(scratch.resolve())
    }
    same = {name: folder for name, folder in own.items() if is_same_data(Path(folder), Path(getattr(placed, name)))}
    return placed.model_copy(update={"storage": config.storage, **same})


def is_same_data(folder: Path, other: Path) -> bool:
    is_there = (folder / MANIFEST_NAME).is_file()
    return is_there and DatasetManifest.load(folder).data_digest == DatasetManifest.load(other).data_digest


def steps_and_memory(run: ResolvedRun, pairs: PlannedPairs) -> tuple[PlannedSteps, CountedMemory | None, str | None]:
    """Return the steps, and the memory or why it cannot be counted. Raises UserError if a pair fits no micro-batch."""
    reason = why_not_counted(run.config)
    scorer = load_scorer(run) if reason is None else None
    # Without the model, sides share their prefix unless the config says otherwise.
    shares_prefix = scorer.shares_prefix if scorer else run.config.train.attention_backend != "separate"
    settings = loop_settings(run, len(pairs.store), shares_prefix=shares_prefix)
    store = examples_for(run.objective, pairs.store)
    refuse_pairs_over_budget(settings, store)
    memory = count_memory(run, scorer, settings, store) if scorer else None
    return planned_steps(run, pairs, store, settings), memory, reason


def data_part(pairs: PlannedPairs) -> dict[str, Any]:
    return {
        "pairs": pairs.num_pairs,
        "kept": pairs.num_kept,
        "source": pairs.source,
        "is_estimate": pairs.is_sample,
        "layer": str(pairs.place.folder) if pairs.place.is_complete else None,
    }


def memory_part(memory: CountedMemory | None, reason: str | None, run: ResolvedRun) -> dict[str, Any]:
    """Return the memory of one worker, as JSON holds it."""
    workers = {"workers": run.config.scaling.num_workers, "reason": reason}
    if memory is None:
        return workers | dict.fromkeys(("weights", "needed", "free", "fits", "recomputes"))
    use = memory.use
    own = {"weights": memory.weights, "needed": round(use.needed), "free": round(use.free), "fits": memory.fits}
    return workers | own | {"recomputes": use.memory_fallback > 0 or run.config.train.gradient_checkpointing is True}


def print_plan(
    plan: dict[str, Any],
    folder: PlannedFolder,
    pairs: dict[str, PlannedPairs],
    steps: PlannedSteps,
    memory: CountedMemory | None,
) -> None:
    is_sample = pairs["train"].is_sample
    about = "about " if is_sample else ""
    all_tokens = f"{'about ' if is_sample or steps.num_planned < steps.steps else ''}{steps.tokens:,} in all"
    inside = f"{folder.run_dir}/"
    rows = {
        "folder": str(folder),
        **{use: f"{about}{each.num_kept} of {each.num_pairs} pairs fit; {each.source}" for use, each in pairs.items()},
        "steps": f"{about}{steps.steps} ({steps.pairs} pairs, {steps.epochs:g} epochs)",
        "tokens": f"{all_tokens}, {steps.tokens_per_step:,.0f} a step",
        "micro-batches": f"{steps.microbatches_per_step:.3g} per worker and step, "
        f"of {steps.tokens_per_microbatch:,.0f} tokens, at most {steps.largest_microbatch:,}",
        "memory": said_of_memory(plan["memory"], memory),
        "writes there": ", ".join(name.removeprefix(inside) for name in plan["files"] if name.startswith(inside)),
        "and": "\n".join(name for name in plan["files"] if not name.startswith(inside)),
    }
    print_table(facts("plan", rows))
    if memory is not None and not memory.fits:
        console.print("This run is expected to run out of memory.", style="yellow")


def said_of_memory(part: dict[str, Any], memory: CountedMemory | None) -> str:
    """Return the memory of a worker in words."""
    if memory is None:
        return f"not counted: {part['reason']}"
    who = "one worker" if part["workers"] == 1 else f"each of {part['workers']} workers on this machine"
    recomputed = ", with activations recomputed" if part["recomputes"] else ""
    return (
        f"{who}: {size(memory.weights)} of weights, and {size(part['needed'])} for up to "
        f"{memory.use.tokens_at_once:,} tokens at once{recomputed}; {size(max(0, part['free']))} are free here"
    )
