"""What a handler returned becomes bytes within the limit."""

import json
from collections.abc import Callable
from contextlib import suppress
from enum import Enum
from typing import Final

import orjson
from marshmallow import Schema
from werkzeug.wrappers import Response

from prefetch_kit.endpoint.json_values import JsonWriter, NotJsonError
from prefetch_kit.errors import Aborted, PrefetchKitError
from prefetch_kit.logs import SafeLogger


class NoData(Enum):
    """Its one member tells WeChat that there is nothing to keep for this page."""

    NO_DATA = "NO_DATA"

    def __repr__(self) -> str:
        return self.value


NO_DATA: Final = NoData.NO_DATA


class NotAnAnswer(PrefetchKitError):
    """The handler returned something that cannot be handed to a mini program."""

    def __init__(self, handler: str, problem: str, *, remedy: str) -> None:
        self.handler = handler
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{handler} returned {problem}. {remedy[:1].upper()}{remedy[1:]}.")


class TooLarge(PrefetchKitError):
    """The answer is over the limit, and a phone would keep nothing of it."""

    def __init__(self, size_bytes: int, max_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes
        super().__init__(f"the answer is {size_bytes} bytes, the limit {max_bytes}")


class Encoder:
    """Encodes what handlers return: compact UTF-8 JSON, or text and bytes as they are.

    `app_dumps` is `app.json.dumps`, for types that only the app knows. In `debug` text that is no
    JSON is told of. No body is over `max_bytes`
    (/miniprogram/dev/framework/ability/pre-fetch.html: at most 256 KB).
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        big_integers_as_text: bool,
        app_dumps: Callable[[object], str],
        logger: SafeLogger,
        debug: bool,
    ) -> None:
        self._max_bytes = max_bytes
        self._json = JsonWriter(app_dumps=app_dumps, big_integers_as_text=big_integers_as_text)
        self._logger = logger
        self._debug = debug
        self._warned: set[str] = set()

    def encode(self, value: object, *, schema: Schema | None, handler: str) -> bytes:
        """The body of an answer; `NO_DATA` becomes an empty one: nothing to keep for a phone.

        Raises `NotAnAnswer` for what JSON cannot say, `TooLarge`, and `Aborted` for a response
        of 4xx. `handler` is the name that errors and warnings give.
        """
        body = self._to_bytes(value, schema, handler)
        if len(body) > self._max_bytes:
            raise TooLarge(len(body), self._max_bytes)
        return body

    def _to_bytes(self, value: object, schema: Schema | None, handler: str) -> bytes:
        is_response = isinstance(value, Response)
        if isinstance(value, Response):
            value = _data_of(value, handler)
        if value is NO_DATA:
            return b""
        if value is None:
            raise NotAnAnswer(handler, "None", remedy="return NO_DATA where there is nothing")
        if schema is not None:
            value = schema.dump(value)
        elif type(value) is tuple:
            raise NotAnAnswer(
                handler,
                "a tuple; a pull's answer has no status and no headers",
                remedy="return its data alone, or a list; to refuse a pull, call abort(404)",
            )
        if isinstance(value, (str, bytes)) and not is_response:
            return self._text(value, handler)
        try:
            body, big_integer = self._json.write(value)
        except NotJsonError as error:
            problem, remedy, cause = error.problem, error.remedy, error.__cause__
        else:
            if big_integer is not None:
                self._warn_of_big_integer(handler, big_integer)
            return body
        raise NotAnAnswer(handler, problem, remedy=remedy) from cause

    def _text(self, value: str | bytes, handler: str) -> bytes:
        body: bytes | None = None
        with suppress(UnicodeEncodeError):
            body = value.encode() if isinstance(value, str) else value
        if body is None:  # and not from the foreign error, which holds the text
            raise NotAnAnswer(
                handler,
                "a str with half a surrogate pair, which is no text",
                remedy="decode what it comes from as UTF-16",
            )
        if self._debug:
            self._tell_of_text(body, handler)
        return body

    def _tell_of_text(self, body: bytes, handler: str) -> None:
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError as error:
            at = f"line {error.lineno}, column {error.colno}"
            does = f"throws a SyntaxError ({at})" if body else "gets nothing: it is no data"
            self._logger.warning(
                "%s returned text that is no JSON, which goes out as it is: "
                "JSON.parse(result.fetchedData) in the mini program %s. Return a dict or a list, "
                "or read fetchedData there without JSON.parse",
                handler,
                does,
            )

    def _warn_of_big_integer(self, handler: str, where: str) -> None:
        if handler not in self._warned:
            self._warned.add(handler)
            self._logger.warning(
                "%s returned an integer beyond 2**53 %s, which JavaScript rounds to another one. "
                "Return it as a str, or set PREFETCH_BIG_INTEGERS to 'text'",
                handler,
                where,
            )


def _data_of(response: Response, handler: str) -> object:
    """What the JSON of a response says: that of `jsonify` would be longer than ours."""
    try:
        return _json_of(response, handler)
    finally:
        response.close()


def _json_of(response: Response, handler: str) -> object:
    status = response.status_code
    if 400 <= status < 500:
        raise Aborted(status, f"{handler} returned a response of {response.status}")
    if status == 204:
        return NO_DATA
    if not 200 <= status < 300:
        raise NotAnAnswer(
            handler, f"a response of {response.status}", remedy="return data, or call abort(404)"
        )
    if not response.is_json:
        problem = f"a response that is {response.mimetype}, not JSON"
        raise NotAnAnswer(handler, problem, remedy="return data, or jsonify(…)")
    response.direct_passthrough = False  # as send_file has it, so that it can be read
    with suppress(ValueError, RecursionError):
        return json.loads(response.get_data())
    raise NotAnAnswer(handler, "a response whose JSON cannot be read", remedy="return its data")
