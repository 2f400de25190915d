"""The local WeChat, filled with the app's mini programs, secrets and domain."""

import signal
import threading
from contextlib import suppress
from secrets import token_urlsafe
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
from flask import Flask
from flask.cli import ScriptInfo, pass_script_info

from prefetch_kit.cli.app import load_app
from prefetch_kit.cli.commands import commands
from prefetch_kit.cli.errors import AppMissing, CommandFailed
from prefetch_kit.cli.usage import ValueRefused
from prefetch_kit.endpoint.app_state import state_of
from prefetch_kit.endpoint.config import Config
from prefetch_kit.endpoint.run_context import bind_urls
from prefetch_kit.errors import ConfigError
from prefetch_kit.secret import Secret

if TYPE_CHECKING:
    from prefetch_kit.sandbox import Sandbox


@commands.command()
@click.option("--port", type=click.IntRange(0, 65535), default=9000, show_default=True)
@click.option(
    "--origin", metavar="URL", help="Where the app listens, such as http://127.0.0.1:8000."
)
@click.option(
    "--refuse-own-token",
    is_flag=True,
    help="Refuse a mini program's own access token for its settings (48001): nobody knows "
    "whether the real WeChat does.",
)
@pass_script_info
def sandbox(info: ScriptInfo, *, port: int, origin: str | None, refuse_own_token: bool) -> None:
    """Run a local WeChat until Ctrl-C.

    With an app, it knows the mini programs, secrets and domain of that app from the start.
    GET /_sandbox/ lists what else can be done there: users, pulls, a clock that can be moved,
    switches for what is unknown about WeChat, and faults, such as a get that lags, a "system
    busy" although the call took effect, a connection that drops.
    """
    # Imported here: no other command needs it.
    from prefetch_kit.sandbox import Sandbox

    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    wechat = Sandbox(port=port, log=lambda text: click.echo(text, err=True))
    wechat.switches.own_token_accepted = not refuse_own_token
    try:
        wechat.start()
    except OSError as error:
        problem = f"Port {port} cannot be had: {error.strerror}"
        raise CommandFailed(f"{problem}. Choose another with --port.") from None
    try:
        with suppress(KeyboardInterrupt):
            _seed(wechat, info, origin=origin)
            click.echo(f"WeChat, played at {wechat.base_url}")
            click.echo(f"export PREFETCH_API_BASE_URL={wechat.base_url}")
            over.wait()
    finally:
        wechat.stop()


def _seed(wechat: "Sandbox", info: ScriptInfo, *, origin: str | None) -> None:
    """Add the app's mini programs, secrets and domain, and the address where the app listens."""
    from prefetch_kit.sandbox import SandboxError

    try:
        app = load_app(info)
    except AppMissing:
        if info.app_import_path is not None or origin is not None:
            raise
        return
    config = state_of(app).config
    host = urlsplit(config.base_url or "").hostname
    known = config.app_secrets
    if config.component_appid is not None:
        _add_platform(wechat, app, config)
        # Only the merchants know the secrets of the others.
        known = {appid: Secret(token_urlsafe()) for appid in config.wechat_appids} | dict(known)
    for appid, secret in known.items():
        wechat.add_app(appid, secret=secret.reveal())
        if host is not None:
            wechat.add_domain(appid, host)
    if origin is not None:
        if host is None:
            remedy = "--origin stands for its host"
            raise ConfigError("PREFETCH_BASE_URL", "is missing", remedy=remedy)
        try:
            wechat.map_origin(host, origin)
        except SandboxError as error:
            raise ValueRefused(str(error), param_hint="--origin") from None
    click.echo(f"Known: {', '.join(known) or 'no app'} on {host or 'no domain'}", err=True)


def _add_platform(wechat: "Sandbox", app: Flask, config: Config) -> None:
    """Add the app's third-party platform, with the URL where the app receives pushes."""
    secret, token = config.component_secret, config.component_message_token
    key = config.component_aes_key
    if config.component_appid is None or not (secret and token and key):
        return
    endpoint = state_of(app).push_endpoint
    url = None
    if endpoint is not None and config.base_url is not None:
        adapter = bind_urls(app.url_map, config.base_url)
        url = adapter.build(endpoint, method="POST", force_external=True)
    wechat.add_platform(
        config.component_appid,
        secret=secret.reveal(),
        token=token.reveal(),
        aes_key=key.reveal(),
        receive_url=url,
    )
    click.echo(f"Pushes for {config.component_appid} go to {url or 'nowhere'}", err=True)
