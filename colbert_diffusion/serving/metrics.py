"""What is counted, for Prometheus. Knows nothing about indexes."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Counters of one server; a `service.Observer`."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        prefix = "colbert_diffusion"
        self._requests = Counter(
            f"{prefix}_requests", "Requests answered.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            f"{prefix}_request_seconds", "Seconds from request to answer.", ["route"], buckets=SECONDS, registry=self._registry
        )
        self._stages = Histogram(
            f"{prefix}_stage_seconds",
            "Seconds of a stage: encode (a batch of queries), lexical, candidates and score (a query).",
            ["stage"],
            buckets=SECONDS,
            registry=self._registry,
        )
        self._cached = Counter(
            f"{prefix}_cache", "Queries by whether the cache held them.", ["result"], registry=self._registry
        )
        self.pending = Gauge(f"{prefix}_pending", "Texts accepted and not answered.", registry=self._registry)

    def stage(self, name: str, seconds: float) -> None:
        self._stages.labels(name).observe(seconds)

    def cached(self, hit: bool) -> None:
        self._cached.labels("hit" if hit else "miss").inc()

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Prometheus' text format."""
        return generate_latest(self._registry)
