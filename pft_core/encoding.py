"""Views: a record becomes a BranchedExample, a shared prefix and one branch per side.

Prompt and answer are rendered once and tokenised together; label masks come from the tokens' character spans, so a
token that holds any character of the answer carries loss. The prefix is the longest common *token-id* prefix of the
prompts: strings would not do, as merges cross boundaries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pft_core.errors import UserError
from pft_core.preferences import SIDES, PreferenceSpace
from pft_core.prompts import PromptStyle, render_answer, render_prompt, target_options
from pft_core.records import Form, PairedExample, Reject
from pft_core.token_places import PlacedTokens, place_tokens

Mask = Literal["exact", "paper"]
OverlongPolicy = Literal["reject", "cut_prompt"]
View = Literal["pft", "preference"]

# A view's branches: the side that the prompt asks for, and the side that the answer shows. Those of "preference"
# alternate, chosen and rejected.
VIEWS: dict[View, tuple[tuple[int, int], ...]] = {
    "pft": ((0, 0), (1, 1)),
    "preference": ((0, 0), (0, 1), (1, 1), (1, 0)),
}


@dataclass(frozen=True)
class Branch:
    """One continuation of the prefix: token ids [T], label mask [T] (True where the token carries loss), the side that
    its prompt asks for, and the log-probability of its labels under a reference policy, where one is used."""

    input_ids: NDArray[np.int32]
    label_mask: NDArray[np.bool_]
    side: int
    reference_logp: float = 0.0

    @property
    def num_labels(self) -> int:
        return int(np.count_nonzero(self.label_mask))


@dataclass(frozen=True)
class BranchedExample:
    """A small tree: token ids of the shared prefix [S] and the branches that follow it; axis: its place in the space.

    Invariant: with an empty prefix no branch starts with a label, as nothing would predict it.
    """

    id: str
    prefix_ids: NDArray[np.int32]
    branches: tuple[Branch, ...]
    axis: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens of the tree: prefix once, each branch once."""
        return len(self.prefix_ids) + sum(len(b.input_ids) for b in self.branches)

    @property
    def num_tokens_separate(self) -> int:
        """Tokens when each branch is run with its own copy of the prefix."""
        return sum(len(self.prefix_ids) + len(b.input_ids) for b in self.branches)


@dataclass(frozen=True)
class LabelCounts:
    """What is known of E examples before a forward: label tokens per branch [E, B], the side that each branch is asked
    under [B], and the axis of each example [E]."""

    num_labels_EB: NDArray[np.int64]
    side_B: NDArray[np.int64]
    axis_E: NDArray[np.int64]

    def per_side(self) -> NDArray[np.int64]:
        """Label tokens per example and side [E, 2]."""
        columns = [self.num_labels_EB[:, self.side_B == side].sum(axis=1) for side in SIDES]
        return np.stack(columns, axis=1)


@dataclass(frozen=True)
class TokenizedAnswer:
    """Prompt and answer tokenised as one text: ids [T], where the answer starts, and which tokens a cut may drop."""

    ids: NDArray[np.int32]
    answer_start: int
    scenario_tokens: tuple[int, int]


@dataclass(frozen=True)
class EncodingSpec:
    """What decides token ids and masks, besides the tokenizer and the records."""

    style: PromptStyle
    max_length: int
    mask: Mask = "exact"
    overlong: OverlongPolicy = "reject"
    view: View = "pft"


def branched_example(
    example_id: str, prompts: Sequence[NDArray[np.int32]], answers: Sequence[NDArray[np.int32]], sides: Sequence[int]
) -> BranchedExample:
    """Build the tree from prompt and answer ids of each branch: labels are exactly the answer tokens."""
    shared = common_prefix_length(prompts)
    branches = []
    for prompt, answer, side in zip(prompts, answers, sides, strict=True):
        ids = np.concatenate([prompt[shared:], answer]).astype(np.int32, copy=False)
        branches.append(Branch(ids, np.arange(len(ids)) >= len(prompt) - shared, side))
    return BranchedExample(example_id, np.asarray(prompts[0][:shared], dtype=np.int32), tuple(branches))


def common_prefix_length(sequences: Sequence[NDArray[np.int32]]) -> int:
    """Return the length of the longest common prefix of integer sequences."""
    shortest = min(len(s) for s in sequences)
    equal = np.ones(shortest, dtype=bool)
    for other in sequences[1:]:
        equal &= np.asarray(sequences[0][:shortest]) == np.asarray(other[:shortest])
    return int(shortest if equal.all() else equal.argmin())


def select_sides(example: BranchedExample, sides: Sequence[int]) -> BranchedExample:
    """Keep only the branches of these sides (one-sided training, or one phase of the asynchronous update)."""
    return replace(example, branches=tuple(b for b in example.branches if b.side in sides))


def without_first_label(branch: Branch) -> Branch:
    """Drop the first label: `mask="paper"` (the released trainer's mask is one token too long)."""
    mask = branch.label_mask.copy()
    mask[mask.argmax()] = False
    return replace(branch, label_mask=mask)


def tokenize(
    texts: Sequence[str], prompt_lengths: Sequence[int], spans: Sequence[tuple[int, int]], tokenizer: Any
) -> list[TokenizedAnswer]:
    """Tokenise prompt + answer texts in one call.

    texts: prompt and answer as one string; prompt_lengths: characters of the prompt; spans: characters of the scenario.
    A BOS token is prepended where the tokenizer uses one, EOS ends every answer. Raises UserError for a tokenizer
    that has no character offsets or no EOS.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} gives no character offsets: use a fast tokenizer (tokenizer.json)"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"tokenizer {tokenizer.name_or_path!r} has no EOS token: set eos_token in tokenizer_config.json"
        )
    bos, bos_token, eos = leading_bos(tokenizer), tokenizer.bos_token, tokenizer.eos_token_id
    # Chat templates write BOS themselves; a second one would be a prompt the model has never seen.
    return [
        _tokenized(tokens, n, span, [] if bos_token and text.startswith(bos_token) else bos, eos)
        for tokens, n, span, text in zip(place_tokens(texts, tokenizer), prompt_lengths, spans, texts, strict=True)
    ]


def tokenize_prompts(texts: Sequence[str], tokenizer: Any) -> list[NDArray[np.int32]]:
    """Tokenise prompts that are to be continued: as in `tokenize`, without an answer's EOS. Raises UserError too."""
    rows = tokenize(texts, [len(text) for text in texts], [(0, 0)] * len(texts), tokenizer)
    return [row.ids[:-1] for row in rows]


def leading_bos(tokenizer: Any) -> list[int]:
    """Return the BOS id as a list where the tokenizer prepends one, else an empty list."""
    probe = tokenizer("x", add_special_tokens=True)["input_ids"]
    return probe[:1] if tokenizer.bos_token_id is not None and probe[:1] == [tokenizer.bos_token_id] else []


def _tokenized(
    tokens: PlacedTokens, prompt_length: int, span: tuple[int, int], bos: list[int], eos: int
) -> TokenizedAnswer:
    first, last = tokens.starting_before(span[0]), tokens.ending_by(span[1])
    shift = len(bos)
    ids = np.concatenate([bos, tokens.ids, [eos]], dtype=np.int32, casting="unsafe")
    return TokenizedAnswer(ids, tokens.ending_by(prompt_length) + shift, (first + shift, max(first, last) + shift))


def encode_pairs(
    items: Sequence[tuple[PairedExample, Form]], *, spec: EncodingSpec, space: PreferenceSpace, tokenizer: Any
) -> tuple[list[BranchedExample], list[Reject]]:
    """Encode the spec's view: per item a prefix, and a branch for each prompt and answer that the view names.

    Items longer than `spec.max_length` in any branch are rejected, or lose tokens from the head of the scenario
    (never of the answer, and the same tokens in every branch). Example ids are `record id:form`.
    """
    texts, prompt_lengths, spans = [], [], []
    for record, form in items:
        for asked, shown in VIEWS[spec.view]:
            prompt = render_prompt(record, side=asked, form=form, style=spec.style, space=space)
            answer = render_answer(record, target_options(record, side=shown, form=form), form=form, style=spec.style)
            texts.append(prompt.text + answer)
            prompt_lengths.append(len(prompt.text))
            spans.append(prompt.scenario_span)
    rows = tokenize(texts, prompt_lengths, spans, tokenizer) if texts else []
    examples: list[BranchedExample] = []
    rejects: list[Reject] = []
    count = len(VIEWS[spec.view])
    for i, (record, form) in enumerate(items):
        axis = space.axes.index(space.axis(record.axis))
        outcome = _tree(f"{record.id}:{form}", rows[count * i : count * (i + 1)], spec, axis)
        (examples if isinstance(outcome, BranchedExample) else rejects).append(outcome)  # type: ignore[arg-type]
    return examples, rejects


def _tree(example_id: str, rows: Sequence[TokenizedAnswer], spec: EncodingSpec, axis: int) -> BranchedExample | Reject:
    excess = max(len(r.ids) for r in rows) - spec.max_length
    if excess > 0:
        cuttable = min(r.scenario_tokens[1] - r.scenario_tokens[0] for r in rows)
        if spec.overlong == "reject" or excess > cuttable:
            longest = max(len(r.ids) for r in rows)
            return Reject(example_id, "scenario", "overlong", f"{longest} tokens, max_length is {spec.max_length}")
        rows = [_without_scenario_head(r, excess) for r in rows]
    prompts = [r.ids[: r.answer_start] for r in rows]
    answers = [r.ids[r.answer_start :] for r in rows]
    sides = [asked for asked, _ in VIEWS[spec.view]]
    example = replace(branched_example(example_id, prompts, answers, sides), axis=axis)
    if spec.mask == "paper":
        return replace(example, branches=tuple(without_first_label(b) for b in example.branches))
    return example


def _without_scenario_head(row: TokenizedAnswer, count: int) -> TokenizedAnswer:
    start, end = row.scenario_tokens
    ids = np.concatenate([row.ids[:start], row.ids[start + count :]])
    return TokenizedAnswer(ids, row.answer_start - count, (start, end - count))
