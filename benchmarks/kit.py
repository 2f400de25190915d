"""The kit as an app developer would embed it, in each variant."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from flask import Flask

from benchmarks.entrants import APPID, PAGE, SECRET_KEY, USER, Entrant, data
from prefetch_kit import Prefetch, Pull, fast_path

UNCACHED: Final = "kit uncached"
NO_DEADLINE: Final = "kit uncached, no deadline"
UNCACHED_FAST: Final = "kit uncached, fast path"
NO_DEADLINE_FAST: Final = "kit uncached, no deadline, fast path"
CACHED: Final = "kit cached, no fast path"
FAST: Final = "kit cached, fast path"

_DAY_S = 24 * 3600


def blueprint() -> Prefetch:
    return Prefetch("prefetch", "benchmarks", url_prefix="/prefetch")


def app_with(prefetch: Prefetch, **settings: object) -> Flask:
    app = Flask("benchmarks")
    app.config.update(SECRET_KEY=SECRET_KEY, PREFETCH_APPIDS=[APPID], **settings)
    app.register_blueprint(prefetch)
    return app


def shop(size_bytes: int, *, is_fast: bool = False, **how: Any) -> Entrant:
    """A page whose handler reads the user and its query; `how` has the options of the handler."""
    prefetch, answer = blueprint(), data(size_bytes)

    @prefetch.pre_fetch(PAGE, **how)
    def products(pull: Pull) -> object:
        return answer | {"user": pull.user_id if pull.query["id"] else None}

    app = app_with(prefetch)
    if is_fast:
        app.wsgi_app = fast_path(app)  # type: ignore[method-assign]
    with app.app_context():
        return Entrant(app, size_bytes, prefetch.issue_token(USER, appid=APPID))


KIT: Final[dict[str, Callable[[int], Entrant]]] = {
    UNCACHED: shop,
    NO_DEADLINE: partial(shop, deadline=math.inf),
    UNCACHED_FAST: partial(shop, is_fast=True),
    NO_DEADLINE_FAST: partial(shop, is_fast=True, deadline=math.inf),
    CACHED: partial(shop, cache=_DAY_S),
    FAST: partial(shop, cache=_DAY_S, is_fast=True),
}
