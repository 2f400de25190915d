"""Which functions of an app run around the view of a pull, and so must not be left out."""

from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Final

import flask
from flask import (
    Flask,
    Request,
    Response,
    got_request_exception,
    request_finished,
    request_started,
    request_tearing_down,
)
from flask.sessions import SecureCookieSessionInterface
from werkzeug.exceptions import HTTPException
from werkzeug.routing import RequestRedirect

from prefetch_kit.endpoint.app_state import hide_from_app

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_FLASK: Final = str(Path(flask.__file__).parent)
# The steps of Flask's way of a request that a subclass, or a tracer, may have replaced.
_STEPS: Final = (
    *("request_context", "create_url_adapter", "full_dispatch_request", "preprocess_request"),
    *("dispatch_request", "make_response", "finalize_request", "process_response"),
    *("handle_user_exception", "handle_exception", "do_teardown_request"),
)
# Those that the kit itself adds look at what the app's own did.
_KIT: Final = f"{__package__}."
_SIGNALS: Final = (
    *(request_started, request_finished, request_tearing_down),
    got_request_exception,  # its receivers look at the request
)


def is_plain(app: Flask, inside: "WSGIApplication") -> bool:
    """Whether an unchanged Flask takes the requests that come to `inside`."""
    return (
        all(map(_is_flasks_own, (inside, *(getattr(app, step) for step in _STEPS))))
        and type(app.session_interface) is SecureCookieSessionInterface
        and app.request_class is Request
        and app.response_class is Response
    )


def _is_flasks_own(step: object) -> bool:
    # By the file of its code: a wrapper has the name and the module of what it wraps, and some
    # pass for a method whose function is what they wrap.
    if type(step) is not MethodType or type(step.__func__) is not FunctionType:
        return False
    return step.__func__.__code__.co_filename.startswith(_FLASK)


def is_left_alone(app: Flask, endpoint: str) -> bool:
    """Whether no function of the app's runs around a view, and no receiver hears of its request."""
    for signal in _SIGNALS:
        # First whether there is any at all: all this is asked for each pull.
        if signal.receivers and any(r is not hide_from_app for r in signal.receivers_for(app)):
            return False
    return all(
        str(getattr(function, "__module__", "")).startswith(_KIT)
        for scope in _scopes(endpoint)
        for functions in (
            app.before_request_funcs,
            app.after_request_funcs,
            app.teardown_request_funcs,
            app.url_value_preprocessors,
        )
        for function in functions.get(scope, ())
    )


def _scopes(endpoint: str) -> Iterator[str | None]:
    """The app, and the blueprint of a view with those around it."""
    yield None
    while "." in endpoint:
        endpoint = endpoint.rpartition(".")[0]
        yield endpoint


def leads_to(app: Flask, path: str, endpoint: str) -> bool:
    """Whether a GET of this very path comes to a view, whatever the host."""
    if not path.isascii() or app.url_map.host_matching or app.subdomain_matching:
        return False
    try:
        return app.url_map.bind("").match(path, method="GET") == (endpoint, {})
    except (HTTPException, RequestRedirect):
        return False
