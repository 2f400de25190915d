"""The commands for business domains (业务域名)."""

import sys

import click

from prefetch_kit.cli.app import AppAtHand
from prefetch_kit.cli.commands import as_json_option, commands, confirm, with_app, yes_option
from prefetch_kit.cli.output import print_standing
from prefetch_kit.cli.preflight import domains_of


@commands.group()
def domains() -> None:
    """Look at the business domains (业务域名) of the app's host, and add it to them."""


@domains.command()
@with_app
@as_json_option
def show(at_hand: AppAtHand, *, as_json: bool) -> None:
    """Show whether WeChat would pull from this app's host. Changes nothing."""
    standing = domains_of(at_hand).inspect()
    print_standing(standing, as_json=as_json)
    if standing.broken:
        sys.exit(1)


@domains.command()
@with_app
@yes_option
@as_json_option
@click.option("--directly", is_flag=True, help="Not through the platform; counts once released.")
@click.option("--skip-probe", is_flag=True, help="Let only WeChat look for the confirm file.")
def ensure(
    at_hand: AppAtHand, *, yes: bool, as_json: bool, directly: bool, skip_probe: bool
) -> None:
    """Add this app's host wherever it is missing, and read back that it is there."""
    wanted = domains_of(at_hand)
    standing = wanted.inspect()
    if standing.broken:
        missing = standing
        confirm("Add it?", yes=yes, shown=lambda: print_standing(missing, as_json=False))
        standing = wanted.ensure(directly=directly, checks_file=not skip_probe)
    print_standing(standing, as_json=as_json)
    if standing.broken:
        sys.exit(1)
