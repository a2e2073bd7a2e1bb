"""The demo's tokenizer: a byte-level BPE of Qwen2's class, in which each word of `toyworld` is one token."""

import json
from collections.abc import Iterable, Iterator
from itertools import product
from typing import TYPE_CHECKING, Any

from pft_core.data import (
    ACTIONS,
    MANNERS,
    NAMES,
    SIDES,
    SITUATIONS,
    THINGS,
    Form,
    PairedExample,
    PreferenceSpace,
    generate,
)
from pft_core.prompts import PromptStyle, render_answer, render_prompt

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

_EVERY_MERGE = 100_000  # a size that is never reached, as training ends when each word is one token
_PAD, _EOS = "<pad>", "<eos>"
_FORMS: tuple[Form, ...] = ("one", "all")


def make_tokenizer(*spaces: PreferenceSpace) -> "Qwen2Tokenizer":
    """Return the demo's tokenizer, in which each word of `toyworld` is one token."""
    return train_tokenizer(_texts(spaces), size=_EVERY_MERGE)


def train_tokenizer(texts: Iterable[str], *, size: int) -> "Qwen2Tokenizer":
    """Train a fast tokenizer of at most `size` tokens, including pad and EOS, on texts.

    It encodes any text; unknown words become several tokens. It has to be of Qwen2's class with that class's splitting
    rule, as AutoTokenizer rebuilds it from only the vocabulary and the merges.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    specials: dict[str, Any] = {"unk_token": None, "eos_token": _EOS, "pad_token": _PAD}
    blank = Qwen2Tokenizer(vocab={}, merges=[], **specials)
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = blank.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=1,
        special_tokens=[_PAD, _EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    learner.train_from_iterator(texts, trainer)
    model = json.loads(learner.to_str())["model"]
    merges: Any = [tuple(merge) for merge in model["merges"]]
    return Qwen2Tokenizer(vocab=model["vocab"], merges=merges, **specials)


def _texts(spaces: tuple[PreferenceSpace, ...]) -> Iterator[str]:
    """Yield texts that contain every word as it will occur: after a space, at the start of a line, or both."""
    manners = [manner for poles in MANNERS.values() for words in poles for manner in words]
    yield "".join(f" {word}" for word in (*manners, *ACTIONS, *THINGS, *NAMES))
    yield "\n".join((*manners, *NAMES, *SITUATIONS))
    for space in spaces:
        for record in generate(seed=0, split="train", num_per_axis=8, space=space):
            yield from _rendered(record, space)


def _rendered(record: PairedExample, space: PreferenceSpace) -> Iterator[str]:
    style = PromptStyle(answer="option")
    for side, form in product(SIDES, _FORMS):
        prompt = render_prompt(record, side=side, form=form, style=style, space=space)
        yield prompt.text + render_answer(record, range(len(record.options)), form="all", style=style)
