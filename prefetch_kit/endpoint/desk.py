"""One app's side of a pull: its settings, its users, and a place to run its handlers."""

import contextvars
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import INFO, WARNING
from typing import Final, TypeVar
from urllib.parse import urlsplit

from blinker import NamedSignal
from flask import Flask, got_request_exception
from werkzeug.routing import Map, MapAdapter

from prefetch_kit.endpoint.budget import CodeBudget
from prefetch_kit.endpoint.cache import AnswerCache
from prefetch_kit.endpoint.config import Config, load_config
from prefetch_kit.endpoint.confirm import serve_confirm_files
from prefetch_kit.endpoint.identity import (
    BackgroundTokens,
    CodeLogins,
    CodeUser,
    Login,
    TokenVerifier,
    may_be_code,
)
from prefetch_kit.endpoint.logs import SteadyLogger
from prefetch_kit.endpoint.pages import Route
from prefetch_kit.endpoint.parse import Inputs
from prefetch_kit.endpoint.runs import Pool
from prefetch_kit.endpoint.shared import SharedTier
from prefetch_kit.endpoint.store import Forgotten
from prefetch_kit.errors import (
    ConfigError,
    ForeignAppid,
    NotAsked,
    PullRefused,
    Refused,
    WeixinError,
)
from prefetch_kit.secret import Secret

EXTENSION: Final = "prefetch_kit"
# Half of the usual deadline: a page that can do without the user must still be in time.
_LOGIN_DEADLINE_S = 1.0
# The code2Session page: wrong or expired, used before, and a user who is blocked.
_NOBODYS_CODE: Final = frozenset({40029, 40163, 40226})

# Of an app without a SECRET_KEY: they prove nobody.
_NO_TOKENS: Final = BackgroundTokens([], max_age_s=0)
# By name: an app may use its own subclass of RequestContext.
_FLASK_CONTEXTS: Final = frozenset({"flask.app_ctx", "flask.request_ctx"})

_T = TypeVar("_T")


@dataclass(slots=True)
class AppState:
    """What the kit knows about one app; kept in `app.extensions["prefetch_kit"]`."""

    config: Config
    routes: list[Route] = field(default_factory=list)
    logins: dict[int, CodeLogins] = field(default_factory=dict)
    kitchens: dict[int, "Kitchen"] = field(default_factory=dict)
    desks: dict[str, "FlaskDesk"] = field(default_factory=dict)
    views: dict[str, Callable[..., object]] = field(default_factory=dict)
    push_endpoint: str | None = None


class Kitchen:
    """Where one app's answers are made and kept, from its first pull on."""

    def __init__(self, app: Flask, config: Config) -> None:
        self._app = app
        self._logger = SteadyLogger(app.logger)
        self.pool = Pool(config.threads, lost=self._report)
        # Of their own: handlers that hang must not keep anybody from what is kept for a user.
        self.askers = Pool(config.threads, lost=self._report)
        forgotten = Forgotten()
        self.cache = AnswerCache(
            max_bytes=config.cache_bytes,
            pool=self.pool,
            logger=self._logger,
            forgotten=forgotten,
            shared=_shared_tier(config, forgotten, self._logger),
            deadline_s=config.deadline_s,
        )

    def _report(self, error: BaseException) -> None:
        """Tell of a run that failed when nobody waited for it any more."""
        self._logger.error("a run that no pull waited for failed", exc_info=error)
        with self._app.app_context():
            tell_of(self._app, error)


def _shared_tier(config: Config, forgotten: Forgotten, logger: SteadyLogger) -> SharedTier | None:
    if config.cache_url is None:
        return None
    return SharedTier(
        config.cache_url,
        namespace=config.cache_namespace,
        release=config.release,
        forgotten=forgotten,
        logger=logger,
    )


def kitchen_of(app: Flask) -> Kitchen:
    """The app's kitchen in this process: threads, and locks they hold, do not survive a fork."""
    state, pid = state_of(app), os.getpid()
    # setdefault is atomic, so two first pulls end up in the same one.
    return state.kitchens.get(pid) or state.kitchens.setdefault(pid, Kitchen(app, state.config))


def send(app: Flask, signal: NamedSignal, **facts: object) -> None:
    try:
        signal.send(app, _async_wrapper=app.ensure_sync, **facts)
    except Exception:  # noqa: BLE001 (a receiver's failure must not cost the mini program its answer)
        SteadyLogger(app.logger).exception("a receiver of the signal %s failed", signal.name)


def tell_of(app: Flask, error: BaseException) -> None:
    """Send Flask's signal of a failure. Some error trackers look at `sys.exc_info()` then."""
    try:
        raise error  # noqa: TRY301 (to be the one that is handled)
    except BaseException:  # noqa: BLE001 (whatever it was)
        send(app, got_request_exception, exception=error)


def join(app: Flask) -> AppState:
    """The kit's state of an app, made with its first blueprint. Raises `ConfigError`."""
    if EXTENSION not in app.extensions:
        config = load_config(app.config, instance_path=app.instance_path, environment=os.environ)
        app.extensions[EXTENSION] = AppState(config)
        serve_confirm_files(app, config)
    return state_of(app)


def state_of(app: Flask) -> AppState:
    """The kit's state of an app. Raises `ConfigError` where no Prefetch is registered."""
    try:
        state: AppState = app.extensions[EXTENSION]
    except KeyError:
        raise ConfigError(
            "Prefetch", "is not registered on this app", remedy="Call app.register_blueprint"
        ) from None
    return state


class FlaskDesk:
    """The way of a pull, told about this app."""

    def __init__(
        self, app: Flask, verifier: TokenVerifier | None, code_user: CodeUser | None
    ) -> None:
        self._app = app
        self._config = state_of(app).config
        self._verifier = verifier
        self._code_user = code_user
        self._checked: tuple[tuple[object, object], BackgroundTokens] | None = None

    @property
    def max_bytes(self) -> int:
        return self._config.max_bytes

    @property
    def warn_bytes(self) -> int:
        return self._config.warn_bytes

    @property
    def debug(self) -> bool:
        return self._app.debug

    @property
    def logger(self) -> SteadyLogger:
        return SteadyLogger(self._app.logger)

    def admits(self, appid: str) -> bool:
        return self._config.admits(appid)

    @property
    def asks_the_app(self) -> bool:
        """Whether any pull can be for somebody whom only the app, or WeChat, knows."""
        return self._verifier is not None or self._code_user is not None

    def has_to_ask(self, inputs: Inputs) -> bool:
        """Whether only the app, or WeChat, can say who such a pull is for."""
        by_verifier = inputs.token is not None and self._verifier is not None
        return by_verifier or (inputs.code is not None and self._code_user is not None)

    def prove_user(self, inputs: Inputs) -> str | None:
        if (token := inputs.token) is not None and self._verifier is None:
            return self._tokens().verify(token.reveal(), appid=inputs.asked.appid)
        return self._ask(inputs)

    def _ask(self, inputs: Inputs) -> str | None:
        appid, token, code = inputs.asked.appid, inputs.token, inputs.code
        if token is not None and (verifier := self._verifier) is not None:
            return self._asked(lambda: verifier(appid, token.reveal()))
        if code is None or (code_user := self._code_user) is None:
            return None
        login = self._login(appid, code)
        if login is None:
            return None
        return self._asked(lambda: code_user(appid, login.openid, login.unionid))

    def _asked(self, ask: Callable[[], object]) -> str | None:
        """What a function of the app's says of a user, asked away from the request."""
        proved = _away_from_request().run(self._in_app_context, ask)
        if proved is not None and (not isinstance(proved, str) or not proved):
            raise TypeError(f"a user id is a non-empty str or None, not {type(proved).__name__}")
        return proved

    def _tokens(self) -> BackgroundTokens:
        """Of the keys that hold now; with others goes what was verified by them."""
        config, checked = self._app.config, self._checked
        key, old = config["SECRET_KEY"], config.get("SECRET_KEY_FALLBACKS")
        keys = (key, tuple(old) if old else None)
        if checked is None or checked[0] != keys:
            tokens = background_tokens(self._app, self._config) if key else _NO_TOKENS
            checked = self._checked = keys, tokens
        return checked[1]

    def _login(self, appid: str, code: Secret) -> Login | None:
        try:
            return code_logins(self._app).find(appid, code)
        except (WeixinError, ConfigError) as error:
            cause = str(error)
            # The budget has warned already, and strangers can send any number of codes.
            level = INFO if isinstance(error, NotAsked) else WARNING
        # Said here, because only pages that insist on a user are refused for it.
        self.logger.log(
            level, "a login code could not be exchanged, so it proves no user: %s", cause
        )
        raise PullRefused(503, "weixin", cause)

    @property
    def deadline_s(self) -> float:
        return self._config.deadline_s

    @property
    def pool(self) -> Pool:
        return kitchen_of(self._app).pool

    @property
    def askers(self) -> Pool:
        return kitchen_of(self._app).askers

    @property
    def cache(self) -> AnswerCache:
        return kitchen_of(self._app).cache

    def runner(self, *, is_cached: bool) -> Callable[[Callable[[], bytes]], bytes]:
        names = self._config.context_vars if is_cached else None
        context = _away_from_request(names)
        return lambda work: context.run(self._in_app_context, work)

    def _in_app_context(self, work: Callable[[], _T]) -> _T:
        context = self._app.app_context()
        if self._config.base_url is not None:
            context.url_adapter = bind_urls(self._app.url_map, self._config.base_url)
        with context:
            return work()


def code_logins(app: Flask) -> CodeLogins:
    """How this app asks WeChat in this process: locks, and who asks, do not survive a fork."""
    state, pid = state_of(app), os.getpid()
    # setdefault is atomic, so two first codes end up with the same memory of codes.
    return state.logins.get(pid) or state.logins.setdefault(pid, _logins(app, state.config))


def _logins(app: Flask, config: Config) -> CodeLogins:
    # Imported with the first code: it brings requests, which most apps never need.
    from prefetch_kit.weixin.login import CodeExchange, platform_exchange

    deadline_s = _LOGIN_DEADLINE_S
    own = CodeExchange(base_url=config.api_base_url, ca_file=config.ca_file, deadline_s=deadline_s)
    platform = platform_exchange(config, ca_file=config.ca_file, deadline_s=deadline_s)

    def exchange(appid: str, code: Secret) -> Login:
        secret = config.app_secrets.get(appid)
        if secret is not None:
            return own.exchange(appid, secret, code)
        if platform is not None:
            return platform.exchange(appid, code)
        raise ConfigError("PREFETCH_APP_SECRETS", f"lacks {appid}", remedy="Add the AppSecret")

    def ask(appid: str, code: Secret) -> Login | None:
        try:
            return exchange(appid, code)
        except Refused as refused:
            if refused.errcode in _NOBODYS_CODE:
                return None
            raise

    budget = CodeBudget({*config.app_secrets, *config.appids}, logger=SteadyLogger(app.logger))
    return CodeLogins(ask, budget=budget, wait_s=_LOGIN_DEADLINE_S)


def exchange_code(app: Flask, code: Secret | None, *, appid: str) -> Login | None:
    """Ask WeChat whose login code this is. Raises as `Prefetch.exchange_code` does."""
    _demand_ours(state_of(app).config, appid)
    if code is None or not may_be_code(code):
        return None
    return code_logins(app).exchange(appid, code)


def issue_token(app: Flask, user_id: str, *, appid: str) -> str:
    """Mint a user's background token. Raises as `Prefetch.issue_token` does."""
    config = state_of(app).config
    _demand_ours(config, appid)
    return background_tokens(app, config).issue(user_id, appid=appid)


def _demand_ours(config: Config, appid: str) -> None:
    if not config.admits(appid):
        raise ForeignAppid(appid)


def background_tokens(app: Flask, config: Config) -> BackgroundTokens:
    if not app.secret_key:
        raise ConfigError("SECRET_KEY", "is missing, and signs the tokens", remedy="Set it")
    return BackgroundTokens(
        [*_old_keys(app), _key("SECRET_KEY", app.secret_key)], max_age_s=config.token_max_age_s
    )


def _old_keys(app: Flask) -> list[str | bytes]:
    keys = app.config.get("SECRET_KEY_FALLBACKS") or ()
    if not isinstance(keys, (list, tuple)):
        # Taken for a list, each character of a string would be a key, and anyone could sign.
        raise ConfigError(
            "SECRET_KEY_FALLBACKS", "is not a list", remedy="Write a list of the earlier keys"
        )
    return [_key("SECRET_KEY_FALLBACKS", key) for key in keys]


def _key(setting: str, key: object) -> str | bytes:
    if not isinstance(key, (str, bytes)) or not key:
        # With an empty key anyone could sign.
        raise ConfigError(
            setting, "holds a key that is empty or no text", remedy="Write long random strings"
        )
    return key


def _away_from_request(names: frozenset[str] | None = None) -> contextvars.Context:
    """The current context variables, or those of these names, without Flask's contexts."""
    away = contextvars.Context()
    for variable, value in contextvars.copy_context().items():
        if variable.name not in _FLASK_CONTEXTS and (names is None or variable.name in names):
            away.run(variable.set, value)
    return away


def bind_urls(url_map: Map, base_url: str) -> MapAdapter:
    """An adapter that builds an app's URLs as they stand on the public `base_url`."""
    parts = urlsplit(base_url)
    return url_map.bind(parts.netloc, script_name=parts.path or "/", url_scheme=parts.scheme)
