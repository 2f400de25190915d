"""The commands for the journal itself: copies of it, and less of it."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click
from flask.cli import ScriptInfo, pass_script_info

from prefetch_kit.addresses import wechat_name
from prefetch_kit.cli.app import settings_of
from prefetch_kit.cli.commands import commands, confirm
from prefetch_kit.cli.options import FILE, read_by, yes_option
from prefetch_kit.cli.output import counted
from prefetch_kit.registrar.database import LOCKS
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.registrar.locks import FLEET, Locks
from prefetch_kit.registrar.retention import Pruned
from prefetch_kit.registrar.retention import backup as write_backup
from prefetch_kit.registrar.retention import prune as prune_journal

_AGE: Final = re.compile(r"([0-9]{1,5})d\Z", re.ASCII)


@commands.group()
def journal() -> None:
    """The record of what was changed, which rollback needs.

    It is that of the app, or with --config that of prefetch.toml.
    """


def _with_directory(function: Callable[..., Any]) -> Callable[..., None]:
    """Give a command `--config`, and the directory of the journal that it or the app names."""

    @click.option("--config", type=FILE, metavar="FILE", help="A prefetch.toml, instead of --app.")
    @pass_script_info
    @wraps(function)
    def command(info: ScriptInfo, /, *args: Any, config: Path | None, **kwargs: Any) -> None:
        settings = settings_of(info, config)
        directory = settings.state_dir / wechat_name(settings.api_base_url)
        function(directory, *args, **kwargs)

    return command


def _read_days(text: str) -> timedelta:
    if (found := _AGE.match(text)) is None:
        raise ValueError("is not a number of days such as 90d")
    return timedelta(days=int(found[1]))


@journal.command()
@_with_directory
@click.argument("file", type=FILE)
def backup(directory: Path, file: Path) -> None:
    """Copy it to a new FILE, also while a fleet runs.

    To restore it, end all that uses it and put the copy in its place.
    """
    write_backup(Journal(directory / "journal.sqlite3"), file)
    click.echo(f"Copied {directory / 'journal.sqlite3'} to {file}.")


@journal.command()
@_with_directory
@click.option(
    "--older-than",
    required=True,
    callback=read_by(_read_days, subject="it "),
    metavar="DAYS",
    help="Such as 90d.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@yes_option
def prune(directory: Path, *, older_than: timedelta, dry_run: bool, yes: bool) -> None:
    """Remove old runs, but none that rollback or fleet rollback still needs.

    rollback --to reaches only those that are left. It needs the fleet's lock.
    """
    made, before = Journal(directory / "journal.sqlite3"), datetime.now(UTC) - older_than
    if not made.exists():
        click.echo("There is no journal.", err=True)
        return
    with Locks(directory / LOCKS).hold(FLEET):
        found = prune_journal(made, before=before, dry_run=True)
        what = _described(found)
        if dry_run or not (found.runs or found.changes):
            click.echo(f"To be removed: {what}.")
            return
        confirm("Remove them?", yes=yes, shown=lambda: click.echo(f"To be removed: {what}."))
        done = prune_journal(made, before=before, dry_run=False)
    click.echo(f"Removed {_described(done)}.")


def _described(found: Pruned) -> str:
    return f"{counted(found.runs, 'run')} and {counted(found.changes, 'change')}"
