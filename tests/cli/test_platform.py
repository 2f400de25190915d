"""The commands for a third-party platform: its tickets, and the links for merchants."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from flask import Flask

from prefetch_kit import Prefetch
from prefetch_kit.addresses import wechat_name
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.authorization_links import create_links
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Leaks, Shell

APPID, COMPONENT, COMPONENT_SECRET = "wx02", "wxplatform", "canary-component-secret"
ROOT = "/cgi-bin/component"
BACK = "https://provider.example/back?state=a b"
TOML = """
api_base_url = "{base_url}"
state_dir = "{state_dir}"
[apps]
authorized = true
[tokens]
component_appid = "wxplatform"
component_secret = {{ env = "COMPONENT_SECRET" }}
"""


@pytest.fixture
def app(
    wx: Sandbox, settings: dict[str, Any], prefetch: Prefetch, leaks: "Leaks", state_dir: Path
) -> Flask:
    """The app of a platform that has a ticket, and no merchant."""
    wx.add_app(APPID, secret="s")
    wx.add_platform(COMPONENT, secret=COMPONENT_SECRET, token="t", aes_key="k" * 43)
    leaks.secrets.append(COMPONENT_SECRET)
    made = Flask(__name__)
    made.config.update(settings, PREFETCH_APPIDS=[APPID], PREFETCH_APP_SECRET=None)
    made.config.update(PREFETCH_COMPONENT_APPID=COMPONENT)
    made.config.update(PREFETCH_COMPONENT_SECRET=COMPONENT_SECRET)
    made.register_blueprint(prefetch)
    with wx.lock:
        ticket = wx.component(COMPONENT).issue_ticket(now=wx.now())
    platform_of(wx, state_dir).tickets.keep(Secret(ticket), pushed_at=wx.now())
    return made


def platform_of(wx: Sandbox, state_dir: Path) -> ThirdParty:
    """The platform as another process has it."""
    stores = FileStores(state_dir / wechat_name(wx.base_url))
    transport = Transport(base_url=wx.base_url)
    return ThirdParty(transport, COMPONENT, Secret(COMPONENT_SECRET), stores)


@pytest.fixture
def code(wx: Sandbox, leaks: "Leaks", app: Flask) -> str:
    """What the address has to which WeChat sends a merchant who authorized."""
    wx.authorize(COMPONENT, APPID)
    *_, code = wx.component(COMPONENT).codes
    leaks.secrets.append(code)
    return str(code)


def gives(wx: Sandbox, call: str, **members: object) -> None:
    wx.inject(Fault(kind="raw", path=f"{ROOT}/{call}", body=json.dumps(members)))


def test_tickets_are_pushed_again(wx: Sandbox, cli: "Cli", app: Flask) -> None:
    """No token is needed, which could not be had without a ticket."""
    gives(wx, "api_start_push_ticket", errcode=0, errmsg="ok")
    ended = cli("platform", "start-push", app=app)
    assert (ended.status, ended.stderr) == (0, "")
    assert "within ten minutes" in ended.stdout
    assert wx.count(path=f"{ROOT}/api_component_token") == 0
    gives(wx, "api_start_push_ticket", errcode=0, errmsg="ok")
    ended = cli("platform", "start-push", "--json", app=app)
    assert json.loads(ended.stdout) == {"type": "push_started", "component_appid": COMPONENT}


def test_a_wrong_secret_is_what_the_error_is_about(wx: Sandbox, cli: "Cli", app: Flask) -> None:
    """There is no token in this call that 40001 could be about."""
    path = f"{ROOT}/api_start_push_ticket"
    wx.inject(Fault(kind="errcode", path=path, errcode=40001))
    assert "the app secret is wrong" in cli.refused("platform", "start-push", app=app)


def test_the_links_for_a_merchant(wx: Sandbox, cli: "Cli", app: Flask) -> None:
    """One for a browser and one for the phone, with the same code; of mini programs alone."""
    gives(wx, "api_create_preauthcode", pre_auth_code="preauthcode@@@x/y", expires_in=1800)
    ended = cli("platform", "authorize-url", "--redirect-uri", BACK.replace(" ", "+"), app=app)
    web, phone = (line.split()[1] for line in ended.stdout.splitlines())
    assert web.startswith(f"{wx.base_url}/cgi-bin/componentloginpage?")
    assert phone.startswith(f"{wx.base_url}/wxaopen/safe/bindcomponent?")
    assert phone.endswith("#wechat_redirect")
    for link in (web, phone):
        asked = parse_qs(urlsplit(link).query)
        assert asked["component_appid"] == [COMPONENT]
        assert asked["pre_auth_code"] == ["preauthcode@@@x/y"]
        assert asked["redirect_uri"] == [BACK.replace(" ", "+")]
        assert asked["auth_type"] == ["2"]
    assert "They end in 30 minutes" in ended.stderr


@pytest.mark.parametrize("lasts", [1800, "1800", None])
def test_the_links_as_json(wx: Sandbox, cli: "Cli", app: Flask, lasts: object) -> None:
    """For a program that shows them; how long they last may be unknown."""
    gives(wx, "api_create_preauthcode", pre_auth_code="code", expires_in=lasts)
    uri = "https://provider.example/back"
    ended = cli("platform", "authorize-url", "--redirect-uri", uri, "--json", app=app)
    record = json.loads(ended.stdout)
    assert record["web"].count("pre_auth_code=code") == 1
    assert record["expires_in_s"] == (1800 if lasts == 1800 else None)
    assert ended.stderr == ""


@pytest.mark.usefixtures("app")
def test_the_links_of_wechat_itself(wx: Sandbox, state_dir: Path) -> None:
    """The hosts of both pages differ from that of the API."""
    gives(wx, "api_create_preauthcode", pre_auth_code="x")
    calls = platform_of(wx, state_dir).calls
    with Transport() as wechat:
        links = create_links(calls, wechat, component_appid=COMPONENT, redirect_uri="https://a.b")
    assert links.web.startswith("https://mp.weixin.qq.com/cgi-bin/componentloginpage?component_")
    assert links.phone.startswith("https://open.weixin.qq.com/wxaopen/safe/bindcomponent?action=")


def test_an_answer_without_a_pre_auth_code(wx: Sandbox, cli: "Cli", app: Flask) -> None:
    """No link is made with something else."""
    gives(wx, "api_create_preauthcode", pre_auth_code="a b")
    uri = "https://provider.example/back"
    sentence = cli.refused("platform", "authorize-url", "--redirect-uri", uri, app=app)
    assert "holds no pre_auth_code" in sentence


@pytest.mark.parametrize(
    "uri", ["provider.example", "http://provider.example/", "https://a:b@c.example", "https://x#y"]
)
def test_a_redirect_uri_that_is_none(wx: Sandbox, cli: "Cli", app: Flask, uri: str) -> None:
    """The code in its query is a secret, and nothing is asked for it."""
    ended = cli("platform", "authorize-url", "--redirect-uri", uri, app=app)
    assert (ended.status, wx.count()) == (2, 0)


def test_a_code_is_taken(wx: Sandbox, cli: "Cli", app: Flask, code: str, state_dir: Path) -> None:
    """And the tokens it gives are kept, without another call for them."""
    ended = cli("platform", "authorize", code, app=app)
    assert ended.stdout == f"{APPID} has authorized {COMPONENT}, and its refresh token is kept.\n"
    assert platform_of(wx, state_dir).authorizers.holds(APPID, since=0)
    assert wx.count(path=f"{ROOT}/api_authorizer_token") == 0


@pytest.mark.parametrize("way", ["encoded", "address", "stdin", "dash", "environment"])
def test_the_ways_to_hand_a_code_over(
    cli: "Cli", app: Flask, code: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The words of a command are shown to all users of a machine, and addresses are long."""
    encoded = quote(code, safe="")
    address = f"https://provider.example/back?x=1&auth_code={encoded}&expires_in=3600"
    words = {"encoded": [encoded], "address": [address], "dash": ["-"]}.get(way, [])
    if way == "environment":
        monkeypatch.setenv("PREFETCH_AUTH_CODE", code)
    stdin = f"{code}\n" if way in ("stdin", "dash") else ""
    ended = cli("platform", "authorize", *words, "--json", app=app, stdin=stdin)
    record = {"type": "authorized", "component_appid": COMPONENT, "appid": APPID}
    assert json.loads(ended.stdout) == record


def test_a_code_that_was_used(cli: "Cli", app: Flask, code: str) -> None:
    """It works once; the token it gave is not lost by asking again."""
    cli("platform", "authorize", code, app=app)
    sentence = cli.refused("platform", "authorize", code, app=app)
    assert "WeChat shows the refresh token it gave" in sentence


@pytest.mark.parametrize("word", ["a b", "你好", ""])
def test_what_is_no_code(wx: Sandbox, cli: "Cli", app: Flask, word: str) -> None:
    """It is not shown again, since it may be another secret, and nothing is sent."""
    ended = cli("platform", "authorize", word, app=app)
    assert (ended.status, wx.count()) == (2, 0)
    assert not word or word not in ended.stderr


def test_an_app_without_a_platform(cli: "Cli", settings: dict[str, Any]) -> None:
    """The settings are named."""
    app = Flask(__name__)
    app.config.update(settings)
    app.register_blueprint(Prefetch("prefetch", __name__, url_prefix="/prefetch"))
    sentence = cli.refused("platform", "start-push", app=app)
    assert "PREFETCH_COMPONENT_APPID is missing" in sentence


@pytest.mark.slow
@pytest.mark.usefixtures("app")
def test_a_project_instead_of_an_app(
    wx: Sandbox, shell: "Shell", code: str, state_dir: Path
) -> None:
    """Who has a fleet and no Flask app names prefetch.toml."""
    text = TOML.format(base_url=wx.base_url, state_dir=state_dir)
    (shell.cwd / "prefetch.toml").write_text(text)
    words = ("prefetch_kit", "platform", "authorize", "-", "--config", "prefetch.toml")
    environment = {**shell.environment, "COMPONENT_SECRET": COMPONENT_SECRET}
    process = shell.start(*words, env=environment, stdin=-1)
    assert process.stdin is not None
    process.stdin.write(code)
    ended = shell.end(process)
    assert (ended.status, ended.stderr) == (0, "")
    assert platform_of(wx, state_dir).authorizers.holds(APPID, since=0)


@pytest.mark.parametrize("words", [["platform", "start-push"], ["journal", "backup", "copy"]])
def test_without_an_app_there_is_another_way(shell: "Shell", words: list[str]) -> None:
    """The file of a fleet says it as well."""
    ended = shell.run("prefetch_kit", *words)
    assert (ended.status, "Or give --config prefetch.toml." in ended.stderr) == (1, True)
