"""A played third-party platform, and the kit in front of it as a service provider has it."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefetch_kit.sandbox import Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.stores import FileStores, Stores
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.transport import Transport

APPID, COMPONENT = "wx01", "wxplatform"
SECRET = "canary-component-secret"


@pytest.fixture(scope="package")
def running() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        yield sandbox


@pytest.fixture
def wx(running: Sandbox) -> Sandbox:
    """A WeChat that starts anew with each test: one mini program, one platform, no ticket yet."""
    running.reset()
    running.add_app(APPID, secret="s")
    running.add_user(APPID, "o1", unionid="u1")
    running.add_platform(COMPONENT, secret=SECRET, token="t", aes_key="k" * 43)
    return running


@pytest.fixture
def transport(wx: Sandbox) -> Iterator[Transport]:
    with Transport(base_url=wx.base_url) as made:
        yield made


@pytest.fixture
def stores(tmp_path: Path) -> Stores:
    return FileStores(tmp_path / "state")


@pytest.fixture
def started(transport: Transport, stores: Stores) -> ThirdParty:
    """The platform before WeChat has pushed anything."""
    return ThirdParty(transport, COMPONENT, Secret(SECRET), stores)


@pytest.fixture
def provider(wx: Sandbox, started: ThirdParty) -> ThirdParty:
    """The platform with a ticket."""
    with wx.lock:
        ticket = wx.component(COMPONENT).issue_ticket(now=wx.now())
    started.tickets.keep(Secret(ticket), pushed_at=wx.now())
    return started


@pytest.fixture
def authorize(wx: Sandbox, provider: ThirdParty) -> Callable[..., str]:
    """`authorize(appid)`: the merchant authorizes, and what was granted is kept."""

    def granted(appid: str = APPID, **options: list[int]) -> str:
        since = wx.authorize(COMPONENT, appid, **options).at
        *_, code = wx.component(COMPONENT).codes
        return provider.authorizers.accept(Secret(code), since=since)

    return granted


@pytest.fixture
def calls(wx: Sandbox) -> Callable[[str], int]:
    """How often one of the platform's calls was made, as WeChat counted."""
    return lambda name: wx.count(path=f"/cgi-bin/component/{name}")


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python processes of a given script, whose pipes hold text; none outlives the test."""
    begun: list[subprocess.Popen[str]] = []

    def begin(script: str, *args: str) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        argv = [sys.executable, "-c", script, *args]
        begun.append(subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True))
        return begun[-1]

    yield begin
    for process in begun:
        with process:
            process.kill()
