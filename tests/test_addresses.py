"""Which addresses WeChat can pull, and where secrets may go."""

from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from prefetch_kit.addresses import (
    is_loopback,
    platform_url_problem,
    public_url_problem,
    shown,
    wechat_name,
)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.1", "::1"])
def test_this_machine_is_loopback(host: str) -> None:
    """The name and the addresses that never leave the machine."""
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    ["", "0.0.0.0", "10.0.0.1", "::", "localhost.evil.example", "127.0.0.1.evil.example", "127.1"],
)
def test_other_hosts_are_not_loopback(host: str) -> None:
    """What only looks like this machine is not."""
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example",
        "https://shop.example/",
        "https://SHOP.example/prefetch/pre_fetch",
        "https://a-b.c1.shop.example/%E4%B8%AD/x",
        "https://xn--fiq228c.example/p",
        "https://shop.xn--fiqs8s/p",
    ],
)
def test_public_urls_are_taken(url: str) -> None:
    """https, a domain name, a path."""
    assert public_url_problem(url) is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "https"),
        ("shop.example", "https"),
        ("http://shop.example", "https"),
        ("HTTPS//shop.example", "https"),
        ("ftp://shop.example", "https"),
        ("https://", "domain name"),
        ("https:shop.example", "domain name"),
        ("https:///pre_fetch", "domain name"),
        ("https://shop", "domain name"),
        ("https://shop.example.", "domain name"),
        ("https://-shop.example", "domain name"),
        ("https://shop_1.example", "domain name"),
        ("https://shop..example", "domain name"),
        ("https://sho%70.example", "domain name"),
        (f"https://{'a' * 64}.example", "domain name"),
        ("https://shop.example/p/{appid}", "braces"),
        ("https://shop.example/p/%7bappid%7D", "braces"),
        ("https://10.0.0.1", "IP address"),
        ("https://[::1]/", "IP address"),
        ("https://127.1", "domain name"),
        ("https://0x7f.0.0.0x1", "domain name"),
        ("https://2130706433", "domain name"),
        ("https://0177.0.0.1/", "domain name"),
        ("https://localhost", "this machine"),
        ("https://api.localhost/", "this machine"),
        ("https://shop.example:443", "port"),
        ("https://shop.example:", "port"),
        ("https://shop.example:99999", "not a URL"),
        ("https://[::1", "not a URL"),
        ("https://user@shop.example", "user name"),
        ("https://user:word@shop.example", "user name"),
        ("https://@shop.example", "user name"),
        ("https://shop.example/?x=y", "query"),
        ("https://shop.example/?", "query"),
        ("https://shop.example/#top", "query"),
        ("https://shop.example/#", "query"),
        (" https://shop.example", "spaces"),
        ("https://shop.example/\n", "spaces"),
        ("https://shop.\texample/", "spaces"),
        ("https://shop.example/\x7f", "spaces"),
        ("https://shop.example/a b", "spaces"),
        ("https://商店.example", "ASCII"),
        ("https://shop.example/商店", "ASCII"),
        ("https://evil.example\\@shop.example", "backslashes"),
    ],
)
def test_what_wechat_cannot_pull_is_named(url: str, said: str) -> None:
    """Each kind of impossible URL has its own sentence and a remedy."""
    problem = public_url_problem(url)
    assert problem is not None
    assert said in problem[0]
    assert problem[1]


@settings(database=None, deadline=None, max_examples=1000)
@given(st.text("htps:/.@?#[]%\\ ab1-_中\t", max_size=20).map(lambda rest: f"https://a.bc{rest}"))
@example("https://a.bc/p")
def test_accepted_url_has_one_reading(url: str) -> None:
    """Whatever passes is https, without credentials, port, query or fragment."""
    if public_url_problem(url) is None:
        parts = urlsplit(url)
        assert (parts.scheme, parts.netloc.lower()) == ("https", parts.hostname)
        assert url == f"https://{parts.netloc}{parts.path}"


@pytest.mark.parametrize(
    "url", ["https://api.weixin.qq.com", "http://127.0.0.1:9000", "http://[::1]:9", "https://x:1/p"]
)
def test_secrets_may_go_over_https_or_inside_this_machine(url: str) -> None:
    """TLS, or a connection that cannot leave."""
    assert platform_url_problem(url) is None


@pytest.mark.parametrize(
    "url",
    [
        "",
        "api.weixin.qq.com",
        "http://api.weixin.qq.com",
        "http://127.0.0.1.evil.example",
        "http://localhost@evil.example",
        "https://me:canary@api.weixin.qq.com",
        "https://api.weixin.qq.com?x",
        "https://api.weixin.qq.com#x",
        "https://api.weixin.qq.com:port",
        "https://api.weixin.qq.com/\n",
        "file:///etc/passwd",
        "https://",
        "https://[::1",
    ],
)
def test_secrets_go_nowhere_else(url: str) -> None:
    """Clear text to another machine, and addresses of two readings, are refused unrepeated."""
    problem = platform_url_problem(url)
    assert problem
    assert "canary" not in problem


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://shop.example/a", "https://shop.example/a"),
        ("https://shop.example/@me/x", "https://shop.example/@me/x"),
        ("https://u:canary@shop.example/a?canary#canary", "https://shop.example/a"),
        ("//u:canary@shop.example/a", "//shop.example/a"),
        ("u:canary@shop.example", "***"),
        ("https:u:canary@shop.example", "***"),
        ("https://shop.example/a;token=canary", "https://shop.example/a"),
        ("https://u:canary@canary@[broken", "***"),
        ("https://u:canary@[broken?canary", "***"),
        ("https://[broken#canary", "***"),
    ],
)
def test_what_may_be_told_of_a_url(url: str, told: str) -> None:
    """Nothing of a user name, a password, a query or a fragment, in whatever is written there."""
    assert shown(url) == told


@pytest.mark.parametrize(
    "base_url",
    [
        "https://api.weixin.qq.com",
        "https://API2.weixin.qq.com/",
        "https://sh.api.weixin.qq.com:443",
        "https://hk.api.weixin.qq.com",
    ],
)
def test_all_hosts_of_wechat_share_one_state(base_url: str) -> None:
    """A token or a run known through one host of WeChat is known through the others."""
    assert wechat_name(base_url) == "api.weixin.qq.com"


def test_each_sandbox_has_its_own_state() -> None:
    """Two sandboxes of one machine differ by port, and no other host is taken for WeChat."""
    names = ["http://127.0.0.1:5001", "http://127.0.0.1:5002", "https://api.weixin.qq.com.evil.tld"]
    assert len({*map(wechat_name, names), "api.weixin.qq.com"}) == 4
