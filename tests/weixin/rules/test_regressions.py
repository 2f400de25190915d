"""What others got wrong about tokens and errors, each case under its name."""

import logging
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest

from prefetch_kit.errors import PrefetchKitError, TokenRejected
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.sandbox.faults import FaultKind
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.settings import SettingsApi
from prefetch_kit.weixin.token_stores.records import (
    MemoryStore,
    StoredToken,
    TokenStore,
)
from prefetch_kit.weixin.tokens import StableToken, TokenSource
from prefetch_kit.weixin.transport import Transport

APPID = "wx01"
STABLE_TOKEN = "/cgi-bin/stable_token"

Stable = Callable[[TokenStore], StableToken]


def test_several_processes_do_not_kick_out_each_others_token(
    wx: Sandbox, stable: Stable, settings_of: Callable[[TokenSource], SettingsApi]
) -> None:
    """Four gunicorn workers with a store each: all four tokens go on working."""
    workers = [settings_of(stable(MemoryStore())) for _ in range(4)]
    for worker in workers * 2:
        worker.get()
    assert wx.count(path=STABLE_TOKEN) == 4
    assert {request.errcode for request in wx.requests()} == {0}
    assert wx.count(path="/cgi-bin/token") == 0


def test_a_late_40001_about_an_old_token_keeps_the_fresh_one(
    wx: Sandbox, stable: Stable, store: TokenStore, token_calls: Callable[[], int]
) -> None:
    """A slow call that fails with the old token neither ends nor replaces the new one."""
    source = stable(store)
    old = source.get()
    wx.expire_tokens(APPID)
    fresh = source.renew(old)
    kept = store.load()
    assert (source.renew(old), stable(store).renew(old)) == (fresh, fresh)
    assert (token_calls(), store.load()) == (2, kept)
    assert fresh != old


def test_waiters_look_again_after_the_lock(
    wx: Sandbox, stable: Stable, store: TokenStore, token_calls: Callable[[], int]
) -> None:
    """Eight renewals of one failed token, all waiting at once: one call, one token."""
    failed = stable(store).get()
    wx.expire_tokens(APPID)
    wx.inject(Fault(kind="delay", path=STABLE_TOKEN, delay_s=0.2))
    with ThreadPoolExecutor(8) as pool:
        renewed = set(pool.map(lambda _: stable(store).renew(failed), range(8)))
    assert (len(renewed), token_calls()) == (1, 2)
    assert failed not in renewed


def test_the_old_token_stays_until_the_new_one_exists(
    wx: Sandbox, stable: Stable, store: TokenStore
) -> None:
    """A reader during a renewal finds the old token, then the new one, never none."""
    source = stable(store)
    old = source.get()
    wx.expire_tokens(APPID)
    wx.inject(Fault(kind="delay", path=STABLE_TOKEN, delay_s=0.3))
    seen = [store.load()]
    renewal = threading.Thread(target=source.renew, args=(old,))
    renewal.start()
    while renewal.is_alive():
        seen.append(store.load())
    values = [token.value if token else None for token in [*seen, store.load()]]
    assert list(dict.fromkeys(values)) == [old, source.get()]


def test_renewal_is_not_recursive(
    wx: Sandbox,
    numbered: TokenSource,
    settings_of: Callable[[TokenSource], SettingsApi],
    calls: Callable[[], int],
) -> None:
    """WeChat rejects each token: one renewal, one repeat, then the caller hears of it."""
    with pytest.raises(TokenRejected):
        settings_of(numbered).get()
    assert (calls(), numbered.get()) == (2, Secret(f"{1:032}"))


def test_an_expired_token_is_renewed_without_anyone_noticing(
    wx: Sandbox, api: SettingsApi, calls: Callable[[], int], token_calls: Callable[[], int]
) -> None:
    """The same call succeeds with the new token, and later ones keep it."""
    wx.put_settings(APPID, {"is_pre_fetch_open": False})
    api.get()
    wx.expire_tokens(APPID)
    api.get()
    api.get()
    assert (calls(), token_calls()) == (4, 2)


def test_a_token_that_weixin_gives_out_again_is_not_sent_again(
    wx: Sandbox, api: SettingsApi, calls: Callable[[], int], token_calls: Callable[[], int]
) -> None:
    """Renewal handed the rejected token back: repeating would only be rejected again."""
    wx.inject(Fault(kind="errcode", errcode=40001, times=None))
    with pytest.raises(TokenRejected):
        api.get()
    assert (calls(), token_calls()) == (1, 2)


@pytest.mark.parametrize("kind", ["errcode", "raw", "redirect", "close", "reset", "cut"])
@pytest.mark.parametrize("path", [STABLE_TOKEN, "/wxa/fetchdatasetting"])
def test_no_secret_in_exception_text(
    wx: Sandbox,
    transport: Transport,
    caplog: pytest.LogCaptureFixture,
    kind: FaultKind,
    path: str,
) -> None:
    """Neither token nor AppSecret in text, traceback, members or DEBUG logs of any library."""
    secrets = ["canary/token+0123456789", "canary/secret+0123456789"]
    caplog.set_level(logging.DEBUG)
    store: MemoryStore[StoredToken] = MemoryStore()
    if path != STABLE_TOKEN:
        store.save(StoredToken(Secret(secrets[0]), time.time() + 3600))
    source = StableToken(transport, APPID, Secret(secrets[1]), store)
    echo = f"you sent {' '.join(secrets)}"
    wx.inject(Fault(kind=kind, path=path, errcode=48001, errmsg=echo, body=echo, times=None))
    with pytest.raises(PrefetchKitError) as caught:
        SettingsApi(transport, source, sleep=lambda _: None).get()
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    shown += repr([caught.value, vars(caught.value)])
    forms = [form for secret in secrets for form in (secret, quote(secret, safe=""), secret[7:15])]
    assert [form for form in forms if form in shown] == []
