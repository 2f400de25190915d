"""Every example and field of the getFetchdataSetting page, set in every way there is.

Each is done by flag, by the app's settings, by `settings set-…`, by prefetch.toml and from
Python, compared with what the played WeChat then holds, read back, and rolled back.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from prefetch_kit import Prefetch
from prefetch_kit.registrar import FetchSetting, Kind, Registrar, Transport
from prefetch_kit.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

pytestmark = pytest.mark.slow

APPID = "wx01"
BEFORE = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 0,
    "pre_fetch_url": "https://fff.com/before",
    "is_period_fetch_open": True,
    "period_fetch_type": 1,
    "period_env": "before",
    "period_function_name": "before",
}
LIFTED = ["--yes", "--allow-disable", "--allow-takeover"]
# The page's second and third example, and each of its fields with each value it may have.
ON: list[tuple[Kind, str, dict[str, object]]] = [
    (
        "pre_fetch",
        "https://fff.com",
        {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": "https://fff.com"},
    ),
    (
        "period_fetch",
        "cloud:test-pfyol/login",
        {
            "is_period_fetch_open": True,
            "period_fetch_type": 1,
            "period_env": "test-pfyol",
            "period_function_name": "login",
        },
    ),
    (
        "pre_fetch",
        "cloud:test-pfyol/test_func",
        {
            "is_pre_fetch_open": True,
            "pre_fetch_type": 1,
            "pre_env": "test-pfyol",
            "pre_function_name": "test_func",
        },
    ),
    (
        "period_fetch",
        "https://111.qq.com",
        {
            "is_period_fetch_open": True,
            "period_fetch_type": 0,
            "period_fetch_url": "https://111.qq.com",
        },
    ),
]
Way = Callable[[Kind, str], Callable[[], object]]


@pytest.fixture
def wx(wx: Sandbox) -> Sandbox:
    """With the page's own hosts, and settings that somebody else made."""
    for host in ("fff.com", "111.qq.com"):
        wx.add_domain(APPID, host)
    wx.put_settings(APPID, BEFORE)
    return wx


@pytest.fixture
def ways(
    cli: "Cli", wx: Sandbox, settings: dict[str, Any], state_dir: Path, tmp_path: Path
) -> dict[str, Way]:
    """Each sets one kind of pull to a source, and gives what rolls that back."""

    def succeed(*words: str, app: Flask | None = None) -> None:
        ended = cli(*words, app=app)
        assert ended.status == 0, ended.stderr

    def undo() -> None:
        succeed("rollback", "--yes")

    def by_flag(kind: Kind, source: str) -> Callable[[], None]:
        succeed("apply", f"--{kind.replace('_', '-')}", source, "--skip-probe", *LIFTED)
        return undo

    def by_setting(kind: Kind, source: str) -> Callable[[], None]:
        prefetch = Prefetch("prefetch", __name__)
        prefetch.pre_fetch()(lambda _: {})
        prefetch.period_fetch()(lambda _: {})
        app = Flask(__name__)
        app.config.update(settings)
        app.config[f"PREFETCH_{kind.upper()}"] = source
        app.register_blueprint(prefetch)
        succeed("apply", "--skip-probe", *LIFTED, app=app)
        return undo

    def directly(kind: Kind, source: str) -> Callable[[], None]:
        succeed("settings", *words_of(kind, wire_of(kind, source)), *LIFTED)
        return undo

    def by_file(kind: Kind, source: str) -> Callable[[], None]:
        env, _, name = source.removeprefix("cloud:").partition("/")
        table = f'[urls]\n{kind} = "{source}"'
        if source.startswith("cloud:"):
            table = f'[cloud.{kind}]\nenv = "{env}"\nfunction_name = "{name}"'
        path = tmp_path / "prefetch.toml"
        path.write_text(
            f'api_base_url = "{wx.base_url}"\nstate_dir = "{state_dir}"\n'
            f'[apps]\nlist = "apps.csv"\n{table}\n'
            '[tokens]\napp_secrets = { file = "secrets.json" }\n'
        )
        (tmp_path / "apps.csv").write_text(f"appid\n{APPID}\n")
        secrets = {APPID: settings["PREFETCH_APP_SECRET"]}
        (tmp_path / "secrets.json").write_text(json.dumps(secrets))
        succeed("fleet", "apply", "--config", str(path), *LIFTED)
        return lambda: succeed("fleet", "rollback", "--yes", "--config", str(path))

    def from_python(kind: Kind, source: str) -> Callable[[], object]:
        registrar = Registrar(
            APPID,
            tokens=lambda: wx.access_token(APPID),
            state_dir=state_dir,
            transport=Transport(base_url=wx.base_url),
        )
        wanted = FetchSetting.parse(source)
        registrar.apply({kind: wanted}, allow={"disable", "takeover"})
        now = registrar.read().for_kind(kind)
        assert now == wanted if wanted.open else not now.open
        return registrar.rollback

    return {
        "flag": by_flag,
        "setting": by_setting,
        "direct": directly,
        "file": by_file,
        "python": from_python,
    }


def wire_of(kind: Kind, source: str) -> dict[str, object]:
    """What WeChat holds once this source is set."""
    if source == "off":
        held = {name: value for name, value in BEFORE.items() if is_of(kind, name)}
        return held | {f"is_{kind}_open": False}
    return next(wire for each, text, wire in ON if (each, text) == (kind, source))


def words_of(kind: Kind, wire: dict[str, object]) -> list[str]:
    flags = [
        (f"--{name.replace('_', '-')}", str(value).lower() if isinstance(value, bool) else value)
        for name, value in wire.items()
    ]
    return [f"set-{kind.replace('_', '-')}", *(str(word) for flag in flags for word in flag)]


def is_of(kind: Kind, name: str) -> bool:
    return name.removeprefix("is_").startswith(kind.removesuffix("fetch"))


@pytest.mark.parametrize("way", ["flag", "setting", "direct", "file", "python"])
@pytest.mark.parametrize(
    ("kind", "source"),
    [*((kind, text) for kind, text, _ in ON), ("pre_fetch", "off"), ("period_fetch", "off")],
)
def test_each_field_is_set_read_back_and_rolled_back(
    wx: Sandbox, cli: "Cli", ways: dict[str, Way], way: str, kind: Kind, source: str
) -> None:
    """WeChat holds what was asked for, under the page's names, and then what it held before."""
    undo = ways[way](kind, source)
    held = {name: value for name, value in wx.settings(APPID).items() if is_of(kind, name)}
    assert held == wire_of(kind, source)
    read = json.loads(cli("settings", "get", "--json").stdout)
    assert read == {"errcode": 0, "errmsg": "ok", **wx.settings(APPID)}
    undo()
    assert wx.settings(APPID) == BEFORE


EXAMPLE = {
    "errcode": 0,
    "errmsg": "ok",
    "is_pre_fetch_open": True,
    "pre_fetch_type": 1,
    "pre_env": "test-pfyol",
    "pre_function_name": "test_func",
    "is_period_fetch_open": True,
    "period_fetch_type": 0,
    "period_fetch_url": "https://111.qq.com",
}


def test_the_first_example_is_read(wx: Sandbox, cli: "Cli", state_dir: Path) -> None:
    """What the page shows as the answer of `get`, by command and from Python."""
    wx.put_settings(APPID, {k: v for k, v in EXAMPLE.items() if not k.startswith("err")})
    assert json.loads(cli("settings", "get", "--json").stdout) == EXAMPLE
    text = cli("settings", "get").stdout
    assert "is_pre_fetch_open = true\npre_fetch_type = 1\npre_env = test-pfyol\n" in text
    shown = cli("show").stdout
    assert "on, cloud function test_func in test-pfyol" in shown
    assert "on, https://111.qq.com" in shown
    transport = Transport(base_url=wx.base_url)
    token = wx.access_token(APPID)
    with Registrar(APPID, tokens=lambda: token, state_dir=state_dir, transport=transport) as made:
        read = made.read()
    assert read.pre_fetch == FetchSetting.cloud_function("test-pfyol", "test_func")
    assert read.period_fetch == FetchSetting.server("https://111.qq.com")


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize(("kind", "source"), [(kind, text) for kind, text, _ in ON])
def test_a_direct_call_sends_each_field_as_given(
    wx: Sandbox, cli: "Cli", kind: Kind, source: str, is_open: bool
) -> None:
    """Off with a source too, which no other way asks for; one call, with these fields alone."""
    wire = wire_of(kind, source) | {f"is_{kind}_open": is_open}
    ended = cli("settings", *words_of(kind, wire), *LIFTED, "--json")
    assert json.loads(ended.stdout) == {"errcode": 0, "errmsg": "ok", **wire}
    (sent,) = [each.body for each in wx.requests() if each.action == f"set_{kind}"]
    assert sent == {"action": f"set_{kind}", **wire}
    assert cli("rollback", "--yes").status == 0
    assert wx.settings(APPID) == BEFORE


@pytest.mark.parametrize("errcode", [9410013, 9410014, 9410016, 9410017, 40166, 40001])
@pytest.mark.parametrize("words", [["get"], ["set-pre-fetch"]])
def test_each_refusal_of_the_page_is_told(
    wx: Sandbox, cli: "Cli", words: list[str], errcode: int
) -> None:
    """As JSON in WeChat's own words, and as a sentence with what to do."""
    if words == ["set-pre-fetch"]:
        words = [*words_of("pre_fetch", ON[0][2]), *LIFTED]
    action = "get" if words == ["get"] else "set_pre_fetch"
    wx.inject(
        Fault(kind="errcode", action=action, errcode=errcode, errmsg="why it is so", times=None)
    )
    ended = cli("settings", *words, "--json")
    assert ended.status == 1
    assert json.loads(ended.stdout) == {"errcode": errcode, "errmsg": "why it is so"}
    assert f"WeChat refused {action}: {errcode}, " in ended.stderr
    assert wx.settings(APPID) == BEFORE
