"""The encoded layer: tokenized pairs as uncompressed Arrow IPC parts, memory-mapped and read by index.

There is one part per record shard, in shard order, so that rows are in the order of records. A layer is written once
in bulk and keyed by everything that decides token ids; training steps read rows and lengths without tokenizing.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
from numpy.typing import NDArray

from pft_core.data import Form, PreferenceSpace, read_shard
from pft_core.encoding.control_tokens import REASON as CONTROL_TOKEN
from pft_core.encoding.examples import Branch, BranchedExample, LabelCounts
from pft_core.encoding.views import VIEWS, EncodingSpec, View, encode_pairs
from pft_core.errors import UserError
from pft_core.files import digest, file_sha256, read_json, whole_file, write_json
from pft_core.prompts import REFUSED as REFUSED_TURNS

LAYER_NAME = "layer.json"
_FORMAT = 4
# Large enough to keep the tokenizer busy, small enough that memory use does not grow with the size of a shard.
RECORDS_PER_BATCH = 512
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("axis", pa.int32()),
        ("prefix_ids", pa.list_(pa.int32())),
        ("branch_ids", pa.list_(pa.list_(pa.int32()))),
        ("label_mask", pa.list_(pa.list_(pa.bool_()))),
        ("prefix_length", pa.int32()),
        ("branch_lengths", pa.list_(pa.int32())),
        ("num_labels", pa.list_(pa.int32())),
    ]
)


@dataclass(frozen=True)
class LayerPart:
    """One Arrow file of a layer.

    path: relative to the layer's folder. rejected: the number of rejected pairs. with_control_tokens: how many of these
    contain a control token; with_refused_turns: how many are dialogues that the chat template refuses; the others are
    too long.
    """

    path: str
    sha256: str
    rows: int
    rejected: int
    with_control_tokens: int = 0
    with_refused_turns: int = 0


def layer_key(*, data_digest: str, tokenizer_digest: str, spec: EncodingSpec, space: PreferenceSpace) -> str:
    """Return a digest of everything that decides token ids and masks: layers with equal keys hold equal rows."""
    decided = {"style": spec.style.to_dict(), **spec.encoding.model_dump(), "view": spec.view}
    return digest([_FORMAT, data_digest, tokenizer_digest, decided, space.to_dict()])


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of a fast tokenizer's complete definition and special tokens."""
    specials = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    return digest([tokenizer.backend_tokenizer.to_str(), specials])


def encode_part(
    records_parquet: Path,
    part: Path,
    *,
    forms: Sequence[Form],
    spec: EncodingSpec,
    space: PreferenceSpace,
    tokenizer: Any,
) -> LayerPart:
    """Encode one record shard into one Arrow file, in batches; rejected pairs are left out and counted."""
    rows, reasons = 0, Counter[str]()
    with whole_file(part) as file, pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
        records = read_shard(records_parquet)
        while batch := list(itertools.islice(records, RECORDS_PER_BATCH)):
            items = [(record, form) for record in batch for form in forms]
            examples, rejects = encode_pairs(items, spec=spec, space=space, tokenizer=tokenizer)
            writer.write_batch(pa.RecordBatch.from_pylist([_to_row(e) for e in examples], schema=_SCHEMA))
            rows += len(examples)
            reasons.update(reject.reason for reject in rejects)
    counts = reasons.total(), reasons[CONTROL_TOKEN], reasons[REFUSED_TURNS]
    return LayerPart(part.name, file_sha256(part), rows, *counts)


def finish_layer(folder: Path, parts: Sequence[LayerPart], *, key: str, view: View = "pft") -> Path:
    """Write layer.json and return its path. Call this last: a folder without the file is not a layer."""
    content = {
        "key": key,
        "view": view,
        "parts": [asdict(p) for p in parts],
        "rows": sum(p.rows for p in parts),
        "rejected": sum(p.rejected for p in parts),
    }
    write_json(folder / LAYER_NAME, content)
    return folder / LAYER_NAME


def layer_is_complete(folder: Path, *, key: str) -> bool:
    """Return whether the folder holds a finished layer with this key."""
    path = folder / LAYER_NAME
    return path.is_file() and read_json(path, what="an encoded layer")["key"] == key


def layer_parts(folder: Path) -> list[LayerPart]:
    """Return the parts of a finished layer; those of older layers do not count rejects with control tokens."""
    return [LayerPart(**part) for part in read_json(folder / LAYER_NAME, what="an encoded layer")["parts"]]


def pair_rejects(folder: Path) -> dict[str, int]:
    """Return the number of pairs that a layer has left out, by reason."""
    parts = layer_parts(folder)
    with_control_tokens = sum(part.with_control_tokens for part in parts)
    with_refused_turns = sum(part.with_refused_turns for part in parts)
    overlong = sum(part.rejected for part in parts) - with_control_tokens - with_refused_turns
    return {
        "longer than encoding.max_length": overlong,
        "with control tokens": with_control_tokens,
        "with turns that the chat template refuses": with_refused_turns,
    }


def _to_row(example: BranchedExample) -> dict[str, Any]:
    return {
        "id": example.id,
        "axis": example.axis,
        "prefix_ids": example.prefix_ids,
        "branch_ids": [b.input_ids for b in example.branches],
        "label_mask": [b.label_mask for b in example.branches],
        "prefix_length": len(example.prefix_ids),
        "branch_lengths": [len(b.input_ids) for b in example.branches],
        "num_labels": [b.num_labels for b in example.branches],
    }


class EncodedLayer:
    """Read access to a layer: rows by index, and the counts that plan a step, without reading the rows."""

    def __init__(self, folder: Path):
        """Map the parts into memory. Raises UserError if the layer is damaged or has no rows."""
        manifest = read_json(folder / LAYER_NAME, what="an encoded layer")
        tables = [pa.ipc.open_file(pa.memory_map(str(folder / p["path"]))).read_all() for p in manifest["parts"]]
        self._table = pa.concat_tables(tables) if tables else _SCHEMA.empty_table()
        if self._table.num_rows != manifest["rows"]:
            raise UserError(
                f"{folder}: {self._table.num_rows} rows, but layer.json says {manifest['rows']}: "
                "delete the folder and encode again"
            )
        if not self._table.num_rows:
            left_out = ", ".join(f"{count} {reason}" for reason, count in pair_rejects(folder).items() if count)
            raise UserError(
                f"{folder}: no pair is left ({left_out or 'the data has none'}): raise encoding.max_length or set "
                "encoding.overlong=cut_prompt for long pairs; remove control tokens from the texts; use "
                "prompt.template=plain for turns that the chat template refuses"
            )
        self.rejected: int = manifest["rejected"]
        self._side_B = np.array([side for side, _ in VIEWS[manifest["view"]]])
        self._num_labels_EB = self._per_branch("num_labels")
        self._axis_E = self._table["axis"].to_numpy().astype(np.int64)
        self.branch_lengths_EB = self._per_branch("branch_lengths")
        self.prefix_lengths_E: NDArray[np.int64] = self._table["prefix_length"].to_numpy().astype(np.int64)

    def _per_branch(self, column: str) -> NDArray[np.int64]:
        flat: NDArray[Any] = self._table[column].combine_chunks().flatten().to_numpy()
        return flat.reshape(-1, len(self._side_B)).astype(np.int64)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def label_counts(self, indices: Sequence[int]) -> LabelCounts:
        """Return the label tokens per branch, and the axes, of these examples."""
        rows = list(indices)
        return LabelCounts(self._num_labels_EB[rows], self._side_B, self._axis_E[rows])

    def num_tokens(self, indices: Sequence[int], *, sides: Sequence[int], shares_prefix: bool) -> list[int]:
        """Return the tokens per example for these sides, which share one prefix or have a copy each."""
        rows = list(indices)
        chosen = np.isin(self._side_B, sides)
        copies = 1 if shares_prefix else chosen.sum()
        tokens = self.branch_lengths_EB[rows][:, chosen].sum(axis=1) + copies * self.prefix_lengths_E[rows]
        return [int(t) for t in tokens]

    def read(self, indices: Sequence[int]) -> list[BranchedExample]:
        """Return the examples at these indices."""
        return _examples(self._table.take(list(indices)), self._side_B.tolist()) if len(indices) else []


def _examples(table: pa.Table, sides: Sequence[int]) -> list[BranchedExample]:
    """Cut the examples out of flat columns, as converting row by row would cost more than the encoding did."""
    ids, masks = (table[name].combine_chunks().flatten() for name in ("branch_ids", "label_mask"))
    branches = iter([Branch(*parts) for parts in zip(_ragged(ids), _ragged(masks), itertools.cycle(sides))])
    trees = zip(*[branches] * len(sides), strict=True)
    columns = table["id"].to_pylist(), _ragged(table["prefix_ids"]), trees, table["axis"].to_pylist()
    return [BranchedExample(*parts) for parts in zip(*columns, strict=True)]


def _ragged(column: pa.Array | pa.ChunkedArray) -> list[NDArray[Any]]:
    """Return the rows of a column of lists as views of one array."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    ends = np.cumsum(pa.compute.list_value_length(array).to_numpy(zero_copy_only=False))
    return np.split(array.flatten().to_numpy(zero_copy_only=False), ends[:-1])
