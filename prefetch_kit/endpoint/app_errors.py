"""Errors that functions of the app raise, as logs and error trackers may have them."""

import traceback
from collections.abc import Iterator
from contextlib import suppress
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE, CO_GENERATOR
from types import FrameType, TracebackType
from typing import Final
from urllib.parse import unquote_plus

from werkzeug.exceptions import HTTPException

from prefetch_kit.secret import Secret

# A text that holds so many characters of a credential in a row quotes it.
_QUOTED_CHARS: Final = 12
# What is shorter protects nothing, and stands in any text.
_SHORTEST: Final = 4
# Looking through more would take a pull too long.
_LONGEST_TEXT: Final = 20_000
_SUSPENDS: Final = CO_GENERATOR | CO_COROUTINE | CO_ASYNC_GENERATOR


def without_credential(
    error: BaseException, credential: Secret, *, raised_by: str
) -> BaseException:
    """The error of a function that was given a credential, without it.

    Its frames lose their local variables, which trackers send to others. Where what it says may
    quote the credential, an error takes its place that names its class alone, or, for an HTTP
    error of 4xx, has its status alone.
    """
    found = list(chain_of(error))
    for each in found:
        BaseException.with_traceback(each, _without_variables(each.__traceback__))
    if not any(_quotes(each, credential) for each in found):
        return error
    with suppress(Exception):  # classes of apps can do anything
        status = status_of(error) if isinstance(error, HTTPException) else None
        if status is not None and 400 <= status < 500:
            refusal = HTTPException()
            refusal.code = status
            return refusal
    name = type(error).__name__
    without = RuntimeError(f"{raised_by} raised {name}, whose text may quote the token")
    return without.with_traceback(error.__traceback__)


def chain_of(error: BaseException) -> Iterator[BaseException]:
    """An error, those that led to it, and those that it groups."""
    seen, ahead = set[int](), [error]
    while ahead:
        each = ahead.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        ahead += [led for led in (each.__context__, each.__cause__) if led is not None]
        if isinstance(each, BaseExceptionGroup):
            ahead += each.exceptions


def status_of(error: HTTPException) -> int | None:
    """The status that an HTTP error stands for."""
    return error.code if error.response is None else error.response.status_code


def _without_variables(entry: TracebackType | None) -> TracebackType | None:
    """The traceback without variables, and without the frames that have to keep theirs."""
    entries = []
    while entry is not None:
        entries.append(entry)
        entry = entry.tb_next
    for each in reversed(entries):
        if _clear(each.tb_frame):
            entry = TracebackType(entry, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return entry


def _clear(frame: FrameType) -> bool:
    if frame.f_code.co_flags & _SUSPENDS:  # it would be closed, and the app may go on with it
        return False
    try:
        frame.clear()
    except RuntimeError:  # it runs, here or in another thread
        return False
    return True


def _quotes(error: BaseException, credential: Secret) -> bool:
    value = credential.reveal().lower()
    length = min(_QUOTED_CHARS, len(value))
    if length < _SHORTEST:
        return False
    try:
        # What the log prints of it, and what trackers read.
        printed = "".join(traceback.format_exception_only(error))
        text = f"{printed} {error} {error.args!r} {vars(error)!r}".lower()
    except Exception:  # noqa: BLE001 (as above)
        return True
    if len(text) > _LONGEST_TEXT:
        return True
    text += unquote_plus(text)
    return any(value[n : n + length] in text for n in range(len(value) - length + 1))
