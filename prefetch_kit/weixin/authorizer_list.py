"""The platform's own list of the merchants that authorized it.

developers.weixin.qq.com: the getAuthorizerList page.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from marshmallow import fields, validate

from prefetch_kit.errors import OutcomeUnknown, SystemBusy
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import answer_schema, promised, read
from prefetch_kit.weixin.authorizations import APPID_SHAPE
from prefetch_kit.weixin.component import ComponentCalls
from prefetch_kit.weixin.retry import pause_s
from prefetch_kit.weixin.token_stores.records import MemoryStore, decode_secret

# The page allows 500: some 70 KB with their refresh tokens, which is more than is read.
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

    def read(self, *, repeats: int = 2) -> Iterator[ListedMerchant]:
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
                found = {each.appid: each for each in self.read(repeats=0)}
                kept = self._found.save((self._clock(), found))
        return kept[1].get(appid)

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
