"""One call of the sandbox's API, read from its WSGI environment."""

import json
from typing import Final
from wsgiref.types import WSGIEnvironment

from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Request

from prefetch_kit.sandbox.errors import ApiError
from prefetch_kit.sandbox.settings import FIELDS

MAX_BODY_BYTES: Final = 2**20

_HARMLESS: Final = FIELDS | {
    *("action", "appid", "grant_type", "force_refresh"),
    *("component_appid", "authorizer_appid", "offset", "count"),
    *("wxa_jump_h5_domain", "is_modify_published_together"),
}
_Scalar = str | int | float | bool | None


class Call:
    """A parsed call. `appid` is set once the caller is known.

    `reads_before_last_set` is set by a fault.
    """

    def __init__(self, environ: WSGIEnvironment) -> None:
        request = Request(environ)
        request.max_content_length = MAX_BODY_BYTES
        self.method = request.method
        self.path = request.path
        self.args = request.args
        self.appid: str | None = None
        self.reads_before_last_set = False
        self._is_empty = False
        self._body = self._read(request)

    @property
    def action(self) -> str | None:
        """The `action` of the body, where it is a string."""
        action = (self._body or {}).get("action")
        return action if isinstance(action, str) else None

    def posted(self) -> dict[str, object]:
        """The JSON object sent; raises 43002, 44002 or 47001."""
        if self.method != "POST":
            raise ApiError(43002)
        if self._is_empty:
            raise ApiError(44002)
        if self._body is None:
            raise ApiError(47001)
        return self._body

    def shown(self) -> dict[str, object] | None:
        """The harmless fields of the body; a value that is not a scalar is masked."""
        if self._body is None:
            return None
        return {
            name: value if isinstance(value, _Scalar) else "***"
            for name, value in self._body.items()
            if name in _HARMLESS
        }

    def _read(self, request: Request) -> dict[str, object] | None:
        try:
            raw = request.get_data()
            self._is_empty = not raw
            return parse_object(raw)
        except (HTTPException, ValueError, RecursionError):
            return None


def parse_object(raw: bytes) -> dict[str, object]:
    """A JSON object from UTF-8; raises ValueError or RecursionError for anything else."""
    value = json.loads(raw.decode(), parse_constant=_refuse_constant)
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 (the text is wrong, not a type)
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
