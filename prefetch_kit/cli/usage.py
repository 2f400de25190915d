"""What is said of words that no command takes. None of them is repeated: it may be a secret."""

from collections.abc import Mapping
from typing import Final

import click

# Whose sentence is click's own, and quotes no word that was typed.
_QUOTES_NOTHING: Final = (
    click.MissingParameter,
    click.BadOptionUsage,
    click.BadArgumentUsage,
    # Since click 8.2; before, a group without a command shows its help and ends with 0.
    *filter(None, [getattr(click.exceptions, "NoArgsIsHelpError", None)]),
)
_WANTED: Final[Mapping[str, str]] = {
    "boolean": "it is neither true nor false",
    "filename": "it names no file that can be read",
    "path": "it names no file that can be used here",
}


class WrongUsage(click.UsageError):
    """The words of a command are wrong. The sentence quotes none of them."""

    error = "UsageError"  # its name for --json


class ValueRefused(click.BadParameter):
    """The value of an option or argument is wrong. The sentence does not quote it."""

    error = "BadParameter"


def unquoted(error: click.UsageError) -> click.UsageError:
    """The same error without the words that click quotes."""
    if isinstance(error, (WrongUsage, ValueRefused, *_QUOTES_NOTHING)):
        return error
    if isinstance(error, click.BadParameter):
        kind = error.param.type if error.param is not None else None
        return ValueRefused(f"{_wanted(kind)}.", error.ctx, error.param, error.param_hint)
    told = WrongUsage(_sentence(error), error.ctx)
    told.error = type(error).__name__
    return told


def _sentence(error: click.UsageError) -> str:
    if isinstance(error, click.NoSuchOption):
        near = f" Is {' or '.join(error.possibilities)} meant?" if error.possibilities else ""
        return f"There is no such option.{near}"
    if error.ctx is not None and isinstance(error.ctx.command, click.Group):
        known = ", ".join(error.ctx.command.list_commands(error.ctx))
        return f"There is no such command. The commands are {known}."
    return "There is a word too many."


def _wanted(kind: object) -> str:
    """What is wrong with a value that a type of click's does not take."""
    if isinstance(kind, click.Choice):
        return f"it is none of {', '.join(map(str, kind.choices))}"
    if isinstance(kind, click.IntRange):
        end = "" if kind.max is None else f" to {kind.max}"
        return f"it is not a whole number from {kind.min}{end}"
    if isinstance(kind, click.types.IntParamType):
        return "it is not a whole number"
    return _WANTED.get(getattr(kind, "name", ""), "it cannot be used here")
