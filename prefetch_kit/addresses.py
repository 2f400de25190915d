"""Rules for addresses, for the endpoint and for the registrar."""

import ipaddress
import re
from importlib.util import find_spec
from typing import Final
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

from prefetch_kit.quoting import HIDDEN

# The last label is never a number, in any of its spellings: that would be an address.
_DOMAIN_NAME: Final = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+(?:[a-z]{2,63}|xn--[a-z0-9-]{1,59})"
)

# What WeChat calls its confirm files. No directory, no hidden file, nothing that is a page.
CONFIRM_FILE_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}\.txt\Z")
CONFIRM_FILE_CONTENT: Final = re.compile(r"[\t\n\r -~]{1,4096}\Z")

_PRINTABLE: Final = re.compile(r"[!-~]*")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Of a placeholder that was not filled: written so, doubled, or encoded by a browser.
BRACE: Final = re.compile(r"[{}]|%7[BD]", re.IGNORECASE)


def is_loopback(host: str) -> bool:
    """Whether a host name or literal address can only mean this machine."""
    address = _literal_address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _literal_address(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


# What is given out to the internet, https://www.iana.org/assignments/ipv6-address-space/.
_UNICAST: Final = ipaddress.IPv6Network("2000::/3")
# Python's own tables know of these no sooner than in its later versions.
_EXAMPLES: Final = ipaddress.IPv6Network("3fff::/20")
_SPECIAL: Final = (ipaddress.IPv4Network("192.0.0.0/24"), ipaddress.IPv4Network("192.88.99.0/24"))
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
_ISATAP: Final = (0x5EFE, 0x0200_5EFE)


def is_public(address: str) -> bool:
    """Whether an IP address is one that everybody on the internet reaches alike.

    An address that only wraps another one is judged by that.
    """
    found: _Address = ipaddress.ip_address(address)
    if isinstance(found, ipaddress.IPv6Address):
        wrapped = _wrapped(found)
        if wrapped is None:
            return found in _UNICAST and found.is_global and found not in _EXAMPLES
        found = wrapped
    return found.is_global and not found.is_multicast and not any(found in n for n in _SPECIAL)


def _wrapped(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that a packet to this one ends at."""
    last = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if address in _NAT64 or int(address) >> 32 & 0xFFFF_FFFF in _ISATAP:
        return last
    if address.teredo is not None:
        return address.teredo[1]
    return address.ipv4_mapped or address.sixtofour


def shown(url: str) -> str:
    """A URL without what may hold a secret: user name, password, parameters, query, fragment."""
    url = url.partition("#")[0].partition("?")[0].partition(";")[0]
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = SplitResult("", "", "", "", "")
    if not parts.netloc:  # it is none, and any text
        return HIDDEN
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def platform_url_problem(url: str) -> str | None:
    """Why secrets may not be sent to this base URL; None if they may.

    https, or http where it cannot leave this machine. The URL is not repeated: it may hold a
    password.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        parts.port  # noqa: B018 (raises for a port that is none)
    except ValueError:
        return "is not a URL"
    if not _PRINTABLE.fullmatch(url) or not host:
        return "is not a URL"
    if "@" in parts.netloc or "?" in url or "#" in url:
        return "holds a user name, a query or a fragment"
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host)):
        return None
    return "must begin with https:// (http:// only for a loopback host)"


def proxy_url_problem(url: str) -> tuple[str, str] | None:
    """What is wrong with the address of a proxy, and what to do; tells nothing of the address."""
    remedy = (
        "Write http://proxy.example:3128, or http://user:password@proxy.example:3128 with %XX for "
        "every character that is not a letter or digit"
    )
    try:
        parts = urlsplit(url)
        is_there = bool(parts.hostname and parts.port)
    except ValueError:
        is_there = False
    if not is_there or not _PRINTABLE.fullmatch(url):
        return "is not the address of a proxy with its port", remedy
    if parts.scheme != "http" or parts.path not in ("", "/") or "?" in url or "#" in url:
        return "is not http:// and a host with its port, and nothing after that", remedy
    return None


# One WeChat behind several names, the second list of developers.weixin.qq.com, "接口域名说明".
WECHAT_HOSTS: Final = tuple(
    f"{name}.weixin.qq.com" for name in ("api", "api2", "sh.api", "sz.api", "hk.api")
)


def wechat_name(api_base_url: str) -> str:
    """The name of the directory that holds the state of this WeChat.

    All hosts of api.weixin.qq.com are one WeChat; a sandbox is known by its address.
    """
    parts = urlsplit(api_base_url)
    if parts.hostname in WECHAT_HOSTS and parts.port in (None, 443):
        return WECHAT_HOSTS[0]
    return quote(parts.netloc, safe="")


def first_layout_names(wechat: str) -> list[str]:
    """The directories in which the first version kept the state of this WeChat.

    To it each host was a WeChat of its own, and so was each spelling of the address.
    """
    if wechat != WECHAT_HOSTS[0]:
        return [wechat]
    return [name for host in WECHAT_HOSTS for name in (host, f"{host}%3A443")]


def public_url_problem(url: str) -> tuple[str, str] | None:
    """Why WeChat cannot pull this URL, and the remedy; None if it can.

    The host must be fit for a business domain (业务域名), see the setwebviewdomain page and
    /miniprogram/dev/framework/ability/pre-fetch.html. WeChat appends a query string of its own.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "it is not a URL", "Write it as https://shop.example/path"
    if not _PRINTABLE.fullmatch(url) or "\\" in url:
        return (
            "it holds spaces, backslashes or characters outside printable ASCII",
            "Percent-encode the path, and write the host in its xn-- form",
        )
    if BRACE.search(url):
        remedy = "Write what they stand for; {placeholders} are for prefetch.toml and its list"
        return "it holds braces, which nothing fills", remedy
    if parts.scheme != "https":
        return "it does not begin with https://", "WeChat pulls over HTTPS only"
    if parts.username is not None or parts.password is not None:
        return "it holds a user name or password", "Take out everything before the @"
    if port is not None or parts.netloc.endswith(":"):
        return "it names a port", "Serve it on the default port 443 and leave the port out"
    if "?" in url or "#" in url:
        return "it holds a query string or fragment", "End the URL with its path"
    host = parts.hostname or ""
    if _literal_address(host) is not None:
        return "its host is an IP address", "Use a domain name"
    if host == "localhost" or host.endswith(".localhost"):
        return "its host is this machine", "Use the public domain name"
    if not _DOMAIN_NAME.fullmatch(host):
        return "its host is not a domain name", "Use the public domain name"
    return None


# Other options set timeouts, or how replies are read, and would undo ours.
_DB: Final = r"db=[0-9]{1,5}"
_FILES: Final = r"(?:ca_certs|ca_path|certfile|keyfile)=[^&]+"
_TLS: Final = (
    rf"ssl_(?:cert_reqs=(?:none|optional|required)|check_hostname=(?:true|false)|{_FILES})"
)
_SENTINEL: Final = r"sentinel_(?:username|password)=[^&]+"
_DB_PATH: Final = r"/?[0-9]{0,5}"
_SENTINEL_PATH: Final = r"/[^/]+(?:/[0-9]{0,5})?"
_HOST: Final = r"(?:[^\s,@:\[\]/]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
# By scheme: the options, and the path.
_REDIS_URLS: Final = {
    "redis": (_DB, _DB_PATH),
    "unix": (_DB, ".+"),
    "rediss": (f"{_DB}|{_TLS}", _DB_PATH),
    "redis+sentinel": (_SENTINEL, _SENTINEL_PATH),
    "rediss+sentinel": (f"{_SENTINEL}|{_TLS}", _SENTINEL_PATH),
}


def redis_url_problem(url: str) -> tuple[str, str] | None:
    """What is wrong with the address of a Redis, and what to do; tells nothing of the address.

    A client is made for it no sooner than it is needed, and quotes it where that fails.
    """
    if not _is_redis(url):
        return (
            "is not the address of a Redis, or has options other than db, ssl_… and sentinel_…",
            "Write redis://host:6379/0, or redis+sentinel://host:26379,host2:26379/name/0, "
            "with %XX for every character of a password that is not a letter or digit",
        )
    if find_spec("redis") is None:
        return "needs a client for Redis", 'Install "prefetch-kit[redis]"'
    return None


def _is_redis(url: str) -> bool:
    try:
        parts = urlsplit(url)
        has_sentinels = "+sentinel" in parts.scheme
        if not has_sentinels:
            parts.port  # noqa: B018 (raises for an impossible port)
    except ValueError:
        return False
    if parts.scheme not in _REDIS_URLS or parts.fragment:
        return False
    option, path = _REDIS_URLS[parts.scheme]
    if has_sentinels:
        hosts = parts.netloc.rpartition("@")[2].split(",")
        is_host_named = all(re.fullmatch(_HOST, host) for host in hosts)
    else:
        is_host_named = parts.scheme == "unix" or bool(parts.hostname)
    options = parts.query.split("&") if parts.query else []
    are_options_known = all(re.fullmatch(option, each) for each in options)
    return is_host_named and are_options_known and re.fullmatch(path, parts.path) is not None
