"""prepare: every row becomes a record or a reject, all or nothing, and the same with any number of workers."""

import errno
import gzip
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pft_core.data.manifest import DatasetManifest
from pft_core.data.preferences import load_space
from pft_core.data.records import PairedExample
from pft_core.data.sources import readers
from pft_core.encoding.layer import EncodedLayer
from pft_core.encoding.settings import EncodingSettings
from pft_core.errors import UserError
from pft_core.files import file_sha256
from pipelines.prepare import job as prepare
from pipelines.prepare.job import PrepareConfig, config_digest, run
from pipelines.prepare.prepare_tasks import _call

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

POLES = [(axis.name, axis.first.name, axis.second.name) for axis in load_space("vcd").axes]


def vcd(number: int) -> dict[str, Any]:
    axis, first, second = POLES[number % len(POLES)]
    options = [{"text": f"go {number}", "bias": first}, {"text": f"stay {number}", "bias": second}]
    return {"scenario": f"The town has plan {number}.", "preference domain": axis, "options": options}


def without(key: str, row: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in row.items() if k != key}


def write_list(path: Path, rows: list[Any]) -> str:
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    return str(path)


def write_lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(output: Path, *inputs: str, source: Any = "vcd", **changes: Any) -> PrepareConfig:
    return PrepareConfig(source=source, input=list(inputs), output=str(output), **changes)


def records_in(output: Path) -> list[PairedExample]:
    shards = DatasetManifest.load(output).shards
    return [PairedExample.from_row(row) for s in shards for row in pq.read_table(output / s.path).to_pylist()]


def rejects_in(output: Path) -> list[dict[str, str]]:
    table = pq.read_table(output / "rejects.parquet")
    assert table.column_names == ["row", "key_path", "reason", "detail"]
    return table.to_pylist()


def test_every_row_is_a_record_or_a_reject(tmp_path: Path) -> None:
    faulty = vcd(5)
    del faulty["options"][1]["bias"]
    rows = [vcd(0), '{"cut": \n', without("scenario", vcd(1)), vcd(2), vcd(0), vcd(3), faulty, vcd(4), vcd(6), vcd(7)]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    result = run(config(tmp_path / "out", source, forms=["all", "one"]))
    assert result == {
        "rows_in": 10, "rows_out": 6, "pairs_out": 12, "rejected": 4, "manifest": str(tmp_path / "out/manifest.json")
    }  # fmt: skip
    assert [(r["row"], r["key_path"], r["reason"]) for r in rejects_in(tmp_path / "out")] == [
        (f"{source}:2", "", "malformed_json"),
        (f"{source}:3", "scenario", "missing_key"),
        (f"{source}:5", "", "duplicate_id"),
        (f"{source}:7", "options[1].bias", "missing_key"),
    ]
    assert rejects_in(tmp_path / "out")[2]["detail"] == f"same content as {source}:1"
    assert [record.scenario for record in records_in(tmp_path / "out")] == [
        f"The town has plan {i}." for i in (0, 2, 3, 4, 6, 7)
    ]


def test_the_manifest_describes_the_records(tmp_path: Path) -> None:
    run(config(tmp_path / "out", write_list(tmp_path / "rows.json", [vcd(0), vcd(1), vcd(6)])))
    manifest = DatasetManifest.load(tmp_path / "out")
    assert [s.sha256 for s in manifest.shards] == [file_sha256(tmp_path / "out" / s.path) for s in manifest.shards]
    assert sum(s.rows for s in manifest.shards) == manifest.rows_out == 3
    assert manifest.forms == ("one",)
    assert manifest.space == load_space("vcd").restricted_to(POLES[i][0] for i in (0, 1))
    # "go 0" and "stay 0": 4 and 6 characters; "The town has plan 0.": 20
    assert manifest.length_quantiles["option_characters"] == {"p50": 4, "p90": 6, "p99": 6, "max": 6}
    assert manifest.length_quantiles["scenario_characters"]["max"] == 20
    assert rejects_in(tmp_path / "out") == []
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"manifest.json", "rejects.parquet", "records"}


def test_the_number_of_workers_and_parts_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "RECORDS_PER_SHARD", 7)
    # duplicates within and across files; each file part sees only some of them
    files = [
        write_lines(tmp_path / f"{name}.jsonl", [vcd(i % 23) for i in range(start, start + 20)])
        for name, start in (("b", 0), ("a", 10))
    ]
    outputs = []
    for workers, part_bytes in ((1, 32 << 20), (3, 400)):
        monkeypatch.setattr(readers, "PART_BYTES", part_bytes)
        output = tmp_path / f"out{workers}"
        run(config(output, *files, num_workers=workers))
        outputs.append(output)
    first, second = (DatasetManifest.load(output) for output in outputs)
    assert first == second
    assert [shard.rows for shard in first.shards] == [7, 7, 7, 2]  # 23 different rows of 40
    assert rejects_in(outputs[0]) == rejects_in(outputs[1])
    assert [r.scenario for r in records_in(outputs[1])] == [f"The town has plan {i}." for i in range(23)]


def test_a_folder_of_mixed_files_is_read_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    write_lines(folder / "b.jsonl", [vcd(1)])
    write_list(folder / "c.json", [vcd(2), vcd(0)])
    pq.write_table(pa.Table.from_pylist([vcd(0)]), folder / "a.parquet")
    assert run(config(tmp_path / "out", str(folder)))["rows_in"] == 4
    assert [record.scenario[-2] for record in records_in(tmp_path / "out")] == ["0", "1", "2"]
    assert [r["row"] for r in rejects_in(tmp_path / "out")] == [f"{folder}/c.json:3"]


def test_the_axis_of_bqd_is_the_folder_unless_it_is_given(tmp_path: Path) -> None:
    row = {
        "question": "Now?\n(A) yes\n(B) no", "answer_matching_behavior": "(A)", "answer_not_matching_behavior": "(B)"
    }  # fmt: skip
    (tmp_path / "refusal").mkdir()
    source = write_list(tmp_path / "refusal" / "train.json", [row])
    run(config(tmp_path / "folder", source, source="bqd"))
    run(config(tmp_path / "given", source, source="bqd", axis="haste"))
    assert DatasetManifest.load(tmp_path / "folder").space.axes == (load_space("bqd").axis("refusal"),)
    assert [axis.name for axis in DatasetManifest.load(tmp_path / "given").space.axes] == ["haste"]
    assert records_in(tmp_path / "given")[0].axis == "haste"


def test_joined_rows_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PART_BYTES", 100)  # so that the rows of a pair are in different parts
    rows = [
        {"prompt": f"Plan {i}?", "completion": f"{pole} {i}", "pair_id": i, "pole": pole}
        for pole in ("bold", "shy")
        for i in range(4)
    ]
    result = run(config(tmp_path / "out", write_lines(tmp_path / "rows.jsonl", rows[:-1]), source="trl", axis="Nerve"))
    assert (result["rows_in"], result["rows_out"], result["rejected"]) == (4, 3, 1)
    assert [r["reason"] for r in rejects_in(tmp_path / "out")] == ["unpaired_row"]
    assert [pole.name for pole in DatasetManifest.load(tmp_path / "out").space.axis("Nerve").poles] == ["bold", "shy"]


def test_an_axis_has_the_poles_that_most_rows_give_it(tmp_path: Path) -> None:
    def row(plan: int, first: str, second: str) -> dict[str, Any]:
        options = [{"text": "go", "pole": first}, {"text": "wait", "pole": second}]
        return {"scenario": f"plan {plan}", "axis": "Nerve", "options": options}

    # The last row has the id of the first, which is rejected for its poles, so it is not a duplicate of a record.
    rows = [row(0, "bold", "shy"), row(1, "bold", "timid"), row(2, "bold", "timid"), row(0, "bold", "timid")]
    run(config(tmp_path / "out", write_list(tmp_path / "rows.json", rows), source="json"))
    (rejected,) = rejects_in(tmp_path / "out")
    assert (rejected["row"][-2:], rejected["key_path"], rejected["reason"]) == (":2", "axis", "conflicting_poles")
    assert [record.scenario for record in records_in(tmp_path / "out")] == ["plan 1", "plan 2", "plan 0"]
    assert [p.name for p in DatasetManifest.load(tmp_path / "out").space.axes[0].poles] == ["bold", "timid"]


def test_the_same_item_with_swapped_poles_is_a_reject(tmp_path: Path) -> None:
    def row(plan: int, bold: str, shy: str) -> dict[str, Any]:
        return {"scenario": f"plan {plan}", "axis": "Nerve", "responses": {"bold": bold, "shy": shy}}

    rows = [
        row(0, "go", "wait"),
        row(1, "go", "wait"),
        row(0, "wait", "go"),
        row(0, "go", "wait"),
        row(0, "wait", "go"),
    ]
    path = write_lines(tmp_path / "rows.jsonl", rows)
    result = run(config(tmp_path / "out", path, source="json", max_reject_fraction=1.0))
    assert (result["rows_in"], result["rows_out"], result["rejected"]) == (5, 2, 3)
    assert [(r["row"][-2:], r["reason"], r["detail"][-2:]) for r in rejects_in(tmp_path / "out")] == [
        (":3", "swapped_poles", ":1"),
        (":4", "duplicate_id", ":1"),
        (":5", "duplicate_id", ":3"),
    ]
    assert [by_side(record) for record in records_in(tmp_path / "out")] == [["go", "wait"], ["go", "wait"]]


def by_side(record: PairedExample) -> list[str]:
    return [option.text for option in sorted(record.options, key=lambda option: option.side)]


def test_free_answers_have_no_choose_all_question(tmp_path: Path) -> None:
    rows = [{"scenario": f"plan {i}", "axis": "Nerve", "responses": {"bold": "go", "shy": "stay"}} for i in range(2)]
    source = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError, match=r"rows.jsonl:1 has free answers.*use forms=one"):
        run(config(tmp_path / "out", source, source="json", forms=["one", "all"]))
    assert not (tmp_path / "out").exists()


def test_a_repeated_key_is_a_reject(tmp_path: Path) -> None:
    twice = json.dumps(vcd(1)).replace('{"scenario"', '{"scenario": "Another.", "scenario"') + "\n"
    assert run(config(tmp_path / "out", write_lines(tmp_path / "rows.jsonl", [vcd(0), twice])))["rejected"] == 1
    assert rejects_in(tmp_path / "out")[0]["reason"] == "repeated_key"


def test_pairs_in_a_table_give_the_same_data_as_in_json(tmp_path: Path) -> None:
    answers = {"Swift": "Leave, at once.", "Patient": "Wait and see."}
    rows = [{"axis": "Pace", "scenario": f"Plan {i}?", "responses": answers} for i in range(3)]
    lines = ["axis;scenario;pole_a;answer_a;pole_b;answer_b"]
    lines += [f"Pace;Plan {i}?;Swift;Leave, at once.;Patient;Wait and see." for i in range(3)]
    with gzip.open(tmp_path / "rows.csv.gz", "wb") as file:
        file.write("\r\n".join([*lines, "Pace;Plan 4?;Swift"]).encode())
    run(config(tmp_path / "table", str(tmp_path / "rows.csv.gz"), source="json"))
    run(config(tmp_path / "json", write_lines(tmp_path / "rows.jsonl", rows), source="json"))
    assert records_in(tmp_path / "table") == records_in(tmp_path / "json")
    assert [(r["row"][-4:], r["reason"]) for r in rejects_in(tmp_path / "table")] == [("gz:5", "malformed_csv")]


def test_own_poles_are_described_in_the_data(tmp_path: Path) -> None:
    said = {"Calm": "Keeps quiet.", "Wild": "Makes noise."}

    def row(plan: int, **more: Any) -> dict[str, Any]:
        return {"scenario": f"plan {plan}", "axis": "Voice", "responses": {"Calm": "hm", "Wild": "hey"}, **more}

    rows = [row(0), row(1), row(2, descriptions=said), row(3, descriptions={**said, "Wild": "Shouts."})]
    rows += [row(4, descriptions=said), row(5, descriptions={"Calm": "Keeps quiet."})]
    rows += [row(6, descriptions={"Clam": "Keeps quiet."})]
    run(config(tmp_path / "out", write_lines(tmp_path / "rows.jsonl", rows), source="json"))
    (axis,) = DatasetManifest.load(tmp_path / "out").space.axes
    assert {pole.name: pole.description for pole in axis.poles} == said
    assert [(r["row"][-2:], r["reason"]) for r in rejects_in(tmp_path / "out")] == [
        (":4", "conflicting_descriptions"),
        (":7", "unknown_pole"),
    ]
    cells = "axis,scenario,pole_a,answer_a,description_a,pole_b,answer_b,description_b\n"
    cells += "Voice,plan 0,Wild,hey,Makes noise.,Calm,hm,Keeps quiet.\n"
    (tmp_path / "rows.csv").write_text(cells)
    run(config(tmp_path / "table", str(tmp_path / "rows.csv"), source="json"))
    assert DatasetManifest.load(tmp_path / "table").space.axes == (axis,)


def test_a_folder_with_unreadable_files_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    folder.mkdir()
    write_lines(folder / "a.jsonl", [vcd(0)])
    (folder / "b.jsonl.xz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds b\.jsonl\.xz, which is not read"):
        run(config(tmp_path / "out", str(folder)))
    assert not (tmp_path / "out").exists()


def test_a_split_by_scenario_shares_none_and_loses_none(tmp_path: Path, tiny_qwen2: Path) -> None:
    axes = ["Risk", "Pace"]
    rows = [
        {
            "scenario": f"Plan {i}?" if j else f"plan  {i}?",
            "axis": axes[j],
            "responses": {f"{j} a": "go", f"{j} b": "wait"},
        }
        for i in range(20)
        for j in range(2)
    ]
    source = write_lines(tmp_path / "rows.jsonl", [*rows, "broken\n", rows[0]])
    asked = config(tmp_path / "out", source, source="json", split_by="scenario", parts=[0.7, 0.2, 0.1])
    result = run(asked)
    assert (result["rows_in"], result["rows_out"], result["rejected"]) == (42, 40, 2)
    parts = {name: records_in(Path(folder)) for name, folder in result["parts"].items()}
    assert {name: len(records) for name, records in parts.items()} == {"train": 28, "validation": 8, "test": 4}
    scenarios = [{" ".join(r.scenario.lower().split()) for r in records} for records in parts.values()]
    assert [len(part) for part in scenarios] == [14, 4, 2]
    assert len(set.union(*scenarios)) == 20
    assert sorted(r.id for records in parts.values() for r in records) == sorted(
        r.id for r in records_in(tmp_path / "out")
    )
    manifest = DatasetManifest.load(tmp_path / "out" / "test")
    assert (manifest.rows_in, manifest.rows_out, manifest.rejected, len(manifest.space.axes)) == (4, 4, 0, 2)
    run(config(tmp_path / "test", source, source="json"))  # without parts, the data is the same as before
    assert DatasetManifest.load(tmp_path / "test").data_digest == DatasetManifest.load(tmp_path / "out").data_digest
    shard = tmp_path / "out" / "test" / "records" / "part-00000.parquet"
    written = shard.read_bytes()
    shard.write_bytes(b"")
    run(asked.model_copy(update={"model": str(tiny_qwen2)}))
    assert shard.read_bytes() == written
    assert all((tmp_path / "out" / name / "encoded").is_dir() for name in parts)
    assert not (tmp_path / "out" / "encoded").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"parts": [0.8, 0.1, 0.1]}, "parts has no effect without a split"),
        ({"split_by": "scenario", "parts": [0.8, 0.1, 0.2]}, "the shares must add up to 1, not 1.1"),
        ({"split_by": "scenario"}, "parts=0.8,0.1,0.1: 4 scenarios leave none for test"),
    ],
)
def test_a_split_that_cannot_be_made_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    source = write_list(tmp_path / "rows.json", [vcd(i) for i in range(4)])
    with pytest.raises(ValueError, match=says):  # a UserError, or an error that the command line turns into one
        run(config(tmp_path / "out", source, **changes))
    assert not (tmp_path / "out").exists()


def test_toyworld_is_generated_and_keeps_its_option_order(tmp_path: Path) -> None:
    from pft_core.data.sources.toyworld import generate

    run(config(tmp_path / "out", source="toyworld", split="test", num_per_axis=4, seed=3))
    assert records_in(tmp_path / "out") == list(generate(seed=3, split="test", num_per_axis=4))
    assert DatasetManifest.load(tmp_path / "out").space == load_space("toyworld")


def test_the_same_input_is_not_prepared_twice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = write_list(tmp_path / "rows.json", [vcd(0), vcd(1)])
    first = run(config(tmp_path / "out", source))
    shard = tmp_path / "out" / DatasetManifest.load(tmp_path / "out").shards[0].path
    written = shard.stat().st_mtime_ns
    assert run(config(tmp_path / "out", source, num_workers=2)) == first
    assert shard.stat().st_mtime_ns == written
    assert "reusing it" in capfd.readouterr().err


@pytest.mark.parametrize("change", ["input", "config", "damage"])
def test_a_change_of_input_config_or_code_prepares_again(tmp_path: Path, change: str) -> None:
    source = write_list(tmp_path / "rows.json", [vcd(0), vcd(1)])
    run(config(tmp_path / "out", source))
    before = DatasetManifest.load(tmp_path / "out")
    if change == "input":
        write_list(tmp_path / "rows.json", [vcd(0), vcd(2)])
    if change == "damage":
        (tmp_path / "out" / before.shards[0].path).write_bytes(b"")
    forms = ["one", "all"] if change == "config" else ["one"]
    run(config(tmp_path / "out", source, forms=forms), fresh=change in ("input", "config"))
    after = DatasetManifest.load(tmp_path / "out")
    assert (after.data_digest == before.data_digest) == (change == "damage")
    assert len(records_in(tmp_path / "out")) == 2


def test_digests_do_not_depend_on_the_folder_of_the_data(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(config(tmp_path / name / "out", write_list(tmp_path / name / "rows.json", [vcd(0)])))
    first, second = (DatasetManifest.load(tmp_path / name / "out") for name in ("a", "b"))
    assert first.data_digest == second.data_digest
    assert first.shards == second.shards


def refused(tmp_path: Path, source: Any, rows: list[Any], **changes: Any) -> str:
    """Run on these rows; check that nothing was written, and return the message."""
    path = write_lines(tmp_path / "rows.jsonl", rows)
    with pytest.raises(UserError) as error:
        run(config(tmp_path / "out", path, source=source, **changes))
    assert not [p.name for p in tmp_path.iterdir() if p.suffix not in (".jsonl", ".lock")]
    return str(error.value)


def test_too_many_rejects_stop_the_run_and_are_shown(tmp_path: Path) -> None:
    rows = [vcd(0), without("scenario", vcd(1)), "broken\n", without("scenario", vcd(2))]
    message = refused(tmp_path, "vcd", rows)
    assert "3 of 4 rows are rejected (missing_key 2, malformed_json 1)" in message
    assert f"{tmp_path}/rows.jsonl:2 scenario: missing_key" in message
    assert run(config(tmp_path / "out", str(tmp_path / "rows.jsonl"), max_reject_fraction=0.75))["rows_out"] == 1


def test_no_row_left_stops_the_run_whatever_the_limit(tmp_path: Path) -> None:
    assert "1 of 1 rows" in refused(tmp_path, "vcd", [without("scenario", vcd(0))], max_reject_fraction=1.0)


def test_half_the_rows_may_be_rejected(tmp_path: Path) -> None:
    assert run(config(tmp_path / "out", write_lines(tmp_path / "rows.jsonl", [vcd(0), "broken\n"])))["rejected"] == 1


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_an_empty_data_set_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(UserError, match="holds no rows"):
        run(config(tmp_path / "out", str(tmp_path / "rows.json")))
    assert not (tmp_path / "out").exists()


def test_a_truncated_json_list_fails_the_run(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([vcd(0), vcd(1)])[:-1])
    with pytest.raises(UserError, match=r"rows\.json:1: not valid JSON"):
        run(config(tmp_path / "out", str(tmp_path / "rows.json")))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"input": ["missing.json"]}, "missing.json: no such file"),
        ({"input": []}, "input is not set"),
        ({"source": "toyworld"}, "leave input out"),
        ({"num_workers": 1000}, "num_workers=1000 needs 1000 CPU, but the cluster has"),
    ],
)
def test_a_wrong_request_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    request = {
        "source": "vcd",
        "input": [write_list(tmp_path / "rows.json", [vcd(0)])],
        "output": str(tmp_path / "out"),
    }
    with pytest.raises(UserError, match=says):
        run(PrepareConfig(**request | changes))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "data set with a note"])
def test_files_that_prepare_did_not_write_are_not_replaced(tmp_path: Path, kind: str) -> None:
    source = write_list(tmp_path / "rows.json", [vcd(0)])
    output = tmp_path / "out"
    if kind == "file":
        output.write_text("mine")
    else:
        if kind != "folder":
            run(config(output, source))
        output.mkdir(exist_ok=True)
        (output / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="choose another"):
        run(config(output, source, forms=["all"]))
    assert (output if kind == "file" else output / "note.txt").read_text() == "mine"


def test_an_empty_output_folder_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert run(config(tmp_path / "out", write_list(tmp_path / "rows.json", [vcd(0)])))["rows_out"] == 1


def test_a_full_disk_is_a_message(tmp_path: Path) -> None:
    def work(task: str) -> dict[str, Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), task)

    answer = _call({"id": [0]}, work=work, tasks=["/data/part"])
    assert answer["fault"] == ["/data/part: No space left on device: free some space there, or choose another folder"]


def test_an_interrupted_run_leaves_the_old_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_list(tmp_path / "rows.json", [vcd(0)])
    run(config(tmp_path / "out", source))
    before = DatasetManifest.load(tmp_path / "out")

    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "write_shards", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config(tmp_path / "out", source, forms=["all"]), fresh=True)
    assert DatasetManifest.load(tmp_path / "out") == before
    assert {p.name for p in tmp_path.iterdir()} == {"rows.json", "out"}


class Killed(BaseException):
    """Stands in for SIGKILL: afterwards the process changes nothing on disk."""


def kill_before(step: int, patch: pytest.MonkeyPatch) -> None:
    """Stop this process right before its rename number `step`."""
    taken, rename = itertools.count(1), os.rename

    def counted(*args: Any, **kwargs: Any) -> None:
        if next(taken) >= step:
            patch.setattr(shutil, "rmtree", dead)
            raise Killed
        rename(*args, **kwargs)

    def dead(*_: Any, **__: Any) -> None:
        raise Killed

    patch.setattr(os, "rename", counted)


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("again", ["the same", "another", "a wrong one"])
def test_a_kill_between_the_renames_loses_no_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, again: str
) -> None:
    source = write_list(tmp_path / "rows.json", [vcd(0)])
    run(config(tmp_path / "out", source))
    old = DatasetManifest.load(tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(Killed):  # noqa: PT012
        kill_before(step, patch)
        run(config(tmp_path / "out", source, forms=["all"]), fresh=True)
    assert (tmp_path / "out").exists() == (step != 2)
    if again == "a wrong one":
        with pytest.raises(UserError, match="no such file"):
            run(config(tmp_path / "out", "missing.json"))
        assert (DatasetManifest.load(tmp_path / "out") == old) == (step < 3)
    else:
        forms: Any = ["all"] if again == "the same" else ["one"]
        run(config(tmp_path / "out", source, forms=forms), fresh=True)
        assert DatasetManifest.load(tmp_path / "out").forms == tuple(forms)
    assert len(records_in(tmp_path / "out")) == 1
    assert {path.name for path in tmp_path.iterdir()} - {".out.work"} == {"rows.json", "out"}


def test_a_half_written_manifest_does_not_make_the_folder_foreign(tmp_path: Path) -> None:
    source = write_list(tmp_path / "rows.json", [vcd(0)])
    run(config(tmp_path / "out", source))
    (tmp_path / "out" / ".manifest.json.killed.tmp").mkdir()
    assert run(config(tmp_path / "out", source, forms=["all"]), fresh=True)["rows_out"] == 1
    assert not (tmp_path / "out" / ".manifest.json.killed.tmp").exists()


def test_with_a_model_the_records_get_an_encoded_layer(tmp_path: Path, tiny_qwen2: Path) -> None:
    source = write_list(tmp_path / "rows.json", [vcd(i) for i in range(5)])
    run(config(tmp_path / "out", source))  # without a model, then with one: the records are reused
    run(config(tmp_path / "out", source, model=str(tiny_qwen2)))
    (folder,) = (tmp_path / "out" / "encoded").iterdir()
    layer = EncodedLayer(folder)
    assert len(layer) == 5
    longest = max(int(p + b.max()) for p, b in zip(layer.prefix_lengths_E, layer.branch_lengths_EB, strict=True))
    assert DatasetManifest.load(tmp_path / "out").length_quantiles["tokens"]["max"] == longest


def test_a_model_that_no_pair_fits_leaves_nothing_behind(tmp_path: Path, tiny_qwen2: Path) -> None:
    source = write_list(tmp_path / "rows.json", [vcd(0)])
    with pytest.raises(UserError, match=r"encoding\.max_length=8 leaves 0 of 1 pairs"):
        run(config(tmp_path / "out", source, model=str(tiny_qwen2), encoding=EncodingSettings(max_length=8)))
    assert not (tmp_path / "out").exists()


def test_nothing_is_written_to_stdout(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run(config(tmp_path / "out", write_list(tmp_path / "rows.json", [vcd(0), vcd(0)])))
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "2 rows in, 1 out, 1 rejected (duplicate_id 1)" in captured.err


def test_released_vcd_is_prepared_without_rejects(tmp_path: Path, vcd_dir: Path) -> None:
    result = run(config(tmp_path / "out", str(vcd_dir), forms=["one", "all"]))
    assert (result["rows_in"], result["rows_out"], result["pairs_out"]) == (1211, 1211, 2422)
    assert DatasetManifest.load(tmp_path / "out").space == load_space("vcd")


def test_released_bqd_is_prepared_without_rejects(tmp_path: Path, bqd_dir: Path) -> None:
    axes = ["hallucination", "myopic-reward", "sycophancy"]
    files = [str(bqd_dir / axis / "train.json") for axis in axes]
    result = run(config(tmp_path / "out", *files, source="bqd"))
    assert (result["rows_in"], result["rows_out"]) == (2950, 2950)
    assert DatasetManifest.load(tmp_path / "out").space == load_space("bqd").restricted_to(axes)


@pytest.mark.parametrize("changes", [{"forms": ["all"]}, {"split_by": "scenario"}, {}])
def test_data_from_other_input_or_options_is_not_replaced_without_fresh(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    rows = [vcd(i) for i in range(40)]
    source, output = write_lines(tmp_path / "rows.jsonl", rows), tmp_path / "out"
    before = run(config(output, source))
    other = source if changes else write_lines(tmp_path / "few.jsonl", rows[:6])
    with pytest.raises(UserError, match=r"holds a data set of 40 records .* --fresh"):
        run(config(output, other, **changes))
    assert run(config(output, source)) == before
    replaced = run(config(output, other, **changes), fresh=True)
    assert (replaced["rows_out"], set(replaced) - set(before)) == (
        40 if changes else 6,
        {"parts"} if "split_by" in changes else set(),
    )


def test_data_from_older_code_or_a_moved_input_is_prepared_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, output = write_lines(tmp_path / "rows.jsonl", [vcd(0), vcd(1)]), tmp_path / "out"
    run(config(output, source))
    monkeypatch.setattr(prepare, "code_digest", lambda: "newer")
    moved = Path(source).rename(tmp_path / "moved.jsonl")
    run(config(output, str(moved)))
    assert DatasetManifest.load(output).config_digest == config_digest(
        config(output, str(moved)), [(moved, str(moved))]
    )


def test_a_folder_of_another_kind_is_never_replaced(tmp_path: Path) -> None:
    source, output = write_lines(tmp_path / "rows.jsonl", [vcd(0), vcd(1)]), tmp_path / "out"
    run(config(output, source))
    (output / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="choose another folder"):
        run(config(output, source, forms=["all"]), fresh=True)
    assert (output / "notes.txt").read_text() == "mine"
