"""Shapes of the pairs in training benchmarks: lengths in tokens, filled with random ids."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pft_core.data import SIDES, PairedExample, load_space
from pft_core.encoding import BranchedExample, branched_example, common_prefix_length
from pft_core.errors import UserError
from pft_core.prompts import PromptStyle, render_answer, render_prompt, target_options

CHARACTERS_PER_TOKEN = 4.6  # for English text with the Qwen and Llama tokenizers, which the benchmark does not need


@dataclass(frozen=True)
class PairLengths:
    """Token counts of one pair: the part its sides share, the preference descriptor, and the answer of each side."""

    shared: int
    descriptor: int
    answers: tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """One micro-batch: its pairs, its loss, the width that the paper's scheme pads to (None: the longest row), and the
    tokens of preamble before a descriptor that comes before the scenario."""

    name: str
    pairs: tuple[PairLengths, ...]
    loss: str
    padded_to: int | None
    preamble: int

    @property
    def sharing_limit(self) -> float:
        """Tokens of separate sides divided by tokens of trees: the most that sharing can gain at a cost per token."""
        suffixes = sum(2 * p.descriptor + sum(p.answers) for p in self.pairs)
        shared = sum(p.shared for p in self.pairs)
        return (2 * shared + suffixes) / (shared + suffixes)


def shape(name: str) -> Shape:
    """Return a shape by name. Raises UserError if its lengths come from data that is missing."""
    if name == "vcd":
        return Shape(name, (PairLengths(300, 15, (45, 45)),) * 4, "pft", 512, preamble=30)
    if name == "bqd":
        # Rows of 142 tokens on average: a question of 56 to 156, a descriptor of 23, and an answer of 15.
        spread = (-48, -36, -24, -12, 8, 24, 36, 52)
        return Shape(name, tuple(PairLengths(104 + d, 23, (15, 15)) for d in spread), "pft", 512, preamble=5)
    if name == "dpo1500":
        return Shape(name, (PairLengths(1500, 0, (60, 60)),), "dpo", None, preamble=0)
    if name == "alignx":
        return Shape(name, (PairLengths(4096, 0, (150, 150)),), "dpo", None, preamble=0)
    return Shape(name, tuple(real_vcd_lengths()[:8]), "pft", None, preamble=30)


def real_vcd_lengths() -> list[PairLengths]:
    """Return the lengths of the released VCD pairs with our prompt: characters divided by CHARACTERS_PER_TOKEN."""
    file = Path(os.environ.get("PFT_DATA", "")) / "vcd" / "train.json"
    if not file.is_file():
        raise UserError("shape vcd_real needs the released VCD files: set PFT_DATA to the folder that holds vcd/")
    from pft_core.data import SOURCES, AcceptedRow

    rows = json.loads(file.read_text(encoding="utf-8"))
    outcomes = [SOURCES["vcd"](row, "", None) for row in rows]
    chosen = [outcome.record for outcome in outcomes if isinstance(outcome, AcceptedRow)]
    return [_lengths(chosen[i]) for i in np.random.default_rng(0).permutation(len(chosen))]


def _lengths(record: PairedExample) -> PairLengths:
    style, space = PromptStyle("after", "option"), load_space("vcd")
    prompts = [render_prompt(record, side=side, form="one", style=style, space=space).text for side in SIDES]
    answers = [
        render_answer(record, target_options(record, side=side, form="one"), form="one", style=style) for side in SIDES
    ]
    shared = common_prefix_length([np.frombuffer(p.encode("utf-32-le"), dtype=np.uint32) for p in prompts])
    tokens = [max(1, round(len(text) / CHARACTERS_PER_TOKEN)) for text in answers]
    context = max(1, round((len(prompts[0]) - shared) / CHARACTERS_PER_TOKEN))
    return PairLengths(round(shared / CHARACTERS_PER_TOKEN), context, (tokens[0], tokens[1]))


def examples(chosen: Shape, *, condition_position: str, vocabulary: int, seed: int = 0) -> list[BranchedExample]:
    """Fill a shape with random ids. `before` puts the descriptor right after the preamble, so sides share little."""
    rng = np.random.default_rng(seed)

    def ids(count: int) -> np.ndarray:
        return rng.integers(3, vocabulary, count).astype(np.int32)

    def prompts(pair: PairLengths) -> Sequence[np.ndarray]:
        scenario = ids(pair.shared)
        at = chosen.preamble if condition_position == "before" else pair.shared
        return [np.concatenate([scenario[:at], ids(pair.descriptor), scenario[at:]]) for _ in SIDES]

    return [
        branched_example(f"{chosen.name}-{i}", prompts(p), [ids(n) for n in p.answers], SIDES)
        for i, p in enumerate(chosen.pairs)
    ]
