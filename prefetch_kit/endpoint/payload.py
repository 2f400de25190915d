"""What a handler returned becomes bytes within the limit."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from decimal import Decimal
from enum import Enum
from typing import Final

import orjson
from marshmallow import Schema

from prefetch_kit.errors import PrefetchKitError


class NoData(Enum):
    """Its one member tells WeChat that there is nothing to keep for this page."""

    NO_DATA = "NO_DATA"

    def __repr__(self) -> str:
        return self.value


NO_DATA: Final = NoData.NO_DATA


class NotAnAnswer(PrefetchKitError):
    """The handler returned something that cannot be handed to a mini program."""


class TooLarge(PrefetchKitError):
    """The answer is over the limit, and a phone would keep nothing of it."""

    def __init__(self, size_bytes: int, max_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.max_bytes = max_bytes
        super().__init__(f"the answer is {size_bytes} bytes, the limit {max_bytes}")


def encode(value: object, *, schema: Schema | None, max_bytes: int) -> bytes:
    """Encode a handler's answer: compact UTF-8 JSON, or text and bytes as they are.

    `NO_DATA` becomes an empty body, which a phone treats as nothing to keep. Raises
    `NotAnAnswer` for what JSON cannot say and `TooLarge` over `max_bytes` bytes
    (/miniprogram/dev/framework/ability/pre-fetch.html: at most 256 KB).
    """
    body = _to_bytes(value, schema)
    if len(body) > max_bytes:
        raise TooLarge(len(body), max_bytes)
    return body


def _to_bytes(value: object, schema: Schema | None) -> bytes:
    if value is NO_DATA:
        return b""
    if value is None:
        raise NotAnAnswer("the handler returned None; return NO_DATA where there is nothing")
    if schema is not None:
        value = schema.dump(value)
    elif isinstance(value, tuple):
        raise NotAnAnswer("the handler returned a tuple; a pull has no status and no headers")
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    return _to_json(value)


def _to_json(value: object) -> bytes:
    body = orjson.dumps(value, default=_default)
    # orjson writes NaN and infinity as null. Looking for them costs a walk, so walk only
    # where a null came out. From the right, because rfind is twice as fast as `in`.
    if body.rfind(b"null") >= 0 and _has_nonfinite(value):
        raise NotAnAnswer("the answer holds NaN or infinity, which JSON cannot say")
    return body


def _default(value: object) -> object:
    if isinstance(value, Decimal):
        if not value.is_finite():
            raise NotAnAnswer("the answer holds a Decimal that is not a finite number")
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _has_nonfinite(value: object) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(_has_nonfinite(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_has_nonfinite(item) for item in value)
    if isinstance(value, Enum):
        return _has_nonfinite(value.value)
    return any(map(_has_nonfinite, _dataclass_values(value)))


def _dataclass_values(value: object) -> Iterator[object]:
    # What orjson writes: attributes set beside the fields too, no name that begins with "_".
    if is_dataclass(value):
        for name in {field.name for field in fields(value)} | getattr(value, "__dict__", {}).keys():
            if not name.startswith("_") and hasattr(value, name):
                yield getattr(value, name)
