"""Business domains of a platform and of its merchants, and what can never be sent."""

import ast
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.errors import OutcomeUnknown, Refused, SystemBusy, UrlRefused
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.weixin import domains
from prefetch_kit.weixin.domains import ConfirmFile, MiniProgramDomains, PlatformDomains
from prefetch_kit.weixin.errcodes import ERRCODES
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.weixin.conftest import Serve

APPID, COMPONENT, HOST = "wx01", "wxplatform", "shop.example"
CHANGES = {"modify_wxa_jump_domain", "setwebviewdomain", "setwebviewdomain_directly"}
CODES = {89019, 89020, 89021, 89029, 89231, 86103, 506015}


@pytest.fixture
def platform(transport: Transport, provider: ThirdParty) -> PlatformDomains:
    return PlatformDomains(transport, provider.token)


@pytest.fixture
def merchant(
    transport: Transport, provider: ThirdParty, authorize: Callable[..., str]
) -> MiniProgramDomains:
    """One that authorized the platform."""
    return MiniProgramDomains(transport, provider.authorizers.token(authorize()))


@pytest.fixture
def confirm(
    wx: Sandbox, serve: "Serve", http: Callable[..., bytes]
) -> Callable[[ConfirmFile], None]:
    """Let shop.example answer everything with the content of this file."""

    def confirm(file: ConfirmFile) -> None:
        wx.map_origin(HOST, serve.answers(http(file.content.encode())).url)

    return confirm


def test_way_a(
    platform: PlatformDomains,
    merchant: MiniProgramDomains,
    confirm: Callable[[ConfirmFile], None],
) -> None:
    """First the platform's, proved by its file, then the merchant's; twice is no more than once."""
    confirm(platform.confirm_file())
    platform.add(HOST)
    assert platform.hosts() == {HOST}
    merchant.add(HOST)
    merchant.add(HOST)
    shown = merchant.hosts()
    assert shown.third == shown.effective == {HOST}
    assert merchant.third() == {HOST}
    assert not shown.console | shown.direct


def test_way_b(
    wx: Sandbox, merchant: MiniProgramDomains, confirm: Callable[[ConfirmFile], None]
) -> None:
    """Proved by the mini program's own file; it counts from the next release on."""
    confirm(merchant.confirm_file())
    merchant.add_directly(HOST)
    assert merchant.hosts().direct == {HOST}
    assert not merchant.hosts().effective
    wx.release(APPID)
    assert merchant.hosts().effective == {HOST}


@pytest.mark.parametrize("how", ["listed", "86103"])
def test_a_missing_file_is_one_error_however_it_is_told(
    wx: Sandbox, platform: PlatformDomains, how: str
) -> None:
    """WeChat may refuse the call, or let it succeed and list the domain as invalid."""
    wx.switches.unproved_platform_domain = how  # type: ignore[assignment]
    with pytest.raises(Refused, match="byte for byte") as caught:
        platform.add(HOST)
    assert caught.value.errcode == 86103


def test_a_platform_that_is_not_published(
    transport: Transport, wx: Sandbox, platform: PlatformDomains
) -> None:
    """WeChat then leaves the published list out, and the errcode too; the testing one counts."""
    answer = b'{"testing_wxa_jump_h5_domain":"a.example;b.example"}'
    wx.inject(Fault(kind="raw", body=answer, path="/cgi-bin/component/modify_wxa_jump_domain"))
    assert platform.hosts() == {"a.example", "b.example"}


JUMP, ADDED = "/cgi-bin/component/modify_wxa_jump_domain", "https://a.example;B.example/; ;"


@pytest.mark.parametrize("errcode", ['"errcode":0,', '"errcode":"0",', ""])
def test_hosts_come_with_https_in_front(
    wx: Sandbox, platform: PlatformDomains, errcode: str
) -> None:
    """Some lists are of URLs, and an answer to `get` may lack its errcode."""
    body = f'{{{errcode}"published_wxa_jump_h5_domain":"{ADDED}"}}'
    wx.inject(Fault(kind="raw", body=body, path=JUMP))
    assert platform.hosts() == {"a.example", "b.example"}


def test_a_refused_host_comes_with_https_in_front(wx: Sandbox, platform: PlatformDomains) -> None:
    """It is not taken for one that was added."""
    body = f'{{"errcode":0,"invalid_wxa_jump_h5_domain":"https://{HOST}"}}'
    wx.inject(Fault(kind="raw", body=body, path=JUMP))
    with pytest.raises(Refused, match="86103"):
        platform.add(HOST)


def test_a_busy_system_is_mostly_the_confirm_file(
    wx: Sandbox, platform: PlatformDomains, merchant: MiniProgramDomains
) -> None:
    """For this one call WeChat's staff says so; what it is remains unknown, so the kind stays."""
    wx.inject(Fault(kind="errcode", path=JUMP, errcode=-1))
    with pytest.raises(SystemBusy, match="Look at the confirm file") as caught:
        platform.add(HOST)
    assert caught.value.kind == "transient"
    wx.inject(Fault(kind="errcode", path="/wxa/setwebviewdomain", errcode=-1))
    with pytest.raises(SystemBusy, match="Try again in a moment") as caught:
        merchant.add(HOST)
    assert "confirm file" not in str(caught.value)


def test_refusals_say_which_list_is_meant(
    wx: Sandbox, merchant: MiniProgramDomains, confirm: Callable[[ConfirmFile], None]
) -> None:
    """Each really came over the wire; what people mix up is named beside what is meant."""
    with pytest.raises(Refused, match=r"89020.*业务域名.*https://.*服务器域名"):
        merchant.add(HOST)
    wx.add_domain(APPID, "other.example", level="platform")
    with pytest.raises(Refused, match=r"89021.*业务域名.*服务器域名"):
        merchant.add(HOST)
    with pytest.raises(Refused, match="86103"):
        merchant.add_directly(HOST)
    confirm(merchant.confirm_file())
    wx.switches.apps_per_domain = 0
    with pytest.raises(Refused, match="506015"):
        merchant.add_directly(HOST)
    wx.deny(APPID, 89231)
    with pytest.raises(Refused, match=r"89231.*person"):
        merchant.third()


def test_the_table_holds_every_code_of_these_pages() -> None:
    """Each has a remedy, and nothing of it is worth repeating."""
    assert ERRCODES.keys() >= CODES
    assert {ERRCODES[code].kind for code in CODES} == {"permanent"}


NO_HOSTS = ["", "localhost", "127.0.0.1", "2130706433", "[::1]", "店.example", "shop example"]
NO_HOSTS += [f"{HOST}:443", f"{HOST}/", f"a@{HOST}", f"https://{HOST}", f"{HOST}?x", f"{HOST};"]


@pytest.mark.parametrize("host", NO_HOSTS)
def test_only_a_name_is_ever_added(
    wx: Sandbox, platform: PlatformDomains, merchant: MiniProgramDomains, host: str
) -> None:
    """No port, no address, no scheme, no list: refused before anything is sent."""
    before = len(wx.requests())
    for add in (platform.add, merchant.add, merchant.add_directly):
        with pytest.raises(UrlRefused):
            add(host)
    assert len(wx.requests()) == before


def test_nothing_but_add_and_get_can_be_sent(
    wx: Sandbox,
    platform: PlatformDomains,
    merchant: MiniProgramDomains,
    confirm: Callable[[ConfirmFile], None],
) -> None:
    """Every public method, and every word in the module that could be another action."""
    for owner in (platform, merchant):
        confirm(owner.confirm_file())
        for name, method in inspect.getmembers(owner, inspect.ismethod):
            if not name.startswith("_"):
                method(*[HOST for _ in inspect.signature(method).parameters])
    made = [each for each in wx.requests() if each.path.rpartition("/")[2] in CHANGES]
    assert {each.action for each in made} == {"add", "get"}
    assert {each.path.rpartition("/")[2] for each in made} == CHANGES
    tree = ast.walk(ast.parse(inspect.getsource(domains)))
    words = [node.value for node in tree if isinstance(node, ast.Constant)]
    assert not {"set", "delete"} & set(words)
    assert words.count("action") == 2


@pytest.mark.parametrize(
    "file",
    [
        '"file_name":"../x.txt","file_content":"a"',
        '"file_name":"x.html","file_content":"a"',
        '"file_name":".txt","file_content":"a"',
        '"file_name":"x.txt\\n","file_content":"a"',
        '"file_name":"x.txt","file_content":""',
        '"file_name":"x.txt","file_content":"\\u0000"',
        '"file_name":"x.txt","file_content":"\\ufeffa"',
        '"file_name":"x.txt","file_content":1',
        '"file_name":"x.txt"',
    ],
)
def test_a_file_that_is_not_served(wx: Sandbox, merchant: MiniProgramDomains, file: str) -> None:
    """A name with a path in it, or bytes that are no plain text, come from nobody we know."""
    body = f'{{"errcode":0,{file}}}'.encode()
    wx.inject(Fault(kind="raw", body=body, path="/wxa/get_webviewdomain_confirmfile"))
    with pytest.raises(OutcomeUnknown, match="confirm file"):
        merchant.confirm_file()


def test_lists_that_are_none(wx: Sandbox, merchant: MiniProgramDomains) -> None:
    """A wrong type is no empty list."""
    body = b'{"errcode":0,"effective_webviewdomain":"https://shop.example"}'
    wx.inject(Fault(kind="raw", body=body, path="/wxa/get_effective_webviewdomain"))
    with pytest.raises(OutcomeUnknown, match="lists"):
        merchant.hosts()
