"""The whole loop: a local WeChat, the shop under gunicorn, three pulls."""

import json
import secrets
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from example_app.__main__ import ALICE, run_loop, serving_shop
from example_app.shop import APPID
from prefetch_kit.sandbox import Sandbox

Start = Callable[..., "subprocess.Popen[str]"]
Until = Callable[[Callable[[], object]], None]
SETTINGS = {
    "is_pre_fetch_open": True,
    "pre_fetch_type": 0,
    "pre_fetch_url": "https://shop.example/prefetch/pre_fetch",
    "is_period_fetch_open": True,
    "period_fetch_type": 0,
    "period_fetch_url": "https://shop.example/prefetch/period_fetch",
}


def test_once(
    start: Start, leftovers: Callable[[], list[int]], until: Until, tmp_path: Path
) -> None:
    """It ends with 0, the last line is its report, and nothing of it is left."""
    process = start("--once", "--json")
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    report = json.loads(stdout.splitlines()[-1])
    kinds = {"pre_fetch", "cached_pre_fetch", "period_fetch"}
    assert report.keys() == {"settings", *kinds, "ok"}
    assert (report["settings"], report["ok"]) == (SETTINGS, True)
    for kind in kinds:
        assert report[kind].keys() == {"status", "bytes", "ms", "kept"}
        assert (report[kind]["status"], report[kind]["kept"]) == (200, True)
        assert report[kind]["bytes"] > 0
    until(lambda: not leftovers())
    assert [path.name for path in tmp_path.iterdir() if path.name != ".gunicorn"] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serving_until_told_to_stop(
    start: Start, leftovers: Callable[[], list[int]], until: Until, number: int
) -> None:
    """Ctrl-C, or SIGTERM, ends the shop with it."""
    process = start("--json")
    assert process.stdout is not None
    assert any(line.startswith("Serving until Ctrl-C") for line in process.stdout)
    assert len(leftovers()) >= 3
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0
    assert json.loads(stdout.splitlines()[-1])["ok"] is True
    assert "Traceback" not in stderr
    until(lambda: not leftovers())


def test_a_shop_that_does_not_start(
    start: Start, leftovers: Callable[[], list[int]], until: Until, tmp_path: Path
) -> None:
    """It ends with 1 without waiting for a registration that cannot come."""
    process = start("--once", PREFETCH_MAX_BYTES="many")
    _, stderr = process.communicate(timeout=45)
    assert process.returncode == 1
    assert "The shop did not register itself" in stderr
    until(lambda: not leftovers())
    assert [path.name for path in tmp_path.iterdir() if path.name != ".gunicorn"] == []


@pytest.mark.slow
def test_it_registers_exactly_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls set the two halves, read before and after; the pulls are for Alice."""
    monkeypatch.setenv("HOME", str(tmp_path))
    secret = secrets.token_hex(16)
    with Sandbox() as wechat:
        wechat.add_app(APPID, secret=secret)
        wechat.add_user(APPID, ALICE)
        wechat.add_domain(APPID, "shop.example")
        wechat.put_settings(APPID, {"is_pre_fetch_open": False})
        with serving_shop(wechat, str(tmp_path), secret) as port:
            assert run_loop(wechat, port)["ok"] is True
        asked = [r.action for r in wechat.requests() if r.path == "/wxa/fetchdatasetting"]
        assert asked == [*["get"] * 5, "set_pre_fetch", "set_period_fetch", "get"]
        fetched = wechat.background_fetch_data(APPID, ALICE, fetch_type="periodic")["fetchedData"]
        assert len(json.loads(str(fetched))["cart"]) == 2
