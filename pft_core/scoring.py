"""BranchScorer: a batch of branches in, the log-probability of each branch's labels out.

The only place that runs the model for likelihoods. Engines wrap *it*: under ZeRO-3 the hooks of the root module must
fire, so nothing outside calls the model's parts. Back-ends say how branches are laid out; `separate` (every branch
with its own copy of the prefix) is the reference that the others must equal.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pft_core.batching import BranchedBatch
from pft_core.errors import UserError


class BranchScorer(nn.Module):
    """Base model (with or without LoRA) that scores branches.

    forward(batch) -> log-probabilities [R], float32: per branch the sum over its label tokens.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model
        refuse_scaled_logits(self._causal_lm().config)

    def forward(self, batch: BranchedBatch) -> Tensor:
        return separate_logps(self._causal_lm(), batch)

    def _causal_lm(self) -> Any:
        # Looked up at call time: stored, it would be registered as a second child and its weights saved twice.
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model


def separate_logps(causal_lm: Any, batch: BranchedBatch) -> Tensor:
    """Score each branch on its own: right-padded rows [R, L], head on label positions only. Returns [R]."""
    rows = _prefixed_rows(batch)
    ids_RL = pad_sequence([ids for ids, _ in rows], batch_first=True)
    labels_RL = pad_sequence([mask for _, mask in rows], batch_first=True)
    lengths_R = torch.tensor([len(ids) for ids, _ in rows], device=ids_RL.device)
    attention_RL = torch.arange(ids_RL.shape[1], device=ids_RL.device) < lengths_R[:, None]
    hidden_RLD = causal_lm.get_decoder()(
        input_ids=ids_RL, attention_mask=attention_RL.long(), use_cache=False
    ).last_hidden_state
    # A token is predicted by the position before it.
    row_N, position_N = labels_RL[:, 1:].nonzero(as_tuple=True)
    logps_N = label_logps(causal_lm, hidden_RLD[row_N, position_N], ids_RL[row_N, position_N + 1])
    # With no labels at all (an idle rank's bin) zero rows still tie the sum to every weight. Under ZeRO-3 all ranks
    # must call the modules in one order: a second call of the head here would leave the others waiting for ever.
    return torch.zeros(batch.num_branches, device=ids_RL.device).index_add(0, row_N, logps_N)


def label_logps(causal_lm: Any, hidden_ND: Tensor, token_N: Tensor) -> Tensor:
    """Return the float32 log-probability [N] of each token given the hidden state before it."""
    logits_NV = causal_lm.get_output_embeddings()(hidden_ND).float()
    return logits_NV.log_softmax(-1).gather(-1, token_N[:, None]).squeeze(-1)


def _prefixed_rows(batch: BranchedBatch) -> list[tuple[Tensor, Tensor]]:
    prefixes = batch.prefix_ids.split(batch.prefix_lengths.tolist())
    branches = batch.branch_ids.split(batch.branch_lengths.tolist())
    masks = batch.label_mask.split(batch.branch_lengths.tolist())
    rows = []
    for example, ids, mask in zip(batch.branch_example.tolist(), branches, masks, strict=True):
        prefix = prefixes[example]
        rows.append((torch.cat([prefix, ids]), torch.cat([torch.zeros_like(prefix, dtype=torch.bool), mask])))
    return rows


def refuse_scaled_logits(config: Any) -> None:
    """Raise UserError for architectures that change logits after the head: scoring would miss the change."""
    for key in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise UserError(
                f"model type {config.model_type!r} changes its logits after the head ({key}); it is not supported yet"
            )
