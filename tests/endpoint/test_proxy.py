"""A proxy in front that caches whatever it may, and looks at the path only."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest
from flask import Flask, Response

from prefetch_kit import Prefetch

App = Callable[..., Flask]
CONFIG = """
daemon off; error_log stderr; pid {folder}/pid; master_process off;
events {{}}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/temp;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  proxy_cache_path {folder}/kept keys_zone=kept:1m;
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://127.0.0.1:{origin};
      proxy_cache kept; proxy_cache_key $uri; proxy_cache_valid 200 1m;
    }}
  }}
}}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Callable[[int], int]]:
    """`nginx(port of the app)`: a caching proxy in front of it; its own port."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        assert not os.environ.get("SERVERS_REQUIRED"), "nginx is missing"
        pytest.skip("nginx is missing")
    started: list[subprocess.Popen[bytes]] = []

    def start(origin: int) -> int:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port: int = free.getsockname()[1]
        config = CONFIG.format(folder=tmp_path, port=port, origin=origin)
        (tmp_path / "nginx.conf").write_text(config)
        started.append(subprocess.Popen([program, "-c", tmp_path / "nginx.conf", "-p", tmp_path]))
        ends_at = time.monotonic() + 30
        while not listens(port):
            assert time.monotonic() < ends_at, "nginx does not start"
            time.sleep(0.02)
        return port

    yield start
    for process in started:
        process.terminate()
        process.wait(timeout=30)


def listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def get(port: int, target: str) -> bytes:
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", target)
        return connection.getresponse().read()
    finally:
        connection.close()


def test_two_users_get_two_answers_through_a_caching_proxy(
    make_app: App,
    prefetch: Prefetch,
    port_of: Callable[[Flask], int],
    nginx: Callable[[int], int],
) -> None:
    """What may be kept by others is kept, and a pull's answer is not."""
    prefetch.pre_fetch(cache=60)(lambda pull: f"for {pull.user_id}")
    app = make_app(prefetch)
    counted = iter(range(10))
    app.add_url_rule("/public", view_func=lambda: Response(f"{next(counted)}"))
    with app.app_context():
        tokens = [prefetch.issue_token(user, appid="wx1") for user in ("alice", "bob")]
    port = nginx(port_of(app))
    assert {get(port, "/public") for _ in range(3)} == {b"0"}
    pull = "/prefetch/pre_fetch?appid=wx1&timestamp=1700000000&token="
    answers = [get(port, pull + token) for token in tokens]
    print(f"{len(tokens)} tokens, {len(set(answers))} answers")
    assert answers == [b"for alice", b"for bob"]
