"""Which failures are worth another try, and how soon."""

import pytest

from prefetch_kit.errors import (
    GuardRefused,
    LockHeld,
    NotConfirmed,
    OutcomeUnknown,
    PrefetchKitError,
    TokenSourceError,
)
from prefetch_kit.weixin.errcodes import refusal
from prefetch_kit.weixin.retry import pause_s

BUSY = refusal("get", -1, "system error")
REJECTED = refusal("get", 40001, "invalid credential")
ASKED, ASKED_TOO_MUCH = (
    OutcomeUnknown("get", "HTTP 429", sent=True, remedy="Try again", retry_after_s=seconds)
    for seconds in (30.0, 121.0)
)
FULL_MINUTE = refusal("get", 45011, "api minute-quota reach limit")


@pytest.mark.parametrize(
    ("error", "longest"),
    [
        (BUSY, [1, 2, 4]),
        (OutcomeUnknown("get", "no answer", sent=True, remedy="Try again"), [1, 2, 4]),
        (ASKED, [31, 32, 34]),
        (ASKED_TOO_MUCH, [None] * 3),
        (NotConfirmed("wx01", ["pre_fetch"]), [None] * 3),
        (LockHeld("apps.lock", 0, name="wx01"), [10, 10, 10]),
        (REJECTED, [0, None, None]),
        (FULL_MINUTE, [40 + 5, None, None]),
        (refusal("get", 45009, "daily quota"), [None] * 3),
        (refusal("get", 48001, "api unauthorized"), [None] * 3),
        (GuardRefused("wx01", "would switch it off", flag="--allow-disable"), [None] * 3),
        (TokenSourceError("a store", "is gone", remedy="Bring it back"), [None] * 3),
    ],
    ids=lambda given: type(given).__name__ if isinstance(given, PrefetchKitError) else "",
)
def test_the_longest_pause_before_each_try(
    monkeypatch: pytest.MonkeyPatch, error: PrefetchKitError, longest: list[float | None]
) -> None:
    """A pause is drawn from none up to this; None where the next try would fail too."""
    monkeypatch.setattr("random.uniform", lambda _, most: most)
    monkeypatch.setattr("time.time", lambda: 1_700_000_060.0)  # 20 s into a minute
    assert [pause_s(error, tries) for tries in range(3)] == longest


def test_a_fleet_spreads_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a pause is random where many apps fail in the same moment."""
    monkeypatch.setattr("random.uniform", lambda least, _: least)
    assert [pause_s(BUSY, tries) for tries in range(3)] == [0, 0, 0]
