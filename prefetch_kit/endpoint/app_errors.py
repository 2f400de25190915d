"""Errors that functions of the app raise, as logs and error trackers may have them."""

import traceback
from collections.abc import Iterator
from typing import Final

from werkzeug.exceptions import HTTPException

from prefetch_kit.secret import Secret

# A text that holds so many characters of a credential in a row quotes it.
_QUOTED_CHARS: Final = 12
# What is shorter protects nothing, and stands in any text.
_SHORTEST: Final = 4


def without_credential(
    error: BaseException, credential: Secret, *, raised_by: str
) -> BaseException:
    """The error of a function that was given a credential, without it.

    Its frames lose their local variables, which trackers send to others. Where its text quotes
    the credential, an error takes its place that names its class alone.
    """
    for each in chain_of(error):
        traceback.clear_frames(each.__traceback__)
    if not _quotes(error, credential):
        return error
    if isinstance(error, HTTPException):  # the status is what the app means by it
        error.description, error.args = type(error).description, ()
        error.__cause__ = error.__context__ = None
        return error
    without = RuntimeError(
        f"{raised_by} raised {type(error).__name__}, whose text is not shown: it quotes the token"
    )
    return without.with_traceback(error.__traceback__)


def chain_of(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _quotes(error: BaseException, credential: Secret) -> bool:
    text = "".join(traceback.format_exception(error))
    value = credential.reveal()
    length = min(_QUOTED_CHARS, len(value))
    starts = range(len(value) - length + 1)
    return length >= _SHORTEST and any(value[n : n + length] in text for n in starts)
