"""Tests of API keys: shown once, stored as hashes, revoked by editing the file, never leaked; and rate limits."""

import base64
import hashlib
import hmac
import json
import logging
import multiprocessing
import os
import shutil
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pft_core.errors import UserError
from pipelines.serve.http import keys
from pipelines.serve.http.keys import RELOAD_S, KeyRing, RateLimiter, add_key, read_keys, secret_in

FORK = multiprocessing.get_context("fork")
HASH = "a" * 64


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_key_is_shown_once_and_stored_as_a_hash(file: Path) -> None:
    secret = add_key(file, "ann", requests_per_minute=7)
    assert secret.startswith("pft-")
    assert len(secret) == 4 + 43  # 32 bytes in base64, without padding
    assert secret not in file.read_text()
    (key,) = read_keys(file)
    assert (key.name, key.sha256) == ("ann", hashlib.sha256(secret.encode()).hexdigest())
    assert key.requests_per_minute == 7
    assert add_key(file, "bob") != secret


def test_only_its_owner_can_read_the_file_from_the_first_byte_on(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes = []

    def record_mode(descriptor: int) -> None:
        mode = os.fstat(descriptor).st_mode
        modes.extend([stat.S_IMODE(mode)] if stat.S_ISREG(mode) else [])

    monkeypatch.setattr(os, "fsync", record_mode)
    for name in ("ann", "bob"):
        add_key(file, name)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        file.chmod(0o644)
    assert modes == [0o600, 0o600]
    assert {path.name for path in file.parent.iterdir()} == {"keys.json", ".keys.json.lock"}


def test_a_name_cannot_have_two_keys(file: Path) -> None:
    add_key(file, "ann")
    before = file.read_bytes()
    with pytest.raises(UserError, match="'ann' has a key already: remove its entry first"):
        add_key(file, "ann")
    assert file.read_bytes() == before


@pytest.mark.parametrize(("name", "pace"), [("", None), ("a b", None), ("x" * 65, None), ("../a", None), ("a", 0)])
def test_an_invalid_key_is_not_written(file: Path, name: str, pace: int | None) -> None:
    with pytest.raises(UserError, match=r"name=|requests_per_minute=0"):
        add_key(file, name, requests_per_minute=pace)
    assert not file.exists()


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/keys\.json: cannot be written"):
        add_key(tmp_path / "file" / "keys.json", "ann")


def _add(file: Path, name: str, start: Any) -> None:
    start.wait()
    for number in range(10):
        add_key(file, f"{name}{number}")


@pytest.mark.parametrize("kind", ["pipe", "folder", "text", "name"])
def test_an_invalid_key_or_file_leaves_nothing_behind(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "in" / "keys.json"
    if kind != "name":
        file.parent.mkdir()
        {"pipe": os.mkfifo, "folder": Path.mkdir, "text": Path.touch}[kind](file)
    before = set(tmp_path.rglob("*"))
    with pytest.raises(UserError):
        add_key(file, "me" if kind != "name" else "")
    assert set(tmp_path.rglob("*")) == before


def test_keys_created_at_the_same_time_are_all_kept(file: Path) -> None:
    start = FORK.Barrier(3)
    workers = [FORK.Process(target=_add, args=(file, name, start)) for name in "abc"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert {key.name for key in read_keys(file)} == {f"{name}{number}" for name in "abc" for number in range(10)}


def _die_before_the_file_is_replaced(file: Path) -> None:
    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
    add_key(file, "bob")


def test_leftovers_of_a_killed_process_do_no_harm(file: Path) -> None:
    process = FORK.Process(target=_die_before_the_file_is_replaced, args=(file,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    add_key(file, "ann")
    assert [key.name for key in read_keys(file)] == ["ann"]
    assert {path.name for path in file.parent.iterdir()} == {"keys.json", ".keys.json.lock"}


# --- the key ring


def test_a_key_is_recognized_and_others_are_not(file: Path) -> None:
    ann, bob = add_key(file, "ann"), add_key(file, "bob")
    ring = KeyRing(file)
    assert [ring.owner(secret).name for secret in (ann, bob)] == ["ann", "bob"]  # type: ignore[union-attr]
    for wrong in ("", "pft-", ann[:-1], ann + "x", ann.upper(), hashlib.sha256(ann.encode()).hexdigest(), "\xff"):
        assert ring.owner(wrong) is None


def test_every_entry_is_compared_whichever_matches(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [add_key(file, name) for name in ("ann", "bob", "eve")]
    ring, compared = KeyRing(file), []

    def compare(first: str, second: str) -> bool:
        compared.append(first)
        return first == second

    monkeypatch.setattr(keys.hmac, "compare_digest", compare)
    for secret in [*secrets, "wrong"]:
        ring.owner(secret)
    assert compared == [key.sha256 for key in read_keys(file)] * 4
    assert hmac.compare_digest is compare


def test_an_edited_file_takes_effect_after_some_seconds(file: Path) -> None:
    ann = add_key(file, "ann")
    clock = Clock()
    ring = KeyRing(file, clock)
    bob = add_key(file, "bob")
    assert ring.owner(bob) is None
    clock.now += RELOAD_S
    assert ring.owner(bob) is not None
    entries = json.loads(file.read_text())["keys"]
    file.write_text(json.dumps({"keys": entries[1:]}))
    clock.now += RELOAD_S
    assert ring.owner(ann) is None
    assert ring.owner(bob) is not None
    file.write_text(json.dumps({"keys": []}))  # all are revoked
    clock.now += RELOAD_S
    assert ring.owner(bob) is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"keys": 1}', '{"keys": [{"name": "x"}]}', "\0"])
def test_the_keys_stay_valid_if_the_file_is_damaged_at_runtime(
    file: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    ann = add_key(file, "ann")
    clock, whole = Clock(), file.read_bytes()
    ring = KeyRing(file, clock)
    file.write_text(content)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.now += RELOAD_S
            assert ring.owner(ann) is not None
    assert caplog.text.count("the old keys stay valid") == 1
    file.write_bytes(whole.replace(b"ann", b"eve"))
    clock.now += RELOAD_S
    assert ring.owner(ann).name == "eve"  # type: ignore[union-attr]


@pytest.mark.parametrize("gone", ["deleted", "its folder deleted", "a link to nothing", "a folder"])
def test_a_missing_file_revokes_all_keys_until_it_is_back(
    tmp_path: Path, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "folder" / "keys.json"
    ann, clock = add_key(file, "ann"), Clock()
    ring, whole = KeyRing(file, clock), file.read_bytes()
    file.unlink()
    if gone == "its folder deleted":
        shutil.rmtree(file.parent)
    elif gone == "a link to nothing":
        file.symlink_to(tmp_path / "nowhere")
    elif gone == "a folder":
        file.mkdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            clock.now += RELOAD_S
            assert ring.owner(ann) is None
    assert caplog.text.count("no key is valid now") == 1, "logged once"
    shutil.rmtree(file.parent, ignore_errors=True)
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(whole)
    clock.now += RELOAD_S
    assert ring.owner(ann) is not None


SECRET = "pft-" + "s3cr3t" * 6


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        f"{SECRET}",
        f'"{SECRET}"',
        "[" * 100_000,
        '{"keys": []}',
        f'{{"keys": [{{"name": "ann", "sha256": "{SECRET}"}}]}}',
        f'{{"keys": [{{"name": "{SECRET} x", "sha256": "{HASH}"}}]}}',
        f'{{"keys": ["{SECRET}"]}}',
        f'{{"keys": "{SECRET}"}}',
        f'{{"keys": [{{"name": "ann", "sha256": "{HASH}", "requests_per_minute": "{SECRET}"}}]}}',
        f'{{"keys": [{{"name": "ann", "sha256": "{HASH}", "secret": "{SECRET}"}}]}}',
        f'{{"keys": [{{"name": "ann", "sha256": "{HASH}"}}, {{"name": "ann", "sha256": "{"b" * 64}"}}]}}',
        f'{{"keys": [{{"name": "ann", "sha256": "{HASH}"}}, {{"name": "bob", "sha256": "{HASH}"}}]}}',
    ],
)
def test_a_damaged_file_is_refused_at_the_start_without_showing_its_content(file: Path, content: str) -> None:
    file.write_text(content)
    with pytest.raises(UserError, match=r"keys\.json: .*`pft key`") as caught:
        KeyRing(file)
    for hidden in ("s3cr3t", HASH):
        assert hidden not in str(caught.value)


def test_a_missing_file_is_refused_at_the_start(file: Path) -> None:
    with pytest.raises(UserError, match=r"keys\.json: cannot be read \(No such file"):
        KeyRing(file)
    with pytest.raises(UserError, match="cannot be read"):
        KeyRing(file.parent)


# --- the Authorization header


def basic(text: bytes) -> str:
    return "Basic " + base64.b64encode(text).decode()


@pytest.mark.parametrize(
    ("header", "secret"),
    [
        ("Bearer pft-x", "pft-x"),
        ("bearer  pft-x ", "pft-x"),
        (basic(b"anyone:pft-x"), "pft-x"),
        (basic(b":pft:x"), "pft:x"),
        (basic(b"pft-x"), ""),
        ("", None),
        ("Bearer", ""),
        ("Digest pft-x", None),
        ("pft-x", None),
        ("Basic", ""),
        ("Basic \xfc\xfc\xfc\xfc", None),
        ("Basic ====", None),
        (basic(b"a:\xff"), None),
        ("Basic YTp4\x00", None),
    ],
)
def test_the_key_is_read_from_the_header(header: str, secret: str | None) -> None:
    assert secret_in(header) == secret


@given(scheme=st.sampled_from(["Basic ", "Bearer ", "", "basic"]), value=st.binary(max_size=60))
def test_no_header_raises_an_error(scheme: str, value: bytes) -> None:
    secret = secret_in(scheme + value.decode("latin-1"))
    assert secret is None or isinstance(secret, str)
    if secret:
        keys._sha256(secret)


# --- rate limits


def test_a_minutes_requests_may_come_at_once_and_the_bucket_refills_evenly() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    assert [limiter.wait_s("ann", 6) for _ in range(6)] == [0.0] * 6
    assert limiter.wait_s("ann", 6) == pytest.approx(10)  # 60 s / 6
    clock.now += 9
    assert limiter.wait_s("ann", 6) == pytest.approx(1)
    clock.now += 1
    assert limiter.wait_s("ann", 6) == 0
    assert limiter.wait_s("ann", 6) == pytest.approx(10)
    clock.now += 3600  # no more than a minute's worth is saved up
    assert sum(limiter.wait_s("ann", 6) == 0 for _ in range(10)) == 6


def test_each_key_has_its_own_bucket() -> None:
    limiter = RateLimiter(Clock())
    assert [limiter.wait_s("ann", 1) > 0 for _ in range(2)] == [False, True]
    assert limiter.wait_s("bob", 1) == 0


def test_a_lowered_rate_limit_applies_at_once() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    limiter.wait_s("ann", 600)
    assert sum(limiter.wait_s("ann", 2) == 0 for _ in range(5)) == 2
