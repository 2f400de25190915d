"""The state of WeChat: apps, users, domains, settings, tokens, and a clock to move."""

import math
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, Literal

from prefetch_kit.sandbox.domains import parse_host
from prefetch_kit.sandbox.errors import NotFoundError, SandboxError
from prefetch_kit.sandbox.faults import Fault
from prefetch_kit.sandbox.settings import FIELDS
from prefetch_kit.sandbox.state import App, LoggedRequest, State, User
from prefetch_kit.sandbox.switches import Switches

MINIPROGRAM: Final = "miniprogram"

# The calls that can be denied to an account or an address, and the errcode of each denial.
DENIALS: Final = {
    40164: frozenset({"token", "fetchdatasetting", "webviewdomain"}),
    40243: frozenset({"token"}),
    48001: frozenset({"fetchdatasetting", "webviewdomain"}),
    61003: frozenset({"fetchdatasetting", "webviewdomain"}),
    40090: frozenset({"component_login"}),
    61004: frozenset({"fetchdatasetting", "webviewdomain", "component", "component_login"}),
    61007: frozenset({"fetchdatasetting", "webviewdomain"}),
    89231: frozenset({"webviewdomain"}),
}


class Platform:
    """The state of the platform. Every method may be called from any thread."""

    def __init__(self, *, log: Callable[[str], None] | None = None) -> None:
        self.lock = threading.RLock()
        self.state = State()
        self.switches = Switches()
        self._log = log

    def reset(self) -> None:
        """Forget everything: apps, users, tokens, faults, the log, switches, the moved clock."""
        with self.lock:
            self.state = State()
            self.switches = Switches()

    def now(self) -> float:
        """The sandbox's time in seconds since the epoch."""
        return time.time() + self.state.ahead_s

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        if not 0 <= seconds < math.inf:
            raise SandboxError(f"seconds is {seconds:g}: the clock only moves forward.")
        with self.lock:
            self.state.ahead_s += seconds

    def add_app(self, appid: str, *, secret: str, kind: str = MINIPROGRAM) -> None:
        """Register an account; any `kind` but a mini program's gets 40166 for its settings."""
        with self.lock:
            self.refuse_taken(appid)
            self.state.apps[appid] = App(appid, secret, kind)

    def add_user(
        self, appid: str, openid: str, *, unionid: str | None = None, blocked: bool = False
    ) -> None:
        """Register a user; the login codes of a blocked one answer 40226."""
        with self.lock:
            app = self.app(appid)
            if not openid or openid in app.users:
                raise SandboxError(
                    f"openid {openid!r} is empty or was added before: choose another."
                )
            app.users[openid] = User(openid, unionid, blocked, active_at=self.now())

    def add_domain(
        self, appid: str, host: str, *, level: Literal["both", "platform", "miniprogram"] = "both"
    ) -> None:
        """Make a host a business domain of the third-party platform, the mini program or both."""
        name = parse_host(host)
        with self.lock:
            domains = self.app(appid).domains
            for accepted, accepting in domains._asdict().items():
                if level in ("both", accepted):
                    accepting.add(name)

    def release(self, appid: str) -> None:
        """A new version goes online: business domains that were set directly become effective.

        Those that were set in the console are deleted, where a platform serves the mini program.
        """
        with self.lock:
            app = self.app(appid)
            app.webview.released = list(app.webview.direct)
            served = any(appid in each.authorizations for each in self.state.components.values())
            if served and self.switches.release_deletes_console_domains:
                app.domains.miniprogram.clear()

    def deny(self, appid: str, errcode: int | None) -> None:
        """Answer this app's calls with a refusal of its account or address; None: no longer.

        A third-party platform can be denied with 61004, or at logins alone with 40090.
        40090, 40164 and 61004 stand for a caller's address, 40243 for a frozen secret, 48001, 61003
        and 61007 for a missing permission, 89231 for the account of a person.
        """
        if errcode is not None and errcode not in DENIALS:
            known = ", ".join(map(str, DENIALS))
            raise SandboxError(f"errcode {errcode} cannot be played here: choose one of {known}.")
        with self.lock:
            (self.state.components.get(appid) or self.app(appid)).denied = errcode

    def settings(self, appid: str) -> dict[str, object]:
        """A copy of the stored wire fields."""
        self.take_late_effects()
        with self.lock:
            return dict(self.app(appid).settings)

    def put_settings(self, appid: str, settings: Mapping[str, object]) -> None:
        """Replace the stored wire fields, unchecked, as if someone had set them by hand."""
        unknown = settings.keys() - FIELDS
        if unknown:
            raise SandboxError(
                f"settings holds {', '.join(sorted(unknown))}: use the wire fields, "
                f"{', '.join(sorted(FIELDS))}."
            )
        with self.lock:
            app = self.app(appid)
            app.settings = dict(settings)
            app.earlier.clear()

    def access_token(self, appid: str) -> str:
        """A valid access token, without a call."""
        with self.lock:
            return self.state.tokens.stable(self.app(appid).appid, now=self.now()).value

    def expire_tokens(self, appid: str) -> None:
        """From now on every issued token of this account is answered with 42001."""
        with self.lock:
            account = self.state.components.get(appid) or self.app(appid)
            self.state.tokens.expire(account.appid, now=self.now())

    def login_code(self, appid: str, openid: str) -> str:
        """What `wx.login()` gives to the mini program: a code for one use within five minutes."""
        with self.lock:
            user = self.user(appid, openid)
            user.active_at = self.now()
            return self.state.codes.issue(appid, openid, now=self.now())

    def inject(self, fault: Fault) -> None:
        """Script a misbehaviour, after those scripted before."""
        with self.lock:
            self.state.faults.add(fault)

    def take_late_effects(self) -> None:
        """Let the calls take effect whose fault delayed that until now."""
        with self.lock:
            now, waiting = self.now(), self.state.late
            due = [each for each in waiting if each.at <= now]
            waiting[:] = [each for each in waiting if each.at > now]
        for effect in sorted(due, key=lambda each: each.at):
            effect.run()

    def requests(self) -> list[LoggedRequest]:
        """The last 10,000 API calls, oldest first."""
        with self.lock:
            return list(self.state.requests)

    def count(self, *, path: str | None = None, action: str | None = None) -> int:
        """How many of `requests()` had this path and action; None means any."""
        return sum(
            path in (None, request.path) and action in (None, request.action)
            for request in self.requests()
        )

    def refuse_taken(self, appid: str) -> None:
        """Raises SandboxError for an appid that no account can be added under."""
        if not appid or appid in self.state.apps or appid in self.state.components:
            raise SandboxError(f"appid {appid!r} is empty or was added before: choose another.")

    def app(self, appid: str) -> App:
        """The live record of an app; hold `lock` while using it."""
        try:
            return self.state.apps[appid]
        except KeyError:
            raise NotFoundError(f"appid {appid!r} is not known: add_app first.") from None

    def user(self, appid: str, openid: str) -> User:
        """The live record of a user; hold `lock` while using it."""
        try:
            return self.app(appid).users[openid]
        except KeyError:
            raise NotFoundError(
                f"openid {openid!r} of {appid} is not known: add_user first."
            ) from None

    def tell(self, line: str) -> None:
        """Pass one line without secrets to the `log` function."""
        if self._log is not None:
            self._log(line)
