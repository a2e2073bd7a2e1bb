"""Load generators for a server: closed loops (a fixed number in flight) and open loops (a fixed rate).

`python -m benchmarks.load` runs one load described as JSON on stdin: a small process of its own, so that nothing but
the load delays its requests.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx2 as httpx

Body = dict[str, Any]
RETRIED = (429, 503)


@dataclass(frozen=True)
class Sample:
    """One request: its final status (0: no response), its seconds, its number of retries, and its content."""

    status: int
    seconds: float
    retries: int = 0
    content: Any = None


@dataclass
class Load:
    """The samples of one run."""

    samples: list[Sample] = field(default_factory=list)
    seconds: float = 0.0

    def of(self, *statuses: int) -> list[float]:
        """Return the seconds of the requests with these statuses."""
        return [sample.seconds for sample in self.samples if sample.status in statuses]

    @property
    def statuses(self) -> dict[int, int]:
        """The number of requests by status."""
        return dict(Counter(sample.status for sample in self.samples))

    @property
    def per_second(self) -> float:
        """The successful requests per second."""
        return len(self.of(200)) / self.seconds

    def ms(self, share: float, *statuses: int) -> float:
        """Return the milliseconds within which this share of the requests with these statuses ended; default: 200."""
        return 1e3 * percentile(self.of(*(statuses or (200,))), share)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that is at least as large as this share of the values."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


Ask = Callable[[Body], Awaitable[Sample]]


class Client:
    """A client of one server. patience_s: how long to retry a request, with the same id, after 429 and 503."""

    def __init__(self, url: str, path: str, *, patience_s: float = 0.0, timeout_s: float = 120):
        limits = httpx.Limits(max_connections=2000, max_keepalive_connections=200)
        self._client = httpx.AsyncClient(base_url=url, timeout=timeout_s, limits=limits)
        self._path, self._patience_s = path, patience_s

    async def __call__(self, body: Body) -> Sample:
        headers = {"X-Request-Id": uuid.uuid4().hex}
        begun, retries = time.perf_counter(), 0
        while True:
            try:
                answer = await self._client.post(self._path, json=body, headers=headers)
                status, content = answer.status_code, answer.json() if answer.status_code == 200 else answer.text
            except (httpx.HTTPError, ValueError) as error:
                status, content = 0, repr(error)
            seconds = time.perf_counter() - begun
            if status not in RETRIED or seconds > self._patience_s:
                return Sample(status, seconds, retries, content)
            retries += 1
            await asyncio.sleep(random.uniform(0.1, 0.6))

    async def close(self) -> None:
        await self._client.aclose()


async def closed_loop(ask: Ask, bodies: Sequence[Body], *, in_flight: int, until: float | None = None) -> Load:
    """Keep `in_flight` requests running until all bodies are answered, or cycle through them until the monotonic time
    `until`."""
    load, begun = Load(), time.perf_counter()
    left = iter(range(10**9 if until else len(bodies)))

    async def worker() -> None:
        for i in left:
            if until and time.monotonic() > until:
                return
            load.samples.append(await ask(bodies[i % len(bodies)]))

    await asyncio.gather(*(worker() for _ in range(in_flight)))
    load.seconds = time.perf_counter() - begun
    return load


async def open_loop(ask: Ask, bodies: Sequence[Body], *, per_second: float, seconds: float) -> Load:
    """Send requests at a steady rate, whether or not earlier ones have been answered."""
    load, begun = Load(), time.perf_counter()

    async def one(body: Body) -> None:
        load.samples.append(await ask(body))

    tasks = []
    for i in range(int(per_second * seconds)):
        await asyncio.sleep(max(0.0, begun + i / per_second - time.perf_counter()))
        tasks.append(asyncio.create_task(one(bodies[i % len(bodies)])))
    sent = time.perf_counter() - begun
    await asyncio.gather(*tasks)
    load.seconds = sent
    return load


async def elsewhere(url: str, path: str, bodies: Sequence[Body], **how: float) -> Load:
    """Run a loop in its own process. how: in_flight for a closed loop, or per_second and seconds for an open one."""
    job = json.dumps({"url": url, "path": path, "bodies": list(bodies), "how": how})
    command = [sys.executable, "-m", "benchmarks.load"]
    done = await asyncio.to_thread(subprocess.run, command, input=job, stdout=subprocess.PIPE, text=True, check=True)
    result = json.loads(done.stdout)
    return Load([Sample(**sample) for sample in result["samples"]], result["seconds"])


async def _run(job: dict[str, Any]) -> Load:
    client = Client(job["url"], job["path"])
    loop = closed_loop if "in_flight" in job["how"] else open_loop
    load = await loop(client, job["bodies"], **job["how"])
    await client.close()
    return load


if __name__ == "__main__":
    json.dump(asdict(asyncio.run(_run(json.load(sys.stdin)))), sys.stdout)
