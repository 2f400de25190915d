"""What a pull may carry: one table of its parameters, and of who else sends such pulls."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from prefetch_kit.secret import Secret

DialectName = Literal["wechat", "qq", "finclip"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a pull.

    `name` is WeChat's; `attribute` is ours, and unless another is given the reason of a refusal.
    Without an attribute handlers read it by its name, from `Pull.extra`. A value has at most
    `max_chars` characters and matches `shape`, which `must_be` puts in words. `is_credential` says
    that the value is secret and says who the user is.
    """

    name: str
    attribute: str | None
    max_chars: int
    shape: str | None = None
    must_be: str = ""
    read: Callable[[str], object] = str
    is_required: bool = False
    is_credential: bool = False
    reason: str | None = None


_APPID: Final = "[0-9A-Za-z_-]{1,64}"
APPID: Final = re.compile(rf"{_APPID}\Z")
_DIGITS: Final = re.compile(r"[0-9]+\Z")
MAX_CODE_CHARS: Final = 128

# The page /miniprogram/dev/framework/ability/pre-fetch.html.
PARAMETERS: Final = (
    Parameter(
        "appid",
        "appid",
        64,
        shape=_APPID,
        must_be="must be 1 to 64 ASCII letters and digits",
        is_required=True,
    ),
    # Seconds or milliseconds: the page does not say which, so both are read.
    Parameter(
        "timestamp",
        "timestamp",
        13,
        shape="[0-9]{13}|[0-9]{10}",
        must_be="must be 10 or 13 ASCII digits",
        is_required=True,
    ),
    # What wx.setBackgroundFetchToken accepts.
    Parameter("token", "token", 1024, read=Secret, is_credential=True),
    Parameter("code", "code", MAX_CODE_CHARS, read=Secret, is_credential=True),
    Parameter("path", "path", 1024),
    Parameter("query", "page_query", 4096, reason="query"),
    Parameter(
        "scene",
        "scene",
        6,
        shape="[0-9]{1,6}",  # int() alone would also take signs, spaces and full-width digits
        must_be="must be 1 to 6 ASCII digits",
        read=int,
    ),
    Parameter("customMiniprogramVersion", "version", 64),
)


class Dialect(NamedTuple):
    """One platform whose clients, or servers, send such pulls.

    `sends` recognises them by the first value of each name that came. `spelling` maps its own names
    to WeChat's. In a token that is `raw` a plus stands for itself.
    """

    name: DialectName
    sends: Callable[[Mapping[str, str]], bool]
    spelling: Mapping[str, str] = MappingProxyType({})
    has_raw_token: bool = False


DIALECTS: Final = (
    # The page finclip.com/mop/document/develop/guide/ability/background-data.html.
    Dialect(
        "finclip",
        lambda came: "appId" in came and "appid" not in came,
        spelling={"appId": "appid", "timeStamp": "timestamp"},
    ),
    # Its appids are digits, and its client does not encode the token.
    Dialect("qq", lambda came: bool(_DIGITS.match(came.get("appid", ""))), has_raw_token=True),
    Dialect("wechat", lambda _: True),
)


def dialect_of(came: Mapping[str, str]) -> Dialect:
    """The dialect of a pull with these parameters."""
    return next(each for each in DIALECTS if each.sends(came))
