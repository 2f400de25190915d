"""Standard output and standard error that never end a command because they cannot be written.

A terminal that is lost, a pipe that is closed, a disk that is full, an encoding that lacks a
character: none of it stops a fleet in the middle, or changes an exit code.
"""

import errno
import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, Final, TextIO

_NEVER_OPEN: Final = "it is closed"
# What is wrong with a stream that nobody reads, or no longer.
CLOSED: Final = frozenset({_NEVER_OPEN, os.strerror(errno.EPIPE)})


class LossyFile(io.FileIO):
    """A standard stream, by its descriptor. After a write that failed, all of it is dropped."""

    def __init__(self, descriptor: int, problem: str | None = None) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        # Why it cannot be written, in words; None as long as it can.
        self.problem = problem

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if self.problem is not None:
            return size
        try:
            # None where another process made it non-blocking and nobody reads fast enough.
            while (written := super().write(data)) is None:
                select.select((), (self,), ())
        except OSError as error:
            self.problem = error.strerror
            # For what others, such as Python at its end, still write there.
            with suppress(OSError):
                _lead_nowhere(self.fileno())
            return size
        return written


def keep_streams_going() -> None:
    """Let nothing that is written to standard output or standard error raise an error.

    Standard input, where it is closed, is empty.
    """
    _open_closed()
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(os.devnull)), encoding="utf-8")
    sys.stdout = _keep_going(sys.stdout, 1)
    sys.stderr = _keep_going(sys.stderr, 2)


def output_problem() -> str | None:
    """Why standard output cannot be written, in words; None where nothing is known against it."""
    raw = _raw_of(sys.stdout)
    return raw.problem if isinstance(raw, LossyFile) else None


def shows_every_character() -> bool:
    """Whether the encoding of standard output has all characters."""
    return (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")


def _keep_going(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:
        file = LossyFile(descriptor, _NEVER_OPEN)
        return io.TextIOWrapper(io.BufferedWriter(file), encoding="utf-8", errors="replace")
    if not isinstance(stream, io.TextIOWrapper):
        return stream  # somebody else's, such as a test's
    if isinstance(_raw_of(stream), LossyFile) or not _is_at(stream, descriptor):
        stream.reconfigure(errors="replace")
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(LossyFile(descriptor)),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.line_buffering,
    )


def _raw_of(stream: object) -> object:
    return getattr(getattr(stream, "buffer", None), "raw", None)


def _is_at(stream: TextIO, descriptor: int) -> bool:
    try:
        return stream.fileno() == descriptor
    except (OSError, ValueError):  # it is in memory, or closed
        return False


def _open_closed() -> None:
    """Open the standard descriptors that are closed: else a file or a socket becomes one."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _lead_nowhere(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, descriptor)
    finally:
        os.close(null)
