"""Merge an adapter into its base: one model in float32 that needs no adapter.

Float32 keeps the policy's log-probabilities. Rounding merged weights to bfloat16 can round a small update away.
"""

from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from pft_core.files import whole_folder
from pft_core.policies.model import load_base, with_adapter
from pft_core.policies.pretrained import load_tokenizer


def merge_adapter(base: str, adapter: Path, folder: Path) -> Path:
    """Merge an adapter into its base, unless the folder is there already; return the folder.

    A training that starts from this model has the trained policy as its reference. Raises UserError if the adapter does
    not fit.
    """
    if not folder.is_dir():
        with whole_folder(folder) as unfinished:
            write_merged(base, adapter, unfinished)
    return folder


def write_merged(base: str, adapter: Path, folder: Path) -> None:
    """Write the merged model with its tokenizer into an empty folder. Raises UserError if the adapter does not fit."""
    model: Any = load_base(base, precision="fp32", gradient_checkpointing=False, device=torch.device("cpu"))
    adapted: Any = with_adapter(model, adapter)
    _untie_adapted(model)
    adapted.merge_and_unload().save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)


def _untie_adapted(model: Any) -> None:
    """Separate head and embeddings that share a weight if only one of them is adapted: merging would change both."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    adapted = [layer for layer in (head, embeddings) if isinstance(layer, BaseTunerLayer)]
    if not adapted or head.weight is not embeddings.weight:
        return
    layer: Any = adapted[0].get_base_layer()
    layer.weight = nn.Parameter(layer.weight.detach().clone(), requires_grad=False)
    model.config.tie_word_embeddings = False
