"""What a server counts, for Prometheus, and its access log: who asked what, and how it ended, without any text."""

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
        self.requests = Counter("pft_requests", "Requests", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "pft_request_seconds", "Seconds to the end of the answer", ["route"], buckets=LATENCY_S,
            registry=self.registry,
        )  # fmt: skip
        self.in_flight = Gauge("pft_requests_in_flight", "Requests being answered", registry=self.registry)
        self.rejected = Counter(
            "pft_rejected",
            "Requests sent away: pace, in flight, overload, stopping",
            ["reason"],
            registry=self.registry,
        )
        self.tokens = Counter("pft_tokens", "Tokens by kind: prompt, cached or completion", ["kind"],
                              registry=self.registry)  # fmt: skip
        self.retries = Counter("pft_engine_retries", "Requests asked again as a replica was lost",
                               registry=self.registry)  # fmt: skip


# --- the access log


@dataclass
class AccessRecord:
    """A request as it is logged. key: the name of its owner; policy: the id of what was asked, once it is found."""

    route: str
    status: int = 500
    key: str | None = None
    policy: str | None = None
    ms: float = 0.0


_CURRENT: ContextVar[AccessRecord | None] = ContextVar("access", default=None)


@contextmanager
def noting(access: AccessRecord) -> Iterator[None]:
    """Let what answers a request note on it."""
    token = _CURRENT.set(access)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def note(*, key: str | None = None, policy: str | None = None) -> None:
    """Note whose request this is, or which policy it asks; outside a request, nothing."""
    if (access := _CURRENT.get()) is not None:
        access.key = key or access.key
        access.policy = policy or access.policy


class AccessLog:
    """Writes lines in a thread of its own: a disk or a pipe that is slow holds up no request."""

    def __init__(self, file: Path | None = None):
        """file: opened anew where it was moved away; None: stderr. Raises UserError where it cannot be written."""
        lines: SimpleQueue[logging.LogRecord] = SimpleQueue()
        self._queue = QueueHandler(lines)
        QueueListener(lines, _handler(file)).start()

    def write(self, access: AccessRecord) -> None:
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **asdict(access)}
        record = logging.LogRecord("access", logging.INFO, "", 0, json.dumps(line), None, None)
        self._queue.handle(record)


def refuse_unwritable(file: Path) -> None:
    """Raise UserError where no line could be added to this file."""
    _handler(file).close()


def _handler(file: Path | None) -> logging.Handler:
    if file is None:
        return logging.StreamHandler(sys.stderr)
    try:
        return WatchedFileHandler(file, encoding="utf-8")
    except OSError as error:
        raise UserError(f"access_log={file}: cannot be written ({error.strerror}): give another place") from None
