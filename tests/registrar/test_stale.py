"""What is sent is what was approved, however long the approval took."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from prefetch_kit.errors import NothingToRollBack, PlanStale
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.registrar import registrar as registrar_module
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.registrar.plan import Plan
from prefetch_kit.registrar.registrar import Registrar
from prefetch_kit.sandbox import Sandbox

APPID = "wx01"
FOREIGN = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 0,
    "pre_fetch_url": "https://old.example/data",
}
PRE = FOREIGN | {"pre_fetch_url": "https://shop.example/prefetch/pre_fetch"}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is held during the approval is not waited for long."""
    monkeypatch.setattr(registrar_module, "_LOCK_WAIT_S", 0.2)


@pytest.fixture
def apply_version(registrar: Registrar) -> Callable[[str], Plan]:
    """Point pre-fetch at a URL of ours that ends in a version."""

    def apply(version: str) -> Plan:
        target = FetchSetting.server(f"https://shop.example/{version}")
        return registrar.apply(
            {"pre_fetch": target}, allow=frozenset({"takeover"}), approve=lambda _: None
        )

    return apply


def test_a_plan_that_went_stale_is_not_sent(
    wx: Sandbox,
    registrar: Registrar,
    wanted: Mapping[Kind, FetchSetting],
    actions: Callable[[], list[str]],
) -> None:
    """Where somebody set something while a person was asked, the person is asked again."""
    with pytest.raises(PlanStale, match="Run the same command again") as caught:
        registrar.apply(wanted, approve=lambda _: wx.put_settings(APPID, FOREIGN))
    assert caught.value.appid == APPID
    assert set(actions()) == {"get"}
    assert wx.settings(APPID) == FOREIGN


def test_another_apply_may_come_first(
    registrar: Registrar,
    wanted: Mapping[Kind, FetchSetting],
    apply: Callable[[], Plan],
    actions: Callable[[], list[str]],
) -> None:
    """The lock is free during the approval; what is done by then is neither sent nor journaled."""
    assert registrar.apply(wanted, approve=lambda _: apply()).changes == ()
    assert (actions().count("set_pre_fetch"), actions().count("set_period_fetch")) == (1, 1)
    registrar.rollback(approve=lambda _: None)
    with pytest.raises(NothingToRollBack):
        registrar.rollback(approve=lambda _: None)


def test_what_another_left_undone_is_sent(
    wx: Sandbox, registrar: Registrar, wanted: Mapping[Kind, FetchSetting]
) -> None:
    """Half of an approved plan that is still to do is done."""
    done = registrar.apply(wanted, approve=lambda _: wx.put_settings(APPID, PRE))
    assert [change.kind for change in done.changes] == ["period_fetch"]
    assert wx.count(action="set_pre_fetch") == 0


def test_a_rollback_that_went_stale_is_not_sent(
    wx: Sandbox, registrar: Registrar, apply: Callable[[], Plan]
) -> None:
    """What was set while a person was asked is not overwritten, even where takeover is allowed."""
    apply()
    with pytest.raises(PlanStale):
        registrar.rollback(
            allow=frozenset({"takeover"}), approve=lambda _: wx.put_settings(APPID, FOREIGN)
        )
    assert wx.settings(APPID) == FOREIGN


def test_another_rollback_may_come_first(
    wx: Sandbox, registrar: Registrar, apply_version: Callable[[str], Plan]
) -> None:
    """Two that undo the same apply undo one, and leave the one before it to be undone."""
    wx.put_settings(APPID, FOREIGN)
    apply_version("v1")
    apply_version("v2")
    done = registrar.rollback(approve=lambda _: rolled_back(registrar))
    assert done.changes == ()
    assert wx.settings(APPID)["pre_fetch_url"] == "https://shop.example/v1"
    rolled_back(registrar)
    assert wx.settings(APPID) == FOREIGN


def test_an_apply_during_a_rollback_makes_it_stale(
    wx: Sandbox, registrar: Registrar, apply_version: Callable[[str], Plan]
) -> None:
    """A rollback undoes the apply that was shown, not one that came after it."""
    apply_version("v1")
    with pytest.raises(PlanStale):
        registrar.rollback(approve=lambda _: apply_version("v2"))
    assert wx.settings(APPID)["pre_fetch_url"] == "https://shop.example/v2"


def test_an_apply_of_the_same_during_a_rollback_makes_it_stale(
    wx: Sandbox, registrar: Registrar, apply_version: Callable[[str], Plan]
) -> None:
    """Even where the newer apply put back the very URL, it is not the one that was shown."""
    apply_version("v1")

    def approve(_: Plan) -> None:
        wx.put_settings(APPID, FOREIGN)
        apply_version("v1")

    with pytest.raises(PlanStale):
        registrar.rollback(approve=approve)
    assert wx.settings(APPID)["pre_fetch_url"] == "https://shop.example/v1"


def test_an_apply_that_was_still_under_way_makes_it_stale(
    wx: Sandbox, registrar: Registrar, apply: Callable[[], Plan], state_dir: Path
) -> None:
    """What it has changed since the rollback was shown is not undone unseen."""
    apply()
    journal = Journal(state_dir / "journal.sqlite3")
    journal.mark(1, APPID, "period_fetch", "planned")
    journal.flush()
    with pytest.raises(PlanStale):
        registrar.rollback(approve=lambda _: journal.mark(1, APPID, "period_fetch", "intent"))
    assert wx.count(action="set_period_fetch") == 1


def rolled_back(registrar: Registrar) -> Plan:
    return registrar.rollback(approve=lambda _: None)
