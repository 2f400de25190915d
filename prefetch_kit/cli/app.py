"""The developer's app, as the commands use it: its routes, its settings, its calls to WeChat."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from functools import cached_property
from math import ceil
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Final, Literal
from urllib.parse import urlsplit

import click
from flask import Flask
from flask.cli import NoAppException, ScriptInfo
from werkzeug.routing import BuildError

from prefetch_kit.addresses import wechat_name
from prefetch_kit.cli.errors import AppMissing, CommandFailed, cause_in_app
from prefetch_kit.cli.options import flag_of
from prefetch_kit.endpoint.app_state import EXTENSION, issue_token, state_of
from prefetch_kit.endpoint.config import Config
from prefetch_kit.endpoint.handlers import Route
from prefetch_kit.endpoint.run_context import bind_urls
from prefetch_kit.errors import Ambiguous, ConfigError, PlanUnusable, PrefetchKitError
from prefetch_kit.fetch_setting import KINDS, FetchSetting, Kind
from prefetch_kit.fleet.project import Pace, Project, load_project
from prefetch_kit.quoting import harmless
from prefetch_kit.registrar.domains import HostDomains
from prefetch_kit.registrar.execute import WAIT_S
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.registrar.plan import Change, OffIfFrom, Wanted
from prefetch_kit.registrar.plan_file import read_plans
from prefetch_kit.registrar.probe import Probed, probe_setting
from prefetch_kit.registrar.registrar import Registrar
from prefetch_kit.weixin.token_sources import TokenSources
from prefetch_kit.weixin.transport import Transport, transport_of

_NO_APP: Final = (
    "--app (or FLASK_APP) leads to no Flask app: there is no such module, or no such name in it, "
    "or the factory cannot be called so. Write MODULE:NAME, such as shop:create_app."
)
# From the flags, by kind of pull; "app" is the app's own URL.
Sources = Mapping[Kind, FetchSetting | Literal["app"]]


class LoadedApp:
    """One app, one mini program and one of its blueprints.

    `appid` and `endpoint` are the values of the options; None where only one is possible.
    Raises `ConfigError` and `Ambiguous`.
    """

    def __init__(self, app: Flask, *, appid: str | None, endpoint: str | None) -> None:
        state = state_of(app)
        self.app = app
        self.config: Config = state.config
        self._all_routes = state.routes
        self._wanted_appid = appid
        self._wanted_endpoint = endpoint

    @cached_property
    def appid(self) -> str:
        wanted, known = self._wanted_appid, self.config.wechat_appids
        if wanted is not None:
            with self._app_code():
                is_admitted = self.config.admits(wanted)
            if not is_admitted:
                raise ConfigError(
                    "PREFETCH_APPIDS", f"lacks {harmless(wanted)}", remedy="Add it there"
                )
            return wanted
        if len(known) == 1:
            return known[0]
        choices = list(map(harmless, known)) or ["any that PREFETCH_APPIDS lets in"]
        raise Ambiguous("mini programs", choices, flag="--appid")

    @cached_property
    def routes(self) -> list[Route]:
        """The two routes of the blueprint."""
        names = list(dict.fromkeys(route.blueprint for route in self._all_routes))
        wanted = self._wanted_endpoint
        if wanted is None and len(names) > 1:
            raise Ambiguous("endpoints", names, flag="--endpoint")
        if wanted is not None and wanted not in names:
            problem = f"names {harmless(wanted, among=names)}, which is not registered"
            raise ConfigError("--endpoint", problem, remedy=f"Name one of {', '.join(names)}")
        return [r for r in self._all_routes if wanted is None or r.blueprint == wanted]

    def url(self, route: Route) -> str:
        """The public URL of a route: the app's own rule on `PREFETCH_BASE_URL`."""
        if self.config.base_url is None:
            raise ConfigError(
                "PREFETCH_BASE_URL",
                "is missing",
                remedy="Set it to the app's public https origin, such as https://shop.example",
            )
        adapter = bind_urls(self.app.url_map, self.config.base_url)
        values: dict[str, object] = {}
        if self.app.url_map.is_endpoint_expecting(route.endpoint, "appid"):
            values["appid"] = self.appid
        with self._app_code(), suppress(BuildError):
            self.app.inject_url_defaults(route.endpoint, values)
            return adapter.build(route.endpoint, values, force_external=True)
        raise ConfigError(
            route.endpoint,
            "has a variable in its URL besides <appid>, so its public URL is not known",
            remedy="Give it a default with app.url_defaults, or register the blueprint without it",
        )

    def wanted(self, flags: Sources = MappingProxyType({})) -> Wanted:
        """The wanted source of each pull: from the flags, the settings, or the app's routes."""
        each = {kind: self._wanted(kind, flags) for kind in KINDS}
        wanted = {kind: setting for kind, setting in each.items() if setting is not None}
        return wanted or {route.kind: OffIfFrom(self._own(route)) for route in self.routes}

    def _wanted(self, kind: Kind, flags: Sources) -> FetchSetting | OffIfFrom | None:
        said: FetchSetting | Literal["app"] | None = flags.get(kind, getattr(self.config, kind))
        if isinstance(said, FetchSetting) and said.source != "server":
            return said
        if said is not None:
            key = flag_of(kind) if kind in flags else f"PREFETCH_{kind.upper()}"
            self.demand_handler(kind, key)
        if isinstance(said, FetchSetting):
            return said
        route = self.route(kind)
        if len(route.pages):
            return self._own(route)
        # Without a base URL the app has no URL of which the pull may be switched off.
        return None if self.config.base_url is None else OffIfFrom(self._own(route))

    def demand_handler(self, kind: Kind, key: str) -> None:
        """Raise `ConfigError` unless the app answers such pulls; `key` named a URL for them."""
        if not len(self.route(kind).pages):
            raise ConfigError(
                key,
                f"names a URL to pull from, but the app has no handler for {kind}",
                remedy=f"Register one with {kind}, or say off, or a cloud function",
            )

    def route(self, kind: Kind) -> Route:
        return next(route for route in self.routes if route.kind == kind)

    def _own(self, route: Route) -> FetchSetting:
        return FetchSetting.server(self.url(route))

    @property
    def hosts(self) -> list[str]:
        """The hosts that WeChat should pull from; without any, the host of the app."""
        wanted = (each for each in self.wanted().values() if isinstance(each, FetchSetting))
        urls = [each.url for each in wanted if each.url] or [self.url(self.routes[0])]
        return sorted({urlsplit(url).hostname or "" for url in urls})

    def probe(self, kind: Kind, setting: FetchSetting) -> Probed:
        """Pull the source of a setting, as WeChat will, with a page that needs no user."""
        page = self.page(self.route(kind)) if setting.source == "server" else None
        return probe_setting(self.transport, setting, appid=self.appid, kind=kind, page=page)

    def page(self, route: Route) -> str | None:
        """A page for a pull without a user: preferably one that needs no login."""
        handlers = sorted(route.pages, key=lambda handler: handler.login_required)
        return next((handler.page for handler in handlers if handler.page), None)

    def issue_token(self, user_id: str) -> str:
        appid = self.appid
        with self._app_code():
            return issue_token(self.app, user_id, appid=appid)

    @contextmanager
    def _app_code(self) -> Iterator[None]:
        """Run functions of the app in its context; their errors become one sentence."""
        try:
            with self.app.app_context():
                yield
        except PrefetchKitError:
            raise
        except (Exception, SystemExit) as error:  # noqa: BLE001 (an app can raise anything)
            broken = error
        else:
            return
        raise CommandFailed(f"The app failed: {cause_in_app(broken)}.")

    @cached_property
    def transport(self) -> Transport:
        return transport_of(self.config)

    @cached_property
    def tokens(self) -> TokenSources:
        return TokenSources(self.config, self.transport)

    @property
    def uses_own_token(self) -> bool:
        """Whether the access token is the mini program's own: WeChat may refuse those.

        What a program prints, or a ready token, may be a platform's.
        """
        given = (self.config.access_token, self.config.token_command)
        return given == (None, None) and not self.tokens.are_of_platform(self.appid)

    def domains(self, host: str) -> HostDomains:
        """The business domains of a host. Raises `ConfigError` without a platform."""
        if (platform := self.tokens.platform) is None:
            raise ConfigError(
                "PREFETCH_COMPONENT_APPID",
                "is missing, and WeChat lets nobody but third-party platforms ask for this",
                remedy="Without a platform, look into the mini program's console: "
                "开发管理, 业务域名",
            )
        return HostDomains.of_merchant(
            self.appid, host, platform=platform, transport=self.transport
        )

    @property
    def wechat(self) -> str:
        """The name of the WeChat that is called. Each has its own plans and state."""
        return wechat_name(self.config.api_base_url)

    def saved_changes(self, path: Path) -> tuple[Change, ...]:
        """The changes of a saved plan for this mini program. Raises `PlanUnusable`."""
        plans = dict(read_plans(path, wechat=self.wechat))
        if strangers := sorted(plans.keys() - {self.appid}):
            raise PlanUnusable(
                str(path), f"it is for {harmless(strangers[0])}, and this is {self.appid}"
            )
        return plans.get(self.appid, ())

    @property
    def journal(self) -> Journal:
        """The record of all that was sent to this WeChat."""
        return Journal(Path(self.config.state_dir, self.wechat, "journal.sqlite3"))

    def registrar(self, *, wait_s: float | None = None) -> Registrar:
        """`wait_s` is for how long WeChat may show less than what was set; None for the usual."""
        return Registrar(
            self.appid,
            tokens=self.tokens.of(self.appid),
            state_dir=self.config.state_dir,
            transport=self.transport,
            sleep=_wait,
            wait_s=WAIT_S if wait_s is None else wait_s,
        )


def _wait(seconds: float) -> None:
    """Sleep, and tell the person at the terminal where it takes long enough to wonder."""
    if seconds >= 1:
        click.echo(f"Asking WeChat again in {ceil(seconds)} s …", err=True)
    time.sleep(seconds)


def project_of(config: Config, path: Path) -> Project:
    """A project that gets at WeChat as an app does, and wants nothing yet."""
    names = {each.name for each in fields(Project)} & {each.name for each in fields(Config)}
    alike = {name: getattr(config, name) for name in names}
    return Project(path=path, apps=None, pulls={}, pace=Pace(), **alike)


def settings_of(info: ScriptInfo, config: Path | None) -> Config | Project:
    """The settings of a prefetch.toml, or without one of the app."""
    if config is not None:
        return load_project(config)
    try:
        return state_of(load_app(info)).config
    except AppMissing as error:
        sentence = f"{error.message} Or give --config prefetch.toml."
    raise AppMissing(sentence)


def _app_inside(info: ScriptInfo) -> Flask | None:
    """The app with the kit inside of the WSGI middleware that `--app` names, if it names one.

    Such as a DispatcherMiddleware, which is what gunicorn is given then.
    """
    from gunicorn.util import import_app  # on use: it loads much, and few apps need it

    try:
        middleware = import_app(info.app_import_path or "")
        apps = [app for app in _apps_in(middleware, seen=set()) if EXTENSION in app.extensions]
    except (Exception, SystemExit):  # noqa: BLE001 (Flask's own sentence says what is wrong)
        return None
    if len(apps) > 1:
        raise Ambiguous("apps", [app.import_name for app in apps], flag="--app")
    return apps[0] if apps else None


def _apps_in(part: object, *, seen: set[int]) -> Iterator[Flask]:
    """The apps that a WSGI application holds: in attributes, mounts, closures, bound methods."""
    if id(part) in seen or isinstance(part, (type, ModuleType, str, bytes)):
        return
    seen.add(id(part))
    if isinstance(part, Flask):
        yield part
    elif isinstance(part, (dict, list, tuple)):
        for each in part.values() if isinstance(part, dict) else part:
            yield from _apps_in(each, seen=seen)
    elif callable(part):
        yield from _apps_in(getattr(part, "__self__", None), seen=seen)
        for cell in getattr(part, "__closure__", None) or ():
            with suppress(ValueError):  # it is empty
                yield from _apps_in(cell.cell_contents, seen=seen)
        yield from _apps_in(getattr(part, "__dict__", {}), seen=seen)


def load_app(info: ScriptInfo) -> Flask:
    """The app that `--app` names, or the one with the kit inside of what it names.

    Raises `AppMissing`, and `CommandFailed` for any error that the app raises.
    """
    try:
        return info.load_app()
    except PrefetchKitError:
        raise
    except NoAppException as error:
        # For an ImportError inside the app, Flask's own message quotes the whole traceback.
        broken = error.__context__
        trace = broken.__traceback__ if isinstance(broken, ImportError) else None
        if broken is None or trace is None or trace.tb_next is None:
            if (inside := _app_inside(info)) is not None:
                return inside
            # Flask's own message quotes the option, whose factory may take a secret.
            raise AppMissing(_NO_APP if info.app_import_path else error.message) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001 (an app can raise anything)
        broken = error
    raise CommandFailed(
        f"The app could not be loaded: {cause_in_app(broken)}. "
        "Run `flask routes` with the same --app to see the whole traceback."
    )
