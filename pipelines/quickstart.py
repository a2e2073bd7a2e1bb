"""The whole pipeline on the embedded data: prepare, train two policies, evaluate three, write a report."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pft_core.data import DatasetManifest, opened
from pft_core.evaluation import EvaluationRow
from pft_core.files import read_json
from pipelines.config import RunConfig
from pipelines.console import console
from pipelines.embedded_data import embedded_data, with_embedded
from pipelines.evaluate import EvaluateConfig, headline_metrics
from pipelines.evaluate import job as evaluate
from pipelines.jobs import CONFIG_NAME, ensure_ray, run_job
from pipelines.reporting import ItemCounts, RunReport, write_report
from pipelines.tracking import read_metrics, tracked, tracking_uri
from pipelines.train import job as train

CONTEXTS = ("train", "test")  # the use of each data set, for MLflow


@dataclass(frozen=True)
class ReportedPolicy:
    """A policy in the report, and its training objective (None: the base model)."""

    name: str
    objective: str | None


POLICIES = (
    ReportedPolicy("base", None),
    ReportedPolicy("sft:first", "one_sided:first"),
    ReportedPolicy("pft", "pft"),
)


def run(config: RunConfig, *, fresh: bool = False) -> dict[str, Any]:
    """Run all steps in `<storage>/quickstart`. Result: run_dir, report_json, report_html."""
    timings: dict[str, float] = {}
    with timed("prepare_and_base", timings):
        config = with_embedded(config)
        test_data = embedded_data(config, "test")
    with timed("start_ray", timings):
        ensure_ray()

    def execute(run_dir: Path, key: str) -> dict[str, Any]:
        with tracked(config, run_dir, key, inputs=opened(config.data, test_data), contexts=CONTEXTS) as tracker:
            parts = train_and_evaluate(nested(config, key), test_data, run_dir, timings)
            report: RunReport = {**parts, "config": config.model_dump()}
            report_json, report_html = write_report(report, run_dir)
            tracker.log(0, headline_metrics(report["rows"]))
            for path in (report_json, report_html, run_dir / CONFIG_NAME):
                tracker.artifact(path)
        return {"run_dir": str(run_dir), "report_json": str(report_json), "report_html": str(report_html)}

    run_dir = Path(config.storage) / "quickstart"
    return run_job(config, execute, fresh=fresh, kind="quickstart", run_dir=run_dir)


def nested(config: RunConfig, key: str) -> RunConfig:
    """Track the trainings and evaluations of this run as its children."""
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"parent": key})})


def train_and_evaluate(config: RunConfig, test_data: str, run_dir: Path, timings: dict[str, float]) -> RunReport:
    """Train and evaluate every policy; return one report of all."""
    rows: list[EvaluationRow] = []
    counts: list[ItemCounts] = []
    digests, curves = {}, {}
    models = []
    for policy in POLICIES:
        console.rule(policy.name)
        with timed(f"train {policy.name}", timings):
            models.append(train_policy(policy, config, run_dir))
    console.rule("evaluation")
    with timed("evaluate", timings):
        reports = evaluate_policies(models, config, test_data, run_dir)
    for policy, model, report in zip(POLICIES, models, reports, strict=True):
        rows += report["rows"]
        digests[policy.name] = report["digests"]
        counts.append(report["items"])
        if policy.objective is not None:
            curves[policy.name] = read_metrics(Path(model).parent)
    timings["total"] = sum(timings.values())
    return {
        "title": "PFT quickstart: one policy for both sides of a value conflict",
        "rows": rows,
        "items": summed(counts),
        "timings": timings,
        "config": config.model_dump(),
        "digests": {"test_data": DatasetManifest.load(Path(test_data)).data_digest, "policies": digests},
        "training": curves,
        "cautions": [caution for report in reports for caution in report.get("cautions", [])],
        "notes": [
            "Tiny model on generated data: these numbers show that the pipeline works, not how well a real policy does."
        ],
    }


def summed(counts: Sequence[ItemCounts]) -> ItemCounts:
    """Return the item counts summed over all policies."""
    reasons = Counter[str]()
    for each in counts:
        reasons.update(each["rejected_by_reason"])
    return {
        "in": sum(each["in"] for each in counts),
        "out": sum(each["out"] for each in counts),
        "rejected": sum(each["rejected"] for each in counts),
        "rejected_by_reason": dict(reasons),
    }


def train_policy(policy: ReportedPolicy, config: RunConfig, run_dir: Path) -> str:
    """Train one policy with Ray Train; return its model reference, or the base model for the untrained one."""
    if policy.objective is None:
        return str(config.model)
    chosen = config.train.with_objective(policy.objective)
    folder = run_dir / policy.name.replace(":", "-")
    result = train.run(config.model_copy(update={"name": folder.name, "train": chosen}), run_dir=folder)
    return str(result["model_ref"])


def evaluate_policies(models: Sequence[str], config: RunConfig, data: str, run_dir: Path) -> list[RunReport]:
    """Evaluate all policies on one pool with as many actors as training workers; return their reports."""
    uri = tracking_uri(config.tracking.uri, Path(config.storage))
    requests = [
        EvaluateConfig(
            model=model,
            data=data,
            output=str(run_dir / "evaluation" / policy.name.replace(":", "-")),
            policy=policy.name,
            prompt=config.prompt,
            precision=config.train.precision,
            num_workers=config.scaling.num_workers,
            use_gpu=config.scaling.use_gpu,
            tracking=config.tracking.model_copy(update={"uri": uri}),
        )
        for policy, model in zip(POLICIES, models, strict=True)
    ]
    results = evaluate.run_all(requests)
    return [read_json(Path(result["report_json"]), what="an evaluation report") for result in results]


@contextmanager
def timed(name: str, timings: dict[str, float]) -> Iterator[None]:
    """Add the wall-clock seconds of a block to `timings`."""
    started = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - started
