"""Business domains in the sandbox, both ways, with confirm files that it fetches."""

from typing import TYPE_CHECKING, Any

import pytest

from prefetch_kit.sandbox import Sandbox

if TYPE_CHECKING:
    from tests.conftest import Origin
    from tests.sandbox.conftest import Client

APPID, COMPONENT, HOST = "wx02", "wxplatform", "shop.example"
JUMP, THIRD = "/cgi-bin/component/modify_wxa_jump_domain", "/wxa/setwebviewdomain"
DIRECT, EFFECTIVE = "/wxa/setwebviewdomain_directly", "/wxa/get_effective_webviewdomain"
FILES = {JUMP: "/cgi-bin/component/get_domain_confirmfile"}
FILES[DIRECT] = "/wxa/get_webviewdomain_confirmfile"


class Provider:
    """A service provider with one merchant, who makes each call by hand."""

    def __init__(self, wx: Sandbox, client: "Client") -> None:
        self.wx, self.client = wx, client
        wx.add_app(APPID, secret="s")
        wx.add_platform(COMPONENT, secret="s", token="t", aes_key="k" * 43)
        with wx.lock:
            ticket = wx.component(COMPONENT).issue_ticket(now=wx.now())
        body = {"component_appid": COMPONENT, "component_appsecret": "s"}
        body["component_verify_ticket"] = ticket
        answer = client.post("/cgi-bin/component/api_component_token", body)
        self.component_token = answer["component_access_token"]
        self.merchant_token = self.authorize(APPID)

    def authorize(self, appid: str, *, permissions: list[int] | None = None) -> str:
        self.wx.authorize(COMPONENT, appid, permissions=permissions)
        given = {"component_appid": COMPONENT, "authorizer_appid": appid}
        given["authorizer_refresh_token"] = self.wx.refresh_token(COMPONENT, appid)
        path, token = "/cgi-bin/component/api_authorizer_token", self.component_token
        answer = self.client.post(path, given, component_access_token=token)
        return str(answer["authorizer_access_token"])

    def call(self, path: str, *, token: str | None = None, **body: object) -> dict[str, Any]:
        own = self.component_token if "/component/" in path else self.merchant_token
        return self.client.post(path, body, access_token=token or own)

    def jump(self, action: str, domain: str = HOST, *, published: bool = True) -> dict[str, Any]:
        whole: dict[str, Any] = {
            "wxa_jump_h5_domain": domain,
            "is_modify_published_together": published,
        }
        return self.call(JUMP, action=action, **whole)

    def webview(self, action: str, *hosts: str, path: str = THIRD) -> dict[str, Any]:
        return self.call(path, action=action, webviewdomain=[f"https://{h}" for h in hosts])

    def serve_file(self, origin: "Origin", path: str, *, before: bytes = b"") -> str:
        """Let the origin answer with the confirm file of this way; returns its name."""
        shown = self.call(FILES[path])
        origin.reply(before + shown["file_content"].encode())
        return str(shown["file_name"])

    def sets(self) -> int:
        half: dict[str, Any] = {"is_pre_fetch_open": True, "pre_fetch_type": 0}
        half |= {"action": "set_pre_fetch", "pre_fetch_url": f"https://{HOST}/p"}
        return int(self.call("/wxa/fetchdatasetting", **half)["errcode"])


@pytest.fixture
def provider(wx: Sandbox, client: "Client") -> Provider:
    return Provider(wx, client)


def test_way_a_through_the_platform(wx: Sandbox, provider: Provider, origin: "Origin") -> None:
    """Refused before; the file is fetched at the root; both levels are there; 9410016 is over."""
    assert provider.sets() == 9410016
    name = provider.serve_file(origin, JUMP)
    assert provider.jump("add")["published_wxa_jump_h5_domain"] == HOST
    assert origin.target == f"/{name}"
    assert provider.sets() == 9410016
    assert provider.webview("add", HOST)["errcode"] == 0
    assert provider.sets() == 0
    assert provider.webview("get")["webviewdomain"] == [f"https://{HOST}"]


def test_way_b_waits_for_a_release(wx: Sandbox, provider: Provider, origin: "Origin") -> None:
    """Set directly, it is listed, and counts once a version is released."""
    provider.serve_file(origin, DIRECT)
    assert provider.webview("add", HOST, path=DIRECT)["errcode"] == 0
    shown = provider.call(EFFECTIVE, unused=1)
    assert shown["direct_webviewdomain"] == [f"https://{HOST}"]
    assert (shown["effective_webviewdomain"], provider.sets()) == ([], 9410016)
    wx.release(APPID)
    assert provider.call(EFFECTIVE, unused=1)["effective_webviewdomain"] == [f"https://{HOST}"]
    assert provider.sets() == 0


@pytest.mark.parametrize("wrong", [b"\xef\xbb\xbf", b" ", b"\n"])
def test_confirm_files_are_compared_byte_for_byte(
    wx: Sandbox, provider: Provider, origin: "Origin", wrong: bytes
) -> None:
    """A byte order mark is enough: refused directly, listed as invalid through the platform."""
    provider.serve_file(origin, DIRECT, before=wrong)
    assert provider.webview("add", HOST, path=DIRECT)["errcode"] == 86103
    provider.serve_file(origin, JUMP, before=wrong)
    answer = provider.jump("add")
    assert (answer["errcode"], answer["invalid_wxa_jump_h5_domain"]) == (0, HOST)
    assert answer["published_wxa_jump_h5_domain"] == ""
    for errcode in ("86103", "-1"):
        wx.switches.unproved_platform_domain = errcode
        assert provider.jump("add")["errcode"] == int(errcode)


def test_a_status_other_than_200_proves_nothing(provider: Provider, origin: "Origin") -> None:
    """The right bytes on an error page are no file."""
    content = provider.call(FILES[DIRECT])["file_content"]
    origin.reply(content.encode(), status="404 Not Found")
    assert provider.webview("add", HOST, path=DIRECT)["errcode"] == 86103


def test_the_testing_list_alone_is_of_no_use(provider: Provider, origin: "Origin") -> None:
    """Without is_modify_published_together merchants cannot have the domain."""
    provider.serve_file(origin, JUMP)
    answer = provider.jump("add", published=False)
    assert answer["testing_wxa_jump_h5_domain"] == HOST
    assert provider.webview("add", HOST)["errcode"] == 89020


def test_add_delete_set_get(wx: Sandbox, provider: Provider, origin: "Origin") -> None:
    """`set` overwrites, `delete` of what is not there is fine, `add` twice says unchanged."""
    wx.map_origin("b.example", origin.url)
    provider.serve_file(origin, JUMP)
    assert provider.jump("add", f"{HOST};b.example")["errcode"] == 0
    assert provider.webview("add", HOST)["errcode"] == 0
    assert provider.webview("add", HOST)["errcode"] == 89019
    assert provider.webview("set", "b.example")["errcode"] == 0
    assert provider.webview("get")["webviewdomain"] == ["https://b.example"]
    assert provider.webview("delete", "b.example")["errcode"] == 0
    assert provider.webview("get")["webviewdomain"] == []
    assert provider.jump("set", "b.example")["published_wxa_jump_h5_domain"] == "b.example"
    assert provider.jump("delete", "x.example")["errcode"] == 0
    assert provider.jump("delete", "b.example")["published_wxa_jump_h5_domain"] == ""
    assert provider.jump("wrong")["errcode"] == 47001


def test_no_action_pushes_every_platform_domain(
    wx: Sandbox, provider: Provider, origin: "Origin"
) -> None:
    """The trap of the call: one left-out word, and the merchant has them all."""
    wx.map_origin("b.example", origin.url)
    provider.serve_file(origin, JUMP)
    provider.jump("add", f"{HOST};b.example")
    assert provider.call(THIRD, webviewdomain=[])["errcode"] == 0
    assert len(provider.webview("get")["webviewdomain"]) == 2


def test_subdomains_of_a_platform_domain_are_its_own(provider: Provider, origin: "Origin") -> None:
    """With shop.example on the platform, a.shop.example can be set for a merchant."""
    provider.serve_file(origin, JUMP)
    provider.jump("add")
    assert provider.webview("add", f"a.{HOST}")["errcode"] == 0
    assert provider.webview("add", f"not{HOST}")["errcode"] == 89021


@pytest.mark.parametrize(
    "url", [HOST, f"http://{HOST}", f"https://{HOST}:443", f"https://{HOST}/", "https://127.0.0.1"]
)
def test_only_https_and_a_bare_name(provider: Provider, origin: "Origin", url: str) -> None:
    """A missing scheme, a port, a path and an address are no domain of the platform."""
    provider.serve_file(origin, JUMP)
    provider.jump("add")
    assert provider.call(THIRD, action="add", webviewdomain=[url])["errcode"] == 89021


def test_limits(wx: Sandbox, provider: Provider, origin: "Origin") -> None:
    """300 domains of a mini program, and a limit of mini programs for one domain."""
    provider.serve_file(origin, JUMP)
    provider.jump("add")
    assert provider.webview("add", *(f"a{n}.{HOST}" for n in range(301)))["errcode"] == 89029
    wx.switches.max_domains = 1
    wx.map_origin("b.example", origin.url)
    assert provider.jump("add", "b.example")["errcode"] == 89029
    wx.switches.apps_per_domain = 0
    provider.serve_file(origin, DIRECT)
    assert provider.webview("add", HOST, path=DIRECT)["errcode"] == 506015


def test_who_may_call(wx: Sandbox, provider: Provider) -> None:
    """A person's account, a missing permission, an own token, the wrong kind of token."""
    wx.deny(APPID, 89231)
    assert provider.webview("get")["errcode"] == 89231
    wx.deny(APPID, None)
    assert provider.call(THIRD, action="get", token=wx.access_token(APPID))["errcode"] == 48001
    assert provider.call(JUMP, action="get", token=provider.merchant_token)["errcode"] == 61014
    assert provider.call(THIRD, action="get", token=provider.component_token)["errcode"] == 61015
    provider.merchant_token = provider.authorize(APPID, permissions=[1])
    assert provider.webview("get")["errcode"] == 61007


def test_bodies_that_are_none(client: "Client", provider: Provider) -> None:
    """As WeChat's pages have it: the mini program's calls want at least {}."""
    token = provider.merchant_token
    assert client.send("POST", f"{EFFECTIVE}?access_token={token}").json()["errcode"] == 44002
    assert client.send("GET", f"{FILES[JUMP]}?access_token=x").json()["errcode"] == 43002
    assert provider.call(DIRECT, action="add", webviewdomain=HOST)["errcode"] == 47001
    assert provider.call(JUMP, action="add", wxa_jump_h5_domain=[HOST])["errcode"] == 47001


def test_the_platforms_lists_as_seen_in_the_field(
    wx: Sandbox, provider: Provider, origin: "Origin"
) -> None:
    """With a scheme in front of each host, and `get` without an errcode."""
    provider.serve_file(origin, JUMP)
    wx.switches.platform_domains_with_scheme = True
    wx.switches.jump_domain_get_has_errcode = False
    assert provider.jump("add")["published_wxa_jump_h5_domain"] == f"https://{HOST}"
    shown = provider.jump("get")
    assert shown["testing_wxa_jump_h5_domain"] == f"https://{HOST}"
    assert "errcode" not in shown


def test_a_release_through_the_platform_deletes_domains_of_the_console(
    wx: Sandbox, provider: Provider
) -> None:
    """Those that a person entered are gone, but not where no platform serves the mini program."""
    wx.add_domain(APPID, HOST)
    wx.switches.release_deletes_console_domains = False
    wx.release(APPID)
    assert provider.sets() == 0
    wx.switches.release_deletes_console_domains = True
    wx.release(APPID)
    assert provider.sets() == 9410016
    wx.revoke(COMPONENT, APPID)
    wx.add_domain(APPID, HOST)
    wx.release(APPID)
    assert provider.call(EFFECTIVE, unused=1)["errcode"] == 61003
    assert wx.app(APPID).domains.miniprogram == {HOST}


def test_over_http(client: "Client", provider: Provider, origin: "Origin") -> None:
    """A release is one call of the control API."""
    provider.serve_file(origin, DIRECT)
    provider.webview("add", HOST, path=DIRECT)
    assert client.post(f"/_sandbox/apps/{APPID}/release", {}) == {}
    assert provider.sets() == 0


def test_an_account_keeps_its_confirm_file(wx: Sandbox, client: "Client") -> None:
    """What an app was once set to serve is right after a restart too; others have others."""
    shown = []
    for _ in range(2):
        provider = Provider(wx, client)
        shown.append([provider.call(FILES[way]) for way in (JUMP, DIRECT)])
        wx.reset()
    assert shown[0] == shown[1]
    assert shown[0][0]["file_name"] != shown[0][1]["file_name"]
