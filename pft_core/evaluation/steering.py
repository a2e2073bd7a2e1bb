"""Contrastive activation addition (CAA): one direction per axis, added to the residual stream while answers are scored.

CAA needs no training. The direction is the mean difference between the hidden states of the two poles' demonstrations,
under a prompt without a condition (Rimsky et al. 2024; they read the answer's letter, here all label tokens count).
Adding it steers to the first pole, and subtracting it to the second. Layers count from 0; layer l means the residual
stream after it.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from pft_core.data import SIDES, PairedExample, Reject
from pft_core.encoding import BranchedBatch, BranchedExample
from pft_core.errors import UserError, did_you_mean
from pft_core.evaluation.answers import Answer, AnswerSettings, Question, by_likelihood, encode_options, score_branches
from pft_core.files import whole_file
from pft_core.prompts import target_options
from pft_core.scoring import BranchScorer

log = logging.getLogger(__name__)

_SIGNS = {0: 1.0, 1: -1.0, None: 0.0}  # the sign of the direction for each side
_HEADER = "steering"

# R rows (a prompt and one answer each), L padded length, D hidden size, A axes, N layers read.


@dataclass(frozen=True, eq=False)
class SteeringVectors:
    """Directions [N, D] by axis with one row for each of `layers`, and the digests of the prompt template and the base
    model that they were computed with; with others they are meaningless."""

    layers: tuple[int, ...]
    by_axis: dict[str, Tensor]
    template_digest: str
    base_digest: str

    def direction(self, axis: str, layer: int) -> Tensor:
        """Return the direction [D] of an axis at a layer. Raises UserError if there is none for the axis or layer."""
        if axis not in self.by_axis:
            raise UserError(
                f"axis {axis!r} has no steering vector, because no record has it.{did_you_mean(axis, self.by_axis)}"
            )
        if layer not in self.layers:
            raise UserError(f"layer={layer} has no steering vector: use one of the layers {list(self.layers)}")
        return self.by_axis[axis][self.layers.index(layer)]

    def save(self, file: Path) -> Path:
        """Write a safetensors file with one tensor per axis, and everything else as JSON in its metadata; return it."""
        header = {"axes": list(self.by_axis), **asdict(replace(self, by_axis={}))}
        del header["by_axis"]
        with whole_file(file) as unfinished:
            save_file(self.by_axis, unfinished, metadata={_HEADER: json.dumps(header)})
        return file

    @staticmethod
    def load(file: Path, *, template_digest: str, base_digest: str) -> "SteeringVectors":
        """Read a file that `save` wrote. Raises UserError if it is anything else, or belongs to another prompt template
        or base model."""
        try:
            with safe_open(file, framework="pt") as opened:
                header = json.loads(opened.metadata()[_HEADER])
                by_axis = {axis: opened.get_tensor(axis) for axis in header.pop("axes")}
                vectors = SteeringVectors(tuple(header.pop("layers")), by_axis, **header)
        except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{file}: not a file of steering vectors ({error}); compute them again") from None
        for name, stored, expected in (
            ("prompt template", vectors.template_digest, template_digest),
            ("base model", vectors.base_digest, base_digest),
        ):
            if stored != expected:
                raise UserError(
                    f"{file}: steering vectors of another {name} (digest {stored}, not {expected}); compute them again"
                )
        return vectors


def contrast_vectors(
    records: Sequence[PairedExample], *, model: Any, tokenizer: Any, settings: AnswerSettings, layers: Sequence[int]
) -> dict[str, Tensor]:
    """Return the directions [N, D] of each axis of the records, in float32 on the CPU.

    A record gives the mean hidden state over the label tokens of the first pole's demonstration minus that of the
    second pole's; a direction is the mean over records. The demonstrations are the training answers of form `one`, with
    EOS. model: must be in eval mode. Raises UserError if the model does not have a layer.
    """
    scorer = BranchScorer(model, backend="separate")
    modules = [_layer(scorer, layer) for layer in layers]
    pairs = _demonstrations(records, tokenizer=tokenizer, settings=settings)
    sums_NAD = torch.zeros(len(layers), len(settings.space.axes), model.config.hidden_size, dtype=torch.float64)
    with ExitStack() as hooks:
        current = hooks.enter_context(_current_batches(scorer))
        for sums_AD, module in zip(sums_NAD, modules, strict=True):
            hooks.enter_context(module.register_forward_hook(_adder(sums_AD, current)))
        score_branches(pairs, scorer=scorer, tokens_per_batch=settings.tokens_per_batch)
    count_A = torch.bincount(torch.tensor([pair.axis for pair in pairs]), minlength=len(settings.space.axes))
    vectors_NAD = (sums_NAD / count_A.clamp(min=1)[:, None]).float()
    return {axis.name: vectors_NAD[:, a].contiguous() for a, axis in enumerate(settings.space.axes) if count_A[a]}


def _demonstrations(
    records: Sequence[PairedExample], *, tokenizer: Any, settings: AnswerSettings
) -> list[BranchedExample]:
    """Encode each record's prompt without a condition, with one branch for each pole's demonstration."""
    encoded = encode_options([Question(r, "one", None) for r in records], tokenizer=tokenizer, settings=settings)
    pairs = []
    for record, example in zip(records, encoded, strict=True):
        if isinstance(example, BranchedExample):
            targets = [target_options(record, side=side, form="one")[0] for side in SIDES]
            branches = tuple(replace(example.branches[t], side=side) for side, t in zip(SIDES, targets, strict=True))
            axis = settings.space.axes.index(settings.space.axis(record.axis))
            pairs.append(replace(example, branches=branches, axis=axis))
    if len(pairs) < len(records):
        log.warning(
            "steering vectors leave out %d of %d records, which are too long or contain control tokens",
            len(records) - len(pairs),
            len(records),
        )
    return pairs


def _adder(sums_AD: Tensor, current: "_CurrentBatch") -> Any:
    """Return a hook that adds each branch's mean hidden state over its labels, with its side's sign, to its axis."""

    def add(_: nn.Module, __: Any, hidden_RLD: Tensor) -> None:
        weights_RL = current.labels_RL.double() / current.labels_RL.sum(dim=1, keepdim=True)
        means_RD = torch.einsum("rl,rld->rd", weights_RL, hidden_RLD.double()).cpu()
        sign_R = torch.tensor([_SIGNS[side] for side in current.batch.branch_side.tolist()])
        axis_R = current.batch.example_axis[current.batch.branch_example].cpu()
        sums_AD.index_add_(0, axis_R, sign_R[:, None] * means_RD)

    return add


@contextmanager
def steered(scorer: BranchScorer, vector_D: Tensor, *, layer: int, multiplier: float) -> Iterator[None]:
    """Make the scorer's model add `multiplier * vector_D` to the output of a layer within the context.

    The vector is added at every position from the prompt's last token on: that token predicts the first token of the
    answer, and the later ones hold the answer and predict the rest of it. The question itself is unchanged. (Padding
    after the answer changes too, but is never read.) A multiplier of 0 leaves scores bitwise equal.

    The scorer must use the `separate` backend: with shared prefixes, layers see trees instead of rows, and the last
    layer sees only what labels need. Raises UserError if the model does not have the layer.
    """
    assert not scorer.shares_prefix, 'steering needs BranchScorer(model, backend="separate")'

    def shift(_: nn.Module, __: Any, hidden_RLD: Tensor) -> Tensor:
        first_R = current.labels_RL.int().argmax(dim=1)
        places_L = torch.arange(hidden_RLD.shape[1], device=hidden_RLD.device)
        answering_RL = places_L >= first_R[:, None] - 1
        added_D = (multiplier * vector_D).to(hidden_RLD)
        return torch.where(answering_RL[..., None], hidden_RLD + added_D, hidden_RLD)

    with _current_batches(scorer) as current, _layer(scorer, layer).register_forward_hook(shift):
        yield


class _CurrentBatch:
    """The batch that a scorer is running, and the label mask [R, L] of its padded rows."""

    batch: BranchedBatch
    labels_RL: Tensor


@contextmanager
def _current_batches(scorer: BranchScorer) -> Iterator[_CurrentBatch]:
    """Track the scorer's batch: hooks on layers see only hidden states, but need to know where the answers are."""
    current = _CurrentBatch()

    def update(_: nn.Module, arguments: tuple[BranchedBatch]) -> None:
        (current.batch,) = arguments
        current.labels_RL = _labels_of_rows(current.batch)

    with scorer.register_forward_pre_hook(update):
        yield current


def _labels_of_rows(batch: BranchedBatch) -> Tensor:
    """Return which places of the rows hold labels [R, L], with the padding of the `separate` backend."""
    context_R = batch.context_lengths_R.tolist()
    masks = batch.label_mask.split(batch.branch_lengths.tolist())
    rows = [torch.cat([mask.new_zeros(context), mask]) for context, mask in zip(context_R, masks, strict=True)]
    return pad_sequence(rows, batch_first=True)


def _layer(scorer: BranchScorer, layer: int) -> nn.Module:
    layers: nn.ModuleList = scorer.model.get_decoder().layers  # works with and without an adapter
    if not 0 <= layer < len(layers):
        raise UserError(f"layer={layer} does not exist: the model has layers 0 to {len(layers) - 1}")
    return layers[layer]


def by_steering(
    questions: Sequence[Question],
    *,
    scorer: BranchScorer,
    tokenizer: Any,
    settings: AnswerSettings,
    vectors: SteeringVectors,
    layer: int,
    multiplier: float,
) -> list[Answer]:
    """Choose by likelihood, with the axis's direction added for side 0, subtracted for side 1, and left out for None.

    No prompt states a condition.
    """
    groups: dict[tuple[str, int | None], list[int]] = {}
    for i, question in enumerate(questions):
        groups.setdefault((question.record.axis, question.side), []).append(i)
    answers: dict[int, Answer] = {}
    for (axis, side), members in groups.items():
        bare = [replace(questions[i], side=None) for i in members]
        with steered(scorer, vectors.direction(axis, layer), layer=layer, multiplier=_SIGNS[side] * multiplier):
            chosen = by_likelihood(bare, scorer=scorer, tokenizer=tokenizer, settings=settings)
        answers.update(zip(members, chosen, strict=True))
    return [answers[i] for i in range(len(questions))]


@dataclass(frozen=True)
class SweepPoint:
    """A layer and a multiplier, and their accuracy: the mean over axes of *One*, both poles together."""

    layer: int
    multiplier: float
    one: float


def sweep(
    records: Sequence[PairedExample],
    *,
    scorer: BranchScorer,
    tokenizer: Any,
    settings: AnswerSettings,
    vectors: SteeringVectors,
    multipliers: Sequence[float],
) -> tuple[SweepPoint, list[SweepPoint]]:
    """Try every layer of the vectors with every multiplier on validation records; return the best point and all points.

    Of tied points, the one with the smaller multiplier wins, then the one with the earlier layer. Raises UserError if
    no record can be asked.
    """
    questions = [Question(record, "one", side) for record in records for side in SIDES]
    table = []
    for layer, multiplier in product(vectors.layers, multipliers):
        answers = by_steering(
            questions,
            scorer=scorer,
            tokenizer=tokenizer,
            settings=settings,
            vectors=vectors,
            layer=layer,
            multiplier=multiplier,
        )
        table.append(SweepPoint(layer, multiplier, mean_one(questions, answers)))
    return min(table, key=lambda point: (-point.one, point.multiplier, point.layer)), table


def mean_one(questions: Sequence[Question], answers: Sequence[Answer]) -> float:
    """Return the mean over axes of the share of right answers; rejected questions do not count. Raises UserError if all
    are rejected."""
    right: dict[str, list[bool]] = {}
    for question, answer in zip(questions, answers, strict=True):
        if not isinstance(answer, Reject):
            assert question.side is not None
            gold = question.record.of_side(question.side)
            right.setdefault(question.record.axis, []).append(answer is not None and answer <= set(gold))
    if not right:
        raise UserError("steering: every validation record was rejected: raise encoding.max_length")
    return fmean(fmean(hits) for hits in right.values())
