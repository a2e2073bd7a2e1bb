"""The encoded pairs that a plan counts tokens on: the layer if it is encoded, else a sample encoded for the plan."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pft_core.data import RECORD_SCHEMA, DatasetManifest, PairedExample, read_shard
from pft_core.encoding import EncodedLayer, EncodingSpec, encode_part, finish_layer, layer_parts
from pipelines.console import console
from pipelines.encode.job import LayerPlace, layer_place, refuse_if_mostly_rejected
from pipelines.train.resolved_run import ResolvedRun

SAMPLE_PAIRS = 512  # encoded in seconds


@dataclass(frozen=True)
class PlannedPairs:
    """Encoded pairs of a data set. place: of its layer. num_kept: pairs to train on, estimated if it is a sample."""

    store: EncodedLayer
    place: LayerPlace
    num_pairs: int
    is_sample: bool

    @property
    def num_kept(self) -> int:
        """The pairs that can be encoded."""
        share = len(self.store) / (len(self.store) + self.store.rejected)
        return round(share * self.num_pairs)

    @property
    def source(self) -> str:
        """Where the counts come from."""
        if self.place.is_complete:
            return f"the encoded layer {self.place.key}"
        if not self.is_sample:
            return "all pairs, encoded for this plan"
        num_encoded = len(self.store) + self.store.rejected
        return f"an estimate from the first {num_encoded} pairs, taken evenly from all shards"


def planned_pairs(run: ResolvedRun, data: Path, manifest: DatasetManifest, scratch: Path) -> PlannedPairs:
    """Return encoded pairs of a data set. scratch: folder for a sample. Raises UserError if too few pairs fit."""
    facts = run.tokenizer.facts(run.config.prompt)
    spec = EncodingSpec(facts.style, run.config.encoding, run.objective.view)
    place = layer_place(data.resolve(), manifest, model=run.tokenizer.model, facts=facts, spec=spec)
    folder = place.folder if place.is_complete else encode_sample(run, data, manifest, place, scratch)
    refuse_if_mostly_rejected(layer_parts(folder), place.limit, run.config.max_reject_fraction, console.print)
    store = EncodedLayer(folder)
    is_sample = len(store) + store.rejected < manifest.pairs_out
    return PlannedPairs(store, place, manifest.pairs_out, is_sample)


def encode_sample(run: ResolvedRun, data: Path, manifest: DatasetManifest, place: LayerPlace, scratch: Path) -> Path:
    """Encode a sample of the records into a layer in the scratch folder; return its folder."""
    records, folder = scratch / "sample.parquet", scratch / place.key
    folder.mkdir()
    rows = [record.to_row() for record in first_records(data, manifest)]
    pq.write_table(pa.Table.from_pylist(rows, schema=RECORD_SCHEMA), records)
    forms: Any = manifest.forms
    part = encode_part(
        records,
        folder / "part.arrow",
        forms=forms,
        spec=place.spec,
        space=manifest.space,
        tokenizer=run.tokenizer.loaded,
    )
    finish_layer(folder, [part], key=place.key, view=place.spec.view)
    return folder


def first_records(data: Path, manifest: DatasetManifest) -> Iterator[PairedExample]:
    """Yield the first records of every shard, so many that they make SAMPLE_PAIRS pairs, or all."""
    shards = [shard for shard in manifest.shards if shard.rows]
    each = math.ceil(SAMPLE_PAIRS / len(manifest.forms) / max(1, len(shards)))
    for shard in shards:
        yield from islice(read_shard(data / shard.path), each)
