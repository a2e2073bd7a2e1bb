"""One record as the model sees it: the rendered prompt and answer under both poles, and the label tokens."""

from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from pft_core.data import DatasetManifest, Form, PairedExample, PreferenceSpace, read_records, worded_as
from pft_core.encoding import Branch, BranchedExample, EncodingSpec, encode_pairs, select_sides
from pft_core.errors import UserError
from pft_core.policies import reference_at
from pft_core.prompts import PromptSettings, PromptStyle
from pipelines.console import console, printable
from pipelines.encode.model_tokenizer import ModelTokenizer


@dataclass(frozen=True)
class ShownSide:
    """One side of a pair. text: prompt and answer, decoded from the tokens. labels: the part with a loss."""

    pole: str
    form: str
    text: str
    labels: str
    num_tokens: int
    num_labels: int


def show_prompt(data: str, model: str, *, row: int) -> dict[str, Any]:
    """Print a record, counted from 1, in the prompt style of a trained run or a base model.

    Result: id, axis and both sides, or the only one. Raises UserError if the row does not exist or is rejected.
    """
    manifest = DatasetManifest.load(Path(data))
    record = read_record(Path(data), manifest, row)
    style, space, tokenizer = prompt_style_of(model, manifest)
    sides = range(len(space.axis(record.axis).poles))
    shown: list[ShownSide] = []
    for form in manifest.forms:
        example = encode_record(record, form, style, space, tokenizer, where=f"{data}: row {row}")
        branches = select_sides(example, sides).branches
        shown += [print_side(record, form, example, branch, space, tokenizer) for branch in branches]
    return {"id": record.id, "axis": record.axis, "sides": [asdict(side) for side in shown]}


def read_record(data: Path, manifest: DatasetManifest, row: int) -> PairedExample:
    in_range = 0 < row <= manifest.rows_out
    record = next(islice(read_records(data, manifest), row - 1, row), None) if in_range else None
    if record is None:
        raise UserError(f"--row {row}: {data} has rows 1 to {manifest.rows_out}")
    return record


def prompt_style_of(model: str, manifest: DatasetManifest) -> tuple[PromptStyle, PreferenceSpace, Any]:
    """Return prompt style, space and tokenizer of a run or a base model. Raises UserError."""
    if ref := reference_at(model):
        return ref.style, worded_as(ref.space, manifest.space), ModelTokenizer(ref.weights or ref.base).loaded
    tokenizer = ModelTokenizer(model)
    return tokenizer.facts(PromptSettings()).style, manifest.space, tokenizer.loaded


def encode_record(
    record: PairedExample, form: Form, style: PromptStyle, space: PreferenceSpace, tokenizer: Any, *, where: str
) -> BranchedExample:
    examples, rejects = encode_pairs([(record, form)], spec=EncodingSpec(style), space=space, tokenizer=tokenizer)
    for reject in rejects:
        raise UserError(f"{where}: rejected in training: {reject.reason}: {reject.detail}")
    return examples[0]


def print_side(
    record: PairedExample, form: str, example: BranchedExample, branch: Branch, space: PreferenceSpace, tokenizer: Any
) -> ShownSide:
    ids = [*example.prefix_ids.tolist(), *branch.input_ids.tolist()]
    mask = [*np.zeros(len(example.prefix_ids), dtype=bool).tolist(), *branch.label_mask.tolist()]
    runs = [(is_label, [ids[i] for i in places]) for is_label, places in groupby(range(len(ids)), mask.__getitem__)]
    parts = [(is_label, printable(tokenizer.decode(run, clean_up_tokenization_spaces=False))) for is_label, run in runs]
    labels = "".join(text for is_label, text in parts if is_label)
    pole = space.axis(record.axis).poles[branch.side].name
    side = ShownSide(pole, form, "".join(text for _, text in parts), labels, len(ids), branch.num_labels)
    console.rule(f"{record.axis} / {pole}, {form}: {side.num_tokens} tokens, {side.num_labels} of them labels")
    console.print(Text.assemble(*((text, "bold green" if is_label else "") for is_label, text in parts)))
    return side
