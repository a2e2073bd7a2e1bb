"""One record as a model is trained on it: prompt and answer of either pole as rendered, and which tokens are labels."""

from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from pft_core.data import DatasetManifest, Form, PairedExample, PreferenceSpace, read_records, worded_as
from pft_core.encoding import Branch, BranchedExample, EncodingSpec, encode_pairs
from pft_core.errors import UserError
from pft_core.policies import MODEL_REF_NAME, ModelRef
from pft_core.prompts import PromptSettings, PromptStyle
from pipelines.console import console
from pipelines.encode.model_tokenizer import ModelTokenizer


@dataclass(frozen=True)
class ShownSide:
    """What a pair has under one pole. text: prompt and answer, as the tokens say it; labels: the part with a loss."""

    pole: str
    form: str
    text: str
    labels: str
    num_tokens: int
    num_labels: int


def show_prompt(data: str, model: str, *, row: int) -> dict[str, Any]:
    """Print the record of that number, the first is 1, in the words of a trained run or of an untrained model.

    Result: id, axis and what each pole has. Raises UserError for a row that is not there or that is rejected.
    """
    manifest = DatasetManifest.load(Path(data))
    record = record_at(Path(data), manifest, row)
    style, space, tokenizer = words_of(model, manifest)
    shown: list[ShownSide] = []
    for form in manifest.forms:
        example = encoded(record, form, style, space, tokenizer, where=f"{data}: row {row}")  # type: ignore[arg-type]
        shown += [print_side(record, form, example, branch, space, tokenizer) for branch in example.branches]
    return {"id": record.id, "axis": record.axis, "sides": [asdict(side) for side in shown]}


def record_at(data: Path, manifest: DatasetManifest, row: int) -> PairedExample:
    in_range = 0 < row <= manifest.rows_out
    found = next(islice(read_records(data, manifest), row - 1, row), None) if in_range else None
    if found is None:
        raise UserError(f"--row {row}: {data} has the rows 1 to {manifest.rows_out}")
    return found


def words_of(model: str, manifest: DatasetManifest) -> tuple[PromptStyle, PreferenceSpace, Any]:
    """Return style, space and tokenizer. Raises UserError."""
    path = Path(model).resolve()
    if path.is_file() or (path / MODEL_REF_NAME).is_file():
        ref = ModelRef.load(path)
        return ref.style, worded_as(ref.space, manifest.space), ModelTokenizer(ref.weights or ref.base).loaded
    tokenizer = ModelTokenizer(model)
    return tokenizer.facts(PromptSettings()).style, manifest.space, tokenizer.loaded


def encoded(
    record: PairedExample, form: Form, style: PromptStyle, space: PreferenceSpace, tokenizer: Any, *, where: str
) -> BranchedExample:
    examples, rejects = encode_pairs([(record, form)], spec=EncodingSpec(style), space=space, tokenizer=tokenizer)
    for reject in rejects:
        raise UserError(f"{where}: is not trained on: {reject.reason}: {reject.detail}")
    return examples[0]


def print_side(
    record: PairedExample, form: str, example: BranchedExample, branch: Branch, space: PreferenceSpace, tokenizer: Any
) -> ShownSide:
    ids = [*example.prefix_ids.tolist(), *branch.input_ids.tolist()]
    mask = [*np.zeros(len(example.prefix_ids), dtype=bool).tolist(), *branch.label_mask.tolist()]
    runs = [(is_label, [ids[i] for i in places]) for is_label, places in groupby(range(len(ids)), mask.__getitem__)]
    parts = [(is_label, plain(tokenizer.decode(run, clean_up_tokenization_spaces=False))) for is_label, run in runs]
    labels = "".join(text for is_label, text in parts if is_label)
    pole = space.axis(record.axis).poles[branch.side].name
    side = ShownSide(pole, form, "".join(text for _, text in parts), labels, len(ids), branch.num_labels)
    console.rule(f"{record.axis} / {pole}, {form}: {side.num_tokens} tokens, {side.num_labels} of them labels")
    console.print(Text.assemble(*((text, "bold green" if is_label else "") for is_label, text in parts)))
    return side


def plain(text: str) -> str:
    """Leave out what would steer a terminal."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)
