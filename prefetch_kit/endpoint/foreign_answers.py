"""Other extensions of the app, where they stand in the way of WeChat's requests."""

from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

from flask import Flask, Response, current_app, request

from prefetch_kit.endpoint.app_state import state_of

_PROXY_FIX: Final = "app.wsgi_app = ProxyFix(app.wsgi_app, x_proto=1, x_host=1)"


def exempt(_endpoint: str | None, _values: dict[str, Any] | None) -> None:
    """Take the default limits of Flask-Limiter and the check of Flask-WTF from the kit's views.

    A preprocessor of URL values: the first request for one of the views runs it, before all
    functions of the app, and then it is removed. Limits by address mean nothing where WeChat's
    servers ask for everybody, and WeChat has no CSRF token. Limits that the app gave to a view
    itself stay.
    """
    app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]
    # New lists: another thread may be at one of the old ones.
    for scope, functions in app.url_value_preprocessors.items():
        app.url_value_preprocessors[scope] = [each for each in functions if each is not exempt]
    for extension in _exempting(app):
        for endpoint in state_of(app).all_endpoints:
            extension.exempt(app.view_functions[endpoint])


def _exempting(app: Flask) -> Iterator[Any]:
    """Flask-Limiter and Flask-WTF, and nothing else that is called so there."""
    for name, module in (("limiter", "flask_limiter"), ("csrf", "flask_wtf")):
        found = app.extensions.get(name)
        # In older versions of Flask-Limiter it is a single one.
        for each in found if isinstance(found, (set, tuple)) else [found]:
            if any(kind.__module__.partition(".")[0] == module for kind in type(each).__mro__):
                yield each


def describe(app: Flask, response: Response) -> str:
    """Why the answer to the present request is not the kit's, and the line to add."""
    said = f"{response.status_code}"
    location = response.headers.get("Location")
    to = _split(location or "")
    if location is not None:
        said += f" to {to.scheme}://{to.netloc}{to.path}" if to.netloc else f" to {to.path}"
    is_to_https = to.scheme == "https" and to.path == request.path
    return (
        f"the app answered a pull of {request.path} itself ({said}), so WeChat gets no data. "
        f"{_remedy(app, response.status_code, is_to_https=is_to_https)}"
    )


def _split(location: str) -> SplitResult:
    try:
        return urlsplit(location)
    except ValueError:
        return urlsplit("")


def _remedy(app: Flask, status: int, *, is_to_https: bool) -> str:
    if is_to_https and not request.is_secure:
        return (
            "It does not see that the pull came by https: let the proxy send "
            f"X-Forwarded-Proto: https, and add: {_PROXY_FIX}"
        )
    names = ", ".join(_functions_before(app)) or "a wrapper of the view"
    let_pass = f"({names}) add: if request.blueprint == {request.blueprint!r}: return None"
    if status >= 500:
        return f"A function around the view failed. In it {let_pass}"
    if status == 429:
        return (
            "All pulls come from WeChat's servers, so a limit by address means nothing for them. "
            f"In the function that counts {let_pass}"
        )
    return f"WeChat has no session of a user. In the function that answers {let_pass}"


def _functions_before(app: Flask) -> Iterator[str]:
    for scope in (None, *reversed(request.blueprints)):
        for function in app.before_request_funcs.get(scope, ()):
            yield getattr(function, "__qualname__", repr(type(function)))
