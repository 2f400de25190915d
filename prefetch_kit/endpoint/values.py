"""Read the value of a setting from each form that it may have, or say what is wrong with it."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from shlex import split
from typing import Any, Final

from prefetch_kit.addresses import (
    CONFIRM_FILE_CONTENT,
    CONFIRM_FILE_NAME,
    platform_url_problem,
    proxy_url_problem,
    public_url_problem,
    redis_url_problem,
)
from prefetch_kit.endpoint.parameters import APPID
from prefetch_kit.errors import SourceRefused
from prefetch_kit.fetch_setting import FetchSetting
from prefetch_kit.quoting import harmless
from prefetch_kit.secret import Secret

# WeChat's begin with wx, FinClip's with fc or are 24 hexadecimal digits, QQ's are digits.
_OURS: Final = re.compile(r"(?:wx|fc).+|[0-9a-f]{24}\Z|[0-9]{5,20}\Z")


class InvalidError(Exception):
    """What is wrong with a value and what to write instead, without the value of a secret."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = problem
        self.remedy = remedy


def read_appids(value: object) -> Any:
    """The appids as a tuple, or the callable that decides."""
    if callable(value):
        return value
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, Iterable) or isinstance(value, Mapping):
        raise InvalidError("is neither a list nor a callable", 'Write ["wx…"]')
    appids = tuple(value)
    if not appids:
        raise InvalidError("must list at least one appid", 'Write ["wx…"]')
    for n, appid in enumerate(appids, 1):
        if not isinstance(appid, str) or not APPID.match(appid) or not _OURS.match(appid):
            # Not quoted: it may be an AppSecret that somebody mistook for the appid.
            raise InvalidError(
                f"holds something that is no appid (number {n} of {len(appids)})",
                'Write ["wx…"], as WeChat\'s console shows it (开发管理 → 开发设置)',
            )
    return tuple(dict.fromkeys(appids))


def read_secret(value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value.strip():
        raise InvalidError("must be a non-empty string", "Read it from the environment or a file")
    return Secret(value.strip())


def read_secrets(value: object) -> dict[str, Secret]:
    remedy = 'Write {"wx…": "its AppSecret"}'
    secrets = _mapping(value)
    if secrets is None or not all(map(_is_text, secrets)):
        raise InvalidError("must map each appid to its AppSecret", remedy)
    for appid, secret in secrets.items():
        if not isinstance(secret, Secret) and not (isinstance(secret, str) and secret.strip()):
            raise InvalidError(f"has no AppSecret for {harmless(appid)}", remedy)
    return {appid: read_secret(secret) for appid, secret in secrets.items()}


def _mapping(value: object) -> Mapping[Any, Any] | None:
    """A mapping, or the JSON of one; None for anything else."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, Mapping) else None


def read_command(value: object) -> tuple[str, ...]:
    words: object = value
    if isinstance(value, str):
        try:
            words = split(value)
        except ValueError:  # a quotation that does not end
            words = None
    if not isinstance(words, (list, tuple)) or not words or not all(map(_is_text, words)):
        raise InvalidError(
            "must be a command line, or a list of its words", 'Write ["my-tool", "token"]'
        )
    if "=" in words[0]:
        problem = "begins with a variable, and no shell reads it"
        raise InvalidError(problem, "Begin with the program, and export the variable")
    return tuple(words)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def read_base_url(value: object) -> str:
    if not isinstance(value, str):
        raise InvalidError("must be a string", "Write https://shop.example")
    if problem := public_url_problem(value):
        raise InvalidError(f"cannot be pulled by WeChat: {problem[0]}", problem[1])
    return value.rstrip("/")


def read_fetch_setting(value: object) -> FetchSetting:
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = _mapping(value)
        if value is None:
            problem = "begins with a brace and is no JSON"
            raise InvalidError(problem, 'Write {"env": "…", "function_name": "…"}')
    try:
        return FetchSetting.parse(value)
    except SourceRefused as error:
        raise InvalidError(error.problem, error.remedy) from None


def read_confirm_files(value: object) -> dict[str, str]:
    remedy = 'Write {"name.txt": "what stands in it"}, both as WeChat gave them'
    files = _mapping(value)
    if files is None:
        raise InvalidError("must map the name of each confirm file to its content", remedy)
    for name, content in files.items():
        if not isinstance(name, str) or not CONFIRM_FILE_NAME.match(name):
            raise InvalidError("holds what is no name of a confirm file", remedy)
        if not isinstance(content, str) or not CONFIRM_FILE_CONTENT.match(content):
            problem = f"gives {name} a content that is not plain ASCII, as a byte order mark is not"
            raise InvalidError(problem, remedy)
    return dict(files)


def read_api_base_url(value: object) -> str:
    if problem := platform_url_problem(text := read_text(value)):
        raise InvalidError(problem, "Leave it out for WeChat itself, or give the sandbox's address")
    return text


def read_page(value: object) -> str:
    page = read_text(value)
    if page.startswith("/") or "?" in page:
        raise InvalidError("is not a page path", "Write it as in app.json: pages/index/index")
    return page


def read_token_call(value: object) -> str:
    if value not in ("stable_token", "token"):
        raise InvalidError(
            "names no call for tokens", "Leave it out: stable_token is the one to use"
        )
    return str(value)


def read_big_integers(value: object) -> str:
    if value not in ("number", "text"):
        raise InvalidError("is neither of its two words", "Write number or text")
    return str(value)


def read_refresh(value: object) -> str:
    if value not in ("after", "within"):
        raise InvalidError("is neither after nor within", "Leave it out, or write within")
    return str(value)


def read_component_appid(value: object) -> str:
    if not isinstance(value, str) or not APPID.match(value):
        raise InvalidError("is no appid", 'Write the third-party platform\'s own, "wx…"')
    return value


def read_aes_key(value: object) -> Secret:
    key = read_secret(value)
    if not re.fullmatch("[A-Za-z0-9]{43}", key.reveal()):
        raise InvalidError(
            "is not of 43 letters and digits", "Copy 消息加解密Key from the platform's settings"
        )
    return key


def read_proxy(value: object) -> Secret:
    url = read_secret(value)
    if problem := proxy_url_problem(url.reveal()):
        raise InvalidError(*problem)
    return url


def read_redis_url(value: object) -> Secret:
    url = read_secret(value)
    if problem := redis_url_problem(url.reveal()):
        raise InvalidError(*problem)
    return url


def read_whole_number(minimum: int, maximum: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, timedelta):
            value = int(value.total_seconds())
        if isinstance(value, str) and re.fullmatch("[0-9]{1,13}", value):
            value = int(value)
        if type(value) is not int or not minimum <= value <= maximum:
            raise InvalidError(
                "is not a whole number in its range", f"Write one from {minimum} to {maximum}"
            )
        return value

    return read


def read_seconds(minimum: float, maximum: float) -> Callable[[object], float]:
    def read(value: Any) -> float:
        if isinstance(value, timedelta):
            value = value.total_seconds()
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value):
            value = float(value)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not minimum <= value <= maximum:
            raise InvalidError(
                "is not a number of seconds in its range",
                f"Write one from {minimum:g} to {maximum:g}",
            )
        return float(value)

    return read


def read_names(value: object) -> frozenset[str]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",")]
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(map(_is_text, value)):
        raise InvalidError(
            "is not a list of names", 'Write ["trace_id"], each a ContextVar\'s name'
        )
    return frozenset(value)


def read_text(value: object) -> str:
    if not isinstance(value, (str, Path)) or not str(value):
        raise InvalidError("must be a non-empty string", "Leave it out to use the default")
    return str(value)


def read_path(value: object) -> Path:
    return Path(read_text(value))
