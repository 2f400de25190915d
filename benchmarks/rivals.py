"""What people would use instead, each written as its own documentation shows it.

Those that only validate check the same seven parameters and return ready bytes.
A library that is not installed raises `ImportError` on use.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from flask import Flask, Response, abort, jsonify, request
from itsdangerous import BadSignature, URLSafeTimedSerializer
from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate

from benchmarks.entrants import PAGE, SECRET_KEY, URL, USER, Entrant, data, ready

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

BARE_WSGI: Final = "bare WSGI function"
BARE_FLASK: Final = "bare Flask view"
KEYED_FLASK: Final = "bare Flask view, SECRET_KEY set"
HAND_PARSED: Final = "view that parses by hand"
WEBARGS: Final = "webargs use_args"
SMOREST: Final = "flask-smorest arguments"
APIFLASK: Final = "APIFlask input"
JSONIFY: Final = "Flask view with jsonify"
USUAL: Final = "usual stack"
USUAL_CACHED: Final = "usual stack, Flask-Caching hit"

_APPID = re.compile(r"[0-9A-Za-z_-]{1,64}\Z")
_TIMESTAMP = re.compile(r"(?:[0-9]{10}|[0-9]{13})\Z")
_SCENE = re.compile(r"[0-9]{1,6}\Z")
_WEEK_S = 7 * 24 * 3600


class PullSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    appid = fields.String(required=True, validate=validate.Regexp(_APPID))
    timestamp = fields.String(required=True, validate=validate.Regexp(_TIMESTAMP))
    token = fields.String(validate=validate.Length(max=1024))
    path = fields.String(validate=validate.Length(max=1024))
    query = fields.String(validate=validate.Length(max=4096))
    scene = fields.String(validate=validate.Regexp(_SCENE))
    customMiniprogramVersion = fields.String(validate=validate.Length(max=64))  # noqa: N815 (WeChat's name)


_SCHEMA = PullSchema()
_LONGEST = {"token": 1024, "path": 1024, "query": 4096, "customMiniprogramVersion": 64}


def bare_wsgi(size_bytes: int) -> Entrant:
    body = ready(size_bytes)
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]

    def app(_environ: "WSGIEnvironment", start_response: "StartResponse") -> Iterable[bytes]:
        start_response("200 OK", headers)
        return [body]

    return Entrant(app, size_bytes, validates=False)


def bare_flask(size_bytes: int, *, secret_key: str | None = None) -> Entrant:
    app, body = Flask(__name__), ready(size_bytes)
    app.secret_key = secret_key  # with one, Flask looks for a session in every request
    app.add_url_rule(URL, view_func=lambda: _json(body), endpoint="bare")
    return Entrant(app, size_bytes, validates=False)


def _json(body: bytes) -> Response:
    return Response(body, content_type="application/json")


def jsonify_view(size_bytes: int) -> Entrant:
    app, answer = Flask(__name__), data(size_bytes)
    app.add_url_rule(URL, view_func=lambda: jsonify(answer), endpoint="jsonify")
    return Entrant(app, size_bytes, validates=False)


def hand_parsed(size_bytes: int) -> Entrant:
    app, body = Flask(__name__), ready(size_bytes)

    def view() -> Response:
        given = request.args
        if not _APPID.match(given.get("appid", "")):
            abort(400)
        if not _TIMESTAMP.match(given.get("timestamp", "")):
            abort(400)
        if "scene" in given and not _SCENE.match(given["scene"]):
            abort(400)
        if any(len(given.get(name, "")) > longest for name, longest in _LONGEST.items()):
            abort(400)
        return _json(body)

    app.add_url_rule(URL, view_func=view)
    return Entrant(app, size_bytes)


def webargs(size_bytes: int) -> Entrant:
    from webargs.flaskparser import use_args

    app, body = Flask(__name__), ready(size_bytes)

    def view(_pull: object) -> Response:
        return _json(body)

    app.add_url_rule(URL, view_func=use_args(_SCHEMA, location="query")(view))
    return Entrant(app, size_bytes)


def smorest(size_bytes: int) -> Entrant:
    from flask_smorest import Api, Blueprint

    app, body = Flask(__name__), ready(size_bytes)
    app.config.update(API_TITLE="shop", API_VERSION="v1", OPENAPI_VERSION="3.0.2")
    shop = Blueprint("shop", __name__)

    def view(_pull: object) -> Response:
        return _json(body)

    shop.route(URL)(shop.arguments(PullSchema, location="query")(view))
    Api(app).register_blueprint(shop)
    return Entrant(app, size_bytes)


def apiflask(size_bytes: int) -> Entrant:
    from apiflask import APIFlask

    app, body = APIFlask(__name__), ready(size_bytes)

    def view(query_data: object) -> Response:  # noqa: ARG001 (APIFlask's own name)
        return _json(body)

    app.get(URL)(app.input(PullSchema, location="query")(view))
    return Entrant(app, size_bytes)


def usual_stack(size_bytes: int) -> Entrant:
    """marshmallow, itsdangerous and jsonify, put together by hand."""
    app, answer = Flask(__name__), data(size_bytes)
    return _usual(app, lambda _query, user_id: answer | {"user": user_id}, size_bytes)


def usual_cached(size_bytes: int) -> Entrant:
    """The same with the handler under Flask-Caching's `memoize`."""
    from flask_caching import Cache

    app, answer = Flask(__name__), data(size_bytes)
    cache = Cache(app, config={"CACHE_TYPE": "SimpleCache"})

    def products(_query: str, user_id: str) -> dict[str, Any]:
        return answer | {"user": user_id}

    return _usual(app, cache.memoize(timeout=_WEEK_S)(products), size_bytes)


def _usual(
    app: Flask, products: Callable[[str, str], Mapping[str, Any]], size_bytes: int
) -> Entrant:
    tokens = URLSafeTimedSerializer(SECRET_KEY, salt="background-token")

    def view() -> Response:
        try:
            pull = _SCHEMA.load(request.args)
            user_id = tokens.loads(pull["token"], max_age=_WEEK_S)
        except (ValidationError, BadSignature):
            abort(400)
        if pull["path"] != PAGE:
            abort(404)
        return jsonify(products(pull["query"], user_id))

    app.add_url_rule(URL, view_func=view)
    return Entrant(app, size_bytes, tokens.dumps(USER))


RIVALS: Final[dict[str, Callable[[int], Entrant]]] = {
    BARE_WSGI: bare_wsgi,
    BARE_FLASK: bare_flask,
    KEYED_FLASK: partial(bare_flask, secret_key=SECRET_KEY),
    HAND_PARSED: hand_parsed,
    WEBARGS: webargs,
    SMOREST: smorest,
    APIFLASK: apiflask,
    JSONIFY: jsonify_view,
    USUAL: usual_stack,
    USUAL_CACHED: usual_cached,
}
