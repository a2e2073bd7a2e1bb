"""Summary of a training for its report: the last losses, rejected rows and pairs, and the next command."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from pft_core.data import MANIFEST_NAME, count_shared_scenarios
from pft_core.encoding import pair_rejects
from pft_core.policies import ModelRef
from pipelines.console import console
from pipelines.prepare import PARTS
from pipelines.reporting import RunReport, curve_names
from pipelines.tracking import StepMetrics, read_metrics
from pipelines.train.resolved_run import ResolvedRun, RunLayers


def training_report(run: ResolvedRun, layers: RunLayers, ref: ModelRef, run_dir: Path, *, seconds: float) -> RunReport:
    """Return the report of a training run: curves, config and digests. Its rows are empty until an evaluation."""
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
    """Return a sentence with the number of steps and the last mean loss of each kind."""
    last = {name: step[name] for step in steps for name in curve_names(steps) if name in step}
    losses = ", ".join(f"{curve_names(steps)[name]} {loss:.3f}" for name, loss in last.items())
    return [f"{steps[-1]['step']} steps; the last losses: {losses}."] if last else []


def left_out(run: ResolvedRun, layers: RunLayers) -> list[str]:
    """Return sentences about the rows and pairs that were rejected."""
    data = run.manifest
    reasons = ", ".join(f"{reason} {count}" for reason, count in data.rejected_by_reason.items())
    rejected = f"{data.rejected} were rejected{f' ({reasons})' if reasons else ''}"
    sentences = [f"The data has {data.pairs_out} pairs from {data.rows_in} rows, of which {rejected}."]
    for what, folder in (("pairs", layers.train), ("validation pairs", layers.validation)):
        if folder and (counts := {why: count for why, count in pair_rejects(Path(folder)).items() if count}):
            reasons = ", ".join(f"{count} {why}" for why, count in counts.items())
            sentences.append(f"{sum(counts.values())} {what} were left out during encoding: {reasons}.")
    return sentences


def next_command(run_dir: Path) -> str:
    """Return the sentence that names the command which evaluates a trained policy on test data of the user's."""
    place = shlex.quote(str(run_dir))
    output = shlex.quote(f"{run_dir}-evaluation")
    return f"Next: pft evaluate --model {place} --data TEST_DATA --output {output}"


def print_cautions(run: ResolvedRun) -> None:
    """Print before the run starts the cautions that the report shows first."""
    for caution in cautions_of(run):
        console.print(caution, style="yellow", highlight=False, soft_wrap=True)


def cautions_of(run: ResolvedRun) -> list[str]:
    """Return cautions if the run trains on the test part of its data, or on scenarios of its validation data."""
    return [caution for caution in (trains_on_all_parts(run), shares_validation(run)) if caution]


def trains_on_all_parts(run: ResolvedRun) -> str:
    data, config = Path(str(run.config.data)), run.config
    if not all((data / part / MANIFEST_NAME).is_file() for part in PARTS):
        return ""
    return (
        f"data={config.data} was split into {', '.join(PARTS)}: {config.name} trains on all of its parts, the test "
        f"part included; for the training part alone give data={data / PARTS[0]}"
    )


def shares_validation(run: ResolvedRun) -> str:
    if run.validation is None:
        return ""
    num_shared, num_validated = count_shared_scenarios(*run.inputs)
    if not num_shared:
        return ""
    return (
        f"{num_shared} of the {num_validated} validation scenarios of {run.config.name} are in its training data too: "
        "for these, validation measures memory, not performance on new scenarios."
    )
