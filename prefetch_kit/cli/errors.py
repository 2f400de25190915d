"""What the error of a command becomes: a sentence, an exit code and, with --json, a record."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from shlex import quote as quote_word
from typing import Any, Final, NamedTuple

import click
from flask.cli import NoAppException

from prefetch_kit.errors import PrefetchKitError, Refused

FAILED: Final = 1
CHANGES_FOUND: Final = 3


class CommandFailed(click.ClickException):
    """Ends a command with a sentence and exit code 1."""


class NothingDone(CommandFailed):
    """Ends a command of a fleet of which nothing was done."""

    exit_code = 4


class AppMissing(CommandFailed):
    """`--app` names no app, or there is none where Flask looks for one."""


class Row(NamedTuple):
    """`in_fleet` applies to a fleet of which no mini program is done yet."""

    error: type[BaseException]
    alone: type[CommandFailed]
    in_fleet: type[CommandFailed]
    sentence: Callable[[Any], str]
    record: Callable[[Any], dict[str, object]] | None = None


# The first row whose class fits decides. Errors of usage are click's own, with its exit code 2.
TABLE: Final = (
    Row(
        Refused,
        CommandFailed,
        NothingDone,
        str,
        lambda error: {"errcode": error.errcode, "errmsg": error.errmsg},
    ),
    Row(PrefetchKitError, CommandFailed, NothingDone, str),
    Row(
        OSError,
        CommandFailed,
        CommandFailed,
        lambda error: f"Input or output failed: {error.strerror}.",
    ),
    # Only while a fleet runs; elsewhere click says that the command was aborted.
    Row(
        KeyboardInterrupt,
        CommandFailed,
        NothingDone,
        lambda _: "Interrupted. Run the same command again to go on.",
    ),
)


def failure_of(error: BaseException, *, nothing_done: bool = False) -> CommandFailed:
    """What the table makes of an error. `nothing_done`: in a fleet, none is done yet."""
    row = _row_of(error)
    return (row.in_fleet if nothing_done else row.alone)(row.sentence(error))


def record_of(error: BaseException) -> dict[str, object] | None:
    """What is printed of an error as JSON, if anything."""
    record = _row_of(error).record
    return None if record is None else record(error)


def _row_of(error: BaseException) -> Row:
    return next(row for row in TABLE if isinstance(error, row.error))


class CommandGroup(click.Group):
    """Ends its commands as the table says."""

    nothing_done = False

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends silently
        except (PrefetchKitError, OSError) as error:
            failure = failure_of(error, nothing_done=self.nothing_done)
        raise failure  # outside of the handler, so that no traceback leads to the error


class FleetGroup(CommandGroup):
    """Ends its commands with the exit code that says that nothing was done."""

    nothing_done = True


def refuse_unattended(failure: type[CommandFailed] = CommandFailed) -> None:
    """Raise this failure where nobody can be asked."""
    if sys.stdin is None or not sys.stdin.isatty():
        raise failure("Nobody is here to answer; add --yes.")


def app_failed(error: BaseException) -> CommandFailed:
    """A function of the app raised this error."""
    return CommandFailed(f"The app failed: {_summary(error)}.")


def app_not_loaded(error: BaseException, import_path: str | None) -> CommandFailed:
    """The app raised this error when it was imported or made."""
    app = f"--app {quote_word(import_path)} " if import_path else ""
    return CommandFailed(
        f"The app could not be loaded: {_summary(error)}. "
        f"Run `flask {app}routes` to see the whole traceback."
    )


def import_failure(error: NoAppException) -> BaseException | None:
    """The ImportError inside the app, whose whole traceback Flask quotes in its own message."""
    below = error.__context__
    inside = isinstance(below, ImportError) and below.__traceback__ and below.__traceback__.tb_next
    return below if inside else None


# The standard library and this package, then what pip installs: none of it is the developer's.
_FOREIGN: Final = (Path(os.__file__).parent, Path(__file__).parents[1])
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})


def _summary(error: BaseException) -> str:
    """The class of the error, and the innermost frame in the developer's code.

    The message stays out: it may quote a setting of the app.
    """
    frames = [
        (frame.f_code.co_filename, line_number)
        for frame, line_number in traceback.walk_tb(error.__traceback__)
    ]
    if isinstance(error, SyntaxError):
        frames.append((error.filename or "<", error.lineno or 0))
    filename, line_number = ([frame for frame in frames if _is_own(frame[0])] or frames)[-1]
    return f"{type(error).__name__} at {filename}:{line_number}"


def _is_own(filename: str) -> bool:
    path = Path(filename)
    if filename.startswith("<") or any(path.is_relative_to(folder) for folder in _FOREIGN):
        return False
    return _INSTALLED.isdisjoint(path.parts)
