"""The platform's own list of the merchants that authorized it.

developers.weixin.qq.com: the getAuthorizerList page.
"""

import random
import time
from collections.abc import Callable, Iterator
from typing import Final

from prefetch_kit.errors import OutcomeUnknown, SystemBusy
from prefetch_kit.weixin.authorizations import ListedMerchant, read_list
from prefetch_kit.weixin.component import ComponentCalls
from prefetch_kit.weixin.token_stores.records import MemoryStore
from prefetch_kit.weixin.tokens import promised

# The page allows 500, which with their refresh tokens are some 70 KB: more than is read of an
# answer.
_PAGE: Final = 200
_PAUSE_S: Final = 2.0
_FOUND_S: Final = 60.0


class AuthorizerList:
    """Reads the list. Raises Refused and OutcomeUnknown."""

    def __init__(
        self,
        calls: ComponentCalls,
        *,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._calls = calls
        self._clock = clock
        self._sleep = sleep
        # When the list was read, and all in it: hundreds of merchants may be looked for at once.
        self._found: MemoryStore[tuple[float, dict[str, ListedMerchant]]] = MemoryStore()

    def read(self, *, tries: int = 3) -> Iterator[ListedMerchant]:
        """Every merchant there is. A page that WeChat fails to give is asked for `tries` times."""
        offset = 0
        while True:
            total, page = self._page(offset, tries)
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
                found = {each.appid: each for each in self.read(tries=1)}
                kept = self._found.save((self._clock(), found))
        return kept[1].get(appid)

    def _page(self, offset: int, tries: int) -> tuple[int, list[ListedMerchant]]:
        action = "api_get_authorizer_list"
        for left in reversed(range(tries)):
            try:
                page = read_list(self._calls.post(action, {"offset": offset, "count": _PAGE}))
                return promised(action, page, what="list of merchants")
            except (SystemBusy, OutcomeUnknown):
                if not left:
                    raise
                self._sleep(random.uniform(0, _PAUSE_S))
        raise AssertionError
