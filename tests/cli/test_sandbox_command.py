"""`sandbox`: WeChat on this machine, until it is told to stop."""

import signal
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import requests

if TYPE_CHECKING:
    import subprocess

    from tests.cli.conftest import Ended, Shell

APPID = "wx01"
Run = Callable[..., "tuple[str, subprocess.Popen[str]]"]


@pytest.fixture
def run(shell: "Shell") -> Iterator[Run]:
    """Start the command on a free port; gives its URL and its process."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> "tuple[str, subprocess.Popen[str]]":
        process = shell.start(*words)
        started.append(process)
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("WeChat, played at ").strip()
        assert process.stdout.readline() == f"export PREFETCH_API_BASE_URL={url}\n"
        return url, process

    yield start
    for process in started:
        with process:
            process.kill()


def ask(url: str, path: str, **body: object) -> dict[str, Any]:
    answer: dict[str, Any] = requests.post(url + path, json=body, timeout=10).json()
    return answer


def end(shell: "Shell", process: "subprocess.Popen[str]", number: int) -> "Ended":
    process.send_signal(number)
    return shell.end(process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_knows_the_app_and_ends_well(
    shell: "Shell", run: Run, entry: list[str], number: int
) -> None:
    """It knows the app's secret and domain, and runs until Ctrl-C or SIGTERM."""
    url, process = run(*entry, "sandbox", "--port", "0", "--origin", "http://127.0.0.1:8000")
    client = {"grant_type": "client_credential", "appid": APPID, "secret": shell.leaks.secrets[0]}
    token = ask(url, "/cgi-bin/stable_token", **client)["access_token"]
    shell.leaks.secrets.append(token)
    half = {"is_pre_fetch_open": True, "pre_fetch_type": 0, "pre_fetch_url": "https://shop.example"}
    path = f"/wxa/fetchdatasetting?access_token={token}"
    assert ask(url, path, action="set_pre_fetch", **half)["errcode"] == 0
    origins = requests.get(f"{url}/_sandbox/origins", timeout=10).json()
    assert origins == {"origins": {"shop.example": "http://127.0.0.1:8000"}}
    ended = end(shell, process, number)
    assert ended.status == 0
    assert "'set_pre_fetch' wx01: errcode 0" in ended.stderr


PROVIDER = """
from shop_app import create_app as shop
from prefetch_kit.pushes import PlatformPushes


def create_app():
    app = shop()
    app.register_blueprint(PlatformPushes("wechat", __name__, url_prefix="/wechat"))
    return app
"""


def test_it_knows_the_apps_platform(shell: "Shell", run: Run) -> None:
    """A merchant can authorize at once, and WeChat knows where to push that."""
    (shell.cwd / "provider_app.py").write_text(PROVIDER)
    keys = {"SECRET": "component-secret", "MESSAGE_TOKEN": "message-token", "AES_KEY": "k" * 43}
    shell.leaks.secrets += keys.values()
    keys["APPID"] = "wx9"
    shell.environment |= {f"PREFETCH_COMPONENT_{name}": value for name, value in keys.items()}
    del shell.environment["PREFETCH_APP_SECRET"]
    url, process = run("prefetch_kit", "--app", "provider_app:create_app()", "sandbox", "--port=0")
    pushed = ask(url, f"/_sandbox/platforms/wx9/authorizers/{APPID}")["pushed"]
    assert (pushed["info_type"], pushed["reason"]) == ("authorized", "no origin")
    said = end(shell, process, signal.SIGTERM).stderr
    assert "Pushes for wx9 go to https://shop.example/wechat/events" in said


def test_without_an_app(shell: "Shell", run: Run) -> None:
    """Its WeChat knows no mini program yet."""
    url, process = run("prefetch_kit", "sandbox", "--port", "0")
    client = {"grant_type": "client_credential", "appid": APPID, "secret": "s"}
    assert ask(url, "/cgi-bin/stable_token", **client)["errcode"] == 40013
    assert end(shell, process, signal.SIGTERM).status == 0


def test_it_can_refuse_own_tokens(shell: "Shell", run: Run) -> None:
    """As the WeChat does, perhaps, that takes settings from third-party platforms alone."""
    words = ["--app", "shop_app:create_app()", "sandbox", "--port", "0", "--refuse-own-token"]
    url, process = run("prefetch_kit", *words)
    client = {"grant_type": "client_credential", "appid": APPID, "secret": shell.leaks.secrets[0]}
    token = ask(url, "/cgi-bin/stable_token", **client)["access_token"]
    shell.leaks.secrets.append(token)
    path = f"/wxa/fetchdatasetting?access_token={token}"
    assert ask(url, path, action="get")["errcode"] == 48001
    assert end(shell, process, signal.SIGTERM).status == 0


def test_a_port_that_is_taken(shell: "Shell") -> None:
    """The sentence names the port and the way out."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = shell.run("prefetch_kit", "sandbox", "--port", str(port))
    assert (ended.status, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"Error: Port {port} cannot be had: ")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["--app", "shop_app", "sandbox", "--origin", "http://shop.example:1"], 2, "--origin"),
        (["sandbox", "--origin", "http://127.0.0.1:8000"], 1, "--app"),
        (["--app", "no_such_app", "sandbox"], 1, "--app (or FLASK_APP) leads to no Flask app"),
    ],
)
def test_what_it_cannot_start_with(
    shell: "Shell", words: list[str], status: int, said: str
) -> None:
    """A sentence, and no sandbox left running."""
    ended = shell.run("prefetch_kit", *words, "--port", "0")
    assert (ended.status, ended.stdout) == (status, "")
    assert said in ended.stderr
