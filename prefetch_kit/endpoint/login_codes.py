"""Login codes: who stands behind one, asked of WeChat once and remembered for five minutes."""

import hmac
import re
import secrets
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Protocol

from cachetools import TTLCache

from prefetch_kit.endpoint.config import Config
from prefetch_kit.endpoint.login_limits import LoginLimits
from prefetch_kit.errors import ConfigError, OutcomeUnknown, Refused
from prefetch_kit.logs import SafeLogger
from prefetch_kit.quoting import harmless
from prefetch_kit.secret import Secret

CODE_KEPT_S: Final = 300
CODES_KEPT: Final = 10_000
# Half of the usual deadline: a page that can do without the user must still be in time.
LOGIN_DEADLINE_S: Final = 1.0
# Today's codes are 32 letters and digits, but no page of the platform promises that.
_CODE_SHAPE: Final = re.compile("[!-~]{16,128}")
# The code2Session page: wrong or expired, used before, and a user who is blocked.
_NOBODYS_CODE: Final = frozenset({40029, 40163, 40226})


class Login(Protocol):
    """Who WeChat says stands behind a login code."""

    @property
    def openid(self) -> str: ...
    @property
    def unionid(self) -> str | None: ...


class CodeLogins:
    """Asks WeChat once per login code and remembers the answer for five minutes.

    A login code works once, so a pull that comes again with the same code must not ask again.
    Codes are kept only under a keyed hash. `exchange`, which asks every time, is called without
    a lock held, as far as `limits` allow; callers with the same code wait for the one who asks.
    """

    def __init__(
        self,
        exchange: Callable[[str, Secret], Login | None],
        *,
        limits: LoginLimits,
        wait_s: float,
    ) -> None:
        self.exchange = exchange
        self._limits = limits
        self._wait_s = wait_s
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._logins: TTLCache[bytes, Future[Login | None]] = TTLCache(CODES_KEPT, CODE_KEPT_S)

    def find(self, appid: str, code: Secret) -> Login | None:
        """The login behind a code, None for a bad one.

        Raises what `exchange` and the limits raise, and `OutcomeUnknown` after `wait_s` of
        waiting for another caller; then nothing is remembered.
        """
        if not may_be_code(code):
            return None
        name = hmac.digest(self._key, f"{appid}:{code.reveal()}".encode(), "sha256")
        with self._lock:
            login = self._logins.get(name)
            if asks := login is None:
                login = self._logins[name] = Future()
        if not asks:
            return self._await(login)
        try:
            found = self._limits.ask(appid, lambda: self.exchange(appid, code))
        except BaseException as error:
            with self._lock:
                self._logins.pop(name, None)
            # What ends this thread alone, SystemExit for one, must not end those that wait.
            ours = isinstance(error, Exception)
            login.set_exception(error if ours else _no_answer("the one who asked was ended"))
            raise
        login.set_result(found)
        return found

    def _await(self, login: "Future[Login | None]") -> Login | None:
        try:
            return login.result(timeout=self._wait_s)
        except TimeoutError:
            pass
        raise _no_answer(f"another caller with the same code has none after {self._wait_s:g} s")


def may_be_code(code: Secret) -> bool:
    """Whether WeChat could have made this login code."""
    return _CODE_SHAPE.fullmatch(code.reveal()) is not None


def _no_answer(cause: str) -> OutcomeUnknown:
    return OutcomeUnknown(
        "jscode2session", f"no answer: {cause}", sent=True, remedy="Let the user log in again"
    )


def code_logins(config: Config, logger: SafeLogger) -> CodeLogins:
    """How an app asks WeChat: with a mini program's own secret, or as its third-party platform."""
    # Imported with the first code: it brings requests, which most apps never need.
    from prefetch_kit.weixin.login import CodeExchange, platform_exchange

    own = CodeExchange(
        base_url=config.api_base_url,
        ca_file=config.ca_file,
        proxy=config.proxy,
        deadline_s=LOGIN_DEADLINE_S,
    )
    platform = platform_exchange(config, deadline_s=LOGIN_DEADLINE_S)

    def exchange(appid: str, code: Secret) -> Login | None:
        secret = config.app_secrets.get(appid)
        try:
            if secret is not None:
                return own.exchange(appid, secret, code)
            if platform is not None:
                return platform.exchange(appid, code)
        except Refused as refused:
            if refused.errcode in _NOBODYS_CODE:
                return None
            raise
        raise ConfigError(
            "PREFETCH_APP_SECRETS", f"lacks {harmless(appid)}", remedy="Add the AppSecret"
        )

    limits = LoginLimits({*config.app_secrets, *config.wechat_appids}, logger=logger)
    return CodeLogins(exchange, limits=limits, wait_s=LOGIN_DEADLINE_S)
