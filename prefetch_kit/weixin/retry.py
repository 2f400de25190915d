"""Which failures pass, and when to try again: for a single call, a page of a list, and a fleet."""

import random
import time

from prefetch_kit.errors import LockHeld, NotConfirmed, OutcomeUnknown, PrefetchKitError, Refused

_LOCK_WAIT_S = 10.0


def pause_s(error: PrefetchKitError, tries: int) -> float | None:
    """How many seconds to wait before the next try, after `tries` that failed before this one.

    None where the next try would fail too. A token is renewed once, and a minute's quota waited
    for once; how often to try what may pass at any time, the caller knows.
    """
    match error:
        case Refused(kind="renew"):
            return 0.0 if tries == 0 else None
        case Refused(kind="quota_minute"):
            # Not all of a fleet in the first moment of the minute.
            return 60 - time.time() % 60 + random.uniform(0, 5) if tries == 0 else None
        case Refused(kind="transient") | OutcomeUnknown() | NotConfirmed():
            return random.uniform(0, 2.0**tries)  # no fixed part, so that a fleet spreads out
        case LockHeld():
            return random.uniform(0, _LOCK_WAIT_S)
    return None
