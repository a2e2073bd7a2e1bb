"""Whether a model can be continued as this engine does it: asked of the model itself, before any client asks."""

from typing import Any

import torch

from pft_core.errors import UserError
from pipelines.serve.engines.decoding import BASE, DecodingBatch, DecodingRow
from pipelines.serve.engines.engine import Sampling

LENGTHS = 4, 7  # tokens of two texts, so that one is padded
TOLERANCE = 0.25  # of the logits' spread: bfloat16 stays below 0.1, a state that is lost comes near 1


@torch.inference_mode()
def refuse_other_caches(model: Any, batch: DecodingBatch, *, name: str, eos: int, device: torch.device) -> None:
    """Raise UserError for a model that reads a text's last token otherwise after a cache than within the whole text.

    Rows of this engine share one cache of keys and values. Models with a state of another kind (Mamba, hybrids)
    refuse it, or are silent and write on from nothing. batch: empty, and empty again afterwards.
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
    except Exception as error:  # a model's code is its own, and fails as it likes
        raise _refused(model, name, f"{type(error).__name__}: {error}".partition("\n")[0]) from None
    batch.clear()
    if not is_same:
        raise _refused(model, name, "the next token depends on whether a text is read at once or word by word")


def _refused(model: Any, name: str, reason: str) -> UserError:
    return UserError(
        f"model={name!r}: its cache is not plain keys and values ({model.config.model_type}; {reason}), which "
        "engine.name=transformers needs to serve it: use another model, or engine.name=vllm"
    )
