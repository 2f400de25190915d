"""Server domains (服务器域名) of a mini program: not those that fetchdatasetting asks for.

WeChat takes only those of the third-party platform; that is not played.
Page: developers.weixin.qq.com/doc/oplatform/openApi/miniprogram-management/domain-management/
modifyServerDomain.html.
"""

import re
from collections.abc import Mapping
from typing import Final

from prefetch_kit.sandbox.domains import changed
from prefetch_kit.sandbox.errors import ApiError

MAX_SERVER_DOMAINS: Final = 200
SERVER_DOMAINS: Final[Mapping[str, str]] = {
    "requestdomain": "https",
    "wsrequestdomain": "wss",
    "uploaddomain": "https",
    "downloaddomain": "https",
    "udpdomain": "udp",
    "tcpdomain": "tcp",
}
"""The lists, and the scheme of what is in them."""

_ORIGIN: Final = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)*\.[a-z][a-z0-9-]*(:[0-9]{1,5})?\Z")


def changed_lists(
    stored: Mapping[str, list[str]], action: str | None, body: Mapping[str, object]
) -> dict[str, list[str]]:
    """The lists after `add`, `delete` or `set`; raises 47001, and 85017 where nothing changes."""
    after = {
        name: changed(
            stored.get(name, []), action, _origins(name, scheme, body), limit=MAX_SERVER_DOMAINS
        )
        for name, scheme in SERVER_DOMAINS.items()
    }
    if action == "add" and after == {name: stored.get(name, []) for name in SERVER_DOMAINS}:
        raise ApiError(85017)
    return after


def _origins(name: str, scheme: str, body: Mapping[str, object]) -> list[str]:
    given = body.get(name, [])
    if not isinstance(given, list):
        raise ApiError(47001, f"{name} must be an array")
    for each in given:
        prefix = f"{scheme}://"
        if not (isinstance(each, str) and each.startswith(prefix)):
            raise ApiError(85017, f"{name} must hold {prefix} and a host")
        if not _ORIGIN.match(each.removeprefix(prefix)):
            raise ApiError(85017, f"{name} holds what is no host")
    return given
