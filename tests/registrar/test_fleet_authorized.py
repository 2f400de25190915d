"""A fleet of all merchants who authorized a third-party platform."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from prefetch_kit.errors import ListRefused, PrefetchKitError
from prefetch_kit.registrar.app_list import spool_targets
from prefetch_kit.registrar.fleet import Fleet, Limits
from prefetch_kit.registrar.project import Project, load_project
from prefetch_kit.registrar.spool import Spool
from prefetch_kit.sandbox import Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin import authorizers
from prefetch_kit.weixin.sources import TokenSources
from prefetch_kit.weixin.stores import place_of
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.registrar.conftest import Merchants

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


def test_lost_refresh_tokens_are_had_by_pages(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None]
) -> None:
    """With all that was kept gone, two pages are enough for all merchants, not one each."""
    for appid in merchants.add(5):
        authorize(appid)
    for path in project.state_dir.rglob("granted-to-*"):
        os.unlink(path)
    assert Fleet(project, merchants.told).plan().exit_code == 0
    assert merchants.wx.count(path="/cgi-bin/component/api_get_authorizer_list") == 2


@pytest.mark.usefixtures("platform")
def test_those_of_a_file_are_looked_for_together(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None]
) -> None:
    """One page for what was lost, one for all who never authorized, and none for each."""
    for appid in merchants.add(6)[:3]:
        authorize(appid)
    for path in project.state_dir.rglob("granted-to-*"):
        os.unlink(path)
    (project.path.parent / "apps.csv").write_text("\n".join(["appid", *merchants.appids]))
    Fleet(replace(project, apps=project.path.parent / "apps.csv"), merchants.told).plan()
    outcomes = [merchants.told.results[appid].outcome for appid in merchants.appids]
    assert outcomes == ["done"] * 3 + ["failed"] * 3
    assert merchants.wx.count(path="/cgi-bin/component/api_get_authorizer_list") == 2


def test_a_store_that_cannot_be_used_is_its_merchants_own_matter(
    merchants: "Merchants", project: Project, authorize: Callable[[str], None]
) -> None:
    """One file that others may read: that merchant fails and says so, all others are planned."""
    for appid in merchants.add(3):
        authorize(appid)
    (granted,) = (project.state_dir / place_of(project) / "wxm00001").glob("granted-to-*.json")
    granted.chmod(0o644)
    Fleet(project, merchants.told).plan()
    results = merchants.told.results
    assert [results[appid].outcome for appid in merchants.appids] == ["done", "failed", "done"]
    assert "other users may read or write it" in results["wxm00001"].cause


def test_a_merchant_on_two_pages(
    merchants: "Merchants",
    project: Project,
    platform: ThirdParty,
    authorize: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another came to the front of the list between its pages: nobody is left out for that."""
    monkeypatch.setattr(authorizers, "_PAGE", 2)
    first, *rest = merchants.add(4)
    for appid in rest:
        authorize(appid)

    class Noted(Spool):
        def add(self, appid: str, aim: str) -> bool:
            granted = merchants.wx.component(PLATFORM).authorizations
            if first not in granted:
                later = dict(granted)
                merchants.wx.authorize(PLATFORM, first)
                for each in later:
                    granted[each] = granted.pop(each)
            return super().add(appid, aim)

    with Noted() as spool:
        spool_targets(project, platform.authorizers, spool)
        assert [appid for appid, _ in spool] == rest


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
