"""The numbers derived from a config, which `pft show config` prints below it."""

import math
from pathlib import Path
from typing import Any

from pft_core.objectives import build_objective
from pipelines.config.run_config import RunConfig


def resolved_config(config: RunConfig) -> dict[str, Any]:
    """Return the whole config and, under `derived`, the numbers computed from it.

    No model is loaded: `pairs` counts the data before pairs longer than encoding.max_length are rejected.
    Raises UserError if `data` is a folder that `pft prepare` did not write.
    """
    train, scaling = config.train, config.scaling
    pair_tokens = build_objective(train).num_branches * config.encoding.max_length
    pairs_per_bin = train.pairs_per_microbatch or train.tokens_per_microbatch // pair_tokens
    pairs_per_worker = math.ceil(train.pairs_per_step / scaling.num_workers)
    derived: dict[str, Any] = {
        "longest_pair_tokens": pair_tokens,
        "longest_pair_fits_a_microbatch": pair_tokens <= train.tokens_per_microbatch,
        "pairs_per_step_and_worker": pairs_per_worker,
        "microbatches_per_step_at_most": math.ceil(pairs_per_worker / max(1, pairs_per_bin)),
        "lora_scale": config.lora.alpha / config.lora.r if config.lora else None,
    }
    return config.model_dump() | {"derived": derived | _schedule(config)}


def _schedule(config: RunConfig) -> dict[str, Any]:
    train = config.train
    pairs = None
    if config.data is not None and Path(config.data).is_dir():  # it may exist on the cluster only
        from pft_core.data import DatasetManifest

        pairs = DatasetManifest.load(Path(config.data)).pairs_out
    if pairs is None and train.max_steps is None:
        return {"pairs": None, "steps": None, "warmup_share": None}
    total = train.total_pairs(pairs or 0)
    steps = math.ceil(total / train.pairs_per_step)
    return {
        "pairs": pairs,
        "pairs_seen": total,
        "epochs": round(total / pairs, 3) if pairs else None,
        "steps": steps,
        "warmup_share": round(min(1.0, train.warmup_steps / steps), 3),
    }
