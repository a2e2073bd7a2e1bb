"""Our training and TRL's, on the same pairs with the same weights and loss, as trainings that take turns."""

import statistics
import tempfile
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PrinterCallback, TrainerCallback

from benchmarks import harness, trl_step
from benchmarks.real.peak_memory import PeakMemory
from benchmarks.real.turns import Facts, Pause, Trainee, take_turns
from pft_core.encoding import BranchedExample, EncodedLayer
from pft_core.policies import add_lora, load_base, settled
from pft_core.training import LocalContext, LoopSettings
from pipelines.config import RunConfig
from pipelines.train import RunLayers, build_and_fit, encode_layers, resolve

ROWS_PER_PASS = 4  # of TRL; two pairs, about as many tokens as ours runs at once
CPU = torch.device("cpu")


def resolved(config: RunConfig) -> Any:
    """Resolve the config with TRL's loss, the mean over all label tokens, computed on whole pairs."""
    run = resolve(config.model_copy(update={"train": config.train.with_objective("mixed")}))
    return replace(run, objective=replace(run.objective, splits_pairs=False))


def train_ours(pause: Pause, config: RunConfig, layers: RunLayers) -> None:
    """Train as a worker of `pft train` does, and report its metrics and its memory."""
    memory = PeakMemory()
    context = LocalContext(
        Path(tempfile.mkdtemp()), device=CPU, log=lambda _, metrics: pause(metrics | {"peak_mb": memory.mb()})
    )
    build_and_fit(
        resolved(config), layers, context,
        report=lambda use: pause({"counted_mb": use.needed / 2**20, "most_tokens_at_once": use.tokens_at_once}),
    )  # fmt: skip


def train_trl(pause: Pause, config: RunConfig, layers: RunLayers, head_on_labels: bool) -> None:
    """Train with SFTTrainer. head_on_labels: let its head score label positions only, as on a GPU."""
    train, precision = config.train, settled(config.train.precision)
    assert config.lora is not None, "the benchmark trains an adapter"
    torch.set_num_threads(int(config.scaling.threads_per_worker))
    base = load_base(str(config.model), precision=precision, gradient_checkpointing=False, device=CPU)
    model = add_lora(base, config.lora, seed=config.seed)
    steps_of_run = LoopSettings.of(
        train, resolved(config).objective, num_pairs=len(EncodedLayer(Path(layers.train))), seed=config.seed,
        shares_prefix=True,
    )  # fmt: skip
    trainer = trl_step.sft_trainer(
        model, trl_step.sft_rows(pairs_in_order(steps_of_run, layers)), use_cpu=True, bf16=precision == "bf16",
        per_device_train_batch_size=ROWS_PER_PASS,
        gradient_accumulation_steps=2 * train.pairs_per_step // ROWS_PER_PASS, max_steps=steps_of_run.num_steps,
        learning_rate=train.lr, lr_scheduler_type="linear", warmup_steps=train.warmup_steps,
        weight_decay=train.weight_decay, max_grad_norm=train.max_grad_norm, train_sampling_strategy="sequential",
        logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # it prints to stdout
    trainer.add_callback(Pausing(pause))
    with trl_step.head_on_labels() if head_on_labels else nullcontext():
        trainer.train()


class Pausing(TrainerCallback):
    """Pause before the first step, and after every step with its loss."""

    def __init__(self, pause: Pause):
        self._pause = pause

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._pause({})

    def on_log(self, *_: Any, logs: Facts, **__: Any) -> None:
        if "loss" in logs:
            self._pause({"loss": float(logs["loss"])})


def pairs_in_order(settings: LoopSettings, layers: RunLayers) -> list[BranchedExample]:
    """Return the pairs of the run in the order in which our steps read them."""
    indices = settings.order.step_indices(
        0, examples_per_step=settings.total_pairs, total_examples=settings.total_pairs
    )
    return EncodedLayer(Path(layers.train)).read(indices)


def measure_training(config: RunConfig, *, limit_s: float) -> dict[str, Any]:
    """Let the trainings take turns for the steps of the config, one of them for warm-up, within the limit."""
    layers = encode_layers(resolved(config))
    with ExitStack() as running:
        trainees = {
            "ours": Trainee("ours", train_ours, config, layers),
            "trl": Trainee("trl", train_trl, config, layers, False),
            "trl_head_on_labels": Trainee("trl_head_on_labels", train_trl, config, layers, True),
        }
        for trainee in trainees.values():
            running.callback(trainee.stop)
        rounds = int(config.train.max_steps or 1) - 1
        steps = take_turns(trainees, rounds=rounds, limit_s=limit_s)
        return training_figures(config, trainees["ours"].facts, steps)


def training_figures(config: RunConfig, planned: Facts, steps: dict[str, list[Facts]]) -> dict[str, Any]:
    """Return the figures of the trainings; the first step of each is for warm-up."""
    times, cpu_times = (
        {name: [facts[key] for facts in own[1:]] for name, own in steps.items()} for key in ("seconds", "cpu_seconds")
    )
    ours, losses = steps["ours"], {name: own[0]["loss"] for name, own in steps.items()}
    return {
        "train_tokens_per_s": round(statistics.median(facts["tokens_per_s"] for facts in ours[1:]), 1),
        "train_peak_mb": round(ours[-1]["peak_mb"]),
        "counted_mb": round(planned["counted_mb"]),
        "vs_trl": round(harness.ratio(times, "trl", "ours"), 3),
        "vs_trl_head_on_labels": round(harness.ratio(times, "trl_head_on_labels", "ours"), 3),
        "training": {
            "rounds": len(times["ours"]),
            "pairs_per_step": config.train.pairs_per_step,
            "most_tokens_at_once": planned["most_tokens_at_once"],
            "seconds_per_step": {name: round(statistics.median(own), 3) for name, own in times.items()},
            "seconds": {name: [round(s, 3) for s in own] for name, own in times.items()},
            # Less noisy beside other work, but waiting threads count.
            "cpu_time_ratios": {
                name: round(harness.ratio(cpu_times, name, "ours"), 3) for name in times if name != "ours"
            },
            # The first step's, from the same weights.
            "loss": {name: round(loss, 5) for name, loss in losses.items()},
            "loss_deviation": max(abs(loss / losses["ours"] - 1) for loss in losses.values()),
        },
    }
