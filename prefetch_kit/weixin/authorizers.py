"""The merchants of a third-party platform: their tokens, and what must never be lost.

developers.weixin.qq.com: the getAuthorizerRefreshToken, getAuthorizerAccessToken and
getAuthorizerList pages. Who loses a refresh token has to ask the merchant to authorize again.
"""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Final

from prefetch_kit.errors import (
    NotAuthorized,
    OutcomeUnknown,
    Refused,
    SystemBusy,
    TokenSourceError,
)
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.component import ComponentCalls
from prefetch_kit.weixin.grants import Grant, Listed, read_given, read_list
from prefetch_kit.weixin.token_store import MemoryStore, Store
from prefetch_kit.weixin.tokens import KeptToken, promised

_BAD_REFRESH_TOKEN: Final = 61023
_BAD_CODE: Final = frozenset({61009, 61010})
# The getAuthorizerList page allows 500, which with their refresh tokens are some 70 KB: more than
# is read of an answer.
_PAGE: Final = 200
_PAUSE_S: Final = 2.0
_FOUND_S: Final = 60.0
_MOST_REFRESH_TOKENS: Final = 3


class AuthorizerToken(KeptToken[Grant]):
    """The `authorizer_access_token` of one merchant's mini program.

    A renewal may give a new refresh token. That is stored, durably and in one step with the
    access token, before the access token goes anywhere; the refresh token before it, and one
    that came when the lock was lost, are kept and tried where the newest is refused. Where all
    are, because an answer or the store was lost, the platform's list of merchants is asked.
    Raises TokenSourceError where that does not help.
    """

    def __init__(
        self, appid: str, merchants: "Authorizers", store: Store[Grant], clock: Callable[[], float]
    ) -> None:
        super().__init__(store, clock=clock)
        self._appid = appid
        self._merchants = merchants

    def _issued(self, kept: Grant | None) -> Grant:
        grant = Grant((), None, 0.0) if kept is None else kept
        return self._by_code(grant) or self._by_kept(grant) or self._by_list(grant)

    def _came_late(self, issued: Grant) -> None:
        def rescued(kept: Grant | None) -> Grant | None:
            if kept is None:
                return issued
            if not kept.refresh_tokens:
                return None  # the merchant took it back meanwhile
            # Which of the two WeChat takes from now on cannot be told: both are tried.
            newest, *older = kept.refresh_tokens
            known = tuple(dict.fromkeys((newest, *issued.refresh_tokens[:1], *older)))
            return replace(kept, refresh_tokens=known[:_MOST_REFRESH_TOKENS])

        _change(self._store, rescued)

    def _by_code(self, grant: Grant) -> Grant | None:
        if grant.code is None:
            return None
        try:
            appid, given = self._merchants.exchanged(grant.code, since=grant.since)
        except Refused as refused:
            if refused.errcode not in _BAD_CODE:
                raise
            return None
        return given if appid == self._appid else None

    def _by_kept(self, grant: Grant) -> Grant | None:
        for refresh_token in grant.refresh_tokens:
            try:
                return self._merchants.refreshed(self._appid, grant.since, refresh_token)
            except Refused as refused:
                if refused.errcode != _BAD_REFRESH_TOKEN:
                    raise
        return None

    def _by_list(self, grant: Grant) -> Grant:
        listed = self._merchants.find(self._appid)
        if listed is None:
            raise self._lost("the merchant has not authorized the platform, or took that back")
        if listed.refresh_token is None:
            raise self._lost("no refresh token is kept here, and the list of merchants shows none")
        if listed.refresh_token in grant.refresh_tokens:
            raise self._lost("WeChat refuses the very refresh token that its list shows")
        since = max(grant.since, listed.since)
        return self._merchants.refreshed(self._appid, since, listed.refresh_token)

    def _lost(self, problem: str) -> NotAuthorized:
        return NotAuthorized(
            f"the third-party platform for {self._appid}",
            problem,
            remedy="Let the merchant authorize the platform, again if it has before; the list is "
            "read once a minute",
        )


class Authorizers:
    """All merchants of one third-party platform. `store_of` gives the store of an appid's grant."""

    def __init__(
        self,
        calls: ComponentCalls,
        store_of: Callable[[str], Store[Grant]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._calls = calls
        self._store_of = store_of
        self._clock = clock
        # When the list was read, and all in it: hundreds may be looked for at once.
        self._found: MemoryStore[tuple[float, dict[str, Listed]]] = MemoryStore()

    def token(self, appid: str) -> AuthorizerToken:
        """Where the tokens of one merchant's mini program come from."""
        return AuthorizerToken(appid, self, self._store_of(appid), self._clock)

    def note(self, appid: str, code: Secret, *, since: float) -> None:
        """Keep the authorization code that a merchant gave at `since`, in WeChat's seconds.

        Where it cannot be exchanged now, it is with the merchant's next token.
        """

        def noted(kept: Grant | None) -> Grant | None:
            if kept is None:
                return Grant((), None, since, code)
            return replace(kept, since=since, code=code) if kept.since < since else None

        _change(self._store_of(appid), noted)

    def accept(self, code: Secret, *, since: float) -> str:
        """Exchange an authorization code for its refresh token, keep that, and return the appid.

        Raises Refused (61009 and 61010: the code is no good) and OutcomeUnknown.
        """
        appid, grant = self.exchanged(code, since=since)
        _change(
            self._store_of(appid),
            lambda kept: grant if kept is None or kept.since <= since else None,
        )
        return appid

    def exchanged(self, code: Secret, *, since: float) -> tuple[str, Grant]:
        """Whose an authorization code is, and what it gives; nothing is kept."""
        action, asked_at = "api_query_auth", self._clock()
        given = read_given(
            self._calls.post(action, {"authorization_code": code}).get("authorization_info"),
            asked_at,
        )
        given = promised(action, given, what="authorization_info with its tokens")
        appid = promised(action, given.appid, what="authorizer_appid")
        refresh_token = promised(action, given.refresh_token, what="authorizer_refresh_token")
        return appid, Grant((refresh_token,), given.access, since)

    def holds(self, appid: str, *, since: float) -> bool:
        """Whether what a merchant granted at `since`, or later, is kept here."""
        kept = self._store_of(appid).load()
        return kept is not None and kept.code is None and kept.since >= since

    def drop(self, appid: str, *, since: float) -> bool:
        """Forget the tokens of a merchant who took the authorization back at `since`.

        False where the merchant has authorized again meanwhile: then nothing is forgotten.
        """
        return _change(
            self._store_of(appid),
            lambda kept: Grant((), None, since) if kept is None or kept.since <= since else None,
        )

    def listed(self, *, tries: int = 3) -> Iterator[Listed]:
        """Every merchant there is, asked for by pages. Raises Refused and OutcomeUnknown.

        Each page is asked for so often, where WeChat is busy or gives no answer.
        """
        offset = 0
        while True:
            total, page = self._page(offset, tries)
            yield from page
            offset += _PAGE
            if offset >= total or not page:
                return

    def find(self, appid: str) -> Listed | None:
        """One merchant in the list, read once a minute at most; None where it is not there."""
        with self._found.lock():
            kept = self._found.load()
            if kept is None or not 0 <= self._clock() - kept[0] < _FOUND_S:
                # Once: others wait for this, and whoever asks may hold a lock of its own.
                found = {each.appid: each for each in self.listed(tries=1)}
                kept = self._found.save((self._clock(), found))
        return kept[1].get(appid)

    def recover(self) -> int:
        """Keep the refresh token of each listed merchant of whom none is kept here.

        For a store that was lost: one call for 200 merchants. Returns how many were kept. A
        merchant whose store cannot be used is passed over: its token will say why.
        """
        return sum(self._kept_if_missing(each) for each in self.listed())

    def refreshed(self, appid: str, since: float, refresh_token: Secret) -> Grant:
        """What a refresh token gives; nothing is kept. Raises Refused and OutcomeUnknown."""
        action, asked_at = "api_authorizer_token", self._clock()
        body = {"authorizer_appid": appid, "authorizer_refresh_token": refresh_token}
        given = promised(
            action,
            read_given(self._calls.post(action, body), asked_at),
            what="authorizer_access_token with its refresh token",
        )
        # The one that was used stays behind the new one.
        newest = given.refresh_token or refresh_token
        return Grant(tuple(dict.fromkeys((newest, refresh_token))), given.access, since)

    def _page(self, offset: int, tries: int) -> tuple[int, list[Listed]]:
        action = "api_get_authorizer_list"
        for left in reversed(range(tries)):
            try:
                page = read_list(self._calls.post(action, {"offset": offset, "count": _PAGE}))
                return promised(action, page, what="list of merchants")
            except (SystemBusy, OutcomeUnknown):
                if not left:
                    raise
                time.sleep(random.uniform(0, _PAUSE_S))
        raise AssertionError

    def _kept_if_missing(self, listed: Listed) -> bool:
        if listed.refresh_token is None:
            return False
        found = Grant((listed.refresh_token,), None, listed.since)

        def missing(kept: Grant | None) -> Grant | None:
            is_there = kept is not None and (kept.refresh_tokens or kept.since > listed.since)
            return None if is_there else found

        store = self._store_of(listed.appid)
        with suppress(TokenSourceError):
            # Mostly nothing is missing, and that can be seen without the lock.
            return missing(store.load()) is not None and _change(store, missing)
        return False


def _change(store: Store[Grant], changed: Callable[[Grant | None], Grant | None]) -> bool:
    """Save what becomes of the record under its lock; False where that is None: it stays.

    Begins anew where the lock was lost meanwhile and a newer record stands there.
    """
    while True:
        with store.lock():
            grant = changed(store.load())
            if grant is None:
                return False
            if store.save(grant) == grant:
                return True
