"""The commands for one app, and what they share with the other modules of commands."""

import sys
from collections.abc import Callable, Collection
from functools import partial, wraps
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import click
from flask.cli import ScriptInfo, load_dotenv, pass_script_info
from flask.helpers import get_load_dotenv

from prefetch_kit.cli.app import LoadedApp, Sources, load_app, project_of
from prefetch_kit.cli.errors import CHANGES_FOUND, FAILED, CommandFailed, CommandGroup, confirmed
from prefetch_kit.cli.fleet import fleet, run_fleet
from prefetch_kit.cli.fleet_output import Printer
from prefetch_kit.cli.interrupts import adding_explained, sets_explained
from prefetch_kit.cli.options import (
    FILE,
    as_json_option,
    detailed_option,
    out_option,
    refuse_sources_beside,
    to_option,
    wait_option,
    with_guards,
    with_selection,
    with_sources,
    yes_option,
)
from prefetch_kit.cli.output import (
    HandlerRow,
    print_handlers,
    print_plan,
    print_probe,
    print_settings,
)
from prefetch_kit.cli.usage import ValueRefused, WrongUsage
from prefetch_kit.endpoint.app_state import process_of, state_of
from prefetch_kit.errors import ProbeFailed, Refused, TokenSourceError, WeixinError
from prefetch_kit.fetch_setting import FetchSetting
from prefetch_kit.fleet.imported import check_free, write_project
from prefetch_kit.fleet.run import Fleet
from prefetch_kit.fleet.selection import Selection
from prefetch_kit.quoting import harmless
from prefetch_kit.registrar.plan import Guard, OffIfFrom, Plan
from prefetch_kit.registrar.plan_file import check_directory, write_plans
from prefetch_kit.registrar.probe import probe
from prefetch_kit.version import __version__
from prefetch_kit.weixin.errcodes import SET_BY_HAND

_Command = Callable[..., Any]
# With which of these WeChat refuses a mini program's own token, if it does, is not known.
_NOT_PERMITTED: Final = frozenset({48001, 61003, 61007, 61014, 61015})
_OWN_TOKEN_NOTE: Final = (
    "Not known before it is tried: whether WeChat takes the mini program's own access token for "
    f"a change. {SET_BY_HAND}."
)


@click.group("prefetch", cls=CommandGroup)
def commands() -> None:
    """Serve WeChat's data pre-fetch (数据预拉取) and register it.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something is to be set (--detailed-exitcode),
    5 set, but not yet confirmed, 130, 143 and 129 ended by Ctrl-C, SIGTERM and SIGHUP.
    """


commands.add_command(fleet)


def with_app(function: _Command) -> _Command:
    """Give a command `--appid`, `--endpoint` and the app that they select."""

    @click.option("--appid", metavar="APPID", help="Which mini program, where there are several.")
    @click.option("--endpoint", metavar="NAME", help="Which blueprint, where there are several.")
    @pass_script_info
    @wraps(function)
    def command(
        info: ScriptInfo, /, *args: Any, appid: str | None, endpoint: str | None, **kwargs: Any
    ) -> None:
        loaded = LoadedApp(load_app(info), appid=appid, endpoint=endpoint)
        try:
            function(loaded, *args, **kwargs)
        except Refused as error:
            if error.errcode not in _NOT_PERMITTED or not loaded.uses_own_token:
                raise
            refused = error
        else:
            return
        # Outside of the handler, so that no traceback leads to the first error.
        raise refused.with_remedy(SET_BY_HAND)

    return command


def _check_url(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    try:
        urlsplit(value or "")
    except ValueError:
        raise ValueRefused("it is not a URL.") from None
    return value


def _read_source(text: str) -> FetchSetting | Literal["app"]:
    return "app" if text == "app" else FetchSetting.parse(text)


_SOURCES: Final = "For once: app (its own URL), https://…, cloud:ENV/NAME, or off."
url_argument = click.argument("url", required=False, callback=_check_url)


@commands.command()
@with_app
@as_json_option
def show(loaded: LoadedApp, *, as_json: bool) -> None:
    """Show what WeChat has configured now."""
    print_settings(loaded.appid, loaded.registrar().read(), as_json=as_json)


@commands.command()
@with_app
@as_json_option
@with_sources(_read_source, help=_SOURCES)
@detailed_option
@out_option
def plan(
    loaded: LoadedApp,
    *,
    sources: Sources,
    as_json: bool,
    detailed_exitcode: bool,
    out: Path | None,
) -> None:
    """Show what apply would change. Changes nothing."""
    if out is not None:
        check_directory(out)
    found = loaded.registrar().plan(loaded.wanted(sources))
    if out is not None:
        write_plans(out, [(found.appid, found.changes)], wechat=loaded.wechat)
    print_plan(found, as_json=as_json)
    if found.changes and loaded.uses_own_token:
        click.echo(_OWN_TOKEN_NOTE, err=True)
    if detailed_exitcode and found.changes:
        sys.exit(CHANGES_FOUND)


@commands.command()
@with_app
@click.argument("saved", metavar="[FILE]", type=FILE, required=False)
@yes_option
@as_json_option
@with_sources(_read_source, help=_SOURCES)
@with_guards("disable", "takeover")
@click.option("--skip-probe", is_flag=True, help="Do not pull from there first.")
@click.option(
    "--skip-preflight", is_flag=True, help="Do not look at the business domains (业务域名)."
)
@click.option(
    "--ensure-domain", is_flag=True, help="Add its host to the business domains (业务域名) first."
)
@click.option(
    "--directly",
    is_flag=True,
    help="With --ensure-domain: not through the platform; it counts once released.",
)
@wait_option
def apply(
    loaded: LoadedApp,
    saved: Path | None,
    *,
    sources: Sources,
    allow: Collection[Guard],
    yes: bool,
    as_json: bool,
    skip_probe: bool,
    skip_preflight: bool,
    ensure_domain: bool,
    directly: bool,
    wait_s: float | None,
) -> None:
    """Make WeChat fetch from the sources of this app or a saved plan, and read that back."""
    if directly and not ensure_domain:
        raise WrongUsage("--directly says how to --ensure-domain; add that too.")
    refuse_sources_beside(saved, sources)

    def approve(found: Plan) -> None:
        if not skip_probe:
            _probe_changed(loaded, found)
        if not (ensure_domain or skip_preflight):
            _check_domains(loaded, found)
        ask(found, yes=yes)
        if ensure_domain:
            for host in found.hosts:
                domains = loaded.domains(host)
                with adding_explained(host):
                    domains.ensure(directly=directly, checks_file=not skip_probe).check()

    registrar = loaded.registrar(wait_s=wait_s)
    with sets_explained(loaded):
        if saved is None:
            done = registrar.apply(loaded.wanted(sources), allow=allow, approve=approve)
        else:
            changes = loaded.saved_changes(saved)
            done = registrar.apply_changes(changes, allow=allow, approve=approve)
    print_done(done, as_json=as_json)


@commands.command()
@with_app
@yes_option
@as_json_option
@with_guards("takeover")
@to_option
@wait_option
def rollback(
    loaded: LoadedApp,
    *,
    yes: bool,
    as_json: bool,
    allow: Collection[Guard],
    to: int | None,
    wait_s: float | None,
) -> None:
    """Restore what WeChat had before the last apply, or before an earlier run."""
    since = loaded.journal.last_applied(loaded.appid) if to is None else to

    def approve(found: Plan) -> None:
        if not as_json:
            later = "" if to is None else ", and all later ones"
            click.echo(f"This undoes run {since}{later}.", err=True)
        ask(found, yes=yes)

    with sets_explained(loaded, next_step="Run the same rollback again to finish it"):
        done = loaded.registrar(wait_s=wait_s).rollback(to=to, allow=allow, approve=approve)
    print_done(done, as_json=as_json)


@commands.command("import")
@with_app
@as_json_option
@click.option(
    "--authorized",
    is_flag=True,
    help="All merchants of the third-party platform, not only this app's mini program.",
)
@with_selection
@click.option(
    "--out",
    type=FILE,
    default="prefetch.toml",
    show_default=True,
    help="The file to write, with a .csv of the same name beside it.",
)
def import_command(
    loaded: LoadedApp, *, as_json: bool, authorized: bool, selection: Selection, out: Path
) -> None:
    """Write prefetch.toml from what WeChat has now, for the fleet commands."""
    if not (authorized or selection.is_all):
        raise WrongUsage("--only and --exclude choose among merchants; add --authorized.")
    check_free(out)
    project, printer = project_of(loaded.config, out), Printer(as_json=as_json)
    made = Fleet(project, printer, selection=selection)
    appids = None if authorized else [loaded.appid]
    done = run_fleet(printer, lambda: made.read(appids, partial(write_project, project)))
    if done.stopped_because is not None:
        click.echo(f"Nothing was written to {harmless(out)}: it would be a part of them.", err=True)
    elif not done.tally["done"]:
        click.echo(f"Nothing was written to {harmless(out)}: none could be read.", err=True)
    elif count := done.apps - done.tally["done"] - done.tally["skipped"]:
        names = ", ".join(printer.not_done) + (", …" if count > len(printer.not_done) else "")
        listed = out.with_suffix(".csv")
        click.echo(f"{count} could not be read, and are not in {listed}: {names}", err=True)
    sys.exit(done.exit_code)


def _probe_changed(loaded: LoadedApp, found: Plan) -> None:
    """Pull from the new sources before anything is sent."""
    for change in found.changes:
        if not change.after.open:
            continue
        probed = loaded.probe(change.kind, change.after)
        print_probe(probed, err=True)
        if probed.problems:
            raise ProbeFailed(probed.url, probed.problems)


def _check_domains(loaded: LoadedApp, found: Plan) -> None:
    """Raise `DomainMissing` where WeChat would not pull from a new host, as far as is known.

    If that cannot be found out, a warning is printed and WeChat decides.
    """
    if not loaded.tokens.are_of_platform(loaded.appid):
        return
    for host in found.hosts:
        try:
            standing = loaded.domains(host).inspect()
        except (WeixinError, TokenSourceError) as error:
            click.echo(f"The business domains could not be looked at: {error}", err=True)
            return
        standing.check()


def ask(found: Plan, *, yes: bool) -> None:
    if found.changes:
        confirm("Send this to WeChat?", yes=yes, shown=lambda: print_plan(found))


def confirm(question: str, *, yes: bool, shown: Callable[[], None]) -> None:
    """Print with `shown`, then ask the person at the terminal; not with --yes."""
    if not (yes or confirmed(question, shown=shown)):
        raise CommandFailed("Nothing was sent.")


def print_done(done: Plan, *, as_json: bool) -> None:
    print_plan(done, as_json=as_json, applied=bool(done.changes))
    if done.changes and not as_json:
        click.echo("Done, and read back from WeChat.")


@commands.command("probe")
@with_app
@url_argument
@as_json_option
def probe_command(loaded: LoadedApp, url: str | None, *, as_json: bool) -> None:
    """Pull URL, or the app's own URLs, the way WeChat will, and judge the answers."""
    if url is None:
        results = [
            loaded.probe(kind, wanted.setting if isinstance(wanted, OffIfFrom) else wanted)
            for kind, wanted in loaded.wanted().items()
        ]
    else:
        results = [probe(loaded.transport, url, appid=loaded.appid, kind="pre_fetch", page=None)]
    for probed in results:
        print_probe(probed, as_json=as_json)
    if any(probed.problems for probed in results):
        sys.exit(FAILED)


@commands.command()
@as_json_option
@pass_script_info
def routes(info: ScriptInfo, *, as_json: bool) -> None:
    """List the endpoints, their pages and handlers, and what cached handlers have read.

    What they read is known only where they share their answers through Redis.
    """
    app = load_app(info)
    cache = process_of(app).cache
    rows = [
        HandlerRow(
            endpoint=route.endpoint,
            rule=rule.rule,
            kind=route.kind,
            page=each.handler.page,
            handler=each.handler.name,
            login_required=each.handler.login_required,
            cached=each.handler.cache is not None,
            reads=cache.read_sets(each.scope) if each.scope else (),
        )
        for route in state_of(app).routes
        for rule in app.url_map.iter_rules(route.endpoint)
        for each in route
    ]
    print_handlers(rows, as_json=as_json)


@commands.command()
@with_app
@click.argument("user_id")
def token(loaded: LoadedApp, user_id: str) -> None:
    """Mint a background token for USER_ID, as the app's login would."""
    click.echo(loaded.issue_token(user_id))


class _Program(CommandGroup):
    """Reads `.env` and `.flaskenv` first, where `flask` would."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            if get_load_dotenv():
                load_dotenv()
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", None) or "it is not UTF-8 text"
        else:
            return super().parse_args(ctx, args)
        raise CommandFailed(f"A .env or .flaskenv cannot be read: {cause}.")


@click.group("prefetch-kit", cls=_Program, commands=commands.commands)
@click.option(
    "--app", metavar="IMPORT", envvar="FLASK_APP", help="The Flask app, as for flask --app."
)
@click.version_option(__version__)
@click.pass_context
def program(ctx: click.Context, app: str | None) -> None:
    """Serve WeChat's data pre-fetch (数据预拉取) from Flask, and register it.

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 something is to be set (--detailed-exitcode),
    5 set, but not yet confirmed, 130, 143 and 129 ended by Ctrl-C, SIGTERM and SIGHUP.
    """
    ctx.obj = ScriptInfo(app_import_path=app)


def main() -> None:
    program(prog_name="prefetch-kit")
