"""The comparison of what WeChat holds with what it should hold."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefetch_kit.errors import SourceRefused
from prefetch_kit.fetch_setting import KINDS, FetchSetting, FetchSettings
from prefetch_kit.registrar.plan import (
    OffIfFrom,
    Past,
    Plan,
    Wanted,
    are_alike,
    guards_of,
    plan_rollback,
    plan_wanted,
)

OURS = "https://shop.example/prefetch/pre_fetch"
THEIRS = "https://old.example/data"
NEVER = FetchSetting()
ON = FetchSetting(open=True, source="server", url=OURS)
CLOUD = FetchSetting(open=True, source="cloud_function", env="e-1", function_name="main")

urls = st.sampled_from([None, OURS, "https://SHOP.example/v1", THEIRS, "https://[broken"])
settings = st.builds(
    FetchSetting,
    open=st.sampled_from([None, True, False]),
    source=st.sampled_from([None, "server", "cloud_function"]),
    url=urls,
    env=st.sampled_from([None, "e-1"]),
    function_name=st.sampled_from([None, "main"]),
)
both = st.builds(FetchSettings, pre_fetch=settings, period_fetch=settings)
SERVED = FetchSetting.server(OURS)
UNSERVED = OffIfFrom(SERVED)
wants = st.fixed_dictionaries(dict.fromkeys(KINDS, st.sampled_from([SERVED, UNSERVED])))


def applied(plan: Plan) -> FetchSettings:
    """What WeChat holds once a plan is executed."""
    after = {change.kind: change.after for change in plan.changes}
    return FetchSettings(**{kind: after.get(kind, plan.current.for_kind(kind)) for kind in KINDS})


@given(both, wants)
def test_an_applied_plan_leaves_nothing_to_do(current: FetchSettings, wanted: Wanted) -> None:
    """Planning again on top of an applied plan finds no change."""
    again = plan_wanted("wx01", applied(plan_wanted("wx01", current, wanted)), wanted)
    assert again.changes == ()


@given(both, wants)
def test_served_kinds_end_up_on_our_url(current: FetchSettings, wanted: Wanted) -> None:
    """Whatever WeChat held, a kind with a handler is on and ours afterwards."""
    after = applied(plan_wanted("wx01", current, wanted))
    for kind, each in wanted.items():
        setting = after.for_kind(kind)
        if isinstance(each, FetchSetting):
            assert (setting.open, setting.source, setting.url) == (True, "server", OURS)


@given(both, wants)
def test_guards_are_never_missed(current: FetchSettings, wanted: Wanted) -> None:
    """Switching off and replacing something foreign always have their guard, nothing else has."""
    for change in plan_wanted("wx01", current, wanted).changes:
        if change.before.source == "cloud_function":
            foreign = change.before.function_name is not None
        else:
            foreign = change.before.url in (THEIRS, "https://[broken")
        expected = ("takeover",) if foreign else ()
        assert change.guards == (expected if change.after.open else ("disable",))


@given(both, both, both)
def test_a_return_is_complete_and_done_once(
    current: FetchSettings, then: FetchSettings, wanted: FetchSettings
) -> None:
    """After a return each half is what it was, or off where its source was not whole."""
    pasts = {kind: Past(then.for_kind(kind), wanted.for_kind(kind)) for kind in KINDS}
    after = applied(plan_rollback("wx01", current, pasts))
    again = plan_rollback("wx01", after, pasts).changes
    assert all(are_alike(change.before, change.after) for change in again)
    for kind in KINDS:
        was, is_now = then.for_kind(kind), after.for_kind(kind)
        on_server = was.source == "server" and was.url
        in_cloud = was.source == "cloud_function" and was.env and was.function_name
        assert (
            are_alike(is_now, was)
            if on_server or in_cloud
            else not (is_now.open and is_now.is_whole)
        )


@given(both, both, both)
def test_a_return_guards_what_others_set(
    current: FetchSettings, then: FetchSettings, wanted: FetchSettings
) -> None:
    """What the run neither found nor wanted has the guard, nothing else has."""
    pasts = {kind: Past(then.for_kind(kind), wanted.for_kind(kind)) for kind in KINDS}
    for change in plan_rollback("wx01", current, pasts).changes:
        past = pasts[change.kind]
        knowns = past.before, past.wanted, change.after
        known = any(are_alike(change.before, each) for each in knowns)
        assert change.guards == (() if known else ("takeover",))


@pytest.mark.parametrize(
    ("before", "guard"),
    [
        (NEVER, None),
        (replace(ON, open=False), None),
        (replace(ON, url="https://shop.example/old"), None),
        (replace(ON, url="https://SHOP.EXAMPLE/old"), None),
        (replace(ON, url=THEIRS), "takeover"),
        (replace(ON, url=THEIRS, open=False), "takeover"),
        (replace(ON, url="https://shop.example.evil/"), "takeover"),
        (replace(ON, url="https://example/parent"), "takeover"),
        (replace(ON, url="https://other.shop.example/child"), "takeover"),
        (replace(ON, url="https://[broken"), "takeover"),
        (CLOUD, "takeover"),
        (replace(CLOUD, open=False), "takeover"),
        (replace(CLOUD, url=OURS), "takeover"),
    ],
)
def test_guard_of_a_served_kind(before: FetchSetting, guard: str | None) -> None:
    """Only a source on our own host, or none at all, may be replaced without a flag."""
    current = FetchSettings(pre_fetch=before, period_fetch=NEVER)
    (change,) = plan_wanted("wx01", current, {"pre_fetch": SERVED}).changes
    assert change.guards == ((guard,) if guard else ())


@pytest.mark.parametrize(("env", "guards"), [("e-1", ()), ("e-2", ("takeover",))])
def test_guard_of_a_cloud_function(env: str, guards: tuple[str, ...]) -> None:
    """Another function of our own environment may be replaced, none of another environment."""
    before = FetchSetting.cloud_function(env, "old")
    assert guards_of(before, FetchSetting.cloud_function("e-1", "new")) == guards


@pytest.mark.parametrize("before", [NEVER, replace(ON, url=THEIRS), CLOUD, replace(ON, open=False)])
def test_a_kind_without_handler_is_left_alone(before: FetchSetting) -> None:
    """What the app does not serve is not for it to set."""
    current = FetchSettings(pre_fetch=before, period_fetch=NEVER)
    assert plan_wanted("wx01", current, {"pre_fetch": UNSERVED}).changes == ()


def test_our_own_url_without_handler_is_switched_off() -> None:
    """A pull that can only fail is switched off, behind a flag, and keeps its URL."""
    current = FetchSettings(pre_fetch=ON, period_fetch=NEVER)
    (change,) = plan_wanted("wx01", current, {"pre_fetch": UNSERVED}).changes
    assert change.after == replace(ON, open=False)
    assert change.guards == ("disable",)


def test_fields_of_the_inactive_source_do_not_count() -> None:
    """What WeChat remembers of a cloud function does not make a plan."""
    current = FetchSettings(pre_fetch=replace(ON, env="e-1", function_name="f"), period_fetch=NEVER)
    assert plan_wanted("wx01", current, {"pre_fetch": SERVED}).changes == ()


@pytest.mark.parametrize(
    "earlier", [NEVER, FetchSetting(open=False, source="server"), replace(CLOUD, env=None)]
)
def test_return_to_no_source_is_off_and_says_so(earlier: FetchSetting) -> None:
    """WeChat takes no half without a source, so it keeps the one it has, switched off."""
    current = FetchSettings(pre_fetch=ON, period_fetch=NEVER)
    (change,) = plan_rollback("wx01", current, {"pre_fetch": Past(earlier, ON)}).changes
    assert change.after == replace(ON, open=False)
    assert change.note is not None


@pytest.mark.parametrize(
    "url",
    [
        "http://shop.example/p",
        "https://user:pw@shop.example/p",
        "https://shop.example:8443/p",
        "https://shop.example/p?a=b",
        "https://shop.example/p#f",
        "https://127.0.0.1/p",
        "https://localhost/p",
        "https://[::1]/p",
        "https://[broken",
        "",
    ],
)
def test_urls_weixin_could_not_pull_are_refused(url: str) -> None:
    """They are refused before anything is sent, with a remedy."""
    with pytest.raises(SourceRefused) as caught:
        FetchSetting.server(url)
    assert caught.value.remedy
