"""What a training has come to, for its report: the last losses, what was left out, and what to do next."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from pft_core.data import count_shared_scenarios
from pft_core.encoding import pair_rejects
from pft_core.policies import ModelRef
from pipelines.console import console
from pipelines.reporting import RunReport, curve_names
from pipelines.tracking import StepMetrics, read_metrics
from pipelines.train.resolved_run import ResolvedRun, RunLayers


def training_report(run: ResolvedRun, layers: RunLayers, ref: ModelRef, run_dir: Path, *, seconds: float) -> RunReport:
    """The report of a training run: its curves, config and digests; rows come with an evaluation."""
    config, steps = run.config, read_metrics(run_dir)
    return {
        "title": f"Training of {config.name}",
        "rows": [],
        "timings": {"train": seconds},
        "config": config.model_dump(),
        "digests": {
            "data": ref.data_digest,
            "template": ref.template_digest,
            "config": ref.config_digest,
            "adapter_sha256": ref.adapter_sha256,
        },
        "training": {config.name: steps},
        "notes": [*last_losses(steps), *left_out(run, layers), next_command(run_dir)],
        "cautions": cautions_of(run),
    }


def last_losses(steps: Sequence[StepMetrics]) -> list[str]:
    """Say how many steps were made, and the last mean loss of each kind."""
    last = {name: step[name] for step in steps for name in curve_names(steps) if name in step}
    losses = ", ".join(f"{curve_names(steps)[name]} {loss:.3f}" for name, loss in last.items())
    return [f"{steps[-1]['step']} steps; the last losses: {losses}."] if last else []


def left_out(run: ResolvedRun, layers: RunLayers) -> list[str]:
    """Say what of the rows was trained on, and what was rejected."""
    data = run.manifest
    reasons = ", ".join(f"{reason} {count}" for reason, count in data.rejected_by_reason.items())
    rejected = f"{data.rejected} were rejected{f' ({reasons})' if reasons else ''}"
    said = [f"The data has {data.pairs_out} pairs, of {data.rows_in} rows, of which {rejected}."]
    for what, folder in (("pairs", layers.train), ("pairs of the validation", layers.validation)):
        if folder and (found := {why: count for why, count in pair_rejects(Path(folder)).items() if count}):
            reasons = ", ".join(f"{count} {why}" for why, count in found.items())
            said.append(f"{sum(found.values())} {what} were left out as they were encoded: {reasons}.")
    return said


def next_command(run_dir: Path) -> str:
    place = shlex.quote(str(run_dir))
    output = shlex.quote(f"{run_dir}-evaluation")
    return f"Next: pft evaluate --model {place} --data TEST_DATA --output {output}"


def say_cautions(run: ResolvedRun) -> None:
    """Print before anything starts what the report will say first."""
    for caution in cautions_of(run):
        console.print(caution, style="yellow", highlight=False, soft_wrap=True)


def cautions_of(run: ResolvedRun) -> list[str]:
    """Say where the run is validated on scenarios that it trains on."""
    if run.validation is None:
        return []
    num_shared, num_validated = count_shared_scenarios(*run.inputs)
    if not num_shared:
        return []
    return [
        f"{num_shared} of the {num_validated} scenarios that {run.config.name} is validated on are trained on too: "
        "the validation says how well these are remembered, not how it does on new ones."
    ]
