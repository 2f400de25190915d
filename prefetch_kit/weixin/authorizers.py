"""The merchants of a third-party platform: their tokens, and refresh tokens that must not be lost.

developers.weixin.qq.com: the getAuthorizerAccessToken, getAuthorizerRefreshToken and
getAuthorizerInfo pages.
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Final

from prefetch_kit.errors import NotAuthorized, OutcomeUnknown, Refused, TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import promised
from prefetch_kit.weixin.authorizations import Authorization, Rescued
from prefetch_kit.weixin.component import ComponentCalls
from prefetch_kit.weixin.errcodes import AUTHORIZE
from prefetch_kit.weixin.merchant_list import PAGE, ListedMerchant, MerchantList
from prefetch_kit.weixin.token_stores.records import Store, StoredToken
from prefetch_kit.weixin.tokens import SharedToken, read_token

_RENEWAL: Final = "api_authorizer_token"
_INFO: Final = "api_get_authorizer_info"
_NOT_AUTHORIZED: Final = 61003
_BAD_REFRESH_TOKEN: Final = 61023
# The code was exchanged before, or is too old.
SPENT_CODE: Final = frozenset({61009, 61010})
_PASSING: Final = frozenset({"transient", "quota_minute"})

# So few are asked for one by one rather than looked for in the list.
_FEW: Final = 10
# An authorization that changed later than this, in seconds from now, did so by another clock.
_AHEAD_S: Final = 300.0

# How often what the list shows is tried: another process may renew at the same time.
_ROUNDS: Final = 3

_ABSENT: Final = "the merchant has not authorized the platform, or took that back"
_REFUSED: Final = "WeChat refuses the very refresh token that it shows"
_ASKED: Final = "api_get_authorizer_info and api_get_authorizer_list were asked for another"


class _AllRefusedError(Exception):
    """WeChat takes none of the refresh tokens that are kept, or it shows itself."""

    def __init__(self, refused: Collection[Secret]) -> None:
        self.refused = refused


class AuthorizerToken(SharedToken[Authorization]):
    """The `authorizer_access_token` of one merchant's mini program.

    A renewal may give a new refresh token. That is stored, durably and in one step with the
    access token, before the access token is used anywhere; the refresh token before it, and one
    that came when the lock was lost, are kept and tried where the newest is refused. Where all
    are refused, because an answer or the store was lost, WeChat is asked for the one it takes:
    for this merchant alone, and if that fails, in the platform's list of merchants. Raises
    NotAuthorized where that does not help.
    """

    _action = _RENEWAL

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

    def renew(self, failed: Secret | None) -> Secret:
        refused: set[Secret] = set()
        for _ in range(_ROUNDS):
            try:
                return super().renew(failed)
            except _AllRefusedError as error:
                refused.update(error.refused)
            # The list may take long to read: nobody has to wait for that at the store's lock.
            self._merchants.keep_newest(self._appid, *self._listed(refused))
        raise self._lost(_REFUSED)

    def _issued(self, kept: Authorization | None) -> Authorization:
        known = Authorization((), None, 0.0) if kept is None else kept
        refused: list[Secret] = []
        if kept is not None:  # what is used up by asking must not be lost to a full disk
            self._store.reserve(kept)
        issued = (
            self._by_code(known) or self._by_kept(known, refused) or self._by_info(known, refused)
        )
        if issued is None:
            raise _AllRefusedError(refused)
        return issued

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
            appid, issued = self._merchants.exchanged(
                known.code, since=known.since, merchant=self._appid
            )
        except Refused as refused:
            if refused.errcode not in SPENT_CODE:
                raise
            return None
        return issued if appid == self._appid else None

    def _by_kept(self, known: Authorization, refused: list[Secret]) -> Authorization | None:
        while untried := [each for each in known.refresh_tokens if each not in refused]:
            for refresh_token in untried:
                if (issued := self._by(refresh_token, known, refused)) is not None:
                    return issued
            # Processes of the first version hold other locks, and may have renewed meanwhile.
            known = self._store.load() or known
        return None

    def _by_info(self, known: Authorization, refused: list[Secret]) -> Authorization | None:
        """By what WeChat shows of this merchant; None where it shows nothing that it takes."""
        errcode, shown = 0, tuple[Secret, ...]()
        try:
            shown = self._merchants.shown(self._appid)
        except Refused as error:
            if error.action != _INFO or error.kind in _PASSING:
                raise
            errcode = error.errcode
        except OutcomeUnknown as error:
            if error.action != _INFO:
                raise
        if errcode == _NOT_AUTHORIZED:
            raise self._lost(_ABSENT)
        untried = next((each for each in shown if each not in refused), None)
        return None if untried is None else self._by(untried, known, refused)

    def _by(
        self, refresh_token: Secret, known: Authorization, refused: list[Secret]
    ) -> Authorization | None:
        """By one refresh token; None where it is refused, and noted as that."""
        try:
            return self._merchants.refreshed(self._appid, known.since, refresh_token)
        except Refused as error:
            if error.errcode != _BAD_REFRESH_TOKEN:
                raise
        refused.append(refresh_token)
        return None

    def _listed(self, refused: Collection[Secret]) -> tuple[Secret, float]:
        """The refresh token that the list shows, and since when; never a refused one."""
        listed = self._merchants.listing.find(self._appid, refused=refused)
        if listed is None:
            raise self._lost(_ABSENT)
        if listed.refresh_token is None:
            raise self._lost("no refresh token is kept here, and WeChat shows none")
        if listed.refresh_token in refused:
            raise self._lost(_REFUSED)
        return listed.refresh_token, listed.since

    def _lost(self, problem: str) -> NotAuthorized:
        source = f"the third-party platform for {self._appid}"
        # WeChat pushes nothing if what is granted stays the same, so only the link's code helps.
        remedy = AUTHORIZE if problem == _ABSENT else f"{_ASKED}. {AUTHORIZE}"
        return NotAuthorized(source, problem, remedy=remedy)


class Authorizers:
    """All merchants of one third-party platform; `listing` is WeChat's list of them.

    `store_of` opens the store of an appid's authorization.
    """

    def __init__(
        self,
        calls: ComponentCalls,
        store_of: Callable[[str], Store[Authorization]],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.listing: Final = MerchantList(calls)
        self._calls = calls
        self._store_of = store_of
        self._clock = clock

    def token(self, appid: str) -> AuthorizerToken:
        """Where the tokens of one merchant's mini program come from."""
        return AuthorizerToken(appid, self, self._store_of(appid), self._clock)

    def note(self, appid: str, code: Secret, *, since: float) -> None:
        """Keep the authorization code that a merchant gave at `since`, in WeChat's seconds.

        Where it cannot be exchanged now, the merchant's next token comes from it.
        """

        def noted(kept: Authorization | None) -> Authorization | None:
            if kept is None:
                return Authorization((), None, since, code)
            return replace(kept, since=since, code=code) if self._age(kept) < since else None

        _change(self._store_of(appid), noted)

    def accept(self, code: Secret, *, since: float, merchant: str | None = None) -> str:
        """Exchange an authorization code for its refresh token, keep that, and return the appid.

        `merchant` is the appid it is said to be of. Raises Refused (61009 and 61010: the code is
        no good) and OutcomeUnknown.
        """
        appid, issued = self.exchanged(code, since=since, merchant=merchant)
        self._keep(appid, issued)
        return appid

    def exchanged(
        self, code: Secret, *, since: float, merchant: str | None = None
    ) -> tuple[str, Authorization]:
        """Whose an authorization code is, and what it gives; nothing is kept.

        Where the answer does not say whose it is, it is the `merchant`'s.
        """
        action = "api_query_auth"
        rescued, access = self._asked(action, {"authorization_code": code})
        appid = promised(action, rescued.appid or merchant, what="authorizer_appid")
        if not rescued.refresh_tokens:
            promised(action, None, what="authorizer_refresh_token")
        return appid, Authorization(rescued.refresh_tokens, access, since)

    def refreshed(self, appid: str, since: float, refresh_token: Secret) -> Authorization:
        """What a refresh token gives; nothing is kept. Raises Refused and OutcomeUnknown.

        Without an access token where that cannot be used, but something new can be kept.
        """
        body = {"authorizer_appid": appid, "authorizer_refresh_token": refresh_token}
        rescued, access = self._asked(_RENEWAL, body)
        if rescued.appid not in (None, appid):
            access = None  # one merchant's settings are never written with another's token
        # The one that was used stays behind the new one.
        return Authorization((refresh_token,), access, since).with_newest(*rescued.refresh_tokens)

    def shown(self, appid: str) -> tuple[Secret, ...]:
        """The refresh token that WeChat shows of one merchant; empty where it shows none.

        Raises Refused (61003: it has not authorized the platform) and OutcomeUnknown.
        """
        rescued = Rescued()
        self._calls.post(_INFO, {"authorizer_appid": appid}, on_answer=rescued.take)
        return rescued.refresh_tokens

    def _asked(self, action: str, body: Mapping[str, object]) -> tuple[Rescued, StoredToken | None]:
        """What WeChat gives for a code or a refresh token.

        A code is used up by that, and a refresh token may be. So no answer is an error of which
        something can be kept.
        """
        rescued, asked_at = Rescued(), self._clock()
        failure: Refused | OutcomeUnknown | None = None
        access = None
        try:
            access = _read_access(self._calls.post(action, body, on_answer=rescued.take), asked_at)
        except (Refused, OutcomeUnknown) as error:
            failure = error
        if access is None and not rescued.refresh_tokens:
            raise failure or promised(action, None, what="authorizer_access_token")
        return rescued, access

    def holds(self, appid: str, *, since: float) -> bool:
        """Whether the tokens of what a merchant authorized at `since`, or later, are kept here."""
        kept = self._store_of(appid).load()
        return kept is not None and kept.code is None and kept.since >= since

    def drop(self, appid: str, *, since: float) -> bool:
        """Forget the tokens of a merchant who took the authorization back at `since`.

        False where the merchant has authorized again meanwhile: then nothing is forgotten.
        """
        return self._keep(appid, Authorization((), None, since))

    def keep_newest(self, appid: str, refresh_token: Secret, since: float) -> None:
        """Keep the refresh token that WeChat shows, to be tried before all others."""

        def added(kept: Authorization | None) -> Authorization:
            known = Authorization((), None, since) if kept is None else kept
            return replace(known, since=max(known.since, since)).with_newest(refresh_token)

        _change(self._store_of(appid), added)

    def recover(self, appids: Iterable[str], *, shown: Callable[[int, int], object]) -> int:
        """Keep the refresh tokens that the list shows of these merchants and that are missing here.

        For a store that was lost. Where fewer are missing than the list has pages, none is kept:
        the token of each asks for it alone. `shown` is told with each page how many merchants
        were read, and how many there are. Returns how many were kept.
        """
        missing = {appid for appid in appids if self._is_missing(appid)}
        kept = read = 0
        for total, page in self.listing.pages() if len(missing) > _FEW else ():
            read += len(page)
            shown(read, total)
            kept += sum(self.keep_missing(each) for each in page if each.appid in missing)
            missing.difference_update(each.appid for each in page)
            if len(missing) <= max(0, total - read) / PAGE:
                break
        return kept

    def keep_missing(self, listed: ListedMerchant) -> bool:
        """Keep the refresh token that the list shows of a merchant if none is kept here.

        A merchant whose store cannot be used is passed over: its token will say why.
        """
        if listed.refresh_token is None:
            return False
        found = Authorization((listed.refresh_token,), None, listed.since)

        def missing(kept: Authorization | None) -> Authorization | None:
            is_there = kept is not None and (kept.refresh_tokens or self._age(kept) > found.since)
            return None if is_there else found

        store = self._store_of(listed.appid)
        with suppress(TokenSourceError):
            # Mostly nothing is missing, and that can be seen without the lock.
            return missing(store.load()) is not None and _change(store, missing)
        return False

    def _is_missing(self, appid: str) -> bool:
        with suppress(TokenSourceError):
            kept = self._store_of(appid).load()
            return kept is None or not (kept.refresh_tokens or kept.code)
        return False

    def _keep(self, appid: str, authorization: Authorization) -> bool:
        """Save an authorization; False where a newer one is there."""

        def newer(kept: Authorization | None) -> Authorization | None:
            is_newer = kept is None or self._age(kept) <= authorization.since
            return authorization if is_newer else None

        return _change(self._store_of(appid), newer)

    def _age(self, kept: Authorization) -> float:
        """When what is kept changed; long ago where it is said to do so in the future.

        Else what a wrong clock said, WeChat's or that of a sandbox, would outlast all that really
        comes after it.
        """
        return kept.since if kept.since <= self._clock() + _AHEAD_S else 0.0


def _read_access(answer: Mapping[str, object], asked_at: float) -> StoredToken | None:
    """The access token of api_authorizer_token, or the one inside of api_query_auth's answer."""
    inside = answer.get("authorization_info", answer)
    if not isinstance(inside, dict):
        return None
    return read_token(inside, asked_at, name="authorizer_access_token")


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
