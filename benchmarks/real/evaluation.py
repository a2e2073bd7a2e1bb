"""The evaluation of a policy, ours and plain transformers in turn, over groups of the same items."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import harness
from benchmarks.real.naive import answer_row_by_row
from pft_core.data import DatasetManifest, read_records
from pft_core.evaluation import Answerer, Outcome
from pft_core.policies import add_lora, load_base, load_policy, load_tokenizer, save_adapter, settled
from pipelines.config import RunConfig
from pipelines.evaluate import AnsweringJob, answerers, answering_job_of, ask_here, base_reference

ITEMS_PER_GROUP = 8
LEAST_GROUPS = 2  # that both sides answer, whatever the time
CPU = torch.device("cpu")


def measure_evaluation(
    config: RunConfig, test: str, adapter: Path, *, num_items: int, limit_s: float, naive_s: float
) -> dict[str, Any]:
    """Answer the items of prepared data in random order. adapter: the folder to save the policy's adapter in."""
    job = job_of(config, test, adapter)
    answer, _ = answerers(job)
    naive = naive_answerer(job)
    records = list(read_records(Path(test), DatasetManifest.load(Path(test))))
    items = [(records[i], "one") for i in np.random.default_rng(0).permutation(len(records))]
    for each in (answer, naive):
        ask_here(items[:1], each, None)  # warm-up
    groups = [items[i : i + ITEMS_PER_GROUP] for i in range(0, len(items), ITEMS_PER_GROUP)]
    times, outcomes = alternate(groups, {"ours": answer, "naive": naive}, limit_s=limit_s, naive_s=naive_s)
    return evaluation_figures(times, outcomes, num_items=num_items)


def job_of(config: RunConfig, test: str, adapter: Path) -> AnsweringJob:
    """Write an untrained adapter, which costs as much as a trained one; return the job that asks this policy."""
    assert config.lora is not None, "the benchmark evaluates an adapter"
    precision = settled(config.train.precision)
    base = load_base(str(config.model), precision=precision, gradient_checkpointing=False, device=CPU)
    model = add_lora(base, config.lora, seed=config.seed)
    state = {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}
    save_adapter(model, state, adapter, updated=False)
    ref = replace(base_reference(config, test), adapter=str(adapter))
    job = answering_job_of(config, ref, ref.space, use_gpu=False)
    return replace(job, num_threads=int(config.scaling.threads_per_worker))


def naive_answerer(job: AnsweringJob) -> Answerer:
    """Load the policy once more for plain transformers, with nothing of ours in its forward."""
    model = load_policy(job.ref.base, job.ref.adapter, None, precision=job.precision, device=job.device)
    return partial(answer_row_by_row, model=model, tokenizer=load_tokenizer(job.ref.base), settings=job.settings)


def alternate(
    groups: Sequence[Any], answer: dict[str, Answerer], *, limit_s: float, naive_s: float
) -> tuple[harness.Times, dict[str, list[list[Outcome]]]]:
    """Ask both sides group after group while their time lasts; return seconds and outcomes by group."""
    times: harness.Times = {name: [] for name in answer}
    outcomes: dict[str, list[list[Outcome]]] = {name: [] for name in answer}
    for number, group in enumerate(groups):
        spent = sum(map(sum, times.values()))
        if number >= LEAST_GROUPS and spent > limit_s:
            break
        both = number < LEAST_GROUPS or (sum(times["naive"]) < naive_s and len(times["naive"]) == number)
        for name in ("ours", "naive") if both else ("ours",):
            seconds, answered = timed(partial(ask_here, group, answer[name], None))
            times[name].append(seconds)
            outcomes[name].append(answered[0])
        harness.say(f"group {number + 1} of {len(groups)}: {', '.join(f'{n} {s[-1]:.1f} s' for n, s in times.items())}")
    return times, outcomes


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = run()
    return time.perf_counter() - started, result


def evaluation_figures(
    times: harness.Times, outcomes: dict[str, list[list[Outcome]]], *, num_items: int
) -> dict[str, Any]:
    """Return the figures of the evaluation; a rate counts the items that were answered."""
    answered = {name: sum(map(len, groups)) for name, groups in outcomes.items()}
    per_s = answered["ours"] / sum(times["ours"])
    both = len(times["naive"])
    same = [
        (ours.chosen, ours.unconditioned) == (naive.chosen, naive.unconditioned)
        for pair in zip(outcomes["ours"], outcomes["naive"], strict=False)
        for ours, naive in zip(*pair, strict=True)
    ]
    source = "measured" if answered["ours"] >= num_items else f"extrapolated from {answered['ours']} items"
    return {
        "evaluate_items_per_s": round(per_s, 3),
        "evaluate_vs_naive": round(harness.ratio({n: s[:both] for n, s in times.items()}, "naive", "ours"), 3),
        "evaluate_208_s": round(num_items / per_s, 1),
        "evaluation": {
            "source_of_208": source,
            "items": answered,
            "questions_per_item": 3,
            "items_per_group": ITEMS_PER_GROUP,
            "same_choices": round(statistics.mean(same), 4),
            "seconds": {name: [round(s, 3) for s in own] for name, own in times.items()},
        },
    }
