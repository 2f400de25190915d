"""Where functions of the app run for a pull: in the app's context, away from the request."""

import contextvars
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from flask import Flask
from werkzeug.routing import Map, MapAdapter

# By name: an app may use its own subclass of RequestContext.
_FLASK_CONTEXTS: Final = frozenset({"flask.app_ctx", "flask.request_ctx"})


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

        `names` are the variables to keep; None keeps all but Flask's.
        """
        captured = contextvars.Context()
        for variable, value in contextvars.copy_context().items():
            if variable.name not in _FLASK_CONTEXTS and (names is None or variable.name in names):
                captured.run(variable.set, value)
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
