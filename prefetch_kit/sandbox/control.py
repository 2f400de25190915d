"""The control API: the sandbox's Python methods as JSON calls under one prefix."""

import inspect
import ipaddress
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, is_dataclass, replace
from typing import Any, Final, NamedTuple, get_type_hints
from urllib.parse import urlsplit
from wsgiref.types import StartResponse, WSGIEnvironment

from werkzeug.exceptions import HTTPException
from werkzeug.routing import Map, Rule
from werkzeug.wrappers import Request, Response

from prefetch_kit.sandbox.call import MAX_BODY_BYTES, parse_object
from prefetch_kit.sandbox.checking import check_arguments, wanted
from prefetch_kit.sandbox.components import Components
from prefetch_kit.sandbox.errors import NotFoundError, SandboxError
from prefetch_kit.sandbox.faults import Fault
from prefetch_kit.sandbox.switches import Switches

PREFIX: Final = "/_sandbox/"


def _inject(wechat: Components, **fields: Any) -> None:
    wechat.inject(Fault(**fields))


def _switches(wechat: Components) -> Switches:
    return wechat.switches


def _set_switches(wechat: Components, **fields: Any) -> None:
    wechat.switches = replace(wechat.switches, **fields)


class _Row(NamedTuple):
    """One call: its function, the key of its result, and the function that has its parameters."""

    method: str
    path: str
    run: Callable[..., object]
    result: str = ""
    takes: Callable[..., object] | None = None


_USER: Final = "apps/<appid>/users/<openid>"
_AUTHORIZER: Final = "platforms/<platform>/authorizers/<appid>"
_ROWS: Final = (
    _Row("GET", "now", Components.now, "now"),
    _Row("POST", "advance", Components.advance),
    _Row("POST", "reset", Components.reset),
    _Row("GET", "origins", Components.origins, "origins"),
    _Row("POST", "origins", Components.map_origin),
    _Row("POST", "apps", Components.add_app),
    _Row("POST", "apps/<appid>/users", Components.add_user),
    _Row("POST", "apps/<appid>/domains", Components.add_domain),
    _Row("POST", "apps/<appid>/release", Components.release),
    _Row("POST", "apps/<appid>/denial", Components.deny),
    _Row("GET", "apps/<appid>/settings", Components.settings, "settings"),
    _Row("PUT", "apps/<appid>/settings", Components.put_settings),
    _Row("POST", "apps/<appid>/access_token", Components.access_token, "access_token"),
    _Row("POST", "apps/<appid>/expire_tokens", Components.expire_tokens),
    _Row("POST", f"{_USER}/login_code", Components.login_code, "login_code"),
    _Row("POST", f"{_USER}/background_fetch_token", Components.set_background_fetch_token),
    _Row("POST", f"{_USER}/cold_start", Components.cold_start, "pulled"),
    _Row("POST", f"{_USER}/periodic_pull", Components.periodic_pull, "pulled"),
    _Row("GET", f"{_USER}/background_fetch_data", Components.background_fetch_data, "data"),
    _Row("POST", "platforms", Components.add_platform),
    _Row("POST", "platforms/<platform>/ticket", Components.push_ticket, "pushed"),
    _Row("POST", _AUTHORIZER, Components.authorize, "pushed"),
    _Row("DELETE", _AUTHORIZER, Components.revoke, "pushed"),
    _Row("GET", "pushes", Components.pushes, "pushes"),
    _Row("GET", "requests", Components.requests, "requests"),
    _Row("GET", "requests/count", Components.count, "count"),
    _Row("POST", "faults", _inject, takes=Fault.__init__),
    _Row("GET", "switches", _switches, "switches"),
    _Row("PUT", "switches", _set_switches, takes=Switches.__init__),
)


class Control:
    """A WSGI application; a body that is not declared JSON, such as a form's, is refused."""

    def __init__(self, wechat: Components) -> None:
        self._wechat = wechat
        self._map = Map(
            [Rule(PREFIX, methods=["GET"], endpoint=None)],
            strict_slashes=False,
            merge_slashes=False,
        )
        for row in _ROWS:
            self._map.add(Rule(PREFIX + row.path, methods=[row.method], endpoint=row))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        request.max_content_length = MAX_BODY_BYTES
        try:
            response = _refuse_undeclared(request) or self._answer(request)
        except HTTPException as error:
            asked = f"{request.method} {request.path!r}"
            sentence = f"{asked} is refused ({error.name}): GET {PREFIX} lists the calls."
            response = _error(error.code or 400, sentence)
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        row, in_path = self._map.bind("sandbox").match(request.path, request.method)
        if row is None:
            return _json({"calls": [_described(each) for each in _ROWS]})
        try:
            given = {**_given(request), **in_path}
            arguments = check_arguments(row.takes or row.run, given)
            result = row.run(self._wechat, **arguments)
        except NotFoundError as error:
            return _error(404, str(error))
        except SandboxError as error:
            return _error(400, str(error))
        return _json({row.result: _plain(result)} if row.result else {})


def refuse_strangers(request: Request) -> Response | None:
    """The refusal of a caller that is not a program on this machine, or None.

    A page open in the developer's browser can reach loopback too: it is known by a foreign Host
    (DNS rebinding) or a foreign Origin.
    """
    host = request.environ.get("HTTP_HOST", "")
    if not _is_loopback(host):
        return _error(403, "Host is not this machine: call the sandbox as 127.0.0.1.")
    if request.headers.get("Origin") not in (None, f"http://{host}"):
        return _error(403, "Origin is another site's: web pages cannot drive the sandbox.")
    return None


def _refuse_undeclared(request: Request) -> Response | None:
    has_body = request.content_length or "Transfer-Encoding" in request.headers
    if has_body and request.mimetype != "application/json":
        return _error(415, "Content-Type is not application/json: send the body as JSON.")
    return None


def _is_loopback(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _given(request: Request) -> dict[str, Any]:
    if request.method in ("GET", "HEAD"):
        return request.args.to_dict()
    try:
        raw = request.get_data()
        return parse_object(raw) if raw else {}
    except (ValueError, RecursionError):
        raise SandboxError("The body is not a JSON object in UTF-8: send one, or none.") from None


def _described(row: _Row) -> dict[str, object]:
    function = row.takes or row.run
    hints = get_type_hints(function)
    in_body = {
        name: wanted(hints[name]) + ("" if parameter.default is parameter.empty else ", optional")
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and f"<{name}>" not in row.path
    }
    return {"method": row.method, "path": PREFIX + row.path, "takes": in_body}


def _plain(value: object) -> object:
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value


def _error(status: int, sentence: str) -> Response:
    return _json({"error": sentence}, status=status)


def _json(body: dict[str, object], *, status: int = 200) -> Response:
    return Response(json.dumps(body) + "\n", status, content_type="application/json")
