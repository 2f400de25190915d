"""Which of the values that people give may be quoted back to them."""

import os.path
import re
from collections.abc import Collection
from difflib import get_close_matches
from typing import Final

HIDDEN: Final = "***"

_APPID: Final = re.compile(r"wx[A-Za-z0-9_-]{0,16}\Z")
# What ends so is no secret. What looks like a URL or an assignment may hold one all the same.
_FILE: Final = re.compile(r"[\w ./~+-]+\.(?:toml|csv|jsonl?|pem|crt|txt|sqlite3)\Z")


def harmless(value: object, *, among: Collection[str] = ()) -> str:
    """The value where no secret can stand in it, `***` for any other.

    A secret comes to stand where a name or a path belongs, and what a command says ends in the
    log of a deployment. What cannot be one is an appid of WeChat's, the name of a file that is
    there or that ends like one the kit reads, and a misspelling of a name that is known, `among`.
    """
    text = str(value)
    is_known = _APPID.match(text) or _FILE.match(text) or os.path.exists(text)
    is_harmless = is_known or get_close_matches(text, among, n=1, cutoff=0.7)
    return text if is_harmless and text.isprintable() else HIDDEN
