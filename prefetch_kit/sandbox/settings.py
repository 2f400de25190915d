"""The ten wire fields of fetchdatasetting: what may be set, and what `get` shows.

Page: developers.weixin.qq.com, third-party platform, getFetchdataSetting.
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import Final, NamedTuple
from urllib.parse import SplitResult, urlsplit

from prefetch_kit.sandbox.domains import covered
from prefetch_kit.sandbox.errors import ApiError

DEVELOPER_SERVER: Final = 0
CLOUD_FUNCTION: Final = 1

_ENV: Final = re.compile(r"[A-Za-z0-9-]{1,64}\Z")
_FUNCTION: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,59}\Z")
_URL: Final = re.compile(r"[!-~]{1,1024}\Z")


class Half(NamedTuple):
    """The wire names of one half of the settings."""

    open: str
    source: str
    url: str
    env: str
    function: str


PRE_FETCH: Final = Half(
    "is_pre_fetch_open", "pre_fetch_type", "pre_fetch_url", "pre_env", "pre_function_name"
)
PERIOD_FETCH: Final = Half(
    "is_period_fetch_open",
    "period_fetch_type",
    "period_fetch_url",
    "period_env",
    "period_function_name",
)
HALVES: Final = {"set_pre_fetch": PRE_FETCH, "set_period_fetch": PERIOD_FETCH}
FIELDS: Final = frozenset(PRE_FETCH + PERIOD_FETCH)


class Domains(NamedTuple):
    """Hosts accepted as business domains, on the two levels that the platform checks."""

    platform: set[str]
    miniprogram: set[str]


def parse_half(half: Half, body: Mapping[str, object], *, domains: Domains) -> dict[str, object]:
    """The fields a valid set request stores; raises the platform's refusal otherwise.

    Switching off demands the same fields as switching on.
    """
    is_open, source = body.get(half.open), body.get(half.source)
    if not isinstance(is_open, bool):
        raise ApiError(47001, f"{half.open} must be a boolean")
    # bool is an int to Python, but not a number in JSON.
    if type(source) is not int or source not in (DEVELOPER_SERVER, CLOUD_FUNCTION):
        raise ApiError(9410014)
    stored: dict[str, object] = {half.open: is_open, half.source: source}
    if source == DEVELOPER_SERVER:
        return {**stored, half.url: _parse_url(body.get(half.url), domains=domains)}
    return {
        **stored,
        half.env: _parse_name(body.get(half.env), _ENV),
        half.function: _parse_name(body.get(half.function), _FUNCTION),
    }


def shown(settings: Mapping[str, object]) -> dict[str, object]:
    """What `get` answers: fields of the inactive source are left out, absent ones stay absent."""
    hidden: set[str] = set()
    for half in HALVES.values():
        if settings.get(half.source) == CLOUD_FUNCTION:
            hidden.add(half.url)
        else:
            hidden.update((half.env, half.function))
    return {name: value for name, value in settings.items() if name not in hidden}


def _parse_name(value: object, shape: re.Pattern[str]) -> str:
    if not isinstance(value, str) or not shape.match(value):
        raise ApiError(9410017)
    return value


def _parse_url(value: object, *, domains: Domains) -> str:
    if not isinstance(value, str) or not _URL.match(value):
        raise ApiError(9410016, "the url is missing, too long or holds odd characters")
    try:
        parts = urlsplit(value)
        problems = [*_form_problems(parts), *_host_problems(parts.hostname or "", domains)]
    except ValueError:
        raise ApiError(9410016, "the url cannot be read") from None
    if problems:
        raise ApiError(9410016, "; ".join(problems))
    return value


def _form_problems(parts: SplitResult) -> list[str]:
    found = {
        "the url must begin with https://": parts.scheme != "https",
        "the url must not hold a user name": "@" in parts.netloc,
        "the url must not hold a port": parts.port is not None,
        "the url must not hold a fragment": bool(parts.fragment),
    }
    return [problem for problem, is_there in found.items() if is_there]


def _host_problems(host: str, domains: Domains) -> list[str]:
    if not host:
        return ["the url holds no host"]
    if _is_address(host):
        return [f"{host} is an IP address"]
    found = {
        f"{host} is not a business domain of the third-party platform": covered(
            host, domains.platform
        ),
        f"{host} is not a business domain of the mini program": host in domains.miniprogram,
    }
    return [problem for problem, is_accepted in found.items() if not is_accepted]


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
