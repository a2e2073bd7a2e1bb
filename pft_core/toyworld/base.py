"""The demo's base model: a tiny Qwen2 trained on other axes, so that a small adapter can learn the demo's axes.

It learns to choose the option whose manner fits the stated preference. If there is no preference, or none that concerns
the options, it chooses the first option. On the demo's axes, which are new to it, it therefore chooses by position,
and as positions are balanced, it is right half of the time.

The model ships in `base_model/`, so that the demo is the same on every machine. It was made by
`python -m pft_core.toyworld.base FOLDER`; run that again after a change of words, prompts or wording.
"""

import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pft_core.data import SIDES, PairedExample, generate, load_space
from pft_core.encoding import (
    BranchedExample,
    EncodingSettings,
    EncodingSpec,
    branched_example,
    collate,
    encode_pairs,
    tokenize,
)
from pft_core.files import whole_file
from pft_core.prompts import PromptStyle, render_answer, render_prompt
from pft_core.scoring import BranchScorer
from pft_core.toyworld.tokenizer import make_tokenizer

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

_DEMO, _BASE = load_space("toyworld"), load_space("toyworld-base")
_STYLE = PromptStyle(answer="option")
_MAX_LENGTH = 256  # in tokens; the longest pair has about 90
_NUM_PER_AXIS = 640  # with 6 + 3 axes and 32 pairs per step: 180 steps, and each example once
_PAIRS_PER_STEP = 32
_PEAK_LR = 3e-3
_WARMUP_STEPS = 20

SHIPPED_SEED = 2


def make_base(folder: Path, *, seed: int) -> None:
    """Train the base model and write it with its tokenizer to a folder; takes about 25 s on one thread."""
    tokenizer = make_tokenizer(_DEMO, _BASE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(len(tokenizer), eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id)
    _train(model, training_examples(tokenizer, seed=seed))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        for path in sorted(Path(made).iterdir()):
            with whole_file(folder / path.name) as unfinished:  # file by file, as the folder may hold other files
                shutil.copyfile(path, unfinished)


def new_model(vocabulary: int, *, eos: int, pad: int, heads: int = 4, positions: int = 512) -> "Qwen2ForCausalLM":
    """Return an untrained 2-layer Qwen2 with a third of a million weights besides its embeddings.

    heads: number of query heads, even; there are two heads of keys and values. positions: the longest text, in tokens.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=pad,
        tie_word_embeddings=True,
        initializer_range=0.05,  # with the usual 0.02, such a small model stays longer on the plateau
    )
    return Qwen2ForCausalLM(config)


def training_examples(tokenizer: Any, *, seed: int) -> list[BranchedExample]:
    """Return the base model's training examples, in the order of training."""
    spec = EncodingSpec(_STYLE, EncodingSettings(max_length=_MAX_LENGTH))
    records = generate(seed=seed, split="train", num_per_axis=_NUM_PER_AXIS, space=_BASE)
    fitting, _ = encode_pairs([(record, "one") for record in records], spec=spec, space=_BASE, tokenizer=tokenizer)
    demo_records = list(generate(seed=seed, split="train", num_per_axis=_NUM_PER_AXIS, space=_DEMO))
    rng = random.Random(seed)
    examples = [*fitting, *_unrelated(demo_records, tokenizer, rng)]
    rng.shuffle(examples)
    return examples


def _unrelated(records: Sequence[PairedExample], tokenizer: Any, rng: random.Random) -> list[BranchedExample]:
    """Encode options of the demo's axes under a preference on another axis, and under none. The first one is right."""
    texts, prompt_lengths, spans = [], [], []
    for record in records:
        other_axis = replace(record, axis=rng.choice(_BASE.axes).name)
        for side in (rng.choice(SIDES), None):
            prompt = render_prompt(other_axis, side=side, form="one", style=_STYLE, space=_BASE)
            texts.append(prompt.text + render_answer(record, (0,), form="one", style=_STYLE))
            prompt_lengths.append(len(prompt.text))
            spans.append(prompt.scenario_span)
    rows = tokenize(texts, prompt_lengths, spans, tokenizer)
    examples = []
    for i, record in enumerate(records):
        pair = rows[2 * i : 2 * i + 2]
        prompts, answers = [r.ids[: r.answer_start] for r in pair], [r.ids[r.answer_start :] for r in pair]
        examples.append(branched_example(record.id, prompts, answers, SIDES))
    return examples


def _train(model: "Qwen2ForCausalLM", examples: Sequence[BranchedExample]) -> None:
    scorer = BranchScorer(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK_LR, weight_decay=0.0)
    steps = len(examples) // _PAIRS_PER_STEP
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, steps))
    for step in range(steps):
        batch = collate(examples[step * _PAIRS_PER_STEP : (step + 1) * _PAIRS_PER_STEP])
        loss = -scorer(batch).sum() / batch.num_labels_R.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _lr_factor(step: int, steps: int) -> float:
    """Return the factor of a linear warm-up and decay."""
    warmup = (step + 1) / _WARMUP_STEPS
    return min(warmup, (steps - step) / (steps - _WARMUP_STEPS))


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_base(Path(sys.argv[1]), seed=SHIPPED_SEED)
