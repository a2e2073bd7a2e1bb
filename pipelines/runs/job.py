"""`runs`: list the runs below a storage folder, show one, compare several. Nothing is loaded and nothing is written."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pft_core.errors import UserError
from pft_core.files import read_json
from pft_core.policies import MODEL_REF_NAME
from pipelines.console import console
from pipelines.runs.config_keys import changed_keys, differing_keys, flat
from pipelines.runs.damage import naming
from pipelines.runs.folders import measured, run_folders, run_place
from pipelines.runs.next_steps import next_steps
from pipelines.runs.run import Run, read_run
from pipelines.runs.tables import run_table, side_by_side
from pipelines.tables import facts, number, plain_table, print_table, size

REFERENCE_KEYS = ("base", "adapter", "weights", "trained_sides", "data_digest", "template_digest", "adapter_sha256")


def list_runs(storage: Path) -> dict[str, Any]:
    """Print every run below a folder, newest first. Result: storage, runs (a row each)."""
    runs = runs_below(storage)
    print_table(run_table(runs)) if runs else console.print(f"{storage}: no runs", highlight=False)
    return {"storage": str(storage), "runs": [run.row for run in runs]}


def runs_below(storage: Path) -> list[Run]:
    """Return the runs, newest first; a trained policy has the figures of its last evaluation.

    It has none if it was evaluated on several data sets, because one figure would hide the others.
    """
    runs = [read_run(folder, storage) for folder in run_folders(storage)]
    runs.sort(key=lambda run: (run.started or "", run.changed), reverse=True)
    evaluations = evaluations_by_policy(runs)
    return [with_evaluation(run, evaluations) for run in runs]


def policy_of(run: Run) -> Path | None:
    """Return the folder of the policy that a finished evaluation asked; None for other runs."""
    if run.kind != "evaluate" or run.status != "finished" or not run.config.get("model") or run.config.get("adapter"):
        return None
    model = Path(run.config["model"]).resolve()
    return model.parent if model.is_file() else model


def evaluations_by_policy(runs: Sequence[Run]) -> dict[Path, list[Run]]:
    evaluations: defaultdict[Path, list[Run]] = defaultdict(list)
    for run in runs:
        if policy := policy_of(run):
            evaluations[policy].append(run)
    return evaluations


def with_evaluation(run: Run, evaluations: Mapping[Path, list[Run]]) -> Run:
    """Return a run with the figures of the first of its evaluations, unless their data differ."""
    own = evaluations.get(Path(run.path).resolve(), [])
    is_clear = len({evaluation.config.get("data") for evaluation in own}) == 1
    return replace(run, figures=own[0].figures | run.figures) if is_clear else run


def show_run(name: str, storage: Path) -> dict[str, Any]:
    """Print one run.

    Result: its row, config (keys that differ from the defaults), files (bytes by name), policy (of model_ref.json),
    evaluations (rows), next (commands).
    """
    run = find_run(name, storage)
    evaluations = [other.row for other in runs_below(storage) if policy_of(other) == Path(run.path).resolve()]
    shown = {
        **run.row,
        "config": changed_keys(run.kind, run.config),
        "files": measured(Path(run.path)).sizes,
        "policy": reference_of(Path(run.path)),
        "evaluations": evaluations,
        "next": next_steps(run),
    }
    print_run(run, shown)
    return shown


def find_run(name: str, storage: Path) -> Run:
    """Return a run by its path or its name below the storage folder. Raises UserError if the folder holds no run."""
    place = run_place(name, storage)
    folder = measured(place)
    if not folder.holds_a_run:
        inside = ", ".join(str(run.path) for run in folder.runs[:3])
        raise UserError(f"{place}: not the folder of a run{f': it holds {inside}' if inside else ''}")
    return read_run(folder, storage, with_config=True)


def reference_of(run_dir: Path) -> dict[str, Any] | None:
    """Return what a run's model_ref.json says about its policy, as written; None without one."""
    path = run_dir / MODEL_REF_NAME
    if not path.is_file():
        return None
    with naming(path):
        raw = read_json(path, what="a model reference written by `pft train`")
        axes = [axis["name"] for axis in raw["space"]["axes"]]
        return {key: raw.get(key) for key in REFERENCE_KEYS} | {"answer": raw["style"]["answer"], "axes": axes}


def print_run(run: Run, shown: dict[str, Any]) -> None:
    """Print the parts of a run that are not empty."""
    state = {key: shown[key] for key in ("path", "kind", "status", "note", "started", "seconds", "attempt")}
    print_table(facts(run.name, {key: value for key, value in state.items() if value is not None}))
    for title, part in (
        ("figure", run.figures),
        ("changed key", {key: "null" if value is None else value for key, value in shown["config"].items()}),
        ("policy", {key: value for key, value in (shown["policy"] or {}).items() if value is not None}),
        ("file", {name: size(num_bytes) for name, num_bytes in shown["files"].items()}),
        ("next", shown["next"]),
    ):
        if part:
            print_table(facts(title, part))
    if shown["evaluations"]:
        table = plain_table("evaluation", "both right")
        for row in shown["evaluations"]:
            table.add_row(row["name"], number(row["figures"].get("both_right")))
        print_table(table)


def compare_runs(names: Sequence[str], storage: Path) -> dict[str, Any]:
    """Print what differs between runs. Result: runs, and config and figures by key with a value for each run."""
    if len(names) < 2:
        raise UserError(f"{names[0]}: give at least two runs to compare")
    evaluations = evaluations_by_policy(runs_below(storage) if storage.is_dir() else [])
    runs = [with_evaluation(find_run(name, storage), evaluations) for name in names]
    config = differing_keys([run.config for run in runs])
    rows = [flat({"status": run.status, "seconds": run.seconds, "bytes": run.bytes, **run.figures}) for run in runs]
    figures = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    labels = [run.name for run in runs]
    nulled = {key: ["null" if value is None else value for value in values] for key, values in config.items()}
    print_table(side_by_side("config key", labels, nulled)) if config else console.print("the configs are equal")
    print_table(side_by_side("figure", labels, figures))
    return {"runs": labels, "config": config, "figures": figures}
