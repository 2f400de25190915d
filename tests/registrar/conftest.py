"""A registrar of one mini program in front of a sandbox, and an origin to probe."""

import json
import socket
import socketserver
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pytest

from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.registrar.apply import Registrar
from prefetch_kit.registrar.crew import Summary
from prefetch_kit.registrar.fleet import Begun, Fleet, Limits
from prefetch_kit.registrar.plan import Guard, Plan
from prefetch_kit.registrar.project import load_project
from prefetch_kit.registrar.results import Result
from prefetch_kit.sandbox import Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.tokens import StaticToken
from prefetch_kit.weixin.transport import Transport

APPID = "wx01"
PRE_URL = "https://shop.example/prefetch/pre_fetch"
PERIOD_URL = "https://shop.example/prefetch/period_fetch"
FLEET_SECRET = "canary-fleet-secret"
FLEET_TOML = """
api_base_url = "{base_url}"
state_dir = "state"
[apps]
list = "apps.csv"
[urls]
pre_fetch = "https://shop.example/p/{{appid}}/pre_fetch{version}"
period_fetch = "https://shop.example/p/{{appid}}/period_fetch{version}"
{more}
[tokens]
app_secrets = {{ file = "secrets.json" }}
"""
ALL_LIFTED = Limits(allow=frozenset({"disable", "takeover"}))


class Row(NamedTuple):
    """One change as the journal has it."""

    run: int
    action: str
    kind: str
    outcome: str
    detail: str


class Origin:
    """A server that sends the bytes it was told to, whatever it is asked."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.heads: list[str] = []
        self.play: Callable[[socket.socket], None] = lambda _: None
        self.reply(b'{"n":1}')

    def reply(self, body: bytes, *, status: str = "200 OK", headers: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        raw = f"{head}{headers}\r\n".encode() + body
        self.play = lambda connection: connection.sendall(raw)


@pytest.fixture(scope="package")
def running() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def wx(running: Sandbox) -> Sandbox:
    """A WeChat that starts anew with each test, on one port."""
    running.reset()
    running.add_app(APPID, secret="canary-app-secret")
    running.add_domain(APPID, "shop.example")
    running.add_domain(APPID, "old.example")
    return running


@pytest.fixture
def transport(wx: Sandbox) -> Iterator[Transport]:
    with Transport(base_url=wx.base_url, deadline_s=2) as made:
        yield made


@pytest.fixture
def api(wx: Sandbox, transport: Transport) -> SettingsApi:
    """Settings calls that do not wait between repeats."""
    tokens = StaticToken(Secret(wx.access_token(APPID)))
    return SettingsApi(transport, tokens, sleep=lambda _: None)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where everything is kept, of whatever mini program and WeChat."""
    return tmp_path / "state"


@pytest.fixture
def state_dir(wx: Sandbox, root: Path) -> Path:
    """Where the mini program's journal and lock are."""
    return root / quote(wx.base_url.removeprefix("http://"), safe="") / APPID


@pytest.fixture
def make_registrar(wx: Sandbox, transport: Transport) -> Callable[[Path], Registrar]:
    """`make_registrar(root)`: one that does not wait between repeats."""
    token = wx.access_token(APPID)
    return lambda root: Registrar(
        APPID, tokens=lambda: token, state_dir=root, transport=transport, sleep=lambda _: None
    )


@pytest.fixture
def registrar(make_registrar: Callable[[Path], Registrar], root: Path) -> Registrar:
    return make_registrar(root)


@pytest.fixture
def wanted() -> Mapping[Kind, FetchSetting]:
    """Both kinds, from URLs of one host."""
    return {
        "pre_fetch": FetchSetting.server(PRE_URL),
        "period_fetch": FetchSetting.server(PERIOD_URL),
    }


@pytest.fixture
def approved() -> list[Plan]:
    """The plans that were shown before anything was sent."""
    return []


@pytest.fixture
def apply(
    registrar: Registrar, wanted: Mapping[Kind, FetchSetting], approved: list[Plan]
) -> Callable[[], Plan]:
    """Apply both targets with every guard lifted."""
    allow: frozenset[Guard] = frozenset({"disable", "takeover"})
    return lambda: registrar.apply(wanted, allow=allow, approve=approved.append)


@pytest.fixture
def rows(state_dir: Path) -> Callable[[], list[Row]]:
    """The journal, read by other means than its own."""

    def read() -> list[Row]:
        with closing(sqlite3.connect(state_dir / "journal.sqlite3")) as db:
            found = db.execute(
                "SELECT run, action, kind, outcome, detail FROM changes JOIN runs ON runs.id = run"
                " ORDER BY run, changes.rowid"
            )
            return [Row(*each) for each in found]

    return read


@pytest.fixture
def actions(wx: Sandbox) -> Callable[[], list[str]]:
    """What was asked of fetchdatasetting, in order."""
    return lambda: [str(r.action) for r in wx.requests() if r.path == "/wxa/fetchdatasetting"]


@pytest.fixture
def origin(wx: Sandbox) -> Iterator[Origin]:
    """A server of its own behind shop.example."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            served.heads.append(b"".join(iter(self.rfile.readline, b"\r\n")).decode())
            with suppress(ConnectionError):
                served.play(self.connection)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = False

    with Server(("127.0.0.1", 0), Handler) as server:
        served = Origin(f"http://127.0.0.1:{server.server_address[1]}")
        wx.map_origin("shop.example", served.url)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield served
        server.shutdown()
        thread.join()


class Told:
    """A report that keeps what it is told."""

    def __init__(self) -> None:
        self.fleets: list[Begun] = []
        self.results: dict[str, Result] = {}

    def begun(self, begun: Begun) -> None:
        self.fleets.append(begun)

    def app(self, result: Result) -> None:
        self.results[result.appid] = result


class Merchants:
    """Mini programs of a played WeChat, and a fleet of them."""

    def __init__(self, wx: Sandbox, folder: Path) -> None:
        self.wx = wx
        self.folder = folder
        self.appids: list[str] = []
        self.told = Told()

    def add(self, count: int) -> list[str]:
        """Add so many mini programs, whose business domains are those of `wx`."""
        added = [f"wxm{number:05}" for number in range(len(self.appids), len(self.appids) + count)]
        for appid in added:
            self.wx.add_app(appid, secret=FLEET_SECRET)
            for host in ("shop.example", "old.example"):
                self.wx.add_domain(appid, host)
        self.appids += added
        return added

    def write(self, more: str = "", *, version: str = "") -> Path:
        """The prefetch.toml of all of them; `version` ends their URLs."""
        lines = ["appid", *self.appids]
        (self.folder / "apps.csv").write_text("\n".join(lines))
        secrets = dict.fromkeys(self.appids, FLEET_SECRET)
        (self.folder / "secrets.json").write_text(json.dumps(secrets))
        path = self.folder / "prefetch.toml"
        path.write_text(FLEET_TOML.format(base_url=self.wx.base_url, version=version, more=more))
        return path

    def fleet(self, more: str = "", *, version: str = "", **pace: Any) -> Fleet:
        """A fleet of all of them, without a canary and without a stop unless `pace` says so."""
        project = load_project(self.write(more, version=version))
        self.told = Told()
        wanted = replace(project.pace, **{"canary": 0, "stop_at": 1.0, "workers": 8, **pace})
        return Fleet(project, self.told, pace=wanted)

    def apply(self, *, version: str = "", **pace: Any) -> Summary:
        """Apply with every guard lifted."""
        return self.fleet(version=version, **pace).apply(ALL_LIFTED)

    def urls(self) -> set[object]:
        """The last part of every pre_fetch URL that WeChat has, None for none."""
        found = (self.wx.settings(appid).get("pre_fetch_url") for appid in self.appids)
        return {url and str(url).rpartition("/")[2] for url in found}

    def spoil(self, appids: Iterable[str], errcode: int) -> None:
        """Let each call about these settings answer with a denial."""
        for appid in appids:
            self.wx.deny(appid, errcode)

    def outcomes(self) -> Counter[str]:
        return Counter(result.outcome for result in self.told.results.values())


@pytest.fixture
def merchants(wx: Sandbox, tmp_path: Path) -> Merchants:
    return Merchants(wx, tmp_path)
