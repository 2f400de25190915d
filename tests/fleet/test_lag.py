"""A fleet in front of a WeChat that shows later what was set, or says no though it took effect."""

import json
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.fleet import Limits
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.sandbox.faults import FaultScript

if TYPE_CHECKING:
    from tests.fleet.conftest import Merchants

SETTINGS = "/wxa/fetchdatasetting"
OLD = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 0,
    "pre_fetch_url": "https://shop.example/old",
    "is_period_fetch_open": False,
    "period_fetch_type": 0,
    "period_fetch_url": "https://shop.example/old/period",
}


@pytest.fixture
def before(merchants: "Merchants") -> list[str]:
    """Some merchants that have something already."""
    appids = merchants.add(8)
    for appid in appids:
        merchants.wx.put_settings(appid, OLD)
    return appids


def show_old(wx: Sandbox, *, after: int, reads: int) -> None:
    """Let WeChat answer reads with what was there before."""
    body = json.dumps({"errcode": 0, "errmsg": "ok", **OLD})
    wx.inject(Fault(kind="raw", body=body, action="get", after=after, times=reads))


def forget_faults(wx: Sandbox) -> None:
    with wx.lock:
        wx.state.faults = FaultScript()


def sets(wx: Sandbox) -> Counter[object]:
    """How often something was set for each app."""
    return Counter(r.appid for r in wx.requests() if str(r.action).startswith("set_"))


def test_nobody_waits_for_one_that_is_shown_later(
    merchants: "Merchants", before: list[str]
) -> None:
    """One worker sets all of them, and comes back to each until it is shown."""
    show_old(merchants.wx, after=0, reads=16)
    assert merchants.apply(workers=1, wait_s=30).exit_code == 0
    assert merchants.urls() == {"pre_fetch"}
    assert set(sets(merchants.wx).values()) == {2}


def test_what_is_not_shown_in_time_counts_as_sent(
    merchants: "Merchants", before: list[str]
) -> None:
    """The exit code says so, and so does each result; the same run is continued later."""
    show_old(merchants.wx, after=0, reads=1000)
    summary = merchants.apply(wait_s=0.5)
    assert (summary.exit_code, summary.tally["sent"]) == (5, 8)
    for result in merchants.told.results.values():
        assert (result.outcome, result.cause) == ("sent", "set, not yet confirmed")
        assert result.outcomes == {"pre_fetch": "sent", "period_fetch": "sent"}
    forget_faults(merchants.wx)
    assert merchants.apply().exit_code == 0
    assert merchants.told.fleets[0].resumed


def test_a_rollback_is_not_done_by_old_reads(merchants: "Merchants", before: list[str]) -> None:
    """What stood before is sent although it is shown already."""
    show_old(merchants.wx, after=0, reads=1000)
    merchants.apply(wait_s=0)
    assert merchants.fleet(wait_s=0).rollback(Limits()).exit_code == 0
    forget_faults(merchants.wx)
    assert all(merchants.wx.settings(appid) == OLD for appid in before)


def test_a_canary_counts_once_it_is_confirmed(merchants: "Merchants", before: list[str]) -> None:
    """Until then nothing is sent for others; if it is not in time, they are not begun."""
    show_old(merchants.wx, after=0, reads=1000)
    summary = merchants.apply(canary=1, wait_s=0.5)
    assert (summary.exit_code, summary.unreached) == (5, 7)
    assert "is not yet confirmed" in str(summary.stopped_because)
    assert set(sets(merchants.wx)) == {before[0]}


def test_a_fleet_that_stops_looks_at_what_it_sent(
    merchants: "Merchants", before: list[str]
) -> None:
    """Once more; what is shown is done, what is not is sent, and none is not reached."""
    fleet = merchants.fleet(workers=8, wait_s=60, stop_at=0.1)
    show_old(merchants.wx, after=8, reads=1000)
    refused = Fault(kind="errcode", errcode=9410017, action="set_pre_fetch", after=4)
    merchants.wx.inject(refused)
    summary = fleet.apply(Limits(allow=frozenset({"disable", "takeover"})))
    assert (summary.exit_code, summary.tally["failed"]) == (1, 1)
    assert summary.tally["sent"] == len(sets(merchants.wx)) - 1


def test_busy_though_it_took_effect_can_be_rolled_back(
    merchants: "Merchants", before: list[str]
) -> None:
    """Whatever WeChat says to it, and though it is the last thing that is heard."""
    merchants.wx.inject(Fault(kind="lose", action="set_pre_fetch", times=None))
    assert merchants.apply(wait_s=30).exit_code == 0
    assert merchants.fleet(wait_s=1).rollback(Limits()).exit_code == 0
    assert all(merchants.wx.settings(appid) == OLD for appid in before)


def test_half_set_is_told_as_what_it_is(merchants: "Merchants", before: list[str]) -> None:
    """The half that WeChat accepted is named, and each change says how far it came."""
    merchants.wx.inject(Fault(kind="errcode", errcode=9410017, action="set_period_fetch"))
    summary = merchants.apply(workers=1)
    assert summary.exit_code == 1
    result = merchants.told.results[before[0]]
    assert result.cause.startswith("pre_fetch set, period_fetch refused: 9410017")
    assert result.outcomes == {"pre_fetch": "confirmed", "period_fetch": "refused"}
    assert result.plan is not None


def test_what_may_be_set_is_told_as_that(merchants: "Merchants", before: list[str]) -> None:
    """WeChat holds it, says no, and never shows it."""
    busy = Fault(kind="errcode", errcode=-1, action="set_period_fetch", times=None, effect="now")
    merchants.wx.inject(busy)
    show_old(merchants.wx, after=0, reads=1000)
    summary = merchants.apply(workers=1, wait_s=0.5)
    assert summary.exit_code == 1
    result = merchants.told.results[before[0]]
    assert result.cause.startswith("pre_fetch set, period_fetch may be set, or not: -1, ")
    assert result.outcomes == {"pre_fetch": "sent", "period_fetch": "unknown"}


def test_four_says_that_nothing_is_set(merchants: "Merchants") -> None:
    """Not where half of one app was set before all of them were refused."""
    merchants.add(2)
    merchants.wx.inject(
        Fault(kind="errcode", errcode=9410016, action="set_pre_fetch", after=1, times=None)
    )
    merchants.wx.inject(
        Fault(kind="errcode", errcode=9410016, action="set_period_fetch", times=None)
    )
    assert merchants.apply(workers=1).exit_code == 1


def test_a_run_that_is_continued_with_another_list_is_one_run(
    merchants: "Merchants", before: list[str]
) -> None:
    """One rollback brings back all that either part of it set, wherever the list goes."""
    merchants.fleet(workers=1).apply(Limits(max_changes=6))
    merchants.add(1)
    merchants.left_out.add(before[0])
    assert merchants.apply(version="/v2").exit_code == 0
    assert merchants.told.fleets[0].resumed
    last = merchants.fleet().history.last_fleet()
    assert last is not None
    assert last.apps == 9
    assert merchants.fleet().rollback(Limits()).exit_code == 0
    assert all(merchants.wx.settings(appid) == OLD for appid in before)


def test_a_fleet_waits_when_it_is_told_to(merchants: "Merchants", before: list[str]) -> None:
    """A gateway that asks to be left alone for a second is not asked by anybody."""
    told = {"Retry-After": "1"}
    merchants.wx.inject(Fault(kind="raw", status=429, headers=told, body="slow down"))
    assert merchants.apply(workers=1).exit_code == 0
    first, second, *_ = (r.at for r in merchants.wx.requests() if r.path == SETTINGS)
    assert second - first >= 1


def test_told_to_come_back_tomorrow_is_deferred(merchants: "Merchants", before: list[str]) -> None:
    """Nobody waits for longer than two minutes, and the others are not begun."""
    told = {"Retry-After": "86400"}
    merchants.wx.inject(Fault(kind="raw", status=503, headers=told, body="maintenance"))
    summary = merchants.apply(workers=1)
    assert (summary.exit_code, summary.unreached) == (75, 7)
