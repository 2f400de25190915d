"""`import`: what WeChat has, as a prefetch.toml that changes nothing."""

import resource
import tomllib
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from prefetch_kit import Prefetch
from prefetch_kit.cli.app import project_of
from prefetch_kit.endpoint.app_state import state_of
from prefetch_kit.errors import ConfigError
from prefetch_kit.fetch_setting import FetchSetting, FetchSettings
from prefetch_kit.fleet.imported import write_project
from prefetch_kit.fleet.project import Project, load_project
from prefetch_kit.sandbox import Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_sources import TokenSources
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Leaks, Shell

APPID = "wx01"
ALL_ITS_OWN = {"env": "{appid}", "function_name": "f-{appid}"}
PLATFORM_SECRET = "canary/platform+secret=01234"


def half(url: str, **more: object) -> dict[str, object]:
    return {
        "is_pre_fetch_open": True,
        "pre_fetch_type": 0,
        "pre_fetch_url": url,
        **more,
    }


def cloud(env: str, function_name: str, **more: object) -> dict[str, object]:
    return {
        "is_pre_fetch_open": True,
        "pre_fetch_type": 1,
        "pre_env": env,
        "pre_function_name": function_name,
        **more,
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "found.toml"


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    """What the imported file names, in the environment."""
    secrets = f'{{"{APPID}": "{settings["PREFETCH_APP_SECRET"]}"}}'
    monkeypatch.setenv("PREFETCH_APP_SECRETS", secrets)
    monkeypatch.setenv("PREFETCH_COMPONENT_SECRET", PLATFORM_SECRET)


def test_one_app(cli: "Cli", wx: Sandbox, out: Path, secret: None) -> None:
    """Its URL becomes a template, and a plan of the file finds nothing to do."""
    wx.put_settings(APPID, half(f"https://shop.example/p/{APPID}/x"))
    assert cli("import", "--out", str(out)).status == 0
    assert tomllib.loads(out.read_text())["urls"] == {
        "pre_fetch": "https://shop.example/p/{appid}/x"
    }
    assert out.with_suffix(".csv").read_text().splitlines()[1].startswith(f"{APPID},https://")
    ended = cli("fleet", "plan", "--detailed-exitcode", "--config", str(out))
    assert (ended.status, "nothing to do" in ended.stdout) == (0, True)


@pytest.fixture
def imported(app: Flask, out: Path) -> Callable[..., Project]:
    """`imported(**changes)`: the project that is read back after one app was taken over."""

    def imported(**changes: object) -> Project:
        project = replace(project_of(state_of(app).config, out), **changes)  # type: ignore[arg-type]
        url = FetchSetting.server("https://shop.example/x")
        write_project(project, [(APPID, FetchSettings(url, FetchSetting.off()))])
        return load_project(out, environment={"PREFETCH_APP_SECRETS": "{}"})

    return imported


@pytest.mark.parametrize(
    "command", [("/srv/𠮷/tool", "{appid}"), ("to\x7fol", "{appid}"), ("to\nol", '{appid}"')]
)
def test_any_token_command_is_read_back(
    imported: Callable[..., Project], command: tuple[str, ...]
) -> None:
    """Whatever characters it holds."""
    assert imported(token_command=command).token_command == command


def test_a_proxy_is_named_and_not_written(imported: Callable[..., Project], out: Path) -> None:
    """Its credentials stay where they are."""
    with pytest.raises(ConfigError, match="proxy names a variable that is not set"):
        imported(proxy=Secret("http://me:canary@proxy.example:3128"))
    assert tomllib.loads(out.read_text())["proxy"] == {"env": "PREFETCH_PROXY"}
    assert "canary" not in out.read_text()


def test_a_token_command_for_one_app_is_left_out(
    imported: Callable[..., Project], out: Path
) -> None:
    """A fleet cannot ask it whose token is wanted; a comment says so."""
    assert imported(token_command=("tool",), app_secrets={}).token_command is None
    assert "without {appid}" in out.read_text()


def test_nothing_stays_where_the_project_cannot_be_written(
    imported: Callable[..., Project], out: Path
) -> None:
    """Not even its list: the next import would find that there already."""
    with pytest.raises(ConfigError, match="not UTF-8"):
        imported(state_dir=Path("a\udc80b"))
    assert list(out.parent.iterdir()) == []


def test_a_project_is_no_list(cli: "Cli", out: Path) -> None:
    """Both would have the same name."""
    ended = cli("import", "--out", str(out.with_suffix(".csv")))
    assert (ended.status, "is the name of a list" in ended.stderr) == (1, True)


@pytest.mark.parametrize(
    "settings_of_wechat",
    [
        {},
        half("https://shop.example/x?a=b"),
        cloud("e", " f"),
    ],
)
def test_what_cannot_be_taken_over(
    cli: "Cli", wx: Sandbox, out: Path, settings_of_wechat: dict[str, object]
) -> None:
    """Without anything that could be set again there is no file."""
    wx.put_settings(APPID, settings_of_wechat)
    ended = cli("import", "--out", str(out))
    assert ended.status == 1
    assert "no pull is set that could be taken over" in ended.stderr
    assert not out.exists()
    assert not out.with_suffix(".csv").exists()


def test_a_file_that_is_there_stays(cli: "Cli", wx: Sandbox, out: Path) -> None:
    """Nothing is overwritten, and that is said before anybody is asked."""
    wx.put_settings(APPID, half("https://shop.example/x"))
    out.write_text("mine")
    assert "is there already" in cli("import", "--out", str(out)).stderr
    assert out.read_text() == "mine"
    out.rename(out.with_suffix(".csv"))
    assert "an import that was cut short left it" in cli("import", "--out", str(out)).stderr
    assert "is in no directory" in cli("import", "--out", str(out.parent / "no" / "x")).stderr
    assert wx.requests() == []


@pytest.fixture
def authorize(
    wx: Sandbox, settings: dict[str, Any], prefetch: Prefetch, leaks: "Leaks"
) -> Callable[[str], Flask]:
    """Let a merchant authorize the platform, and give the platform's app."""
    wx.add_platform("wxplatform", secret=PLATFORM_SECRET, token="t", aes_key="k" * 43)
    leaks.secrets.append(PLATFORM_SECRET)
    app = Flask(__name__)
    app.config.update(settings)
    del app.config["PREFETCH_APP_SECRET"]
    app.config["PREFETCH_COMPONENT_APPID"] = "wxplatform"
    app.config["PREFETCH_COMPONENT_SECRET"] = PLATFORM_SECRET
    app.register_blueprint(prefetch)
    project = project_of(state_of(app).config, Path("unused"))
    platform = TokenSources(project, Transport(base_url=wx.base_url)).platform
    assert platform is not None
    with wx.lock:
        ticket = wx.component("wxplatform").issue_ticket(now=wx.now())
    platform.tickets.keep(Secret(ticket), pushed_at=wx.now())

    def granted(appid: str) -> Flask:
        since = wx.authorize("wxplatform", appid).at
        *_, code = wx.component("wxplatform").codes
        platform.authorizers.accept(Secret(code), since=since)
        return app

    return granted


FUNCTION = cloud("test-pfyol", "login")
OFF = half("https://shop.example/x", is_pre_fetch_open=False)


@pytest.mark.parametrize(
    ("held", "table"),
    [
        (
            FUNCTION,
            {"cloud": {"pre_fetch": {"env": "test-pfyol", "function_name": "login"}}},
        ),
        (cloud(APPID, f"f-{APPID}"), {"cloud": {"pre_fetch": ALL_ITS_OWN}}),
        (FUNCTION | {"is_pre_fetch_open": False}, {"urls": {"pre_fetch": "off"}}),
        (OFF, {"urls": {"pre_fetch": "off"}}),
    ],
)
def test_a_cloud_function_or_off(
    cli: "Cli",
    wx: Sandbox,
    out: Path,
    secret: None,
    held: dict[str, object],
    table: dict[str, object],
) -> None:
    """A cloud function becomes its table, off is off, and a plan finds nothing to do."""
    wx.put_settings(APPID, held)
    assert cli("import", "--out", str(out)).status == 0
    read = tomllib.loads(out.read_text())
    assert {name: read[name] for name in ("urls", "cloud") if name in read} == table
    ended = cli("fleet", "plan", "--detailed-exitcode", "--config", str(out))
    assert (ended.status, "nothing to do" in ended.stdout) == (0, True)


@pytest.mark.parametrize(
    ("urls", "template"),
    [
        (
            ["https://shop.example/{}/x", "https://shop.example/{}/x"],
            "https://shop.example/{appid}/x",
        ),
        (["https://shop.example/{}/x", "https://shop.example/{}/y"], "{pre_fetch}"),
        (["https://shop.example/{}/x", ""], "{pre_fetch}"),
    ],
)
def test_all_merchants(
    cli: "Cli",
    wx: Sandbox,
    out: Path,
    secret: None,
    authorize: Callable[[str], Flask],
    urls: list[str],
    template: str,
) -> None:
    """Alike, they have one template, else a column of the list; nothing is to do afterwards."""
    wx.add_app("wx02", secret="s")
    for appid, url in zip((APPID, "wx02"), urls, strict=True):
        app = authorize(appid)
        if url:
            wx.put_settings(appid, half(url.format(appid)))
    assert cli("import", "--authorized", "--out", str(out), app=app).status == 0
    read = tomllib.loads(out.read_text())
    assert read["urls"] == {"pre_fetch": template}
    assert read["tokens"]["component_secret"] == {"env": "PREFETCH_COMPONENT_SECRET"}
    ended = cli("fleet", "plan", "--detailed-exitcode", "--config", str(out))
    assert (ended.status, "2 of 2" in ended.stdout) == (0, True)


def test_whom_import_could_not_read_is_named(
    cli: "Cli", wx: Sandbox, out: Path, secret: None, authorize: Callable[[str], Flask]
) -> None:
    """They are missing in the list; where none could be read, nothing is written."""
    for appid in (APPID, "wx02"):
        if appid != APPID:
            wx.add_app(appid, secret="s")
        app = authorize(appid)
        wx.put_settings(appid, half("https://shop.example/x"))
    wx.deny(APPID, 61007)
    ended = cli("import", "--authorized", "--out", str(out), app=app)
    assert ended.status == 1
    assert f"1 could not be read, and are not in {out.with_suffix('.csv')}: {APPID}" in ended.stderr
    assert "1 of 2 read, 1 failed." in ended.stdout
    assert "wx02" in out.with_suffix(".csv").read_text()
    wx.deny("wx02", 61007)
    other = out.with_name("other.toml")
    ended = cli("import", "--authorized", "--out", str(other), app=app)
    assert (ended.status, "none could be read" in ended.stderr) == (4, True)
    assert not other.exists()


@pytest.mark.parametrize("room", [10, 150])
def test_import_again_after_a_full_disk(
    shell: "Shell", wx: Sandbox, out: Path, secret: None, room: int
) -> None:
    """Neither the list nor the project stays where one of them could not be written."""
    wx.put_settings(APPID, half("https://shop.example/x"))
    app = ["prefetch_kit", "--app", "shop_app:create_app()"]
    words = [*app, "import", "--out", str(out)]
    assert shell.run(*app, "show").status == 0  # so that the access token is stored already
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    ended = shell.run(*words, preexec_fn=full)
    assert (ended.status, "cannot be written" in ended.stderr) == (1, True)
    assert shell.run(*words).status == 0
    assert out.exists()


def test_merchants_that_differ_in_kind(
    cli: "Cli", wx: Sandbox, out: Path, secret: None, authorize: Callable[[str], Flask]
) -> None:
    """A URL, a cloud function, off and nothing at all share one column of the list."""
    held = {
        "wx11": half("https://shop.example/x"),
        "wx12": FUNCTION,
        "wx13": OFF,
        "wx14": {},
        "wx15": cloud("e", " f"),
    }
    for appid, settings in held.items():
        wx.add_app(appid, secret="s")
        app = authorize(appid)
        wx.put_settings(appid, settings)
    assert cli("import", "--authorized", "--out", str(out), app=app).status == 0
    assert tomllib.loads(out.read_text())["urls"] == {"pre_fetch": "{pre_fetch}"}
    assert sorted(out.with_suffix(".csv").read_text().splitlines()[1:]) == [
        "wx11,https://shop.example/x,",
        "wx12,cloud:test-pfyol/login,",
        "wx13,off,",
        "wx14,,",
        "wx15,,",
    ]
    assert "# 1 from a cloud function that cannot be registered" in out.read_text()
    ended = cli("fleet", "plan", "--detailed-exitcode", "--config", str(out))
    assert (ended.status, "5 of 5" in ended.stdout) == (0, True)
