"""The server on Ray Serve: one ingress that answers HTTP, and replicas of the engine behind it.

The ingress is on its own, so that a replica's death is a retry here instead of a client's error (Serve's proxy answers
500 where the replica it called dies), and so that engines scale on GPUs while HTTP stays on one CPU.

Ray's own LLM serving (`ray.serve.llm` 2.60) is not used: it pins vLLM 0.29, in which a malformed structured-output
request kills the engine (CVE-2026-105757), takes adapters from object stores only, never refreshes a name that it has
loaded, and puts no limit on what a replica takes on.
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
    chosen_engine,
    fitted,
    make_host,
)
from pipelines.serve.http import Admission, KeyRing, make_app, num_bodies, num_places
from pipelines.serve.metrics import Metrics
from pipelines.serve.policies import AdapterSource, Catalog
from pipelines.serve.requests import Gateway, read_examples
from pipelines.serve.serve_config import APPLICATION, ReplicaSettings, ServeConfig
from pipelines.validated_yaml import build as build_config

INGRESS_ONGOING, INGRESS_QUEUED = 1000, 100  # the least
TRIES = 4
PAUSE_S = 0.2  # before a replica is asked in place of one that was lost; doubles


def listen_on_the_node() -> None:
    """Have the replica whose process calls this listen where others look for it; Ray's would on every interface.

    Serve has no option for it, and binds after the replica was made.
    """
    bind = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: bind(server, build_address(get_node_ip_address(), 0))


class EngineReplica:
    """One engine with the adapters of its node."""

    def __init__(self, raw: dict[str, Any], model: str, template_digest: str, lora: bool):
        listen_on_the_node()
        self._host = make_host(build_config(ServeConfig, raw), model, template_digest, lora=lora)

    async def generate(self, request: GenerationRequest, source: AdapterSource | None) -> AsyncIterator[Step]:
        async for step in self._host.generate(request, source):
            yield step

    async def write(self, request: GenerationRequest, source: AdapterSource | None) -> list[Step]:
        """The whole continuation at once: a call for each token would cost more than a small model's token."""
        return [step async for step in self._host.generate(request, source)]

    async def score(
        self, examples: Sequence[BranchedExample], source: AdapterSource | None, steering: Steering | None
    ) -> list[NDArray[np.float32]]:
        return await self._host.score(examples, source, steering)

    async def check_health(self) -> None:
        """Serve calls this; a replica whose engine is broken is replaced."""
        await self._host.check()

    async def __del__(self) -> None:
        await self._host.engine.close()


class Replicas:
    """The backend over a Serve handle; what a lost replica was asked, another is asked again."""

    def __init__(self, handle: Any, metrics: Metrics):
        self._handle, self._metrics = handle, metrics

    async def generate(self, request: GenerationRequest, source: AdapterSource | None) -> AsyncIterator[Step]:
        if request.stream:
            async with aclosing(self._stream(request, source)) as steps:
                async for step in steps:
                    yield step
        else:
            for step in await self._ask("write", request, source):
                yield step

    async def _stream(self, *arguments: Any) -> AsyncGenerator[Step, None]:
        begun = False
        for attempt in range(TRIES):
            steps = self._handle.options(stream=True).generate.remote(*arguments)
            try:
                async for step in steps:
                    begun = True
                    yield step
                return
            except (GeneratorExit, asyncio.CancelledError):
                steps.cancel()  # the client left: what it asked for is not written to the end
                raise
            except Exception as error:
                self._give_up(error, again=not begun and attempt + 1 < TRIES)
            await asyncio.sleep(PAUSE_S * 2**attempt)

    async def score(
        self, examples: Sequence[BranchedExample], source: AdapterSource | None, steering: Steering | None
    ) -> list[NDArray[np.float32]]:
        scores: list[NDArray[np.float32]] = await self._ask("score", examples, source, steering)
        return scores

    async def check(self) -> None:
        await self._ask("check_health")

    async def _ask(self, method: str, *arguments: Any) -> Any:
        for attempt in range(TRIES):
            response = getattr(self._handle, method).remote(*arguments)
            try:
                return await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except Exception as error:
                self._give_up(error, again=attempt + 1 < TRIES)
            await asyncio.sleep(PAUSE_S * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _give_up(self, error: Exception, *, again: bool) -> None:
        """Raise what an error means to a client; return where another replica may be asked."""
        if mistake := unwrap_user_error(error):
            raise mistake from None
        if isinstance(fault := getattr(error, "cause", error), RequestFault):  # Ray's own text is a traceback
            raise RequestFault(str(fault)) from None
        lost = isinstance(error, RayActorError | DeploymentUnavailableError | EngineFault)
        if not lost and not isinstance(getattr(error, "cause", None), EngineFault):
            raise error
        if not again:
            raise UnavailableError("the replica that was asked is gone: come back later") from None
        self._metrics.retries.inc()


@serve.ingress()
class Ingress:
    """The HTTP API over the replicas."""

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
        return make_app(self._config, self._gateway, self._metrics, self._admission, tells_id=False)

    async def drain(self) -> None:
        """Take nothing on any more, and return when everything taken on is answered."""
        await self._admission.drain()


async def running_engines() -> int:
    """Return how many replicas of the engine answer now."""
    status = await asyncio.to_thread(serve.status)
    states = status.applications[APPLICATION].deployments["engine"].replica_states
    return int(states.get("RUNNING", 0))


def build(raw: dict[str, Any]) -> Any:
    """Return the Serve application of a raw serving recipe: what `serve deploy` and RayService import.

    Raises UserError for a recipe that cannot be served.
    """
    config = build_config(ServeConfig, raw)
    catalog = Catalog(config, load_tokenizer)
    config = fitted(config, catalog.model)
    if config.keys is not None:
        KeyRing(Path(config.keys))
    if config.examples is not None:
        read_examples(Path(config.examples))
    chosen_engine(config)
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
    """Return how many requests the ingress has at once, far above what it lets in: it sends away, not the proxy.

    Where they are all taken nobody is answered, probes included, and Serve replaces the ingress.
    """
    places = num_places(scaling, scaling.max_replicas)
    return max(INGRESS_ONGOING, 2 * (places + 2 * num_bodies(places)))


def engine_options(config: ServeConfig) -> dict[str, Any]:
    """Return the Serve options of the engine's deployment."""
    scaling = config.scaling
    scale: dict[str, Any] = {"num_replicas": scaling.min_replicas}
    if scaling.max_replicas > scaling.min_replicas:
        scale = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=scaling.min_replicas,
                max_replicas=scaling.max_replicas,
                # Another replica is started while there is still room in those that run.
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
