"""The commands for many mini programs, from prefetch.toml. They need no Flask app."""

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from itertools import chain
from pathlib import Path
from typing import Any, Final

import click

from prefetch_kit.cli.errors import (
    CommandFailed,
    FleetGroup,
    Interrupted,
    NothingDone,
    confirmed,
    failure_of,
)
from prefetch_kit.cli.fleet_output import Printer, print_status
from prefetch_kit.cli.options import (
    FILE,
    as_json_option,
    detailed_option,
    out_option,
    read_by,
    refuse_sources_beside,
    to_option,
    wait_option,
    with_guards,
    with_selection,
    with_sources,
    yes_option,
)
from prefetch_kit.cli.output import counted
from prefetch_kit.cli.report import check_name, write_report
from prefetch_kit.cli.usage import WrongUsage
from prefetch_kit.errors import PrefetchKitError
from prefetch_kit.fleet.history import rate_of, results_of, tally_of
from prefetch_kit.fleet.project import load_project
from prefetch_kit.fleet.project_schema import read_rate, read_share
from prefetch_kit.fleet.run import Fleet, Limits
from prefetch_kit.fleet.selection import Selection
from prefetch_kit.fleet.workers import Summary
from prefetch_kit.quoting import harmless
from prefetch_kit.registrar.plan import Guard
from prefetch_kit.registrar.template import PullTemplate, Template


@click.group(cls=FleetGroup)
def fleet() -> None:
    """Many mini programs at once, from prefetch.toml.

    Exit codes: 0 all done, 1 some are not, 2 wrong usage, 3 something is to be set
    (--detailed-exitcode), 4 nothing could be done. 5 and 75: nothing failed, but some are set and
    not yet confirmed, or deferred; run it again, later for 75. Killed or stopped, run the same
    command again. A second Ctrl-C ends at once, with 130.

    What is in the table [fleet] of prefetch.toml is the default of the option of that name.
    """


_config_option = click.option(
    "--config", type=FILE, default="prefetch.toml", show_default=True, help="What the fleet is."
)
_max_changes_option = click.option(
    "--max-changes",
    type=click.IntRange(0),
    metavar="N",
    help="Send no more than N changes.  [default: no limit]",
)
_PACE: Final = {
    "workers": click.option(
        "--workers", type=click.IntRange(1, 512), metavar="N", help="Calls at once.  [default: 32]"
    ),
    "rate": click.option(
        "--rate",
        callback=read_by(read_rate),
        metavar="N",
        help="Calls a second, in all.  [default: no limit]",
    ),
    "canary": click.option(
        "--canary",
        type=click.IntRange(0),
        metavar="N",
        help="Do the first N, and the others only if those are done.  [default: 5, rollback 0]",
    ),
    "stop_at": click.option(
        "--stop-at",
        callback=read_by(read_share),
        metavar="10%",
        help="Begin no more at this share of failures.  [default: 10%]",
    ),
    "wait_s": wait_option,
}


def _with_fleet(*pace: str, **defaults: Any) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Give a command `--config`, `--json` and these flags, the fleet for them, and a printer.

    `defaults` and the `sources` of a command override the project.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., None]:
        @_config_option
        @as_json_option
        @with_selection
        @wraps(function)
        def command(
            *args: Any, config: Path, as_json: bool, selection: Selection, **options: Any
        ) -> None:
            given = {name: options.pop(name) for name in pace}
            sources = options.pop("sources", {})
            refuse_sources_beside(options.get("saved"), sources)
            project = load_project(config)
            project = replace(project, pulls={**project.pulls, **sources})
            wanted = {name: value for name, value in given.items() if value is not None}
            pace_here = replace(project.pace, **(defaults | wanted))
            printer = Printer(as_json=as_json)
            made = Fleet(project, printer, pace=pace_here, selection=selection)
            function(made, printer, *args, **options)

        for name in reversed(pace):
            command = _PACE[name](command)
        return command

    return decorate


_with_sources: Final = with_sources(
    lambda text: PullTemplate((Template(text),)),
    help="For once: https://…/{appid}, cloud:ENV/NAME, {column}, or off.",
)


_AT_ONCE: Final = (
    "What was under way may have been set, or not. Run the same command again to go on, or "
    "`fleet rollback` to undo what was set; `fleet status` says how far it came."
)


def run_fleet(printer: Printer, go: Callable[[], Summary]) -> Summary:
    """Run a fleet to its end. After Ctrl-C, SIGTERM or SIGHUP it ends in order too."""
    failure: CommandFailed
    try:
        summary = go()
    except PrefetchKitError as error:
        failure = failure_of(error, nothing_done=not (printer.sends or printer.counts["done"]))
    except KeyboardInterrupt as interrupt:
        failure = Interrupted(interrupt, _AT_ONCE if printer.sends else "Nothing was sent.")
    else:
        printer.end()
        printer.summary(summary)
        return summary
    finally:
        printer.end()
    raise failure


@fleet.command()
@_with_sources
@_with_fleet("workers", "rate")
@out_option
@detailed_option
def plan(made: Fleet, printer: Printer, *, out: Path | None, detailed_exitcode: bool) -> None:
    """Show what apply would change. Changes nothing."""
    printer.tells_changes = detailed_exitcode
    summary = run_fleet(printer, lambda: made.plan(out=out))
    if out is not None and summary.stopped_because is not None:
        click.echo(
            f"Nothing was written to {harmless(out)}: it would be a part of the plan.", err=True
        )
    sys.exit(printer.exit_code(summary))


@fleet.command()
@_with_sources
@_with_fleet("workers", "rate", "canary", "stop_at", "wait_s")
@click.argument("saved", metavar="[FILE]", type=FILE, required=False)
@yes_option
@with_guards("disable", "takeover")
@click.option(
    "--ensure-domain", is_flag=True, help="Add hosts to the business domains (业务域名) first."
)
@_max_changes_option
def apply(made: Fleet, printer: Printer, saved: Path | None, *, yes: bool, **limits: Any) -> None:
    """Make WeChat fetch from the sources of the file or a saved plan, and read that back."""
    _ask("Set what WeChat pulls for every mini program of the list?", yes=yes)
    sys.exit(run_fleet(printer, lambda: made.apply(Limits(**limits), saved=saved)).exit_code)


@fleet.command()
@_with_fleet("workers", "rate", "canary", "stop_at", "wait_s", canary=0)
@to_option
@yes_option
@with_guards("takeover")
@_max_changes_option
def rollback(
    made: Fleet,
    printer: Printer,
    *,
    to: int | None,
    yes: bool,
    allow: frozenset[Guard],
    max_changes: int | None,
) -> None:
    """Restore what WeChat had before the last apply of a fleet, or before an earlier run.

    Without --canary it has no canaries, because it restores what worked before.
    """
    _ask("Undo it for every mini program it changed?", yes=yes)
    limits = Limits(allow, max_changes)
    sys.exit(run_fleet(printer, lambda: made.rollback(limits, to=to)).exit_code)


@fleet.command()
@_with_fleet("workers", "rate")
@click.option("--live", is_flag=True, help="Ask WeChat too, with one read an app.")
@detailed_option
def status(made: Fleet, printer: Printer, *, live: bool, detailed_exitcode: bool) -> None:
    """Show the outcome of the last run, by cause; with --live also what WeChat has now.

    --only, --exclude and --detailed-exitcode are about what --live finds.
    """
    if detailed_exitcode and not live:
        raise WrongUsage("--detailed-exitcode is about what WeChat has now; add --live.")
    history, holder = made.history, made.holder
    record = history.last_fleet()
    if record is None:
        raise NothingDone("No fleet has run with this configuration.")
    tally = tally_of(history, record.id, is_running=holder is not None)
    rate = rate_of(history, record)
    print_status(record, tally, holder=holder, rate=rate, as_json=printer.as_json)
    if live:
        printer.tells_changes = detailed_exitcode
        sys.exit(printer.exit_code(run_fleet(printer, made.plan)))


@fleet.command()
@_config_option
@as_json_option
@click.argument("run", type=int, required=False)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, allow_dash=True, path_type=Path),
    metavar="FILE",
    default="-",
    help="A .csv, .json or .jsonl file; - is standard output.  [default: -]",
)
def report(config: Path, *, as_json: bool, run: int | None, out: Path) -> None:
    """Write what became of each app in a run of a fleet: RUN, or the last one.

    Outcome, cause, time (UTC), and for each kind of pull what was set, what WeChat had before, and
    how far that came. Of an older run, apps that a later one came to are only there if something
    was to be set for them.
    """
    check_name(out)
    made = Fleet(load_project(config))
    last = made.history.last_fleet()
    number = run or (last.id if last is not None else 0)
    is_running = made.holder is not None and last is not None and number == last.id
    rows = results_of(made.history, number, is_running=is_running)
    if (first := next(rows, None)) is None:
        raise NothingDone("No fleet has come to any app in that run. fleet status names the last.")
    count = write_report(chain([first], rows), number, out, as_json=as_json)
    if str(out) != "-":
        click.echo(f"{out} has {counted(count, 'mini program')} of run {number}.", err=True)


def _ask(question: str, *, yes: bool) -> None:
    if not (yes or confirmed(question, failure=NothingDone, shown=lambda: None)):
        raise NothingDone("Nothing was sent.")
