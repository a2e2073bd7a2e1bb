"""The server on Ray Serve: one ingress that answers HTTP, and engine replicas behind it.

The ingress is a deployment of its own for two reasons. A replica's death becomes a retry here instead of a client's
error (Serve's proxy answers 500 if the replica that it called dies), and engines scale on GPUs while HTTP stays on one
CPU.

Ray's own LLM serving (`ray.serve.llm` 2.60) is not used. It pins vLLM 0.29, in which a malformed structured-output
request kills the engine (CVE-2026-105757); it takes adapters from object stores only; it never refreshes a name that it
has loaded; and it does not limit how many requests a replica accepts.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray._common.network_utils import build_address
from ray.exceptions import RayActorError
from ray.serve._private import replica
from ray.serve.config import AutoscalingConfig, BackpressureConfig
from ray.serve.exceptions import DeploymentUnavailableError
from ray.util import get_node_ip_address

from pft_core.encoding import BranchedExample
from pft_core.policies import load_tokenizer
from pipelines.jobs import unwrap_user_error
from pipelines.serve.engines import (
    EngineFault,
    GenerationRequest,
    RequestFault,
    Steering,
    Step,
    UnavailableError,
    engine_name,
    make_host,
    with_model_limit,
)
from pipelines.serve.http import Admission, KeyRing, make_app, num_bodies, num_places
from pipelines.serve.metrics import Metrics
from pipelines.serve.policies import AdapterSource, Catalog
from pipelines.serve.requests import Gateway, read_examples
from pipelines.serve.serve_config import APPLICATION, ReplicaSettings, ServeConfig
from pipelines.validated_yaml import build as build_config

MIN_INGRESS_ONGOING = 1000  # see `ingress_ongoing`
INGRESS_QUEUED = 100
MAX_ATTEMPTS = 4
PAUSE_S = 0.2  # before the first retry on another replica; doubles with each further one


def listen_on_the_node() -> None:
    """Make this process's replica listen on its node's address only; by default Ray listens on every interface.

    Serve has no option for this, and it binds the port after the replica is constructed.
    """
    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: bind(server, build_address(get_node_ip_address(), 0))


class EngineReplica:
    """One engine with its node's copies of adapters."""

    def __init__(self, raw: dict[str, Any], model: str, template_digest: str, lora: bool):
        listen_on_the_node()
        self._host = make_host(build_config(ServeConfig, raw), model, template_digest, lora=lora)

    async def generate(self, request: GenerationRequest, source: AdapterSource | None) -> AsyncIterator[Step]:
        async for step in self._host.generate(request, source):
            yield step

    async def write(self, request: GenerationRequest, source: AdapterSource | None) -> list[Step]:
        """Return the whole continuation at once: one call per token would cost more than a small model's token."""
        return [step async for step in self._host.generate(request, source)]

    async def score(
        self, examples: Sequence[BranchedExample], source: AdapterSource | None, steering: Steering | None
    ) -> list[NDArray[np.float32]]:
        return await self._host.score(examples, source, steering)

    async def check_health(self) -> None:
        """Raise if the engine is broken. Serve calls this and replaces a replica that raises."""
        await self._host.check()

    async def __del__(self) -> None:
        await self._host.engine.close()


class Replicas:
    """The backend over a Serve handle. If a replica is lost, its request is sent to another one."""

    def __init__(self, handle: Any, metrics: Metrics):
        self._handle, self._metrics = handle, metrics

    async def generate(self, request: GenerationRequest, source: AdapterSource | None) -> AsyncIterator[Step]:
        if request.stream:
            async with aclosing(self._stream(request, source)) as steps:
                async for step in steps:
                    yield step
        else:
            for step in await self._call("write", request, source):
                yield step

    async def _stream(self, *arguments: Any) -> AsyncGenerator[Step, None]:
        has_begun = False
        for attempt in range(MAX_ATTEMPTS):
            steps = self._handle.options(stream=True).generate.remote(*arguments)
            try:
                async for step in steps:
                    has_begun = True
                    yield step
                return
            except (GeneratorExit, asyncio.CancelledError):
                steps.cancel()  # the client left: the engine need not finish the text
                raise
            except Exception as error:
                self._give_up(error, again=not has_begun and attempt + 1 < MAX_ATTEMPTS)
            await asyncio.sleep(PAUSE_S * 2**attempt)

    async def score(
        self, examples: Sequence[BranchedExample], source: AdapterSource | None, steering: Steering | None
    ) -> list[NDArray[np.float32]]:
        scores: list[NDArray[np.float32]] = await self._call("score", examples, source, steering)
        return scores

    async def check(self) -> None:
        await self._call("check_health")

    async def _call(self, method: str, *arguments: Any) -> Any:
        for attempt in range(MAX_ATTEMPTS):
            response = getattr(self._handle, method).remote(*arguments)
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except Exception as error:
                self._give_up(error, again=attempt + 1 < MAX_ATTEMPTS)
            await asyncio.sleep(PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _give_up(self, error: Exception, *, again: bool) -> None:
        """Raise the error that the client should see, or return if another replica may be tried."""
        if user_error := unwrap_user_error(error):
            raise user_error from None
        if isinstance(fault := getattr(error, "cause", error), RequestFault):  # Ray's message would be a traceback
            raise RequestFault(str(fault)) from None
        is_lost = isinstance(error, RayActorError | DeploymentUnavailableError | EngineFault)
        if not is_lost and not isinstance(getattr(error, "cause", None), EngineFault):
            raise error
        if not again:
            raise UnavailableError("the replica that had this request is gone: try again later") from None
        self._metrics.retries.inc()


@serve.ingress()
class Ingress:
    """The HTTP API in front of the replicas."""

    def __init__(self, raw: dict[str, Any], replicas: Any):
        listen_on_the_node()
        self._config = build_config(ServeConfig, raw)
        self._metrics = Metrics()
        catalog = Catalog(self._config, load_tokenizer)
        self._gateway = Gateway(self._config, catalog, Replicas(replicas, self._metrics), self._metrics)
        scaling = self._config.scaling
        is_fixed = scaling.min_replicas == scaling.max_replicas
        self._admission = Admission(scaling, count_replicas=None if is_fixed else running_engines)

    def __serve_build_asgi_app__(self) -> Any:
        return make_app(self._config, self._gateway, self._metrics, self._admission, sends_request_id=False)

    async def drain(self) -> None:
        """Accept no new requests, and return when all accepted ones are answered."""
        await self._admission.drain()


async def running_engines() -> int:
    """Return how many engine replicas are running now."""
    status = await asyncio.to_thread(serve.status)
    states = status.applications[APPLICATION].deployments["engine"].replica_states
    return int(states.get("RUNNING", 0))


def build(raw: dict[str, Any]) -> Any:
    """Return the Serve application for a raw serving recipe. `serve deploy` and RayService import this function.

    Raises UserError if the recipe cannot be served.
    """
    config = build_config(ServeConfig, raw)
    catalog = Catalog(config, load_tokenizer)
    config = with_model_limit(config, catalog.model)
    if config.keys is not None:
        KeyRing(Path(config.keys))
    if config.examples is not None:
        read_examples(Path(config.examples))
    engine_name(config)
    dumped = config.model_dump()
    engines = serve.deployment(EngineReplica).options(name="engine", **engine_options(config))
    ref = catalog.default.ref
    lora = bool(config.ends or config.store.root) or any(policy.source for policy in catalog.listed())
    replicas = engines.bind(dumped, catalog.model, ref.template_digest, lora)
    ingress = serve.deployment(Ingress).options(
        name="ingress",
        max_ongoing_requests=ingress_ongoing(config.scaling),
        max_queued_requests=INGRESS_QUEUED,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=1),
        graceful_shutdown_timeout_s=config.scaling.drain_s,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": 0.5},
    )
    return ingress.bind(dumped, replicas)


def ingress_ongoing(scaling: ReplicaSettings) -> int:
    """Return how many requests Serve lets into the ingress at once.

    This is far above what the ingress admits, so that the ingress rejects requests and the proxy does not. If Serve's
    limit were reached, nobody would be answered, health probes included, and Serve would replace the ingress.
    """
    places = num_places(scaling, scaling.max_replicas)
    return max(MIN_INGRESS_ONGOING, 2 * (places + 2 * num_bodies(places)))


def engine_options(config: ServeConfig) -> dict[str, Any]:
    """Return the Serve options of the engine's deployment."""
    scaling = config.scaling
    scale: dict[str, Any] = {"num_replicas": scaling.min_replicas}
    if scaling.max_replicas > scaling.min_replicas:
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scaling.min_replicas,
                max_replicas=scaling.max_replicas,
                # Start another replica while the running ones still have room.
                target_ongoing_requests=max(1, 0.75 * scaling.max_ongoing_requests),
            )
        }
    threads = str(config.engine.threads)
    return {
        **scale,
        "max_ongoing_requests": scaling.max_ongoing_requests,
        "graceful_shutdown_timeout_s": scaling.drain_s,
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": 5,
        "max_constructor_retry_count": 3,
        "ray_actor_options": {
            "num_cpus": scaling.num_cpus,
            "num_gpus": scaling.num_gpus,
            "runtime_env": {"env_vars": {"OMP_NUM_THREADS": threads}},
        },
    }
