"""What the kit knows about one app, and what one process of it keeps."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from blinker import NamedSignal
from flask import Flask, Request, got_request_exception, request, request_started
from itsdangerous import want_bytes

from prefetch_kit.cache.answers import AnswerCache
from prefetch_kit.cache.digests import Digests
from prefetch_kit.cache.invalidation import Invalidations
from prefetch_kit.cache.redis import RedisStore
from prefetch_kit.cache.redis_format import RedisFormat
from prefetch_kit.concurrency.executor import Executor
from prefetch_kit.endpoint.admission import Admission
from prefetch_kit.endpoint.app_commands import add_commands
from prefetch_kit.endpoint.background_tokens import (
    BackgroundTokens,
    background_tokens,
    secret_keys,
)
from prefetch_kit.endpoint.config import Config, load_config
from prefetch_kit.endpoint.confirm_files import serve_confirm_files
from prefetch_kit.endpoint.dispatch import Dispatcher, from_handler
from prefetch_kit.endpoint.handlers import Route, refuse_unfit
from prefetch_kit.endpoint.hidden_query import hide_credentials, hide_from_server_logs, is_of_pull
from prefetch_kit.endpoint.login_codes import CodeLogins, Login, code_logins, may_be_code
from prefetch_kit.endpoint.payload import Encoder
from prefetch_kit.endpoint.run_context import RunContext
from prefetch_kit.endpoint.users import CodeUser, TokenVerifier, Users
from prefetch_kit.errors import ConfigError, ForeignAppid, PullRefused
from prefetch_kit.logs import SafeLogger
from prefetch_kit.secret import Secret

EXTENSION: Final = "prefetch_kit"
_SHORTEST_KEY: Final = 16


@dataclass(slots=True)
class AppState:
    """What the kit knows about one app; kept in `app.extensions["prefetch_kit"]`."""

    config: Config
    endpoints: dict[str, "Endpoint"] = field(default_factory=dict)
    processes: dict[int, "Process"] = field(default_factory=dict)
    push_endpoint: str | None = None
    # Whether it was told that the app answers pulls itself.
    foreign_told: bool = False

    @property
    def routes(self) -> list[Route]:
        return [endpoint.route for endpoint in self.endpoints.values()]

    @property
    def all_endpoints(self) -> list[str]:
        """The names of the views at which only WeChat has anything to ask."""
        return [*self.endpoints, *([self.push_endpoint] if self.push_endpoint else [])]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route of the kit in one app, and what proves its users."""

    route: Route
    view: Callable[..., object]
    verifier: TokenVerifier | None
    code_user: CodeUser | None


class Process:
    """What one process of an app keeps from its first pull on: threads, answers, login codes."""

    def __init__(self, app: Flask, state: AppState) -> None:
        self._app = app
        self._state = state
        config, logger = state.config, SafeLogger(app.logger)
        self.handler_executor = Executor(config.threads, on_lost_error=self._report)
        # Apart from those of handlers, which may hang: kept answers must still find their user.
        self._user_executor = Executor(config.threads, on_lost_error=self._report)
        # And these are for whom the app never knew: strangers invent any number of names.
        self._stranger_executor = Executor(config.threads, on_lost_error=self._report)
        invalidations = Invalidations()
        self.cache = AnswerCache(
            max_bytes=config.cache_bytes,
            executor=self.handler_executor,
            logger=logger,
            invalidations=invalidations,
            redis=_redis_store(app, config, invalidations, logger),
            awaits_refresh=config.refresh == "within",
        )
        self._context = RunContext(app, base_url=config.base_url)
        self._admission = Admission(
            config.appids,
            config.admits,
            max_age_s=config.appids_max_age_s,
            context=self._context,
            executor=self._user_executor,
            stranger_executor=self._stranger_executor,
        )
        self._dispatchers: dict[str, Dispatcher] = {}
        self._logins: list[CodeLogins] = []

    def dispatcher(self, endpoint: str) -> Dispatcher:
        """What answers the pulls of one endpoint in this process."""
        found = self._dispatchers.get(endpoint)
        return found or self._dispatchers.setdefault(endpoint, self._new_dispatcher(endpoint))

    def logins(self) -> CodeLogins:
        """What asks WeChat about login codes."""
        if not self._logins:
            self._logins.append(code_logins(self._state.config, SafeLogger(self._app.logger)))
        return self._logins[0]

    def _new_dispatcher(self, endpoint: str) -> Dispatcher:
        config, logger = self._state.config, SafeLogger(self._app.logger)
        served = self._state.endpoints[endpoint]
        context = self._context
        users = Users(
            settings=self._app.config,
            config=config,
            verifier=served.verifier,
            code_user=served.code_user,
            logins=self.logins,
            in_app=context.call,
            logger=logger,
        )
        return Dispatcher(
            served.route,
            config=config,
            admission=self._admission,
            users=users,
            context=context,
            encoder=Encoder(
                max_bytes=config.max_bytes,
                big_integers_as_text=config.big_integers == "text",
                app_dumps=self._app.json.dumps,
                logger=logger,
                debug=self._app.debug,
            ),
            executor=self.handler_executor,
            user_executor=self._user_executor,
            stranger_executor=self._stranger_executor,
            cache=self.cache,
            logger=logger,
            debug=self._app.debug,
        )

    def _report(self, error: BaseException) -> None:
        """Tell of a run that failed when no pull waited for it any more."""
        if isinstance(error, PullRefused):
            SafeLogger(self._app.logger).info(
                "a run that no pull waited for was refused (%d %s): %s",
                error.status,
                error.reason,
                error.detail,
            )
            return
        BaseException.with_traceback(error, from_handler(error.__traceback__))
        try:
            with self._app.app_context():
                send_got_request_exception(self._app, error)
        finally:  # a teardown of the app's may fail, too
            SafeLogger(self._app.logger).error(
                "a run that no pull waited for failed", exc_info=error
            )


def _redis_store(
    app: Flask, config: Config, invalidations: Invalidations, logger: SafeLogger
) -> RedisStore | None:
    if config.cache_url is None:
        return None
    if not app.secret_key:
        logger.warning(
            "there is no SECRET_KEY: answers from PREFETCH_CACHE_URL are believed, whoever wrote "
            "them there. Set SECRET_KEY, the same in all processes"
        )

    def secrets() -> list[bytes]:
        # Read each time, since the app may change its keys.
        return [want_bytes(key) for key in reversed(secret_keys(app.config))]

    return RedisStore(
        config.cache_url,
        namespace=config.cache_namespace,
        release=config.release,
        format=RedisFormat(Digests(secrets), max_bytes=config.max_bytes),
        invalidations=invalidations,
        logger=logger,
    )


def init_app(app: Flask) -> AppState:
    """The kit's state of an app, made with its first blueprint. Raises `ConfigError`."""
    if EXTENSION not in app.extensions:
        config = load_config(app.config, instance_path=app.instance_path, environment=os.environ)
        _refuse_unfit_admits(config)
        app.extensions[EXTENSION] = AppState(config)
        _warn_of_short_key(app)
        if config.cache_url is not None:
            import redis  # noqa: F401 (here, since the first pull should not wait for it)
        request_started.connect(hide_from_app, app)
        hide_from_server_logs()
        serve_confirm_files(app, config)
        add_commands(app)
    return state_of(app)


def hide_from_app(app: Flask, **_: object) -> None:
    """A receiver of `request_started`, which Flask sends before any function of the app runs."""
    asked: Request = request._get_current_object()  # type: ignore[attr-defined]  # once: it is slow
    if asked.endpoint in app.extensions[EXTENSION].endpoints or is_of_pull(asked.path):
        hide_credentials(asked)


def _refuse_unfit_admits(config: Config) -> None:
    try:
        refuse_unfit(config.admits, "appid")
    except TypeError as error:
        problem = f"cannot be called: {error}"
    else:
        return
    raise ConfigError("PREFETCH_APPIDS", problem, remedy="Give a function of one appid")


def _warn_of_short_key(app: Flask) -> None:
    key = app.secret_key
    if isinstance(key, (str, bytes)) and 0 < len(key) < _SHORTEST_KEY:
        SafeLogger(app.logger).warning(
            "SECRET_KEY is shorter than %d characters: who guesses it can mint tokens for every "
            "user. Make one with python -c 'import secrets; print(secrets.token_hex())'.",
            _SHORTEST_KEY,
        )


def state_of(app: Flask) -> AppState:
    """The kit's state of an app. Raises `ConfigError` where no Prefetch is registered."""
    try:
        state: AppState = app.extensions[EXTENSION]
    except KeyError:
        raise ConfigError(
            "Prefetch", "is not registered on this app", remedy="Call app.register_blueprint"
        ) from None
    return state


def process_of(app: Flask) -> Process:
    """What this process keeps for an app: threads and locks do not survive a fork."""
    state, pid = state_of(app), os.getpid()
    # setdefault is atomic, so two first pulls find the same one.
    return state.processes.get(pid) or state.processes.setdefault(pid, Process(app, state))


def send(app: Flask, signal: NamedSignal, **facts: object) -> None:
    """Send a signal; a receiver's failure must not cost the mini program its answer."""
    try:
        signal.send(app, _async_wrapper=app.ensure_sync, **facts)
    except Exception:  # noqa: BLE001 (a receiver can raise anything)
        SafeLogger(app.logger).exception("a receiver of the signal %s failed", signal.name)


def send_got_request_exception(app: Flask, error: BaseException) -> None:
    """Send Flask's signal of a failure. Some error trackers look at `sys.exc_info()` then."""
    try:
        raise error  # noqa: TRY301 (to be the one that is handled)
    except BaseException:  # noqa: BLE001 (whatever it was)
        send(app, got_request_exception, exception=error)


def exchange_code(app: Flask, code: Secret | None, *, appid: str) -> Login | None:
    """Ask WeChat whose login code this is. Raises as `Prefetch.exchange_code` does."""
    _demand_ours(state_of(app).config, appid)
    if code is None or not may_be_code(code):
        return None
    return process_of(app).logins().exchange(appid, code)


def tokens_of(app: Flask, config: Config) -> BackgroundTokens:
    """The tokens of an app's present keys. Raises `ConfigError`."""
    return background_tokens(app.config, max_age_s=config.token_max_age_s)


def issue_token(app: Flask, user_id: str, *, appid: str) -> str:
    """Mint a user's background token. Raises as `Prefetch.issue_token` does."""
    config = state_of(app).config
    _demand_ours(config, appid)
    return tokens_of(app, config).issue(user_id, appid=appid)


def _demand_ours(config: Config, appid: str) -> None:
    if not config.admits(appid):
        raise ForeignAppid(appid)
