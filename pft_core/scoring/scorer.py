"""BranchScorer: a batch of branches in, the log-probability of each branch's labels out.

The only place that runs the model for likelihoods. Engines wrap *it*: under ZeRO-3 the hooks of the root module must
fire, so nothing outside calls the model's parts. Back-ends say how branches are laid out; `separate` (every branch
with its own copy of the prefix) is the reference that the shared-prefix ones equal.
"""

import logging
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pft_core.encoding import BranchedBatch
from pft_core.errors import UserError
from pft_core.scoring.attention import SharedAttention, plant
from pft_core.scoring.label_head import label_logps
from pft_core.scoring.tree_decoder import prepare_decoder, run_decoder, why_no_trees
from pft_core.scoring.tree_layout import tree_layout

log = logging.getLogger(__name__)

Backend = Literal["auto", "separate", "split", "flex"]


class BranchScorer(nn.Module):
    """Base model (with or without LoRA) that scores branches.

    forward(batch) -> log-probabilities [R], float32 or wider: per branch the sum over its label tokens.
    backend: "auto" shares prefixes wherever that is exact. Raises UserError for a back-end that the model cannot run.
    """

    def __init__(self, model: nn.Module, *, backend: Backend = "auto"):
        super().__init__()
        self.model: Any = model
        config = self._causal_lm().config
        refuse_scaled_logits(config)
        if why_no_trees(config):
            refuse_unlike_logits(self._causal_lm())
        self.backend: Literal["separate"] | SharedAttention = resolve_backend(backend, config)
        if self.shares_prefix:
            prepare_decoder(self._causal_lm().get_decoder())

    @property
    def shares_prefix(self) -> bool:
        """Whether the tokens of a prefix run once for all its branches."""
        return self.backend != "separate"

    def forward(self, batch: BranchedBatch) -> Tensor:
        if self.backend == "separate":
            return separate_logps(self._causal_lm(), batch)
        if self.backend == "flex" and torch.is_grad_enabled() and not batch.prefix_ids.is_cuda:
            raise UserError(
                "attention_backend='flex' trains on CUDA only, torch has no backward for it on CPU: use split"
            )
        return shared_logps(self._causal_lm(), batch, self.backend)

    def count_tokens(self, batch: BranchedBatch) -> tuple[int, int]:
        """Return the tokens of a batch that have to run (prefixes as often as this back-end runs them), and those that
        do run, padding included."""
        if self.shares_prefix:
            num_tokens = len(batch.prefix_ids) + len(batch.branch_ids)
            return num_tokens, num_tokens
        lengths_R = batch.prefix_lengths[batch.branch_example] + batch.branch_lengths
        return int(lengths_R.sum()), len(lengths_R) * int(lengths_R.max())

    def _causal_lm(self) -> Any:
        # Looked up at call time: stored, it would be registered as a second child and its weights saved twice.
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model


def resolve_backend(backend: Backend, config: Any) -> Literal["separate"] | SharedAttention:
    """Return the back-end to run. "auto" is `split` where it is proven, on any device, else `separate`, and says why.

    Raises UserError where a shared-prefix back-end is asked for and the model has none.
    """
    reason = why_no_trees(config)
    if backend == "flex" and reason is None and getattr(config, "attention_dropout", None):
        raise UserError("attention_backend='flex' has no attention dropout: use split, or set the model's to 0")
    if backend == "separate" or reason is None:
        return "split" if backend == "auto" else backend
    if backend == "auto":
        log.warning("prefixes are not shared: %s, so it runs `separate`", reason)
        return "separate"
    raise UserError(f"attention_backend={backend!r}: {reason}: use auto, or separate")


def shared_logps(causal_lm: Any, batch: BranchedBatch, attention: SharedAttention) -> Tensor:
    """Score all branches in one pass over flat tokens, each prefix once. Returns [R]."""
    layout = tree_layout(batch)
    hidden_KD = run_decoder(causal_lm.get_decoder(), plant(layout, attention))
    logps_K = label_logps(causal_lm.get_output_embeddings(), hidden_KD, layout.label_ids_K)
    return logps_K.new_zeros(batch.num_branches).index_add(0, layout.label_branch_K, logps_K)


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
    logps_N = label_logps(
        causal_lm.get_output_embeddings(), hidden_RLD[row_N, position_N], ids_RL[row_N, position_N + 1]
    )
    # With no labels at all (an idle rank's bin) zero rows still tie the sum to every weight. Under ZeRO-3 all ranks
    # must call the modules in one order: a second call of the head here would leave the others waiting for ever.
    return logps_N.new_zeros(batch.num_branches).index_add(0, row_N, logps_N)


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


@torch.no_grad()
def refuse_unlike_logits(causal_lm: Any) -> None:
    """Raise UserError where an architecture's own logits are not its head on its decoder's hidden states.

    Asked of the model itself, on a few tokens: no list of config keys names every change to come.
    """
    ids = torch.arange(4, device=next(causal_lm.parameters()).device)[None]
    was_training = causal_lm.training
    causal_lm.eval()
    hidden = getattr(causal_lm.get_decoder()(input_ids=ids, use_cache=False), "last_hidden_state", None)
    own = causal_lm(input_ids=ids, use_cache=False).logits
    causal_lm.train(was_training)
    # Rounding of the weights' type; what an architecture adds to its logits is larger.
    tolerance = 16 * torch.finfo(own.dtype).eps
    head = causal_lm.get_output_embeddings()
    if hidden is None or not torch.allclose(head(hidden), own, rtol=tolerance, atol=tolerance * float(own.abs().max())):
        raise UserError(
            f"model type {causal_lm.config.model_type!r} computes its logits in a way that is not supported yet"
        )
