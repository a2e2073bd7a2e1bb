"""Log-probabilities under the reference policy: computed once per layer and base model, and cached on disk.

Preference objectives compare a policy with the model it started from. With LoRA that is the same model with its
adapter off, so no second copy of the weights is loaded, and later runs over the same pairs only read the file.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pft_core.data import SIDES
from pft_core.encoding import BranchedExample, plan_bins
from pft_core.files import digest, whole_file
from pft_core.policies import Precision, base_digest
from pft_core.scoring import BranchScorer
from pft_core.training.loop import gather
from pft_core.training.planning import ExampleStore, read_batch
from pft_core.training.progress import Stage, unwatched
from pft_core.training.ranks import num_ranks, this_rank


def reference_file(layer: Path, *, base: str, precision: str) -> Path:
    """Return the file with the log-probabilities of a layer. Its folder identifies data, tokenizer and prompt style;
    its name identifies the base's weights and their precision."""
    return layer / f"reference-{digest([base_digest(base), precision])}.safetensors"


def reference_logps(
    store: ExampleStore,
    scorer: BranchScorer,
    *,
    file: Path,
    tokens_per_batch: int,
    precision: Precision,
    device: torch.device,
    stage: Stage = unwatched,
) -> NDArray[np.float32]:
    """Return the log-probability of each branch of each example before training [E, B], with any adapter off.

    All ranks must call it: without a valid file, each scores a share of the examples and rank 0 writes the file. Call
    it before training, and before an engine wraps the scorer.
    """
    shape = len(store), len(store.label_counts([]).side_B)
    cached = _cached_logps(file, shape)
    # Ranks decide together: they may see a shared folder at different times, but must take the same path.
    if all(gather([cached is not None])) and cached is not None:
        return cached
    mine = range(this_rank(), len(store), num_ranks())
    logps_EB = np.zeros(shape, dtype=np.float32)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        share = _score(store, list(mine), scorer, tokens_per_batch=tokens_per_batch, device=device, stage=stage)
    for indices, rows in gather([share]):
        logps_EB[indices] = rows
    if this_rank() == 0:
        with whole_file(file) as unfinished:
            save_file({"logps": logps_EB}, unfinished)
    return logps_EB


def _cached_logps(file: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """Return the file's log-probabilities, or None if the file is missing, damaged or of another shape."""
    try:
        logps_EB = load_file(file)["logps"]
    except (OSError, SafetensorError, KeyError):
        return None
    return logps_EB if logps_EB.shape == shape else None


def _score(
    store: ExampleStore,
    indices: list[int],
    scorer: BranchScorer,
    *,
    tokens_per_batch: int,
    device: torch.device,
    stage: Stage,
) -> tuple[list[int], NDArray[np.float32]]:
    """Score these examples in bins of similar lengths, without dropout or adapter. Return the indices in the order
    scored, and their log-probabilities."""
    lengths = store.num_tokens(indices, sides=SIDES, shares_prefix=scorer.shares_prefix)
    num_branches = len(store.label_counts([]).side_B)
    order: list[int] = []
    rows = [np.zeros((0, num_branches), dtype=np.float32)]
    was_training = scorer.training
    scorer.eval()
    with torch.no_grad(), _without_adapter(scorer.model), stage("references", len(indices)) as advance:
        for members in plan_bins(lengths, tokens_per_microbatch=max([tokens_per_batch, *lengths])):
            chosen = [indices[m] for m in members]
            batch = read_batch(store, chosen, SIDES).to(device)
            rows.append(scorer(batch).float().cpu().numpy().reshape(-1, num_branches))
            order += chosen
            advance(len(order))
    scorer.train(was_training)
    return order, np.concatenate(rows)


def _without_adapter(model: Any) -> AbstractContextManager[None]:
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()


class ReferencedStore:
    """A store whose examples carry log-probabilities under a reference policy."""

    def __init__(self, store: ExampleStore, logps_EB: NDArray[np.float32]):
        self._store = store
        self._logps_EB = logps_EB
        self.label_counts = store.label_counts
        self.num_tokens = store.num_tokens

    def __len__(self) -> int:
        return len(self._store)

    def read(self, indices: Sequence[int]) -> list[BranchedExample]:
        """Return the examples at these indices, each branch with its reference log-probability."""
        pairs = zip(self._store.read(indices), self._logps_EB[list(indices)].tolist(), strict=True)
        return [_with_references(example, logps) for example, logps in pairs]


def _with_references(example: BranchedExample, logps: Sequence[float]) -> BranchedExample:
    branches = (replace(b, reference_logp=logp) for b, logp in zip(example.branches, logps, strict=True))
    return replace(example, branches=tuple(branches))
