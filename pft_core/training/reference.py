"""Log-probabilities under the reference policy: computed once per data set, wording and base, and kept on disk.

Preference objectives compare a policy with the model it started from. With LoRA that is the same model with its
adapter off, so no second copy of the weights is loaded, and later runs over the same pairs load none of it at all.
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
from pft_core.training.ranks import num_ranks, this_rank


def reference_file(layer: Path, *, base: str, precision: str) -> Path:
    """Return where the log-probabilities of a layer are kept: its folder stands for data, tokenizer and wording, the
    name for the base's weights and their precision."""
    return layer / f"reference-{digest([base_digest(base), precision])}.safetensors"


def reference_logps(
    store: ExampleStore,
    scorer: BranchScorer,
    *,
    file: Path,
    tokens_per_batch: int,
    precision: Precision,
    device: torch.device,
) -> NDArray[np.float32]:
    """Return the log-probability of each branch of each example before training [E, B], adapter off where there is one.

    All ranks call: each scores a share where there is no file yet, and rank 0 writes it. The scorer must not be wrapped
    by an engine yet, nor trained.
    """
    shape = len(store), len(store.label_counts([]).side_B)
    known = _known(file, shape)
    # Decided together: ranks that see a shared folder at different times must not part ways.
    if all(gather([known is not None])) and known is not None:
        return known
    mine = range(this_rank(), len(store), num_ranks())
    logps_EB = np.zeros(shape, dtype=np.float32)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        share = _score(store, list(mine), scorer, tokens_per_batch=tokens_per_batch, device=device)
    for indices, rows in gather([share]):
        logps_EB[indices] = rows
    if this_rank() == 0:
        with whole_file(file) as unfinished:
            save_file({"logps": logps_EB}, unfinished)
    return logps_EB


def _known(file: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """What is kept on disk; None where there is no such file, or a damaged one, which is then made again."""
    try:
        logps_EB = load_file(file)["logps"]
    except (OSError, SafetensorError, KeyError):
        return None
    return logps_EB if logps_EB.shape == shape else None


def _score(
    store: ExampleStore, indices: list[int], scorer: BranchScorer, *, tokens_per_batch: int, device: torch.device
) -> tuple[list[int], NDArray[np.float32]]:
    """Score these examples in bins of like lengths, dropout and adapter off; return indices in the order scored."""
    lengths = store.num_tokens(indices, sides=SIDES, shares_prefix=scorer.shares_prefix)
    num_branches = len(store.label_counts([]).side_B)
    order: list[int] = []
    rows = [np.zeros((0, num_branches), dtype=np.float32)]
    was_training = scorer.training
    scorer.eval()
    with torch.no_grad(), _without_adapter(scorer.model):
        for members in plan_bins(lengths, tokens_per_microbatch=max([tokens_per_batch, *lengths])):
            chosen = [indices[m] for m in members]
            batch = read_batch(store, chosen, SIDES).to(device)
            rows.append(scorer(batch).float().cpu().numpy().reshape(-1, num_branches))
            order += chosen
    scorer.train(was_training)
    return order, np.concatenate(rows)


def _without_adapter(model: Any) -> AbstractContextManager[None]:
    return model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext()


class ReferencedStore:
    """A store whose examples carry the log-probabilities of a reference policy."""

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
