"""Pulls counted for Prometheus; needs `prefetch-kit[metrics]`."""

import time
from typing import Any, Final

from flask import Flask
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from prefetch_kit.endpoint.blueprint import pull_refused, pull_served

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_BYTES: Final = (256, 1024, 4096, 16_384, 65_536, 131_072, 240_000, 262_144)


def count_pulls(app: Flask, registry: CollectorRegistry = REGISTRY) -> None:
    """Count every pull of an app in a registry; call it once for each registry.

    Labels come from fixed sets: the kind, the page of the handler (empty for a handler without a
    page), `served` or the reason of the refusal, and the source of the body. Under
    several gunicorn workers set PROMETHEUS_MULTIPROC_DIR, as for all of prometheus_client.
    """
    _Counters(registry).connect(app)


class _Counters:
    def __init__(self, registry: CollectorRegistry) -> None:
        self._pulls = Counter(
            "prefetch_pulls", "Pulls", ["kind", "page", "outcome", "cache"], registry=registry
        )
        self._seconds = Histogram(
            "prefetch_seconds",
            "Time to answer a pull",
            ["kind", "page"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._bytes = Histogram(
            "prefetch_bytes",
            "Size of a served body",
            ["kind", "page"],
            buckets=_BYTES,
            registry=registry,
        )
        self._last = Gauge(
            "prefetch_last_pull_timestamp_seconds",
            "When the last pull came; silence means that something broke",
            ["kind"],
            multiprocess_mode="mostrecent",
            registry=registry,
        )

    def connect(self, app: Flask) -> None:
        # Strongly: the app does not hold us.
        pull_served.connect(self._served, app, weak=False)
        pull_refused.connect(self._refused, app, weak=False)

    def _served(self, _app: Flask, *, bytes: int, **facts: Any) -> None:  # noqa: A002 (the signal's name)
        self._bytes.labels(facts["kind"], facts["page"] or "").observe(bytes)
        self._count("served", facts)

    def _refused(self, _app: Flask, *, reason: str, **facts: Any) -> None:
        self._count(reason, facts)

    def _count(self, outcome: str, facts: dict[str, Any]) -> None:
        kind, page = facts["kind"], facts["page"] or ""
        self._pulls.labels(kind, page, outcome, facts["cache"] or "none").inc()
        self._seconds.labels(kind, page).observe(facts["seconds"])
        self._last.labels(kind).set(time.time())
