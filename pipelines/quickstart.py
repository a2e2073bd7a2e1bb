"""The whole pipeline on embedded data: prepare, train two policies, evaluate three, write a report."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pft_core.data import DatasetManifest, opened, read_records
from pft_core.evaluation import METRICS, YARDSTICKS, EvaluationRow, report_rows
from pft_core.files import read_json
from pft_core.policies import settled
from pft_core.training import TrainSettings
from pipelines.config import RunConfig, load_config, with_precision
from pipelines.console import console
from pipelines.demos import TINY, Demo, ReportedPolicy
from pipelines.embedded_data import embedded_data, with_embedded
from pipelines.evaluate import EvaluateConfig, headline_metrics
from pipelines.evaluate import job as evaluate
from pipelines.jobs import CONFIG_NAME, ensure_ray, run_job
from pipelines.progress import stage
from pipelines.reporting import ItemCounts, RunReport, write_report
from pipelines.tracking import read_metrics, tracked, tracking_uri
from pipelines.train import job as train

CONTEXTS = ("train", "test", "test")  # the use of each data set, for MLflow


def run(config: RunConfig, *, demo: Demo = TINY, fresh: bool = False) -> dict[str, Any]:
    """Run all steps in `<storage>/<demo's name>`. Result: run_dir, report_json, report_html."""
    timings: dict[str, float] = {}
    name = str(config.data)
    say_duration(demo, config)
    with timed("prepare_and_base", timings):
        config = with_precision(with_embedded(config))
        tests = {split: embedded_data(name, config, split) for split in demo.tests}
    with timed("start_ray", timings):
        ensure_ray()

    def execute(run_dir: Path, key: str) -> dict[str, Any]:
        inputs = opened(config.data, *tests.values())
        with tracked(config, run_dir, key, inputs=inputs, contexts=CONTEXTS[: len(inputs)]) as tracker:
            parts = train_and_evaluate(demo, nested(config, key), tests, run_dir, timings)
            report: RunReport = {**parts, "config": config.model_dump()}
            report_json, report_html = write_report(report, run_dir)
            tracker.log(0, headline_metrics(report["rows"]))
            for path in (report_json, report_html, run_dir / CONFIG_NAME):
                tracker.artifact(path)
        return {"run_dir": str(run_dir), "report_json": str(report_json), "report_html": str(report_html)}

    run_dir = Path(config.storage) / demo.name
    return run_job(config, execute, fresh=fresh, kind="quickstart", run_dir=run_dir)


def say_duration(demo: Demo, config: RunConfig) -> None:
    """Print an estimate of how long the demonstration takes; nothing if a setting differs, as it may change that."""
    places = {"storage", "tracking"}
    if config.model_dump(exclude=places) != load_config(demo.recipe).model_dump(exclude=places):
        return
    precision = settled(with_precision(config).train.precision)
    console.print(
        f"{demo.name}: an estimated {demo.minutes[precision]} minutes on two quiet CPU cores in {precision}, less if "
        "parts of it are finished",
        soft_wrap=True,
    )


def nested(config: RunConfig, key: str) -> RunConfig:
    """Track the trainings and evaluations of this run as its children."""
    return config.model_copy(update={"tracking": config.tracking.model_copy(update={"parent": key})})


def train_and_evaluate(
    demo: Demo, config: RunConfig, tests: Mapping[str, str], run_dir: Path, timings: dict[str, float]
) -> RunReport:
    """Train and evaluate every policy; return one report of all. tests: the prepared folder of each test split."""
    models: list[str] = []
    reports: dict[str, list[RunReport]] = {}
    with stage("quickstart", len(demo.policies) + len(tests), has_inner_edges=True) as advance:
        for policy in demo.policies:
            console.rule(policy.name)
            with timed(f"train {policy.name}", timings):
                models.append(train_policy(policy, config, run_dir))
            advance(len(models))
        console.rule("evaluation")
        with timed("evaluate", timings):
            for split, data in tests.items():
                folder = run_dir / evaluation_of(split)
                reports[split] = evaluate_policies(demo.policies, models, config, data, folder)
                advance(len(models) + len(reports))
    timings["total"] = sum(timings.values())
    every = [report for of_split in reports.values() for report in of_split]
    parts = {part: reports[split][0]["digests"]["data"] for split, part in demo.tests.items() if part}
    return {
        "title": demo.title,
        "rows": [row for split in tests for row in rows_of(demo, split, reports[split], config, tests[split])],
        "items": summed([report["items"] for report in every]),
        "timings": timings,
        "config": config.model_dump(),
        "digests": {
            "test_data": DatasetManifest.load(Path(tests["test"])).data_digest,
            "policies": {p.name: r["digests"] for p, r in zip(demo.policies, reports["test"], strict=True)},
            **({"parts": parts} if parts else {}),
        },
        "training": {
            policy.name: read_metrics(Path(model).parent)
            for policy, model in zip(demo.policies, models, strict=True)
            if policy.objective is not None
        },
        "cautions": list(dict.fromkeys(caution for report in every for caution in report.get("cautions", []))),
        "notes": [demo.note],
    }


def evaluation_of(split: str) -> str:
    return "evaluation" if split == "test" else f"evaluation-{split}"


def rows_of(
    demo: Demo, split: str, reports: Sequence[RunReport], config: RunConfig, data: str
) -> Iterator[EvaluationRow]:
    """Yield the rows of a test split, of policies and yardsticks, with the name of its part also beside the axis."""
    part = demo.tests[split]
    of_yardsticks = [row for name in demo.yardsticks for row in yardstick_rows(name, config, Path(data))]
    for row in [*(row for report in reports for row in report["rows"]), *of_yardsticks]:
        yield {**row, "axis": f"{row['axis']} ({part})", "part": part} if part else row


def yardstick_rows(name: str, config: RunConfig, data: Path) -> list[EvaluationRow]:
    """Return the rows of a yardstick, which chooses by the options' words or position and needs no policy."""
    manifest = DatasetManifest.load(data)
    train_records, test_records = (list(read_records(Path(folder))) for folder in (str(config.data), data))
    outcomes = YARDSTICKS[name].outcomes(train_records, test_records, "one", space=manifest.space)
    rows = report_rows(outcomes, policy=YARDSTICKS[name].label, space=manifest.space, trained_poles=None)
    return [row for row in rows if not METRICS[row["metric"]].needs_base]


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
    chosen = shortened(config.train.with_objective(policy.objective), policy.share)
    folder = run_dir / policy.name.replace(":", "-")
    result = train.run(config.model_copy(update={"name": folder.name, "train": chosen}), run_dir=folder)
    return str(result["model_ref"])


def shortened(settings: TrainSettings, share: float) -> TrainSettings:
    """Return the settings of a training with a share of the steps, at least one, or of the epochs."""
    if settings.max_steps is None:
        return settings.model_copy(update={"epochs": share * settings.epochs})
    return settings.model_copy(update={"max_steps": max(1, round(share * settings.max_steps))})


def evaluate_policies(
    policies: Sequence[ReportedPolicy], models: Sequence[str], config: RunConfig, data: str, folder: Path
) -> list[RunReport]:
    """Evaluate all policies on one pool with as many actors as training workers; return their reports."""
    uri = tracking_uri(config.tracking.uri, Path(config.storage))
    requests = [
        EvaluateConfig(
            model=model,
            data=data,
            output=str(folder / policy.name.replace(":", "-")),
            policy=policy.name,
            prompt=config.prompt,
            precision=settled(config.train.precision),
            num_workers=config.scaling.num_workers,
            use_gpu=config.scaling.use_gpu,
            tracking=config.tracking.model_copy(update={"uri": uri}),
        )
        for policy, model in zip(policies, models, strict=True)
    ]
    results = evaluate.run_all(requests)
    return [read_json(Path(result["report_json"]), what="an evaluation report") for result in results]


@contextmanager
def timed(name: str, timings: dict[str, float]) -> Iterator[None]:
    """Add the wall-clock seconds of a block to `timings`."""
    started = time.perf_counter()
    yield
    timings[name] = time.perf_counter() - started
