"""Every part that calls WeChat goes by the proxy of the settings, and says so where it fails."""

import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from prefetch_kit import Prefetch
from prefetch_kit.endpoint.app_state import state_of
from prefetch_kit.endpoint.login_codes import code_logins
from prefetch_kit.errors import OutcomeUnknown
from prefetch_kit.fleet import Fleet, load_project
from prefetch_kit.logs import SafeLogger
from prefetch_kit.pushes import PlatformPushes
from prefetch_kit.sandbox.pushes import event
from prefetch_kit.secret import Secret
from tests.pushes.test_strangers import WECHAT, pushed

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Leaks

pytestmark = pytest.mark.slow

PASSWORD = "canary-proxy-password"
TOML = """
{proxy}
state_dir = "state"
[apps]
list = "apps.csv"
[urls]
pre_fetch = "https://shop.example/{{appid}}"
[tokens]
app_secrets = {{ env = "SECRETS" }}
"""


class Refusing(socketserver.ThreadingTCPServer):
    """A proxy that refuses each tunnel, and keeps what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Refuse)
        self.url = f"http://me:{PASSWORD}@127.0.0.1:{self.server_address[1]}"


class _Refuse(socketserver.StreamRequestHandler):
    server: Refusing

    def handle(self) -> None:
        self.server.asked.append(self.rfile.readline())
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture
def proxy() -> Iterator[Refusing]:
    with Refusing() as made:
        threading.Thread(target=made.serve_forever, args=(0.01,)).start()
        yield made
        made.shutdown()
    assert made.asked
    assert set(made.asked) == {b"CONNECT api.weixin.qq.com:443 HTTP/1.1\r\n"}


@pytest.fixture
def behind(
    settings: dict[str, Any], prefetch: Prefetch, proxy: Refusing, leaks: "Leaks"
) -> Callable[..., Flask]:
    """`behind(**settings)`: the app on a machine that reaches WeChat by a proxy only."""
    leaks.secrets.append(PASSWORD)

    def build(**more: object) -> Flask:
        app = Flask(__name__)
        app.config.update(settings, PREFETCH_API_BASE_URL=None, PREFETCH_PROXY=proxy.url, **more)
        app.register_blueprint(prefetch)
        return app

    return build


PLATFORM = {
    "PREFETCH_APP_SECRET": None,
    "PREFETCH_COMPONENT_APPID": "wxplatform",
    "PREFETCH_COMPONENT_SECRET": "s",
    "PREFETCH_COMPONENT_MESSAGE_TOKEN": "canary-message-token",
    "PREFETCH_COMPONENT_AES_KEY": "canary0AES0key0canary0AES0key0canary0AES0ke",
}


def test_the_registrar(cli: "Cli", behind: Callable[..., Flask]) -> None:
    """The error names the setting and not what is in it."""
    sentence = cli.refused("show", app=behind())
    assert "the proxy of PREFETCH_PROXY answered 502" in sentence
    assert "Nothing was sent" in sentence


def test_the_platform(cli: "Cli", behind: Callable[..., Flask]) -> None:
    """Its own calls, too."""
    sentence = cli.refused("platform", "start-push", app=behind(**PLATFORM))
    assert "the proxy of PREFETCH_PROXY answered 502" in sentence


def receive(app: Flask, xml: str | None = None) -> int:
    """The status that a push of WeChat is answered with."""
    query, body = pushed(xml)
    return app.test_client().post("/wechat/events", query_string=query, data=body).status_code


@pytest.fixture
def provider(behind: Callable[..., Flask]) -> Flask:
    """The app of a platform that has a ticket."""
    app = behind(**PLATFORM)
    app.register_blueprint(PlatformPushes("wechat", __name__, url_prefix="/wechat"))
    assert receive(app) == 200
    return app


def test_pushes(provider: Flask, caplog: pytest.LogCaptureFixture) -> None:
    """The code of a new merchant cannot be exchanged now, and WeChat is asked to push it again."""
    given = {"AuthorizerAppid": "wx01", "AuthorizationCode": "canary-code"}
    assert receive(provider, event(WECHAT, "authorized", now=1e9, **given)) == 503
    assert "the proxy of PREFETCH_PROXY answered 502" in caplog.text


def test_login_codes_of_an_app(behind: Callable[..., Flask]) -> None:
    """With its AppSecret."""
    check_login(behind())


def test_login_codes_of_a_merchant(provider: Flask) -> None:
    """As a platform, whose own token is asked for first."""
    check_login(provider)


def check_login(app: Flask) -> None:
    logins = code_logins(state_of(app).config, SafeLogger(app.logger, {}))
    with pytest.raises(OutcomeUnknown, match="PREFETCH_PROXY answered 502"):
        logins.find("wx01", Secret("0" * 32))


@pytest.mark.parametrize("way", ["env", "file"])
def test_a_fleet(tmp_path: Path, proxy: Refusing, way: str) -> None:
    """prefetch.toml names the secret, and does not hold it."""
    (tmp_path / "apps.csv").write_text("appid\nwx01\n")
    (tmp_path / "proxy").write_text(f"{proxy.url}\n")
    named = {"env": '{ env = "PROXY" }', "file": '{ file = "proxy" }'}[way]
    path = tmp_path / "prefetch.toml"
    path.write_text(TOML.format(proxy=f"proxy = {named}"))
    environment = {"SECRETS": json.dumps({"wx01": "s"}), "PROXY": proxy.url}
    summary = Fleet(load_project(path, environment=environment)).plan()
    (group,) = summary.tally.groups()
    assert "the proxy of PREFETCH_PROXY answered 502" in group.cause
    assert PASSWORD not in repr(summary)
