"""No secret in anything a command says or leaves behind, however WeChat misbehaves.

The search itself is in the `cli` fixture: every command of every test here goes through it.
"""

import random
from base64 import b64encode
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from prefetch_kit.sandbox import Fault, Sandbox

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Leaks

pytestmark = pytest.mark.slow

APPID = "wx01"
SECRET = "canary/app+secret=0123456789"
TOKEN = "/cgi-bin/stable_token"
SETTINGS = "/wxa/fetchdatasetting"
COMMANDS = [["show"], ["plan"], ["apply", "--yes", "--skip-probe"]]
ERRCODES = [-1, 40001, 40013, 40014, 40125, 40164, 40166, 40243, 41001, 42001, 43002, 44002]
ERRCODES += [45009, 47001, 48001, 61003, 61004, 61007, 61014, 61015, 89503, 9410013, 9410014]
ERRCODES += [9410016, 9410017, 77777]
BODIES = [
    "{echo}",
    "<html>{echo}</html>",
    '{{"errcode": "{echo}"}}',
    '{{"errmsg": "{echo}"}}',
    '{{"access_token": ["{echo}"], "expires_in": 7200}}',
    '{{"errcode": 0, "is_pre_fetch_open": "{echo}"}}',
    '{{"errcode": 40001, "errmsg": {{"{echo}": 1}}}}',
    '{{"errcode": 1, "errmsg": "{echo}", "errcode": 2}}',
]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy system is asked again at once."""
    monkeypatch.setattr(random, "uniform", lambda _low, _high: 0.0)


@pytest.fixture(params=[TOKEN, SETTINGS])
def path(request: pytest.FixtureRequest) -> str:
    """The call that goes wrong: the one that sends the app secret, or the access token."""
    return str(request.param)


@pytest.fixture
def echo(leaks: "Leaks", wx: Sandbox, path: str) -> str:
    """The secret that was sent, as a careless server could send it back."""
    secret = SECRET if path == TOKEN else wx.access_token(APPID)
    assert secret in leaks.secrets
    return f"{secret} {quote(secret, safe='')} {secret[:20]}"


def all_fail(cli: "Cli") -> None:
    for words in COMMANDS:
        assert "Error: " in cli.refused(*words)


def test_the_search_finds_what_it_is_for(leaks: "Leaks", wx: Sandbox) -> None:
    """Each secret is found in each of its forms."""
    assert len(leaks.secrets) == 3
    for secret in leaks.secrets:
        assert leaks.found_in(f"x{secret}x")
        assert leaks.found_in(secret[:12])
        assert leaks.found_in(quote(secret, safe=""))
        assert leaks.found_in(b64encode(secret.encode()).decode())


@pytest.mark.parametrize("errcode", ERRCODES)
def test_refusals_that_echo(wx: Sandbox, cli: "Cli", echo: str, errcode: int, path: str) -> None:
    """A refusal may quote what was sent; the sentence does not."""
    wx.inject(Fault(kind="errcode", path=path, errcode=errcode, errmsg=echo, times=None))
    all_fail(cli)


@pytest.mark.parametrize("status", [200, 502])
@pytest.mark.parametrize("body", BODIES)
def test_unreadable_answers_that_echo(
    wx: Sandbox, cli: "Cli", echo: str, body: str, status: int, path: str
) -> None:
    """An answer that cannot be read is described, never quoted."""
    raw = body.format(echo=echo)
    wx.inject(Fault(kind="raw", path=path, body=raw, status=status, times=None))
    all_fail(cli)


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "redirect", "location": "http://127.0.0.1:1/?canary/app+secret"},
        {"kind": "lose"},
        {"kind": "close"},
        {"kind": "reset"},
        {"kind": "cut"},
        {"kind": "huge", "size_bytes": 200_000},
        {"kind": "gzip_bomb", "size_bytes": 200_000},
    ],
)
def test_broken_answers(wx: Sandbox, cli: "Cli", fault: dict[str, Any], path: str) -> None:
    """Cut, lost, redirected or blown up: a sentence, and no URL with a token in it."""
    wx.inject(Fault(path=path, times=None, **fault))
    all_fail(cli)


@pytest.mark.parametrize("fault", ["errcode", "lose", "close"])
@pytest.mark.parametrize("action", ["set_pre_fetch", "set_period_fetch"])
@pytest.mark.parametrize("path", [SETTINGS], indirect=True)
def test_failures_halfway(wx: Sandbox, cli: "Cli", echo: str, action: str, fault: Any) -> None:
    """What the journal keeps of a failed apply and of its rollback is clean as well."""
    wx.inject(Fault(kind=fault, action=action, errcode=48001, errmsg=echo, times=2))
    cli("apply", "--yes", "--skip-probe")
    cli("rollback", "--yes")
    assert wx.count(action=action) > 0
