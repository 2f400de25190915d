"""Drift told apart from change: what WeChat no longer holds, and what we want otherwise."""

from collections.abc import Callable, Mapping

from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.registrar.plan import Plan
from prefetch_kit.registrar.registrar import Registrar
from prefetch_kit.sandbox import Sandbox

APPID = "wx01"
PRE_URL = "https://shop.example/prefetch/pre_fetch"
BY_HAND = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 0,
    "pre_fetch_url": "https://shop.example/by-hand",
}


def causes(registrar: Registrar, wanted: Mapping[Kind, FetchSetting]) -> list[str]:
    return [change.cause for change in registrar.plan(wanted).changes]


def test_what_was_never_set_is_a_change(
    registrar: Registrar, wanted: Mapping[Kind, FetchSetting]
) -> None:
    """Without anything confirmed there is nothing to drift from."""
    assert causes(registrar, wanted) == ["change", "change"]


def test_what_somebody_set_by_hand_is_drift(
    wx: Sandbox,
    registrar: Registrar,
    apply: Callable[[], Plan],
    wanted: Mapping[Kind, FetchSetting],
) -> None:
    """We want what we had; WeChat has something else."""
    apply()
    wx.put_settings(APPID, wx.settings(APPID) | BY_HAND)
    assert causes(registrar, wanted) == ["drift"]


def test_a_new_url_is_a_change(
    registrar: Registrar, apply: Callable[[], Plan], wanted: Mapping[Kind, FetchSetting]
) -> None:
    """WeChat has what it had; we want something else."""
    apply()
    assert causes(registrar, {"pre_fetch": FetchSetting.server(f"{PRE_URL}/v2")}) == ["change"]


def test_both_at_once(
    wx: Sandbox,
    registrar: Registrar,
    apply: Callable[[], Plan],
    wanted: Mapping[Kind, FetchSetting],
) -> None:
    """Neither of us holds what was confirmed."""
    apply()
    wx.put_settings(APPID, BY_HAND)
    assert causes(registrar, {"pre_fetch": FetchSetting.server(f"{PRE_URL}/v2")}) == ["both"]


def test_after_a_rollback_the_old_state_is_what_was_confirmed(
    registrar: Registrar, apply: Callable[[], Plan], wanted: Mapping[Kind, FetchSetting]
) -> None:
    """A rollback is ours, so applying again is a change."""
    apply()
    registrar.rollback(approve=lambda _: None)
    assert causes(registrar, wanted) == ["change", "change"]
