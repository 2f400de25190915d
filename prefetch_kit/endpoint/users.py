"""Who a pull is for: a background token or a login code becomes the id of a proved user."""

import contextvars
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from hashlib import blake2b
from logging import INFO, WARNING
from typing import Final

from prefetch_kit.cache.key import encoded
from prefetch_kit.concurrency.executor import Executor, Late
from prefetch_kit.endpoint.app_errors import without_credential
from prefetch_kit.endpoint.background_tokens import BackgroundTokens, background_tokens
from prefetch_kit.endpoint.config import Config
from prefetch_kit.endpoint.login_codes import CodeLogins, Login
from prefetch_kit.endpoint.request import Asked, Inputs
from prefetch_kit.errors import ConfigError, NotAsked, PullRefused, WeixinError
from prefetch_kit.logs import SafeLogger
from prefetch_kit.secret import Secret

TokenVerifier = Callable[[str, str], str | None]
CodeUser = Callable[[str, str, str | None], str | None]

_MAX_REMEMBERED: Final = 10_000
# For an app without a SECRET_KEY: they prove nobody.
_NO_TOKENS: Final = BackgroundTokens([], max_age_s=0)


class Request:
    """One pull: what it asks for, and the user that it proves.

    `asks` says that `prove` asks the app or WeChat.
    """

    __slots__ = ("_asks", "_prove", "_proved", "asked", "inputs")

    def __init__(
        self, inputs: Inputs, prove: Callable[[Inputs], str | None], *, asks: bool = False
    ) -> None:
        self.inputs = inputs
        self._asks = asks
        self.asked: Asked = inputs.asked
        self._prove = prove
        self._proved: list[str | None] = []

    def user_id(self) -> str | None:
        """The proved user; None where nothing proves one, or WeChat cannot be asked."""
        try:
            return self.demanded_user_id()
        except PullRefused as refusal:
            if refusal.reason != "weixin":
                raise
            return None

    def demanded_user_id(self) -> str | None:
        """The same, but raises `PullRefused` (503) where WeChat cannot be asked.

        What was proved first holds: a token may expire while a handler runs.
        """
        if not self._proved:
            self._proved.append(self._prove(self.inputs))
        return self._proved[0]

    def is_user_proved(self) -> bool | None:
        """Whether a user is proved; None where somebody would have to be asked, or it fails."""
        if self._asks and not self._proved:
            return None
        try:
            return self.demanded_user_id() is not None
        except Exception:  # noqa: BLE001 (whoever needs the user hears of it)
            return None

    def digest_of_credentials(self) -> bytes:
        return _digest(self.inputs.token, self.inputs.code)


class Users:
    """Proves users by one app's keys and functions.

    `settings` are the app's own, whose keys may change. `logins` gives what asks WeChat about
    codes. `in_app` calls a function of the app, away from the request.
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, object],
        config: Config,
        verifier: TokenVerifier | None,
        code_user: CodeUser | None,
        logins: Callable[[], CodeLogins],
        in_app: Callable[[Callable[[], object]], object],
        logger: SafeLogger,
    ) -> None:
        self._settings = settings
        self._max_age_s = config.token_max_age_s
        self._verifier = verifier
        self._code_user = code_user
        self._logins = logins
        self._in_app = in_app
        self._logger = logger
        self._checked: tuple[tuple[object, object], BackgroundTokens] | None = None
        # The appids and digests of tokens.
        self._of_users: set[tuple[str, bytes]] = set()
        # Whether any pull can be for a user whom only the app, or WeChat, knows.
        self.ask_the_app = verifier is not None or code_user is not None

    def have_to_ask(self, inputs: Inputs) -> bool:
        """Whether only the app, or WeChat, can say who such a pull is for."""
        by_verifier = inputs.token is not None and self._verifier is not None
        return by_verifier or (self._code_of(inputs) is not None and self._code_user is not None)

    def verify(self, inputs: Inputs) -> str | None:
        """The user of a background token that this app minted."""
        token = inputs.token
        if token is None or self._verifier is not None:
            return None
        return self._tokens().verify(token.reveal(), appid=inputs.asked.appid)

    def ask(self, inputs: Inputs) -> str | None:
        """The user as the app's own function knows it, for a code after asking WeChat.

        Raises what that function raises, and `PullRefused` (503) where WeChat cannot be asked.
        """
        appid, token, code = inputs.asked.appid, inputs.token, self._code_of(inputs)
        if token is not None and (verifier := self._verifier) is not None:
            user_id = self._asked(lambda: verifier(appid, token.reveal()), verifier, token)
            self._note_whether_user(appid, token, is_one=user_id is not None)
            return user_id
        if code is None or (code_user := self._code_user) is None:
            return None
        login = self._login(appid, code)
        if login is None:
            return None
        ask = partial(code_user, appid, login.openid, login.unionid)
        return self._asked(ask, code_user, code)

    def may_be_anybodys(self, inputs: Inputs) -> bool:
        """Whether a pull has a token that the app has not lately taken for one of its users."""
        token = inputs.token
        return token is not None and (inputs.asked.appid, _digest(token)) not in self._of_users

    def _note_whether_user(self, appid: str, token: Secret, *, is_one: bool) -> None:
        known = (appid, _digest(token))
        if not is_one:  # any more, after a logout
            self._of_users.discard(known)
            return
        if len(self._of_users) >= _MAX_REMEMBERED:
            self._of_users.clear()  # simpler than choosing; each is soon known again
        self._of_users.add(known)

    def _code_of(self, inputs: Inputs) -> Secret | None:
        """The login code, if it is one of WeChat's, which nobody else can exchange."""
        return inputs.code if inputs.asked.dialect == "wechat" else None

    def _asked(
        self, ask: Callable[[], object], function: Callable[..., object], credential: Secret
    ) -> str | None:
        name = getattr(function, "__qualname__", type(function).__name__)
        failure: BaseException
        try:
            user_id = self._in_app(ask)
        except BaseException as error:  # noqa: BLE001 (it may raise anything)
            failure = without_credential(error, credential, raised_by=name)
        else:
            if user_id is None or (isinstance(user_id, str) and user_id):
                return user_id
            gave = "an empty str" if user_id == "" else type(user_id).__name__
            failure = TypeError(f"{name} returned {gave} as a user id; return str(…), or None")
            del user_id  # it may hold the token, and trackers show the frames of an error
        raise failure

    def _tokens(self) -> BackgroundTokens:
        """The tokens of the present keys; with other keys, all verified tokens are forgotten."""
        settings, checked = self._settings, self._checked
        key, fallbacks = settings["SECRET_KEY"], settings.get("SECRET_KEY_FALLBACKS")
        # A copy, since the app may change its list.
        keys = (key, tuple(fallbacks) if isinstance(fallbacks, (list, tuple)) else fallbacks)
        if checked is None or checked[0] != keys:
            max_age_s = self._max_age_s
            tokens = background_tokens(settings, max_age_s=max_age_s) if key else _NO_TOKENS
            checked = self._checked = keys, tokens
        return checked[1]

    def _login(self, appid: str, code: Secret) -> Login | None:
        try:
            return self._logins().find(appid, code)
        except (WeixinError, ConfigError) as error:
            cause = str(error)
            # The limits have warned already, and strangers can send any number of codes.
            level = INFO if isinstance(error, NotAsked) else WARNING
        # Logged here, because only pages that insist on a user are refused for it.
        self._logger.log(
            level, "a login code could not be exchanged, so it proves no user: %s", cause
        )
        raise PullRefused("weixin", cause)


def _digest(*credentials: Secret | None) -> bytes:
    digest = blake2b(digest_size=16)
    for credential in credentials:
        digest.update(encoded(None if credential is None else credential.reveal()))
    return digest.digest()


class UserLate(Late):
    """Nobody said by the page's deadline who the user is."""


class LazyUser:
    """Asks the app, or WeChat, who the user of one pull is: once, however often it is read.

    Whatever the app does to find out, the thread of the request waits no longer than the page
    may take: it leaves the question to the `executor`, where each page has its `share`. A handler
    asks in its own thread, and is left behind as a whole.
    """

    __slots__ = (
        "_ask",
        "_ends_at",
        "_error",
        "_executor",
        "_lock",
        "_share",
        "_thread",
        "_user_id",
    )

    def __init__(self, inputs: Inputs, users: Users, executor: Executor, *, share: str) -> None:
        self._lock = threading.Lock()  # a handler may read its pull in several threads
        # A verifier of the app's must find the same context in a cached run as outside.
        context = contextvars.copy_context()
        self._ask: Callable[[], str | None] | None = partial(context.run, users.ask, inputs)
        self._executor = executor
        self._share = share
        self._thread: int | None = None
        self._ends_at = math.inf
        self._user_id: str | None = None
        self._error: BaseException | None = None

    @contextmanager
    def asked_until(self, ends_at: float) -> Iterator[None]:
        """Within this block, the present thread waits for the user until `ends_at` at most."""
        self._thread, self._ends_at = threading.get_ident(), ends_at
        try:
            yield
        finally:
            self._thread = None

    def prove(self, _: Inputs) -> str | None:
        """The user id; raises what finding out raised, `UserLate`, and `Busy`."""
        if self._ask is None or self._thread != threading.get_ident():
            return self._find_out()
        try:
            return self._executor.call(self._find_out, ends_at=self._ends_at, share=self._share)
        except Late:
            raise UserLate from None

    def _find_out(self) -> str | None:
        with self._lock:
            if self._ask is not None:
                try:
                    self._user_id = self._ask()
                except BaseException as error:  # noqa: BLE001 (a verifier may raise anything)
                    self._error = error
                self._ask = None
        if self._error is not None:
            raise self._error
        return self._user_id
