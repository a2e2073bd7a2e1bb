"""The demo's base model: a tiny Qwen2 brought up on other axes, so that a small adapter can learn new ones.

It learns to choose the option whose manner fits the stated preference, and to take the first listed option where the
preference says nothing about the options or where there is none. On the demo's axes, new to it, it therefore chooses
by position, and as positions are balanced it is right half of the time.

The model ships in `base_model/`, so that the demo is the same on every machine. It was made by
`python -m pft_core.toyworld.base FOLDER`; run it again after a change of words, prompts or wording.
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
_MAX_LENGTH = 256  # tokens; the longest pair has about 90
_NUM_PER_AXIS = 640  # with 6 + 3 axes and 32 pairs a step: 180 steps, each example once
_PAIRS_PER_STEP = 32
_PEAK_LR = 3e-3
_WARMUP_STEPS = 20

SHIPPED_SEED = 2


def make_base(folder: Path, *, seed: int) -> None:
    """Make the base model and its tokenizer and write both into a folder; about 25 s on one thread."""
    tokenizer = make_tokenizer(_DEMO, _BASE)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(len(tokenizer), eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id)
    _bring_up(model, upbringing(tokenizer, seed=seed))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
        for path in sorted(Path(made).iterdir()):
            with whole_file(folder / path.name) as unfinished:  # not the whole folder: it may hold what is not ours
                shutil.copyfile(path, unfinished)


def new_model(vocabulary: int, *, eos: int, pad: int, heads: int = 4, positions: int = 512) -> "Qwen2ForCausalLM":
    """Return an untrained 2-layer Qwen2 of a third of a million weights beside its embeddings.

    heads: of queries, an even number; there are two of keys and values. positions: the longest text, in tokens.
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
        initializer_range=0.05,  # at the usual 0.02 so small a model takes longer to leave the plateau
    )
    return Qwen2ForCausalLM(config)


def upbringing(tokenizer: Any, *, seed: int) -> list[BranchedExample]:
    """Return the base model's training examples in the order of training."""
    spec = EncodingSpec(_STYLE, EncodingSettings(max_length=_MAX_LENGTH))
    records = generate(seed=seed, split="train", num_per_axis=_NUM_PER_AXIS, space=_BASE)
    fitting, _ = encode_pairs([(record, "one") for record in records], spec=spec, space=_BASE, tokenizer=tokenizer)
    strange = list(generate(seed=seed, split="train", num_per_axis=_NUM_PER_AXIS, space=_DEMO))
    rng = random.Random(seed)
    examples = [*fitting, *_indifferent(strange, tokenizer, rng)]
    rng.shuffle(examples)
    return examples


def _indifferent(records: Sequence[PairedExample], tokenizer: Any, rng: random.Random) -> list[BranchedExample]:
    """Encode options of the demo's axes under a preference of another axis, and under none: the answer is the first."""
    texts, prompt_lengths, spans = [], [], []
    for record in records:
        misplaced = replace(record, axis=rng.choice(_BASE.axes).name)
        for side in (rng.choice(SIDES), None):
            prompt = render_prompt(misplaced, side=side, form="one", style=_STYLE, space=_BASE)
            texts.append(prompt.text + render_answer(record, (0,), form="one", style=_STYLE))
            prompt_lengths.append(len(prompt.text))
            spans.append(prompt.scenario_span)
    rows = tokenize(texts, prompt_lengths, spans, tokenizer)
    examples = []
    for i, record in enumerate(records):
        pair = rows[2 * i : 2 * i + 2]
        asked, answers = [r.ids[: r.answer_start] for r in pair], [r.ids[r.answer_start :] for r in pair]
        examples.append(branched_example(record.id, asked, answers, SIDES))
    return examples


def _bring_up(model: "Qwen2ForCausalLM", examples: Sequence[BranchedExample]) -> None:
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
    warm = (step + 1) / _WARMUP_STEPS
    return min(warm, (steps - step) / (steps - _WARMUP_STEPS))


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_base(Path(sys.argv[1]), seed=SHIPPED_SEED)
