"""Paired fine-tuning as a Ray Train job: `pft_core.training.fit` on every worker."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import UserCallback

from pft_core.errors import UserError
from pft_core.policies import MODEL_REF_NAME, ModelRef
from pft_core.prompts import PromptStyle
from pft_core.training import MemoryUse, out_of_memory
from pipelines.config import RunConfig, with_precision
from pipelines.console import console
from pipelines.embedded_data import with_embedded
from pipelines.interruption import on_interruption, stop_ray
from pipelines.jobs import (
    CHECKPOINTS,
    CONFIG_NAME,
    MAX_RESTARTS,
    ensure_ray,
    on_this_node,
    refuse_missing_resources,
    repeated_deaths_error,
    run_job,
    wait_for_the_head,
)
from pipelines.progress import forget_workers, receive
from pipelines.reporting import write_report
from pipelines.tracking import Tracker, read_metrics, tracked
from pipelines.train.encoding import encode_if_large
from pipelines.train.inputs import refuse_missing_inputs, warn_of_long_warmup
from pipelines.train.mailbox import Mailbox
from pipelines.train.process_group import ProcessGroup
from pipelines.train.publish import copy_policy, policy_kind, publish_policy
from pipelines.train.ray_checkpoints import mend_snapshot
from pipelines.train.resolved_run import ResolvedRun, RunLayers, resolve
from pipelines.train.trainer import Trainer, was_killed, were_all_killed, worker_environment
from pipelines.train.training_summary import print_cautions, training_report
from pipelines.train.worker import train_worker

PROGRESS_EVERY_S = 1.0
LOST = "a helper process of the run was lost: continuing from the last checkpoint"


class MailboxLost(Exception):
    """The mailbox of a run is lost, and with it metrics that were not written yet."""


def run(config: RunConfig, *, fresh: bool = False, run_dir: Path | None = None) -> dict[str, Any]:
    """Train a policy, or return the finished run with the same config, data and code.

    Result: run_dir, model_ref, adapter (None after full fine-tuning), steps, pairs, resumed_from.
    """
    known = refuse_missing_inputs(config)
    config = with_precision(with_embedded(config))
    ensure_ray()
    refuse_missing_resources("scaling.num_workers", config.scaling.num_workers, config.scaling.worker_resources)
    resolved = resolve(config, known)
    warn_of_long_warmup(config, resolved.manifest)
    print_cautions(resolved)
    key = resolved.key(kind="train")
    return run_job(config, partial(execute, resolved), fresh=fresh, kind="train", run_dir=run_dir, key=key)


def execute(run: ResolvedRun, run_dir: Path, key: str) -> dict[str, Any]:
    """Encode, train, publish. If it is interrupted, the same call continues from the last checkpoint."""
    started, config = time.perf_counter(), run.config
    with tracked(config, run_dir, key, inputs=run.inputs) as tracker:
        ref, layers, outcome = train_on_ray(run, encode_if_large(run), run_dir, tracker)
        report = training_report(run, layers, ref, run_dir, seconds=time.perf_counter() - started)
        for path in (run_dir / CONFIG_NAME, run_dir / MODEL_REF_NAME, *write_report(report, run_dir)):
            tracker.artifact(path)
        if config.lora is not None:
            tracker.artifact(run_dir / "adapter")
    adapter = str(run_dir / "adapter") if config.lora is not None else None
    return {"run_dir": str(run_dir), "model_ref": str(run_dir / MODEL_REF_NAME), "adapter": adapter, **outcome}


def train_on_ray(
    run: ResolvedRun,
    layers: RunLayers | None,
    run_dir: Path,
    tracker: Tracker,
    *,
    callbacks: Sequence[UserCallback] = (),
) -> tuple[ModelRef, RunLayers, dict[str, Any]]:
    """Train, or continue from the newest checkpoint, and publish the policy.

    layers: None if the first worker should encode. callbacks: get the metrics of every checkpoint. Returns the model
    reference, the layers, and steps, pairs and resumed_from.
    Raises UserError for one in a worker, and if processes are killed at every attempt.
    """
    for attempt in range(MAX_RESTARTS + 1):
        try:
            return train_once(run, layers, run_dir, tracker, callbacks)
        except (ray.exceptions.RayActorError, MailboxLost) as error:
            if getattr(error, "actor_init_failed", False):
                raise  # the error says why
        wait_for_the_head()
        if attempt < MAX_RESTARTS:
            console.print(LOST, style="yellow", soft_wrap=True)
    raise repeated_deaths_error("a helper process of the run", {})


def train_once(
    run: ResolvedRun, layers: RunLayers | None, run_dir: Path, tracker: Tracker, callbacks: Sequence[UserCallback]
) -> tuple[ModelRef, RunLayers, dict[str, Any]]:
    """Make one attempt of `train_on_ray`. Raises RayActorError or MailboxLost if a helper process is lost."""
    mailbox = ray.remote(num_cpus=0, scheduling_strategy=on_this_node())(Mailbox).remote()
    with killed_workers_explained(run.config, mailbox):
        result = fit_on_ray(run, layers, run_dir, tracker, mailbox, callbacks=callbacks)
    outcome = result.return_value
    if "error" in outcome:
        raise UserError(outcome["error"])
    if "lost" in outcome:
        raise MailboxLost
    best = best_checkpoint(run.config, result)
    layers = layers or ray.get(mailbox.encoded.remote()).layers
    assert layers is not None, "a training without layers has failed"
    return publish(run, layers.style, run_dir, last=result.checkpoint, best=best), layers, outcome


def fit_on_ray(
    run: ResolvedRun,
    layers: RunLayers | None,
    run_dir: Path,
    tracker: Tracker,
    mailbox: Any,
    *,
    callbacks: Sequence[UserCallback],
) -> ray.train.Result:
    """Run the workers; meanwhile metrics flow from rank 0 through the mailbox to the tracker."""
    config = run.config
    if (run_dir / CHECKPOINTS).exists():
        metrics = {row["step"]: row for row in read_metrics(run_dir)}
        mend_snapshot(run_dir / CHECKPOINTS, metrics, score="val_loss" if config.train.validate_every else None)
    trainer = Trainer(
        train_worker,
        train_loop_config={"run": run, "layers": layers, "mailbox": mailbox},
        backend_config=ProcessGroup(backend="nccl" if config.scaling.use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.scaling.num_workers,
            use_gpu=config.scaling.use_gpu,
            resources_per_worker=config.scaling.worker_resources,
        ),
        run_config=ray.train.RunConfig(
            name=CHECKPOINTS,
            storage_path=str(run_dir.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=MAX_RESTARTS),
            checkpoint_config=checkpoint_config(config),
            callbacks=list(callbacks),
            worker_runtime_env=worker_environment(config),
        ),
    )
    with on_interruption(stop_ray), pumping(mailbox, tracker):
        return trainer.fit()


@contextmanager
def killed_workers_explained(config: RunConfig, mailbox: Any) -> Iterator[None]:
    """Raise UserError if the workers were killed at every attempt; the planned memory use hints at the reason."""
    try:
        yield
    except ray.train.TrainingFailedError as error:
        planned: MemoryUse | None = ray.get(mailbox.planned.remote())
        if was_killed(error) and planned and planned.is_tight:
            raise out_of_memory(planned, config.train) from None
        if were_all_killed(error):
            settings = {
                "train.tokens_per_microbatch": config.train.tokens_per_microbatch,
                "scaling.num_workers": config.scaling.num_workers,
            }
            raise repeated_deaths_error("a training worker", settings) from None
        raise


def checkpoint_config(config: RunConfig) -> ray.train.CheckpointConfig:
    """Keep the last checkpoint and, with validation, the best one; Ray never deletes the last."""
    if not config.train.validate_every:
        return ray.train.CheckpointConfig(num_to_keep=2)
    return ray.train.CheckpointConfig(
        num_to_keep=2, checkpoint_score_attribute="val_loss", checkpoint_score_order="min"
    )


@contextmanager
def pumping(mailbox: Any, tracker: Tracker) -> Iterator[None]:
    """Write the mailbox's metrics from a thread of the driver while the block runs, and the rest at its end.

    Raises OSError if they cannot be written, and tells the workers, which would otherwise train in vain.
    """
    done = threading.Event()

    def pump_and_report_errors() -> None:
        try:
            pump(mailbox, tracker, done)
        except OSError as error:
            mailbox.cannot_write.remote(error)
            raise
        finally:
            forget_workers()

    with ThreadPoolExecutor(max_workers=1) as executor:
        pumped = executor.submit(pump_and_report_errors)
        try:
            yield
        finally:
            done.set()
            pumped.result()


def pump(mailbox: Any, tracker: Tracker, done: threading.Event) -> None:
    items: list[tuple[int, dict[str, float]]] = []
    is_last = False
    while items or not is_last:
        is_last = done.is_set()
        try:
            wait_s = 0.0 if is_last else PROGRESS_EVERY_S
            items = ray.get(mailbox.take.remote(num_written=len(items), wait_s=wait_s))
            receive(ray.get(mailbox.reports.remote()))
        except ray.exceptions.RayActorError:  # lost: no later checkpoint counts, and the workers notice
            return
        for step, metrics in items:
            tracker.log(step, metrics)


def best_checkpoint(config: RunConfig, result: ray.train.Result) -> ray.train.Checkpoint | None:
    return result.get_best_checkpoint("val_loss", "min") if config.train.validate_every else None


def publish(
    run: ResolvedRun,
    style: PromptStyle,
    run_dir: Path,
    *,
    last: ray.train.Checkpoint,
    best: ray.train.Checkpoint | None,
) -> ModelRef:
    """Copy the last policy, and the best by validation, out of the checkpoints; write the model reference."""
    if best is not None:
        with best.as_directory() as folder:
            copy_policy(Path(folder), run_dir / f"{policy_kind(run.config)}_best")
    with last.as_directory() as folder:
        return publish_policy(run, style, Path(folder), run_dir)
