"""Going back to what WeChat held before."""

from collections.abc import Callable

import pytest

from prefetch_kit.errors import (
    DomainRefused,
    GuardRefused,
    NoSuchRun,
    NothingToRollBack,
    PartlySet,
)
from prefetch_kit.fetch_setting import FetchSetting
from prefetch_kit.registrar.plan import Plan
from prefetch_kit.registrar.registrar import Registrar
from prefetch_kit.sandbox import Fault, Sandbox

APPID = "wx01"
PERIOD = {
    "is_period_fetch_open": True,
    "period_fetch_type": 0,
    "period_fetch_url": "https://old.example/period",
}
SERVER = {
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


@pytest.fixture
def rollback(registrar: Registrar) -> Callable[[], Plan]:
    return lambda: registrar.rollback(approve=lambda _: None)


@pytest.mark.parametrize(
    "before",
    [SERVER, SERVER | {"is_pre_fetch_open": False}, CLOUD, CLOUD | {"is_pre_fetch_open": False}],
)
def test_rollback_restores_exactly(
    wx: Sandbox,
    apply: Callable[[], Plan],
    rollback: Callable[[], Plan],
    before: dict[str, object],
) -> None:
    """On or off, URL or cloud function: WeChat holds again what it held."""
    wx.put_settings(APPID, before | PERIOD)
    apply()
    rollback()
    assert wx.settings(APPID) == before | PERIOD


def test_rollback_to_never_configured_is_off(
    wx: Sandbox, apply: Callable[[], Plan], rollback: Callable[[], Plan]
) -> None:
    """WeChat keeps the URL, switched off, and the plan says why."""
    apply()
    done = rollback()
    assert wx.settings(APPID)["is_pre_fetch_open"] is False
    assert wx.settings(APPID)["is_period_fetch_open"] is False
    assert all("switched off" in (change.note or "") for change in done.changes)


def test_rollback_to_a_half_without_url(
    wx: Sandbox, apply: Callable[[], Plan], rollback: Callable[[], Plan]
) -> None:
    """A half WeChat showed as off without any URL can be gone back to as well."""
    wx.put_settings(APPID, {"is_pre_fetch_open": False, "pre_fetch_type": 0, "pre_fetch_url": ""})
    apply()
    rollback()
    assert wx.settings(APPID)["is_pre_fetch_open"] is False


def test_rollback_twice_goes_further_back(
    wx: Sandbox, registrar: Registrar, rollback: Callable[[], Plan]
) -> None:
    """Each rollback undoes one more apply, and then there is nothing left."""
    wx.put_settings(APPID, SERVER | PERIOD)
    for version in ("v1", "v2"):
        target = FetchSetting.server(f"https://shop.example/{version}")
        registrar.apply(
            {"pre_fetch": target}, allow=frozenset({"takeover"}), approve=lambda _: None
        )
    rollback()
    assert wx.settings(APPID)["pre_fetch_url"] == "https://shop.example/v1"
    rollback()
    assert wx.settings(APPID) == SERVER | PERIOD
    with pytest.raises(NothingToRollBack, match="nothing is left to undo"):
        rollback()


def test_a_refused_apply_is_not_what_is_undone(
    wx: Sandbox, registrar: Registrar, apply: Callable[[], Plan], rollback: Callable[[], Plan]
) -> None:
    """One rollback reaches behind an apply that changed nothing."""
    wx.put_settings(APPID, SERVER | PERIOD)
    apply()
    wx.inject(Fault(kind="errcode", action="set_pre_fetch", errcode=9410016))
    moved = FetchSetting.server("https://shop.example/v2")
    with pytest.raises(DomainRefused):
        registrar.apply({"pre_fetch": moved}, approve=lambda _: None)
    rollback()
    assert wx.settings(APPID) == SERVER | PERIOD


def test_a_lost_set_is_undone(
    wx: Sandbox, apply: Callable[[], Plan], rollback: Callable[[], Plan]
) -> None:
    """What took effect without anybody knowing is rolled back all the same."""
    wx.put_settings(APPID, SERVER | PERIOD)
    wx.inject(Fault(kind="lose", action="set_pre_fetch"))
    wx.inject(Fault(kind="errcode", action="get", after=2, errcode=45009))
    with pytest.raises(Exception, match="45009"):
        apply()
    rollback()
    assert wx.settings(APPID) == SERVER | PERIOD


def test_a_rollback_cut_short_is_finished_by_the_next(
    wx: Sandbox, apply: Callable[[], Plan], rollback: Callable[[], Plan]
) -> None:
    """A refused half is tried again; only a confirmed rollback counts."""
    wx.put_settings(APPID, SERVER | PERIOD)
    apply()
    wx.inject(Fault(kind="errcode", action="set_period_fetch", errcode=9410016))
    with pytest.raises(PartlySet, match="9410016"):
        rollback()
    rollback()
    assert wx.settings(APPID) == SERVER | PERIOD
    with pytest.raises(NothingToRollBack):
        rollback()


def test_what_is_back_already_is_sent_all_the_same(
    wx: Sandbox,
    registrar: Registrar,
    apply: Callable[[], Plan],
    rollback: Callable[[], Plan],
    actions: Callable[[], list[str]],
) -> None:
    """WeChat may show what it held before the apply; the plan says so."""
    wx.put_settings(APPID, SERVER | PERIOD)
    apply()
    wx.put_settings(APPID, SERVER | PERIOD)
    sent = actions()
    done = registrar.rollback()
    assert {change.note for change in done.changes} == {
        "WeChat shows this already; it is sent all the same, as that may be old"
    }
    assert actions() == [*sent, "get", "get", "set_pre_fetch", "set_period_fetch", "get"]
    with pytest.raises(NothingToRollBack):
        rollback()


@pytest.mark.parametrize(
    "since",
    [
        {"pre_fetch_url": "https://old.example/hotfix"},
        {"is_pre_fetch_open": False},
        CLOUD,
    ],
)
def test_what_somebody_else_set_since_needs_its_flag(
    wx: Sandbox, registrar: Registrar, apply: Callable[[], Plan], since: dict[str, object]
) -> None:
    """What is neither the apply's doing nor what it found is replaced only if asked for."""
    wx.put_settings(APPID, SERVER | PERIOD)
    apply()
    found = wx.settings(APPID) | since
    wx.put_settings(APPID, found)
    with pytest.raises(GuardRefused, match="since") as caught:
        registrar.rollback(allow=frozenset({"disable"}), approve=lambda _: None)
    assert caught.value.flag == "--allow-takeover"
    assert wx.settings(APPID) == found
    registrar.rollback(allow=frozenset({"takeover"}), approve=lambda _: None)
    assert wx.settings(APPID) == SERVER | PERIOD


def test_rollback_asks_before_it_sends(
    registrar: Registrar, apply: Callable[[], Plan], actions: Callable[[], list[str]]
) -> None:
    """Disapproved, nothing is sent."""
    apply()
    sent = actions()

    def disapprove(plan: Plan) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        registrar.rollback(approve=disapprove)
    assert actions() == [*sent, "get"]


@pytest.fixture
def versions(wx: Sandbox, registrar: Registrar) -> list[str]:
    """Three applies of one half, each to another URL, over what WeChat held before."""
    wx.put_settings(APPID, SERVER | PERIOD)
    urls = [f"https://shop.example/v{number}" for number in (1, 2, 3)]
    for url in urls:
        target = FetchSetting.server(url)
        registrar.apply(
            {"pre_fetch": target}, allow=frozenset({"takeover"}), approve=lambda _: None
        )
    return urls


@pytest.mark.parametrize(("run", "left"), [(3, "v2"), (2, "v1")])
def test_rollback_to_any_run(
    wx: Sandbox, registrar: Registrar, versions: list[str], run: int, left: str
) -> None:
    """WeChat holds again what it held before the run, without any flag."""
    registrar.rollback(to=run, approve=lambda _: None)
    assert wx.settings(APPID)["pre_fetch_url"] == f"https://shop.example/{left}"


def test_rollback_to_the_first_run(
    wx: Sandbox, registrar: Registrar, versions: list[str], rollback: Callable[[], Plan]
) -> None:
    """All of it is undone, and counts as undone; the rollback itself can be undone too."""
    registrar.rollback(to=1, approve=lambda _: None)
    assert wx.settings(APPID) == SERVER | PERIOD
    with pytest.raises(NothingToRollBack):
        rollback()
    registrar.rollback(to=4, approve=lambda _: None)
    assert wx.settings(APPID)["pre_fetch_url"] == versions[-1]


def test_a_rollback_that_was_undone_undoes_nothing(
    wx: Sandbox, registrar: Registrar, versions: list[str], rollback: Callable[[], Plan]
) -> None:
    """What it had undone is applied again, and can be rolled back once more, one by one."""
    registrar.rollback(to=1)
    registrar.rollback(to=4)
    for url in versions[1::-1]:
        rollback()
        assert wx.settings(APPID)["pre_fetch_url"] == url
    rollback()
    assert wx.settings(APPID) == SERVER | PERIOD


def test_what_was_rolled_back_is_not_ours_any_more(
    wx: Sandbox,
    registrar: Registrar,
    versions: list[str],
    rollback: Callable[[], Plan],
    age: Callable[[], None],
) -> None:
    """Somebody set it again since: a takeover, though we had once set the same."""
    rollback()
    age()
    wx.put_settings(APPID, wx.settings(APPID) | {"pre_fetch_url": versions[-1]})
    with pytest.raises(GuardRefused, match="since"):
        rollback()
    assert wx.settings(APPID)["pre_fetch_url"] == versions[-1]


def test_rollback_to_a_run_that_never_was(registrar: Registrar, versions: list[str]) -> None:
    """The sentence names those there are."""
    with pytest.raises(NoSuchRun, match="knows 1, 2, 3") as caught:
        registrar.rollback(to=9, approve=lambda _: None)
    assert (caught.value.run, caught.value.runs) == (9, (1, 2, 3))


def test_rollback_to_a_run_keeps_its_guard(
    wx: Sandbox, registrar: Registrar, versions: list[str]
) -> None:
    """What none of our runs set is somebody else's."""
    wx.put_settings(APPID, SERVER | {"pre_fetch_url": "https://old.example/hotfix"})
    with pytest.raises(GuardRefused):
        registrar.rollback(to=1, approve=lambda _: None)
