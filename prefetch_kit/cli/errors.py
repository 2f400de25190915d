"""What the error of a command becomes: a sentence and an exit code."""

import os
import sys
import traceback
from pathlib import Path
from typing import Any, Final

import click

from prefetch_kit.errors import NotConfirmed, PrefetchKitError

FAILED: Final = 1
CHANGES_FOUND: Final = 3


class CommandFailed(click.ClickException):
    """Ends a command with a sentence and exit code 1."""


class NothingDone(CommandFailed):
    """Ends a command of a fleet of which nothing was done."""

    exit_code = 4


class NotYetConfirmed(CommandFailed):
    """Ends a command that set something which WeChat does not show yet."""

    exit_code = 5


class AppMissing(CommandFailed):
    """`--app` names no app, or there is none where Flask looks for one."""


def failure_of(error: BaseException, *, nothing_done: bool = False) -> CommandFailed:
    """What a command ends with after an error. `nothing_done`: in a fleet, no app is done yet."""
    if isinstance(error, OSError):
        return CommandFailed(f"Input or output failed: {error.strerror}.")
    if isinstance(error, NotConfirmed):
        return NotYetConfirmed(str(error))
    failure = NothingDone if nothing_done else CommandFailed
    # Only while a fleet runs; elsewhere click says that the command was aborted.
    if isinstance(error, KeyboardInterrupt):
        return failure("Interrupted. Run the same command again to go on.")
    return failure(str(error))


class CommandGroup(click.Group):
    """Ends a command that fails with one sentence. Errors of usage stay click's own, with 2."""

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


# The standard library and this package, then what pip installs: none of it is the developer's.
_FOREIGN: Final = (Path(os.__file__).parent, Path(__file__).parents[1])
_INSTALLED: Final = frozenset({"site-packages", "dist-packages"})


def cause_in_app(error: BaseException) -> str:
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
