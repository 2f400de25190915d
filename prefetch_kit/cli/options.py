"""Options that several commands share, for one mini program and for many."""

from collections.abc import Callable, Collection, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click

from prefetch_kit.cli.usage import ValueRefused, WrongUsage
from prefetch_kit.errors import SourceRefused
from prefetch_kit.fetch_setting import KINDS, Kind
from prefetch_kit.fleet.project_schema import read_wait
from prefetch_kit.fleet.selection import Selection, read_names
from prefetch_kit.registrar.plan import Guard

_Command = Callable[..., Any]

FILE: Final = click.Path(dir_okay=False, path_type=Path)
as_json_option = click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
out_option = click.option(
    "--out", type=FILE, metavar="FILE", help="Save the plan to FILE, for apply FILE."
)
to_option = click.option(
    "--to", type=int, metavar="RUN", help="Undo this run and all later ones.  [default: the last]"
)
detailed_option = click.option(
    "--detailed-exitcode", is_flag=True, help="Exit with 3 where something is to be set."
)
yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def with_selection(command: _Command) -> _Command:
    """Give a command --only and --exclude, which are its `selection`."""

    @wraps(command)
    def selecting(*args: Any, **kwargs: Any) -> Any:
        only, exclude = read_names(kwargs.pop("only")), read_names(kwargs.pop("exclude"))
        return command(*args, selection=Selection(only or None, exclude), **kwargs)

    which = "an appid, or a file of them (one a line, or a column appid). Repeatable."
    for name, says in (("--exclude", "Leave these out"), ("--only", "Only these")):
        option = click.option(name, multiple=True, metavar="APPID|FILE", help=f"{says}: {which}")
        selecting = option(selecting)
    return selecting


_GUARDS: Final[Mapping[Guard, str]] = {
    "disable": "Let a pull that is on be switched off.",
    "takeover": "Let what somebody else set be replaced.",
}


def with_guards(*guards: Guard) -> Callable[[_Command], _Command]:
    """Give a command the flags that lift these guards; the lifted guards are its `allow`."""

    def decorate(function: _Command) -> _Command:
        @wraps(function)
        def command(*args: Any, **kwargs: Any) -> Any:
            allow = frozenset(guard for guard in guards if kwargs.pop(f"allow_{guard}"))
            return function(*args, allow=allow, **kwargs)

        for guard in reversed(guards):
            command = click.option(f"--allow-{guard}", is_flag=True, help=_GUARDS[guard])(command)
        return command

    return decorate


def with_sources(read: Callable[[str], Any], *, help: str) -> Callable[[_Command], _Command]:  # noqa: A002 (as click has it)
    """Give a command a flag for each kind of pull; `read` turns their values into `sources`."""

    def decorate(function: _Command) -> _Command:
        @wraps(function)
        def command(*args: Any, **kwargs: Any) -> Any:
            given = {kind: kwargs.pop(kind) for kind in KINDS}
            sources = {kind: source for kind, source in given.items() if source is not None}
            return function(*args, sources=sources, **kwargs)

        callback = read_by(read, subject="it ")
        for kind in reversed(KINDS):
            flag = click.option(flag_of(kind), callback=callback, metavar="SOURCE", help=help)
            command = flag(command)
        return command

    return decorate


def read_by(read: Callable[[str], Any], *, subject: str = "") -> Callable[..., Any]:
    """A callback that reads an option's value; `subject` begins the sentence of a ValueError."""

    def callback(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
        try:
            return None if value is None else read(value)
        except SourceRefused as error:
            sentence = f"it {error.problem}. {error.remedy}."
        except ValueError as error:
            sentence = f"{subject}{error}."
        raise ValueRefused(sentence)

    return callback


wait_option = click.option(
    "--wait",
    "wait_s",
    callback=read_by(read_wait),
    metavar="60s",
    help="How long WeChat may take to show what was set, in seconds.  [default: 60s]",
)


def flag_of(kind: Kind) -> str:
    """The flag for the source of this kind of pull, for this one command."""
    return f"--{kind.replace('_', '-')}"


def refuse_sources_beside(saved: Path | None, sources: Collection[Kind]) -> None:
    """Raise `WrongUsage` for flags that contradict a saved plan."""
    if saved is not None and sources:
        flags = ", ".join(map(flag_of, sources))
        raise WrongUsage(f"The saved plan says where to fetch from; leave out {flags}.")
