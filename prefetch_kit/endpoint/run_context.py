"""Where functions of the app run for a pull: in the app's context, away from the request."""

import contextvars
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import CodeType
from typing import Any, Final
from urllib.parse import urlsplit

import flask
import werkzeug.local
from flask import Flask
from werkzeug.routing import Map, MapAdapter

from prefetch_kit.endpoint.app_errors import chain_of
from prefetch_kit.endpoint.trace_context import trace_keepers
from prefetch_kit.errors import ConfigError

# By name: an app may use its own subclass of RequestContext.
_FLASK_CONTEXTS: Final = frozenset({"flask.app_ctx", "flask.request_ctx"})
_FLASK: Final = str(Path(flask.__file__).parent)
_NO_REQUEST: Final = (
    "prefetch_kit: a handler runs outside of the request, since its answer may be served to other "
    "pulls too. So request, session, g.user and current_user are not there. Use pull.query, "
    "pull.path and pull.scene for what was asked, and pull.user_id for the user, such as "
    "db.session.get(User, pull.user_id). For Flask-Babel's locale: "
    "with force_locale(pull.query.get('lang', 'zh')): …"
)
_NO_BASE_URL: Final = (
    "prefetch_kit: a handler runs outside of the request, so url_for needs to know the app's "
    "address. Set PREFETCH_BASE_URL"
)


class RunContext:
    """Calls functions in the context of one app. `url_for` builds URLs on `base_url`."""

    def __init__(self, app: Flask, *, base_url: str | None) -> None:
        self._app = app
        self._base_url = base_url

    def call(self, function: Callable[[], object]) -> object:
        """Call a function now, with the context variables of the caller, but for Flask's."""
        return self.capture()(function)

    def capture(self, names: frozenset[str] | None = None) -> Callable[[Callable[[], Any]], Any]:
        """What calls one function later, in any thread, with the present context variables.

        `names` are the variables to keep, besides the trace; None keeps all but Flask's.
        """
        captured = contextvars.Context()
        for variable, value in contextvars.copy_context().items():
            if variable.name not in _FLASK_CONTEXTS and (names is None or variable.name in names):
                captured.run(variable.set, value)
        if names is not None:
            # Whatever a tracker does: without its trace the pull is answered all the same.
            with suppress(Exception):
                for keep_trace in trace_keepers():
                    captured.run(keep_trace)
        return lambda function: captured.run(self._in_app, function)

    def _in_app(self, function: Callable[[], Any]) -> Any:
        context = self._app.app_context()
        if self._base_url is not None:
            context.url_adapter = bind_urls(self._app.url_map, self._base_url)
        with context:
            return function()


def bind_urls(url_map: Map, base_url: str) -> MapAdapter:
    """An adapter that builds an app's URLs as they are on the public `base_url`."""
    parts = urlsplit(base_url)
    return url_map.bind(parts.netloc, script_name=parts.path or "/", url_scheme=parts.scheme)


def rule_host(app: Flask, base_url: str | None) -> str | None:
    """The host to name in a URL rule; None where the app does not match hosts.

    Raises `ConfigError`: without a host, such an app would find the rule at none.
    """
    if not app.url_map.host_matching:
        return None
    if base_url is None:
        raise ConfigError(
            "PREFETCH_BASE_URL",
            "is missing, and this app finds its URLs by their host (host_matching)",
            remedy="Set it to the public https origin, such as https://shop.example",
        )
    return urlsplit(base_url).hostname


def add_hint(error: BaseException) -> None:
    """Add a note to an error that comes from looking for a request where there is none.

    To each of those that led to it, since apps catch such errors and raise their own.
    """
    for each in chain_of(error):
        note = _note(each)
        if note is not None and note not in getattr(each, "__notes__", ()):
            with suppress(Exception):  # an app's own class may take none
                each.add_note(note)


def _note(error: BaseException) -> str | None:
    code = _raised_in(error)
    if code is None:
        return None
    in_flask = code.co_filename.startswith(_FLASK)
    match error:
        case RuntimeError() if in_flask and code.co_name == "url_for":
            return _NO_BASE_URL
        case RuntimeError() if in_flask or code.co_filename == werkzeug.local.__file__:
            return _NO_REQUEST
        case KeyError() if in_flask:  # g.pop
            return _NO_REQUEST
        case AttributeError(obj=None) if "current_user" in _names(code):  # which stands for None
            return _NO_REQUEST
        case AttributeError() if isinstance(error.obj, Flask.app_ctx_globals_class):
            return _NO_REQUEST
    return None


def _raised_in(error: BaseException) -> CodeType | None:
    """The code of the innermost frame that an error went through."""
    entry, code = error.__traceback__, None
    while entry is not None:
        code = entry.tb_frame.f_code
        entry = entry.tb_next
    return code


def _names(code: CodeType) -> tuple[str, ...]:
    return code.co_names + code.co_varnames + code.co_freevars
