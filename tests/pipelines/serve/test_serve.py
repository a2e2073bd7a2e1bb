"""Tests of the server on a real Ray: through the proxy, with replicas that die, are replaced, or are full."""

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from ray import serve
from transformers import Qwen2Config

from benchmarks.load import Body, Client, Load, Sample, closed_loop, open_loop
from pft_core.errors import UserError
from pipelines.serve import job
from pipelines.serve.deployments import build
from pipelines.serve.engines.engine_builders import with_model_limit
from pipelines.serve.serve_config import APPLICATION, ServeConfig, ServingEngineSettings
from tests.serving import serve_config, write_policy

pytestmark = pytest.mark.ray

WRITE: Body = {"model": "base", "prompt": "Which plan ?", "max_tokens": 40, "temperature": 0}


@pytest.fixture(scope="module")
def config(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> ServeConfig:
    root = tmp_path_factory.mktemp("serve")
    places = [write_policy(root / name, tiny_qwen2, seed=i) for i, name in enumerate(("policy", "first", "second"))]
    return job.with_port(
        serve_config(
            places[0],
            root / "cache",
            ends={"first": str(places[1]), "second": str(places[2])},
            engine={"name": "transformers", "max_length": 512},
            scaling={"min_replicas": 2, "max_replicas": 2, "num_cpus": 0.5, "drain_s": 10,
                     "max_ongoing_requests": 8, "max_queued_requests": 8},
            port=0,
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def url(ray_cluster: None, config: ServeConfig) -> Iterator[str]:
    job.deploy(config, build(config.model_dump()))
    yield f"http://{config.host}:{config.port}"
    job.shut_down()


def engines() -> list[int]:
    """Return the process ids of the engine replicas."""
    import ray
    from ray.util.state import list_actors

    here = ray.get_runtime_context().gcs_address  # by default it would be the latest cluster on this machine
    filters = [("class_name", "=", "ServeReplica:pft:engine"), ("state", "=", "ALIVE")]
    return [int(actor.pid) for actor in list_actors(here, filters=filters, detail=True) if actor.pid]


def load(url: str, run: Callable[[Client], Awaitable[Load]], *, patience_s: float = 0) -> Load:
    async def session() -> Load:
        client = Client(url, "/v1/completions", patience_s=patience_s)
        try:
            return await run(client)
        finally:
            await client.close()

    return asyncio.run(session())


def test_the_api_answers_through_serve(url: str) -> None:
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        choice = client.post("/v1/choose", json={"scenario": "The plan", "options": ["go", "stay"],
                                                 "preference": {"Bold": 1, "Careful": 3}}).json()  # fmt: skip
        assert choice["mixing"] == "adapter"
        assert sum(option["probability"] for option in choice["options"]) == pytest.approx(1)
        whole = client.post("/v1/completions", json=WRITE).json()["choices"][0]["text"]
        with client.stream("POST", "/v1/completions", json={**WRITE, "stream": True}) as stream:
            events = [line for line in stream.iter_lines() if line.startswith("data: {")]
        assert len(events) > 10, "the text came in several chunks"
        assert "".join(json.loads(event[6:])["choices"][0]["text"] for event in events) == whole
        refused = client.post("/v1/choose", json={"scenario": "x", "options": ["a", "b"], "preference": "Bald"})
        assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")
        missing = client.post("/v1/choose", json={"scenario": "x", "options": ["a", "b"], "model": "../policy"})
        assert missing.status_code == 404


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_counted_as_499_and_not_as_500(url: str, stream: bool) -> None:
    long = {**WRITE, "max_tokens": 400, "stream": stream}
    with httpx.Client(base_url=url, timeout=60) as client:

        def count(status: int) -> float:
            series = f'pft_requests_total{{route="/v1/completions",status="{status}"}} '
            lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(series)]
            return float(lines[0].split()[-1]) if lines else 0

        before = {status: count(status) for status in (499, 500)}
        with (
            contextlib.suppress(httpx.TimeoutException),
            httpx.Client(base_url=url, timeout=0.3) as hasty,
            hasty.stream("POST", "/v1/completions", json=long) as answer,
        ):
            next(answer.iter_lines())
        wait_for(lambda: count(499) == before[499] + 1)
        assert count(500) == before[500]


def test_requests_beyond_the_queue_are_rejected_at_once(url: str) -> None:
    flood = load(url, lambda client: open_loop(client, [{**WRITE, "max_tokens": 200}], per_second=150, seconds=1.5))
    assert set(flood.statuses) == {200, 429}
    assert flood.ms(0.5, 429) < flood.ms(0.5, 200)
    with httpx.Client(base_url=url, timeout=60) as client:
        assert client.post("/v1/completions", json=WRITE).status_code == 200, "the server recovers"
        assert 'pft_rejected_total{reason="overload"}' in client.get("/metrics").text


@pytest.mark.chaos
def test_a_dead_replica_loses_no_request_and_is_replaced(url: str) -> None:
    victim = engines()[0]

    async def run(client: Client) -> Load:
        answers = asyncio.create_task(closed_loop(client, [WRITE] * 120, in_flight=6))
        await asyncio.sleep(0.5)
        os.kill(victim, signal.SIGKILL)
        return await answers

    result = load(url, run, patience_s=60)
    assert result.statuses == {200: 120}
    wait_for(lambda: len(engines()) == 2 and victim not in engines())


@pytest.mark.chaos
@pytest.mark.slow
def test_an_update_under_load_loses_no_request(url: str, config: ServeConfig) -> None:
    before = set(engines())
    changed = config.model_copy(update={"engine": config.engine.model_copy(update={"tokens_per_batch": 4096})})

    async def run(client: Client) -> Load:
        update = asyncio.create_task(asyncio.to_thread(job.deploy, changed, build(changed.model_dump())))
        answers = Load()
        while not update.done():
            answers.samples += (await closed_loop(client, [WRITE] * 12, in_flight=4)).samples
        await update
        return answers

    result = load(url, run, patience_s=60)
    assert set(result.statuses) == {200}
    assert not before & set(engines()), "every replica is new"


@pytest.mark.chaos
@pytest.mark.slow
def test_kills_every_20_s_and_three_updates_fail_no_request_of_a_client_that_retries(
    url: str, config: ServeConfig
) -> None:
    """Two clients send requests for 80 s: one retries after 429 and 503, one never does."""
    kills = 0

    async def disturb() -> None:
        nonlocal kills
        for number in range(3):
            await asyncio.sleep(10)
            batch = config.engine.model_copy(update={"tokens_per_batch": 5000 + number})
            changed = config.model_copy(update={"engine": batch})
            await asyncio.to_thread(job.deploy, changed, build(changed.model_dump()))
            if alive := engines():
                os.kill(alive[0], signal.SIGKILL)
                kills += 1
            await asyncio.sleep(10)

    async def run() -> tuple[Load, Load]:
        patient, bare = (Client(url, "/v1/completions", patience_s=p) for p in (120, 0))
        trouble = asyncio.create_task(disturb())
        loads = (Load(), Load())
        while not trouble.done():
            rounds = (closed_loop(client, [WRITE] * 20, in_flight=4) for client in (patient, bare))
            for load, more in zip(loads, await asyncio.gather(*rounds), strict=True):
                load.samples += more.samples
        await trouble
        return loads

    patient, bare = asyncio.run(run())
    print(f"patient {patient.statuses}, bare {bare.statuses}, kills {kills}")
    assert kills == 3
    assert set(patient.statuses) == {200}
    assert set(bare.statuses) <= {200, 429, 503}, "failures of a client that does not retry have these statuses"


@pytest.mark.slow
def test_another_replica_starts_under_load_and_its_places_are_used(url: str, config: ServeConfig) -> None:
    """One replica has 8 places, two have 16. Serve observes the load for half a minute before it starts the second."""
    places = {"min_replicas": 1, "max_replicas": 2, "max_queued_requests": 0}
    changed = config.model_copy(update={"scaling": config.scaling.model_copy(update=places)})
    serve.delete(APPLICATION)  # an update would keep the running replicas for ten minutes
    job.deploy(changed, build(changed.model_dump()))
    wait_for(lambda: len(engines()) == 1)
    long = {**WRITE, "max_tokens": 450, "ignore_eos": True}

    def sixteen_at_once() -> dict[int, int]:
        return load(url, lambda client: closed_loop(client, [long] * 16, in_flight=16)).statuses

    # Repeated, because a busy machine may send the last request when the first is answered already.
    wait_for(lambda: sixteen_at_once() == {200: 8, 429: 8}, seconds=20)

    async def until_another_runs(client: Client) -> Load:
        answers = Load()

        async def ask(body: Body) -> Sample:
            answers.samples.append(await client(body))
            return answers.samples[-1]

        full = asyncio.create_task(closed_loop(ask, [long], in_flight=8, until=time.monotonic() + 300))
        while not full.done() and len(await asyncio.to_thread(engines)) < 2:
            await asyncio.sleep(1)
        full.cancel()
        return answers

    # With retries, because an answer may arrive just before its place is free.
    result = load(url, until_another_runs, patience_s=60)
    assert result.statuses.keys() == {200}
    assert len(engines()) == 2
    wait_for(lambda: sixteen_at_once() == {200: 16}, seconds=120)


def wait_for(condition: Callable[[], bool], *, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.2)


def test_an_invalid_policy_raises_a_user_error(url: str, config: ServeConfig, tmp_path: Path) -> None:
    broken = config.model_dump() | {"policy": str(tmp_path)}
    with pytest.raises(UserError, match="model reference"):
        build(broken)


def test_max_length_is_the_models_and_a_larger_one_in_the_recipe_is_refused(
    config: ServeConfig, tmp_path: Path
) -> None:
    model = str(tmp_path)
    Qwen2Config(max_position_embeddings=300).save_pretrained(tmp_path)
    named = config.engine.model_dump(exclude_unset=True)
    del named["max_length"]
    unnamed = config.model_copy(update={"engine": ServingEngineSettings(**named)})
    assert with_model_limit(unnamed, model).engine.max_length == 300
    with pytest.raises(UserError, match=r"max_length=512: .* takes 300 tokens"):
        with_model_limit(config, model)


def test_the_generated_serve_config_is_valid_for_serve(config: ServeConfig) -> None:
    from ray.serve.schema import ServeDeploySchema

    raw: Any = job.serve_yaml(config)
    application = ServeDeploySchema(**raw).applications[0]
    assert application.import_path == "pipelines.serve.deployments:build"
    assert build(application.args) is not None
