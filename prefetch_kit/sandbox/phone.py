"""The phones: what WeChat pulls for them, and what they keep.

Pages: developers.weixin.qq.com/miniprogram/dev/framework/ability/pre-fetch.html and
/miniprogram/dev/framework/ability/background-fetch.html.
"""

import ipaddress
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import urlsplit

from prefetch_kit.sandbox.domains import parse_host
from prefetch_kit.sandbox.errors import SandboxError
from prefetch_kit.sandbox.http_get import Answer, fetch, max_bytes
from prefetch_kit.sandbox.platform import Platform
from prefetch_kit.sandbox.pull import pull_query
from prefetch_kit.sandbox.settings import CLOUD_FUNCTION, PERIOD_FETCH, PRE_FETCH, Half
from prefetch_kit.sandbox.state import App, FetchType, Kept, User

MAX_TOKEN_CHARS: Final = 1024
PERIOD_S: Final = 12 * 3600
ACTIVE_S: Final = 7 * 86_400

_SHOWN_HEADERS: Final = ("Content-Type", "X-Prefetch-Refused")


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """The outcome of one launch or periodic pull.

    `due` is False where WeChat would not pull, and `reason` says why; where it pulled,
    `reason` is empty or says why nothing was kept. `url` is the registered one without its
    query, `bytes` counts at most one byte past the limit, `ms` includes repeats and redirects.
    """

    kind: Literal["pre_fetch", "period_fetch"]
    due: bool
    url: str = ""
    status: int | None = None
    bytes: int = 0
    ms: int = 0
    kept: bool = False
    reason: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Occasion:
    """A pull to be made. It is used outside the lock, so it holds all it needs.

    `reason` says why there is no pull.
    """

    kind: Literal["pre_fetch", "period_fetch"]
    appid: str
    user: User
    url: str
    reason: str
    query: str
    launch: dict[str, object]


class Phones(Platform):
    """The platform together with the phones that use it."""

    def map_origin(self, host: str, origin: str) -> None:
        """Connect to this loopback origin, like `http://127.0.0.1:8000`, for a registered host."""
        if not _is_loopback_origin(origin):
            raise SandboxError(
                "the origin is not of the form http://127.0.0.1:PORT: "
                "the sandbox connects to this machine only."
            )
        with self.lock:
            self.state.origins[parse_host(host)] = origin.rstrip("/")

    def origins(self) -> dict[str, str]:
        """The map of registered hosts to loopback origins."""
        with self.lock:
            return dict(self.state.origins)

    def origin(self, host: str) -> str | None:
        """The loopback origin a registered host is mapped to."""
        return self.origins().get(host.lower())

    def set_background_fetch_token(self, appid: str, openid: str, token: str) -> None:
        """What `wx.setBackgroundFetchToken` does; at most 1024 characters."""
        if not 1 <= len(token) <= MAX_TOKEN_CHARS:
            raise SandboxError(
                f"token has {len(token)} characters: the phone takes 1 to {MAX_TOKEN_CHARS}."
            )
        with self.lock:
            user = self.user(appid, openid)
            user.active_at = self.now()
            user.background_token = token

    def cold_start(
        self,
        appid: str,
        openid: str,
        *,
        path: str = "pages/index/index",
        query: str = "",
        scene: int = 1001,
    ) -> Pulled:
        """The user opens the mini program: WeChat pre-fetches, if that is on."""
        launch: dict[str, object] = {"path": path, "query": query, "scene": scene}
        self.take_late_effects()
        with self.lock:
            app, user = self.app(appid), self.user(appid, openid)
            user.active_at = self.now()
            reason = _unset(app, PRE_FETCH)
            # A code is issued only where it is sent.
            asked = "" if reason else self._query(app, user, launch, with_code=True)
            url = str(app.settings.get(PRE_FETCH.url, ""))
            occasion = _Occasion("pre_fetch", appid, user, url, reason, asked, launch)
        return self._pull(occasion)

    def periodic_pull(self, appid: str, openid: str, *, force: bool = False) -> Pulled:
        """WeChat's periodic pull, if it is due; with `force` in any case."""
        self.take_late_effects()
        with self.lock:
            app, user = self.app(appid), self.user(appid, openid)
            reason = _unset(app, PERIOD_FETCH) or self._without_token(user)
            if not force:
                reason = reason or self._too_early(user)
            asked = self._query(app, user, {}, with_code=False)
            url = str(app.settings.get(PERIOD_FETCH.url, ""))
            occasion = _Occasion("period_fetch", appid, user, url, reason, asked, {})
        return self._pull(occasion)

    def background_fetch_data(
        self,
        appid: str,
        openid: str,
        *,
        fetch_type: FetchType = "pre",
        platform: Literal["android", "ios"] = "android",
    ) -> dict[str, object]:
        """What `wx.getBackgroundFetchData` hands to the mini program on this phone."""
        with self.lock:
            kept = self.user(appid, openid).kept.get(fetch_type)
        if kept is None:
            return _nothing_kept(platform)
        seconds = platform == "ios" and self.switches.ios_time_stamp_unit == "s"
        return {
            "errMsg": "getBackgroundFetchData:ok",
            "fetchedData": kept.text,
            "timeStamp": int(kept.kept_at if seconds else kept.kept_at * 1000),
            **kept.launch,
        }

    def _query(self, app: App, user: User, launch: Mapping[str, object], *, with_code: bool) -> str:
        credential = {}
        if user.background_token is not None:
            credential["token"] = user.background_token
        elif with_code and self.switches.code_without_token:
            code = self.state.codes.issue(app.appid, user.openid, now=self.now())
            credential["code"] = code
        return pull_query(app.appid, credential, launch, now=self.now(), switches=self.switches)

    def _without_token(self, user: User) -> str:
        needed = not self.switches.periodic_without_token
        return "token not set" if needed and user.background_token is None else ""

    def _too_early(self, user: User) -> str:
        if self.now() - user.active_at > ACTIVE_S:
            return "not active in the last 7 days"
        kept = user.kept.get("periodic")
        if kept is not None and self.now() - kept.kept_at < PERIOD_S:
            return "less than 12 hours since the last success"
        return ""

    def _pull(self, occasion: _Occasion) -> Pulled:
        if occasion.reason:
            return self._report(occasion.appid, _not_due(occasion))
        # The platform appends with "?" even where the URL already holds one.
        url = f"{occasion.url}?{occasion.query}"
        started = time.monotonic()
        answer = fetch(url, origins=self.origins(), switches=self.switches)
        spent_s = time.monotonic() - started
        reason, text = self._judge(answer)
        if not reason:
            self._keep(occasion, text)
        pulled = Pulled(
            kind=occasion.kind,
            due=True,
            url=_without_query(occasion.url),
            status=answer.status,
            bytes=len(answer.body),
            ms=round(spent_s * 1000),
            kept=not reason,
            reason=reason,
            headers=_shown_headers(answer),
        )
        return self._report(occasion.appid, pulled)

    def _judge(self, answer: Answer) -> tuple[str, str]:
        if answer.problem:
            return answer.problem, ""
        if answer.status != 200 and not self.switches.keeps_any_status:
            return f"status {answer.status}", ""
        if not answer.body:
            return "empty", ""
        if len(answer.body) > max_bytes(self.switches):
            return "too large", ""
        try:
            return "", answer.body.decode()
        except UnicodeDecodeError:
            return "not text", ""

    def _keep(self, occasion: _Occasion, text: str) -> None:
        fetch_type: FetchType = "pre" if occasion.kind == "pre_fetch" else "periodic"
        with self.lock:
            occasion.user.kept[fetch_type] = Kept(text, self.now(), occasion.launch)

    def _report(self, appid: str, pulled: Pulled) -> Pulled:
        outcome = "kept" if pulled.kept else pulled.reason
        seen = f" {pulled.status or 'no status'}, {pulled.bytes} bytes, {pulled.ms} ms"
        self.tell(f"{pulled.kind} {appid} {pulled.url}{seen if pulled.due else ''}: {outcome}")
        return pulled


def _unset(app: App, half: Half) -> str:
    """Why these settings lead to no pull; empty if they lead to one."""
    if half.open not in app.settings:
        return "not configured"
    if not app.settings[half.open]:
        return "switched off"
    if app.settings.get(half.source) == CLOUD_FUNCTION:
        return "cloud function"
    return "" if app.settings.get(half.url) else "not configured"


def _not_due(occasion: _Occasion) -> Pulled:
    url = _without_query(occasion.url)
    return Pulled(kind=occasion.kind, due=False, url=url, reason=occasion.reason)


def _without_query(url: str) -> str:
    return url.partition("?")[0]


def _shown_headers(answer: Answer) -> dict[str, str]:
    named = {name: answer.headers.get(name.lower()) for name in _SHOWN_HEADERS}
    return {name: value for name, value in named.items() if value is not None}


def _nothing_kept(platform: Literal["android", "ios"]) -> dict[str, object]:
    if platform == "android":
        return {"errMsg": "getBackgroundFetchData:fail record not found"}
    return {"errMsg": "getBackgroundFetchData:ok", "fetchedData": ""}


def _is_loopback_origin(origin: str) -> bool:
    try:
        parts = urlsplit(origin)
        host, port = parts.hostname or "", parts.port
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
    bare = not (parts.username or parts.path.strip("/") or parts.query or parts.fragment)
    return parts.scheme == "http" and port is not None and is_loopback and bare
