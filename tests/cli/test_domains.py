"""The commands around business domains, with an app that really serves the confirm file."""

import json
import os
import re
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from prefetch_kit import Prefetch
from prefetch_kit.addresses import wechat_name
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Leaks

APPID, COMPONENT, COMPONENT_SECRET = "wx02", "wxplatform", "canary-component-secret"
Build = Callable[..., Flask]


@pytest.fixture
def build(
    wx: Sandbox,
    settings: dict[str, Any],
    prefetch: Prefetch,
    leaks: "Leaks",
    serve: Callable[[Flask], str],
) -> Build:
    """`build(files)`: the app of a merchant whom a platform serves, with these confirm files.

    Further settings are given by name.
    """
    wx.add_app(APPID, secret="s")
    wx.add_platform(COMPONENT, secret=COMPONENT_SECRET, token="t", aes_key="k" * 43)
    leaks.secrets.append(COMPONENT_SECRET)
    given = {**settings, "PREFETCH_APPIDS": [APPID], "PREFETCH_APP_SECRET": None}
    given |= {"PREFETCH_COMPONENT_APPID": COMPONENT}
    given |= {"PREFETCH_COMPONENT_SECRET": COMPONENT_SECRET}

    def build(files: dict[str, str] | None = None, **more: object) -> Flask:
        app = Flask(__name__)
        app.config.update(given, PREFETCH_CONFIRM_FILES=files, **more)
        app.register_blueprint(prefetch)
        wx.map_origin("shop.example", serve(app))
        return app

    app = build()
    authorized(wx, app)
    return build


def authorized(wx: Sandbox, app: Flask) -> None:
    """What WeChat's pushes would have brought."""
    with wx.lock:
        ticket = wx.component(COMPONENT).issue_ticket(now=wx.now())
    config = app.extensions["prefetch_kit"].config
    with Transport(base_url=wx.base_url) as transport:
        stores = FileStores(config.state_dir / wechat_name(config.api_base_url))
        platform = ThirdParty(transport, COMPONENT, Secret(COMPONENT_SECRET), stores)
        platform.tickets.keep(Secret(ticket), pushed_at=wx.now())
        since = wx.authorize(COMPONENT, APPID).at
        *_, code = wx.component(COMPONENT).codes
        platform.authorizers.accept(Secret(code), since=since)


def files_of(sentence: str) -> dict[str, str]:
    """The setting that a refusal asks for."""
    found = re.search(r"PREFETCH_CONFIRM_FILES='(\{.*?\})'", sentence)
    assert found is not None
    files: dict[str, str] = json.loads(found[1])
    return files


def test_the_whole_walk(wx: Sandbox, cli: "Cli", build: Build) -> None:
    """Looked at, told which file is missing, deployed with it, ensured, registered."""
    app = build()
    shown = cli("domains", "show", app=app)
    assert (shown.status, shown.stdout.count("FAIL")) == (1, 2)
    sentence = cli.refused("domains", "ensure", "--yes", app=app)
    app = build(files_of(sentence))
    ended = cli("domains", "ensure", "--yes", app=app)
    assert (ended.status, ended.stdout.count("  ok   "), ended.stderr) == (0, 4, "")
    assert cli("domains", "show", app=app).status == 0
    assert cli("apply", "--yes", app=app).status == 0
    assert wx.settings(APPID)["pre_fetch_url"] == "https://shop.example/prefetch/pre_fetch"


def test_apply_looks_first(wx: Sandbox, cli: "Cli", build: Build) -> None:
    """What WeChat would refuse is not sent, unless asked for; then WeChat says it itself."""
    app = build()
    sentence = cli("apply", "--yes", app=app).stderr.splitlines()[-1]
    assert "not a business domain" in sentence
    assert "--ensure-domain" in sentence
    assert wx.count(action="set_pre_fetch") == 0
    assert "9410016" in cli("apply", "--yes", "--skip-preflight", app=app).stderr


def test_another_host_of_the_settings(wx: Sandbox, cli: "Cli", build: Build) -> None:
    """It is looked at beside the app's own."""
    app = build(PREFETCH_PRE_FETCH="https://cdn.shop.example/x")
    shown = cli("domains", "show", app=app)
    assert f"{APPID} cdn.shop.example\n" in shown.stdout
    assert f"{APPID} shop.example\n" in shown.stdout
    refused = cli("apply", "--yes", "--skip-probe", app=app).stderr.splitlines()[-1]
    assert "cdn.shop.example is not a business domain" in refused


def test_what_is_switched_off_needs_no_host(wx: Sandbox, cli: "Cli", build: Build) -> None:
    """The host of another URL is not added; WeChat itself accepts or refuses it."""
    held = {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": "https://old.example/"}
    wx.put_settings(APPID, held)
    app = build(PREFETCH_PRE_FETCH="off", PREFETCH_PERIOD_FETCH="off")
    for words in ([], ["--ensure-domain", "--skip-probe"]):
        refused = cli("apply", "--yes", "--allow-disable", *words, app=app).stderr.splitlines()[-1]
        assert "WeChat refused set_pre_fetch: 9410016" in refused
    assert wx.count(action="add") == 0


def test_apply_ensures(wx: Sandbox, cli: "Cli", build: Build) -> None:
    """One command from nothing to registered, and nothing to do the second time."""
    sentence = cli("apply", "--yes", "--ensure-domain", app=build()).stderr.splitlines()[-1]
    app = build(files_of(sentence))
    assert cli("apply", "--yes", "--ensure-domain", app=app).status == 0
    assert wx.count(action="add") == 2
    assert cli("apply", "--yes", "--ensure-domain", app=app).status == 0
    assert wx.count(action="add") == 2


def test_directly_waits_for_a_release(wx: Sandbox, cli: "Cli", build: Build) -> None:
    """Added, but not effective yet: it says what to do, and fails."""
    words = ("apply", "--yes", "--ensure-domain", "--directly")
    app = build(files_of(cli(*words, app=build()).stderr))
    ended = cli(*words, app=app)
    assert (ended.status, "Release a version" in ended.stderr) == (1, True)
    assert cli("domains", "ensure", "--yes", "--directly", app=app).status == 1
    assert wx.count(action="set_pre_fetch") == 0
    wx.release(APPID)
    assert cli(*words, app=app).status == 0


def test_directly_alone_is_wrong_usage(cli: "Cli", build: Build) -> None:
    """Alone it would have no effect, so it is refused."""
    ended = cli("apply", "--yes", "--directly", app=build())
    assert (ended.status, "--ensure-domain" in ended.stderr) == (2, True)


def test_as_json(cli: "Cli", build: Build) -> None:
    """One object, with a verdict and a remedy for each rule."""
    record = json.loads(cli("domains", "show", "--json", app=build()).stdout)
    assert (record["type"], record["host"], record["ok"]) == ("domain", "shop.example", False)
    rules = ["permission", "account", "platform", "mini program"]
    assert [verdict["rule"] for verdict in record["verdicts"]] == rules
    assert [bool(verdict["remedy"]) for verdict in record["verdicts"]] == [False, False, True, True]


def test_nobody_to_ask(wx: Sandbox, cli: "Cli", build: Build) -> None:
    """Without --yes and without a person nothing is added."""
    assert "--yes" in cli.refused("domains", "ensure", app=build())
    assert wx.count(action="add") == 0


# A signal between two instructions can leave a socket to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("words", [("domains", "ensure"), ("apply", "--ensure-domain")])
def test_a_signal_while_one_is_added(
    wx: Sandbox,
    cli: "Cli",
    build: Build,
    until: Callable[[Callable[[], object]], None],
    words: tuple[str, ...],
) -> None:
    """It is named, and the same command again leads there."""
    app = build(files_of(cli(*words, "--yes", app=build()).stderr))
    assert wx.count(action="add") == 0
    wx.inject(Fault(kind="hang", action="add", times=1))

    def interrupt() -> None:
        until(lambda: wx.count(action="add"))
        os.kill(os.getpid(), signal.SIGINT)

    other = threading.Thread(target=interrupt)
    other.start()
    ended = cli(*words, "--yes", app=app)
    other.join()
    assert ended.status == 130
    assert "shop.example may have been added, or not. domains show says how" in ended.stderr
    assert cli(*words, "--yes", app=app).status == 0


def test_what_cannot_be_looked_at_is_left_to_weixin(wx: Sandbox, cli: "Cli", build: Build) -> None:
    """A failure of the preflight alone does not stop a registration."""
    app = build()
    wx.add_domain(APPID, "shop.example")
    wx.inject(Fault(kind="errcode", errcode=-1, path="/wxa/setwebviewdomain", times=None))
    ended = cli("apply", "--yes", app=app)
    assert (ended.status, "could not be looked at" in ended.stderr) == (0, True)


def test_without_a_platform(cli: "Cli", app: Flask) -> None:
    """With an AppSecret alone, the refusal names the console."""
    assert "业务域名" in cli.refused("domains", "show", app=app)
