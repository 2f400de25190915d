"""The README's examples and tables, executed and compared with the code."""

import importlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import dukpy
import pytest
from flask import Flask, abort, redirect, request

from prefetch_kit import NO_DATA, Prefetch, WeixinError
from prefetch_kit.cli import commands
from prefetch_kit.endpoint.config import TABLE, Setting
from prefetch_kit.endpoint.parameters import PARAMETERS
from prefetch_kit.fleet.project import load_project
from prefetch_kit.refusals import REFUSALS as refusals  # noqa: N811 (the README's is REFUSALS here)
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_sources import TokenSources
from prefetch_kit.weixin.transport import Transport

README = (Path(__file__).parent.parent / "README.md").read_text()
APPID = "wx5e0f00d5ca1ab1e0"
ALICE = "openid-alice"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


SHOP, CODE_USER, VERIFIER, CACHE, HOOK, SOURCES, REGISTRAR, PROVIDER, IN_TESTS = blocks("python")
(MINI_PROGRAM,) = blocks("js")
(FLEET_TOML,) = blocks("toml")
*_, REGISTER, FLEET, LOCAL_WECHAT, CURL = blocks("sh")
EXPORTS = dict(re.findall(r"^export (\w+)=(.*)$", LOCAL_WECHAT, re.MULTILINE))
SECRET = EXPORTS["PREFETCH_APP_SECRET"]
Terminal = Callable[[str], dict[str, str]]
Until = Callable[[Callable[[], object]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A developer's folder: the shop as the README has it, and nothing else."""
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "gunicorn.conf.py").write_text(HOOK)
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    return tmp_path


@pytest.fixture
def second_terminal(bare: dict[str, str]) -> Terminal:
    """The environment of the shop and the commands, with a local WeChat."""
    return lambda api: {**bare, **EXPORTS, "PREFETCH_API_BASE_URL": api}


def run(*command: str, folder: Path, env: dict[str, str]) -> str:
    """What a command that succeeds says."""
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def serving(
    folder: Path,
    listening: socket.socket,
    env: dict[str, str],
    *,
    config: str = "/dev/null",
    app: str = "shop",
) -> Iterator[None]:
    """The shop, or another app, under gunicorn on a socket that listens already."""
    options = ["--config", config, "--bind", f"fd://{listening.fileno()}"]
    shop = subprocess.Popen(
        ["gunicorn", *options, "--access-logfile", "access.log", f"{app}:create_app()"],
        cwd=folder,
        env=env,
        pass_fds=[listening.fileno()],
    )
    try:
        yield
    finally:
        shop.terminate()
        shop.wait(timeout=30)


@pytest.mark.parametrize("own_token", ["taken", "refused"])
def test_the_whole_flow_against_each_wechat(
    folder: Path,
    second_terminal: Terminal,
    local_wechat: Callable[[str, Path], str],
    own_token: str,
) -> None:
    """A WeChat, a shop, its URLs set by the pipeline or by hand, a login, a launch with data."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        origin = f"127.0.0.1:{listening.getsockname()[1]}"
        start = LOCAL_WECHAT.replace("127.0.0.1:8000", origin).rstrip()
        api = local_wechat(start + " --refuse-own-token" * (own_token == "refused"), folder)
        env = second_terminal(api)
        with serving(folder, listening, env):
            if own_token == "taken":
                check_register_block(folder, env)
            else:
                set_by_hand(folder, env, api)
            curl = CURL.replace("http://127.0.0.1:9000", api)
            assert run("bash", "-ec", curl, folder=folder, env=env) == "{}\n"
            alice = f"{api}/_sandbox/apps/{APPID}/users/{ALICE}"
            code = send(f"{alice}/login_code")["login_code"]
            token = send(f"http://{origin}/login", {"code": code})
            send(f"{alice}/background_fetch_token", token)
            assert send(f"{alice}/cold_start", {"path": "pages/index/index"})["pulled"]["kept"]
    data = send(f"{alice}/background_fetch_data?fetch_type=pre", method="GET")["data"]
    assert json.loads(data["fetchedData"])["cart"] == ["1"]


def send(url: str, body: object = None, *, method: str = "POST") -> Any:
    raw = json.dumps(body or {}).encode() if method != "GET" else None
    request = Request(url, raw, {"Content-Type": "application/json"}, method=method)
    with urlopen(request, timeout=30) as reply:
        return json.load(reply)


def set_by_hand(folder: Path, env: dict[str, str], api: str) -> None:
    """What a person does whose token is refused: paste what the named command prints."""
    apply = ["flask", "--app", "shop", "prefetch", "apply", "--yes"]
    refused = subprocess.run(apply, cwd=folder, env=env, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1
    assert "48001" in refused.stderr
    assert "`prefetch-kit urls`" in refused.stderr
    said = run("prefetch-kit", "--app", "shop", "urls", "--json", folder=folder, env=env)
    records = [json.loads(each) for each in said.splitlines()]
    urls = {each["kind"]: each["url"] for each in records if each["type"] == "url"}
    typed = {
        "is_pre_fetch_open": True,
        "pre_fetch_type": 0,
        "pre_fetch_url": urls["pre_fetch"],
        "is_period_fetch_open": True,
        "period_fetch_type": 0,
        "period_fetch_url": urls["period_fetch"],
    }
    send(f"{api}/_sandbox/apps/{APPID}/settings", {"settings": typed}, method="PUT")


def check_register_block(folder: Path, env: dict[str, str]) -> None:
    again = ["flask", "--app", "shop", "prefetch", "plan", "--detailed-exitcode"]
    assert subprocess.run(again, cwd=folder, env=env, timeout=60).returncode == 3
    without = {key: value for key, value in env.items() if key != "PREFETCH_APP_SECRET"}
    script = REGISTER.replace("/run/secrets/wechat", str(folder / "secret"))
    for expected in (f"{APPID} pre_fetch", f"{APPID}: nothing to do."):
        assert expected in run("bash", "-ec", script, folder=folder, env=without)
    run(*again, folder=folder, env=env)


def test_the_hook_and_the_mini_program(
    folder: Path, second_terminal: Terminal, until: Until
) -> None:
    """gunicorn's hook registers the shop, and the second launch finds its data on the phone."""
    with Sandbox() as wx, socket.create_server(("127.0.0.1", 0)) as listening:
        origin = f"http://127.0.0.1:{listening.getsockname()[1]}"
        wx.add_app(APPID, secret=SECRET)
        wx.add_user(APPID, ALICE)
        wx.add_domain(APPID, "shop.example")
        wx.map_origin("shop.example", origin)
        env = second_terminal(wx.base_url)
        with serving(folder, listening, env, config="gunicorn.conf.py"):
            until(lambda: "period_fetch_url" in wx.settings(APPID))
            assert launch(wx, origin) is None
            assert wx.cold_start(APPID, ALICE, path="pages/index/index").kept
            prefetched = launch(wx, origin)
    access_log = (folder / "access.log").read_text()
    assert "GET /prefetch/pre_fetch HTTP" in access_log
    assert "?" not in access_log
    assert prefetched == {"products": {"1": {"name": "龙井茶", "price": "68.00"}}, "cart": ["1"]}


def test_a_new_merchant_is_registered_at_once(
    folder: Path, second_terminal: Terminal, until: Until
) -> None:
    """WeChat tells the provider's app, which registers the shop for that merchant."""
    (folder / "provider.py").write_text(PROVIDER)
    merchant = "wx5e0f00d5ca1ab1e1"
    (folder / "merchants.txt").write_text(f"{merchant}\n")
    with Sandbox() as wx, socket.create_server(("127.0.0.1", 0)) as listening:
        wx.switches.own_token_accepted = False
        wx.add_app(merchant, secret="only the merchant knows it")
        wx.add_domain(merchant, "shop.example", level="platform")
        wx.map_origin("shop.example", f"http://127.0.0.1:{listening.getsockname()[1]}")
        url = "https://shop.example/wechat/events"
        wx.add_platform("wx9", secret="s", token="t", aes_key="k" * 43, receive_url=url)
        env = second_terminal(wx.base_url) | COMPONENT
        del env["PREFETCH_APP_SECRET"]
        with serving(folder, listening, env, app="provider"):
            until(lambda: wx.push_ticket("wx9").accepted)
            assert wx.authorize("wx9", merchant).accepted
            until(lambda: "period_fetch_url" in wx.settings(merchant))
    assert wx.settings(merchant)["pre_fetch_url"] == "https://shop.example/prefetch/pre_fetch"


COMPONENT = {
    "PREFETCH_COMPONENT_APPID": "wx9",
    "PREFETCH_COMPONENT_SECRET": "s",
    "PREFETCH_COMPONENT_MESSAGE_TOKEN": "t",
    "PREFETCH_COMPONENT_AES_KEY": "k" * 43,
}


def launch(wx: Sandbox, origin: str) -> object:
    """Run the README's app.js once, with a `wx` that reaches the sandbox and the shop."""

    def request(url: str, data: dict[str, str]) -> object:
        body = json.dumps(data).encode()
        address = url.replace("https://shop.example", origin)
        with urlopen(
            Request(address, body, {"Content-Type": "application/json"}), timeout=30
        ) as reply:
            return json.load(reply)

    engine: Any = dukpy.JSInterpreter()
    engine.export_function("login", lambda: wx.login_code(APPID, ALICE))
    engine.export_function("request", request)
    engine.export_function(
        "token", lambda token: wx.set_background_fetch_token(APPID, ALICE, token)
    )
    engine.export_function(
        "data", lambda kind: wx.background_fetch_data(APPID, ALICE, fetch_type=kind)
    )
    return engine.evaljs(
        """
        const wx = {
          login: ({ success }) => success({ code: call_python("login") }),
          request: ({ url, data, success }) => success({ data: call_python("request", url, data) }),
          setBackgroundFetchToken: ({ token }) => { call_python("token", token) },
          onBackgroundFetchData: () => {},
          getBackgroundFetchData: ({ fetchType, success, fail }) => {
            const result = call_python("data", fetchType)
            result.fetchedData === undefined ? fail(result) : success(result)
          },
        }
        let launched
        const App = (app) => { app.onLaunch(); launched = app }
        """
        + MINI_PROGRAM
        + "; launched.prefetched || null"
    )


def test_gunicorn_takes_its_settings_from_the_block(
    folder: Path, second_terminal: Terminal
) -> None:
    """Its own loader reads the hook, the limit and the log format."""
    env = second_terminal("")
    read = run("gunicorn", "--print-config", "shop:create_app()", folder=folder, env=env)
    settings = dict(re.findall(r"^(\w+) += (.*)$", read, re.MULTILINE))
    assert settings["when_ready"] == "<when_ready()>"
    assert settings["limit_request_line"] == "8190"
    assert "%(U)s" in settings["access_log_format"]


@pytest.mark.parametrize("addition", [CODE_USER, VERIFIER, CACHE])
def test_the_additions_fit_the_shop(addition: str, folder: Path, second_terminal: Terminal) -> None:
    """A shop with code_user, with token_verifier or with cached pages still starts."""
    (folder / "shop.py").write_text(f"{SHOP}\n\n{addition}")
    routes = run("prefetch-kit", "--app", "shop", "routes", folder=folder, env=second_terminal(""))
    assert "pages/product/detail" in routes


def test_the_sources_block(wx: Sandbox) -> None:
    """Its two settings are what WeChat then holds."""
    app = Flask(__name__)
    exec(SOURCES, {"app": app})  # noqa: S102 (the README's own lines)
    app.config |= {"PREFETCH_APPIDS": [APPID], "PREFETCH_APP_SECRET": SECRET}
    app.config["PREFETCH_API_BASE_URL"] = wx.base_url
    app.register_blueprint(Prefetch("prefetch", __name__))
    done = app.test_cli_runner().invoke(commands, ["apply", "--yes"])
    assert done.exit_code == 0, done.output
    assert wx.settings(APPID)["pre_function_name"] == "login"


def test_the_registrar_block(folder: Path, bare: dict[str, str], wx: Sandbox) -> None:
    """The eight lines probe, apply and roll back."""
    wx.add_domain(APPID, "shop.example")
    wx.map_origin("shop.example", "http://127.0.0.1:1")
    (folder / "tokens.py").write_text(f"def access_token(): return {wx.access_token(APPID)!r}")
    sandboxed = f"transport=Transport(base_url={wx.base_url!r}), state_dir"
    script = REGISTRAR.replace("state_dir", sandboxed).replace(
        " Registrar\n", " Registrar, Transport\n"
    )
    said = run(sys.executable, "-c", script, folder=folder, env=bare)
    assert said.splitlines()[0].startswith("('the connection was refused',) FetchSetting(open=None")
    assert "Change(kind='pre_fetch'" in said
    url = "https://shop.example/prefetch/pre_fetch"
    assert wx.settings(APPID) == {
        "is_pre_fetch_open": False,  # rolled back, with the source that WeChat cannot forget
        "pre_fetch_type": 0,
        "pre_fetch_url": url,
    }


@pytest.fixture
def wx() -> Iterator[Sandbox]:
    with Sandbox() as wx:
        wx.add_app(APPID, secret=SECRET)
        wx.add_user(APPID, ALICE)
        yield wx


@pytest.fixture
def shop(folder: Path, wx: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Flask:
    """The shop beside a local WeChat."""
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "shop", raising=False)
    app: Flask = importlib.import_module("shop").create_app(
        SECRET_KEY="for-tests", PREFETCH_APP_SECRET=SECRET, PREFETCH_API_BASE_URL=wx.base_url
    )
    return app


@pytest.mark.parametrize(
    ("body", "status"), [([], 400), ({}, 400), ({"code": 1}, 400), ({"code": "wrong"}, 401)]
)
def test_logins_that_fail(shop: Flask, body: object, status: int) -> None:
    """A wrong code is nobody's; anything else is a bad request."""
    assert shop.test_client().post("/login", json=body).status_code == status


def test_a_login_while_wechat_is_away(shop: Flask, wx: Sandbox) -> None:
    """The login route gets the error that the README names."""
    wx.inject(Fault(kind="close", path="/sns/jscode2session"))
    shop.testing = True
    with pytest.raises(WeixinError):
        shop.test_client().post("/login", json={"code": wx.login_code(APPID, ALICE)})


def test_the_block_for_tests_of_your_own(folder: Path, bare: dict[str, str]) -> None:
    """A reader's pytest passes it, beside the shop."""
    (folder / "test_shop.py").write_text(IN_TESTS)
    assert "1 passed" in run("pytest", "test_shop.py", folder=folder, env=bare)


def test_the_fleet_block(folder: Path, wx: Sandbox, bare: dict[str, str]) -> None:
    """Its prefetch.toml, with a local WeChat, registers every merchant of the platform."""
    config = folder / "prefetch.toml"
    config.write_text(f'api_base_url = "{wx.base_url}"\n{FLEET_TOML}')
    env = {**bare, "COMPONENT_SECRET": "s"}
    project = load_project(config, environment=env)
    wx.add_platform(str(project.component_appid), secret="s", token="t", aes_key="k" * 43)
    wx.add_domain(APPID, "shop.example")
    with Transport(base_url=wx.base_url) as transport:
        platform = TokenSources(project, transport).platform
        assert platform is not None
        with wx.lock:
            ticket = wx.component(platform.appid).issue_ticket(now=wx.now())
        platform.tickets.keep(Secret(ticket), pushed_at=wx.now())
        wx.authorize(platform.appid, APPID)
        platform.authorizers.accept(Secret([*wx.component(platform.appid).codes][-1]), since=0)
    assert "1 of 1 done" in run("bash", "-ec", FLEET, folder=folder, env=env)
    url = f"https://shop.example/p/{APPID}/pre_fetch"
    assert wx.settings(APPID)["pre_fetch_url"] == url


def test_the_sandbox_has_the_calls_that_are_named() -> None:
    """Each `wx.…` of the section is there."""
    section = README.partition("## A local WeChat")[2].partition("\n## ")[0]
    named = set(re.findall(r"\bwx\.(\w+)", section))
    assert {"map_origin", "login_code", "cold_start", "advance"} <= named <= set(dir(Sandbox))


def test_the_table_of_settings_is_the_one_of_the_code() -> None:
    """Each setting has a row with its key, its default and its meaning."""
    assert re.findall(r"^\| `PREFETCH_.*$", README, re.MULTILINE) == list(
        map(row_of, TABLE.items())
    )


def row_of(item: tuple[str, Setting]) -> str:
    key, row = item
    default = f"`{row.default}`" if isinstance(row.default, (str, Path)) else str(row.default)
    shown = "required" if row.required else default if row.default else ""
    return f"| `{key}` | {shown} | {row.meaning} |".replace("|  |", "| |")


def test_the_table_of_commands_is_complete() -> None:
    """Each command has a row, and each row is a command."""
    rows = re.findall(r"^\| `([a-z]+)[^`]*` \| ", README, re.MULTILINE)
    assert sorted(rows) == sorted(commands.commands)


# How each refusal is brought about: what differs from a good pull.
REFUSALS: dict[tuple[int, str], dict[str, object]] = {
    (400, "appid"): {"appid": ""},
    (400, "timestamp"): {"timestamp": "now"},
    (400, "token"): {"token": "t" * 1025},
    (400, "code"): {"code": "c" * 129},
    (400, "path"): {"path": "p" * 1025},
    (400, "query"): {"path": "asks-for-a-key"},
    (400, "extra"): {"path": "asks-for-extra"},
    (400, "scene"): {"scene": "x"},
    (400, "version"): {"customMiniprogramVersion": "v" * 65},
    (400, "doubled"): {"appid": ["wx1", "wx1"]},
    (400, "token-and-code"): {"token": "t", "code": "c"},
    (400, "encoding"): {"path": b"\xff"},
    (400, "too-long"): {"unknown": "u" * 8190},
    (401, "login"): {"path": "mine"},
    (403, "foreign-appid"): {"appid": "wx2"},
    (404, "page"): {"path": "no-such-page"},
    (404, "aborted"): {"path": "gone"},
    (500, "failed"): {"path": "fails"},
    (500, "too-large"): {"path": "large"},
    (503, "late"): {"path": "slow"},
    (503, "busy"): {"path": "slow"},
    (503, "app"): {"wall": "up"},
    (503, "weixin"): {"path": "mine", "code": "c" * 32},
}


@pytest.fixture
def refusing() -> Flask:
    """An app in which every refusal can be provoked, and whose WeChat is away."""
    prefetch = Prefetch("prefetch", __name__)
    prefetch.pre_fetch("asks-for-a-key")(lambda pull: pull.query["id"])
    prefetch.pre_fetch("asks-for-extra")(lambda pull: pull.extra["latitude"])
    prefetch.pre_fetch("mine", login_required=True)(lambda _: NO_DATA)
    prefetch.pre_fetch("gone")(lambda _: abort(404))
    prefetch.pre_fetch("fails")(lambda _: None)
    prefetch.pre_fetch("large")(lambda _: "x" * 11)
    prefetch.pre_fetch("slow", deadline=0.05)(lambda _: Event().wait(5))
    prefetch.code_user(lambda _appid, openid, _unionid: openid)
    app = Flask(__name__)
    app.config |= {"PREFETCH_APPIDS": ["wx1"], "PREFETCH_APP_SECRET": SECRET}
    app.config |= {"PREFETCH_API_BASE_URL": "http://127.0.0.1:1", "PREFETCH_MAX_BYTES": 10}
    app.config["PREFETCH_THREADS"] = 1
    app.before_request(lambda: redirect("/login") if "wall" in request.args else None)
    app.register_blueprint(prefetch)
    return app


def test_the_table_of_refusals_is_exact(refusing: Flask) -> None:
    """The rows are what can be provoked, and the code has no others."""
    client = refusing.test_client()
    good: dict[str, object] = {"appid": "wx1", "timestamp": "1700000000", "path": "mine"}
    targets = [f"/pre_fetch?{urlencode(good | odd, doseq=True)}" for odd in REFUSALS.values()]
    replies = [*map(client.get, targets), client.post("/pre_fetch")]
    given = [(r.status_code, r.headers["X-Prefetch-Refused"].split(";")[0]) for r in replies]
    assert given == [*REFUSALS, (405, "method")]
    rows = re.findall(r"^\| (\d{3}) \| (.*?) \|", README, re.MULTILINE)
    listed = [(int(status), name) for status, cell in rows for name in re.findall("`(.+?)`", cell)]
    assert sorted(listed) == sorted(given)
    known = {(each.status, reason) for reason, each in refusals.items()}
    known |= {(400, each.reason or each.attribute or each.name) for each in PARAMETERS}
    assert known == set(given)
