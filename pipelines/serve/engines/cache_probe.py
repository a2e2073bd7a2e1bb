"""A check at start-up that this engine can continue a model's text from its cache."""

from typing import Any

import torch

from pft_core.errors import UserError
from pipelines.serve.engines.decoding import BASE, DecodingBatch, DecodingRow
from pipelines.serve.engines.serving_engine import Sampling

LENGTHS = 4, 7  # tokens of the two probe texts; they differ, so that one is padded
TOLERANCE = 0.25  # as a share of the logits' standard deviation: bfloat16 stays below 0.1, a lost state is near 1


@torch.inference_mode()
def refuse_other_caches(model: Any, batch: DecodingBatch, *, name: str, eos: int, device: torch.device) -> None:
    """Raise UserError if a text's last token gets other logits after a cache than within the whole text.

    This engine's rows share one cache of keys and values. Models with another kind of state (Mamba, hybrids) either
    refuse that cache or silently continue without any context. batch: empty before and after.
    """
    token_ids = [i for i in range(len(LENGTHS) * max(LENGTHS)) if i != eos]
    texts = [token_ids[place * max(LENGTHS) :][:length] for place, length in enumerate(LENGTHS)]
    rows = [
        DecodingRow(text[:-1], Sampling(2, choices=((text[-1], eos),)), BASE, emit=lambda _: None) for text in texts
    ]
    try:
        batch.admit(rows)
        batch.step()
        continued = batch.logits_RV
        whole = torch.cat([model(torch.tensor([text], device=device)).logits[:, -1].float() for text in texts])
        is_same = bool((continued - whole).abs().max() <= TOLERANCE * whole.std())
    except Exception as error:  # a model's own code can raise anything
        raise _refused(model, name, f"{type(error).__name__}: {error}".partition("\n")[0]) from None
    batch.clear()
    if not is_same:
        raise _refused(model, name, "the next token changes if a text is read token by token")


def _refused(model: Any, name: str, reason: str) -> UserError:
    return UserError(
        f"model={name!r}: its cache is not plain keys and values ({model.config.model_type}; {reason}), but "
        "engine.name=transformers needs that: use another model or engine.name=vllm"
    )
