"""The whole loop on this machine: a local WeChat, the shop under gunicorn, three pulls."""

import argparse
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

from example_app.shop import APPID
from prefetch_kit.sandbox import Pulled, Sandbox

ALICE = "openid-alice"
HOME = "pages/index/index"
HERE = Path(__file__).parent


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m example_app", description=__doc__)
    parser.add_argument("--once", action="store_true", help="stop after the loop")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    arguments = parser.parse_args()
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # so that the shop ends with this process
    secret = secrets.token_hex(16)
    with tempfile.TemporaryDirectory() as data, Sandbox() as wechat:
        wechat.add_app(APPID, secret=secret)
        wechat.add_user(APPID, ALICE)
        wechat.add_domain(APPID, "shop.example")
        with serving_shop(wechat, data, secret) as port:
            done = run_loop(wechat, port)
            if not arguments.once:
                with suppress(KeyboardInterrupt):
                    print(f"Serving until Ctrl-C: http://127.0.0.1:{port}", flush=True)
                    signal.pause()
    if arguments.json:
        print(json.dumps(done))
    return 0 if done["ok"] else 1


@contextmanager
def serving_shop(wechat: Sandbox, data: str, secret: str) -> Iterator[int]:
    settings = {"PREFETCH_APP_SECRET": secret, "PREFETCH_API_BASE_URL": wechat.base_url}
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        wechat.map_origin("shop.example", f"http://127.0.0.1:{port}")
        options = ["--config", f"{HERE}/gunicorn.conf.py", "--chdir", str(HERE.parent)]
        options += ["--bind", f"fd://{listening.fileno()}"]
        shop = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", *options, "example_app:create_app()"],
            env=os.environ | settings | {"SHOP_DATA": data},
            stdout=sys.stderr,
            pass_fds=[listening.fileno()],
        )
        try:
            wait_for_settings(wechat, shop)
            yield port
        finally:
            shop.terminate()
            shop.wait(timeout=30)


def wait_for_settings(wechat: Sandbox, shop: "subprocess.Popen[bytes]") -> None:
    """Wait until gunicorn's hook has registered both URLs and read them back."""
    ends_at = time.monotonic() + 60
    while [call.action for call in wechat.requests()[-2:]] != ["set_period_fetch", "get"]:
        if shop.poll() is not None or time.monotonic() > ends_at:
            sys.exit("The shop did not register itself; its own words are above.")
        time.sleep(0.1)


def run_loop(wechat: Sandbox, port: int) -> dict[str, object]:
    """Log in as the mini program does; let WeChat pull twice, and again 12 hours later."""
    done: dict[str, object] = {"settings": wechat.settings(APPID)}
    print(f"WeChat holds: {json.dumps(done['settings'], indent=2)}")
    token = log_in(port, wechat.login_code(APPID, ALICE))
    wechat.set_background_fetch_token(APPID, ALICE, token)
    first = note(wechat, done, "pre_fetch", wechat.cold_start(APPID, ALICE, path=HOME))
    second = note(wechat, done, "cached_pre_fetch", wechat.cold_start(APPID, ALICE, path=HOME))
    print("The second one came from the cache." if first == second else "Nothing was cached.")
    wechat.advance(12 * 3600)
    last = note(wechat, done, "period_fetch", wechat.periodic_pull(APPID, ALICE))
    return done | {"ok": bool(first and last) and first == second}


def note(wechat: Sandbox, done: dict[str, object], name: str, pulled: Pulled) -> object:
    """Report a pull, and what the phone kept of it."""
    print(f"{name}: {pulled.status}, {pulled.bytes} bytes in {pulled.ms} ms")
    done[name] = {fact: getattr(pulled, fact) for fact in ("status", "bytes", "ms", "kept")}
    on_phone = wechat.background_fetch_data(
        APPID, ALICE, fetch_type="periodic" if pulled.kind == "period_fetch" else "pre"
    )
    print(f"The phone now holds: {on_phone.get('fetchedData')}")
    return on_phone.get("fetchedData") if pulled.kept else None


def log_in(port: int, code: str) -> str:
    with closing(HTTPConnection("127.0.0.1", port, timeout=10)) as shop:
        body = json.dumps({"code": code})
        shop.request("POST", "/login", body, {"Content-Type": "application/json"})
        return str(json.load(shop.getresponse())["token"])


if __name__ == "__main__":
    sys.exit(main())
