"""The way of a pull: parse, admit, find the page, prove the user, run the handler, encode."""

import contextvars
import math
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import NamedTuple, Protocol

from prefetch_kit.endpoint.cache import AnswerCache, Freshness, Served, Work
from prefetch_kit.endpoint.logs import SteadyLogger
from prefetch_kit.endpoint.pages import Handler, Registered, Route
from prefetch_kit.endpoint.parse import Inputs
from prefetch_kit.endpoint.payload import TooLarge, encode
from prefetch_kit.endpoint.pull import Pull, demand_user
from prefetch_kit.endpoint.runs import Pool, due
from prefetch_kit.errors import PullRefused
from prefetch_kit.fetch_setting import Kind


class Answer(NamedTuple):
    """What goes out, and the facts a signal receiver may count.

    None of them is a secret, and `appid` and `page` are only ever ones the app knows.
    """

    status: int
    body: bytes
    kind: Kind
    seconds: float
    appid: str | None = None
    page: str | None = None
    refused: str | None = None
    incident: str | None = None
    cache: Freshness | None = None
    unknown_parameters: int = 0
    error: BaseException | None = None


class Desk(Protocol):
    """What the way of a pull needs from the app it runs in."""

    @property
    def max_bytes(self) -> int: ...
    @property
    def warn_bytes(self) -> int: ...
    @property
    def debug(self) -> bool: ...
    @property
    def logger(self) -> SteadyLogger: ...

    def admits(self, appid: str) -> bool: ...

    def has_to_ask(self, inputs: Inputs) -> bool:
        """Whether only the app, or WeChat, can say who such a pull is for."""

    def prove_user(self, inputs: Inputs) -> str | None:
        """The proved user id; raises `PullRefused` (503) where WeChat cannot be asked."""

    @property
    def deadline_s(self) -> float: ...
    @property
    def pool(self) -> Pool: ...
    @property
    def askers(self) -> Pool: ...
    @property
    def cache(self) -> AnswerCache: ...

    def runner(self, *, is_cached: bool) -> Callable[[Callable[[], bytes]], bytes]:
        """What runs work once, inside the app and away from the request that is here now."""


def answer(
    query_string: bytes,
    *,
    route: Route,
    desk: Desk,
    route_values: Mapping[str, object],
) -> Answer:
    """Answer one pull. Never raises for what came in; an app's own failure is in `error`."""
    started = time.perf_counter()
    inputs: Inputs | None = None
    appid: str | None = None
    handler: Handler | None = None
    kind = route.kind
    status, served, refused = 200, Served(b""), None
    incident = failure = None
    try:
        inputs = route.parser.parse(query_string)
        del query_string  # a traceback that goes through here shows no token and no code
        user = _User(inputs, desk) if desk.has_to_ask(inputs) else None
        pull = Pull(inputs, kind=kind, prove=user or desk.prove_user)
        appid = _admit(inputs, desk, route_values)
        place = _find(route, inputs, desk)
        handler = place.handler
        served = _serve(place, pull, user, desk)
    except PullRefused as refusal:
        status, refused = refusal.status, refusal.reason
        incident = _note_refusal(refusal, kind, desk.logger)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (a handler may raise anything, SystemExit too)
        status, refused = 500, "too-large" if isinstance(error, TooLarge) else "failed"
        incident, failure = _note_failure(error, kind, handler, desk.logger), error
    return Answer(
        status=status,
        body=served.body,
        kind=kind,
        seconds=time.perf_counter() - started,
        appid=appid,
        page=handler.page if handler else None,
        refused=refused,
        incident=incident,
        cache=served.freshness,
        unknown_parameters=inputs.asked.unknown_parameters if inputs else 0,
        error=failure,
    )


def _admit(inputs: Inputs, desk: Desk, route_values: Mapping[str, object]) -> str:
    appid = inputs.asked.appid
    if route_values.get("appid", appid) != appid:
        raise PullRefused(403, "foreign-appid", "the appid is not the one in the URL's path")
    if not desk.admits(appid):
        raise PullRefused(403, "foreign-appid", "the appid is not in PREFETCH_APPIDS")
    return appid


def _find(route: Route, inputs: Inputs, desk: Desk) -> Registered:
    path = inputs.asked.path if route.kind == "pre_fetch" else None
    place = route.find(path)
    if place is None:
        hint = _ready_to_paste(route.kind, path) if desk.debug else ""
        raise PullRefused(404, "page", f"no handler for page {path!r}{hint}")
    return place


def _ready_to_paste(kind: Kind, path: str | None) -> str:
    name = re.sub(r"\W+", "_", f"{kind}_{path or ''}", flags=re.ASCII).strip("_")
    return (
        f"; to add one:\n\n@prefetch.{kind}({'' if path is None else repr(path)})\n"
        f"def {name}(pull: Pull):\n    return NO_DATA\n"
    )


def _serve(place: Registered, pull: Pull, user: "_User | None", desk: Desk) -> Served:
    handler = place.handler
    ends_at = due(desk.deadline_s if handler.deadline_s is None else handler.deadline_s)
    with user.asked_until(ends_at) if user else nullcontext():
        if handler.login_required:
            demand_user(pull)
        return _served(place, pull, desk, ends_at)


def _served(place: Registered, pull: Pull, desk: Desk, ends_at: float) -> Served:
    handler = place.handler

    def handle(pull: Pull) -> bytes:
        answer = handler.function(pull)
        body = encode(answer, schema=handler.schema, max_bytes=desk.max_bytes)
        _warn_of_size(body, handler, pull.kind, desk)
        return body

    if handler.cache is None:
        run = desk.runner(is_cached=False)
        body = desk.pool.call(lambda: run(lambda: handle(pull)), ends_at=ends_at)
        return Served(body)

    def work() -> Work:
        run = desk.runner(is_cached=True)
        return lambda noted: run(lambda: handle(noted))

    return desk.cache.fetch(place, pull, work, ends_at=ends_at)


class _User:
    """Asks the app, or WeChat, who the user is: once a pull, however often a handler reads it.

    Whatever the app does to find out, it holds the thread of the request no longer than the page
    may take: that one leaves it to the `askers`. A handler asks for itself, and is left behind as
    a whole.
    """

    __slots__ = ("_ask", "_askers", "_ends_at", "_error", "_lock", "_outcome", "_thread")

    def __init__(self, inputs: Inputs, desk: Desk) -> None:
        self._lock = threading.Lock()  # a handler may read its pull in threads of its own
        # A verifier of the app's must not find other surroundings in a cached run than outside.
        here = contextvars.copy_context()
        self._ask: Callable[[], str | None] | None = partial(here.run, desk.prove_user, inputs)
        self._askers = desk.askers
        self._thread: int | None = None
        self._ends_at = math.inf
        self._outcome: str | None = None
        self._error: BaseException | None = None

    @contextmanager
    def asked_until(self, ends_at: float) -> Iterator[None]:
        """While this lasts, the thread it is in waits no longer for the user."""
        self._thread, self._ends_at = threading.get_ident(), ends_at
        try:
            yield
        finally:
            self._thread = None

    def __call__(self, _: Inputs) -> str | None:
        if self._ask and self._thread == threading.get_ident():
            try:
                self._askers.call(self._find_out, ends_at=self._ends_at)
            except PullRefused as refusal:
                if self._ask is None:
                    raise
                cause = "the app did not say in time who the user is"
                raise PullRefused(refusal.status, refusal.reason, cause) from None
        self._find_out()
        return self._outcome

    def _find_out(self) -> bytes:
        with self._lock:
            if self._ask is not None:
                try:
                    self._outcome = self._ask()
                except BaseException as error:  # noqa: BLE001 (a verifier may raise anything)
                    self._error = error
                self._ask = None
        if self._error is not None:
            raise self._error
        return b""


def _warn_of_size(body: bytes, handler: Handler, kind: Kind, desk: Desk) -> None:
    if len(body) > desk.warn_bytes:
        desk.logger.warning(
            "%s of page %r answered %d bytes, over PREFETCH_WARN_BYTES (%d)",
            kind,
            handler.page,
            len(body),
            desk.warn_bytes,
        )


def _note_refusal(refusal: PullRefused, kind: Kind, logger: SteadyLogger) -> str | None:
    if refusal.status < 500:
        logger.info("%s refused (%d %s): %s", kind, refusal.status, refusal.reason, refusal.detail)
        return None
    incident = secrets.token_hex(6)
    logger.warning(
        "%s refused (%d %s, incident %s): %s",
        kind,
        refusal.status,
        refusal.reason,
        incident,
        refusal.detail,
    )
    return incident


def _note_failure(
    error: BaseException, kind: Kind, handler: Handler | None, logger: SteadyLogger
) -> str:
    incident = secrets.token_hex(6)
    logger.error(
        "%s of page %r failed (incident %s)",
        kind,
        handler.page if handler else None,
        incident,
        exc_info=error,
    )
    return incident
