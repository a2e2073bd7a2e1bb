"""Encoding, from records to small trees of tokens: examples, batches, and layers on disk."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.encoding.batching import BranchedBatch, collate, deal, empty_example, plan_bins, plan_fixed
    from pft_core.encoding.control_tokens import control_token_in, reject_control_tokens
    from pft_core.encoding.examples import (
        Branch,
        BranchedExample,
        LabelCounts,
        branched_example,
        common_prefix_length,
        select_sides,
    )
    from pft_core.encoding.joining import group_questions, joined
    from pft_core.encoding.layer import (
        EncodedLayer,
        LayerPart,
        encode_part,
        finish_layer,
        layer_is_complete,
        layer_key,
        layer_parts,
        pair_rejects,
        tokenizer_digest,
    )
    from pft_core.encoding.settings import EncodingSettings
    from pft_core.encoding.tokenizer_summary import TokenizerFacts, tokenizer_facts
    from pft_core.encoding.tokens import TokenizedAnswer, tokenize, tokenize_prompts
    from pft_core.encoding.views import VIEWS, EncodingSpec, View, encode_pairs
else:
    __getattr__ = lazy_exports(__name__)
