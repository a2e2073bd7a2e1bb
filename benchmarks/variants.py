"""The two losses of the benchmarks, and the paper's scheme: two padded passes with all logits."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pft_core.data import SIDES
from pft_core.encoding import BranchedExample

BETA = 0.1


def loss_of(kind: str, logps_R: Tensor, labels_R: Tensor, reference_R: Tensor) -> Tensor:
    """Return a loss from branch log-probabilities with alternating sides. kind: `pft`, the mean cross-entropy over both
    sides' labels, which every variant can compute (half the paired loss if both sides have equally many); else DPO."""
    if kind == "pft":
        return -logps_R.sum() / labels_R.sum()
    margins = (logps_R - reference_R).view(-1, 2)
    return -F.logsigmoid(BETA * (margins[:, 0] - margins[:, 1])).mean()


def padded_logps(
    model: Any, pairs: Sequence[BranchedExample], *, padded_to: int | None, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return log-probabilities and label counts [R] with alternating sides. Runs one pass per side over rows of width
    `padded_to` (None: the longest row), with logits of the whole vocabulary for every token."""
    width = padded_to or max(len(e.prefix_ids) + len(b.input_ids) for e in pairs for b in e.branches)
    sides = [_side_logps(model, pairs, side, width, device) for side in SIDES]
    logps, counts = (torch.stack([result[i] for result in sides], dim=1).flatten() for i in (0, 1))
    return logps, counts


def _side_logps(
    model: Any, pairs: Sequence[BranchedExample], side: int, width: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    ids, targets, mask = (rows.to(device) for rows in _padded_rows(pairs, side, width))
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
    nll = F.cross_entropy(logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=-100, reduction="none")
    return -nll.view(len(pairs), -1).sum(1), (targets != -100).sum(1)


def _padded_rows(pairs: Sequence[BranchedExample], side: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, targets (-100: no label) and attention mask of one side, each [E, width]."""
    ids, mask = torch.zeros(len(pairs), width, dtype=torch.long), torch.zeros(len(pairs), width, dtype=torch.long)
    targets = torch.full_like(ids, -100)
    for row, example in enumerate(pairs):
        branch = example.branches[side]
        start, end = len(example.prefix_ids), len(example.prefix_ids) + len(branch.input_ids)
        ids[row, :start], ids[row, start:end] = torch.from_numpy(example.prefix_ids), torch.from_numpy(branch.input_ids)
        targets[row, start:end] = ids[row, start:end].masked_fill(~torch.from_numpy(branch.label_mask), -100)
        mask[row, :end] = 1
    return ids, targets, mask
