"""A fleet of all merchants who authorized a third-party platform."""

import json
import socket
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.addresses import wechat_name
from prefetch_kit.errors import ConfigError, ListRefused, PrefetchKitError
from prefetch_kit.fleet.app_list import fill_targets
from prefetch_kit.fleet.project import Project, load_project
from prefetch_kit.fleet.run import Fleet, Limits
from prefetch_kit.fleet.targets import Targets
from prefetch_kit.fleet.workers import Summary
from prefetch_kit.sandbox import Fault, Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin import merchant_list
from prefetch_kit.weixin.domains import PlatformDomains
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.token_sources import TokenSources
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.conftest import Origin
    from tests.fleet.conftest import Merchants

pytestmark = pytest.mark.slow

LIST = "/cgi-bin/component/api_get_authorizer_list"
INFO = "/cgi-bin/component/api_get_authorizer_info"
PLATFORM, SECRET = "wxplatform", "canary-platform-secret"
TOML = """
api_base_url = "{base_url}"
[apps]
authorized = true
[urls]
pre_fetch = "https://shop.example/p/{{appid}}/pre_fetch"
[tokens]
component_appid = "wxplatform"
component_secret = {{ env = "PLATFORM_SECRET" }}
"""


@pytest.fixture
def project(wx: Sandbox, tmp_path: Path) -> Project:
    """A platform without merchants."""
    wx.add_platform(PLATFORM, secret=SECRET, token="t", aes_key="k" * 43)
    path = tmp_path / "prefetch.toml"
    path.write_text(TOML.format(base_url=wx.base_url))
    return load_project(path, environment={"PLATFORM_SECRET": SECRET})


@pytest.fixture
def platform(wx: Sandbox, project: Project, transport: Transport) -> ThirdParty:
    """The same as the receiver of pushes has it: with a ticket."""
    platform = TokenSources(project, transport).platform
    assert platform is not None
    with wx.lock:
        ticket = wx.component(PLATFORM).issue_ticket(now=wx.now())
    platform.tickets.keep(Secret(ticket), pushed_at=wx.now())
    return platform


@pytest.fixture
def authorize(wx: Sandbox, platform: ThirdParty) -> Callable[[str], None]:
    """A merchant authorizes, and the platform exchanges the code it is pushed."""

    def granted(appid: str) -> None:
        since = wx.authorize(PLATFORM, appid).at
        *_, code = wx.component(PLATFORM).codes
        platform.authorizers.accept(Secret(code), since=since)

    return granted


def test_every_merchant_is_registered(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None]
) -> None:
    """Those who authorized, and nobody else; one who takes it back is gone from the list."""
    for appid in merchants.add(6)[:5]:
        authorize(appid)
    assert Fleet(project, merchants.told).apply(Limits()).exit_code == 0
    assert [bool(merchants.wx.settings(a)) for a in merchants.appids] == [True] * 5 + [False]
    merchants.wx.revoke(PLATFORM, merchants.appids[0])
    merchants.told.results.clear()
    assert Fleet(project, merchants.told).plan().exit_code == 0
    assert sorted(merchants.told.results) == merchants.appids[1:5]


def test_official_accounts_are_left_out(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None]
) -> None:
    """They authorize a platform too: they are counted, spoil no canary, and fail nothing."""
    others = [f"wx0official{number}" for number in range(12)]
    for appid in others:
        merchants.wx.add_app(appid, secret="s", kind="officialaccount")
    for appid in [*others, *merchants.add(6)]:
        authorize(appid)
    for summary in (Fleet(project).plan(), Fleet(project, merchants.told).apply(Limits())):
        assert (summary.exit_code, summary.tally["done"], summary.tally["skipped"]) == (0, 6, 12)
    assert {merchants.told.results[appid].errcode for appid in others} == {40166}


def test_an_official_account_on_a_list_of_ones_own_fails(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None], tmp_path: Path
) -> None:
    """Somebody wrote it there, and has to know."""
    merchants.wx.add_app("wx0official", secret="s", kind="officialaccount")
    authorize("wx0official")
    (tmp_path / "apps.csv").write_text("appid\nwx0official\n")
    summary = Fleet(replace(project, apps=tmp_path / "apps.csv")).plan()
    assert (summary.exit_code, summary.tally["failed"]) == (4, 1)


def lose_authorizations(project: Project) -> None:
    path = project.state_dir / wechat_name(project.api_base_url) / "tokens.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("DELETE FROM records WHERE name LIKE 'granted-to-%'")


def test_lost_refresh_tokens_are_had_by_pages(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None]
) -> None:
    """With all that was kept gone, the one reading that names the merchants is enough."""
    for appid in merchants.add(5):
        authorize(appid)
    lose_authorizations(project)
    assert Fleet(project, merchants.told).plan().exit_code == 0
    assert merchants.wx.count(path=LIST) == 1
    assert merchants.told.read_of_list == [(5, 5)]


def of_a_file(project: Project, appids: list[str]) -> Project:
    """The same project, with a list of these mini programs."""
    apps = project.path.parent / "apps.csv"
    apps.write_text("\n".join(["appid", *appids]))
    return replace(project, apps=apps)


@pytest.mark.usefixtures("platform")
def test_many_of_a_file_are_looked_for_together(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None]
) -> None:
    """One reading before anything is begun, and shown; nobody is looked for on the way."""
    for appid in merchants.add(15):
        authorize(appid)
    lose_authorizations(project)
    Fleet(of_a_file(project, merchants.appids), merchants.told).plan()
    assert {result.outcome for result in merchants.told.results.values()} == {"done"}
    assert merchants.told.read_of_list == [(15, 15)]
    assert merchants.wx.count(path=INFO) == 0


@pytest.mark.usefixtures("platform")
def test_who_never_authorized_is_not_waited_for(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None]
) -> None:
    """The list is read once at most for all of them."""
    for appid in merchants.add(6)[:3]:
        authorize(appid)
    lose_authorizations(project)
    Fleet(of_a_file(project, merchants.appids), merchants.told).plan()
    outcomes = [merchants.told.results[appid].outcome for appid in merchants.appids]
    assert outcomes == ["done"] * 3 + ["failed"] * 3
    assert merchants.wx.count(path=LIST) <= 1


def test_one_of_a_large_platform_needs_no_list(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None]
) -> None:
    """Its refresh token is asked for alone, however many the platform has."""
    for appid in merchants.add(450):
        merchants.wx.authorize(PLATFORM, appid)
    authorize(merchants.appids[0])
    lose_authorizations(project)
    token = merchants.wx.refresh_token(PLATFORM, merchants.appids[0])
    body = json.dumps({"authorization_info": {"authorizer_refresh_token": token}})
    merchants.wx.inject(Fault(kind="raw", path=INFO, body=body))
    Fleet(of_a_file(project, merchants.appids[:1]), merchants.told).plan()
    assert merchants.told.results[merchants.appids[0]].outcome == "done"
    assert (merchants.wx.count(path=LIST), merchants.told.read_of_list) == (0, [])


def test_a_store_that_cannot_be_used_is_its_merchants_own_matter(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None]
) -> None:
    """One old file that others may read: that merchant fails and says so, all others do not."""
    for appid in merchants.add(3):
        authorize(appid)
    first = project.state_dir / wechat_name(project.api_base_url) / "wxm00001"
    first.mkdir()
    (first / f"granted-to-{PLATFORM}.json").write_text("{}")
    (first / f"granted-to-{PLATFORM}.json").chmod(0o644)
    Fleet(project, merchants.told, pace=replace(project.pace, workers=1)).plan()
    results = merchants.told.results
    assert [results[appid].outcome for appid in merchants.appids] == ["done", "failed", "done"]
    assert "other users may read or write" in results["wxm00001"].cause


@pytest.mark.parametrize("kind", ["errcode", "lose"])
def test_a_page_of_the_list_is_asked_for_again(
    merchants: "Merchants",
    project: Project,
    authorize: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    kind: Any,
) -> None:
    """Where WeChat is busy, or its answer is lost, no fleet ends before it began."""
    monkeypatch.setattr("random.uniform", lambda *_: 0.0)
    for appid in merchants.add(3):
        authorize(appid)
    merchants.wx.inject(Fault(kind=kind, path=LIST, times=2))
    assert Fleet(project, merchants.told).plan().exit_code == 0
    assert len(merchants.told.results) == 3


def test_a_merchant_on_two_pages(
    merchants: "Merchants",
    project: Project,
    platform: ThirdParty,
    authorize: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another came to the front of the list between its pages: nobody is left out for that."""
    monkeypatch.setattr(merchant_list, "PAGE", 2)
    first, *rest = merchants.add(4)
    for appid in rest:
        authorize(appid)

    class Noted(Targets):
        def add(self, appid: str, target: str = "") -> bool:
            granted = merchants.wx.component(PLATFORM).authorizations
            if first not in granted:
                later = dict(granted)
                merchants.wx.authorize(PLATFORM, first)
                for each in later:
                    granted[each] = granted.pop(each)
            return super().add(appid, target)

    with Noted() as targets:
        fill_targets(project, platform.authorizers, targets)
        assert [appid for appid, _ in targets] == rest


def test_a_platform_without_merchants(
    merchants: "Merchants", project: Project, platform: ThirdParty
) -> None:
    """Nothing to do is said, not done."""
    with pytest.raises(ListRefused, match="names no mini program"):
        Fleet(project, merchants.told).apply(Limits())


def test_a_platform_without_a_ticket(merchants: "Merchants", project: Project) -> None:
    """One sentence, before anything is begun."""
    with pytest.raises(PrefetchKitError, match="component_verify_ticket") as caught:
        Fleet(project, merchants.told).apply(Limits())
    assert "canary" not in str(caught.value)
    assert merchants.told.fleets == []


JUMP, WEBVIEW = "/cgi-bin/component/modify_wxa_jump_domain", "/wxa/setwebviewdomain"


Apply = Callable[..., Summary]


@pytest.fixture
def without_domains(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None], origin: "Origin"
) -> list[str]:
    """Six merchants, whose URLs are on a host that is nobody's business domain yet."""
    merchants.wx.map_origin("new.example", origin.url)
    text = project.path.read_text().replace("shop.example", "new.example")
    project.path.write_text(text)
    for appid in merchants.add(6):
        authorize(appid)
    merchants.switch_off(host="new.example")
    return merchants.appids


@pytest.fixture
def apply(merchants: "Merchants", project: Project, without_domains: list[str]) -> Apply:
    """Apply with `--ensure-domain`, canaries first."""

    def apply(max_changes: int | None = None, **pace: Any) -> Summary:
        again = load_project(project.path, environment={"PLATFORM_SECRET": SECRET})
        made = Fleet(again, merchants.told, pace=replace(again.pace, **pace))
        return made.apply(Limits(ensure_domain=True, max_changes=max_changes))

    return apply


@pytest.fixture
def confirmed(platform: ThirdParty, transport: Transport, origin: "Origin") -> None:
    """The host serves the platform's confirm file."""
    file = PlatformDomains(transport, platform.token).confirm_file()
    origin.reply(file.content.encode())


@pytest.mark.usefixtures("confirmed")
def test_domains_are_added_first(merchants: "Merchants", apply: Apply) -> None:
    """To the platform once, to each mini program, and not looked at again when all is set."""
    assert apply(canary=0).exit_code == 0
    assert merchants.urls() == {"pre_fetch"}
    wx = merchants.wx
    assert wx.count(path=JUMP, action="add") == 1
    assert wx.count(path=WEBVIEW, action="add") == 6
    asked = len(wx.requests())
    assert apply().exit_code == 0
    again = [request for request in wx.requests()[asked:] if request.path.startswith("/wxa/")]
    assert [(r.path, r.action) for r in again] == [("/wxa/fetchdatasetting", "get")] * 6


def test_no_url_is_set_without_the_confirm_file(
    merchants: "Merchants", apply: Apply, origin: "Origin"
) -> None:
    """The canaries say what to serve, and nobody else is tried."""
    origin.reply(b"", status="404 Not Found")
    assert apply().exit_code == 4
    results = merchants.told.results.values()
    causes = {result.cause for result in results if result.outcome == "failed"}
    assert len(causes) == 1
    assert "PREFETCH_CONFIRM_FILES" in causes.pop()
    wx = merchants.wx
    assert wx.count(action="add") == wx.count(action="set_pre_fetch") == 0


def test_who_waits_for_the_platforms_list_stops_too(
    merchants: "Merchants", project: Project, without_domains: list[str], origin: "Origin"
) -> None:
    """Ctrl-C while the first one is at it: the others send nothing any more."""
    again = load_project(project.path, environment={"PLATFORM_SECRET": SECRET})
    fleet = Fleet(again, merchants.told, pace=replace(again.pace, canary=0))

    def refuse(connection: socket.socket) -> None:
        fleet._stopping.set()
        connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    origin.play = refuse
    fleet.apply(Limits(ensure_domain=True))
    assert len(origin.requests) == 1
    assert merchants.outcomes() == {"failed": 1, "left": 5}


@pytest.mark.usefixtures("confirmed")
def test_no_host_is_added_beyond_max_changes(merchants: "Merchants", apply: Apply) -> None:
    """Whose URL is not set needs no domain."""
    assert apply(max_changes=2, canary=0).exit_code == 1
    wx = merchants.wx
    assert wx.count(path=WEBVIEW, action="add") == wx.count(action="set_pre_fetch") == 2
    assert merchants.outcomes()["done"] == 2


@pytest.mark.usefixtures("confirmed")
@pytest.mark.parametrize("why", ["89231", "89029"])
def test_accounts_that_can_have_no_more_domains(
    merchants: "Merchants", apply: Apply, why: str
) -> None:
    """A person's, or one with 300: among the canaries they say nothing of the others."""
    odd = merchants.appids[:2]
    for appid in odd:
        if why == "89231":
            merchants.wx.deny(appid, 89231)
        else:
            with merchants.wx.lock:
                webview = merchants.wx.app(appid).webview
                webview.third += [f"https://{n}.example" for n in range(300)]
    assert apply().exit_code == 1
    results = merchants.told.results
    outcomes = [results[appid].outcome for appid in merchants.appids]
    assert outcomes == ["failed"] * 2 + ["done"] * 4
    for appid in odd:
        assert why in results[appid].cause
        assert appid not in results[appid].cause


@pytest.mark.usefixtures("confirmed")
def test_an_app_with_a_secret_of_its_own(
    merchants: "Merchants", project: Project, without_domains: list[str]
) -> None:
    """It has its domains from elsewhere: its URL is set, and nothing else of it looked at."""
    merchants.wx.add_app("wxown", secret="its own")
    merchants.wx.add_domain("wxown", "new.example")
    (project.path.parent / "apps.csv").write_text(f"appid\nwxown\n{without_domains[0]}\n")
    again = load_project(project.path, environment={"PLATFORM_SECRET": SECRET})
    mixed = replace(
        again,
        apps=project.path.parent / "apps.csv",
        app_secrets={"wxown": Secret("its own")},
    )
    assert Fleet(mixed, merchants.told).apply(Limits(ensure_domain=True)).exit_code == 0
    assert merchants.wx.count(path=WEBVIEW, action="add") == 1


def test_only_a_platform_can_add_domains(merchants: "Merchants", tmp_path: Path) -> None:
    """Said before anything is sent or written down."""
    merchants.add(1)
    with pytest.raises(ConfigError, match=r"component_appid.*--ensure-domain"):
        merchants.fleet().apply(Limits(ensure_domain=True))
    assert merchants.wx.requests() == []
    assert not list(tmp_path.rglob("journal.sqlite3"))


TOKEN_OF_PLATFORM = "/cgi-bin/component/api_component_token"
TOKEN_OF_MERCHANT = "/cgi-bin/component/api_authorizer_token"
SETTINGS = "/wxa/fetchdatasetting"


@pytest.mark.parametrize(
    ("path", "errcode", "exit_code"),
    [
        (TOKEN_OF_PLATFORM, 40001, 4),
        (TOKEN_OF_PLATFORM, 40164, 4),
        (TOKEN_OF_PLATFORM, 61005, 4),
        (TOKEN_OF_PLATFORM, 61011, 4),
        (TOKEN_OF_PLATFORM, 45009, 75),
        (TOKEN_OF_MERCHANT, 45009, 75),
        (TOKEN_OF_MERCHANT, 61004, 4),
        (SETTINGS, 61004, 4),
    ],
)
def test_what_is_refused_to_all_is_asked_once(
    merchants: "Merchants",
    project: Project,
    authorize: Callable[[str], None],
    path: str,
    errcode: int,
    exit_code: int,
) -> None:
    """One call and one sentence, whatever the number of merchants."""
    for appid in merchants.add(12):
        authorize(appid)
    listed = write_list(project, merchants.appids)
    forget_access_tokens(project)
    before = merchants.wx.count(path=path)
    merchants.wx.inject(Fault(kind="errcode", path=path, errcode=errcode, times=None))
    pace = replace(project.pace, workers=1, canary=0)
    summary = Fleet(replace(listed, pace=pace), merchants.told).plan()
    assert (summary.exit_code, merchants.wx.count(path=path) - before) == (exit_code, 1)
    assert str(errcode) in str(summary.stopped_because)
    assert len(merchants.told.results) == 1


def test_without_a_ticket_nobody_is_asked(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None]
) -> None:
    """The sentence says where tickets come from."""
    for appid in merchants.add(12):
        authorize(appid)
    path = project.state_dir / wechat_name(project.api_base_url) / "tokens.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("DELETE FROM records WHERE account = ?", (PLATFORM,))
    forget_access_tokens(project)
    summary = Fleet(write_list(project, merchants.appids), merchants.told).plan()
    assert summary.exit_code == 4
    assert "component_verify_ticket" in str(summary.stopped_because)


def test_what_was_set_before_all_are_refused_exits_with_one(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None]
) -> None:
    """Something was sent, so it is not said that nothing was."""
    for appid in merchants.add(12):
        authorize(appid)
    merchants.switch_off()
    merchants.wx.inject(Fault(kind="errcode", errcode=61004, after=6, times=None))
    pace = replace(project.pace, workers=1, canary=0)
    assert Fleet(project, merchants.told, pace=pace).apply().exit_code == 1


def write_list(project: Project, appids: list[str]) -> Project:
    """The same project, with a list of its own."""
    path = project.path.with_name("apps.csv")
    path.write_text("\n".join(["appid", *appids]))
    return replace(project, apps=path)


def forget_access_tokens(project: Project) -> None:
    """Let those of the merchants, and the platform's own, have ended."""
    path = project.state_dir / wechat_name(project.api_base_url) / "tokens.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        for appid, name, record in other.execute("SELECT account, name, record FROM records"):
            if name.startswith("granted-to-") or name == "component_token":
                ended = json.dumps(json.loads(record) | {"expires_at": 0})
                where = "UPDATE records SET record = ? WHERE account = ? AND name = ?"
                other.execute(where, (ended, appid, name))
