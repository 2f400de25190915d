"""`urls`: what to paste into WeChat's console where no call can set it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from prefetch_kit import Prefetch
from prefetch_kit.sandbox import Sandbox
from tests.conftest import Origin

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

APPID = "wx01"
PRE_FETCH = "https://shop.example/prefetch/pre_fetch"
PERIOD_FETCH = "https://shop.example/prefetch/period_fetch"


@pytest.mark.usefixtures("served")
def test_the_urls_the_steps_and_the_probe(cli: "Cli", wx: Sandbox) -> None:
    """In Chinese and English, with the verdicts; WeChat is asked for nothing."""
    ended = cli("urls")
    assert ended.status == 0, ended.stdout
    assert f"  pre_fetch     {PRE_FETCH}\n" in ended.stdout
    assert (
        f"“数据预拉取”：开启，数据来源选开发者服务器，数据下载地址填 {PRE_FETCH}\n" in ended.stdout
    )
    pasted = "switch it on, choose the developer's server, and paste"
    assert f"数据周期性更新 (periodic fetch): {pasted} {PERIOD_FETCH}\n" in ended.stdout
    assert "业务域名 (business domains): add shop.example." in ended.stdout
    assert "  ok   status: " in ended.stdout
    assert wx.requests() == []


@pytest.mark.usefixtures("served")
def test_as_json(cli: "Cli") -> None:
    """An object for each URL, the steps, and each probe."""
    records = [json.loads(each) for each in cli("urls", "--json").stdout.splitlines()]
    assert [each["type"] for each in records] == ["url", "url", "steps", "probe", "probe"]
    assert [each["url"] for each in records[:2]] == [PRE_FETCH, PERIOD_FETCH]
    assert len(records[2]["zh"]) == len(records[2]["en"]) == 5
    assert all(each["ok"] for each in records[3:])


def test_a_probe_that_fails(cli: "Cli", wx: Sandbox) -> None:
    """The URLs are printed all the same; the exit code is 1, or 0 without the probe."""
    wx.map_origin("shop.example", "http://127.0.0.1:1")
    ended = cli("urls")
    assert (ended.status, PRE_FETCH in ended.stdout) == (1, True)
    assert "  FAIL " in ended.stdout
    skipped = cli("urls", "--skip-probe")
    assert (skipped.status, "FAIL" in skipped.stdout) == (0, False)


def test_other_sources(cli: "Cli", settings: dict[str, Any], prefetch: Prefetch) -> None:
    """A cloud function and a pull that is off are set in the console too, without a domain."""
    app = Flask(__name__)
    app.config.update(settings, PREFETCH_PRE_FETCH="cloud:env-1/login", PREFETCH_PERIOD_FETCH="off")
    app.register_blueprint(prefetch)
    ended = cli("urls", app=app)
    assert ended.status == 0
    assert "“数据预拉取”：开启，数据来源选云开发，环境 env-1，云函数 login。" in ended.stdout
    assert "数据周期性更新 (periodic fetch): switch it off." in ended.stdout
    assert "business domains" not in ended.stdout


def test_an_app_without_handlers(cli: "Cli", settings: dict[str, Any]) -> None:
    """There is nothing to paste, and the sentence says why."""
    app = Flask(__name__)
    app.config.update(settings)
    app.register_blueprint(Prefetch("prefetch", __name__))
    assert "The app has no handler" in cli.refused("urls", app=app)


@pytest.mark.parametrize("errcode", [48001, 61003, 61007, 61014, 61015])
@pytest.mark.parametrize("command", [("show",), ("plan",), ("apply", "--yes"), ("settings", "get")])
def test_a_refused_own_token_names_the_way_out(
    cli: "Cli", wx: Sandbox, errcode: int, command: tuple[str, ...]
) -> None:
    """Whatever the code, and not a platform that such a mini program does not have."""
    wx.switches.own_token_accepted = False
    wx.switches.own_token_errcode = errcode
    sentence = cli.refused(*command)
    assert f": {errcode}, " in sentence
    assert "`prefetch-kit fleet urls`, prints what to paste into WeChat's console" in sentence
    assert "merchant authorize" not in sentence


def test_plan_says_what_it_cannot_know(
    cli: "Cli", wx: Sandbox, settings: dict[str, Any], prefetch: Prefetch
) -> None:
    """With the mini program's own token; not about a token that may be a platform's."""
    assert "whether WeChat takes the mini program's own access token" in cli("plan").stderr
    app = Flask(__name__)
    app.config.update(settings, PREFETCH_ACCESS_TOKEN=wx.access_token(APPID))
    app.register_blueprint(prefetch)
    planned = cli("plan", app=app)
    assert (planned.status, PRE_FETCH in planned.stdout) == (0, True)
    assert "own access token" not in planned.stderr


@pytest.fixture
def project(wx: Sandbox, tmp_path: Path) -> Path:
    """A list of two mini programs without a platform."""
    (tmp_path / "apps.csv").write_text("appid\nwx5e0f00d5ca1ab1e1\nwx5e0f00d5ca1ab1e2\n")
    (tmp_path / "secrets.json").write_text(
        '{"wx5e0f00d5ca1ab1e1": "s1", "wx5e0f00d5ca1ab1e2": "s2"}'
    )
    path = tmp_path / "prefetch.toml"
    path.write_text(
        f'api_base_url = "{wx.base_url}"\n'
        '[apps]\nlist = "apps.csv"\n'
        '[urls]\npre_fetch = "https://shop.example/{appid}/pre_fetch"\n'
        '[tokens]\napp_secrets = { file = "secrets.json" }\n'
    )
    return path


def test_the_urls_of_a_list(cli: "Cli", wx: Sandbox, project: Path, origin: Origin) -> None:
    """Each with its own URL and probe, the steps once; WeChat is asked for nothing."""
    wx.map_origin("shop.example", origin.url)
    origin.reply(b"{}")
    ended = cli("fleet", "urls", "--config", str(project))
    assert ended.status == 0, ended.stdout + ended.stderr
    for appid in ("wx5e0f00d5ca1ab1e1", "wx5e0f00d5ca1ab1e2"):
        shown = f"{appid}\n  pre_fetch     https://shop.example/{appid}/pre_fetch\n"
        assert shown in ended.stdout
    assert ended.stdout.count("choose each mini program") == 1
    assert wx.requests() == []
    wx.map_origin("shop.example", "http://127.0.0.1:1")
    failed = cli("fleet", "urls", "--config", str(project), "--json")
    records = [json.loads(each) for each in failed.stdout.splitlines()]
    assert [each["type"] for each in records] == ["url", "probe"] * 2 + ["steps"]
    assert failed.status == 1
    first = ("--skip-probe", "--only", "wx5e0f00d5ca1ab1e1")
    only = cli("fleet", "urls", "--config", str(project), *first)
    assert (only.status, "wx5e0f00d5ca1ab1e2" in only.stdout) == (0, False)


def test_merchants_of_a_platform_need_no_console(cli: "Cli", project: Path) -> None:
    """The sentence names the command that sets their URLs."""
    text = project.read_text().replace('list = "apps.csv"', "authorized = true")
    component = 'component_appid = "wx9"\ncomponent_secret = { env = "HOME" }\n'
    project.write_text(text + component)
    ended = cli("fleet", "urls", "--config", str(project))
    assert (ended.status, "`prefetch-kit fleet apply`" in ended.stderr) == (4, True)
