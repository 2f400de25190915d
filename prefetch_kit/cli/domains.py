"""The commands for business domains (业务域名)."""

import sys
from collections.abc import Collection
from functools import partial

import click

from prefetch_kit.cli.app import LoadedApp
from prefetch_kit.cli.commands import commands, confirm, with_app
from prefetch_kit.cli.errors import FAILED
from prefetch_kit.cli.interrupts import adding_explained
from prefetch_kit.cli.options import as_json_option, yes_option
from prefetch_kit.cli.output import print_standing
from prefetch_kit.registrar.domains import DomainStatus


@commands.group()
def domains() -> None:
    """Look at the business domains (业务域名) of the app's host, and add it to them."""


@domains.command()
@with_app
@as_json_option
def show(loaded: LoadedApp, *, as_json: bool) -> None:
    """Show whether WeChat would pull from this app's hosts. Changes nothing."""
    standings = [loaded.domains(host).inspect() for host in loaded.hosts]
    _print_and_exit(standings, as_json=as_json)


@domains.command()
@with_app
@yes_option
@as_json_option
@click.option("--directly", is_flag=True, help="Not through the platform; counts once released.")
@click.option("--skip-probe", is_flag=True, help="Let only WeChat look for the confirm file.")
def ensure(
    loaded: LoadedApp, *, yes: bool, as_json: bool, directly: bool, skip_probe: bool
) -> None:
    """Add this app's hosts wherever they are missing, and read back that they are there."""
    standings = []
    for host in loaded.hosts:
        wanted = loaded.domains(host)
        standing = wanted.inspect()
        if standing.broken:
            confirm("Add it?", yes=yes, shown=partial(print_standing, standing, as_json=False))
            with adding_explained(host):
                standing = wanted.ensure(directly=directly, checks_file=not skip_probe)
        standings.append(standing)
    _print_and_exit(standings, as_json=as_json)


def _print_and_exit(standings: Collection[DomainStatus], *, as_json: bool) -> None:
    """Print how hosts stand; the exit code is 1 where one of them does not count."""
    for standing in standings:
        print_standing(standing, as_json=as_json)
    if any(standing.broken for standing in standings):
        sys.exit(FAILED)
