"""Small handmade inputs that several tests share."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pft_core.data.manifest import DatasetManifest, Shard
from pft_core.data.preferences import Axis, Pole, PreferenceSpace
from pft_core.data.record_schema import RECORD_SCHEMA
from pft_core.data.records import Option, PairedExample, paired_example
from pft_core.encoding.examples import BranchedExample, LabelCounts, branched_example
from pft_core.files import file_sha256
from pft_core.objectives import Objective
from pft_core.scoring import BranchScorer
from pft_core.training.engines.build import build_engine
from pft_core.training.engines.engine import Engine
from pft_core.training.engines.settings import EngineSettings, OptimizerSettings
from pft_core.training.order import DataOrder
from pft_core.training.planning import LoopSettings
from pft_core.training.settings import TrainSettings

SPACE = PreferenceSpace(
    "tiny",
    (
        Axis("Risk", Pole("Bold", "Takes chances."), Pole("Careful", "Avoids chances.")),
        Axis("Pace", Pole("Fast", "Acts now."), Pole("Slow", "Waits.")),
    ),
)


def record(number: int = 0, *, axis: str = "Risk", num_options: int = 3) -> PairedExample:
    """Return a record whose options alternate between the sides."""
    options = [Option(f"{'go' if i % 2 == 0 else 'stay'} {number} way {i}", i % 2) for i in range(num_options)]
    return paired_example(axis, f"The town has plan {number} . What now ?", options)


def tree(
    example_id: str, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], sides: Sequence[int] = (0, 1)
) -> BranchedExample:
    """Return a BranchedExample from plain lists of token ids."""
    as_ids = [[np.asarray(ids, dtype=np.int32) for ids in group] for group in (prompts, answers)]
    return branched_example(example_id, as_ids[0], as_ids[1], sides)


def random_trees(count: int, *, seed: int = 0, vocabulary: int = 600) -> list[BranchedExample]:
    """Return pairs with unequal prefix, context and answer lengths."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> list[int]:
        return [int(t) for t in rng.integers(3, vocabulary, rng.integers(low, high))]

    trees = []
    for i in range(count):
        prefix = ids(3, 12)
        trees.append(tree(f"pair-{i}", [prefix + ids(1, 4), prefix + ids(1, 4)], [ids(1, 9), ids(1, 9)]))
    return trees


class MemoryStore:
    """An ExampleStore over a list."""

    def __init__(self, examples: list[BranchedExample]):
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def label_counts(self, indices: Sequence[int]) -> LabelCounts:
        sides = [b.side for b in self.examples[0].branches]
        counts = [[b.num_labels for b in self.examples[i].branches] for i in indices]
        axes = np.array([self.examples[i].axis for i in indices], dtype=np.int64)
        return LabelCounts(np.array(counts, dtype=np.int64).reshape(-1, len(sides)), np.array(sides), axes)

    def num_tokens(self, indices: Sequence[int], *, sides: Sequence[int], shares_prefix: bool) -> list[int]:
        chosen = [[b for b in self.examples[i].branches if b.side in sides] for i in indices]
        prefixes = [len(self.examples[i].prefix_ids) for i in indices]
        copies = [1 if shares_prefix else len(bs) for bs in chosen]
        rows = zip(prefixes, copies, chosen, strict=True)
        return [p * n + sum(len(b.input_ids) for b in bs) for p, n, bs in rows]

    def read(self, indices: Sequence[int]) -> list[BranchedExample]:
        return [self.examples[i] for i in indices]


def write_dataset(folder: Path, records: Sequence[PairedExample], *, forms: tuple[str, ...] = ("one",)) -> Path:
    """Write a prepared folder with one shard, as `pft prepare` does; return it."""
    folder.mkdir(parents=True)
    shard = folder / "records-00000.parquet"
    pq.write_table(pa.Table.from_pylist([r.to_row() for r in records], schema=RECORD_SCHEMA), shard)
    sha256 = file_sha256(shard)
    DatasetManifest(
        source="json",
        forms=forms,
        space=SPACE,
        shards=(Shard(shard.name, sha256, len(records)),),
        rows_in=len(records),
        rows_out=len(records),
        pairs_out=len(records) * len(forms),
        rejected=0,
        rejected_by_reason={},
        length_quantiles={},
        config_digest="c",
        data_digest=sha256[:16],
    ).save(folder)
    return folder


def loop_settings(
    objective: Objective, order: DataOrder, *, total_pairs: int, schedule_steps: int, seed: int = 0, **train: Any
) -> LoopSettings:
    """Return loop settings with the defaults of `TrainSettings`, but no warm-up and only a final checkpoint."""
    values = {"warmup_steps": 0, "checkpoint_every": 0, "lr": 1e-3, **train}
    return LoopSettings(
        TrainSettings.model_construct(**values), objective, order, total_pairs, schedule_steps, seed, shares_prefix=True
    )


def varied(settings: LoopSettings, **changes: Any) -> LoopSettings:
    """Return the loop settings with changed fields, also of the train settings in them."""
    of_train = {
        key: value for key, value in changes.items() if key in TrainSettings.model_fields and key != "objective"
    }
    own = {key: value for key, value in changes.items() if key not in of_train}
    return replace(settings, train=settings.train.model_copy(update=of_train), **own)


def engine_of(
    scorer: BranchScorer, *, device: torch.device, name: str = "torch", zero_stage: int = 0, **optimizer: Any
) -> Engine:
    """Return an engine with the defaults of `OptimizerSettings`, but float32."""
    settings = EngineSettings(name=name, zero_stage=zero_stage)  # type: ignore[arg-type]
    return build_engine(scorer, settings, OptimizerSettings(**{"precision": "fp32", **optimizer}), device=device)
