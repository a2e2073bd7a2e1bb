"""A tiny base model trained on the texts of a training split, for runs in which no released model is small enough.

It first repeats passages, by which a model of this size learns to copy, then answers made-up preferences that name
words of one listed option. It never sees which pole an option shows, or the order in which a record lists the options.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pft_core.data import Axis, Option, PairedExample, Pole, PreferenceSpace
from pft_core.encoding import BranchedExample, branched_example, collate, tokenize
from pft_core.files import whole_folder
from pft_core.prompts import PromptStyle, render_answer, render_prompt
from pft_core.scoring import BranchScorer
from pft_core.toyworld.base import new_model
from pft_core.toyworld.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from transformers import Qwen2ForCausalLM

_VOCABULARY = 4096  # about 1.3 tokens per word on VCD, 1.5 on BQD
_HEADS = 2  # wide enough to distinguish thousands of tokens; with four, the model learns to copy later
_POSITIONS = 2048
_PASSAGE_WORDS = (3, 10)  # shorter than an option, as the model learns to copy soonest on short rows
_NAMED_WORDS = (1, 5)
_WORD = re.compile(r"[A-Za-z][a-z'-]{3,}")
_SENTENCE_END = re.compile(r"(?<=[.?!]) ")
_WHOLE_SCENARIO = 0.3  # share of the made-up questions with the whole scenario; the others have its last sentence
_WARMUP_STEPS = 20
_AXIS = "Words"
_MADE_UP = PreferenceSpace("made-up", (Axis(_AXIS, Pole("", ""), Pole("", "")),))


@dataclass(frozen=True)
class Effort:
    """The length of training: steps of each part, tokens per step, and the peak of the learning rate."""

    copying_steps: int = 550
    answering_steps: int = 320
    tokens_per_step: int = 1536
    peak_lr: float = 3e-3


@dataclass(frozen=True)
class TextItem:
    """The part of a record that the model sees: no axis, no poles, and the options in an order without meaning."""

    scenario: str
    options: tuple[str, ...]


def make_text_base(
    records: Sequence[PairedExample], folder: Path, *, seed: int, style: PromptStyle, effort: Effort | None = None
) -> None:
    """Train a tokenizer and a tiny Qwen2 on the texts of records and write both; takes about two minutes on one thread.

    style: the style of the prompts that the base will get. The folder appears whole or not at all, and replaces an
    existing one. Equal records, seed and effort give equal files on one machine.
    """
    effort = effort or Effort()
    items = [TextItem(r.scenario, tuple(sorted(option.text for option in r.options))) for r in records]
    tokenizer = train_tokenizer(_texts(items, style), size=_VOCABULARY)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = new_model(
            len(tokenizer), eos=tokenizer.eos_token_id, pad=tokenizer.pad_token_id, heads=_HEADS, positions=_POSITIONS
        )
    _train(model, training_steps(items, tokenizer, style=style, seed=seed, effort=effort), effort)
    with whole_folder(folder) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


def _texts(items: Sequence[TextItem], style: PromptStyle) -> Iterator[str]:
    """Yield the texts for training the tokenizer: those of the items, inside prompts and answers."""
    for item in items:
        record = _record(item.scenario, item.options)
        yield render_prompt(record, side=None, form="one", style=style, space=_MADE_UP).text
        yield render_answer(record, range(len(item.options)), form="all", style=style)


def training_steps(
    items: Sequence[TextItem], tokenizer: Any, *, style: PromptStyle, seed: int, effort: Effort
) -> Iterator[list[BranchedExample]]:
    """Yield the examples of each step: first passages to repeat, then made-up preferences to answer."""
    rng = random.Random(seed)
    yield from _steps(lambda: _passage_to_repeat(items, tokenizer, rng), effort.copying_steps, effort)
    yield from _steps(
        lambda: _made_up_question(rng.choice(items), tokenizer, rng, style), effort.answering_steps, effort
    )


def _steps(draw: Callable[[], BranchedExample], count: int, effort: Effort) -> Iterator[list[BranchedExample]]:
    for _ in range(count):
        examples: list[BranchedExample] = []
        while sum(example.num_tokens for example in examples) < effort.tokens_per_step:
            examples.append(draw())
        yield examples


def _passage_to_repeat(items: Sequence[TextItem], tokenizer: Any, rng: random.Random) -> BranchedExample:
    """Return an example of two random passages, followed by the first one again as the answer."""
    first, second = (_passage(rng.choice(items), rng) for _ in range(2))
    prompt, answer = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first + second, first))
    ids = [np.asarray(part, dtype=np.int32) for part in (prompt, [*answer, tokenizer.eos_token_id])]
    return branched_example("", ids[:1], ids[1:], (0,))


def _passage(item: TextItem, rng: random.Random) -> str:
    words = rng.choice((item.scenario, *item.options)).split()
    length = rng.randint(*_PASSAGE_WORDS)
    start = rng.randrange(max(1, len(words) - length))
    return "".join(f" {word}" for word in words[start : start + length])


def _made_up_question(item: TextItem, tokenizer: Any, rng: random.Random, style: PromptStyle) -> BranchedExample:
    """Return a question with options in random order; each branch prefers words of one option, which is its answer."""
    scenario = item.scenario if rng.random() < _WHOLE_SCENARIO else _SENTENCE_END.split(item.scenario)[-1]
    record = _record(scenario, rng.sample(item.options, len(item.options)))
    texts, prompt_lengths, spans = [], [], []
    for i, words in enumerate(distinctive_words([option.text for option in record.options])):
        named = rng.sample(words, min(len(words), rng.randint(*_NAMED_WORDS)))
        space = PreferenceSpace("made-up", (Axis(_AXIS, *[Pole(named[0], " ".join(named[1:]))] * 2),))
        prompt = render_prompt(record, side=0, form="one", style=style, space=space)
        texts.append(prompt.text + render_answer(record, (i,), form="one", style=style))
        prompt_lengths.append(len(prompt.text))
        spans.append(prompt.scenario_span)
    rows = tokenize(texts, prompt_lengths, spans, tokenizer)
    prompts, answers = [r.ids[: r.answer_start] for r in rows], [r.ids[r.answer_start :] for r in rows]
    return branched_example("", prompts, answers, range(len(rows)))


def _record(scenario: str, options: Sequence[str]) -> PairedExample:
    return PairedExample("", _AXIS, scenario, tuple(Option(text, side=0) for text in options))


def distinctive_words(options: Sequence[str]) -> list[list[str]]:
    """Return for each option the words that occur in no other option, or its whole text if there are none."""
    words = [dict.fromkeys(_WORD.findall(text)) for text in options]
    others = [{word for j, other in enumerate(words) if j != i for word in other} for i in range(len(options))]
    return [
        [word for word in own if word not in other] or [text]
        for own, other, text in zip(words, others, options, strict=True)
    ]


def _train(model: "Qwen2ForCausalLM", steps: Iterator[list[BranchedExample]], effort: Effort) -> None:
    scorer = BranchScorer(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=effort.peak_lr, weight_decay=0.01)
    total = effort.copying_steps + effort.answering_steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, total))
    for examples in steps:
        batch = collate(examples)
        loss = -scorer(batch).sum() / batch.num_labels_R.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def _lr_factor(step: int, steps: int) -> float:
    """Return the factor of a linear warm-up, a plateau, and a linear decay over the last two fifths."""
    return min((step + 1) / _WARMUP_STEPS, (steps - step) / (0.4 * steps), 1.0)
