"""Commands, token files and texts that hold secrets, and show none."""

import json
import logging
import sqlite3
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, quote_plus

import pytest

from prefetch_kit.errors import TokenSourceError
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import scrub
from prefetch_kit.weixin.command_token import CommandToken
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC, StoredToken, TokenStore
from prefetch_kit.weixin.tokens import StableToken
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.weixin.conftest import Serve, Watch

TOKEN = 'Tq7/z+8=W"ä%41 access-token-0123456789'
FRESH = "Fm3~y+5=fresh-token-of-the-answer-9876543210"
APP_SECRET = 'Sx9/w+2=K"ö%42 app-secret-0123456789'


@pytest.fixture
def watch(watch_for: "Callable[..., Watch]") -> "Watch":
    return watch_for(TOKEN, FRESH, APP_SECRET)


COMMANDS = {
    "ends with an error": "print(token); sys.exit(1)",
    "shouts": "sys.exit(token)",
    "prints two": "print(token, token)",
    "prints much": "print(token * 1000)",
    "prints bad JSON": "print('{' + token)",
    "prints no token": "print(json.dumps({'other': token}))",
    "prints a bad end": "print(json.dumps({'access_token': token, 'expires_in': '1'}))",
    "hangs": "print(token, flush=True); time.sleep(60)",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_that_fail(watch: "Watch", monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Nothing that the command prints is shown."""
    monkeypatch.setenv("CANARY", FRESH)
    program = f"import json, os, sys, time; token = os.environ['CANARY']; {COMMANDS[name]}"
    # Generous for the others: an interpreter takes its time to start.
    source = CommandToken([sys.executable, "-c", program], deadline_s=1 if name == "hangs" else 30)
    watch.failure(source.get)


def test_a_command_that_is_missing(watch: "Watch") -> None:
    """Its name is not shown, since it may be the token; its arguments are not either."""
    source = CommandToken([TOKEN, "--key", APP_SECRET])
    with pytest.raises(TokenSourceError, match=r"\*\*\*.*cannot be started") as caught:
        source.get()
    error = caught.value
    lines = traceback.TracebackException.from_exception(error, capture_locals=True).format()
    watch.nothing_in(*lines, repr(vars(error)))


def a_directory(path: Path) -> None:
    path.mkdir()


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text(TOKEN)


def readable_by_others(path: Path) -> None:
    path.write_text(json.dumps({"access_token": TOKEN, "expires_at": 9e9}))
    path.chmod(0o644)


def a_link(path: Path) -> None:
    path.with_name("other").write_text(json.dumps({"access_token": TOKEN, "expires_at": 9e9}))
    path.symlink_to(path.with_name("other"))


def load(store: TokenStore) -> object:
    return store.load()


def save(store: TokenStore) -> None:
    store.save(StoredToken(Secret(TOKEN), 9e9))


STORES = [
    (a_directory, load),
    (a_directory, save),
    (below_a_file, load),
    (below_a_file, save),
    (readable_by_others, load),
    (a_link, load),
]


@pytest.fixture
def token_path(tmp_path: Path) -> Path:
    path = tmp_path / "state" / "tokens.sqlite3"
    path.parent.mkdir()
    return path


def opened(path: Path) -> TokenStore:
    return FileStores(path.parent).open("wx01", "access_token", TOKEN_CODEC)


@pytest.mark.parametrize(("state", "use"), STORES)
def test_token_files_that_cannot_be_used(
    watch: "Watch",
    token_path: Path,
    state: Callable[[Path], None],
    use: Callable[[TokenStore], object],
) -> None:
    """The error names the file and nothing that is in it."""
    state(token_path)
    error = watch.failure(partial(use, opened(token_path)))
    assert str(token_path) in str(error)


def test_a_fresh_token_that_cannot_be_saved(
    serve: "Serve", http: Callable[..., bytes], watch: "Watch", token_path: Path
) -> None:
    """The answer was good, the file is not."""
    body = json.dumps({"access_token": FRESH, "expires_in": 7200})
    with Transport(base_url=serve.answers(http(body.encode())).url) as transport:
        source = StableToken(transport, "wx01", Secret(APP_SECRET), opened(token_path))
        source.get()
        with closing(sqlite3.connect(token_path)) as other:
            other.execute(
                "CREATE TRIGGER t BEFORE INSERT ON records BEGIN SELECT RAISE(ABORT, 'no'); END"
            )
        watch.failure(partial(source.renew, Secret(FRESH)))


@pytest.mark.parametrize("spell", [str, str.upper, quote, partial(quote, safe=""), quote_plus])
def test_scrubbed_to_the_last_character(spell: Callable[[str], str]) -> None:
    """A secret of reserved characters only, in each of its spellings."""
    secret = "/a +=/b +=/c +=/d +="
    assert scrub(f"bad <{spell(secret)}>\0!", [Secret(secret)]) == "bad <***> !"


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("hint: [75_QLoN8u3gJ0zP4wcxXq2b] rest", "hint: [***] rest"),
        ("secret 0123456789abcdef0123456789abcdef.", "secret ***."),
        ("abcdefghijklmnopqrstuvwxyz", "***"),
        ("refreshtoken@@@gk4HN2X0vB8e0s1mfW3b", "***"),
        ("a=b%2F0123456789012345678", "***"),
        ("get it by getStableAccessToken", "get it by getStableAccessToken"),
        ("invalid authorizer_refresh_token", "invalid authorizer_refresh_token"),
        ("see https://mmbizurl.cn/s/JtxxFh33r", "see https://mmbizurl.cn/s/JtxxFh33r"),
        ("x rid: 6170df6f-1a5a5d4e-5c7ba1b9", "x rid: 6170df6f-1a5a5d4e-5c7ba1b9"),
        ("a-long-host.shop.example", "a-long-host.shop.example"),
    ],
)
def test_foreign_text_that_could_be_a_token(told: str, shown: str) -> None:
    """Whose token it is does not matter; words, rids, hosts and WeChat's own links stay."""
    assert scrub(told, []) == shown


def test_scrubbing_leaves_other_text() -> None:
    """Short runs that only happen to occur in a secret say nothing about it."""
    assert scrub("secret of wx01", [Secret("a-secret-of-48-characters")]) == "secret of wx01"


@pytest.mark.parametrize("leak", [TOKEN, TOKEN[:12], quote(TOKEN, safe=""), TOKEN.upper()])
@pytest.mark.parametrize("way", [print, logging.getLogger("any").debug, warnings.warn, OSError])
def test_the_watch_sees_a_leak(watch: "Watch", leak: str, way: Callable[[str], object]) -> None:
    """What the tests above rely on."""

    def leaking() -> None:
        way(leak)
        raise RuntimeError("x") from (OSError(leak) if way is OSError else None)

    with pytest.raises(AssertionError):
        watch.failure(leaking)
