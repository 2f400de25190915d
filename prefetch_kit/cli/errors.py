"""What the error of a command becomes: a sentence and an exit code."""

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, Signals
from typing import Any, Final

import click

from prefetch_kit.cli.output import print_json
from prefetch_kit.cli.signals import number_of, signals_raised
from prefetch_kit.cli.streams import CLOSED, keep_streams_going, output_problem
from prefetch_kit.cli.usage import unquoted
from prefetch_kit.errors import NotConfirmed, PrefetchKitError

FAILED: Final = 1
CHANGES_FOUND: Final = 3


class CommandFailed(click.ClickException):
    """Ends a command with a sentence and exit code 1. `error` names the class of the error."""

    def __init__(self, message: str, *, error: str | None = None) -> None:
        super().__init__(message)
        self.error = error or type(self).__name__


class NothingDone(CommandFailed):
    """Ends a command of a fleet of which nothing was done."""

    exit_code = 4


class NotYetConfirmed(CommandFailed):
    """Ends a command that set something which WeChat does not show yet."""

    exit_code = 5


class Interrupted(CommandFailed):
    """Ends a command at once, because of a signal, with the exit code that shells give it."""

    def __init__(self, interrupt: KeyboardInterrupt, sentence: str = "") -> None:
        number = number_of(interrupt)
        how = "Interrupted" if number == SIGINT else f"Ended by {Signals(number).name}"
        super().__init__(f"{how}. {sentence}".rstrip())
        self.exit_code = 128 + number  # type: ignore[misc]  # click says ClassVar


class RefusalPrinted(CommandFailed):
    """Ends a command that printed what WeChat answered as its record already."""


class AppMissing(CommandFailed):
    """`--app` names no app, or there is none where Flask looks for one."""


def failure_of(error: Exception, *, nothing_done: bool = False) -> CommandFailed:
    """What a command ends with after an error. `nothing_done`: in a fleet, no app is done yet."""
    name = type(error).__name__
    if isinstance(error, OSError):
        return CommandFailed(f"Input or output failed: {error.strerror}.", error=name)
    if isinstance(error, NotConfirmed):
        return NotYetConfirmed(str(error), error=name)
    return (NothingDone if nothing_done else CommandFailed)(str(error), error=name)


class CommandGroup(click.Group):
    """Ends a command that fails with one sentence. Errors of usage stay click's own, with 2.

    With --json the error is a record on standard output too.
    """

    nothing_done = False

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        keep_streams_going()  # before --help is printed
        try:
            return super().make_context(*args, **kwargs)
        except click.UsageError as error:
            raise unquoted(error) from None

    def invoke(self, ctx: click.Context) -> Any:
        is_outermost = ctx.parent is None or not isinstance(ctx.parent.command, CommandGroup)
        if not is_outermost:
            return self._invoke(ctx)
        as_json = "--json" in ctx.args
        try:
            with signals_raised():
                return self._invoke(ctx)
        except click.ClickException as error:
            if as_json and not isinstance(error, RefusalPrinted):
                _print_error(error)
            raise
        finally:
            problem = output_problem()
            # A reader like `head` that has read enough of a text is no failure.
            if problem is not None and (as_json or problem not in CLOSED):
                click.echo(f"Not all was printed: standard output failed ({problem}).", err=True)

    def _invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            raise unquoted(error) from None
        except (PrefetchKitError, OSError) as error:
            failure = failure_of(error, nothing_done=self.nothing_done)
        except KeyboardInterrupt as interrupt:
            failure = Interrupted(interrupt)
        raise failure  # outside of the handler, so that no traceback leads to the error


class FleetGroup(CommandGroup):
    """Ends its commands with the exit code that says that nothing was done."""

    nothing_done = True


def _print_error(error: click.ClickException) -> None:
    print_json(
        {
            "type": "error",
            "error": getattr(error, "error", type(error).__name__),
            "message": error.format_message(),
            "exit_code": error.exit_code,
        }
    )


def confirmed(
    question: str, *, failure: type[CommandFailed] = CommandFailed, shown: Callable[[], object]
) -> bool:
    """Print with `shown`, and ask the person at the terminal.

    Raises this failure where nobody can be asked, or where the question cannot be read.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise failure("Nobody is here to answer; add --yes.")
    shown()
    click.echo(f"{question} [y/N]:", nl=False)
    if (problem := output_problem()) is not None:
        raise failure(
            f"Nothing was sent: the question cannot be shown, as standard output failed "
            f"({problem}). Add --yes to go on without it."
        )
    return click.confirm("", prompt_suffix=" ", show_default=False)


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
