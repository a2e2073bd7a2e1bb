"""Build the policy and fit it: what a training worker does, under Ray Train or bare, as the same code."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pft_core.encoding import EncodedLayer
from pft_core.policies import (
    Precision,
    add_lora,
    checkpoint_activations,
    load_base,
    refuse_foreign_tokenizer,
    save_adapter,
    save_full,
)
from pft_core.scoring import BranchScorer
from pft_core.training import (
    ExampleStore,
    FitResult,
    LoopSettings,
    ReferencedStore,
    TrainContext,
    build_engine,
    examples_for,
    fit,
    largest_bin,
    map_large_blocks,
    plan_memory,
    reference_file,
    reference_logps,
)
from pipelines.config import RunConfig
from pipelines.console import console
from pipelines.train.resolved_run import Layers, ResolvedRun


def build_and_fit(run: ResolvedRun, layers: Layers, context: TrainContext) -> FitResult:
    """Load model and data, wrap the scorer into the engine, train."""
    config, objective, tokenizer = run.config, run.objective, run.tokenizer.loaded
    torch.set_num_threads(config.scaling.threads_per_worker)
    map_large_blocks()
    store: ExampleStore = EncodedLayer(Path(layers.train))
    validation: ExampleStore | None = EncodedLayer(Path(layers.validation)) if layers.validation else None
    model = build_model(config, context.device)
    refuse_foreign_tokenizer(model, tokenizer)
    scorer = BranchScorer(model, backend=config.train.attention_backend)
    settings = LoopSettings.of(
        config.train, objective, num_pairs=len(store), seed=config.seed, shares_prefix=scorer.shares_prefix
    )
    if config.train.gradient_checkpointing == "auto":
        num_tokens = largest_bin(settings, examples_for(objective, store), num_ranks=context.world_size)
        checkpoint_where_memory_is_short(scorer, num_tokens, precision=config.train.precision, context=context)
    if objective.uses_reference:
        referenced = partial(with_references, scorer=scorer, config=config, device=context.device)
        store = referenced(store, Path(layers.train))
        validation = validation and referenced(validation, Path(str(layers.validation)))
    engine = build_engine(scorer, config.engine, config.train, device=context.device)

    def save_policy(folder: Path, state: dict[str, Tensor], steps_done: int) -> None:
        if config.lora is None:
            save_full(model, tokenizer, state, folder)
        else:
            # The first step of a warm-up has a learning rate of zero: lora_B is still zero after it.
            save_adapter(model, state, folder, updated=steps_done > 1 or config.train.warmup_steps == 0)

    store = examples_for(objective, store)
    return fit(settings, store=store, engine=engine, context=context, save_policy=save_policy, validation=validation)


def build_model(config: RunConfig, device: torch.device) -> Any:
    """Load the base and, unless it is fully fine-tuned, add the adapter, its first weights drawn from the seed."""
    base = load_base(
        str(config.model),
        # Weights that are trained stay float32; a frozen base may be rounded.
        precision=config.train.precision if config.lora else "fp32",
        gradient_checkpointing=config.train.gradient_checkpointing is True,
        device=device,
    )
    if config.lora is None:
        return base
    return add_lora(base, config.lora, seed=config.seed)


def checkpoint_where_memory_is_short(
    scorer: BranchScorer, num_tokens: int, *, precision: Precision, context: TrainContext
) -> None:
    """Compute activations twice if those of a bin of `num_tokens` do not fit; every rank decides alike."""
    plan = plan_memory(scorer, num_tokens=num_tokens, precision=precision, device=context.device)
    if not plan.fits:
        checkpoint_activations(scorer.model)
    if context.rank == 0:
        console.print(
            f"activation checkpointing {'off' if plan.fits else 'on'}: up to {num_tokens} tokens at once need "
            f"{plan.needed / 1e9:.3g} GB beside the weights, {plan.free / 1e9:.3g} GB are free"
        )


def with_references(
    store: ExampleStore, layer: Path, *, scorer: BranchScorer, config: RunConfig, device: torch.device
) -> ReferencedStore:
    """Give every branch its log-probability under the policy before training, from disk where it is known."""
    precision = config.train.precision
    logps_EB = reference_logps(
        store,
        scorer,
        file=reference_file(layer, base=str(config.model), precision=precision),
        tokens_per_batch=config.train.tokens_per_microbatch,
        precision=precision,
        device=device,
    )
    return ReferencedStore(store, logps_EB)
