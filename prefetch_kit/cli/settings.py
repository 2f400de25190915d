"""The calls of WeChat's fetchdatasetting page, one command each, every field a flag."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import click

from prefetch_kit.cli.app import LoadedApp
from prefetch_kit.cli.commands import ask, commands, print_done, with_app
from prefetch_kit.cli.errors import RefusalPrinted
from prefetch_kit.cli.interrupts import sets_explained
from prefetch_kit.cli.options import as_json_option, wait_option, with_guards, yes_option
from prefetch_kit.cli.output import print_json
from prefetch_kit.cli.usage import WrongUsage
from prefetch_kit.errors import MayBeSet, Refused, SourceRefused
from prefetch_kit.fetch_setting import KINDS, SOURCES, FetchSetting, Kind
from prefetch_kit.registrar.plan import Guard
from prefetch_kit.weixin.settings import spelled, wire_names


@commands.group()
def settings() -> None:
    """The calls of fetchdatasetting, in WeChat's own spelling.

    As with apply there is a journal, guards and reading back, but no probe. Where WeChat has it
    already, nothing is sent.
    """


@settings.command()
@with_app
@as_json_option
def get(loaded: LoadedApp, *, as_json: bool) -> None:
    """Get what WeChat has now (action get)."""
    registrar = loaded.registrar()
    with _refusal_printed(as_json=as_json):
        found = registrar.read()
    fields = {
        name: value for kind in KINDS for name, value in spelled(kind, found.for_kind(kind)).items()
    }
    if as_json:
        _print_success(fields)
        return
    if not fields:
        click.echo("WeChat has nothing configured.", err=True)
    for name, value in fields.items():
        click.echo(f"{name} = {str(value).lower() if isinstance(value, bool) else value}")


def _add_set_command(kind: Kind) -> None:
    names = wire_names(kind)
    flags = {name: f"--{wire.replace('_', '-')}" for name, wire in names.items()}

    @settings.command(
        f"set-{kind.replace('_', '-')}", help=f"Set where {kind} comes from (action set_{kind})."
    )
    @with_app
    @click.option(flags["open"], "is_open", type=bool, required=True, help="true: on, false: off.")
    @click.option(
        flags["source"],
        "source",
        type=click.IntRange(0, 1),
        metavar="0|1",
        required=True,
        help="0: developer server, 1: cloud function.",
    )
    @click.option(flags["url"], "url", metavar="URL", help="With type 0.")
    @click.option(flags["env"], "env", metavar="ENV", help="With type 1: the environment's id.")
    @click.option(flags["function_name"], "function_name", metavar="NAME", help="With type 1.")
    @with_guards("disable", "takeover")
    @yes_option
    @wait_option
    @as_json_option
    def set_command(
        loaded: LoadedApp,
        *,
        is_open: bool,
        source: int,
        allow: Collection[Guard],
        yes: bool,
        wait_s: float | None,
        as_json: bool,
        **texts: str | None,
    ) -> None:
        try:
            wanted = FetchSetting(is_open, SOURCES[source], **texts).checked()
        except SourceRefused as error:
            raise WrongUsage(f"{flags[error.field]}: it {error.problem}. {error.remedy}.") from None
        if wanted.open and wanted.source == "server":
            loaded.demand_handler(kind, flags["url"])
        registrar = loaded.registrar(wait_s=wait_s)
        with _refusal_printed(as_json=as_json), sets_explained(loaded):
            done = registrar.apply(
                {kind: wanted}, allow=allow, approve=lambda found: ask(found, yes=yes)
            )
        if as_json:
            _print_success(spelled(kind, wanted))
        else:
            print_done(done, as_json=False)


for _kind in KINDS:
    _add_set_command(_kind)


@contextmanager
def _refusal_printed(*, as_json: bool) -> Iterator[None]:
    """With --json, print a refusal as WeChat gave it."""
    try:
        yield
    except (Refused, MayBeSet) as error:
        said = error.error if isinstance(error, MayBeSet) else error
        if not (as_json and isinstance(said, Refused)):
            raise
        print_json({"errcode": said.errcode, "errmsg": said.errmsg})
        failure = RefusalPrinted(str(error))
    else:
        return
    raise failure  # outside of the handler, so that no traceback leads to the error


def _print_success(fields: dict[str, object]) -> None:
    print_json({"errcode": 0, "errmsg": "ok", **fields})
