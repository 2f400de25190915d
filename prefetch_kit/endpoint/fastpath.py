"""A WSGI door that answers pulls before Flask wakes up."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flask import Flask, Response

from prefetch_kit.endpoint.answer import Answer, answer
from prefetch_kit.endpoint.around import is_left_alone, is_plain, leads_to
from prefetch_kit.endpoint.blueprint import (
    announce,
    propagates,
    pull_refused,
    pull_served,
    respond,
)
from prefetch_kit.endpoint.cache import AnswerCache
from prefetch_kit.endpoint.desk import EXTENSION, FlaskDesk, kitchen_of, state_of
from prefetch_kit.endpoint.pages import Registered, Route
from prefetch_kit.endpoint.pull import Pull

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


@dataclass(frozen=True, slots=True)
class _Door:
    """One URL of the app: what stands behind it, and the headers of its answers."""

    route: Route
    desk: FlaskDesk
    cache: AnswerCache
    appids: frozenset[str]
    headers: list[tuple[str, str]]
    is_plain: bool
    asks_the_app: bool

    def asked_for(self, query_string: str) -> tuple[Registered, Pull] | None:
        """The cached handler and its pull, where it may be answered without the app."""
        route = self.route
        inputs = route.parser.parse_usual(query_string)
        if inputs is None or inputs.asked.appid not in self.appids:
            return None
        if self.asks_the_app and self.desk.has_to_ask(inputs):
            return None
        place = route.find(inputs.asked.path if route.kind == "pre_fetch" else None)
        if place is None or place.handler.cache is None:
            return None
        pull = Pull(inputs, kind=route.kind, prove=self.desk.prove_user)
        return None if place.handler.login_required and pull.user_id is None else (place, pull)


class FastPath:
    """What `fast_path` returns."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._inside: WSGIApplication = app.wsgi_app
        self._doors: dict[str, _Door] = {}
        self._pid: int | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._pid != os.getpid():  # by now every blueprint is registered
            self._doors, self._pid = _doors(self._app, self._inside), os.getpid()
        door = self._doors.get(environ.get("PATH_INFO", ""))
        if (
            door is None
            or environ["REQUEST_METHOD"] != "GET"
            or "HTTP_COOKIE" in environ
            or "HTTP_UPGRADE" in environ
            or self._app.config["DEBUG"]
        ):
            return self._inside(environ, start_response)
        query_string = environ.get("QUERY_STRING", "")
        body = self._kept(door, query_string)
        if body is None:
            if not door.is_plain or not is_left_alone(self._app, door.route.endpoint):
                return self._inside(environ, start_response)
            done = self._made(door, query_string)
            if done.refused is not None:
                return respond(self._app, done)(environ, start_response)
            body = done.body
        start_response("200 OK", [*door.headers, ("Content-Length", str(len(body)))])
        return [body]

    def _kept(self, door: _Door, query_string: str) -> bytes | None:
        """The body of a kept and fresh answer; None for everything else, good or bad."""
        started = time.perf_counter() if pull_served.receivers else 0.0
        try:
            if (asked := door.asked_for(query_string)) is None:
                return None
            place, pull = asked
            found = door.cache.look(place, pull)
        except Exception:  # noqa: BLE001 (a malformed query, a useless key: the view will tell)
            return None
        if found is None or not found.is_fresh:
            return None
        if started:
            done = Answer(
                status=200,
                body=found.entry.body,
                kind=pull.kind,
                seconds=time.perf_counter() - started,
                appid=pull.appid,
                page=place.handler.page,
                cache="hit",
            )
            with self._app.app_context():
                announce(self._app, done)
        return found.entry.body

    def _made(self, door: _Door, query_string: str) -> Answer:
        """What the view would answer."""
        # A callable PREFETCH_APPIDS and receivers may ask for the app; most apps have neither.
        needs_app = not door.appids or pull_served.receivers or pull_refused.receivers
        with self._app.app_context() if needs_app else nullcontext():
            done = answer(
                query_string.encode("latin-1"), route=door.route, desk=door.desk, route_values={}
            )
            announce(self._app, done)
        return done


def fast_path(app: Flask) -> FastPath:
    """Answer pulls whose answer is kept and fresh before anything else of the app runs.

    Use it as `app.wsgi_app = fast_path(app)`. On such a hit neither Flask nor the middleware
    inside it runs, no `before_request` and no `after_request`; the answer is the same, byte for
    byte. All other pulls are answered before Flask too where that leaves nothing of the app's
    out: no such function, no middleware inside, no receiver of a request's signals, no part of
    Flask replaced. Receivers of the kit's own signals find the app's context, but no request.

    Every other request goes on as before: other URLs and methods, pulls with a cookie, all pulls
    in debug, where the app matches hosts, where it has a response class or a view of its own in
    place of ours; failures under TESTING or PROPAGATE_EXCEPTIONS.
    """
    return FastPath(app)


def _doors(app: Flask, inside: WSGIApplication) -> dict[str, _Door]:
    """By path; none where hits, too, must be seen by the app."""
    if EXTENSION not in app.extensions or app.config["TRUSTED_HOSTS"]:
        return {}
    if app.response_class is not Response:
        return {}
    state = state_of(app)
    return {
        rule.rule: _Door(
            route=route,
            desk=state.desks[route.endpoint],
            cache=kitchen_of(app).cache,
            appids=frozenset(state.config.appids),
            headers=_headers(app, route),
            is_plain=is_plain(app, inside) and not propagates(app),
            asks_the_app=state.desks[route.endpoint].asks_the_app,
        )
        for route in state.routes
        if app.view_functions[route.endpoint] is state.views[route.endpoint]
        for rule in app.url_map.iter_rules(route.endpoint)
        if leads_to(app, rule.rule, route.endpoint)
    }


def _headers(app: Flask, route: Route) -> list[tuple[str, str]]:
    """What the slow way sends along, but for the length, which comes last there."""
    done = Answer(status=200, body=b"", kind=route.kind, seconds=0.0)
    headers = respond(app, done).headers.to_wsgi_list()
    return [(name, value) for name, value in headers if name != "Content-Length"]
