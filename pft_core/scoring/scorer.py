"""BranchScorer: a batch of branches in, the log-probability of each branch's labels out.

The only place that runs the model for likelihoods. Engines wrap *it*: under ZeRO-3 the hooks of the root module must
fire, so nothing outside calls the model's parts. Back-ends say how branches are laid out; `separate` (every branch
with its own copy of the prefix) is the reference that the shared-prefix ones equal.
"""

import logging
from typing import Any, Literal
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pft_core.encoding import Branch, BranchedBatch, BranchedExample, collate
from pft_core.errors import UserError
from pft_core.policies import follows_length, own_positions
from pft_core.scoring.attention import SharedAttention, plant
from pft_core.scoring.label_head import label_logps
from pft_core.scoring.tree_decoder import prepare_decoder, run_decoder, why_no_trees
from pft_core.scoring.tree_layout import tree_layout

log = logging.getLogger(__name__)

Backend = Literal[
    "auto", "separate", "split", "flex"
]  # how the branches of an example run: with a shared prefix, or each alone
_ASKED: WeakSet[nn.Module] = WeakSet()  # models that have answered; a server makes a scorer for each request
PROBED_LENGTHS = (8, 32)  # tokens; the longer one is padded with nothing, the shorter one to four times its length


class BranchScorer(nn.Module):
    """Base model (with or without LoRA) that scores branches.

    forward(batch) -> log-probabilities [R], float32 or wider: per branch the sum over its label tokens.
    backend: "auto" shares prefixes wherever that is exact. Raises UserError for a back-end that the model cannot run.
    """

    def __init__(self, model: nn.Module, *, backend: Backend = "auto"):
        super().__init__()
        self.model: Any = model
        causal_lm = self._causal_lm()
        refuse_scaled_logits(causal_lm.config)
        self.backend: Literal["separate"] | SharedAttention = resolve_backend(backend, causal_lm)
        if why_no_trees(causal_lm.config) and causal_lm not in _ASKED:
            refuse_unlike_logits(causal_lm)
            refuse_mixed_rows(causal_lm)
            _ASKED.add(causal_lm)
        if self.shares_prefix:
            prepare_decoder(self._causal_lm().get_decoder())

    @property
    def shares_prefix(self) -> bool:
        """Whether the tokens of a prefix run once for all its branches."""
        return self.backend != "separate"

    def forward(self, batch: BranchedBatch) -> Tensor:
        """Return the log-probability of every branch of a batch [R]."""
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


def resolve_backend(backend: Backend, causal_lm: Any) -> Literal["separate"] | SharedAttention:
    """Return the back-end to run. "auto" is `split` where it is proven, on any device, else `separate`, and says why.

    Raises UserError where a shared-prefix back-end is asked for and the model has none.
    """
    config = causal_lm.config
    reason = why_no_trees(config)
    if own_positions(causal_lm):
        reason = "its positional encoding follows the length of a text"
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
    positions = {}
    if follows_length(causal_lm):
        positions["position_ids"] = (attention_RL.cumsum(dim=1) - 1).clamp(min=0)  # no row counts beyond its own end
    hidden_RLD = causal_lm.get_decoder()(
        input_ids=ids_RL, attention_mask=attention_RL.long(), use_cache=False, **positions
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


@torch.no_grad()
def refuse_mixed_rows(causal_lm: Any) -> None:
    """Raise UserError where a text's score depends on a longer one beside it. Asked of the model itself, too."""
    device = next(causal_lm.parameters()).device
    short, long = (_probe(num_tokens) for num_tokens in PROBED_LENGTHS)
    was_training = causal_lm.training
    causal_lm.eval()
    alone, beside = (separate_logps(causal_lm, collate(rows).to(device))[0] for rows in ([short], [short, long]))
    causal_lm.train(was_training)
    tolerance = 16 * torch.finfo(next(causal_lm.parameters()).dtype).eps
    if not torch.isclose(alone, beside, rtol=tolerance, atol=1e-4):
        raise UserError(
            f"model type {causal_lm.config.model_type!r} scores a text otherwise beside a longer one ({beside:.6g}) "
            f"than alone ({alone:.6g}): it is not supported"
        )


def _probe(num_tokens: int) -> BranchedExample:
    ids = np.arange(num_tokens, dtype=np.int32) % 4
    return BranchedExample("", ids[:1], (Branch(ids[1:], np.ones(num_tokens - 1, dtype=bool), 0),))
