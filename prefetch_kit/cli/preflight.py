"""Checks, before anything is set, whether WeChat would pull from the app's host."""

from collections.abc import Iterable

import click

from prefetch_kit.cli.app import AppAtHand
from prefetch_kit.errors import ConfigError, TokenSourceError, WeixinError
from prefetch_kit.registrar.domains import HostDomains


def domains_of(at_hand: AppAtHand, host: str) -> HostDomains:
    """The business domains of a host. Raises ConfigError without a platform."""
    if (platform := at_hand.tokens.platform) is None:
        raise ConfigError(
            "PREFETCH_COMPONENT_APPID",
            "is missing, and WeChat lets nobody but third-party platforms ask for this",
            remedy="Without a platform, look into the mini program's console: 开发管理, 业务域名",
        )
    return HostDomains.of_merchant(
        at_hand.appid, host, platform=platform, transport=at_hand.transport
    )


def check_domains(at_hand: AppAtHand, hosts: Iterable[str]) -> None:
    """Raise DomainMissing where WeChat would not take URLs of these hosts, as far as is known.

    If that cannot be found out, a warning is printed and WeChat decides.
    """
    if not at_hand.tokens.are_of_platform(at_hand.appid):
        return
    for host in hosts:
        try:
            standing = domains_of(at_hand, host).inspect()
        except (WeixinError, TokenSourceError) as error:
            click.echo(f"The business domains could not be looked at: {error}", err=True)
            return
        standing.check()


def add_domains(
    at_hand: AppAtHand, hosts: Iterable[str], *, directly: bool, checks_file: bool
) -> None:
    """Make hosts business domains; raises DomainMissing where one does not count yet."""
    for host in hosts:
        domains_of(at_hand, host).ensure(directly=directly, checks_file=checks_file).check()
