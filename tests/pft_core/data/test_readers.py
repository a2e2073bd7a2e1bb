"""Real-world files: tables, compressed files, and folders with other files in them; no row is lost silently."""

import codecs
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pft_core.data.records import Reject
from pft_core.data.sources import csv_tables, json_text
from pft_core.data.sources.checks import AcceptedRow
from pft_core.data.sources.readers import file_parts, files_in, is_hub_name, read_rows
from pft_core.data.sources.user_pairs import own_row
from pft_core.errors import UserError

PACK = {".gz": gzip.compress, ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True)}
HEADER = "axis,scenario,pole_a,answer_a,pole_b,answer_b"


def rows_of(path: Path) -> list[tuple[str, Any]]:
    return [row for part in file_parts(path, path.name) for row in read_rows(part)]


def reasons(rows: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(where, row.reason if isinstance(row, Reject) else "") for where, row in rows]


def table(folder: Path, *lines: str, name: str = "pairs.csv", encoding: str = "utf-8", end: str = "\n") -> Path:
    (folder / name).write_bytes("".join(line + end for line in lines).encode(encoding))
    return folder / name


# --- compressed files


@pytest.mark.parametrize("ending", PACK)
@pytest.mark.parametrize(
    ("name", "text"),
    [("r.jsonl", '{"a": "1"}\nbad\n{"a": "2"}\n'), ("r.json", '[{"a": "1"},\n{"a": "2"}]'), ("r.csv", "a\n1\n2\n")],
)
def test_a_compressed_file_is_read_like_its_content(tmp_path: Path, ending: str, name: str, text: str) -> None:
    plain, packed = tmp_path / name, tmp_path / f"{name}{ending}"
    plain.write_text(text)
    half = len(text) // 2  # written in two parts, as by `cat a.gz b.gz`
    packed.write_bytes(PACK[ending](text[:half].encode()) + PACK[ending](text[half:].encode()))
    assert files_in(str(packed)) == [packed]
    assert [(where.replace(ending, ""), row) for where, row in rows_of(packed) if isinstance(row, dict)] == [
        (where, row) for where, row in rows_of(plain) if isinstance(row, dict)
    ]
    assert [r for _, r in reasons(rows_of(packed))] == [r for _, r in reasons(rows_of(plain))]
    packed.rename(plain)  # only the content shows that it is compressed
    assert len([row for _, row in rows_of(plain) if isinstance(row, dict)]) == 2


@pytest.mark.parametrize("ending", PACK)
def test_a_damaged_compressed_file_is_a_user_error(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.jsonl{ending}"
    packed = PACK[ending](b"".join(b'{"a": "%d"}\n' % i for i in range(9999)))
    for content in (packed[: len(packed) // 2], b"no such thing"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"rows.jsonl{ending}: damaged, or not compressed as its name says"):
            rows_of(path)


# --- folders


@pytest.mark.parametrize(
    "beside",
    [
        "rows.txt", "more.jsonl.bz2", "more.parquet.gz", "old.jsonl.bak", "train/rows.jsonl", "a/b/c.arrow",
        "lost.jsonl", "license-data/rows.jsonl", "changelog.jsonl.xz", "notice-board.jsonl.bz2", "readme.zip",
        "NOTICE board.txt", "README/rows.jsonl", "citation.csv.xz", "a/license.jsonl",
    ],
)  # fmt: skip
def test_a_folder_with_an_unreadable_entry_is_refused(tmp_path: Path, beside: str) -> None:
    (tmp_path / "rows.jsonl").write_text("{}")
    other = tmp_path / beside
    if beside == "lost.jsonl":
        other.symlink_to("nowhere.jsonl")
    else:
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("{}")
    with pytest.raises(UserError, match=f"holds {beside.split('/')[0]}"):
        files_in(str(tmp_path))


def test_documents_of_a_published_data_set_may_be_in_its_folder(tmp_path: Path) -> None:
    files = ["A.JSONL", "b.csv", "c.tsv", "d.jsonl.gz", "e.json.zst", "f.Parquet"]
    beside = ["README.md", "readme", "README_zh.md", "README.zh-CN.rst", "LICENSE", "LICENCE.txt", "LICENSE-APACHE"]
    for name in (*files, *beside, ".gitattributes", ".hidden.jsonl", "NOTICE", "CITATION.cff"):
        (tmp_path / name).write_text("x")
    (tmp_path / "LICENSES").mkdir()
    (tmp_path / "LICENSES" / "LICENSE.txt").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "_SUCCESS").touch()
    assert [path.name for path in files_in(str(tmp_path))] == files


def test_a_folder_of_folders_names_them(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("{}")
    with pytest.raises(UserError, match="holds data/, which is not read"):
        files_in(str(tmp_path))


def test_a_pipe_is_not_a_data_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        files_in(str(tmp_path / "rows.jsonl"))


def test_a_missing_data_file_is_not_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not any(map(is_hub_name, ["data/rows.jsonl.gz", "data/rows.csv", "data/rows.TSV", "data/rows.json.zst"]))


# --- JSON


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    ("whole", "key"),
    [
        ({"data": [{"a": 1}, {"a": 2}]}, "'data'"),
        ({"version": "1.0", "rows": [{"a": 1}], "more": {"x": [1, 2.5, None]}}, "'rows'"),
        ({"train": [{"a": 1}], "test": [{"a": 1}]}, "'train, test'"),
        ({"anything": [{"a": "x" * 30}] * 9}, "'anything'"),
    ],
)
def test_the_error_for_a_file_that_is_one_object_names_the_key_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, indent: int | None, whole: Any, key: str
) -> None:
    (tmp_path / name).write_text(json.dumps(whole, indent=indent))
    with pytest.raises(UserError, match=rf"{name}: the file is one object; its rows seem to be under {key}"):
        rows_of(tmp_path / name)
    monkeypatch.setattr(json_text, "CHUNK", 3)
    with pytest.raises(UserError, match=key):
        rows_of(tmp_path / name)


@pytest.mark.parametrize("row", [{"scenario": "x", "options": [{"text": "a"}]}, {"a": 1}, {}])
def test_a_file_of_one_row_holds_a_row(tmp_path: Path, row: Any) -> None:
    (tmp_path / "row.jsonl").write_text("\n" + json.dumps(row))
    assert [read for _, read in rows_of(tmp_path / "row.jsonl")] == [row]


def test_an_object_on_several_lines_without_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps({"scenario": {"0": "x"}}, indent=1))
    with pytest.raises(UserError, match="the file is one object: write the rows"):
        rows_of(tmp_path / "rows.json")


@pytest.mark.parametrize("row", ['{"a": 1, "a": 2}', '{"x": [{"b": 1, "a": 1, "b": 1}], "a": 1}'])
def test_a_repeated_key_is_a_reject(tmp_path: Path, row: str) -> None:
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n' + row + "\n")
    (tmp_path / "rows.json").write_text('[{"a": 1},\n' + row + ",\n" + '{"a": 3}]')
    for name in ("rows.jsonl", "rows.json"):
        assert reasons(rows_of(tmp_path / name))[1] == (f"{name}:2", "repeated_key")
        assert rows_of(tmp_path / name)[1][1].key_path in ("a", "b")
    assert rows_of(tmp_path / "rows.json")[2][1] == {"a": 3}


def test_a_repeated_column_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["a", "a"]), path)
    with pytest.raises(UserError, match="column 'a' occurs twice"):
        rows_of(path)


# --- CSV and TSV


@pytest.mark.parametrize(
    ("delimiter", "name", "encoding", "end"),
    [
        (",", "pairs.csv", "utf-8", "\n"),
        (";", "pairs.csv", "utf-8-sig", "\r\n"),
        ("\t", "pairs.tsv", "utf-16", "\r\n"),
        ("\t", "pairs.csv", "utf-8", "\r"),
        (",", "pairs.tsv", "utf-8-sig", "\n"),
    ],
)
def test_a_table_is_read_in_every_dialect(tmp_path: Path, delimiter: str, name: str, encoding: str, end: str) -> None:
    cells = ["Pace", f'"Go,{end}""now""; caf\u00e9?"', "Fast", " Go ", "Slow", '"Wait\ta bit"']
    lines = (HEADER.replace(",", delimiter), delimiter.join(cells), "", delimiter * 5)
    rows = rows_of(table(tmp_path, *lines, name=name, encoding=encoding, end=end))
    assert rows == [
        (
            f"{name}:2",
            {
                "axis": "Pace", "scenario": 'Go,\n"now"; caf\u00e9?', "pole_a": "Fast", "answer_a": "Go ",
                "pole_b": "Slow", "answer_b": "Wait\ta bit",
            },
        )
    ]  # fmt: skip
    outcome = own_row(rows[0][1], *[rows[0][0]], None)
    assert isinstance(outcome, AcceptedRow)
    responses = {"Fast": "Go", "Slow": "Wait\ta bit"}
    same = {"axis": "Pace", "scenario": 'Go,\n"now"; caf\u00e9?', "responses": responses}
    assert own_row(same, "", None) == outcome


def test_a_faulty_line_of_a_table_costs_only_itself(tmp_path: Path) -> None:
    good = "Pace,Go {}?,Fast,Yes,Slow,No"
    path = table(
        tmp_path,
        "sep=,",
        HEADER,
        good.format(0),
        "Pace,Go?,Fast,Yes,Slow",  # a cell is missing
        "Pace,Go, or not?,Fast,Yes,Slow,No",  # a comma without quotes
        'Pace,"Go" then?,Fast,Yes,Slow,No',  # text after the quote
        'Pace,"Go?,Fast,Yes,Slow,No',  # the quote is never closed
        good.format(1),
        'Pace,"Go\n2?",Fast,Yes,Slow,No',
        "Pace,,Fast,Yes,Slow,No",
        "x" * csv_tables.MAX_ROW_BYTES + "x",
        good.format(3),
        'Pace,"never closed',
    )
    rows = rows_of(path)
    assert reasons(rows) == [
        ("pairs.csv:3", ""),
        ("pairs.csv:4", "malformed_csv"),
        ("pairs.csv:5", "malformed_csv"),
        ("pairs.csv:6", "malformed_csv"),
        ("pairs.csv:7", "malformed_csv"),
        ("pairs.csv:8", ""),
        ("pairs.csv:9", ""),
        ("pairs.csv:11", ""),
        ("pairs.csv:12", "oversized_row"),
        ("pairs.csv:13", ""),
        ("pairs.csv:14", "malformed_csv"),
    ]
    assert [row["scenario"] for _, row in rows if isinstance(row, dict)] == ["Go 0?", "Go 1?", "Go\n2?", None, "Go 3?"]
    faulty = own_row(rows[7][1], rows[7][0], None)
    assert isinstance(faulty, Reject)
    assert (faulty.row, faulty.key_path, faulty.reason) == ("pairs.csv:11", "scenario", "missing_key")


def test_a_table_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = table(tmp_path, HEADER, "Pace,Caf\u00e9?,Fast,Yes,Slow,No", "Pace,Go?,Fast,Yes,Slow,No", encoding="cp1252")
    (_, rejected), (_, row) = rows_of(path)
    assert (rejected.key_path, rejected.reason) == ("scenario", "wrong_encoding")
    assert row["scenario"] == "Go?"
    for encoding, says in (("utf-16-le", "null bytes"), ("cp1252", "not UTF-8")):
        with pytest.raises(UserError, match=rf"pairs\.csv:1: the header .*{says}"):
            rows_of(table(tmp_path, "axis,sc\u00e9nario", "x,y", encoding=encoding))


def test_a_truncated_table_in_utf16_is_a_user_error(tmp_path: Path) -> None:
    path = table(tmp_path, HEADER, "Pace,Go?,Fast,Yes,Slow,No", encoding="utf-16")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"pairs\.csv: damaged text"):
        rows_of(path)


def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pairs\.csv:1: the header names column 'pole_a' twice"):
        rows_of(table(tmp_path, "axis, pole_a, pole_a", "x,y,z"))


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_cells_of_unnamed_columns_are_refused_except_for_row_numbers(tmp_path: Path, name: str) -> None:
    pair = "Pace,Go?,Fast,Yes,Slow,No"
    behind = table(tmp_path, f"{HEADER},{name}", f"{pair},extra", f"{pair}, ", f"{pair},7")
    assert [r for _, r in reasons(rows_of(behind))] == ["unnamed_column", "", "unnamed_column"]
    assert rows_of(behind)[0][1].key_path == "column 7"
    before = table(tmp_path, f"{name},,{HEADER}", f"0,,{pair}", f"1,Why?,{pair}", f"Why?,,{pair}")
    assert [r for _, r in reasons(rows_of(before))] == ["", "unnamed_column", "unnamed_column"]
    assert list(rows_of(before)[0][1]) == HEADER.split(",")


@pytest.mark.parametrize("text", [b"", codecs.BOM_UTF8, b"\n\n", HEADER.encode()])
def test_a_table_without_rows_yields_none(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "pairs.csv").write_bytes(text)
    assert rows_of(tmp_path / "pairs.csv") == []


@pytest.mark.parametrize(
    ("changes", "key_path", "reason"),
    [
        ({"answer_a": None}, "answer_a", "missing_key"),
        ({"answer_b": None}, "answer_b", "missing_key"),
        ({"pole_b": None}, "pole_b", "missing_key"),
        ({"pole_b": "Fast"}, "answer_b", "pole_without_option"),
        ({"answer_b": "Yes"}, "answer_b", "duplicate_option"),
        ({"options": [{"text": "x", "pole": "y"}]}, "options", "ambiguous_row"),
        ({"question": "And why?"}, "question", "unused_column"),
    ],
)
def test_a_faulty_flat_row_says_where_and_why(changes: dict[str, Any], key_path: str, reason: str) -> None:
    row = dict(zip(HEADER.split(","), ("Pace", "Go?", "Fast", "Yes", "Slow", "No"), strict=True))
    outcome = own_row(row | changes, "pairs.csv:2", None)
    assert isinstance(outcome, Reject)
    assert (outcome.key_path, outcome.reason) == (key_path, reason)
