"""BranchScorer: a batch of branches in, the log-probability of each branch's labels out.

Nothing else runs the model for likelihoods. Engines wrap *the scorer*: under ZeRO-3 the hooks of the root module must
fire, so no code outside calls the model's parts. The backend decides how branches are laid out; `separate` (every
branch with its own copy of the prefix) is the reference that the shared-prefix backends must equal.
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
from pft_core.scoring.attention import SharedAttention, attention_trees
from pft_core.scoring.label_head import label_logps
from pft_core.scoring.tree_decoder import prepare_decoder, run_decoder, why_no_trees
from pft_core.scoring.tree_layout import tree_layout

log = logging.getLogger(__name__)

Backend = Literal["auto", "separate", "split", "flex"]  # how the branches of a prompt attend
_CHECKED: WeakSet[nn.Module] = WeakSet()  # models that passed the checks; a server makes a scorer for each request
PROBE_LENGTHS = (8, 32)  # tokens; batched together, the shorter text is padded to four times its length


class BranchScorer(nn.Module):
    """A base model, with or without LoRA, that scores branches.

    forward(batch) -> log-probabilities [R] in float32 or wider: for each branch, the sum over its label tokens.
    backend: "auto" shares prefixes if that is exact for the model. Raises UserError if the model cannot run the
    backend.
    """

    def __init__(self, model: nn.Module, *, backend: Backend = "auto"):
        super().__init__()
        self.model: Any = model
        causal_lm = self._causal_lm()
        refuse_scaled_logits(causal_lm.config)
        self.backend: Literal["separate"] | SharedAttention = resolve_backend(backend, causal_lm)
        if why_no_trees(causal_lm.config) and causal_lm not in _CHECKED:
            refuse_changed_logits(causal_lm)
            refuse_batch_dependent_scores(causal_lm)
            _CHECKED.add(causal_lm)
        if self.shares_prefix:
            prepare_decoder(self._causal_lm().get_decoder())

    @property
    def shares_prefix(self) -> bool:
        """Whether a prefix runs once for all its branches."""
        return self.backend != "separate"

    def forward(self, batch: BranchedBatch) -> Tensor:
        """Return the log-probability of each branch's labels [R]. Raises UserError for a flex backward on a CPU."""
        if self.backend == "separate":
            return separate_logps(self._causal_lm(), batch)
        if self.backend == "flex" and torch.is_grad_enabled() and not batch.prefix_ids.is_cuda:
            raise UserError(
                "attention_backend='flex' trains on CUDA only, because torch has no backward for it on CPU: use split"
            )
        return shared_logps(self._causal_lm(), batch, self.backend)

    def count_tokens(self, batch: BranchedBatch) -> tuple[int, int]:
        """Return how many tokens of a batch have to run, each prefix as often as the backend runs it, and how many do
        run, padding included."""
        if self.shares_prefix:
            num_tokens = len(batch.prefix_ids) + len(batch.stem_ids) + len(batch.branch_ids)
            return num_tokens, num_tokens
        lengths_R = batch.context_lengths_R + batch.branch_lengths
        return int(lengths_R.sum()), len(lengths_R) * int(lengths_R.max())

    def _causal_lm(self) -> Any:
        # Looked up on each call: as an attribute it would be a second child module, and its weights saved twice.
        return self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model


def resolve_backend(backend: Backend, causal_lm: Any) -> Literal["separate"] | SharedAttention:
    """Return the backend to run. "auto" is `split` on any device if the model is known to support it; otherwise it is
    `separate`, and the log says why.

    Raises UserError if a shared-prefix backend is requested and the model does not support it.
    """
    config = causal_lm.config
    reason = why_no_trees(config)
    if own_positions(causal_lm):
        reason = "its positional encoding follows the length of a text"
    if backend == "flex" and reason is None and getattr(config, "attention_dropout", None):
        raise UserError(
            "attention_backend='flex' has no attention dropout: use split, or set attention_dropout to 0 in the "
            "model's config"
        )
    if backend == "separate" or reason is None:
        return "split" if backend == "auto" else backend
    if backend == "auto":
        log.warning("prefixes are not shared: %s; the scorer runs with attention_backend=separate", reason)
        return "separate"
    raise UserError(f"attention_backend={backend!r}: {reason}: use auto or separate")


def shared_logps(causal_lm: Any, batch: BranchedBatch, attention: SharedAttention) -> Tensor:
    """Score all branches in one pass over flat tokens, with each prefix and stem once. Returns [R]."""
    layout = tree_layout(batch)
    hidden_KD = run_decoder(causal_lm.get_decoder(), attention_trees(layout, attention))
    logps_K = label_logps(causal_lm.get_output_embeddings(), hidden_KD, layout.label_ids_K)
    return logps_K.new_zeros(batch.num_branches).index_add(0, layout.label_branch_K, logps_K)


def separate_logps(causal_lm: Any, batch: BranchedBatch) -> Tensor:
    """Score each branch in a row of its own [R, L], padded on the right; the head sees label positions only.
    Returns [R]."""
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
    # The position before a token predicts it.
    row_N, position_N = labels_RL[:, 1:].nonzero(as_tuple=True)
    logps_N = label_logps(
        causal_lm.get_output_embeddings(), hidden_RLD[row_N, position_N], ids_RL[row_N, position_N + 1]
    )
    # In a bin without labels (an idle rank's), zero rows still connect the sum to every weight. Under ZeRO-3 all ranks
    # must call modules in the same order: a second call of the head here would leave the other ranks waiting forever.
    return logps_N.new_zeros(batch.num_branches).index_add(0, row_N, logps_N)


def _prefixed_rows(batch: BranchedBatch) -> list[tuple[Tensor, Tensor]]:
    prefixes = batch.prefix_ids.split(batch.prefix_lengths.tolist())
    stems = (*batch.stem_ids.split(batch.stem_lengths.tolist()), batch.stem_ids[:0])  # -1, no stem: the empty one
    branches = batch.branch_ids.split(batch.branch_lengths.tolist())
    masks = batch.label_mask.split(batch.branch_lengths.tolist())
    rows = []
    places = zip(batch.branch_example.tolist(), batch.branch_stem.tolist(), strict=True)
    for (example, stem), ids, mask in zip(places, branches, masks, strict=True):
        context = torch.cat([prefixes[example], stems[stem]])
        rows.append((torch.cat([context, ids]), torch.cat([torch.zeros_like(context, dtype=torch.bool), mask])))
    return rows


def refuse_scaled_logits(config: Any) -> None:
    """Raise UserError if the architecture changes logits after the head: scoring would miss the change."""
    for key in ("final_logit_softcapping", "logits_scaling", "logit_scale"):
        if getattr(config, key, None) not in (None, 1, 1.0):
            raise UserError(
                f"model type {config.model_type!r} changes its logits after the head ({key}), which is not supported "
                "yet: use another base model"
            )


@torch.no_grad()
def refuse_changed_logits(causal_lm: Any) -> None:
    """Raise UserError if the model's logits differ from its head applied to its decoder's hidden states.

    The check runs the model on a few tokens, since no list of config keys can name every future change.
    """
    ids = torch.arange(4, device=next(causal_lm.parameters()).device)[None]
    was_training = causal_lm.training
    causal_lm.eval()
    hidden = getattr(causal_lm.get_decoder()(input_ids=ids, use_cache=False), "last_hidden_state", None)
    own = causal_lm(input_ids=ids, use_cache=False).logits
    causal_lm.train(was_training)
    # Room for rounding in the weights' dtype; a real change of the logits is larger.
    tolerance = 16 * torch.finfo(own.dtype).eps
    head = causal_lm.get_output_embeddings()
    if hidden is None or not torch.allclose(head(hidden), own, rtol=tolerance, atol=tolerance * float(own.abs().max())):
        raise UserError(
            f"model type {causal_lm.config.model_type!r} computes its logits in a way that is not supported yet: "
            "use another base model"
        )


@torch.no_grad()
def refuse_batch_dependent_scores(causal_lm: Any) -> None:
    """Raise UserError if a text scores differently next to a longer text. This check runs the model too."""
    device = next(causal_lm.parameters()).device
    short, long = (_probe(num_tokens) for num_tokens in PROBE_LENGTHS)
    was_training = causal_lm.training
    causal_lm.eval()
    alone, beside = (separate_logps(causal_lm, collate(rows).to(device))[0] for rows in ([short], [short, long]))
    causal_lm.train(was_training)
    tolerance = 16 * torch.finfo(next(causal_lm.parameters()).dtype).eps
    if not torch.isclose(alone, beside, rtol=tolerance, atol=1e-4):
        raise UserError(
            f"model type {causal_lm.config.model_type!r} scores a text differently next to a longer one "
            f"({beside:.6g}) than alone ({alone:.6g}), which is not supported: use another base model"
        )


def _probe(num_tokens: int) -> BranchedExample:
    ids = np.arange(num_tokens, dtype=np.int32) % 4
    return BranchedExample("", ids[:1], (Branch(ids[1:], np.ones(num_tokens - 1, dtype=bool), 0),))
