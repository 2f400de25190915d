"""Answers of WeChat: strict reading, and text that may be shown.

No error is raised from a frame that has seen an answer, since it may hold a secret. So what reads
an answer returns None where it is not as promised, and `promised` raises.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote, quote_plus

from marshmallow import EXCLUDE, Schema, ValidationError, fields

from prefetch_kit.errors import OutcomeUnknown
from prefetch_kit.secret import Secret

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")
_ECHO_LENGTH = 8
_READ_CHARS = 2000
# What is so long can be anybody's token, unless it is made of words, as getStableAccessToken and
# authorizer_refresh_token are, or is a rid, by which WeChat finds a call.
_LONG_RUN: Final = re.compile(r"[A-Za-z0-9_+/=@%~-]{20,}")
_NO_TOKEN: Final = re.compile(
    r"(?:[A-Z]?[a-z]{1,15}(?:[A-Z][a-z]{1,15}|[_/-]+[A-Z]?[a-z]{1,15})*|[0-9a-f]{8}(?:-[0-9a-f]{8}){2})\Z"
)
_Encode = Callable[[str], str]
_ENCODINGS: Final[tuple[_Encode, ...]] = (str, quote, quote_plus, partial(quote, safe=""))

_T = TypeVar("_T")


class UnreadableError(ValueError):
    """The bytes are not an answer; the text says why and quotes nothing of them."""


def parse(body: bytes) -> dict[str, object]:
    """Read one JSON object, and refuse what could be read in two ways.

    One leading byte order mark is accepted: it changes nothing about what follows.
    Doubled keys, NaN, Infinity, and numbers and surrogates that nothing can write again are
    refused at any depth. Raises UnreadableError.
    """
    try:
        answer = json.loads(body.decode("utf-8-sig"), object_pairs_hook=_object)
        # 1e999 has become an infinity, and half a surrogate pair fails wherever it is printed.
        json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()
    # Bad UTF-8, bad JSON and integers of thousands of digits are ValueErrors.
    except (ValueError, RecursionError):
        raise UnreadableError("the answer is not JSON") from None
    if not isinstance(answer, dict):
        raise UnreadableError("the answer is not a JSON object")
    return answer


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("doubled key")
    return members


def answer_schema(**members: "fields.Field[Any]") -> Schema:
    """A schema of these members; others that come with them are left out."""
    return Schema.from_dict(members)(unknown=EXCLUDE)


def read(schema: Schema, answer: Mapping[str, object]) -> dict[str, Any] | None:
    """The members of an answer, None where they are not as the schema says."""
    try:
        return dict(schema.load(answer))
    except ValidationError:
        return None


def promised(action: str, value: _T | None, *, what: str) -> _T:
    """What was read from the answer to a call. Raises OutcomeUnknown where that is None."""
    if value is None:
        raise OutcomeUnknown(action, f"the answer holds no {what}", sent=True, remedy="Try again")
    return value


def scrub(text: str, secrets: Iterable[Secret]) -> str:
    """Foreign text without control characters and without any part of these secrets.

    A part is any run of 8 characters of a secret, plain or percent-encoded, in either case,
    so that an echo that was cut short is covered too. Only the first 2000 characters stay.
    Of other text, runs of 20 and more characters that could be a token are taken away.
    """
    shown = _CONTROL.sub(" ", text[:_READ_CHARS])
    forms = {_fold(encode(secret.reveal())) for secret in secrets for encode in _ENCODINGS}
    folded = _fold(shown)
    hidden = [False] * len(shown)
    for form in forms:
        width = min(_ECHO_LENGTH, len(form))
        for start in range(len(shown) - width + 1):
            if folded[start : start + width] in form:
                hidden[start : start + width] = [True] * width
    masked = "".join("\0" if hide else char for char, hide in zip(shown, hidden, strict=True))
    return _LONG_RUN.sub(_masked, re.sub("\0+", "***", masked)).strip()


def _masked(run: re.Match[str]) -> str:
    return run[0] if _NO_TOKEN.match(run[0]) else "***"


def _fold(text: str) -> str:
    # Not str.lower(): that may change the length, and positions are compared.
    return "".join(char.lower() if char.isascii() else char for char in text)
