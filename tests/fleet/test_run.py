"""Many mini programs at once, in front of a sandbox."""

import re
import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.errors import ListRefused, NoSuchRun, NothingToRollBack
from prefetch_kit.fetch_setting import FetchSetting
from prefetch_kit.fleet.rate_limit import Rate, RateLimitedTransport
from prefetch_kit.fleet.run import Limits
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.weixin import retry

if TYPE_CHECKING:
    from tests.fleet.conftest import Merchants

pytestmark = pytest.mark.slow

APPID = "wx01"
THEIRS = {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": "https://old.example/x"}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries draw nearly the shortest pause."""
    monkeypatch.setattr("random.uniform", lambda low, high: low + (high - low) / 1000)


def asked(wx: Sandbox) -> Counter[str | None]:
    """How often each action was called."""
    return Counter(r.action for r in wx.requests() if r.path == "/wxa/fetchdatasetting")


def test_all_are_set_and_read_back(merchants: "Merchants") -> None:
    """Read, two sets, read again, for each app; then one read each and nothing is sent."""
    merchants.add(20)
    merchants.switch_off()
    assert merchants.apply().exit_code == 0
    assert merchants.urls() == {"pre_fetch"}
    assert asked(merchants.wx) == {"get": 40, "set_pre_fetch": 20, "set_period_fetch": 20}
    assert merchants.apply().exit_code == 0
    assert asked(merchants.wx)["get"] == 60
    assert asked(merchants.wx).total() == 100


def test_a_plan_sends_nothing(merchants: "Merchants") -> None:
    """One read an app."""
    merchants.add(20)
    merchants.switch_off()
    assert merchants.fleet().plan().exit_code == 0
    assert asked(merchants.wx) == {"get": 20}
    assert {len(r.plan.changes) for r in merchants.told.results.values() if r.plan} == {2}


def test_a_plan_tells_drift_from_change(merchants: "Merchants") -> None:
    """What somebody set by hand, and what we want otherwise now, are two causes."""
    first, *_ = merchants.add(3)
    merchants.apply()
    merchants.wx.put_settings(first, merchants.wx.settings(first) | THEIRS)
    merchants.fleet().plan()
    causes = {a: r.cause for a, r in merchants.told.results.items() if r.plan and r.plan.changes}
    assert list(causes) == [first]
    assert causes[first].startswith("drifted")
    merchants.fleet(version="v2").plan()
    assert merchants.told.results[first].cause.startswith("drifted, and to change")
    assert merchants.told.results[merchants.appids[1]].cause == "to change"


def test_the_guards_hold_for_each_app(merchants: "Merchants") -> None:
    """What is somebody else's is left, and says which flag it needs; the others are done."""
    first, *_ = merchants.add(5)
    merchants.wx.put_settings(first, THEIRS)
    summary = merchants.fleet().apply(Limits())
    assert summary.exit_code == 1
    assert "--allow-takeover" in merchants.told.results[first].cause
    assert merchants.wx.settings(first) == THEIRS
    assert merchants.outcomes() == {"done": 4, "failed": 1}


def test_switching_off_needs_its_flag(merchants: "Merchants") -> None:
    """A kind named in `off` is switched off where WeChat pulls it from us, if that is allowed."""
    (appid,) = merchants.add(1)
    merchants.apply()
    off = 'off = ["period_fetch"]'
    assert merchants.fleet(off).apply(Limits()).exit_code == 4
    assert merchants.fleet(off).apply(Limits(allow=frozenset({"disable"}))).exit_code == 0
    assert merchants.wx.settings(appid)["is_period_fetch_open"] is False
    assert merchants.wx.settings(appid)["is_pre_fetch_open"] is True


def test_nothing_begins_before_the_canaries_are_done(merchants: "Merchants") -> None:
    """The first app is slow; meanwhile nobody else is asked about."""
    first, *others = merchants.add(9)
    merchants.switch_off()
    merchants.wx.inject(Fault(kind="delay", action="get", after=1, delay_s=0.3))
    assert merchants.apply(canary=1).exit_code == 0
    about = [r.appid for r in merchants.wx.requests() if r.path == "/wxa/fetchdatasetting"]
    assert about[:4] == [first] * 4
    assert set(about[4:]) == set(others)


@pytest.mark.parametrize("errcode", [48001, 61003, 61007])
def test_a_canary_whose_account_is_bad_is_replaced(merchants: "Merchants", errcode: int) -> None:
    """Who fails for ever keeps nobody else from being done, there and back."""
    _, second, *_ = merchants.add(20)
    merchants.spoil([second], errcode)
    summary = merchants.apply(canary=2)
    assert (summary.exit_code, summary.stopped_because) == (1, None)
    assert merchants.outcomes() == {"done": 19, "failed": 1}
    assert merchants.fleet(canary=2).rollback(Limits()).exit_code == 0


def test_canaries_are_those_that_are_set(merchants: "Merchants") -> None:
    """Those with nothing to do are no proof: of the others two are tried, and it stops."""
    merchants.add(5)
    merchants.apply()
    merchants.add(15)
    merchants.wx.inject(Fault(kind="errcode", action="set_pre_fetch", errcode=9410016, times=None))
    merchants.told.results.clear()
    summary = merchants.apply(canary=2)
    assert "--canary 2" in str(summary.stopped_because)
    assert merchants.outcomes()["failed"] <= 2
    assert asked(merchants.wx)["set_pre_fetch"] <= 5 + 2


def test_a_fleet_with_one_app_to_set_comes_to_its_end(merchants: "Merchants") -> None:
    """Fewer than the canaries have anything to do; then none of them has."""
    merchants.add(12)
    merchants.apply()
    merchants.wx.put_settings(merchants.appids[9], {})
    for _ in range(2):
        assert merchants.apply(canary=5).exit_code == 0


def test_a_failing_canary_stops_the_fleet(merchants: "Merchants") -> None:
    """None of the others is asked about."""
    _, second, *_ = merchants.add(20)
    merchants.switch_off()
    merchants.spoil([second], 40243)
    summary = merchants.apply(canary=2, workers=1)
    assert (summary.exit_code, summary.unreached) == (1, 18)
    assert second in str(summary.stopped_because)
    assert merchants.outcomes() == {"done": 1, "failed": 1}


def test_a_share_of_failures_stops_the_fleet(merchants: "Merchants") -> None:
    """With 10 % of twenty it is over at the second; with one worker nothing more was begun."""
    appids = merchants.add(100)
    merchants.switch_off()
    merchants.spoil(appids[::5], 40164)
    summary = merchants.apply(stop_at=0.1, workers=1)
    assert merchants.outcomes() == {"done": 4, "failed": 2}
    assert (summary.exit_code, summary.unreached) == (1, 94)
    assert "--stop-at" in str(summary.stopped_because)


def test_fewer_failures_do_not(merchants: "Merchants") -> None:
    """Below the share all that can be done is done."""
    merchants.spoil(merchants.add(30)[::15], 61007)
    summary = merchants.apply(stop_at=0.5)
    assert merchants.outcomes() == {"done": 28, "failed": 2}
    assert (summary.exit_code, summary.stopped_because) == (1, None)


def test_no_more_changes_than_were_allowed(merchants: "Merchants") -> None:
    """Five changes are two apps and no third; run again, it goes on."""
    merchants.add(10)
    summary = merchants.fleet(workers=1).apply(Limits(max_changes=5))
    assert merchants.outcomes() == {"done": 2, "left": 1}
    assert (summary.exit_code, summary.unreached) == (1, 7)
    assert sum(asked(merchants.wx)[a] for a in ("set_pre_fetch", "set_period_fetch")) == 4
    assert merchants.apply().exit_code == 0


def test_a_used_up_quota_defers_the_app(merchants: "Merchants") -> None:
    """It is not tried again now, the others are done, and the exit code says so: 75."""
    merchants.add(6)
    merchants.wx.inject(Fault(kind="errcode", action="get", errcode=45009))
    summary = merchants.apply(workers=1)
    assert merchants.outcomes() == {"done": 5, "deferred": 1}
    assert (summary.exit_code, summary.unreached) == (75, 0)
    assert merchants.told.results[merchants.appids[0]].errcode == 45009
    assert merchants.apply().exit_code == 0
    assert merchants.told.fleets[0].resumed


@pytest.mark.parametrize(("times", "exit_code"), [(1, 0), (2, 75)])
def test_a_minute_that_is_full_is_waited_for_once(
    merchants: "Merchants", monkeypatch: pytest.MonkeyPatch, times: int, exit_code: int
) -> None:
    """The next one begins at once here; if that is full too, the app is for the next run."""
    monkeypatch.setattr(retry, "time", SimpleNamespace(time=lambda: 59.9))
    monkeypatch.setattr("random.uniform", min)
    merchants.add(1)
    merchants.wx.inject(Fault(kind="errcode", action="set_pre_fetch", errcode=45011, times=times))
    assert merchants.apply().exit_code == exit_code
    assert asked(merchants.wx)["set_pre_fetch"] == 2


def test_a_deferred_canary_is_deferred(merchants: "Merchants") -> None:
    """Nothing but time is needed, for it and for those that were not begun."""
    merchants.add(6)
    merchants.wx.inject(Fault(kind="errcode", action="get", errcode=45009))
    summary = merchants.apply(workers=1, canary=1)
    assert (summary.exit_code, summary.unreached) == (75, 5)


def test_deferred_and_failed_is_failed(merchants: "Merchants") -> None:
    """75 is only for where nothing but time is needed."""
    first, *_ = merchants.add(4)
    merchants.spoil([first], 61007)
    merchants.wx.inject(Fault(kind="errcode", action="set_pre_fetch", errcode=45009))
    assert merchants.apply().exit_code == 1


def test_none_could_be_done(merchants: "Merchants") -> None:
    """4, and the summary has one cause for all of them."""
    merchants.spoil(merchants.add(5), 61003)
    summary = merchants.apply()
    assert summary.exit_code == 4
    (group,) = summary.tally.groups()
    assert (group.outcome, group.count, len(group.examples)) == ("failed", 5, 3)
    assert group.cause.startswith("61003")


@pytest.mark.parametrize("kind", ["errcode", "close", "lose"])
@pytest.mark.parametrize("action", ["get", "set_pre_fetch", "set_period_fetch"])
def test_what_passes_is_tried_again(merchants: "Merchants", kind: str, action: str) -> None:
    """A busy system, a broken connection, a lost answer: in the end it is done."""
    merchants.add(4)
    merchants.wx.inject(Fault(kind=kind, action=action, times=2))  # type: ignore[arg-type]
    assert merchants.apply().exit_code == 0
    assert merchants.urls() == {"pre_fetch"}


def test_what_does_not_pass_is_given_up(merchants: "Merchants") -> None:
    """Four tries each, and the cause is said."""
    merchants.add(2)
    merchants.wx.inject(Fault(kind="errcode", action="get", times=None))
    assert merchants.apply().exit_code == 4
    assert asked(merchants.wx) == {"get": 8}
    assert {r.errcode for r in merchants.told.results.values()} == {-1}


def test_a_rejected_token_is_renewed_and_nothing_else_happens(merchants: "Merchants") -> None:
    """The app is done at its first try."""
    (appid,) = merchants.add(1)
    merchants.apply()
    merchants.wx.expire_tokens(appid)
    assert merchants.apply(version="v2").exit_code == 0
    assert merchants.urls() == {"pre_fetchv2"}


def test_rollback_restores_what_stood_there(merchants: "Merchants") -> None:
    """For each app what it had; the other way round it is not done twice."""
    first, second, *_ = merchants.add(10)
    before = {first: THEIRS, second: THEIRS | {"is_pre_fetch_open": False}}
    for appid, settings in before.items():
        merchants.wx.put_settings(appid, settings)
    merchants.apply()
    assert merchants.fleet().rollback(Limits()).exit_code == 0
    for appid, settings in before.items():
        now = merchants.wx.settings(appid)
        assert {key: now[key] for key in settings} == settings
    assert {merchants.wx.settings(a)["is_pre_fetch_open"] for a in merchants.appids[2:]} == {False}
    with pytest.raises(NothingToRollBack, match="another state directory"):
        merchants.fleet().rollback(Limits())


def test_an_apply_after_a_rollback_can_be_rolled_back(merchants: "Merchants") -> None:
    """The rollback undid the apply before it, and not the one that came later."""
    (appid,) = merchants.add(1)
    merchants.wx.put_settings(appid, THEIRS)
    for _ in range(2):
        merchants.apply()
        assert merchants.urls() == {"pre_fetch"}
        assert merchants.fleet().rollback(Limits()).exit_code == 0
        assert merchants.wx.settings(appid)["pre_fetch_url"] == THEIRS["pre_fetch_url"]
    with pytest.raises(NothingToRollBack):
        merchants.fleet().rollback(Limits())


def test_rollback_to_an_earlier_run(merchants: "Merchants") -> None:
    """Two applies are undone at once; the run that undid them can be undone as well."""
    merchants.add(5)
    for version in ("v1", "v2", "v3"):
        merchants.apply(version=version)
    assert merchants.fleet().rollback(Limits(), to=2).exit_code == 0
    assert merchants.urls() == {"pre_fetchv1"}
    assert merchants.fleet().rollback(Limits(), to=4).exit_code == 0
    assert merchants.urls() == {"pre_fetchv3"}
    with pytest.raises(NoSuchRun, match="It knows 1, 2, 3, 4, 5"):
        merchants.fleet().rollback(Limits(), to=9)


def test_rollback_leaves_what_somebody_else_set_since(merchants: "Merchants") -> None:
    """The guard holds for each app, and lifted it does not."""
    first, *_ = merchants.add(4)
    merchants.apply()
    merchants.wx.put_settings(first, THEIRS)
    assert merchants.fleet().rollback(Limits()).exit_code == 1
    assert merchants.wx.settings(first) == THEIRS
    assert merchants.fleet().rollback(Limits(allow=frozenset({"takeover"}))).exit_code == 0
    assert merchants.wx.settings(first)["is_pre_fetch_open"] is False


def test_a_rollback_that_was_cut_short_goes_on(merchants: "Merchants") -> None:
    """What the first one restored counts as known, and stays."""
    merchants.add(6)
    merchants.apply(version="v1")
    merchants.apply(version="v2")
    assert merchants.fleet(workers=1).rollback(Limits(max_changes=6)).exit_code == 1
    assert merchants.urls() == {"pre_fetchv1", "pre_fetchv2"}
    assert merchants.fleet().rollback(Limits()).exit_code == 0
    assert merchants.told.fleets[0].resumed
    assert merchants.urls() == {"pre_fetchv1"}


def test_a_rollback_that_nobody_answered_goes_on(merchants: "Merchants") -> None:
    """What it may have set, and did not, is nobody else's doing."""
    merchants.add(1)
    merchants.apply(version="v1")
    merchants.apply(version="v2")
    merchants.wx.inject(Fault(kind="close", action="set_pre_fetch"))
    assert merchants.fleet(wait_s=0).rollback(Limits()).exit_code == 1
    assert merchants.urls() == {"pre_fetchv2"}
    assert merchants.fleet().rollback(Limits()).exit_code == 0
    assert merchants.urls() == {"pre_fetchv1"}


def test_an_apply_that_was_cut_short_is_undone_whole(merchants: "Merchants") -> None:
    """Both its parts are one run."""
    merchants.add(6)
    merchants.apply(version="v1")
    merchants.fleet(version="v2", workers=1).apply(Limits(max_changes=6))
    merchants.apply(version="v2")
    assert merchants.told.fleets[0].resumed
    merchants.fleet().rollback(Limits())
    assert merchants.urls() == {"pre_fetchv1"}


def test_a_rollback_undoes_the_last_apply_alone(merchants: "Merchants") -> None:
    """A merchant who fails for ever does not make one run of all that comes after."""
    *others, dead = merchants.add(8)
    merchants.spoil([dead], 61003)
    for _ in range(2):
        assert merchants.apply().exit_code == 1
        assert not merchants.told.fleets[0].resumed
    (new,) = merchants.add(1)
    merchants.apply()
    assert merchants.fleet().rollback(Limits()).exit_code == 0
    assert merchants.told.fleets[0].apps == 1
    assert merchants.wx.settings(new)["is_pre_fetch_open"] is False
    assert {merchants.wx.settings(a)["is_pre_fetch_open"] for a in others} == {True}


def test_a_rollback_that_failed_for_one_is_not_done(merchants: "Merchants") -> None:
    """The next one continues it, and leaves the apply before alone."""
    first, *_ = merchants.add(3)
    merchants.apply(version="v1")
    merchants.apply(version="v2")
    merchants.wx.put_settings(first, THEIRS)
    assert merchants.fleet().rollback(Limits()).exit_code == 1
    assert merchants.fleet().rollback(Limits(allow=frozenset({"takeover"}))).exit_code == 0
    assert merchants.urls() == {"pre_fetchv1"}


def test_a_saved_plan_is_carried_out(merchants: "Merchants") -> None:
    """Whatever the configuration says by then."""
    merchants.add(6)
    path = merchants.folder / "plan.jsonl"
    merchants.fleet(version="v1").plan(out=path)
    assert re.findall(r'"appid": "(\w+)"', path.read_text()) == merchants.appids
    assert merchants.fleet(version="v2").apply(Limits(), saved=path).exit_code == 0
    assert merchants.urls() == {"pre_fetchv1"}


def test_a_saved_plan_that_is_stale_for_one_app(merchants: "Merchants") -> None:
    """Nothing is sent for that app; the others are done."""
    first, *_ = merchants.add(4)
    path = merchants.folder / "plan.jsonl"
    merchants.fleet().plan(out=path)
    merchants.wx.put_settings(first, THEIRS)
    assert merchants.fleet().apply(Limits(), saved=path).exit_code == 1
    assert merchants.wx.settings(first) == THEIRS
    assert merchants.told.results[first].cause == "WeChat changed since the plan was made"


def test_a_bad_list_sends_nothing(merchants: "Merchants") -> None:
    """It is read to its end before the first call."""
    merchants.add(3)
    merchants.appids.append("wx 1")
    with pytest.raises(ListRefused, match="line 5"):
        merchants.apply()
    assert merchants.wx.requests() == []


def test_what_the_journal_keeps_is_what_was_confirmed(merchants: "Merchants") -> None:
    """The history tells it without any call."""
    (appid,) = merchants.add(1)
    merchants.apply()
    url = f"https://shop.example/p/{appid}/pre_fetch"
    confirmed = merchants.fleet().history.confirmed(appid)
    assert confirmed["pre_fetch"] == FetchSetting(open=True, source="server", url=url)


def test_a_rate_is_kept(merchants: "Merchants") -> None:
    """Eight calls at five a second, two for its token and reading: no sooner than their turns."""
    merchants.add(4)
    merchants.switch_off()
    merchants.fleet(rate=5.0).plan()
    times = [request.at for request in merchants.wx.requests()]
    assert len(times) == 8
    assert max(times) - min(times) >= 0.7 * 7 / 5  # the first may be noted late


def test_a_rate_for_each_app_is_kept(merchants: "Merchants") -> None:
    """Four calls about one app take at least the time of three between them."""
    merchants.add(1)
    merchants.switch_off()
    merchants.apply(per_app_rate=4.0)
    times = [r.at for r in merchants.wx.requests() if r.path == "/wxa/fetchdatasetting"]
    assert len(times) == 4
    assert max(times) - min(times) >= 0.7 * 3 / 4


def test_a_call_for_a_token_takes_its_turn_and_waits_for_none(wx: Sandbox) -> None:
    """Others wait for the lock that it is made under, and not for long."""
    rate = Rate(1 / 60, stopping=threading.Event())
    body = {"grant_type": "client_credential", "appid": APPID, "secret": "canary-app-secret"}
    began = time.monotonic()
    with RateLimitedTransport(rate, base_url=wx.base_url, ca_file=None) as transport:
        for _ in range(3):
            transport.call("stable_token", "POST", "/cgi-bin/stable_token", query={}, body=body)
    assert time.monotonic() - began < 50
    assert rate.take() - began > 170
