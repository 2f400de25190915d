"""The commands for a third-party platform (第三方平台) as such: its pushes, its merchants."""

import re
import sys
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote

import click
from flask.cli import ScriptInfo, pass_script_info

from prefetch_kit.addresses import platform_url_problem
from prefetch_kit.cli.app import settings_of
from prefetch_kit.cli.commands import commands
from prefetch_kit.cli.options import FILE, as_json_option
from prefetch_kit.cli.output import print_json
from prefetch_kit.cli.usage import ValueRefused, WrongUsage
from prefetch_kit.errors import ConfigError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.authorization_links import create_links
from prefetch_kit.weixin.third_party import ThirdParty, third_party_of
from prefetch_kit.weixin.token_stores.records import decode_secret
from prefetch_kit.weixin.transport import transport_of

_Command = Callable[..., Any]
_LONGEST_CODE: Final = 4096
_IN_ADDRESS: Final = re.compile("[?&]auth_code=([^&#]*)")


@commands.group()
def platform() -> None:
    """The third-party platform (第三方平台): its tickets, and how merchants authorize it."""


def _with_platform(function: _Command) -> _Command:
    """Give a command `--json`, `--config`, and the platform of that file or of the app."""

    @click.option("--config", type=FILE, help="A prefetch.toml that names it, instead of an app.")
    @as_json_option
    @pass_script_info
    @wraps(function)
    def command(info: ScriptInfo, /, *args: Any, config: Path | None, **options: Any) -> None:
        settings = settings_of(info, config)
        with transport_of(settings) as transport:
            found = third_party_of(settings, transport)
            if found is None:
                raise ConfigError(
                    "PREFETCH_COMPONENT_APPID",
                    "is missing, so there is no third-party platform",
                    remedy="Set it with PREFETCH_COMPONENT_SECRET; in prefetch.toml see [tokens]",
                )
            function(found, *args, **options)

    return command


@platform.command("start-push")
@_with_platform
def start_push(found: ThirdParty, *, as_json: bool) -> None:
    """Let WeChat push tickets (again), as it may stop where pushes failed."""
    found.token.start_push()
    if as_json:
        print_json({"type": "push_started", "component_appid": found.appid})
        return
    click.echo(f"WeChat pushes tickets of {found.appid}, the next one within ten minutes.")


def _check_redirect_uri(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    # A query is the platform's own matter: WeChat adds to it.
    if problem := platform_url_problem(value.replace("?", "/", 1)):
        raise ValueRefused(f"it {problem}.")
    return value


@platform.command("authorize-url")
@click.option(
    "--redirect-uri",
    required=True,
    callback=_check_redirect_uri,
    metavar="URL",
    help="Your page where WeChat sends the merchant afterwards, with the auth_code.",
)
@_with_platform
def authorize_url(found: ThirdParty, *, redirect_uri: str, as_json: bool) -> None:
    """Make the links with which one merchant authorizes the platform."""
    links = create_links(
        found.calls, found.transport, component_appid=found.appid, redirect_uri=redirect_uri
    )
    if as_json:
        print_json(
            {
                "type": "authorization_links",
                "component_appid": found.appid,
                "web": links.web,
                "phone": links.phone,
                "expires_in_s": links.expires_in_s,
            }
        )
        return
    click.echo(f"web    {links.web}")
    click.echo(f"phone  {links.phone}")
    ends = "" if links.expires_in_s is None else f" They end in {links.expires_in_s // 60} minutes."
    click.echo(
        f"One merchant can use one of them, once.{ends} Then run `platform authorize` with the "
        "auth_code in the address that the merchant came back to.",
        err=True,
    )


@platform.command()
@click.argument("code", required=False, envvar="PREFETCH_AUTH_CODE")
@_with_platform
def authorize(found: ThirdParty, *, code: str | None, as_json: bool) -> None:
    """Take the auth_code of a merchant's authorization, and keep the tokens it gives.

    CODE may also be the whole address that the merchant came back to. Where it is left out it is
    read from PREFETCH_AUTH_CODE, or from standard input: other users of this machine can see the
    words of a command.
    """
    secret = _code_in(_read_code() if code in (None, "-") else code or "")
    if secret is None:
        raise WrongUsage("CODE is not the auth_code from the address: it has other letters.")
    appid = found.authorizers.accept(secret, since=time.time())
    if as_json:
        print_json({"type": "authorized", "component_appid": found.appid, "appid": appid})
        return
    click.echo(f"{appid} has authorized {found.appid}, and its refresh token is kept.")


def _code_in(text: str) -> Secret | None:
    """The code in an address, where each @ of it is %40, or in a text that is nothing else."""
    found = _IN_ADDRESS.search(text)
    return decode_secret(unquote(text if found is None else found[1]))


def _read_code() -> str:
    if sys.stdin is None or sys.stdin.isatty():
        return str(click.prompt("auth_code", hide_input=True, err=True))
    return sys.stdin.readline(_LONGEST_CODE).strip()
