"""Build the policy and fit it: the same code in a Ray Train worker and in a plain process."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pft_core.encoding import EncodedLayer
from pft_core.policies import (
    add_lora,
    checkpoint_activations,
    load_base,
    refuse_foreign_tokenizer,
    save_adapter,
    save_full,
    settled,
)
from pft_core.scoring import BranchScorer
from pft_core.training import (
    ExampleStore,
    FitResult,
    LoopSettings,
    MemoryFallback,
    MemoryUse,
    NonFiniteError,
    ReferencedStore,
    TrainContext,
    build_engine,
    examples_for,
    fit,
    largest_bin,
    loading_memory_errors,
    longest_pair,
    map_large_blocks,
    memory_errors,
    plan_memory,
    reference_file,
    reference_logps,
)
from pipelines.config import RunConfig
from pipelines.train.nonfinite_rows import nonfinite_rows, remedy
from pipelines.train.resolved_run import ResolvedRun, RunLayers

MAPPED_SHARE = 1 / 16  # of the free memory; below it, returning pages to the system costs more time than it helps


def build_and_fit(
    run: ResolvedRun,
    layers: RunLayers,
    context: TrainContext,
    *,
    memory_fallback: MemoryFallback = MemoryFallback.PLANNED,
    report: Callable[[MemoryUse], None] = lambda use: None,
) -> FitResult:
    """Load model and data, build the engine around the scorer, and train.

    memory_fallback: the least to do to save memory. report: called before the first step with the expected memory use.
    Raises OutOfMemoryError; a call with the next fallback then continues from the last checkpoint.
    """
    config, objective = run.config, run.objective
    if config.scaling.threads_per_worker != "auto":  # else torch follows the worker's environment
        torch.set_num_threads(config.scaling.threads_per_worker)
    store = EncodedLayer(Path(layers.train))
    with loading_memory_errors(context.device):
        model = build_model(config, context.device)
        refuse_foreign_tokenizer(model, run.tokenizer.loaded)
        scorer = BranchScorer(model, backend=config.train.attention_backend)
        settings = LoopSettings.of(
            config.train, objective, num_pairs=len(store), seed=config.seed, shares_prefix=scorer.shares_prefix
        )
        settings, use = plan_and_save_memory(
            scorer, settings, examples_for(objective, store), memory_fallback, context=context
        )
    if context.rank == 0:
        context.say(f"activation checkpointing {'on' if use.memory_fallback else 'off'}: {use}")
    if use.needed > MAPPED_SHARE * use.free:
        map_large_blocks()
    report(use)
    with memory_errors(use, config.train):
        return fit_scorer(run, layers, scorer, settings, context)


def fit_scorer(
    run: ResolvedRun, layers: RunLayers, scorer: BranchScorer, settings: LoopSettings, context: TrainContext
) -> FitResult:
    """Add reference log-probabilities if the objective needs them, build the engine, run the steps."""
    config, objective = run.config, run.objective
    store: ExampleStore = EncodedLayer(Path(layers.train))
    validation: ExampleStore | None = EncodedLayer(Path(layers.validation)) if layers.validation else None
    if objective.uses_reference:
        referenced = partial(with_references, scorer=scorer, config=config, context=context)
        store = referenced(store, Path(layers.train))
        validation = validation and referenced(validation, Path(str(layers.validation)))
    engine = build_engine(scorer, config.engine, config.train, device=context.device)

    def save_policy(folder: Path, state: dict[str, Tensor], steps_done: int) -> None:
        if config.lora is None:
            save_full(scorer.model, run.tokenizer.loaded, state, folder)
        else:
            # The first warm-up step has a learning rate of zero, so lora_B is still zero after it.
            save_adapter(scorer.model, state, folder, updated=steps_done > 1 or config.train.warmup_steps == 0)

    store = examples_for(objective, store)
    arguments: dict[str, Any] = {
        "engine": engine,
        "context": context,
        "save_policy": save_policy,
        "validation": validation,
    }
    try:
        return fit(settings, store=store, **arguments)
    except NonFiniteError as error:
        rows = nonfinite_rows(Path(str(config.data)), str(config.model), run.manifest, error.example_ids)
        advice = f"{remedy(config.train.precision)}{f', and check these rows: {rows}' if rows else ''}"
        raise NonFiniteError(f"{error}: {advice}", error.example_ids) from None


def build_model(config: RunConfig, device: torch.device) -> Any:
    """Load the base and, for LoRA, add an adapter initialized from the seed."""
    base = load_base(
        str(config.model),
        # Trained weights stay float32; a frozen base may be rounded.
        precision=settled(config.train.precision) if config.lora else "fp32",
        gradient_checkpointing=config.train.gradient_checkpointing is True,
        device=device,
    )
    if config.lora is None:
        return base
    return add_lora(base, config.lora, seed=config.seed)


def plan_and_save_memory(
    scorer: BranchScorer,
    settings: LoopSettings,
    store: ExampleStore,
    memory_fallback: MemoryFallback,
    *,
    context: TrainContext,
) -> tuple[LoopSettings, MemoryUse]:
    """Apply `memory_fallback`, and also recompute activations if they would not fit; all ranks decide alike.

    Returns the settings to train with, and the expected memory use.
    """
    train, num_ranks = settings.train, context.world_size
    if memory_fallback == MemoryFallback.HALVED:
        halved = train.model_copy(update={"tokens_per_microbatch": train.tokens_per_microbatch // 2})
        settings = replace(settings, train=halved)
    num_tokens = largest_bin(settings, store, num_ranks=num_ranks)
    precision = settled(train.precision)
    measure = partial(plan_memory, scorer, num_tokens=num_tokens, precision=precision, device=context.device)
    plan = measure()
    if train.gradient_checkpointing == "auto" and (memory_fallback or not plan.fits):
        memory_fallback = max(memory_fallback, MemoryFallback.RECOMPUTED)
        checkpoint_activations(scorer.model)
        plan = measure()
    return settings, MemoryUse(memory_fallback, plan.needed, plan.free, num_tokens, longest_pair(settings, store))


def with_references(
    store: ExampleStore, layer: Path, *, scorer: BranchScorer, config: RunConfig, context: TrainContext
) -> ReferencedStore:
    """Add to every branch its log-probability under the initial policy, read from disk if it was computed before."""
    precision = settled(config.train.precision)
    logps_EB = reference_logps(
        store,
        scorer,
        file=reference_file(layer, base=str(config.model), precision=precision),
        tokens_per_batch=config.train.tokens_per_microbatch,
        precision=precision,
        device=context.device,
        stage=context.stage,
    )
    return ReferencedStore(store, logps_EB)
