"""Whether WeChat would pull from a host, and both ways of making it do so."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.errors import ConfirmFileMissing, DomainMissing, OutcomeUnknown, Refused
from prefetch_kit.registrar.domains import DomainStatus, HostDomains
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.domains import ConfirmFile, MiniProgramDomains, PlatformDomains
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.token_stores.file import FileStores
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.conftest import Origin

APPID, COMPONENT, HOST = "wx02", "wxplatform", "shop.example"
JUMP = "/cgi-bin/component/modify_wxa_jump_domain"
RULES = ["permission", "account", "platform", "mini program"]


@pytest.fixture
def provider(wx: Sandbox, transport: Transport, tmp_path: Path) -> ThirdParty:
    """A platform that one merchant authorized."""
    wx.add_app(APPID, secret="s")
    wx.add_platform(COMPONENT, secret="s", token="t", aes_key="k" * 43)
    made = ThirdParty(transport, COMPONENT, Secret("s"), FileStores(tmp_path / "state"))
    with wx.lock:
        ticket = wx.component(COMPONENT).issue_ticket(now=wx.now())
    made.tickets.keep(Secret(ticket), pushed_at=wx.now())
    return made


@pytest.fixture
def authorize(wx: Sandbox, provider: ThirdParty) -> Callable[..., None]:
    def authorize(**options: list[int]) -> None:
        since = wx.authorize(COMPONENT, APPID, **options).at
        *_, code = wx.component(COMPONENT).codes
        provider.authorizers.accept(Secret(code), since=since)

    return authorize


@pytest.fixture
def platform(transport: Transport, provider: ThirdParty) -> PlatformDomains:
    return PlatformDomains(transport, provider.token)


@pytest.fixture
def merchant(
    transport: Transport, provider: ThirdParty, authorize: Callable[..., None]
) -> MiniProgramDomains:
    authorize()
    return MiniProgramDomains(transport, provider.authorizers.token(APPID))


@pytest.fixture
def domains(
    transport: Transport, platform: PlatformDomains, merchant: MiniProgramDomains
) -> HostDomains:
    return HostDomains(APPID, HOST, transport=transport, platform=platform, mini_program=merchant)


def broken(standing: DomainStatus) -> list[str]:
    assert all(verdict.remedy for verdict in standing.broken)
    return [verdict.rule for verdict in standing.broken]


def serve(origin: "Origin", file: ConfirmFile) -> None:
    origin.reply(file.content.encode())


def test_nothing_is_there(wx: Sandbox, domains: HostDomains) -> None:
    """Every rule has its verdict, and looking changes nothing."""
    standing = domains.inspect()
    assert [verdict.rule for verdict in standing.verdicts] == RULES
    assert broken(standing) == ["platform", "mini program"]
    assert wx.count(action="add") == 0
    with pytest.raises(DomainMissing, match=r"业务域名.*--ensure-domain.*服务器域名"):
        standing.check()


def test_through_the_platform(
    wx: Sandbox, domains: HostDomains, platform: PlatformDomains, origin: "Origin"
) -> None:
    """Both lists, once each; again, nothing is added."""
    serve(origin, platform.confirm_file())
    for _ in range(2):
        assert broken(domains.ensure(directly=False)) == []
        assert wx.count(action="add") == 2
    domains.inspect().check()


def test_below_a_domain_of_the_platform(
    wx: Sandbox, transport: Transport, platform: PlatformDomains, merchant: MiniProgramDomains
) -> None:
    """Where shop.example is there, a.shop.example needs no other file."""
    wx.add_domain(APPID, HOST, level="platform")
    below = HostDomains(
        APPID, f"a.{HOST}", transport=transport, platform=platform, mini_program=merchant
    )
    assert broken(below.ensure(directly=False)) == []
    assert wx.count(path=JUMP, action="add") == 0


def test_directly(
    wx: Sandbox, domains: HostDomains, merchant: MiniProgramDomains, origin: "Origin"
) -> None:
    """Added once, and told to wait for a release; the platform is not needed."""
    serve(origin, merchant.confirm_file())
    for _ in range(2):
        standing = domains.ensure(directly=True)
        assert broken(standing) == ["mini program"]
        assert "not released yet" in standing.broken[0].says
        assert "Release" in (standing.broken[0].remedy or "")
        assert wx.count(action="add") == 1
    wx.release(APPID)
    assert broken(domains.inspect()) == []


def test_through_the_platform_though_it_was_set_directly(
    wx: Sandbox,
    domains: HostDomains,
    platform: PlatformDomains,
    merchant: MiniProgramDomains,
    origin: "Origin",
) -> None:
    """It need not wait for the release: with the platform's it counts at once."""
    serve(origin, merchant.confirm_file())
    domains.ensure(directly=True)
    serve(origin, platform.confirm_file())
    assert broken(domains.ensure(directly=False)) == []
    assert wx.count(path=JUMP, action="add") == 1


@pytest.mark.parametrize("directly", [True, False])
@pytest.mark.parametrize(
    ("before", "status", "says"),
    [
        (b"\xef\xbb\xbf", "200 OK", "byte order mark"),
        (b"\n", "200 OK", "line breaks around"),
        (b"<html>", "200 OK", "something else"),
        (b"", "404 Not Found", "it answers 404"),
        (b"", "302 Found", "it redirects"),
    ],
)
def test_a_file_that_is_not_right(
    wx: Sandbox,
    domains: HostDomains,
    platform: PlatformDomains,
    merchant: MiniProgramDomains,
    origin: "Origin",
    before: bytes,
    status: str,
    says: str,
    directly: bool,
) -> None:
    """Found out here, with what is wrong and the setting that mends it, before WeChat looks."""
    file = (merchant if directly else platform).confirm_file()
    origin.reply(before + file.content.encode(), status=status)
    with pytest.raises(ConfirmFileMissing, match=says) as caught:
        domains.ensure(directly=directly)
    assert f'PREFETCH_CONFIRM_FILES=\'{{"{file.name}": "{file.content}"}}\'' in str(caught.value)
    assert wx.count(action="add") == 0


@pytest.mark.parametrize("directly", [True, False])
def test_a_file_that_only_weixin_can_reach(domains: HostDomains, directly: bool) -> None:
    """Unchecked here, it is WeChat's to refuse."""
    with pytest.raises(OutcomeUnknown, match="no origin"):
        domains.ensure(directly=directly)
    with pytest.raises(Refused, match="86103"):
        domains.ensure(directly=directly, checks_file=False)


def test_permission_set_18(
    wx: Sandbox, domains: HostDomains, authorize: Callable[..., None]
) -> None:
    """A merchant who granted something else is asked to grant it, and nothing is added."""
    authorize(permissions=[1])
    assert broken(domains.inspect()) == ["permission"]
    with pytest.raises(DomainMissing, match=r"61007.*permission set 18"):
        domains.ensure(directly=False)
    assert wx.count(action="add") == 0


def test_the_account_of_a_person(wx: Sandbox, domains: HostDomains) -> None:
    """WeChat gives such an account no business domains at all."""
    wx.deny(APPID, 89231)
    standing = domains.inspect()
    assert [verdict.rule for verdict in standing.verdicts] == ["permission", "account"]
    with pytest.raises(DomainMissing, match=r"89231.*another account"):
        domains.ensure(directly=True)


def test_other_refusals_are_raised(wx: Sandbox, domains: HostDomains) -> None:
    """What says nothing of the domain is no verdict on it."""
    wx.deny(APPID, 61003)
    with pytest.raises(Refused, match="61003"):
        domains.inspect()


@pytest.mark.parametrize("path", [JUMP, "/wxa/setwebviewdomain"])
def test_an_answer_that_is_lost(
    wx: Sandbox, domains: HostDomains, platform: PlatformDomains, origin: "Origin", path: str
) -> None:
    """What was added is read back, so a lost answer is no failure and is not repeated."""
    serve(origin, platform.confirm_file())
    wx.inject(Fault(kind="lose", path=path, action="add"))
    assert broken(domains.ensure(directly=False)) == []
    assert wx.count(path=path, action="add") == 1


def test_a_busy_system_that_added_it_all_the_same(
    wx: Sandbox, domains: HostDomains, platform: PlatformDomains, origin: "Origin"
) -> None:
    """-1 rules nothing out: what is there when it is read back was added."""
    serve(origin, platform.confirm_file())
    add = domains.platform.add

    def busy(host: str) -> None:
        add(host)
        wx.inject(Fault(kind="errcode", path=JUMP, action="add", errcode=-1))
        add(host)

    object.__setattr__(domains.platform, "add", busy)
    assert broken(domains.ensure(directly=False)) == []


def test_an_addition_that_never_came(
    wx: Sandbox, domains: HostDomains, platform: PlatformDomains, origin: "Origin"
) -> None:
    """Read back and not there: the error is that of the call."""
    serve(origin, platform.confirm_file())
    wx.inject(Fault(kind="close", path=JUMP, action="add"))
    with pytest.raises(OutcomeUnknown, match="modify_wxa_jump_domain"):
        domains.ensure(directly=False)
