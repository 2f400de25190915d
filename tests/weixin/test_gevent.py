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


# A worker's modules; those of the commands run under no server.
WHAT_IS_HELD = """
import importlib
import inspect
import pkgutil
import sys
import warnings
import prefetch_kit

SERVED = ["cache", "concurrency", "endpoint", "pushes", "weixin", "secret", "logs", "errors"]
for package in SERVED:
    found = importlib.import_module(f"prefetch_kit.{package}")
    for each in pkgutil.walk_packages(getattr(found, "__path__", []), f"{found.__name__}."):
        importlib.import_module(each.name)

warnings.simplefilter("ignore")
from gevent import monkey
monkey.patch_all()
old = {id(value): f"{module}.{name}" for module, names in monkey.saved.items()
       for name, value in names.items() if callable(value)}

def held_by(value, module):
    yield value
    if inspect.isfunction(value):
        yield from value.__defaults__ or ()
        yield from (value.__kwdefaults__ or {}).values()
    elif inspect.isclass(value) and value.__module__ == module:
        yield from value.__mro__
        for each in vars(value).values():
            yield from held_by(each, module)

for name, module in sorted(sys.modules.items()):
    if any(name.startswith(f"prefetch_kit.{package}") for package in SERVED):
        for value in vars(module).values():
            for each in held_by(value, name):
                if id(each) in old:
                    print(name, old[id(each)])
print("end")
"""


def test_nothing_is_held_that_gevent_exchanges(
    start: Callable[..., "subprocess.Popen[str]"],
) -> None:
    """No module of a worker has an old function, class or base in a name or a default."""
    process = start(WHAT_IS_HELD)
    assert process.stdout is not None
    assert process.stdout.read() == "end\n"
