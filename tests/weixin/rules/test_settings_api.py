"""Reading and writing the settings: every field, every answer, every repeat."""

import json
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from prefetch_kit.errors import ConfigError, OutcomeUnknown, Refused
from prefetch_kit.fetch_setting import KINDS, FetchSetting, FetchSettings, Kind
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.tokens import TokenSource
from prefetch_kit.weixin.transport import Transport

APPID = "wx01"
URL = "https://shop.example/prefetch"
SERVER = FetchSetting(open=True, source="server", url=URL)
CLOUD = FetchSetting(open=True, source="cloud_function", env="test-pfyol", function_name="login")
NEVER_SET = FetchSetting()


def busy(errcode: int, times: int | None = 1) -> Fault:
    return Fault(kind="errcode", errcode=errcode, times=times)


@pytest.fixture
def answers(wx: Sandbox, api: SettingsApi) -> Callable[[object], FetchSettings]:
    """What `get` makes of an answer that WeChat gives each time."""

    def read(answer: object) -> FetchSettings:
        wx.inject(Fault(kind="raw", body=json.dumps(answer), times=None))
        return api.get()

    return read


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", [SERVER, CLOUD])
@pytest.mark.parametrize("is_open", [True, False])
def test_a_half_comes_back_as_it_was_put(
    api: SettingsApi, kind: Kind, source: FetchSetting, is_open: bool
) -> None:
    """Either source, on or off, survives WeChat; the other half stays untouched."""
    setting = replace(source, open=is_open)
    api.put(kind, setting)
    halves = {half: api.get().for_kind(half) for half in KINDS}
    assert halves == {**dict.fromkeys(KINDS, NEVER_SET), kind: setting}


@pytest.mark.parametrize(
    ("kind", "setting", "wire"),
    [
        ("pre_fetch", SERVER, {"pre_fetch_type": 0, "pre_fetch_url": URL}),
        ("period_fetch", SERVER, {"period_fetch_type": 0, "period_fetch_url": URL}),
        (
            "pre_fetch",
            CLOUD,
            {"pre_fetch_type": 1, "pre_env": "test-pfyol", "pre_function_name": "login"},
        ),
        (
            "period_fetch",
            CLOUD,
            {"period_fetch_type": 1, "period_env": "test-pfyol", "period_function_name": "login"},
        ),
    ],
)
def test_a_half_is_spelled_as_on_weixins_page(
    wx: Sandbox, api: SettingsApi, kind: Kind, setting: FetchSetting, wire: dict[str, object]
) -> None:
    """What goes out is the page's own example, with no field of the other source."""
    api.put(kind, setting)
    sent = wx.requests()[-1].body
    assert sent == {"action": f"set_{kind}", f"is_{kind}_open": True, **wire}


def test_the_answer_printed_on_weixins_page_is_read(
    answers: Callable[[object], FetchSettings],
) -> None:
    """The example of the getFetchdataSetting page, its leading blank included."""
    read = answers(
        {
            "errcode": 0,
            "errmsg": "ok",
            "is_pre_fetch_open": True,
            "pre_fetch_type": 1,
            "pre_env": "test-pfyol",
            "pre_function_name": " test_func",
            "is_period_fetch_open": True,
            "period_fetch_type": 0,
            "period_fetch_url": "https://111.qq.com",
        }
    )
    assert read.pre_fetch == replace(CLOUD, function_name=" test_func")
    assert read.period_fetch == replace(SERVER, url="https://111.qq.com")


def test_absent_is_none_and_not_off(answers: Callable[[object], FetchSettings]) -> None:
    """A half that was never set is told apart from one that was switched off."""
    read = answers({"errcode": 0, "is_period_fetch_open": False, "added_in_2030": [1]})
    assert read.pre_fetch == NEVER_SET
    assert read.pre_fetch.open is None
    assert read.period_fetch.open is False


@pytest.mark.parametrize(
    "odd",
    [
        {"is_pre_fetch_open": 1},
        {"is_pre_fetch_open": "true"},
        {"pre_fetch_type": "0"},
        {"pre_fetch_type": 2},
        {"pre_fetch_type": True},
        {"pre_fetch_type": 0.5},
        {"pre_fetch_url": 7},
        {"period_env": ["a"]},
        {"period_function_name": {}},
    ],
)
def test_a_field_of_another_type_is_not_guessed_at(
    answers: Callable[[object], FetchSettings], odd: dict[str, object]
) -> None:
    """An answer that breaks the page's promise is unknown, never half believed."""
    with pytest.raises(OutcomeUnknown) as caught:
        answers({"errcode": 0, **odd})
    assert caught.value.sent


@pytest.mark.parametrize("setting", [SERVER, CLOUD, NEVER_SET, replace(SERVER, open=False)])
def test_a_setting_survives_its_plain_form(setting: FetchSetting) -> None:
    """`from_dict` undoes `to_dict`, through JSON as well."""
    assert FetchSetting.from_dict(json.loads(json.dumps(setting.to_dict()))) == setting


@pytest.mark.parametrize(
    "change",
    [{"open": 1}, {"open": "yes"}, {"source": "cloud"}, {"url": 7}, {"env": []}, {"extra": None}],
)
def test_a_plain_form_that_is_none_is_refused(change: dict[str, object]) -> None:
    """A journal or plan written by something else is not half read."""
    with pytest.raises(ValueError, match="not a fetch setting"):
        FetchSetting.from_dict({**SERVER.to_dict(), **change})


def test_a_plain_form_lacks_nothing() -> None:
    """A member left out is not taken for None."""
    plain = SERVER.to_dict()
    del plain["env"]
    with pytest.raises(ValueError, match="env"):
        FetchSetting.from_dict(plain)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("setting", "missing"),
    [
        (replace(SERVER, open=None), "open"),
        (replace(SERVER, source=None), "source"),
        (replace(SERVER, url=None), "url"),
        (replace(SERVER, url=""), "url"),
        (replace(SERVER, open=False, url=None), "url"),
        (replace(CLOUD, env=None), "env"),
        (replace(CLOUD, function_name=""), "function_name"),
    ],
)
def test_an_incomplete_half_is_never_sent(
    wx: Sandbox, api: SettingsApi, kind: Kind, setting: FetchSetting, missing: str
) -> None:
    """Not even a token is asked for; the error names the member."""
    with pytest.raises(ConfigError) as caught:
        api.put(kind, setting)
    assert caught.value.key == f"{kind}.{missing}"
    assert wx.requests() == []


def test_a_lost_answer_to_put_is_not_repeated(
    wx: Sandbox, api: SettingsApi, calls: Callable[[], int]
) -> None:
    """It took effect although nobody said so: the caller has to read back."""
    wx.inject(Fault(kind="lose", action="set_pre_fetch", times=None))
    with pytest.raises(OutcomeUnknown, match="read back") as caught:
        api.put("pre_fetch", SERVER)
    assert (caught.value.action, caught.value.sent, calls()) == ("set_pre_fetch", True, 1)
    assert api.get().pre_fetch == SERVER


def test_put_believes_only_an_errcode_of_zero(wx: Sandbox, api: SettingsApi) -> None:
    """Any JSON object could come from a proxy that answers instead of WeChat."""
    wx.inject(Fault(kind="raw", body='{"status":"ok"}'))
    with pytest.raises(OutcomeUnknown, match="not what the API promises"):
        api.put("pre_fetch", SERVER)


def test_a_lost_answer_to_get_is_asked_for_once_more(
    wx: Sandbox, api: SettingsApi, calls: Callable[[], int]
) -> None:
    """Reading changes nothing, so one broken connection is nobody's business."""
    wx.put_settings(APPID, {"is_pre_fetch_open": False})
    wx.inject(Fault(kind="close"))
    assert api.get().pre_fetch == FetchSetting.off()
    assert calls() == 2


def test_that_nothing_was_ever_configured_is_believed_the_third_time(
    api: SettingsApi, calls: Callable[[], int]
) -> None:
    """A success without a field could as well be a fault of WeChat."""
    assert api.get() == FetchSettings(NEVER_SET, NEVER_SET)
    assert calls() == 3


@pytest.mark.parametrize("times", [1, 2])
def test_a_success_without_a_field_is_asked_about_again(
    wx: Sandbox, api: SettingsApi, calls: Callable[[], int], times: int
) -> None:
    """What WeChat really holds comes out."""
    api.put("pre_fetch", SERVER)
    wx.inject(Fault(kind="raw", body='{"errcode":0,"errmsg":"ok"}', times=times))
    assert api.get().pre_fetch == SERVER
    assert calls() == 1 + times + 1


@pytest.mark.parametrize(
    "contradicting",
    [
        {"is_pre_fetch_open": True},
        {"is_pre_fetch_open": True, "pre_fetch_type": 0},
        {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": ""},
        {"is_pre_fetch_open": True, "pre_fetch_type": 1, "pre_env": "e-1"},
        {"is_pre_fetch_open": True, "pre_fetch_type": 1, "pre_function_name": "main"},
        {"is_pre_fetch_open": True, "pre_fetch_url": URL},
        {"is_period_fetch_open": True, "period_fetch_type": 0, "pre_fetch_url": URL},
    ],
)
def test_an_answer_that_contradicts_itself_is_no_answer(
    wx: Sandbox, api: SettingsApi, contradicting: dict[str, object]
) -> None:
    """Nothing can be pulled from nowhere. Once it is asked about again."""
    api.put("pre_fetch", SERVER)
    wx.inject(Fault(kind="raw", body=json.dumps({"errcode": 0, **contradicting})))
    assert api.get().pre_fetch == SERVER
    wx.inject(Fault(kind="raw", body=json.dumps({"errcode": 0, **contradicting}), times=2))
    with pytest.raises(OutcomeUnknown, match="not what the API promises"):
        api.get()


@pytest.mark.parametrize("errcode", [-1, 9410099])
def test_a_code_that_may_have_taken_effect_is_not_repeated(
    wx: Sandbox, api: SettingsApi, calls: Callable[[], int], errcode: int
) -> None:
    """A busy system may have done it, and what an unknown code means nobody knows."""
    wx.inject(Fault(kind="errcode", errcode=errcode, action="set_pre_fetch", times=None))
    with pytest.raises(Refused) as caught:
        api.put("pre_fetch", SERVER)
    assert (caught.value.rules_out_effect, calls()) == (False, 1)


@pytest.mark.parametrize("errcode", [9410016, 45009, 48001])
def test_other_codes_rule_it_out(wx: Sandbox, api: SettingsApi, errcode: int) -> None:
    """WeChat says no, and means it."""
    wx.inject(Fault(kind="errcode", errcode=errcode, action="set_pre_fetch"))
    with pytest.raises(Refused) as caught:
        api.put("pre_fetch", SERVER)
    assert caught.value.rules_out_effect


@pytest.mark.parametrize(
    "fault", [Fault(kind="close", times=None), Fault(kind="raw", body="{}", times=None)]
)
def test_get_gives_up_after_the_second_unknown_answer(
    wx: Sandbox, api: SettingsApi, calls: Callable[[], int], fault: Fault
) -> None:
    """Two tries and no more, whether nothing came or nothing readable."""
    wx.inject(fault)
    with pytest.raises(OutcomeUnknown):
        api.get()
    assert calls() == 2


def test_a_busy_system_is_asked_again_twice_after_growing_pauses(
    wx: Sandbox, api: SettingsApi, calls: Callable[[], int], pauses: list[float]
) -> None:
    """The third try succeeds; the pauses are random within one and two seconds."""
    wx.put_settings(APPID, {"is_pre_fetch_open": False})
    wx.inject(busy(-1, times=2))
    api.get()
    first, second = pauses
    assert (calls(), 0 <= first <= 1, 0 <= second <= 2) == (3, True, True)


def test_a_full_minute_is_waited_out_once(
    wx: Sandbox, api: SettingsApi, calls: Callable[[], int], pauses: list[float]
) -> None:
    """The call goes out again early in the next minute of the clock."""
    wx.inject(busy(45011))
    began = time.time()
    api.put("pre_fetch", SERVER)
    (pause_s,) = pauses
    assert calls() == 2
    assert began // 60 + 1 <= (time.time() + pause_s) // 60
    assert 0 < pause_s <= 65


def test_a_full_minute_is_not_waited_out_beyond_max_wait_s(
    wx: Sandbox,
    transport: Transport,
    numbered: TokenSource,
    pauses: list[float],
    calls: Callable[[], int],
) -> None:
    """A caller in a hurry gets the refusal at once, with what to do about it."""
    wx.inject(busy(45011))
    hurried = SettingsApi(transport, numbered, sleep=pauses.append, max_wait_s=0)
    with pytest.raises(Refused, match="Wait for the next minute"):
        hurried.put("pre_fetch", SERVER)
    assert (calls(), pauses) == (1, [])


def test_the_default_patience_covers_the_longest_minute(
    wx: Sandbox, api: SettingsApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute that has just begun, with the whole jitter and a busy system before it."""
    monkeypatch.setattr("random.uniform", max)
    monkeypatch.setattr("time.time", lambda: 1_700_000_040.0)  # the first second of a minute
    api.put("pre_fetch", SERVER)
    wx.inject(busy(-1, times=2))
    wx.inject(busy(45011))
    assert api.get().pre_fetch == SERVER


def test_all_pauses_of_one_get_stay_within_max_wait_s(
    wx: Sandbox,
    transport: Transport,
    numbered: TokenSource,
    pauses: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lost answer between two full minutes does not start the patience anew."""
    monkeypatch.setattr("random.uniform", min)
    monkeypatch.setattr("time.time", lambda: 1_700_000_040.0)
    for fault in (busy(45011), Fault(kind="close"), busy(45011, times=None)):
        wx.inject(fault)
    with pytest.raises(Refused):
        SettingsApi(transport, numbered, sleep=pauses.append, max_wait_s=61).get()
    assert sum(pauses) <= 61


def test_no_mix_of_refusals_is_repeated_more_than_each_kind_allows(
    wx: Sandbox,
    numbered: TokenSource,
    settings_of: Callable[[TokenSource], SettingsApi],
    calls: Callable[[], int],
) -> None:
    """One after the other they end too: two for busy, one for the token, one for the minute."""
    for errcode in (-1, 40001, 45011, -1, 42001, -1):
        wx.inject(busy(errcode))
    with pytest.raises(Refused, match="42001"):
        settings_of(numbered).get()
    assert calls() == 5
