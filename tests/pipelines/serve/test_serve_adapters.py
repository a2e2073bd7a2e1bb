"""Tests of adapters by content: an id always means the same bytes, from a folder, S3 or MLflow."""

import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import LocalFileSystem, S3FileSystem, copy_files

from pft_core.errors import UserError
from pft_core.policies.model_ref import MODEL_REF_NAME
from pft_core.policies.pretrained import load_tokenizer
from pft_core.policies.soup import interpolate_adapters
from pipelines.serve.policies import adapters
from pipelines.serve.policies import catalog as catalog_module
from pipelines.serve.policies.adapters import (
    ADAPTER_FILES,
    AdapterBlend,
    AdapterCache,
    LocatedAdapter,
    MissingError,
    OtherContentError,
    UnreachableError,
    blend,
    content_of,
    fetch,
    object_store,
)
from pipelines.serve.policies.catalog import Catalog, TimedCache, UnknownModelError
from pipelines.tracking.mlflow_run import quiet_mlflow
from tests.serving import serve_config, write_policy

FORK = multiprocessing.get_context("fork")  # so that children need not import torch again


def write_files(folder: Path, content: str) -> LocatedAdapter:
    """Write two files that can be copied like an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ADAPTER_FILES:
        (folder / name).write_text(f"{name} {content}")
    return LocatedAdapter(f"{folder.name}@{content_of(folder).digits}", str(folder))


def copies(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if path.is_dir()}


def digits(source: Any) -> str:
    return str(source.id.rpartition("@")[2])


@pytest.fixture
def sources(tmp_path: Path) -> list[LocatedAdapter]:
    return [write_files(tmp_path / "places" / name, name) for name in "abcd"]


@pytest.fixture(scope="module")
def policies(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two policies with different weights."""
    root = tmp_path_factory.mktemp("policies")
    return [write_policy(root / f"{seed}", tiny_qwen2, seed=seed) for seed in (1, 2)]


def source_of(policy: Path) -> LocatedAdapter:
    return LocatedAdapter(f"{policy.name}@{content_of(policy / 'adapter').digits}", str(policy / "adapter"))


# --- content


def test_the_digits_depend_on_both_files(tmp_path: Path) -> None:
    source = write_files(tmp_path / "a", "x")
    each = [hashlib.sha256((tmp_path / "a" / name).read_bytes()).digest() for name in ADAPTER_FILES]
    assert digits(source) == hashlib.sha256(b"".join(each)).hexdigest()[:12]
    for name in ADAPTER_FILES:
        before = content_of(tmp_path / "a").digits
        (tmp_path / "a" / name).write_text("other")
        assert content_of(tmp_path / "a").digits != before


def test_a_copy_has_the_adapters_files_and_id(sources: list[LocatedAdapter], tmp_path: Path) -> None:
    (Path(sources[0].place) / "README.md").write_text("not needed")
    with AdapterCache(tmp_path / "cache", max_copies=2).held(sources[0]) as adapter:
        assert adapter.id == sources[0].id
        assert {file.name for file in adapter.folder.iterdir()} == set(ADAPTER_FILES)
        assert content_of(adapter.folder).digits == digits(sources[0])


def test_a_replacement_is_never_used_under_the_old_id(sources: list[LocatedAdapter], tmp_path: Path) -> None:
    cache = AdapterCache(tmp_path / "cache", max_copies=2)
    with cache.held(sources[0]):
        pass
    cached, unseen = sources[:2]
    for source in (cached, unseen):
        write_files(Path(source.place), "another content")
    with cache.held(cached) as adapter:
        assert content_of(adapter.folder).digits == digits(cached)
    with pytest.raises(OtherContentError, match=rf"{unseen.id}: its place now holds the adapter @"), cache.held(unseen):
        pass
    assert copies(tmp_path / "cache") == {digits(cached)}


@pytest.mark.parametrize("missing", ADAPTER_FILES)
def test_a_missing_file_is_named_and_leaves_nothing(
    sources: list[LocatedAdapter], tmp_path: Path, missing: str
) -> None:
    (Path(sources[0].place) / missing).unlink()
    with pytest.raises(MissingError, match=f"{missing}: no such file"):
        AdapterCache(tmp_path / "cache", max_copies=2).held(sources[0]).__enter__()
    assert copies(tmp_path / "cache") == set()


def test_a_pipe_in_place_of_a_file_does_not_block(sources: list[LocatedAdapter], tmp_path: Path) -> None:
    file = Path(sources[0].place) / ADAPTER_FILES[1]
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match="no such file"):
        AdapterCache(tmp_path / "cache", max_copies=2).held(sources[0]).__enter__()


def test_a_full_disk_is_reported_and_leaves_nothing(
    sources: list[LocatedAdapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(adapters.shutil, "copyfileobj", full)
    with pytest.raises(UserError, match=r"cannot be copied to .*cache \(No space left on device\)"):
        AdapterCache(tmp_path / "cache", max_copies=2).held(sources[0]).__enter__()
    assert copies(tmp_path / "cache") == set()


# --- the cache


def use(cache: AdapterCache, *wanted: Any) -> None:
    for source in wanted:
        with cache.held(source):
            time.sleep(0.01)  # so that the next use has a later time


def test_the_least_recently_used_copy_is_removed_first(sources: list[LocatedAdapter], tmp_path: Path) -> None:
    cache = AdapterCache(tmp_path / "cache", max_copies=2)
    a, b, c, _ = sources
    use(cache, a, b, a, c)
    assert copies(tmp_path / "cache") == {digits(a), digits(c)}
    use(cache, b)
    assert copies(tmp_path / "cache") == {digits(b), digits(c)}


def test_a_copy_is_removed_only_after_its_use(sources: list[LocatedAdapter], tmp_path: Path) -> None:
    cache = AdapterCache(tmp_path / "cache", max_copies=1)
    a, b, c, d = sources
    with cache.held(a) as first, cache.held(a), cache.held(b), cache.held(c):
        assert copies(tmp_path / "cache") == {digits(a), digits(b), digits(c)}  # more than one, as all are in use
        assert content_of(first.folder).digits == digits(a)
    use(cache, d)
    assert copies(tmp_path / "cache") == {digits(d)}


def test_a_lowered_limit_applies_from_the_start(sources: list[LocatedAdapter], tmp_path: Path) -> None:
    use(AdapterCache(tmp_path / "cache", max_copies=4), *sources)
    AdapterCache(tmp_path / "cache", max_copies=1)
    assert copies(tmp_path / "cache") == {digits(sources[3])}


def test_of_concurrent_callers_only_one_fetches(
    sources: list[LocatedAdapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched, used = [], []

    def slow_fetch(place: str, folder: Path, **settings: Any) -> Path:
        fetched.append(place)
        time.sleep(0.2)
        return fetch(place, folder, **settings)

    monkeypatch.setattr(adapters, "fetch", slow_fetch)
    cache = AdapterCache(tmp_path / "cache", max_copies=2)

    def ask() -> None:
        with cache.held(sources[0]) as adapter:
            used.append(content_of(adapter.folder).digits)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert used == [digits(sources[0])] * 8
    assert fetched == [sources[0].place]


def _use_and_check(cache: Path, sources: list[LocatedAdapter], start: Any, faults: Any) -> None:
    start.wait()
    for turn in range(40):
        source = sources[turn % len(sources)]
        try:
            with AdapterCache(cache, max_copies=1).held(source) as adapter:
                assert content_of(adapter.folder).digits == digits(source)
        except BaseException as error:
            faults.put(f"{turn}: {error!r}")


def test_processes_that_fetch_and_evict_concurrently_get_complete_copies(
    sources: list[LocatedAdapter], tmp_path: Path
) -> None:
    start, faults = FORK.Barrier(3), FORK.SimpleQueue()
    workers = [
        FORK.Process(target=_use_and_check, args=(tmp_path / "cache", sources[:2], start, faults)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert faults.empty(), faults.get()
    use(AdapterCache(tmp_path / "cache", max_copies=1), sources[2])
    assert copies(tmp_path / "cache") == {digits(sources[2])}


def _fetch_and_hang(cache: Path, source: LocatedAdapter, has_begun: Any) -> None:
    def half(place: str, folder: Path, **_: Any) -> Path:
        (folder / ADAPTER_FILES[0]).write_text("half of a fi")
        has_begun.set()
        time.sleep(60)
        return folder

    adapters.fetch = half  # type: ignore[assignment]
    with AdapterCache(cache, max_copies=2).held(source):
        pass


@pytest.fixture
def kill_fetch(sources: list[LocatedAdapter], tmp_path: Path) -> Iterator[Callable[[], None]]:
    """Start to fetch the first source in another process; the yielded function kills that process."""
    has_begun = FORK.Event()
    process = FORK.Process(target=_fetch_and_hang, args=(tmp_path / "cache", sources[0], has_begun))
    process.start()

    def kill() -> None:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()

    assert has_begun.wait(30)
    yield kill
    if process.is_alive():
        kill()


def test_an_incomplete_copy_of_a_killed_process_is_never_used(
    kill_fetch: Callable[[], None], sources: list[LocatedAdapter], tmp_path: Path
) -> None:
    cache = AdapterCache(tmp_path / "cache", max_copies=2)
    kill_fetch()
    (unfinished,) = copies(tmp_path / "cache")
    assert unfinished.startswith(f".{digits(sources[0])}.")
    with cache.held(sources[0]) as adapter:
        assert content_of(adapter.folder).digits == digits(sources[0])
    assert copies(tmp_path / "cache") == {digits(sources[0])}


def test_leftovers_of_a_killed_process_are_removed_and_running_fetches_are_not(
    kill_fetch: Callable[[], None], sources: list[LocatedAdapter], tmp_path: Path
) -> None:
    (unfinished,) = copies(tmp_path / "cache")
    use(AdapterCache(tmp_path / "cache", max_copies=2), sources[1])
    assert copies(tmp_path / "cache") == {unfinished, digits(sources[1])}
    kill_fetch()
    (tmp_path / "cache" / ".snapshot").mkdir()  # not ours
    AdapterCache(tmp_path / "cache", max_copies=2)
    assert copies(tmp_path / "cache") == {".snapshot", digits(sources[1])}


def test_an_interrupted_removal_leaves_nothing_that_looks_complete(
    sources: list[LocatedAdapter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = AdapterCache(tmp_path / "cache", max_copies=1)
    use(cache, sources[0])
    with monkeypatch.context() as patch:
        patch.setattr(adapters.shutil, "rmtree", lambda *_, **__: None)
        use(cache, sources[1])
    assert copies(tmp_path / "cache") >= {f".{digits(sources[0])}.gone", digits(sources[1])}
    assert digits(sources[0]) not in copies(tmp_path / "cache")
    use(cache, sources[2])
    assert copies(tmp_path / "cache") == {digits(sources[2])}


# --- blends


def test_the_id_of_a_blend_depends_on_its_parts_and_weight(policies: list[Path]) -> None:
    first, second = map(source_of, policies)
    assert blend(first, second, 0.25, name="slider").id == blend(first, second, 0.25, name="slider").id
    ids = {
        blend(*pair, weight, name="slider").id for pair in ((first, second), (second, first)) for weight in (0.2, 0.3)
    }
    assert len(ids) == 4
    assert all(id.startswith(("slider-0.20@", "slider-0.30@")) for id in ids)
    near = [blend(first, second, weight, name="slider").id for weight in (0.201, 0.202)]
    assert near[0] != near[1]  # slider-0.20@ both


def test_a_blend_at_an_end_is_that_end(policies: list[Path]) -> None:
    first, second = map(source_of, policies)
    assert blend(first, second, 1, name="slider") is first
    assert blend(first, second, 0.0, name="slider") is second


def test_a_blend_is_made_once_and_equals_the_interpolation(
    policies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = []

    def interpolate(parts: Any, folder: Path) -> Path:
        folders.append(folder)
        return interpolate_adapters(parts, folder)

    monkeypatch.setattr(adapters, "interpolate_adapters", interpolate)
    first, second = map(source_of, policies)
    between = blend(first, second, 0.25, name="slider")
    cache = AdapterCache(tmp_path / "cache", max_copies=3)
    by_hand = interpolate_adapters([(Path(first.place), 0.25), (Path(second.place), 0.75)], tmp_path / "by_hand")
    for _ in range(3):
        with cache.held(between) as adapter:
            assert content_of(adapter.folder).digits == content_of(by_hand).digits
    assert len(folders) == 1
    assert copies(tmp_path / "cache") == {digits(source) for source in (first, second, between)}


def test_blends_respect_the_limit(policies: list[Path], tmp_path: Path) -> None:
    first, second = map(source_of, policies)
    cache = AdapterCache(tmp_path / "cache", max_copies=1)
    use(cache, blend(first, second, 0.25, name="slider"), blend(first, second, 0.5, name="slider"))
    assert copies(tmp_path / "cache") == {digits(blend(first, second, 0.5, name="slider"))}


def test_a_blend_of_a_replaced_adapter_is_refused(policies: list[Path], tmp_path: Path) -> None:
    moved = Path(shutil.copytree(policies[0], tmp_path / "moved"))
    parts = source_of(moved), source_of(policies[1])
    shutil.copy(policies[1] / "adapter" / ADAPTER_FILES[1], moved / "adapter" / ADAPTER_FILES[1])
    with pytest.raises(OtherContentError):
        AdapterCache(tmp_path / "cache", max_copies=2).held(blend(*parts, 0.5, name="slider")).__enter__()


def test_parts_that_cannot_be_blended_are_refused_and_leave_nothing(policies: list[Path], tmp_path: Path) -> None:
    odd = Path(shutil.copytree(policies[0], tmp_path / "odd"))
    config = odd / "adapter" / ADAPTER_FILES[0]
    config.write_text(json.dumps(json.loads(config.read_text()) | {"use_dora": True}))
    parts = source_of(odd), source_of(policies[1])
    cache = AdapterCache(tmp_path / "cache", max_copies=4)
    with pytest.raises(UserError, match="use_dora=True"):
        cache.held(blend(*parts, 0.5, name="slider")).__enter__()
    assert copies(tmp_path / "cache") == {digits(part) for part in parts}


def test_the_slider_makes_a_bounded_number_of_adapters(policies: list[Path], tmp_path: Path) -> None:
    ends = {"first": str(policies[0]), "second": str(policies[1]), "steps": 4}
    catalog = Catalog(serve_config(policies[0], tmp_path / "cache", ends=ends), load_tokenizer)
    between = [catalog.between(i / 1000) for i in range(1001)]
    assert len({policy.id for policy in between}) == 5  # 0, 1/4, 1/2, 3/4, 1
    low, high = between[0], between[-1]
    assert isinstance(between[500].source, AdapterBlend)
    assert [end.source.place for end in (high, low)] == [str(p / "adapter") for p in policies]  # type: ignore[union-attr]
    assert [end.ref.adapter_sha256 for end in (high, low)] == [
        json.loads((policy / MODEL_REF_NAME).read_text())["adapter_sha256"] for policy in policies
    ]


# --- S3


@pytest.fixture(scope="module")
def bucket() -> Iterator[S3FileSystem]:
    """The bucket `policies` on moto's S3 server on a free port, to which AWS's environment variables point."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        }.items():
            patch.setenv(name, value)
        patch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        files = S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True)
        files.create_dir("policies")
        yield files
        server.stop()


def upload(files: S3FileSystem, folder: Path, path: str) -> str:
    copy_files(str(folder), path, source_filesystem=LocalFileSystem(), destination_filesystem=files)
    return f"s3://{path}"


def test_an_adapter_is_fetched_from_a_bucket(bucket: S3FileSystem, policies: list[Path], tmp_path: Path) -> None:
    place = upload(bucket, policies[0], "policies/one")
    catalog = Catalog(serve_config(place, tmp_path / "cache"), load_tokenizer)
    policy = catalog.resolve(None)
    assert policy.id == f"policy@{content_of(policies[0] / 'adapter').digits}"
    with AdapterCache(tmp_path / "cache", max_copies=2).held(policy.source) as adapter:  # type: ignore[arg-type]
        assert content_of(adapter.folder).digits == digits(policy)


def test_an_adapter_replaced_in_a_bucket_gets_another_id_even_within_a_second(
    bucket: S3FileSystem, policies: list[Path], tmp_path: Path
) -> None:
    place = upload(bucket, policies[0], "policies/replaced")
    store = {"alias_ttl_s": 0.001}
    catalog = Catalog(serve_config(place, tmp_path / "cache", store=store), load_tokenizer)
    before = catalog.resolve(None)
    upload(bucket, policies[1], "policies/replaced")  # both have the same sizes, and times are whole seconds
    time.sleep(0.01)
    after = catalog.resolve(None)
    assert after.id == f"policy@{content_of(policies[1] / 'adapter').digits}" != before.id
    cache = AdapterCache(tmp_path / "cache", max_copies=2)
    with pytest.raises(OtherContentError):
        cache.held(before.source).__enter__()  # type: ignore[arg-type]
    use(cache, after.source)


def test_the_folders_of_a_bucket_are_served_on_demand(
    bucket: S3FileSystem, policies: list[Path], tmp_path: Path
) -> None:
    upload(bucket, policies[1], "policies/shelf/second")
    with bucket.open_output_stream("policies/shelf/broken/model_ref.json") as file:
        file.write(b"{")
    with bucket.open_output_stream("policies/shelf/notes.txt") as file:
        file.write(b"no folder")
    root = {"root": "s3://policies/shelf", "alias_ttl_s": 0.001}
    catalog = Catalog(serve_config(policies[0], tmp_path / "cache", store=root), load_tokenizer)
    assert [policy.id.partition("@")[0] for policy in catalog.listed()] == ["policy", "base", "second"]
    assert catalog.resolve("second").id == f"second@{content_of(policies[1] / 'adapter').digits}"
    with pytest.raises(UserError, match=r"broken.*not a policy"):
        catalog.resolve("broken")
    for unknown in ("nobody", "notes.txt", "shelf"):
        with pytest.raises(UnknownModelError):
            catalog.resolve(unknown)
    upload(bucket, policies[0], "policies/shelf/later")
    assert catalog.resolve("later").id == f"later@{content_of(policies[0] / 'adapter').digits}"


@pytest.mark.parametrize("adapter", ["../one/adapter", "/etc", None])
def test_a_reference_in_a_bucket_cannot_name_an_adapter_outside_its_folder(
    bucket: S3FileSystem, policies: list[Path], tmp_path: Path, adapter: str | None
) -> None:
    odd = Path(shutil.copytree(policies[0], tmp_path / "odd"))
    raw = json.loads((odd / MODEL_REF_NAME).read_text())
    (odd / MODEL_REF_NAME).write_text(json.dumps(raw | {"adapter": adapter, "weights": None if adapter else "w"}))
    place = upload(bucket, odd, "policies/odd")
    with pytest.raises(UserError, match=r"policies/odd(: adapter=.* is outside of it| has no LoRA adapter)"):
        Catalog(serve_config(place, tmp_path / "cache"), load_tokenizer)


def test_an_absent_file_is_missing_and_a_bucket_that_does_not_answer_is_unreachable(
    bucket: S3FileSystem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingError, match=r"s3://policies/nowhere/adapter_config\.json: no such file"):
        fetch("s3://policies/nowhere", tmp_path / "one")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match=r"s3://policies/one/adapter_config\.json: cannot be read"):
        fetch("s3://policies/one", tmp_path / "two")
    assert object_store("s3://policies/a/b/")[1] == "policies/a/b"


# --- MLflow's registry


@pytest.fixture(scope="module")
def registry(policies: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A registry on SQLite in which `policy` has two versions: @first is the first, and @champion moves."""
    quiet_mlflow()
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("e", artifact_location=(folder / "artifacts").as_uri())
    client.create_registered_model("policy")
    for number, policy in enumerate(policies, 1):
        run = client.create_run(experiment)
        client.log_artifact(run.info.run_id, str(policy / MODEL_REF_NAME))
        client.log_artifacts(run.info.run_id, str(policy / "adapter"), "adapter")
        client.create_model_version("policy", run.info.artifact_uri, run.info.run_id)
        client.set_registered_model_alias("policy", ("first", "second")[number - 1], str(number))
    client.set_registered_model_alias("policy", "champion", "1")
    return client, uri


def catalog_on(registry: tuple[Any, str], tmp_path: Path, place: str = "models:/policy@champion", **store: Any) -> Any:
    settings = {"registry": registry[1], **store}
    return Catalog(serve_config(place, tmp_path / "cache", store=settings), load_tokenizer)


def test_an_alias_names_a_policy(
    registry: tuple[Any, str], policies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    catalog = catalog_on(registry, tmp_path)
    first, second = (f"policy@{content_of(policy / 'adapter').digits}" for policy in policies)
    assert [catalog.resolve(name).id for name in ("policy", "policy@champion", "policy@first")] == [first] * 3
    assert catalog.resolve("policy@second").id == second
    cache = AdapterCache(tmp_path / "cache", max_copies=2, registry=registry[1])
    for name, policy in zip(("policy@first", "policy@second"), policies, strict=True):
        with cache.held(catalog.resolve(name).source) as adapter:
            assert content_of(adapter.folder).digits == content_of(policy / "adapter").digits
            assert {file.name for file in adapter.folder.iterdir()} == set(ADAPTER_FILES)
    assert not (tmp_path / "mlflow.db").exists()  # MLflow's default store if no other is set


def test_a_moved_alias_is_followed_after_alias_ttl_s(
    registry: tuple[Any, str], policies: list[Path], tmp_path: Path
) -> None:
    client, _ = registry
    first, second = (f"policy@{content_of(policy / 'adapter').digits}" for policy in policies)
    catalog = catalog_on(registry, tmp_path, alias_ttl_s=0.5)
    assert catalog.resolve(None).id == first
    client.set_registered_model_alias("policy", "champion", "2")
    try:
        end = time.monotonic() + 0.6
        while catalog.resolve(None).id == first:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert catalog.resolve(None).id == second
        assert catalog.resolve(first).id == first  # a version does not change
    finally:
        client.set_registered_model_alias("policy", "champion", "1")


@pytest.mark.parametrize("name", ["policy@nobody", "policy@7", "other@first", "policy@0123456789ab"])
def test_an_unregistered_alias_or_name_is_unknown(registry: tuple[Any, str], tmp_path: Path, name: str) -> None:
    with pytest.raises(UnknownModelError):
        catalog_on(registry, tmp_path).resolve(name)


def test_a_pinned_version_has_no_aliases(
    registry: tuple[Any, str], policies: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = catalog_on(registry, tmp_path, "models:/policy/2")
    assert catalog.resolve(None).id == f"policy@{content_of(policies[1] / 'adapter').digits}"
    monkeypatch.setattr(catalog_module, "version_of", lambda *_, **__: pytest.fail("the registry was queried"))
    with pytest.raises(UnknownModelError):
        catalog.resolve("policy@first")


@pytest.mark.parametrize("place", ["models:/policy@nobody", "models:/nobody@first", "models:/policy/7"])
def test_a_policy_that_is_not_in_the_registry_is_refused_at_the_start(
    registry: tuple[Any, str], tmp_path: Path, place: str
) -> None:
    with pytest.raises(UserError, match="not in the registry sqlite"):
        catalog_on(registry, tmp_path, place)


def test_a_missing_registry_is_refused_and_not_created(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"store\.registry=.*nowhere\.db: no such file"):
        catalog_on((None, f"sqlite:///{tmp_path}/nowhere.db"), tmp_path)
    with pytest.raises(UserError, match=r"not in the registry http://\*\*\*@127\.0\.0\.1:9") as caught:
        catalog_on((None, "http://me:hunter2@127.0.0.1:9"), tmp_path)
    assert "hunter2" not in str(caught.value)
    assert not list(tmp_path.glob("*.db"))


class RemoteService:
    """A service that returns a value, or raises that it is unreachable or that the value does not exist."""

    def __init__(self) -> None:
        self.answer: Any = 1
        self.num_calls = 0

    def __call__(self) -> Any:
        self.num_calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_a_value_is_fetched_again_after_its_ttl() -> None:
    now, service = [0.0], RemoteService()
    cache = TimedCache(5, clock=lambda: now[0])
    assert [cache.get("k", service) for _ in range(3)] == [1, 1, 1]
    service.answer, now[0] = 2, 4.9
    assert cache.get("k", service) == 1
    now[0] = 5.1
    assert cache.get("k", service) == 2
    assert service.num_calls == 2


def test_an_outage_keeps_the_old_value_and_an_absence_does_not() -> None:
    now, service = [0.0], RemoteService()
    cache = TimedCache(5, clock=lambda: now[0])
    cache.get("k", service)
    service.answer, now[0] = UnreachableError("away"), 6.0
    assert cache.get("k", service) == 1
    assert cache.get("k", service) == 1
    assert service.num_calls == 2  # not once per request, as each call would wait for a time-out
    with pytest.raises(UnreachableError):
        cache.get("never fetched", service)
    service.answer, now[0] = UnknownModelError("gone"), 12.0
    for _ in range(2):
        with pytest.raises(UnknownModelError):
            cache.get("k", service)
    service.answer = UnreachableError("away")  # an outage does not bring the removed value back
    with pytest.raises(UnreachableError):
        cache.get("k", service)


def test_while_one_thread_fetches_the_others_get_the_old_value() -> None:
    now = [0.0]
    cache = TimedCache(5, clock=lambda: now[0])
    cache.get("k", lambda: "old")
    now[0] = 6.0
    has_begun, go = threading.Event(), threading.Event()

    def slow() -> str:
        has_begun.set()
        go.wait(10)
        return "new"

    thread = threading.Thread(target=cache.get, args=("k", slow))
    thread.start()
    assert has_begun.wait(10)
    assert cache.get("k", slow) == "old"
    go.set()
    thread.join()
    assert cache.get("k", slow) == "new"
