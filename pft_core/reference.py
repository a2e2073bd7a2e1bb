"""Log-probabilities under the reference policy: computed once per data set, wording and base, and kept on disk.

Preference objectives compare a policy with the model it started from. With LoRA that is the same model with its
adapter off, so no second copy of the weights is loaded, and later runs over the same pairs load none of it at all.
"""

import os
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import try_to_load_from_cache
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from pft_core.artifacts import digest, file_sha256
from pft_core.batching import plan_bins
from pft_core.engine import num_ranks, this_rank
from pft_core.loop import gather
from pft_core.planning import ExampleStore, read_batch
from pft_core.preferences import SIDES
from pft_core.scoring import BranchScorer


def reference_file(layer: Path, *, base: str, precision: str) -> Path:
    """Return where the log-probabilities of a layer are kept: its folder stands for data, tokenizer and wording, the
    name for the base's weights and their precision."""
    return layer / f"reference-{digest([base_digest(base), precision])}.safetensors"


def base_digest(name_or_path: str) -> str:
    """Return the digest of a model folder's weights and config; of a hub model, of its name and revision."""
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        # Loaded before it is asked for: its snapshot in the cache is named after the revision.
        return digest([name_or_path, str(try_to_load_from_cache(name_or_path, "config.json"))])
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin"), folder / "config.json"])
    return digest({file.name: file_sha256(file) for file in files})


def reference_logps(
    store: ExampleStore, scorer: BranchScorer, *, file: Path, tokens_per_batch: int, device: torch.device
) -> NDArray[np.float32]:
    """Return the log-probability of each side of each example under the model without its adapter [E, 2].

    All ranks call: each scores a share where there is no file yet, and rank 0 writes it. The scorer must not be wrapped
    by a partitioning engine yet.
    """
    known = _known(file, len(store))
    # Decided together: ranks that see a shared folder at different times must not part ways.
    if all(gather([known is not None])) and known is not None:
        return known
    mine = range(this_rank(), len(store), num_ranks())
    logps_E2 = np.zeros((len(store), len(SIDES)), dtype=np.float32)
    for indices, rows in gather([_score(store, list(mine), scorer, tokens_per_batch=tokens_per_batch, device=device)]):
        logps_E2[indices] = rows
    if this_rank() == 0:
        unfinished = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        save_file({"logps": logps_E2}, unfinished)
        unfinished.replace(file)
    return logps_E2


def _known(file: Path, num_examples: int) -> NDArray[np.float32] | None:
    """What is kept on disk; None where there is no such file, or a damaged one, which is then made again."""
    try:
        logps_E2 = load_file(file)["logps"]
    except (OSError, SafetensorError, KeyError):
        return None
    return logps_E2 if logps_E2.shape == (num_examples, len(SIDES)) else None


def _score(
    store: ExampleStore, indices: list[int], scorer: BranchScorer, *, tokens_per_batch: int, device: torch.device
) -> tuple[list[int], NDArray[np.float32]]:
    """Score these examples in bins of like lengths, dropout and adapter off; return indices in the order scored."""
    lengths = store.num_tokens(indices, sides=SIDES, shares_prefix=scorer.shares_prefix)
    order: list[int] = []
    rows = [np.zeros((0, len(SIDES)), dtype=np.float32)]
    was_training = scorer.training
    scorer.eval()
    with torch.no_grad(), scorer.model.disable_adapter():
        for members in plan_bins(lengths, tokens_per_microbatch=max([tokens_per_batch, *lengths])):
            chosen = [indices[m] for m in members]
            batch = read_batch(store, chosen, SIDES).to(device)
            rows.append(scorer(batch).float().cpu().numpy().reshape(-1, len(SIDES)))
            order += chosen
    scorer.train(was_training)
    return order, np.concatenate(rows)
