"""Applying a plan: what is sent, what is not, and what is believed."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.errors import (
    DomainRefused,
    GuardRefused,
    MayBeSet,
    NotConfirmed,
    PartlySet,
    ProbeFailed,
)
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.registrar.plan import OffIfFrom, Plan, Wanted
from prefetch_kit.registrar.registrar import Registrar
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.sandbox.faults import FaultKind

if TYPE_CHECKING:
    from tests.registrar.conftest import Row

APPID = "wx01"
PRE_URL = "https://shop.example/prefetch/pre_fetch"
PERIOD_URL = "https://shop.example/prefetch/period_fetch"
REGISTERED = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 0,
    "pre_fetch_url": PRE_URL,
    "is_period_fetch_open": True,
    "period_fetch_type": 0,
    "period_fetch_url": PERIOD_URL,
}
FOREIGN = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 0,
    "pre_fetch_url": "https://old.example/data",
}
CLOUD = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 1,
    "pre_env": "e-1",
    "pre_function_name": "main",
}
OFF: dict[str, object] = {"is_pre_fetch_open": False, "is_period_fetch_open": False}
UNKNOWN: list[FaultKind] = ["lose", "close", "reset", "cut", "raw", "redirect", "hang"]


def test_apply_registers_both_halves(
    wx: Sandbox, apply: Callable[[], Plan], rows: "Callable[[], list[Row]]"
) -> None:
    """Both URLs stand at WeChat, and the journal says confirmed."""
    assert [change.kind for change in apply().changes] == ["pre_fetch", "period_fetch"]
    assert wx.settings(APPID) == REGISTERED
    assert [row.outcome for row in rows()] == ["confirmed", "confirmed"]


def test_apply_twice_sends_nothing_the_second_time(
    wx: Sandbox,
    apply: Callable[[], Plan],
    approved: list[Plan],
    actions: Callable[[], list[str]],
) -> None:
    """The second apply is one read, and nobody is asked.

    Before the first, that WeChat has no source is seen four times, and once more under the lock.
    """
    wx.put_settings(APPID, OFF)
    apply()
    sent = actions()
    assert apply().changes == ()
    assert actions() == [*sent, "get"]
    assert sent == [*["get"] * 5, "set_pre_fetch", "set_period_fetch", "get"]
    assert len(approved) == 1


def test_only_the_half_that_differs_is_written(
    wx: Sandbox, apply: Callable[[], Plan], actions: Callable[[], list[str]]
) -> None:
    """A half that is right already is not sent again."""
    wx.put_settings(APPID, REGISTERED | {"is_period_fetch_open": False})
    apply()
    assert actions() == ["get", "get", "set_period_fetch", "get"]


def test_plan_changes_nothing(
    wx: Sandbox,
    registrar: Registrar,
    wanted: Mapping[Kind, FetchSetting],
    actions: Callable[[], list[str]],
) -> None:
    """A plan is one read."""
    wx.put_settings(APPID, OFF)
    assert len(registrar.plan(wanted).changes) == 2
    assert actions() == ["get"]
    assert wx.settings(APPID) == OFF


def test_whoever_approves_can_stop_it(
    registrar: Registrar, wanted: Mapping[Kind, FetchSetting], actions: Callable[[], list[str]]
) -> None:
    """An error raised by the approval comes through, and nothing was sent."""

    def disapprove(plan: Plan) -> None:
        raise ProbeFailed(PRE_URL, ["it answers 500"])

    with pytest.raises(ProbeFailed):
        registrar.apply(wanted, approve=disapprove)
    assert set(actions()) == {"get"}


@pytest.mark.parametrize("settings", [FOREIGN, FOREIGN | {"is_pre_fetch_open": False}, CLOUD])
def test_takeover_needs_its_flag(
    wx: Sandbox,
    registrar: Registrar,
    wanted: Mapping[Kind, FetchSetting],
    actions: Callable[[], list[str]],
    settings: dict[str, object],
) -> None:
    """Another host's URL or a cloud function is replaced only when that was asked for."""
    wx.put_settings(APPID, settings)
    with pytest.raises(GuardRefused, match="--allow-takeover") as caught:
        registrar.apply(wanted, allow=frozenset({"disable"}), approve=lambda _: None)
    assert caught.value.flag == "--allow-takeover"
    assert (set(actions()), wx.settings(APPID)) == ({"get"}, settings)
    registrar.apply(wanted, allow=frozenset({"takeover"}), approve=lambda _: None)
    assert wx.settings(APPID) == REGISTERED


def test_disable_needs_its_flag(
    wx: Sandbox, registrar: Registrar, actions: Callable[[], list[str]]
) -> None:
    """Our own URL without a handler is switched off only when that was asked for."""
    wx.put_settings(APPID, REGISTERED)
    unserved: Wanted = {"pre_fetch": OffIfFrom(FetchSetting.server(PRE_URL))}
    with pytest.raises(GuardRefused) as caught:
        registrar.apply(unserved, allow=frozenset({"takeover"}), approve=lambda _: None)
    assert (caught.value.flag, actions()) == ("--allow-disable", ["get"])
    registrar.apply(unserved, allow=frozenset({"disable"}), approve=lambda _: None)
    assert wx.settings(APPID) == REGISTERED | {"is_pre_fetch_open": False}


def test_a_kind_without_handler_is_left_alone(
    wx: Sandbox, registrar: Registrar, actions: Callable[[], list[str]]
) -> None:
    """Someone else's source for a kind we do not serve is not touched."""
    wx.put_settings(APPID, FOREIGN)
    registrar.apply({"pre_fetch": OffIfFrom(FetchSetting.server(PRE_URL))})
    assert (actions(), wx.settings(APPID)) == (["get"], FOREIGN)


@pytest.mark.slow
@pytest.mark.parametrize("kind", UNKNOWN)
def test_unknown_outcome_is_read_back_before_repeating(
    wx: Sandbox, apply: Callable[[], Plan], actions: Callable[[], list[str]], kind: FaultKind
) -> None:
    """The call is repeated only where WeChat does not hold the setting a moment later."""
    wx.put_settings(APPID, OFF)
    wx.inject(Fault(kind=kind, action="set_pre_fetch", location=f"{wx.base_url}/elsewhere"))
    apply()
    took_effect = kind == "lose"
    repeated = ["get"] if took_effect else ["get", "get", "set_pre_fetch"]
    planned = [*["get"] * 5, "set_pre_fetch"]
    assert actions() == [*planned, *repeated, "set_period_fetch", "get"]
    assert wx.settings(APPID) == REGISTERED


def test_what_stays_unknown_is_set_again_until_the_time_is_over(
    wx: Sandbox, apply: Callable[[], Plan], rows: "Callable[[], list[Row]]"
) -> None:
    """The journal knows what is unknown, and what never left."""
    wx.inject(Fault(kind="close", action="set_pre_fetch", times=None))
    with pytest.raises(MayBeSet) as caught:
        apply()
    assert caught.value.doubt.action == "set_pre_fetch"
    assert caught.value.unsent == ("period_fetch",)
    assert wx.count(action="set_pre_fetch") > 5
    assert [row.outcome for row in rows()] == ["unknown", "unsent"]


@pytest.mark.parametrize("times", [1, 3])
def test_busy_though_it_took_effect_is_done(
    wx: Sandbox, apply: Callable[[], Plan], rows: "Callable[[], list[Row]]", times: int
) -> None:
    """-1 does not say whether; what WeChat shows does."""
    busy = Fault(kind="errcode", errcode=-1, action="set_pre_fetch", times=times, effect="now")
    wx.inject(busy)
    apply()
    assert wx.settings(APPID) == REGISTERED
    assert [row.outcome for row in rows()] == ["confirmed", "confirmed"]


def test_lost_and_then_not_to_be_read_stays_unknown(
    wx: Sandbox, apply: Callable[[], Plan], rows: "Callable[[], list[Row]]"
) -> None:
    """A refusal to read back says nothing about the call that was lost."""
    wx.put_settings(APPID, OFF)
    wx.inject(Fault(kind="lose", action="set_pre_fetch"))
    wx.inject(Fault(kind="errcode", action="get", after=5, errcode=45009))
    with pytest.raises(MayBeSet, match=r"connection broke .*; WeChat answered get with 45009"):
        apply()
    assert [row.outcome for row in rows()] == ["unknown", "unsent"]


def test_set_and_then_not_to_be_read_is_not_confirmed(
    wx: Sandbox, apply: Callable[[], Plan], rows: "Callable[[], list[Row]]"
) -> None:
    """The error names why it could not be read back."""
    wx.put_settings(APPID, OFF)
    wx.inject(Fault(kind="errcode", action="get", after=5, errcode=45009))
    with pytest.raises(NotConfirmed, match=r"could not be read back .*45009"):
        apply()
    assert [row.outcome for row in rows()] == ["sent", "sent"]


def test_refusal_leaves_the_other_half_alone(
    wx: Sandbox, apply: Callable[[], Plan], rows: "Callable[[], list[Row]]"
) -> None:
    """A refused first half is named with its remedy; the second is not sent."""
    wx.inject(Fault(kind="errcode", action="set_pre_fetch", errcode=9410016, errmsg="bad host"))
    with pytest.raises(DomainRefused, match="业务域名") as caught:
        apply()
    assert [(row.kind, row.outcome) for row in rows()] == [
        ("pre_fetch", "refused"),
        ("period_fetch", "unsent"),
    ]
    assert rows()[0].detail == str(caught.value)
    assert wx.settings(APPID) == {}


def test_refusal_of_the_second_half_keeps_the_first(
    wx: Sandbox, apply: Callable[[], Plan], rows: "Callable[[], list[Row]]"
) -> None:
    """What was set before the refusal stays, and stays undoable."""
    wx.inject(Fault(kind="errcode", action="set_period_fetch", errcode=9410016))
    with pytest.raises(PartlySet, match="pre_fetch was set and stays so") as caught:
        apply()
    assert isinstance(caught.value.error, DomainRefused)
    assert [row.outcome for row in rows()] == ["confirmed", "refused"]
    assert wx.settings(APPID)["pre_fetch_url"] == PRE_URL
    assert [change.kind for change in apply().changes] == ["period_fetch"]


def test_what_reads_back_differently_is_not_confirmed(
    wx: Sandbox, apply: Callable[[], Plan], rows: "Callable[[], list[Row]]"
) -> None:
    """An ok that did not take effect is found out."""
    wx.inject(Fault(kind="raw", action="set_pre_fetch", body='{"errcode":0,"errmsg":"ok"}'))
    with pytest.raises(NotConfirmed) as caught:
        apply()
    assert len(caught.value.differences) == 1
    assert "pre_fetch" in caught.value.differences[0]
    assert [row.outcome for row in rows()] == ["sent", "confirmed"]
