"""Business domains (业务域名) of third-party platforms and of mini programs.

Pages: developers.weixin.qq.com/doc/oplatform/openApi/thirdparty-management/domain-mgnt/ and
/doc/oplatform/openApi/miniprogram-management/domain-management/.
"""

import hashlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from prefetch_kit.sandbox.errors import ApiError, SandboxError

_SCHEME: Final = "https://"
_HOST: Final = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+\Z")


@dataclass(frozen=True)
class ConfirmFile:
    """The file that the root of a domain must serve; one for all domains of an account."""

    name: str
    content: str


def confirm_file(appid: str) -> ConfirmFile:
    """The same for an account each time: an app serves the right file after a restart too."""
    made = hashlib.sha256(f"confirm file {appid}".encode()).hexdigest()
    return ConfirmFile(f"{made[:10]}.txt", made[-32:])


@dataclass
class PlatformDomains:
    """The domains of a third-party platform; its merchants may use the published ones."""

    testing: list[str] = field(default_factory=list)
    published: list[str] = field(default_factory=list)


@dataclass
class MerchantDomains:
    """The domains of a mini program that a platform set, besides those of its console.

    `third` ones are domains of the platform; `direct` ones need not be, and become `released`
    with the next version.
    """

    third: list[str] = field(default_factory=list)
    direct: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)


def changed(
    stored: Iterable[str], action: str | None, given: Iterable[str], *, limit: int
) -> list[str]:
    """The list after `add`, `delete` or `set`; raises 47001 for another action."""
    before, hosts = dict.fromkeys(stored), dict.fromkeys(given)
    if action == "add":
        after = before | hosts
    elif action == "delete":
        after = {host: None for host in before if host not in hosts}
    elif action == "set":
        after = hosts
    else:
        raise ApiError(47001, "action must be add, delete, set or get")
    if len(after) > limit:
        raise ApiError(89029)
    return list(after)


def covered(host: str, accepted: Iterable[str]) -> bool:
    """Whether a host, or a domain it is below, is among those of a platform."""
    return any(host == each or host.endswith(f".{each}") for each in accepted)


def parse_host(host: str) -> str:
    """A host name in lower case; raises SandboxError for anything with a scheme or port."""
    name = host.lower()
    if not _HOST.match(name):
        raise SandboxError(f"host {host!r} is not a host name: leave out scheme, port and path.")
    return name


def bare_host(text: str) -> str | None:
    """The host as in the list of a platform: without scheme, port, path or address."""
    try:
        host = parse_host(text)
    except SandboxError:
        return None
    return None if _is_address(host) else host


def host_of(url: object) -> str | None:
    """The host of an `https://host`, and of nothing else."""
    if not isinstance(url, str) or not url.startswith(_SCHEME):
        return None
    return bare_host(url.removeprefix(_SCHEME))


def urls(hosts: Iterable[str]) -> list[str]:
    return [f"{_SCHEME}{host}" for host in hosts]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
