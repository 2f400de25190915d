"""The merchants of a third-party platform: their tokens, and refresh tokens that must not be lost.

A platform that loses a refresh token has to ask the merchant to authorize again.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from marshmallow import fields, validate

from prefetch_kit.errors import NotAuthorized, OutcomeUnknown, Refused, SystemBusy, TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import answer_schema, promised, read
from prefetch_kit.weixin.authorizations import APPID_SHAPE, Authorization, read_issued
from prefetch_kit.weixin.component import ComponentCalls
from prefetch_kit.weixin.retry import REPEATS_OF_A_PAGE, pause_s
from prefetch_kit.weixin.token_stores.records import MemoryStore, Store, decode_secret
from prefetch_kit.weixin.tokens import SharedToken

_BAD_REFRESH_TOKEN: Final = 61023
# The code was exchanged before, or is too old.
SPENT_CODE: Final = frozenset({61009, 61010})

# The getAuthorizerList page allows 500: some 70 KB with refresh tokens, more than is read.
_PAGE: Final = 200
_FOUND_S: Final = 60.0
_MERCHANT: Final = answer_schema(
    authorizer_appid=fields.String(required=True, validate=validate.Regexp(APPID_SHAPE)),
    refresh_token=fields.String(load_default=None),
    auth_time=fields.Integer(strict=True, load_default=0),
)
_LIST: Final = answer_schema(
    total_count=fields.Integer(required=True, strict=True),
    list=fields.List(fields.Nested(_MERCHANT), required=True),
)


@dataclass(frozen=True, slots=True)
class ListedMerchant:
    """One merchant in the platform's list.

    `refresh_token` is None where WeChat shows none, as it does until api_query_auth was called
    once. `since` is when the merchant authorized, in WeChat's seconds.
    """

    appid: str
    refresh_token: Secret | None
    since: float


class AuthorizerToken(SharedToken[Authorization]):
    """The `authorizer_access_token` of one merchant's mini program.

    A renewal may give a new refresh token. That is stored, durably and in one step with the
    access token, before the access token is used anywhere; the refresh token before it, and one
    that came when the lock was lost, are kept and tried where the newest is refused. Where all
    are refused, because an answer or the store was lost, the platform's list of merchants is
    asked. Raises TokenSourceError where that does not help.
    """

    def __init__(
        self,
        appid: str,
        merchants: "Authorizers",
        store: Store[Authorization],
        clock: Callable[[], float],
    ) -> None:
        super().__init__(store, clock=clock)
        self._appid = appid
        self._merchants = merchants

    def _issued(self, kept: Authorization | None) -> Authorization:
        known = Authorization((), None, 0.0) if kept is None else kept
        return self._by_code(known) or self._by_kept(known) or self._by_list(known)

    def _came_late(self, issued: Authorization) -> None:
        def rescued(kept: Authorization | None) -> Authorization | None:
            if kept is None:
                return issued
            if not kept.refresh_tokens:
                return None  # the merchant took it back meanwhile
            # Which of the two WeChat takes from now on cannot be told: both are tried.
            return kept.with_fallback(issued.refresh_tokens[0])

        _change(self._store, rescued)

    def _by_code(self, known: Authorization) -> Authorization | None:
        if known.code is None:
            return None
        try:
            appid, issued = self._merchants.exchanged(known.code, since=known.since)
        except Refused as refused:
            if refused.errcode not in SPENT_CODE:
                raise
            return None
        return issued if appid == self._appid else None

    def _by_kept(self, known: Authorization) -> Authorization | None:
        tried: list[Secret] = []
        while untried := [each for each in known.refresh_tokens if each not in tried]:
            for refresh_token in untried:
                try:
                    return self._merchants.refreshed(self._appid, known.since, refresh_token)
                except Refused as refused:
                    if refused.errcode != _BAD_REFRESH_TOKEN:
                        raise
            tried += untried
            # Processes of the first version hold other locks, and may have renewed meanwhile.
            known = self._store.load() or known
        return None

    def _by_list(self, known: Authorization) -> Authorization:
        listed = self._merchants.find(self._appid)
        if listed is None:
            raise self._lost("the merchant has not authorized the platform, or took that back")
        if listed.refresh_token is None:
            raise self._lost("no refresh token is kept here, and the list of merchants shows none")
        if listed.refresh_token in known.refresh_tokens:
            raise self._lost("WeChat refuses the very refresh token that its list shows")
        since = max(known.since, listed.since)
        return self._merchants.refreshed(self._appid, since, listed.refresh_token)

    def _lost(self, problem: str) -> NotAuthorized:
        return NotAuthorized(
            f"the third-party platform for {self._appid}",
            problem,
            remedy="Let the merchant authorize the platform, again if it has before; the list is "
            "read once a minute",
        )


class Authorizers:
    """All merchants of one third-party platform.

    `store_of` opens the store of an appid's authorization.
    """

    def __init__(
        self,
        calls: ComponentCalls,
        store_of: Callable[[str], Store[Authorization]],
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._calls = calls
        self._store_of = store_of
        self._clock = clock
        self._sleep = sleep
        # When the list was read, and all in it: hundreds of merchants may be looked for at once.
        self._found: MemoryStore[tuple[float, dict[str, ListedMerchant]]] = MemoryStore()

    def token(self, appid: str) -> AuthorizerToken:
        """Where the tokens of one merchant's mini program come from."""
        return AuthorizerToken(appid, self, self._store_of(appid), self._clock)

    def listed(self, *, repeats: int = REPEATS_OF_A_PAGE) -> Iterator[ListedMerchant]:
        """Every merchant there is. A page is asked for again at most `repeats` times."""
        offset = 0
        while True:
            total, page = self._page(offset, repeats)
            yield from page
            offset += _PAGE
            if offset >= total or not page:
                return

    def find(self, appid: str) -> ListedMerchant | None:
        """One merchant, in a list that is read once a minute at most; None where it is missing."""
        with self._found.lock():
            kept = self._found.load()
            if kept is None or not 0 <= self._clock() - kept[0] < _FOUND_S:
                # One try: others wait for this, and the caller may hold a lock.
                found = {each.appid: each for each in self.listed(repeats=0)}
                kept = self._found.save((self._clock(), found))
        return kept[1].get(appid)

    def note(self, appid: str, code: Secret, *, since: float) -> None:
        """Keep the authorization code that a merchant gave at `since`, in WeChat's seconds.

        Where it cannot be exchanged now, the merchant's next token comes from it.
        """

        def noted(kept: Authorization | None) -> Authorization | None:
            if kept is None:
                return Authorization((), None, since, code)
            return replace(kept, since=since, code=code) if kept.since < since else None

        _change(self._store_of(appid), noted)

    def accept(self, code: Secret, *, since: float) -> str:
        """Exchange an authorization code for its refresh token, keep that, and return the appid.

        Raises Refused (61009 and 61010: the code is no good) and OutcomeUnknown.
        """
        appid, issued = self.exchanged(code, since=since)
        self._keep(appid, issued)
        return appid

    def exchanged(self, code: Secret, *, since: float) -> tuple[str, Authorization]:
        """Whose an authorization code is, and what it gives; nothing is kept."""
        action, asked_at = "api_query_auth", self._clock()
        issued = read_issued(
            self._calls.post(action, {"authorization_code": code}).get("authorization_info"),
            asked_at,
        )
        issued = promised(action, issued, what="authorization_info with its tokens")
        appid = promised(action, issued.appid, what="authorizer_appid")
        refresh_token = promised(action, issued.refresh_token, what="authorizer_refresh_token")
        return appid, Authorization((refresh_token,), issued.access, since)

    def holds(self, appid: str, *, since: float) -> bool:
        """Whether the tokens of what a merchant authorized at `since`, or later, are kept here."""
        kept = self._store_of(appid).load()
        return kept is not None and kept.code is None and kept.since >= since

    def drop(self, appid: str, *, since: float) -> bool:
        """Forget the tokens of a merchant who took the authorization back at `since`.

        False where the merchant has authorized again meanwhile: then nothing is forgotten.
        """
        return self._keep(appid, Authorization((), None, since))

    def _keep(self, appid: str, authorization: Authorization) -> bool:
        """Save an authorization; False where a newer one is there."""

        def newer(kept: Authorization | None) -> Authorization | None:
            return authorization if kept is None or kept.since <= authorization.since else None

        return _change(self._store_of(appid), newer)

    def recover(self) -> int:
        """Keep the refresh token of each listed merchant that has none here.

        For a store that was lost: one call for 200 merchants. Returns how many were kept. A
        merchant whose store cannot be used is passed over: its token will say why.
        """
        return sum(self._kept_if_missing(each) for each in self.listed())

    def refreshed(self, appid: str, since: float, refresh_token: Secret) -> Authorization:
        """What a refresh token gives; nothing is kept. Raises Refused and OutcomeUnknown."""
        action, asked_at = "api_authorizer_token", self._clock()
        body = {"authorizer_appid": appid, "authorizer_refresh_token": refresh_token}
        issued = promised(
            action,
            read_issued(self._calls.post(action, body), asked_at),
            what="authorizer_access_token with its refresh token",
        )
        # The one that was used stays behind the new one.
        newest = issued.refresh_token or refresh_token
        return Authorization(tuple(dict.fromkeys((newest, refresh_token))), issued.access, since)

    def _kept_if_missing(self, listed: ListedMerchant) -> bool:
        if listed.refresh_token is None:
            return False
        found = Authorization((listed.refresh_token,), None, listed.since)

        def missing(kept: Authorization | None) -> Authorization | None:
            is_there = kept is not None and (kept.refresh_tokens or kept.since > listed.since)
            return None if is_there else found

        store = self._store_of(listed.appid)
        with suppress(TokenSourceError):
            # Mostly nothing is missing, and that can be seen without the lock.
            return missing(store.load()) is not None and _change(store, missing)
        return False

    def _page(self, offset: int, repeats: int) -> tuple[int, list[ListedMerchant]]:
        action, wanted = "api_get_authorizer_list", {"offset": offset, "count": _PAGE}
        tries = 0
        while True:
            try:
                page = _read_page(self._calls.post(action, wanted))
                return promised(action, page, what="list of merchants")
            except (SystemBusy, OutcomeUnknown) as error:
                wait_s = pause_s(error, tries)
                if wait_s is None or tries == repeats:
                    raise
            tries += 1
            self._sleep(wait_s)


def _change(
    store: Store[Authorization],
    changed: Callable[[Authorization | None], Authorization | None],
) -> bool:
    """Save what becomes of the record under its lock; False where that is None: it stays.

    Begins anew where the lock was lost meanwhile and a newer record was saved.
    """
    while True:
        with store.lock():
            authorization = changed(store.load())
            if authorization is None:
                return False
            if store.save(authorization) == authorization:
                return True


def _read_page(answer: dict[str, object]) -> tuple[int, list[ListedMerchant]] | None:
    """How many merchants there are, and those on this page; None if unreadable."""
    page = read(_LIST, answer)
    if page is None:
        return None
    return page["total_count"], [
        ListedMerchant(
            each["authorizer_appid"], decode_secret(each["refresh_token"]), each["auth_time"]
        )
        for each in page["list"]
    ]
