"""Fills a sandbox with the app's mini programs, secrets and domain."""

from secrets import token_urlsafe
from urllib.parse import urlsplit

import click
from flask import Flask
from flask.cli import ScriptInfo

from prefetch_kit.cli.app import load_app
from prefetch_kit.cli.errors import AppMissing
from prefetch_kit.endpoint.app_state import state_of
from prefetch_kit.endpoint.config import Config
from prefetch_kit.endpoint.run_context import bind_urls
from prefetch_kit.errors import ConfigError
from prefetch_kit.sandbox import Sandbox, SandboxError
from prefetch_kit.secret import Secret


def seed(wechat: Sandbox, info: ScriptInfo, *, origin: str | None) -> None:
    """Add the app's mini programs, secrets and domain, and the address where the app listens."""
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
        known = {appid: Secret(token_urlsafe()) for appid in config.appids} | dict(known)
    for appid, secret in known.items():
        wechat.add_app(appid, secret=secret.reveal())
        if host is not None:
            wechat.add_domain(appid, host)
    if origin is not None:
        _map_origin(wechat, host, origin)
    click.echo(f"Known: {', '.join(known) or 'no app'} on {host or 'no domain'}", err=True)


def _add_platform(wechat: Sandbox, app: Flask, config: Config) -> None:
    """Add the app's third-party platform, with the URL where the app receives pushes."""
    secret, token, key = (
        config.component_secret,
        config.component_message_token,
        config.component_aes_key,
    )
    endpoint = state_of(app).push_endpoint
    if config.component_appid is None or not (secret and token and key):
        return
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


def _map_origin(wechat: Sandbox, host: str | None, origin: str) -> None:
    if host is None:
        raise ConfigError("PREFETCH_BASE_URL", "is missing", remedy="--origin stands for its host")
    try:
        wechat.map_origin(host, origin)
    except SandboxError as error:
        raise click.BadParameter(str(error), param_hint="--origin") from None
