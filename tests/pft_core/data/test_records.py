"""Records: ids depend on the content only, the shown order carries no information, and Parquet loses nothing."""

from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pft_core.data.manifest import DatasetManifest
from pft_core.data.prepared import read_records, read_shard
from pft_core.data.record_schema import RECORD_SCHEMA
from pft_core.data.records import Option, PairedExample, content_id, counterbalanced, paired_example
from pft_core.errors import UserError
from tests.builders import record, write_dataset

OPTIONS = [Option("go", 0), Option("stay", 1), Option("ask", 0)]


def test_an_id_does_not_depend_on_the_order_of_the_options() -> None:
    assert content_id("Risk", "What now?", OPTIONS) == content_id("Risk", "What now?", OPTIONS[::-1])


def test_an_id_depends_on_axis_scenario_text_and_side() -> None:
    others = [
        content_id("Pace", "What now?", OPTIONS),
        content_id("Risk", "What then?", OPTIONS),
        content_id("Risk", "What now?", OPTIONS[:2]),
        content_id("Risk", "What now?", [Option(o.text, 1 - o.side) for o in OPTIONS]),
    ]
    assert len({content_id("Risk", "What now?", OPTIONS), *others}) == 5


def test_the_shown_order_is_the_same_for_any_order_in_the_file() -> None:
    assert counterbalanced(OPTIONS, "an id") == counterbalanced(OPTIONS[::-1], "an id")


def test_each_side_comes_first_about_equally_often() -> None:
    firsts = [paired_example("Risk", f"plan {i}", OPTIONS[:2]).options[0].side for i in range(1000)]
    # For 1000 fair coins, the standard deviation is 16, so 100 is more than six of them; the ids are fixed anyway.
    assert abs(sum(firsts) - 500) < 100


def test_of_side_returns_the_shown_positions() -> None:
    record = PairedExample("id", "Risk", "What now?", tuple(OPTIONS))
    assert record.of_side(0) == (0, 2)
    assert record.of_side(1) == (1,)


def test_a_record_survives_parquet(tmp_path) -> None:
    records = [paired_example("Risk", f"plan {i}", OPTIONS[: 2 + i % 2], "response") for i in range(3)]
    path = tmp_path / "records.parquet"
    pq.write_table(pa.Table.from_pylist([r.to_row() for r in records], schema=RECORD_SCHEMA), path)
    assert list(read_shard(path)) == records


def test_records_are_read_in_the_order_of_the_shards(tmp_path) -> None:
    records = [record(n, axis=("Risk", "Pace")[n % 3 == 0]) for n in range(1200)]  # more than one batch holds
    data = write_dataset(tmp_path / "data", records)
    assert list(read_records(data)) == records
    assert list(read_records(data, per_axis=2)) == records[:4]
    manifest = DatasetManifest.load(data)
    twice = replace(manifest, shards=manifest.shards * 2)
    assert list(read_records(data, twice)) == records * 2


def test_a_missing_shard_is_named(tmp_path) -> None:
    manifest = DatasetManifest.load(write_dataset(tmp_path / "data", [record(0)]))
    with pytest.raises(UserError, match=r"elsewhere/.*parquet: no such file, though the manifest beside it lists it"):
        list(read_records(tmp_path / "elsewhere", manifest))
