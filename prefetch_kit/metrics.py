"""Pulls counted for Prometheus; needs `prefetch-kit[metrics]`."""

import time
from typing import Any, Final

from flask import Flask
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from prefetch_kit.endpoint.blueprint import pull_refused, pull_served
from prefetch_kit.refusals import MAX_ANSWER_BYTES

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_BYTES: Final = (256, 1024, 4096, 16_384, 65_536, 131_072, 240_000, MAX_ANSWER_BYTES)


def count_pulls(app: Flask, registry: CollectorRegistry = REGISTRY) -> None:
    """Count every pull of an app in a registry; call it once for each registry.

    Labels come from fixed sets: the kind, the page of the handler (empty for a handler without a
    page), `served` or the reason of the refusal, and the source of the body. Under
    several gunicorn workers set PROMETHEUS_MULTIPROC_DIR, as for all of prometheus_client.
    """
    pulls = Counter(
        "prefetch_pulls", "Pulls", ["kind", "page", "outcome", "cache"], registry=registry
    )
    seconds = Histogram(
        "prefetch_seconds",
        "Time to answer a pull",
        ["kind", "page"],
        buckets=_SECONDS,
        registry=registry,
    )
    sizes = Histogram(
        "prefetch_bytes",
        "Size of a served body",
        ["kind", "page"],
        buckets=_BYTES,
        registry=registry,
    )
    last = Gauge(
        "prefetch_last_pull_timestamp_seconds",
        "When the last pull came; silence means that something broke",
        ["kind"],
        multiprocess_mode="mostrecent",
        registry=registry,
    )

    def count(outcome: str, facts: dict[str, Any]) -> None:
        kind, page = facts["kind"], facts["page"] or ""
        pulls.labels(kind, page, outcome, facts["cache"] or "none").inc()
        seconds.labels(kind, page).observe(facts["seconds"])
        last.labels(kind).set(time.time())

    def served(_app: Flask, *, bytes: int, **facts: Any) -> None:  # noqa: A002 (the signal's name)
        sizes.labels(facts["kind"], facts["page"] or "").observe(bytes)
        count("served", facts)

    def refused(_app: Flask, *, reason: str, **facts: Any) -> None:
        count(reason, facts)

    # Strongly: the app does not hold them.
    pull_served.connect(served, app, weak=False)
    pull_refused.connect(refused, app, weak=False)
