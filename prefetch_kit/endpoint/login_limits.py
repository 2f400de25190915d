"""How often WeChat is asked about login codes: anyone can make codes up, and each ask counts."""

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, TypeVar

from prefetch_kit.errors import NotAsked, OutcomeUnknown, QuotaReached, SystemBusy, WeixinError
from prefetch_kit.logs import SafeLogger

# Codes that are no good, in each process; good ones cost nothing. The code2Session page allows
# 100 calls a minute for each user, and it is disputed whether that is for each app: the burst
# and a minute's refill together stay below it.
BURST: Final = 30
PER_S: Final = 0.5
# All mini programs together: what four of them have.
BURST_OF_ALL: Final = 4 * BURST
PER_S_OF_ALL: Final = 4 * PER_S
# Each ask holds a thread while WeChat thinks, a second at most.
MAX_ASKING: Final = 8

FAILURES_IN_A_ROW: Final = 3
PAUSES_S: Final = (2, 4, 8, 16, 32, 64)
# A daily quota comes back at midnight, but by WeChat's clock.
DAY_PAUSE_S: Final = 600
WARN_EVERY_S: Final = 60

_Outage = OutcomeUnknown | QuotaReached | SystemBusy
_T = TypeVar("_T")


class LoginLimits:
    """Lets few enough codes through to WeChat, and none for a while after it failed.

    Each mini program of `appids` has its own budget and breaker, all other appids share one, and
    there is one budget for all together. Only a code that WeChat rejects costs.
    """

    def __init__(self, appids: Iterable[str], *, logger: SafeLogger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._asking = 0
        self._bucket = _Bucket(BURST_OF_ALL, PER_S_OF_ALL)
        self._accounts = {appid: _Account(appid) for appid in appids}
        self._others = _Account("other appids")
        self._warned_at = -math.inf

    def ask(self, appid: str, exchange: Callable[[], _T | None]) -> _T | None:
        """What `exchange` returns or raises; it is called without a lock. None is a bad code.

        Raises `NotAsked` at once where WeChat must not be asked now.
        """
        account = self._accounts.get(appid, self._others)
        opening = self._enter(account)
        try:
            found = exchange()
        except BaseException as error:
            self._leave(account, opening, error)
            raise
        self._leave(account, opening, found)
        return found

    def _enter(self, account: "_Account") -> int:
        with self._lock:
            now = time.monotonic()
            refusal = self._refusal(account, now)
            if refusal is None:
                self._asking += 1
                return account.breaker.enter()
            # A breaker has warned when it opened.
            warns = not account.breaker.is_open and now >= self._warned_at + WARN_EVERY_S
            if warns:
                self._warned_at = now
        if warns:
            self._logger.warning("login codes of %s prove no user: %s", account.name, refusal)
        raise NotAsked("jscode2session", refusal)

    def _refusal(self, account: "_Account", now: float) -> str | None:
        if refusal := account.breaker.refusal(now):
            return refusal
        if self._asking == MAX_ASKING:
            return f"{MAX_ASKING} other codes are being asked about"
        if not account.bucket.take(now):
            return f"too many codes of {account.name} are being asked about"
        if not self._bucket.take(now):
            account.bucket.give_back()
            return "too many codes are being asked about"
        return None

    def _leave(self, account: "_Account", opening: int, outcome: object) -> None:
        with self._lock:
            self._asking -= 1
            # Errors that are not about WeChat, a missing secret for one, come before it is asked.
            if outcome is not None and not isinstance(outcome, WeixinError):
                account.bucket.give_back()
                self._bucket.give_back()
            opened = account.breaker.leave(opening, outcome, time.monotonic())
        if opened:
            self._logger.warning("login codes of %s prove no user: %s", account.name, opened)


class _Bucket:
    """Holds up to `burst` tokens and fills again steadily."""

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst, self._per_s = burst, per_s
        self._tokens, self._at = float(burst), time.monotonic()

    def take(self, now: float) -> bool:
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def give_back(self) -> None:
        self._tokens += 1


@dataclass(slots=True)
class _Breaker:
    """Opens when WeChat fails, for a pause; then a single ask tries whether it answers again."""

    is_open: bool = False
    is_tried: bool = False
    failures: int = 0  # in a row
    openings: int = 0
    until: float = 0.0
    cause: str = ""

    def refusal(self, now: float) -> str | None:
        if self.is_open and now < self.until:
            return f"{self.cause}; the next try is in {math.ceil(self.until - now)} s"
        return f"{self.cause}; a try is under way" if self.is_tried else None

    def enter(self) -> int:
        """Let one ask through. The number is for `leave`, to tell outcomes that come too late."""
        self.is_tried = self.is_open
        return self.openings

    def leave(self, opening: int, outcome: object, now: float) -> str | None:
        """Take an outcome in. If that opens the breaker: what happened."""
        if opening != self.openings:
            return None
        if isinstance(outcome, _Outage):
            return self._fail(outcome, now)
        if isinstance(outcome, WeixinError) or not isinstance(outcome, BaseException):
            self.is_open, self.failures = False, 0
        self.is_tried = False
        return None

    def _fail(self, error: _Outage, now: float) -> str | None:
        self.failures += 1
        is_for_the_day = isinstance(error, QuotaReached) and error.kind == "quota_day"
        pauses_done = self.failures - FAILURES_IN_A_ROW
        if not self.is_tried and not is_for_the_day and pauses_done < 0:
            return None
        pause_s = PAUSES_S[min(max(0, pauses_done), len(PAUSES_S) - 1)]
        self.until = now + (DAY_PAUSE_S if is_for_the_day else pause_s)
        self.cause = _what_happened(error)
        self.openings += 1
        was_open, self.is_open, self.is_tried = self.is_open, True, False
        return None if was_open else self.refusal(now)


def _what_happened(error: _Outage) -> str:
    if isinstance(error, OutcomeUnknown):
        return error.cause
    return f"WeChat said {error.errcode}, {error.meaning}"


@dataclass(slots=True)
class _Account:
    """What one mini program may ask."""

    name: str
    bucket: _Bucket = field(default_factory=lambda: _Bucket(BURST, PER_S))
    breaker: _Breaker = field(default_factory=_Breaker)
