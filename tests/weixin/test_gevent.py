"""A process that gevent takes over after the kit, and what it loaded, were imported."""

import ssl
import subprocess
from collections.abc import Callable
from threading import Barrier
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.weixin.conftest import Peer, Serve

pytestmark = pytest.mark.slow

# The import before the patch is what a worker of a preloaded app inherits.
PATCHED_LATE = """
import sys
import warnings
from prefetch_kit.weixin.transport import Transport

address, ca_file = sys.argv[1:]
transport = Transport(base_url=address, ca_file=ca_file, deadline_s=30)

warnings.simplefilter("ignore")
from gevent import monkey, spawn
monkey.patch_all()

calls = [spawn(transport.call, "show", "GET", "/show", query={}) for _ in range(2)]
print([call.get()["errcode"] for call in calls])
"""


@pytest.mark.parametrize("secure", [False, True], ids=["http", "https"])
def test_calls_wait_beside_each_other(
    serve: "Serve",
    http: Callable[..., bytes],
    tls: ssl.SSLContext,
    ca_file: str,
    start: Callable[..., "subprocess.Popen[str]"],
    secure: bool,
) -> None:
    """Neither call is answered before the other one has come too."""
    both_came = Barrier(2)

    def script(peer: "Peer") -> None:
        if peer.request():
            both_came.wait(timeout=60)
            peer.send(http())

    far = serve(script, tls=tls if secure else None)
    process = start(PATCHED_LATE, far.url, ca_file)
    assert process.stdout is not None
    assert process.stdout.readline() == "[0, 0]\n"
