"""Where a pull comes from: the app's URL, another, a cloud function, or off."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from prefetch_kit import ConfigError, Prefetch
from prefetch_kit.endpoint.app_state import state_of
from prefetch_kit.fetch_setting import FetchSetting
from prefetch_kit.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

APPID = "wx01"
FUNCTION = {"env": "test-pfyol", "function_name": "login"}
IN_CLOUD = {
    "is_period_fetch_open": True,
    "period_fetch_type": 1,
    "period_env": "test-pfyol",
    "period_function_name": "login",
}
BY_FLAG = ["--period-fetch", "cloud:test-pfyol/login"]
MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(settings: dict[str, Any]) -> MakeApp:
    """An app with a handler for these kinds of pull, whose settings are changed so."""

    def make_app(*kinds: str, **changed: object) -> Flask:
        prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")
        if "pre_fetch" in kinds:
            prefetch.pre_fetch()(lambda _: {})
        if "period_fetch" in kinds:
            prefetch.period_fetch()(lambda _: {})
        app = Flask(__name__)
        app.config.update(settings)
        app.config.update(changed)
        app.register_blueprint(prefetch)
        return app

    return make_app


def test_a_cloud_function_by_flag(cli: "Cli", wx: Sandbox, served: str) -> None:
    """Applied, shown, planned and rolled back; nothing of it is probed, which is said."""
    applied = cli("apply", *BY_FLAG, "--yes")
    assert applied.status == 0
    assert wx.settings(APPID).items() >= IN_CLOUD.items()
    assert "period_fetch comes from cloud function login, so there is nothing to probe" in (
        applied.stderr
    )
    assert "period_fetch  on, cloud function login in test-pfyol" in cli("show").stdout
    assert cli("plan", "--detailed-exitcode", *BY_FLAG).status == 0
    assert cli("plan", "--detailed-exitcode").status == 3
    assert cli("rollback", "--yes").status == 0
    assert wx.settings(APPID)["is_period_fetch_open"] is False


@pytest.mark.parametrize("value", [FUNCTION, "cloud:test-pfyol/login", json.dumps(FUNCTION)])
def test_a_cloud_function_by_setting(
    cli: "Cli", wx: Sandbox, make_app: MakeApp, value: object
) -> None:
    """No handler, no public URL and no domain are needed where nothing is pulled from the app."""
    app = make_app(PREFETCH_PERIOD_FETCH=value, PREFETCH_PRE_FETCH="off", PREFETCH_BASE_URL=None)
    assert cli("apply", "--yes", app=app).status == 0
    assert wx.settings(APPID) == IN_CLOUD
    assert cli("plan", "--detailed-exitcode", app=app).status == 0


def test_a_cloud_function_from_the_environment(
    cli: "Cli", wx: Sandbox, make_app: MakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment says it as JSON, for the hook and for containers."""
    monkeypatch.setenv("PREFETCH_PERIOD_FETCH", json.dumps(FUNCTION))
    assert cli("apply", "--yes", app=make_app()).status == 0
    assert wx.settings(APPID) == IN_CLOUD


def test_off_by_setting(cli: "Cli", wx: Sandbox, make_app: MakeApp) -> None:
    """Whatever it comes from is switched off, keeps its source, and needs the flag for it."""
    wx.put_settings(APPID, IN_CLOUD)
    app = make_app("period_fetch", PREFETCH_PERIOD_FETCH="off")
    assert "add --allow-disable." in cli.refused("apply", "--yes", app=app)
    assert cli("apply", "--yes", "--allow-disable", app=app).status == 0
    assert wx.settings(APPID) == IN_CLOUD | {"is_period_fetch_open": False}


def test_another_url_is_the_one_that_is_probed(
    cli: "Cli", wx: Sandbox, served: str, app: Flask
) -> None:
    """The app's own would answer, this one does not."""
    wx.map_origin("other.example", "http://127.0.0.1:1")
    wx.add_domain(APPID, "other.example")
    words = ["apply", "--pre-fetch", "https://other.example/data", "--period-fetch", "off", "--yes"]
    refused = cli(*words)
    assert "https://other.example/data failed the probe" in refused.stderr
    assert wx.settings(APPID) == {}
    wx.map_origin("other.example", served)
    assert "https://other.example/data failed the probe" in cli(*words).stderr  # 404 there
    assert cli(*words, "--skip-probe").status == 0
    assert wx.settings(APPID)["pre_fetch_url"] == "https://other.example/data"


def test_the_flag_goes_before_the_setting(
    cli: "Cli", wx: Sandbox, served: str, make_app: MakeApp
) -> None:
    """`app` means the app's own URL, whatever the setting says; going there is a takeover."""
    wx.put_settings(APPID, IN_CLOUD)
    app = make_app("pre_fetch", "period_fetch", PREFETCH_PERIOD_FETCH=FUNCTION)
    words = ["apply", "--period-fetch", "app", "--yes", "--skip-probe"]
    assert "add --allow-takeover." in cli.refused(*words, app=app)
    assert cli(*words, "--allow-takeover", app=app).status == 0
    assert wx.settings(APPID)["period_fetch_url"] == "https://shop.example/prefetch/period_fetch"
    assert "add --allow-takeover." in cli.refused("apply", "--yes", "--skip-probe", app=app)


def test_another_function_of_the_same_environment_is_ours(
    cli: "Cli", wx: Sandbox, make_app: MakeApp
) -> None:
    """As another path of the same host is; another environment is somebody else's."""
    wx.put_settings(APPID, IN_CLOUD)
    app = make_app()
    words = ["apply", "--yes", "--period-fetch"]
    assert cli(*words, "cloud:test-pfyol/other", app=app).status == 0
    assert "add --allow-takeover." in cli.refused(*words, "cloud:prod-1/other", app=app)


def test_probe_says_what_cannot_be_probed(cli: "Cli", make_app: MakeApp) -> None:
    """As text and as JSON; nothing is broken."""
    app = make_app(PREFETCH_PRE_FETCH="off", PREFETCH_PERIOD_FETCH=FUNCTION)
    ended = cli("probe", app=app)
    assert ended.status == 0
    assert "pre_fetch is off, so there is nothing to probe" in ended.stdout
    assert "period_fetch comes from cloud function login, so there is nothing" in ended.stdout
    records = [json.loads(line) for line in cli("probe", "--json", app=app).stdout.splitlines()]
    assert [(each["url"], each["status"], each["ok"]) for each in records] == [
        ("off", None, True),
        ("cloud:test-pfyol/login", None, True),
    ]


@pytest.mark.parametrize("kind", ["pre_fetch", "period_fetch"])
def test_a_url_without_a_handler_is_refused(
    cli: "Cli", wx: Sandbox, make_app: MakeApp, kind: str
) -> None:
    """WeChat would pull what the app does not answer; the flag or setting is named."""
    url, flag = "https://shop.example/x", f"--{kind.replace('_', '-')}"
    for words in ([flag, url], [flag, "app"]):
        sentence = cli.refused("plan", *words, app=make_app())
        assert f"{flag} names a URL to pull from, but the app has no handler for {kind}" in sentence
    key = f"PREFETCH_{kind.upper()}"
    sentence = cli.refused("apply", "--yes", app=make_app(**{key: url}))
    assert f"{key} names a URL to pull from, but the app has no handler" in sentence
    assert wx.requests() == []


WRONG = {
    "cloud:": "without its environment (env)",
    "cloud:/login": "without its environment (env)",
    "cloud:test-pfyol": "without its function (function_name)",
    "cloud:test-pfyol/": "without its function (function_name)",
    "cloud:a b/login": "environment (env) cannot be one",
    "cloud:test/lo gin": "function (function_name) cannot be one",
    "cloud:test/\u767b\u5f55": "function (function_name) cannot be one",
    "http://shop.example/x": "does not begin with https://",
    "https://u:canary-password@shop.example/": "user name or password",
    "OFF": "is neither a URL, nor cloud:ENV/NAME, nor off",
    "": "is neither a URL, nor cloud:ENV/NAME, nor off",
    "https://a.example/ cloud:x/y": "spaces",
}


@pytest.mark.parametrize("value", WRONG)
def test_a_wrong_flag_is_named(cli: "Cli", wx: Sandbox, value: str) -> None:
    """It is wrong usage, and nothing is asked of anybody."""
    ended = cli("apply", "--yes", "--period-fetch", value)
    assert ended.status == 2
    assert "Invalid value for '--period-fetch': it " in ended.stderr
    assert WRONG[value] in ended.stderr
    assert "canary" not in ended.stderr
    assert wx.requests() == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        *WRONG.items(),
        ({}, "names something else than url, env and function_name"),
        ({"env": "test-pfyol"}, "without its function (function_name)"),
        ({"function_name": "login"}, "without its environment (env)"),
        ({"env": "", "function_name": "login"}, "without its environment (env)"),
        ({"env": 7, "function_name": "login"}, "environment (env) cannot be one"),
        ({**FUNCTION, "url": "https://a.example/"}, "a URL and a cloud function at once"),
        ({**FUNCTION, "name": "x"}, "names something else than url, env and function_name"),
        (False, "is neither a text nor a mapping"),
        ("{", "begins with a brace and is no JSON"),
        ('{"a":' * 100_000, "begins with a brace and is no JSON"),
        (["off"], "is neither a text nor a mapping"),
    ],
)
@pytest.mark.parametrize("key", ["PREFETCH_PRE_FETCH", "PREFETCH_PERIOD_FETCH"])
def test_a_wrong_setting_is_named(make_app: MakeApp, key: str, value: object, says: str) -> None:
    """The app does not start, and the sentence names the key and the part that is wrong."""
    with pytest.raises(ConfigError) as caught:
        make_app("pre_fetch", "period_fetch", **{key: value})
    assert caught.value.key == key
    assert says in str(caught.value)
    assert "canary" not in str(caught.value)


def test_settings_are_what_was_meant(make_app: MakeApp) -> None:
    """A URL as a mapping too; without a setting the app's own URL is meant."""
    url = "https://shop.example/x"
    for value in (url, {"url": url}, FetchSetting.server(url)):
        config = state_of(make_app("pre_fetch", PREFETCH_PRE_FETCH=value)).config
        assert (config.pre_fetch, config.period_fetch) == (FetchSetting.server(url), None)


def test_a_saved_plan_says_it_itself(cli: "Cli", wx: Sandbox, tmp_path: Any) -> None:
    """A cloud function can be saved and applied; a flag beside the file would contradict it."""
    path = str(tmp_path / "plan.json")
    assert cli("plan", "--pre-fetch", "off", *BY_FLAG, "--out", path).status == 0
    ended = cli("apply", path, *BY_FLAG, "--yes")
    assert (ended.status, "leave out --period-fetch." in ended.stderr) == (2, True)
    assert cli("apply", path, "--yes").status == 0
    assert wx.settings(APPID) == IN_CLOUD


def test_weixins_own_refusal_keeps_its_sentence(cli: "Cli", wx: Sandbox) -> None:
    """What only WeChat can know, it says."""
    wx.inject(Fault(kind="errcode", action="set_period_fetch", errcode=9410017, errmsg="no env"))
    sentence = cli.refused("apply", "--yes", "--pre-fetch", "off", *BY_FLAG, "--skip-probe")
    assert "WeChat refused set_period_fetch: 9410017" in sentence
    assert wx.settings(APPID) == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--pre-fetch-type", "1", "--pre-env", "e"], "--pre-function-name: it names a cloud"),
        (["--pre-fetch-type", "1", "--pre-function-name", "f"], "--pre-env: it names a cloud"),
        (["--pre-fetch-type", "0"], "--pre-fetch-url: it names no URL"),
        (["--pre-fetch-type", "0", "--pre-fetch-url", "http://a.example"], "--pre-fetch-url: it"),
        (
            ["--pre-fetch-type", "0", "--pre-fetch-url", "https://a.example", "--pre-env", "e"],
            "--pre-fetch-url: it names a URL and a cloud function at once",
        ),
        (["--pre-fetch-type", "2"], "'--pre-fetch-type': it is not a whole number from 0 to 1"),
        ([], "Missing option '--pre-fetch-type'"),
    ],
)
def test_a_direct_call_names_the_flag_that_is_wrong(
    cli: "Cli", wx: Sandbox, words: list[str], says: str
) -> None:
    """Refused before anything is sent."""
    ended = cli("settings", "set-pre-fetch", "--is-pre-fetch-open", "true", *words, "--yes")
    assert (ended.status, ended.stdout) == (2, "")
    assert says in ended.stderr
    assert wx.requests() == []


def test_a_direct_call_for_what_has_no_handler(cli: "Cli", wx: Sandbox, make_app: MakeApp) -> None:
    """Refused as everywhere, unless it is switched off."""
    words = ["settings", "set-period-fetch", "--period-fetch-type", "0", "--yes"]
    words += ["--period-fetch-url", "https://shop.example/x", "--is-period-fetch-open"]
    sentence = cli.refused(*words, "true", app=make_app("pre_fetch"))
    assert "--period-fetch-url names a URL to pull from, but the app has no handler" in sentence
    assert wx.requests() == []
    assert cli(*words, "false", app=make_app("pre_fetch")).status == 0


def test_nothing_to_register_is_told(cli: "Cli", wx: Sandbox, make_app: MakeApp) -> None:
    """Without a handler and a public URL an apply would seem to have done its work."""
    app = make_app(PREFETCH_BASE_URL=None)
    for words in (["apply", "--yes"], ["probe"]):
        assert "PREFETCH_BASE_URL is missing" in cli.refused(*words, app=app)


def test_getting_nothing(cli: "Cli", wx: Sandbox) -> None:
    """It is said, beside the output that scripts read."""
    ended = cli("settings", "get")
    assert (ended.status, ended.stdout) == (0, "")
    assert "WeChat has nothing configured." in ended.stderr


def test_a_direct_call_is_guarded(cli: "Cli", wx: Sandbox) -> None:
    """Switching off while replacing somebody else's source needs both flags, and names both."""
    wx.put_settings(APPID, IN_CLOUD)
    words = ["settings", "set-period-fetch", "--is-period-fetch-open", "false"]
    words += ["--period-fetch-type", "1", "--period-env", "mine", "--period-function-name", "f"]
    assert "add --allow-disable --allow-takeover." in cli.refused(*words, "--yes")
    assert "add --allow-takeover." in cli.refused(*words, "--yes", "--allow-disable")
    assert wx.settings(APPID) == IN_CLOUD
    assert cli(*words, "--yes", "--allow-disable", "--allow-takeover").status == 0
    assert "Nobody is here to answer" in cli.refused(*words[:-1], "g")
