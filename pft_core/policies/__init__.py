"""Policies: base models, adapters and fully fine-tuned weights, references to them, and averages of several."""

from typing import TYPE_CHECKING

from pft_core.lazy import lazy_exports

if TYPE_CHECKING:
    from pft_core.policies.gguf import SMOLLM2, is_gguf_name, model_place
    from pft_core.policies.identity import base_digest, model_identity
    from pft_core.policies.merging import merge_adapter, write_merged
    from pft_core.policies.model import (
        PLAIN_STARTS,
        add_lora,
        checkpoint_activations,
        load_base,
        load_policy,
        refuse_foreign_tokenizer,
        save_adapter,
        save_full,
        with_adapter,
    )
    from pft_core.policies.model_ref import (
        MODEL_REF_NAME,
        ModelRef,
        adapter_digests,
        reference_at,
        refuse_other_adapter,
    )
    from pft_core.policies.positions import positions_of, within_positions
    from pft_core.policies.pretrained import (
        cached_folder,
        end_tokens,
        load_config,
        load_tokenizer,
        local_folder,
        place_of_model,
        public_name,
        refuse_unknown_data_set,
        refuse_unusable_model,
        weight_files,
    )
    from pft_core.policies.row_positions import follows_length, own_positions
    from pft_core.policies.settings import LoraSettings, Precision, PrecisionOrAuto, settled
    from pft_core.policies.shipped_base import SHIPPED_BASE, TOYWORLD
    from pft_core.policies.soup import between, interpolate_adapters, interpolate_weights
else:
    __getattr__ = lazy_exports(__name__)
