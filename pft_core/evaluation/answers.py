"""Ask a policy: records become questions, and its answers become choices, by likelihood or by generation.

By likelihood, the candidates are branches of one prompt, and the highest log-probability wins: the sum for letters, the
mean per label token for texts of unequal length. By generation, a greedy reply is parsed strictly.
"""

from __future__ import annotations  # only types name the scorer, so a driver imports this without torch

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, islice
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pft_core.data import Form, PairedExample, PreferenceSpace, Reject
from pft_core.encoding import BranchedExample, TokenizedAnswer, branched_example, reject_control_tokens, tokenize
from pft_core.evaluation.choices import parse_choice, parse_choices, parse_option, parse_options
from pft_core.evaluation.metrics import Choice, Outcome, WeightedChoice
from pft_core.files import digest
from pft_core.prompts import Prompt, PromptStyle, condition_text, in_turns, render_answer, render_prompt

if TYPE_CHECKING:
    from pft_core.scoring import BranchScorer

MAX_OPTIONS_FOR_SUBSETS = 5  # 31 non-empty subsets; with more options, *All* needs generation

CONDITIONS: dict[Form, tuple[int | None, ...]] = {"one": (0, 1, None), "all": (0, 1)}  # sides; None: no condition


@dataclass(frozen=True)
class Question:
    """One prompt: a record, a request for one option or for all, and the condition's side (None: no condition).

    history: text before the question in the user's message. others: axis and side of further poles that the prompt
    states.
    """

    record: PairedExample
    form: Form
    side: int | None
    history: str = ""
    others: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class AnswerSettings:
    """Wording and limits of questions. A batch holds at most `tokens_per_batch` padded tokens, or a single question."""

    style: PromptStyle
    space: PreferenceSpace
    max_length: int
    tokens_per_batch: int
    max_new_tokens: int


Answer = Choice | Reject  # to a question: the chosen options, or why it was not asked
Answerer = Callable[[Sequence[Question]], list[Answer]]  # answers questions, in their order


def ask(
    items: Sequence[tuple[PairedExample, Form]],
    answer: Answerer,
    base_answer: Answerer | None,
    *,
    unconditioned: bool = True,
    one_pole_axes: Collection[str] = (),
) -> list[Outcome | Reject]:
    """Ask every item under its conditions. If a question is rejected, its item is rejected for the same reason.

    base_answer: answers for the policy's base without a condition; None if the policy is its own base.
    unconditioned: whether to ask items without a condition too, which only `leak` needs. one_pole_axes: axes whose
    items are asked once, without a condition, as their scenarios show the pole.
    """
    sides = {form: [side for side in CONDITIONS[form] if unconditioned or side is not None] for form in CONDITIONS}
    alone = [Question(record, form, None) for record, form in items if record.axis in one_pole_axes]
    pairs = [(record, form) for record, form in items if record.axis not in one_pole_axes]
    questions = [Question(record, form, side) for record, form in pairs for side in sides[form]]
    answers = dict(zip([*questions, *alone], answer([*questions, *alone]), strict=True))
    free = [question for question in questions if question.side is None]
    base_answers = dict(zip(free, base_answer(free), strict=True)) if base_answer and free else answers
    return [
        _outcome_of_one_pole(answers, Question(record, form, None))
        if record.axis in one_pole_axes
        else _outcome(record, form, answers, base_answers)
        for record, form in items
    ]


def _outcome_of_one_pole(answers: dict[Question, Answer], question: Question) -> Outcome | Reject:
    record, answer = question.record, answers[question]
    if isinstance(answer, Reject):
        return answer
    return Outcome(
        record.id,
        digest(record.scenario),
        record.axis,
        question.form,
        tuple(option.side for option in record.options),
        (answer,),
        scenario_text=record.scenario,
        options=tuple(option.text for option in record.options),
        probabilities=(answer.probabilities,) if isinstance(answer, WeightedChoice) else (),
    )


def _outcome(
    record: PairedExample, form: Form, answers: dict[Question, Answer], base_answers: dict[Question, Answer]
) -> Outcome | Reject:
    first, second, free = (answers.get(Question(record, form, side)) for side in (0, 1, None))
    base = base_answers.get(Question(record, form, None))
    for answer in (first, second, free, base):
        if isinstance(answer, Reject):
            return answer
    sides = tuple(option.side for option in record.options)
    options = tuple(option.text for option in record.options)
    return Outcome(
        record.id,
        digest(record.scenario),
        record.axis,
        form,
        sides,
        (first, second),  # type: ignore[arg-type]  # the loop has returned any reject, here and below
        free,  # type: ignore[arg-type]  # as above
        base,  # type: ignore[arg-type]  # as above
        record.scenario,
        options,
        tuple(each.probabilities for each in (first, second) if isinstance(each, WeightedChoice)),
    )


def by_likelihood(
    questions: Sequence[Question], *, scorer: BranchScorer, tokenizer: Any, settings: AnswerSettings
) -> list[Answer]:
    """Choose the candidate answer with the highest log-probability."""
    encoded = encode_options(questions, tokenizer=tokenizer, settings=settings)
    examples = [e for e in encoded if isinstance(e, BranchedExample)]
    scores = iter(score_branches(examples, scorer=scorer, tokens_per_batch=settings.tokens_per_batch))
    return [
        outcome
        if isinstance(outcome, Reject)
        else best(question, comparable(question, outcome, next(scores), settings))
        for question, outcome in zip(questions, encoded, strict=True)
    ]


def comparable(
    question: Question, example: BranchedExample, logps: NDArray[np.float32], settings: AnswerSettings
) -> NDArray[np.float32]:
    """Return scores of the candidates, computed from the log-probabilities of their branches; the highest wins."""
    if settings.style.answer == "option" or question.record.presentation == "response":
        # Texts differ in length: sums would favor short ones.
        num_labels = np.array([branch.num_labels for branch in example.branches], dtype=np.float32)
        return np.divide(logps, num_labels, dtype=np.float32)
    return logps


def best(question: Question, scores: NDArray[Any]) -> frozenset[int]:
    """Return the candidate with the highest score; for form `one`, with the probabilities of all options."""
    chosen = candidates(question)[int(scores.argmax())]
    return WeightedChoice(chosen, probabilities_of(scores)) if question.form == "one" else frozenset(chosen)


def probabilities_of(scores: NDArray[Any]) -> NDArray[np.float64]:
    """Return the probability of each candidate: the softmax of comparable scores."""
    odds = np.exp(scores.astype(np.float64) - scores.max())
    return np.asarray(odds / odds.sum())


def candidates(question: Question) -> list[tuple[int, ...]]:
    """Return the answers to choose from: every option, or for form `all` every non-empty subset of the options."""
    options = range(len(question.record.options))
    sizes = options if question.form == "all" else range(1)
    return [chosen for size in sizes for chosen in combinations(options, size + 1)]


def encode_options(
    questions: Sequence[Question], *, tokenizer: Any, settings: AnswerSettings
) -> list[BranchedExample | Reject]:
    """Encode the `options` view: per question a prompt, and one branch per candidate (`Branch.side` is its index)."""
    rejects = {
        i: reject for i, q in enumerate(questions) if (reject := unscorable(q) or _unaskable(q, tokenizer, settings))
    }
    texts, prompt_lengths, spans, counts = [], [], [], []
    for i, question in enumerate(questions):
        chosen = [] if i in rejects else candidates(question)
        prompt = _prompt(question, tokenizer, settings)
        answers = [render_answer(question.record, c, form=question.form, style=settings.style) for c in chosen]
        texts += [prompt.text + answer for answer in answers]
        prompt_lengths += [len(prompt.text)] * len(chosen)
        spans += [prompt.scenario_span] * len(chosen)
        counts.append(len(chosen))
    rows = iter(tokenize(texts, prompt_lengths, spans, tokenizer) if texts else [])
    return [rejects.get(i) or _branches(q, list(islice(rows, counts[i])), settings) for i, q in enumerate(questions)]


def _branches(
    question: Question, rows: Sequence[TokenizedAnswer], settings: AnswerSettings
) -> BranchedExample | Reject:
    longest = max(len(row.ids) for row in rows)
    if longest > settings.max_length:
        return _overlong(question, longest, settings)
    prompts = [row.ids[: row.answer_start] for row in rows]
    answers = [row.ids[row.answer_start :] for row in rows]
    return branched_example(question.record.id, prompts, answers, range(len(rows)))


def unscorable(question: Question) -> Reject | None:
    """Return why a question cannot be accepted by likelihood, or None if it can."""
    num_options = len(question.record.options)
    if question.form == "all" and question.record.presentation == "response":
        return _reject(question, "no_listed_options", "free answers are not listed in the prompt: use form one")
    if question.form == "all" and num_options > MAX_OPTIONS_FOR_SUBSETS:
        detail = f"{num_options} options; more than {MAX_OPTIONS_FOR_SUBSETS} need scoring=generate"
        return _reject(question, "too_many_subsets", detail)
    return None


def _unaskable(question: Question, tokenizer: Any, settings: AnswerSettings) -> Reject | None:
    """Return a reject if a text of the question contains a control token or the template refuses its turns, or None."""
    record, style, question_id = question.record, settings.style, f"{question.record.id}:{question.form}"
    stated = [(record.axis, question.side), *question.others]
    lines = [condition_text(settings.space, axis, side, condition=style.condition) for axis, side in stated]
    reject = reject_control_tokens(question_id, record, tokenizer, beside=[*lines, question.history])
    framed = reject or in_turns(question_id, record, style, tokenizer)
    return framed if isinstance(framed, Reject) else None


def score_branches(
    examples: Sequence[BranchedExample], *, scorer: BranchScorer, tokens_per_batch: int
) -> list[NDArray[np.float32]]:
    """Return the log-probabilities of each example's branches, in the order of the examples."""
    import torch

    from pft_core.encoding import collate, group_questions, joined, plan_bins

    groups = group_questions(examples, max_tokens=tokens_per_batch) if scorer.shares_prefix else [[e] for e in examples]
    trees = [joined(group) for group in groups]
    num_tokens = [tree.num_tokens if scorer.shares_prefix else _padded_tokens(tree) for tree in trees]
    device = next(scorer.parameters()).device
    scores: dict[int, NDArray[np.float32]] = {}
    for members in plan_bins(num_tokens, tokens_per_microbatch=max([tokens_per_batch, *num_tokens])):
        batch = collate([trees[i] for i in members]).to(device)
        with torch.no_grad():
            logps = scorer(batch).cpu().numpy()
        scores.update(zip(members, _by_example(logps, [trees[i] for i in members]), strict=True))
    return [logps for i, group in enumerate(groups) for logps in _by_example(scores[i], group)]


def _by_example(logps: NDArray[np.float32], examples: Sequence[BranchedExample]) -> list[NDArray[np.float32]]:
    """Cut the log-probabilities of all branches into those of each example."""
    return np.split(logps, np.cumsum([len(example.branches) for example in examples])[:-1])


def _padded_tokens(example: BranchedExample) -> int:
    """Return the tokens of an example's rows, each of which holds the prefix and one branch padded to the longest."""
    return len(example.branches) * (len(example.prefix_ids) + max(len(b.input_ids) for b in example.branches))


def by_generation(
    questions: Sequence[Question], *, model: Any, tokenizer: Any, settings: AnswerSettings
) -> list[Answer]:
    """Generate greedily and parse strictly; a reply without a parsable choice becomes None."""
    prompts = _prompt_ids(questions, tokenizer=tokenizer, settings=settings)
    outcomes: list[Answer] = [
        _ungeneratable(q, ids, settings) or _unaskable(q, tokenizer, settings)
        for q, ids in zip(questions, prompts, strict=True)
    ]
    accepted = [i for i, outcome in enumerate(outcomes) if outcome is None]
    replies = write_greedily([prompts[i] for i in accepted], model=model, tokenizer=tokenizer, settings=settings)
    for i, reply in zip(accepted, replies, strict=True):
        outcomes[i] = read_reply(reply, questions[i], settings.style)
    return outcomes


def write_greedily(
    prompts: Sequence[NDArray[np.int32]], *, model: Any, tokenizer: Any, settings: AnswerSettings
) -> list[str]:
    """Return the greedy continuation of each prompt as text; batches hold up to `settings.tokens_per_batch` tokens."""
    from pft_core.encoding import plan_bins

    num_tokens = [len(ids) + settings.max_new_tokens for ids in prompts]
    replies: dict[int, str] = {}
    for planned in plan_bins(num_tokens, tokens_per_microbatch=max([settings.tokens_per_batch, *num_tokens])):
        for members in _without_padding(planned, num_tokens) if _follows_length(model) else [planned]:
            batch = [prompts[i] for i in members]
            texts = generate(batch, model=model, tokenizer=tokenizer, max_new_tokens=settings.max_new_tokens)
            replies.update(zip(members, texts, strict=True))
    return [replies[i] for i in range(len(prompts))]


def _follows_length(model: Any) -> bool:
    """Return whether a model's positional encoding depends on the length of the text, so that padding changes it."""
    from pft_core.policies import follows_length

    return follows_length(model.get_base_model() if hasattr(model, "get_base_model") else model)


def _without_padding(members: Sequence[int], num_tokens: Sequence[int]) -> list[list[int]]:
    """Split a bin, sorted from longest to shortest, into groups of equal lengths."""
    return [list(run) for _, run in groupby(members, key=lambda i: num_tokens[i])]


def _prompt_ids(questions: Sequence[Question], *, tokenizer: Any, settings: AnswerSettings) -> list[NDArray[np.int32]]:
    prompts = [_prompt(question, tokenizer, settings) for question in questions]
    texts = [prompt.text for prompt in prompts]
    rows = tokenize(texts, [len(text) for text in texts], [prompt.scenario_span for prompt in prompts], tokenizer)
    return [row.ids[:-1] for row in rows]  # without the EOS that ends an answer


def _ungeneratable(question: Question, ids: NDArray[np.int32], settings: AnswerSettings) -> Reject | None:
    if question.record.presentation == "response":
        return _reject(
            question, "no_listed_options", "free answers are not listed in the prompt: use scoring=letter or option"
        )
    length = len(ids) + settings.max_new_tokens
    return _overlong(question, length, settings) if length > settings.max_length else None


def generate(prompts: Sequence[NDArray[np.int32]], *, model: Any, tokenizer: Any, max_new_tokens: int) -> list[str]:
    """Return the greedy continuation of each prompt as text, in one batch; left padding aligns the replies."""
    import torch

    from pft_core.policies import end_tokens

    longest, ends = max(len(ids) for ids in prompts), end_tokens(tokenizer, model.generation_config.eos_token_id)
    # The tokenizer's own pad token may have no embedding in the model; padding is masked anyway.
    pad = tokenizer.eos_token_id
    ids_BL = torch.tensor([[pad] * (longest - len(ids)) + ids.tolist() for ids in prompts], device=model.device)
    mask_BL = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for ids in prompts], device=model.device)
    # A hub model's generation config may set a repetition penalty, which would change greedy decoding.
    with torch.no_grad():
        replies_BL = model.generate(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=list(ends),
        )[:, longest:]
    # End tokens are not part of the text, even if they are not special tokens.
    texts_BL = replies_BL.masked_fill(torch.isin(replies_BL, torch.tensor(ends, device=replies_BL.device)), pad)
    replies: list[str] = tokenizer.batch_decode(texts_BL, skip_special_tokens=True)
    return replies


def read_reply(reply: str, question: Question, style: PromptStyle) -> Choice:
    """Parse a reply according to the question's form and the style's kind of answer."""
    options = [option.text for option in question.record.options]
    if question.form == "all":
        return parse_options(reply, options) if style.answer == "option" else parse_choices(reply, len(options))
    index = parse_option(reply, options) if style.answer == "option" else parse_choice(reply, len(options))
    return None if index is None else frozenset({index})


def _prompt(question: Question, tokenizer: Any, settings: AnswerSettings) -> Prompt:
    """Render a question; one whose turns the template refuses, which is not asked, as a single message."""
    form, side, space = question.form, question.side, settings.space
    framed = in_turns("", question.record, settings.style, tokenizer)
    record, style = (question.record, settings.style) if isinstance(framed, Reject) else framed
    prompt = render_prompt(record, side=side, form=form, style=style, space=space, others=question.others)
    opening, added = len(style.frame.opening), len(question.history)
    start, end = prompt.scenario_span
    return Prompt(prompt.text[:opening] + question.history + prompt.text[opening:], (start + added, end + added))


def _overlong(question: Question, num_tokens: int, settings: AnswerSettings) -> Reject:
    return _reject(
        question, "overlong", f"{num_tokens} tokens, max_length is {settings.max_length}", key_path="scenario"
    )


def _reject(question: Question, reason: str, detail: str, *, key_path: str = "options") -> Reject:
    return Reject(f"{question.record.id}:{question.form}", key_path, reason, detail)
