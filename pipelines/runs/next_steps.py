"""The commands that use a run: continue, evaluate, serve, or ask it."""

import shlex
from pathlib import Path

from pft_core.policies import MODEL_REF_NAME
from pipelines.jobs import CONFIG_NAME
from pipelines.reporting import REPORT_NAMES
from pipelines.runs.run import Run


def next_steps(run: Run) -> dict[str, str]:
    """Return commands by purpose; only those that this run can take."""
    path, steps = Path(run.path), {}
    place = shlex.quote(run.path)
    if run.status in ("interrupted", "failed"):
        steps["continue"] = continue_command(run)
    if (path / REPORT_NAMES[1]).is_file():
        steps["report"] = str(path / REPORT_NAMES[1])
    if (path / MODEL_REF_NAME).is_file():
        steps["evaluate"] = (
            f"pft evaluate --model {place} --data TEST_DATA --output {shlex.quote(run.path + '-evaluation')}"
        )
        steps["serve"] = f"pft serve quickstart policy={place} adapters={{}} examples=null"
        steps["chat"] = f"pft chat {place}"
    return steps


def continue_command(run: Run) -> str:
    """Return the command that continues a run; only a training's config.yaml is a recipe for the same folder."""
    if run.kind == "train":
        return f"pft train {shlex.quote(str(Path(run.path) / CONFIG_NAME))}"
    return f"the command that started this {run.kind}"
