"""Atomic writes: a kill at any point leaves the old content or the new, and the next start continues from there."""

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pft_core import files
from pft_core.errors import UserError
from pft_core.files import (
    contents,
    read_json,
    remove_folder,
    replace_folder,
    restore_folder,
    whole_file,
    whole_folder,
    write_json,
    write_text,
)

FORK = multiprocessing.get_context("fork")
STEPS = ("rename", "replace", "fsync", "mkdir", "unlink", "rmdir")  # all calls that change what a name holds on disk


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def texts(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def write_folder(path: Path, word: str) -> None:
    with whole_folder(path) as unfinished:
        (unfinished / "inner").mkdir()
        (unfinished / "inner" / "text").write_text(word)
        (unfinished / word).write_text(word)


def content(word: str) -> dict[str, str]:
    return {"inner/text": word, word: word}


def _killed_before(step: int, work: Callable[..., None], *args: Any) -> None:
    """Do the work in this process, which kills itself right before step number `step`."""
    taken = itertools.count(1)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(taken) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in STEPS:
        setattr(os, name, counted(getattr(os, name)))
    work(*args)


def is_killed(step: int, work: Callable[..., None], *args: Any) -> bool:
    """Do the work in a process that is killed before one of its steps; return whether it reached that step."""
    process = FORK.Process(target=_killed_before, args=(step, work, *args))
    process.start()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def test_a_kill_at_any_point_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    states = []
    for step in itertools.count(1):
        write_text(tmp_path / "file", "old")
        killed = is_killed(step, write_text, tmp_path / "file", "new")
        states.append((tmp_path / "file").read_text())
        write_text(tmp_path / "file", "next")
        assert names(tmp_path) == {"file"}
        if not killed:
            break
    assert set(states) == {"old", "new"}
    assert states == sorted(states, reverse=True)
    assert len(states) > 5


def test_a_kill_at_any_point_leaves_the_old_folder_or_the_new_one(tmp_path: Path) -> None:
    states, missing = [], 0
    for step in itertools.count(1):
        write_folder(tmp_path / "out", "old")
        killed = is_killed(step, write_folder, tmp_path / "out", "new")
        missing += not (tmp_path / "out").exists()
        restore_folder(tmp_path / "out")
        assert names(tmp_path) == {"out"}
        states.append(texts(tmp_path / "out"))
        if not killed:
            break
    assert all(one in (content("old"), content("new")) for one in states)
    assert states[0] == content("old")
    assert states[-1] == content("new")
    assert missing == 1  # between the two renames
    assert len(states) > 10


def test_a_kill_at_any_point_does_not_block_a_later_writer(tmp_path: Path) -> None:
    for step in itertools.count(1):
        killed = is_killed(step, write_folder, tmp_path / "out", "killed")
        write_folder(tmp_path / "out", "next")  # which calls no restore_folder
        assert texts(tmp_path / "out") == content("next")
        assert names(tmp_path) == {"out"}
        if not killed:
            break


def test_a_kill_during_recovery_from_a_kill_loses_nothing(tmp_path: Path) -> None:
    for step in itertools.count(1):
        (tmp_path / ".out.replaced").mkdir()
        (tmp_path / ".out.replaced" / "old").write_text("old")
        killed = is_killed(step, restore_folder, tmp_path / "out")
        restore_folder(tmp_path / "out")
        assert texts(tmp_path / "out") == {"old": "old"}
        assert names(tmp_path) == {"out"}
        remove_folder(tmp_path / "out")
        if not killed:
            break


def test_a_kill_at_any_point_of_a_deletion_leaves_the_whole_folder_or_nothing(tmp_path: Path) -> None:
    for step in itertools.count(1):
        write_folder(tmp_path / "run", "old")
        killed = is_killed(step, remove_folder, tmp_path / "run")
        assert not (tmp_path / "run").exists() or texts(tmp_path / "run") == content("old")
        if not killed:
            break
    write_folder(tmp_path / "run", "new")
    assert names(tmp_path) == {"run"}


def _stopped(*_: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("write", [write_text, write_folder])
def test_an_interrupted_write_leaves_the_old_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[Path, str], None]
) -> None:
    write(tmp_path / "out", "old")
    monkeypatch.setattr(os, "fsync", _stopped)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", "new")
    assert names(tmp_path) == {"out"}
    text = (tmp_path / "out" / "old" if (tmp_path / "out").is_dir() else tmp_path / "out").read_text()
    assert text == "old"


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_a_rename_that_fails_leaves_the_old_folder_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    write_folder(tmp_path / "out", "old")
    taken, rename = itertools.count(1), os.rename

    def fails_once(*args: Any) -> None:
        if next(taken) == failing:
            raise OSError("stale handle")
        rename(*args)

    monkeypatch.setattr(os, "rename", fails_once)
    with pytest.raises(OSError, match="stale handle"):
        write_folder(tmp_path / "out", "new")
    assert texts(tmp_path / "out") == content("new" if failing == 3 else "old")
    restore_folder(tmp_path / "out")
    assert names(tmp_path) == {"out"}


def test_two_concurrent_writers_do_not_disturb_each_other(tmp_path: Path) -> None:
    with whole_file(tmp_path / "file") as first, whole_file(tmp_path / "file") as second:
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "file").read_text() == "first"
    assert names(tmp_path) == {"file"}


def _write_often(path: Path, word: str) -> None:
    for _ in range(40):
        write_folder(path, word)


def test_processes_that_replace_a_folder_concurrently_leave_a_whole_one(tmp_path: Path) -> None:
    words = ("one", "two", "three")
    workers = [FORK.Process(target=_write_often, args=(tmp_path / "out", word)) for word in words]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert texts(tmp_path / "out") in [content(word) for word in words]
    assert names(tmp_path) == {"out"}


def test_nothing_waits_on_a_disk_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: Any) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(files.fcntl, "flock", no_locks)
    (tmp_path / f"{files._prefix(tmp_path / 'out')}x.tmp").mkdir()  # may belong to a live process
    for word in ("old", "new"):
        write_folder(tmp_path / "out", word)
    assert texts(tmp_path / "out") == content("new")
    assert len(names(tmp_path)) == 2


def test_a_finished_folder_replaces_another(tmp_path: Path) -> None:
    write_folder(tmp_path / "unfinished", "new")
    write_folder(tmp_path / "out", "old")
    replace_folder(tmp_path / "unfinished", tmp_path / "out")
    assert texts(tmp_path / "out") == content("new")
    assert names(tmp_path) == {"out"}


def test_an_unfinished_write_does_not_count_as_content(tmp_path: Path) -> None:
    with whole_file(tmp_path / "job.json") as unfinished:
        unfinished.write_text("{}")
        assert contents(tmp_path) == []
    assert contents(tmp_path) == [tmp_path / "job.json"]


def test_files_and_folders_have_the_usual_permissions(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {})
    write_folder(tmp_path / "out", "new")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "file").touch()
    for written, plain in (("file", "plain/file"), ("out", "plain"), ("out/new", "plain/file")):
        assert (tmp_path / written).stat().st_mode == (tmp_path / plain).stat().st_mode


def test_a_file_is_written_only_into_an_existing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "removed" / "file", "text")


def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path: Path) -> None:
    for longest in ("n" * 255, "\u653f" * 85):
        for word in ("old", "new"):
            write_text(tmp_path / f"{longest[:-1]}t", word)
            write_folder(tmp_path / longest, word)
        assert (tmp_path / f"{longest[:-1]}t").read_text() == "new"
        assert texts(tmp_path / longest) == content("new")
        remove_folder(tmp_path / longest)
        (tmp_path / f"{longest[:-1]}t").unlink()
    assert names(tmp_path) == set()


def test_a_leftover_of_one_long_name_is_not_taken_for_anothers(tmp_path: Path) -> None:
    others = files._prefix(tmp_path / ("n" * 254 + "o"))
    (tmp_path / f"{others}x.tmp").mkdir()
    write_text(tmp_path / ("n" * 255), "new")
    assert (tmp_path / f"{others}x.tmp").is_dir()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[" * 100_000, r"x\.json: not valid JSON \(nested too deep\); expected a test"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[1" + b"0" * 5000 + b"]", "not valid JSON"),
        (b"null", "not a JSON object; expected a test"),
        (None, r"x\.json: no such file; expected a test"),
    ],
)
def test_a_missing_or_invalid_json_file_is_named(content: bytes | None, message: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json") if content is None else (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "x.json", what="a test")
