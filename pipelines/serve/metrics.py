"""A server's Prometheus metrics, and its access log: each request's key, policy and outcome, without any text."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener, WatchedFileHandler
from pathlib import Path
from queue import SimpleQueue

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pft_core.errors import UserError

LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Prometheus metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "pft_requests", "Requests by route and status", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "pft_request_seconds", "Seconds from a request to the end of its response", ["route"], buckets=LATENCY_S,
            registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge("pft_requests_in_flight", "Requests being answered", registry=self.registry)
        self.rejected = Counter(
            "pft_rejected",
            "Rejected requests by reason: pace, in_flight, bodies, overload or stopping",
            ["reason"],
            registry=self.registry,
        )
        self.tokens = Counter("pft_tokens", "Tokens by kind: prompt, cached or completion", ["kind"],
                              registry=self.registry)  # fmt: skip
        self.retries = Counter("pft_engine_retries", "Retries after a replica was lost",
                               registry=self.registry)  # fmt: skip


# --- the access log


@dataclass
class AccessRecord:
    """A request's line in the access log. key: the name of its API key; policy: the policy's id, once it is known."""

    route: str
    status: int = 500
    key: str | None = None
    policy: str | None = None
    ms: float = 0.0


_CURRENT: ContextVar[AccessRecord | None] = ContextVar("access", default=None)


@contextmanager
def noting(access: AccessRecord) -> Iterator[None]:
    """Make this the record that `note` writes to, for the code that answers the request."""
    token = _CURRENT.set(access)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def note(*, key: str | None = None, policy: str | None = None) -> None:
    """Record the request's key or policy in its log line; does nothing outside a request."""
    if (access := _CURRENT.get()) is not None:
        access.key = key or access.key
        access.policy = policy or access.policy


class AccessLog:
    """Writes log lines in a thread of its own, so that a slow disk or pipe delays no request."""

    def __init__(self, file: Path | None = None):
        """file: reopened if it is moved away; None: stderr. Raises UserError if it cannot be written."""
        lines: SimpleQueue[logging.LogRecord] = SimpleQueue()
        self._queue = QueueHandler(lines)
        QueueListener(lines, _handler(file)).start()

    def write(self, access: AccessRecord) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **asdict(access)}
        record = logging.LogRecord("access", logging.INFO, "", 0, json.dumps(line), None, None)
        self._queue.handle(record)


def refuse_unwritable(file: Path) -> None:
    """Raise UserError if the file cannot be appended to."""
    _handler(file).close()


def _handler(file: Path | None) -> logging.Handler:
    if file is None:
        return logging.StreamHandler(sys.stderr)
    try:
        return WatchedFileHandler(file, encoding="utf-8")
    except OSError as error:
        raise UserError(f"access_log={file}: cannot be written ({error.strerror}): choose another path") from None
