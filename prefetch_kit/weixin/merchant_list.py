"""The list of all merchants that authorized a third-party platform.

developers.weixin.qq.com: the getAuthorizerList page. The list of a large platform takes a hundred
calls and more, so it is for many merchants at once, and for those of whom WeChat tells nothing
when it is asked for them alone.
"""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Final

from prefetch_kit.errors import OutcomeUnknown, SystemBusy
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import promised
from prefetch_kit.weixin.authorizations import APPID_SHAPE
from prefetch_kit.weixin.component import ComponentCalls
from prefetch_kit.weixin.retry import REPEATS_OF_A_PAGE, pause_s
from prefetch_kit.weixin.token_stores.records import decode_secret

_ACTION: Final = "api_get_authorizer_list"
# The page allows 500: some 70 KB with refresh tokens, more than is read.
PAGE: Final = 200
# Who is not in a list read so shortly ago is not looked for in another.
_ABSENT_S: Final = 60.0
_SEARCH_S: Final = 15.0
# How often a list that moves is read anew.
_READINGS: Final = 3
_NEVER: Final = float("-inf")


@dataclass(frozen=True, slots=True)
class ListedMerchant:
    """One merchant in the platform's list.

    `refresh_token` is None where WeChat shows none, as it does until api_query_auth was called
    once. `since` is when the merchant authorized, in WeChat's seconds.
    """

    appid: str
    refresh_token: Secret | None
    since: float


class _Reading:
    """One reading of the list: each page begins with the last merchant of the page before it.

    Without that one, the list moved up, and a merchant may have been passed over.
    """

    def __init__(self) -> None:
        self.has_moved = False
        self.is_over = False
        self._last: str | None = None
        self._read = 0
        self._is_empty = False

    @property
    def offset(self) -> int:
        return max(0, self._read - 1)

    def take(self, total: int, page: list[ListedMerchant]) -> list[ListedMerchant] | None:
        """Those of a page that are new; None where it ends before the list does."""
        read = self.offset + len(page)
        if read <= self._read < total:
            return None
        known = [number for number, each in enumerate(page) if each.appid == self._last]
        new = page[known[0] + 1 :] if known else page
        self.has_moved |= bool(page) and self._last is not None and not known
        self._read = read
        self._last = page[-1].appid if page else None
        # That there is nobody at all must be said twice.
        self.is_over = self._read >= total and (total > 0 or self._is_empty)
        self._is_empty = total == 0
        return new


class MerchantList:
    """The list, page by page; methods raise what its calls raise. `clock` is monotonic."""

    def __init__(
        self,
        calls: ComponentCalls,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._calls = calls
        self._clock = clock
        self._sleep = sleep or time.sleep  # looked up now: gevent may have exchanged it
        self._turn = threading.Lock()
        # When each merchant was read, and what of it.
        self._found: dict[str, tuple[float, ListedMerchant]] = {}
        self._began = self._read_at = _NEVER
        self._reading: _Reading | None = None  # one that is not over

    def pages(self) -> Iterator[tuple[int, list[ListedMerchant]]]:
        """Every merchant there is, once, page by page, each with the number of merchants in all.

        Where the list moves meanwhile it is read again. Raises OutcomeUnknown where it does not
        stop.
        """
        seen: set[str] = set()
        for _ in range(_READINGS):
            reading = _Reading()
            while not reading.is_over:
                total, page = self._page(reading, REPEATS_OF_A_PAGE)
                new = {each.appid: each for each in page if each.appid not in seen}
                seen.update(new)
                yield total, [*new.values()]
            if not reading.has_moved:
                return
        problem = "the list changed each time while it was read"
        raise OutcomeUnknown(_ACTION, problem, sent=True, remedy="Try again")

    def find(
        self, appid: str, *, refused: Collection[Secret] = (), wait_s: float = _SEARCH_S
    ) -> ListedMerchant | None:
        """One merchant; None where it is missing.

        All who search at once read one list: each reads a page in its turn, until its merchant has
        come, and a later search goes on where they stopped. Of a merchant whose refresh token is
        among the `refused` ones, only what was read since this search began counts: it may have
        been rotated after the list was read. Raises OutcomeUnknown if `wait_s` is not enough.
        """
        asked_at = self._clock()
        until = asked_at + wait_s
        while (left_s := until - self._clock()) > 0 and self._turn.acquire(timeout=left_s):
            try:
                read_at, listed = self._found.get(appid, (_NEVER, None))
                token = None if listed is None else listed.refresh_token
                if token is not None and token not in refused:
                    return listed
                counts_from = asked_at if token is not None else asked_at - _ABSENT_S
                if read_at >= counts_from or (self._reading is None and self._began >= counts_from):
                    return listed
                self._read_on()
            finally:
                self._turn.release()
        raise OutcomeUnknown(
            _ACTION,
            f"the merchant was not found within {wait_s:g} s, and there are more pages",
            sent=False,
            remedy="Try again, which goes on from there",
        )

    def _read_on(self) -> None:
        """Read the next page, or the first one of another reading."""
        now = self._clock()
        if self._reading is None or now - self._read_at > _ABSENT_S:
            self._began, self._reading = now, _Reading()
        # One try: others wait for this.
        _, page = self._page(self._reading, 0)
        self._read_at = now
        self._found.update((each.appid, (now, each)) for each in page)
        if self._reading.is_over:
            self._found = {
                appid: found for appid, found in self._found.items() if found[0] >= self._began
            }
            # Who is missing in a list that moved may be there.
            self._began = _NEVER if self._reading.has_moved else self._began
            self._reading = None

    def _page(self, reading: _Reading, repeats: int) -> tuple[int, list[ListedMerchant]]:
        """The next page: how many merchants there are, and those on it that are new."""
        wanted, tries = {"offset": reading.offset, "count": PAGE}, 0
        while True:
            failure: SystemBusy | OutcomeUnknown
            try:
                answer = _read_page(self._calls.post(_ACTION, wanted))
                total, page = promised(_ACTION, answer, what="list of merchants")
            except (SystemBusy, OutcomeUnknown) as error:
                failure = error
            else:
                if (new := reading.take(total, page)) is not None:
                    return total, new
                problem = f"the list ends after {reading.offset + 1} of {total} merchants"
                failure = OutcomeUnknown(_ACTION, problem, sent=True, remedy="Try again")
            wait_s = pause_s(failure, tries)
            if wait_s is None or tries == repeats:
                raise failure
            tries += 1
            self._sleep(wait_s)


# Not with a schema, which takes most of a second for a large platform.
def _read_page(answer: dict[str, object]) -> tuple[int, list[ListedMerchant]] | None:
    """How many merchants there are, and those on this page; None if unreadable."""
    total, rows = answer.get("total_count"), answer.get("list")
    if type(total) is not int or not isinstance(rows, list):
        return None
    page = [each for each in map(_read_merchant, rows) if each is not None]
    return (total, page) if len(page) == len(rows) else None


def _read_merchant(row: object) -> ListedMerchant | None:
    """One merchant, whatever else is said of it; None for what has no appid."""
    if not isinstance(row, dict):
        return None
    appid, since = row.get("authorizer_appid"), row.get("auth_time")
    if not isinstance(appid, str) or not APPID_SHAPE.match(appid):
        return None
    refresh_token = decode_secret(row.get("refresh_token"))
    return ListedMerchant(appid, refresh_token, since if type(since) is int else 0)
