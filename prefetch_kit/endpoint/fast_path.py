"""WSGI middleware that answers pulls before Flask runs."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flask import Flask, Response

from prefetch_kit.cache.scope import Scope
from prefetch_kit.endpoint.app_hooks import is_left_alone, is_plain, leads_to
from prefetch_kit.endpoint.app_state import EXTENSION, process_of, state_of
from prefetch_kit.endpoint.blueprint import (
    propagates,
    pull_refused,
    pull_served,
    respond,
    send_signals,
)
from prefetch_kit.endpoint.dispatch import Answer, Dispatcher
from prefetch_kit.endpoint.handlers import Route
from prefetch_kit.endpoint.hidden_query import hide_from_sentry
from prefetch_kit.endpoint.users import Request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


@dataclass(frozen=True, slots=True)
class _Url:
    """One URL of the app: what answers its pulls, and the headers of an answer.

    `is_plain` says that Flask alone is inside.
    """

    dispatcher: Dispatcher
    headers: list[tuple[str, str]]
    is_plain: bool

    def find_scope(self, query_string: str) -> tuple[Scope, Request] | None:
        """The scope of a cached handler and its request, if it may be answered without the app.

        Raises `PullRefused` as the dispatcher does.
        """
        dispatcher = self.dispatcher
        users = dispatcher.users
        inputs = dispatcher.route.parser.parse_usual(query_string)
        if inputs is None or not dispatcher.admission.known(inputs.asked.appid):
            return None
        if users.ask_the_app and users.have_to_ask(inputs):
            return None
        registration = dispatcher.route.find(inputs.asked.path)
        if registration is None or registration.scope is None:
            return None
        request = Request(inputs, users.verify)
        dispatcher.check_login(registration, request)
        return registration.scope, request


class FastPath:
    """What `fast_path` returns."""

    def __init__(self, app: Flask) -> None:
        self._app = app
        self._inside: WSGIApplication = app.wsgi_app
        self._urls: dict[str, _Url] = {}
        self._pid: int | None = None

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if self._pid != os.getpid():  # by now every blueprint is registered
            self._urls, self._pid = _urls(self._app, self._inside), os.getpid()
        url = self._urls.get(environ.get("PATH_INFO", ""))
        if (
            url is None
            or environ["REQUEST_METHOD"] != "GET"
            or "HTTP_COOKIE" in environ
            or "HTTP_UPGRADE" in environ
            or self._app.config["DEBUG"]
        ):
            return self._inside(environ, start_response)
        hide_from_sentry()
        query_string = environ.get("QUERY_STRING", "")
        body = self._cached_body(url, query_string)
        if body is None:
            if not self._may_answer(url):
                return self._inside(environ, start_response)
            done = self._dispatched(url, query_string)
            if done.refused is not None:
                return respond(self._app, done)(environ, start_response)
            body = done.body
        start_response("200 OK", [*url.headers, ("Content-Length", str(len(body)))])
        return [body]

    def _cached_body(self, url: _Url, query_string: str) -> bytes | None:
        """The body of a kept and fresh answer; None for every other pull, good or bad."""
        started = time.perf_counter() if pull_served.receivers else 0.0
        try:
            if (found := url.find_scope(query_string)) is None:
                return None
            scope, request = found
            kept = url.dispatcher.cache.find(scope, request)
        except Exception:  # noqa: BLE001 (a malformed query, an unusable key: the view will tell)
            return None
        if kept is None or not kept.is_fresh:
            return None
        if started:
            done = Answer(
                status=200,
                body=kept.entry.body,
                kind=url.dispatcher.route.kind,
                seconds=time.perf_counter() - started,
                appid=request.asked.appid,
                page=scope.page,
                cache="hit",
            )
            with self._app.app_context():
                send_signals(self._app, done)
        return kept.entry.body

    def _may_answer(self, url: _Url) -> bool:
        """Whether nothing of the app's own has to see a pull that is no hit, nor its failure."""
        app, endpoint = self._app, url.dispatcher.route.endpoint
        return url.is_plain and not propagates(app) and is_left_alone(app, endpoint)

    def _dispatched(self, url: _Url, query_string: str) -> Answer:
        """What the view would answer."""
        needs_app = pull_served.receivers or pull_refused.receivers  # they may ask for the app
        with self._app.app_context() if needs_app else nullcontext():
            done = url.dispatcher.answer(query_string.encode("latin-1"), route_values={})
            send_signals(self._app, done)
            if done.error is not None:
                url.dispatcher.log_failure(done)
        return done


def fast_path(app: Flask) -> FastPath:
    """Answer pulls whose answer is kept and fresh before anything else of the app runs.

    Use it as `app.wsgi_app = fast_path(app)`. On such a hit neither Flask nor the middleware
    inside it runs, no `before_request` and no `after_request`; the answer is the same, byte for
    byte. All other pulls are answered before Flask too where the app has nothing that would run:
    no such function, no middleware inside, no receiver of a request's signals, no part of Flask
    replaced. Receivers of the kit's own signals find the app's context, but no request.

    Every other request goes on as before: other URLs and methods, pulls with a cookie, all pulls
    in debug, where the app matches hosts, where it replaces the response class or our view;
    failures under TESTING or PROPAGATE_EXCEPTIONS.
    """
    return FastPath(app)


def _urls(app: Flask, inside: WSGIApplication) -> dict[str, _Url]:
    """The URLs by path; none where hits, too, must be seen by the app."""
    if EXTENSION not in app.extensions or app.config.get("TRUSTED_HOSTS"):
        return {}
    if app.response_class is not Response:
        return {}
    state, process = state_of(app), process_of(app)
    return {
        rule.rule: _Url(
            dispatcher=process.dispatcher(name),
            headers=_headers(app, endpoint.route),
            is_plain=is_plain(app, inside),
        )
        for name, endpoint in state.endpoints.items()
        if app.view_functions[name] is endpoint.view
        for rule in app.url_map.iter_rules(name)
        if leads_to(app, rule.rule, name)
    }


def _headers(app: Flask, route: Route) -> list[tuple[str, str]]:
    """The headers of the slow way, without the length, which comes last there."""
    done = Answer(status=200, body=b"", kind=route.kind, seconds=0.0)
    headers = respond(app, done).headers.to_wsgi_list()
    return [(name, value) for name, value in headers if name != "Content-Length"]
