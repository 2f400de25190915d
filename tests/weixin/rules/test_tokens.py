"""Where tokens come from: fixed, or the stable token kept for all threads and processes."""

import json
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.errors import OutcomeUnknown, Refused, SystemBusy, TokenRejected
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.token_stores.records import (
    MemoryStore,
    StoredToken,
    TokenStore,
)
from prefetch_kit.weixin.tokens import StableToken, StaticToken, TokenSource
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.weixin.conftest import Clock

APPID = "wx01"
SECRET = "canary-app-secret"
STABLE_TOKEN = "/cgi-bin/stable_token"
OLD = StoredToken(Secret("an-old-token"), 0.0)

GET_TOKENS = """
import os
import sys
from pathlib import Path
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC
from prefetch_kit.weixin.tokens import StableToken
from prefetch_kit.weixin.transport import Transport

base_url, path, secret = sys.argv[1:]
waiting, go = os.pipe()
children = []
for _ in range(16):
    child = os.fork()
    if not child:
        os.close(go)
        os.read(waiting, 1)
        with Transport(base_url=base_url, deadline_s=30) as transport:
            store = FileStores(Path(path)).open("wx01", "access_token", TOKEN_CODEC)
            token = StableToken(transport, "wx01", Secret(secret), store).get()
        os.write(1, f"{token.reveal()}\\n".encode())
        os._exit(0)
    children.append(child)
os.close(go)
sys.exit(any(os.waitpid(child, 0)[1] for child in children))
"""
HOLD_THE_LOCK = """
import sys
from pathlib import Path
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.token_stores.records import TOKEN_CODEC

with FileStores(Path(sys.argv[1])).open("wx01", "access_token", TOKEN_CODEC).lock():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def timed(transport: Transport, store: TokenStore, clock: "Clock") -> StableToken:
    """The app's token, on a clock that can be moved."""
    return StableToken(transport, APPID, Secret(SECRET), store, clock=clock)


@pytest.fixture(params=["file", "memory"])
def either(request: pytest.FixtureRequest, store: TokenStore) -> TokenStore:
    return store if request.param == "file" else MemoryStore()


def test_a_token_is_asked_for_once_and_kept(
    wx: Sandbox,
    stable: Callable[[TokenStore], StableToken],
    either: TokenStore,
    token_calls: Callable[[], int],
) -> None:
    """WeChat's own token, for every source in front of the same store, never forced."""
    tokens = {stable(either).get() for _ in range(5)}
    assert tokens == {Secret(wx.access_token(APPID))}
    assert token_calls() == 1
    assert (wx.requests()[0].body or {})["force_refresh"] is False


@pytest.mark.parametrize(("left_s", "asked"), [(61, 1), (59, 2), (-9000, 2)])
def test_a_token_is_reused_until_its_last_minute(
    timed: StableToken,
    clock: "Clock",
    token_calls: Callable[[], int],
    left_s: float,
    asked: int,
) -> None:
    """A token about to end could end on the way to WeChat."""
    timed.get()
    clock.now += 7200 - left_s
    timed.get()
    assert token_calls() == asked


def test_a_token_ends_when_weixin_said(
    wx: Sandbox, timed: StableToken, store: TokenStore, clock: "Clock"
) -> None:
    """`expires_in` counts from the moment the token was asked for."""
    wx.inject(
        Fault(kind="raw", path=STABLE_TOKEN, body='{"access_token": "abc", "expires_in": 300}')
    )
    timed.get()
    assert store.load() == StoredToken(Secret("abc"), clock.now + 300)


def test_no_token_is_believed_longer_than_two_hours(
    wx: Sandbox, timed: StableToken, store: TokenStore, clock: "Clock"
) -> None:
    """Whatever `expires_in` says, WeChat's page promises 7200 seconds at most."""
    body = json.dumps({"access_token": "abc", "expires_in": 10**400})
    wx.inject(Fault(kind="raw", path=STABLE_TOKEN, body=body))
    timed.get()
    assert store.load() == StoredToken(Secret("abc"), clock.now + 7200)


def test_a_clock_set_back_asks_again(
    timed: StableToken, clock: "Clock", token_calls: Callable[[], int]
) -> None:
    """A token that seems to last for days would never be replaced; afterwards all is well."""
    timed.get()
    clock.now -= 86400
    timed.get()
    assert token_calls() == 2
    timed.get()
    assert token_calls() == 2


def test_threads_with_an_ended_token_ask_once(
    stable: Callable[[TokenStore], StableToken],
    either: TokenStore,
    token_calls: Callable[[], int],
) -> None:
    """32 threads at once: one asks WeChat, the others find its token."""
    either.save(OLD)
    with ThreadPoolExecutor(32) as pool:
        tokens = set(pool.map(lambda _: stable(either).get(), range(32)))
    assert (len(tokens), token_calls()) == (1, 1)


def test_processes_with_an_ended_token_ask_once(
    wx: Sandbox,
    store: TokenStore,
    tmp_path: Path,
    start: Callable[..., Popen[str]],
    token_calls: Callable[[], int],
) -> None:
    """16 processes at once: one asks WeChat, the others find its token in the file."""
    store.save(OLD)
    wx.inject(Fault(kind="delay", path=STABLE_TOKEN, delay_s=0.3))
    said, _ = start(GET_TOKENS, wx.base_url, str(tmp_path / "state"), SECRET).communicate(
        timeout=60
    )
    assert said.split() == [wx.access_token(APPID)] * 16
    assert token_calls() == 1


def test_a_killed_lock_holder_holds_nobody_up(
    stable: Callable[[TokenStore], StableToken],
    store: TokenStore,
    tmp_path: Path,
    start: Callable[..., Popen[str]],
) -> None:
    """The operating system ends the lock with its process; no one waits for a timeout."""
    holder = start(HOLD_THE_LOCK, str(tmp_path / "state"))
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    began = time.monotonic()
    stable(store).get()
    assert time.monotonic() - began < 15


def test_the_file_lock_keeps_other_processes_out(
    stable: Callable[[TokenStore], StableToken],
    store: TokenStore,
    tmp_path: Path,
    start: Callable[..., Popen[str]],
    token_calls: Callable[[], int],
) -> None:
    """While another process renews, nobody asks WeChat."""
    holder = start(HOLD_THE_LOCK, str(tmp_path / "state"))
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stable(store).get)
        time.sleep(0.3)
        assert (waiting.done(), token_calls()) == (False, 0)
        holder.stdin.close()
        waiting.result(30)
    assert token_calls() == 1


def test_a_renewal_that_fails_leaves_the_old_token(
    wx: Sandbox, stable: Callable[[TokenStore], StableToken], either: TokenStore
) -> None:
    """It may still work elsewhere, and the next try begins from the same state."""
    source = stable(either)
    old = source.get()
    wx.inject(Fault(kind="close", path=STABLE_TOKEN, times=None))
    with pytest.raises(OutcomeUnknown):
        source.renew(old)
    assert source.get() == old


@pytest.mark.parametrize(
    ("errcode", "expected"),
    [(-1, SystemBusy), (40014, TokenRejected), (42001, TokenRejected), (45009, Refused)],
)
def test_a_refused_token_call_is_made_once(
    wx: Sandbox,
    api: SettingsApi,
    token_calls: Callable[[], int],
    calls: Callable[[], int],
    errcode: int,
    expected: type[Refused],
) -> None:
    """Whatever WeChat says to it, asking for a token never leads to asking for a token."""
    wx.inject(Fault(kind="errcode", path=STABLE_TOKEN, errcode=errcode, times=None))
    with pytest.raises(expected):
        api.get()
    assert (token_calls(), calls()) == (1, 0)


@pytest.mark.parametrize("errcode", [40125, 40001])
def test_a_wrong_secret_is_permanent_and_says_what_to_do(
    wx: Sandbox, stable: Callable[[TokenStore], StableToken], errcode: int
) -> None:
    """Both codes mean the same in this call, and neither shows the secret."""
    wx.inject(Fault(kind="errcode", path=STABLE_TOKEN, errcode=errcode, errmsg=SECRET))
    with pytest.raises(Refused, match="Check the app secret") as caught:
        stable(MemoryStore()).get()
    assert (type(caught.value), caught.value.kind) == (Refused, "permanent")
    assert SECRET not in f"{caught.value!r}{caught.value}"


@pytest.mark.parametrize("members", [{}, {"expires_in": 0}, {"expires_in": True}])
def test_a_token_without_a_lifetime_is_used_for_five_minutes(
    wx: Sandbox,
    stable: Callable[[TokenStore], StableToken],
    store: TokenStore,
    members: dict[str, object],
) -> None:
    """It came, and whether it is good WeChat says with the next call."""
    body = json.dumps({"access_token": "abc", **members})
    wx.inject(Fault(kind="raw", path=STABLE_TOKEN, body=body))
    assert stable(store).get() == Secret("abc")
    kept = store.load()
    assert kept is not None
    assert kept.expires_at == pytest.approx(wx.now() + 300, abs=20)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"errcode": 0, "errmsg": "ok"},
        {"access_token": "", "expires_in": 7200},
        {"access_token": "abc\n", "expires_in": 7200},
        {"access_token": "a b", "expires_in": 7200},
        {"access_token": "x" * 1025, "expires_in": 7200},
        {"access_token": 7, "expires_in": 7200},
    ],
)
def test_an_answer_that_is_no_token_is_not_stored(
    wx: Sandbox,
    stable: Callable[[TokenStore], StableToken],
    store: TokenStore,
    answer: dict[str, object],
) -> None:
    """The outcome is unknown, harmless to repeat, and the store stays as it was."""
    wx.inject(Fault(kind="raw", path=STABLE_TOKEN, body=json.dumps(answer)))
    with pytest.raises(OutcomeUnknown, match="Try again"):
        stable(store).get()
    assert store.load() is None


def test_a_static_token_is_the_same_for_ever(
    wx: Sandbox,
    settings_of: Callable[[TokenSource], SettingsApi],
    calls: Callable[[], int],
) -> None:
    """Rejected, it cannot be renewed, so the call is not repeated."""
    wx.put_settings(APPID, {"is_pre_fetch_open": False})
    source = StaticToken(Secret(wx.access_token(APPID)))
    settings_of(source).get()
    wx.expire_tokens(APPID)
    with pytest.raises(TokenRejected):
        settings_of(source).get()
    assert calls() == 2
