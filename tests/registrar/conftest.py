"""A registrar of one mini program in front of a sandbox, and an origin to probe."""

import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import pytest

from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.registrar.plan import Guard, Plan
from prefetch_kit.registrar.registrar import Registrar
from prefetch_kit.sandbox import Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.tokens import StaticToken
from prefetch_kit.weixin.transport import Transport

APPID = "wx01"
PRE_URL = "https://shop.example/prefetch/pre_fetch"
PERIOD_URL = "https://shop.example/prefetch/period_fetch"


class Row(NamedTuple):
    """One change as the journal has it."""

    run: int
    action: str
    kind: str
    outcome: str
    detail: str


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
    """Where the journal and the locks are."""
    return root / quote(wx.base_url.removeprefix("http://"), safe="")


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
                " ORDER BY changes.id"
            )
            return [Row(*each) for each in found]

    return read


@pytest.fixture
def actions(wx: Sandbox) -> Callable[[], list[str]]:
    """What was asked of fetchdatasetting, in order."""
    return lambda: [str(r.action) for r in wx.requests() if r.path == "/wxa/fetchdatasetting"]


@pytest.fixture
def age(state_dir: Path) -> Callable[[], None]:
    """Let all that was done be long ago."""

    def make_old() -> None:
        with closing(sqlite3.connect(state_dir / "journal.sqlite3")) as db, db:
            db.execute("UPDATE changes SET at = '2026-01-01T00:00:00+00:00'")

    return make_old
