"""What a server counts, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

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
