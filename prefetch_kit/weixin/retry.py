"""Which failures pass, when to try again, and how often: for calls, a list's pages, and fleets."""

import random
import time
from typing import Final

from prefetch_kit.errors import LockHeld, OutcomeUnknown, PrefetchKitError, Refused

# How often one call to read or write settings is repeated for each cause. A write that may have
# taken effect is not repeated, but looked at.
REPEATS_OF_A_READ: Final = {"transient": 2, "renew": 1, "quota_minute": 1, "unknown": 1}
REPEATS_OF_A_WRITE: Final = {"renew": 1, "quota_minute": 1}
REPEATS_OF_A_PAGE: Final = 2
# How often an app of a fleet is tried in all.
TRIES_OF_AN_APP: Final = 4
_LOCK_WAIT_S: Final = 10.0
# Longer than this nobody waits because WeChat says so: another run is better.
_LONGEST_RETRY_AFTER_S: Final = 120.0


def pause_s(error: PrefetchKitError, tries: int) -> float | None:
    """How many seconds to wait before the next try, after `tries` that failed before this one.

    None where the next try would fail too: a token is renewed once, and a minute's quota waited
    for once.
    """
    match error:
        case Refused(kind="renew"):
            return 0.0 if tries == 0 else None
        case Refused(kind="quota_minute"):
            # Not all of a fleet in the first moment of the minute.
            return 60 - time.time() % 60 + random.uniform(0, 5) if tries == 0 else None
        case OutcomeUnknown(retry_after_s=float(asked_s)):
            fits = asked_s <= _LONGEST_RETRY_AFTER_S
            return asked_s + random.uniform(0, 2.0**tries) if fits else None
        case Refused(kind="transient") | OutcomeUnknown():
            return random.uniform(0, 2.0**tries)  # no fixed part, so that a fleet spreads out
        case LockHeld():
            return random.uniform(0, _LOCK_WAIT_S)
    return None
