"""Plans that are saved now and executed later."""

import json
import stat
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from prefetch_kit.errors import GuardRefused, PlanStale, PlanUnusable, UrlRefused
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.registrar.plan import Change, Plan
from prefetch_kit.registrar.plan_file import read_plans, write_plans
from prefetch_kit.registrar.registrar import Registrar
from prefetch_kit.sandbox import Sandbox

APPID = "wx01"
WECHAT = "api.weixin.qq.com"
OLD = {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": "https://shop.example/old"}


@pytest.fixture
def saved(
    registrar: Registrar, wanted: Mapping[Kind, FetchSetting], wx: Sandbox, tmp_path: Path
) -> Path:
    """A plan of both halves, where the first has an older URL of ours."""
    wx.put_settings(APPID, OLD)
    path = tmp_path / "plan.json"
    write_plans(path, [(APPID, registrar.plan(wanted).changes)], wechat=WECHAT)
    return path


def changes(path: Path) -> tuple[Change, ...]:
    return dict(read_plans(path, wechat=WECHAT))[APPID]


@pytest.fixture
def apply_saved(registrar: Registrar, saved: Path) -> Callable[[], Plan]:
    return lambda: registrar.apply_changes(changes(saved), approve=lambda _: None)


def test_a_saved_plan_is_carried_out(
    wx: Sandbox, apply_saved: Callable[[], Plan], wanted: Mapping[Kind, FetchSetting]
) -> None:
    """What was planned then is set now, and the second time nothing is."""
    assert len(apply_saved().changes) == 2
    assert wx.settings(APPID)["pre_fetch_url"] == wanted["pre_fetch"].url
    assert wx.settings(APPID)["period_fetch_url"] == wanted["period_fetch"].url
    assert apply_saved().changes == ()


def test_a_stale_plan_is_refused(wx: Sandbox, apply_saved: Callable[[], Plan]) -> None:
    """Where WeChat holds something else than the plan saw, nothing at all is sent."""
    wx.put_settings(APPID, OLD | {"pre_fetch_url": "https://shop.example/other"})
    with pytest.raises(PlanStale):
        apply_saved()
    assert wx.count(action="set_pre_fetch") == wx.count(action="set_period_fetch") == 0


def test_a_plan_half_of_which_is_done_is_not_stale(
    wx: Sandbox, apply_saved: Callable[[], Plan], wanted: Mapping[Kind, FetchSetting]
) -> None:
    """Only the rest is sent."""
    wx.put_settings(APPID, OLD | {"pre_fetch_url": wanted["pre_fetch"].url})
    assert [change.kind for change in apply_saved().changes] == ["period_fetch"]
    assert wx.count(action="set_pre_fetch") == 0


def test_the_guards_hold_for_a_saved_plan(
    wx: Sandbox, registrar: Registrar, wanted: Mapping[Kind, FetchSetting], tmp_path: Path
) -> None:
    """Saving a plan lifts none of them."""
    wx.put_settings(APPID, OLD | {"pre_fetch_url": "https://old.example/"})
    path = tmp_path / "plan.json"
    write_plans(path, [(APPID, registrar.plan(wanted).changes)], wechat=WECHAT)
    with pytest.raises(GuardRefused, match="--allow-takeover"):
        registrar.apply_changes(changes(path), approve=lambda _: None)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("shop.example/old", "shop.example/new"),
        ('"apps": 1', '"apps": 2'),
        ('"unread": 0', '"unread": 1'),
        ('"unread": 0', '"unread": false'),
        ('"before"', '"befor"'),
        ('"guard": null', '"guard": "none"'),
        ('"appid": "wx01"', '"appid": "../x"'),
        ('"prefetch_kit plan"', '"terraform"'),
        ('"version": 1', '"version": 2'),
        ("{", "[" * 60_000),
    ],
)
def test_a_changed_file_is_refused(saved: Path, old: str, new: str) -> None:
    """One other character is enough."""
    saved.write_text(saved.read_text().replace(old, new, 1))
    with pytest.raises(PlanUnusable, match="plan --out"):
        changes(saved)


def test_a_file_cut_anywhere_is_refused(saved: Path) -> None:
    """No beginning of a plan is a plan."""
    whole = saved.read_text()
    for length in range(len(whole) - 1):
        saved.write_text(whole[:length])
        with pytest.raises(PlanUnusable):
            changes(saved)


def test_a_file_with_more_behind_its_end_is_refused(saved: Path) -> None:
    """A file with two plans is refused."""
    saved.write_text(saved.read_text() * 2)
    with pytest.raises(PlanUnusable):
        changes(saved)


def test_a_plan_for_another_wechat_is_refused(saved: Path) -> None:
    """What was planned in the sandbox is not executed at WeChat."""
    with pytest.raises(PlanUnusable, match=r"127\.0\.0\.1"):
        list(read_plans(saved, wechat="127.0.0.1:9000"))


def test_the_guard_in_the_file_is_not_believed(saved: Path) -> None:
    """It follows from what WeChat holds and what it should, not from the file."""
    first, second = changes(saved)
    before = replace(first.before, url="https://old.example/x")
    off = replace(second.after, open=False)
    theirs = replace(first, before=before), replace(second, before=second.after, after=off)
    write_plans(saved, [(APPID, theirs)], wechat=WECHAT)
    assert [change.guards for change in theirs] == [(), ()]
    assert [change.guards for change in changes(saved)] == [("takeover",), ("disable",)]


def test_what_cannot_be_set_is_refused_at_reading(saved: Path) -> None:
    """One kind twice, and a cloud function without its environment."""
    first, second = changes(saved)
    cloud = FetchSetting(open=False, source="cloud_function", env="")
    for wrong in ((first, second, first), (replace(first, after=cloud), second)):
        write_plans(saved, [(APPID, wrong)], wechat=WECHAT)
        with pytest.raises(PlanUnusable, match=APPID):
            changes(saved)


def test_a_plan_for_a_url_wechat_cannot_pull(saved: Path) -> None:
    """The rules for URLs hold for a file too."""
    change = changes(saved)[0]
    worse = replace(change, after=replace(change.after, url="http://shop.example/"))
    write_plans(saved, [(APPID, (worse,))], wechat=WECHAT)
    with pytest.raises(UrlRefused):
        changes(saved)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\0" * 100, b""])
def test_what_is_no_plan_at_all(tmp_path: Path, content: bytes) -> None:
    """Any file may be given by mistake."""
    (tmp_path / "x").write_bytes(content)
    for path in (tmp_path / "x", tmp_path / "none", tmp_path):
        with pytest.raises(PlanUnusable):
            changes(path)


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    """A missing directory is said, not a traceback."""
    with pytest.raises(PlanUnusable, match="cannot be written"):
        write_plans(tmp_path / "none" / "plan.json", [], wechat=WECHAT)


def test_the_file_holds_what_was_promised(saved: Path) -> None:
    """The appid, what WeChat holds, what it should, and a fingerprint, for people."""
    _, plan, end = map(json.loads, saved.read_text().splitlines())
    assert plan["appid"] == APPID
    assert plan["changes"][0]["before"]["url"] == "https://shop.example/old"
    assert plan["changes"][0]["after"]["url"] == "https://shop.example/prefetch/pre_fetch"
    assert len(end["fingerprint"]) == 64
    assert stat.S_IMODE(saved.stat().st_mode) == 0o600
