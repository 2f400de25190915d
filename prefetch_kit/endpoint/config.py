"""The settings of one app: one table, read once, frozen."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prefetch_kit.endpoint import values
from prefetch_kit.errors import ConfigError
from prefetch_kit.fetch_setting import FetchSetting
from prefetch_kit.secret import Secret

PREFIX: Final = "PREFETCH_"
# /miniprogram/dev/framework/ability/pre-fetch.html says 256 KB and not how long a KB is: refuse
# above 256 x 1024, and warn before 256 x 1000.
PLATFORM_MAX_BYTES: Final = 262_144


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What `app.config` and the environment say. `appids` is empty where a callable decides.

    `pre_fetch` and `period_fetch` are None where WeChat is to pull from the app itself.
    """

    appids: tuple[str, ...]
    admits: Callable[[str], bool]
    app_secrets: Mapping[str, Secret]
    access_token: Secret | None
    token_command: tuple[str, ...] | None
    token_call: str
    token_store_url: Secret | None
    component_appid: str | None
    component_secret: Secret | None
    component_message_token: Secret | None
    component_aes_key: Secret | None
    base_url: str | None
    pre_fetch: FetchSetting | None
    period_fetch: FetchSetting | None
    confirm_files: Mapping[str, str]
    token_max_age_s: int
    max_bytes: int
    warn_bytes: int
    deadline_s: float
    threads: int
    cache_bytes: int
    cache_url: Secret | None
    cache_namespace: str
    release: str
    context_vars: frozenset[str]
    api_base_url: str
    ca_file: str | None
    state_dir: Path


_REQUIRED: Final = object()
_SECRET_KEYS: Final = frozenset(
    {
        "PREFETCH_APP_SECRET",
        "PREFETCH_APP_SECRETS",
        "PREFETCH_ACCESS_TOKEN",
        "PREFETCH_TOKEN_STORE_URL",
        "PREFETCH_COMPONENT_SECRET",
        "PREFETCH_COMPONENT_MESSAGE_TOKEN",
        "PREFETCH_COMPONENT_AES_KEY",
        "PREFETCH_CACHE_URL",
    }
)
# key: (how its value is read, default)
TABLE: Final[Mapping[str, tuple[Callable[[Any], object], object]]] = {
    "PREFETCH_APPIDS": (values.read_appids, _REQUIRED),
    "PREFETCH_APP_SECRET": (values.read_secret, None),
    "PREFETCH_APP_SECRETS": (values.read_secrets, None),
    "PREFETCH_ACCESS_TOKEN": (values.read_secret, None),
    "PREFETCH_TOKEN_COMMAND": (values.read_command, None),
    "PREFETCH_TOKEN_CALL": (values.read_token_call, "stable_token"),
    "PREFETCH_TOKEN_STORE_URL": (values.read_redis_url, None),
    "PREFETCH_COMPONENT_APPID": (values.read_component_appid, None),
    "PREFETCH_COMPONENT_SECRET": (values.read_secret, None),
    "PREFETCH_COMPONENT_MESSAGE_TOKEN": (values.read_secret, None),
    "PREFETCH_COMPONENT_AES_KEY": (values.read_aes_key, None),
    "PREFETCH_BASE_URL": (values.read_base_url, None),
    "PREFETCH_PRE_FETCH": (values.read_fetch_setting, None),
    "PREFETCH_PERIOD_FETCH": (values.read_fetch_setting, None),
    "PREFETCH_CONFIRM_FILES": (values.read_confirm_files, None),
    "PREFETCH_TOKEN_MAX_AGE": (values.read_whole_number(60, 366 * 86_400), 8 * 86_400),
    "PREFETCH_MAX_BYTES": (values.read_whole_number(1, PLATFORM_MAX_BYTES), PLATFORM_MAX_BYTES),
    "PREFETCH_WARN_BYTES": (values.read_whole_number(1, PLATFORM_MAX_BYTES), 240_000),
    "PREFETCH_DEADLINE": (values.read_seconds(0.01, 3600), 2),
    "PREFETCH_THREADS": (values.read_whole_number(1, 10_000), 64),
    "PREFETCH_CACHE_BYTES": (values.read_whole_number(0, 2**40), 64 * 1024 * 1024),
    "PREFETCH_CACHE_URL": (values.read_redis_url, None),
    "PREFETCH_CACHE_NAMESPACE": (values.read_text, "prefetch_kit"),
    "PREFETCH_RELEASE": (values.read_text, None),
    "PREFETCH_CONTEXT_VARS": (values.read_names, None),
    "PREFETCH_API_BASE_URL": (values.read_api_base_url, "https://api.weixin.qq.com"),
    "PREFETCH_CA_FILE": (values.read_text, None),
    "PREFETCH_STATE_DIR": (values.read_text, None),
}


def load_config(
    settings: Mapping[str, object],
    *,
    instance_path: str,
    environment: Mapping[str, str] = os.environ,
) -> Config:
    """Read every `PREFETCH_*` key of an app.

    A key missing from `settings` (`app.config`) is looked up in the environment under the same
    name, a secret also in the file named by `<KEY>_FILE`. Raises `ConfigError` for a key that
    is unknown, missing or wrong.
    """
    _refuse_unknown(settings)
    given = {key: _read(key, settings, environment) for key in TABLE}
    if given["PREFETCH_ACCESS_TOKEN"] and given["PREFETCH_TOKEN_COMMAND"]:
        raise ConfigError(
            "PREFETCH_TOKEN_COMMAND",
            "and PREFETCH_ACCESS_TOKEN are both set",
            remedy="Keep one of them",
        )
    if given["PREFETCH_COMPONENT_APPID"] and not given["PREFETCH_COMPONENT_SECRET"]:
        raise ConfigError(
            "PREFETCH_COMPONENT_SECRET",
            "is missing beside PREFETCH_COMPONENT_APPID",
            remedy="Set it to the AppSecret of the third-party platform",
        )
    appids = given["PREFETCH_APPIDS"]
    known: tuple[str, ...] = () if callable(appids) else appids
    _refuse_token_of_which(given, known)
    state_dir = given["PREFETCH_STATE_DIR"]
    return Config(
        appids=known,
        admits=appids if callable(appids) else frozenset(known).__contains__,
        app_secrets=_app_secrets(given, known),
        access_token=given["PREFETCH_ACCESS_TOKEN"],
        token_command=given["PREFETCH_TOKEN_COMMAND"],
        token_call=given["PREFETCH_TOKEN_CALL"],
        token_store_url=given["PREFETCH_TOKEN_STORE_URL"],
        component_appid=given["PREFETCH_COMPONENT_APPID"],
        component_secret=given["PREFETCH_COMPONENT_SECRET"],
        component_message_token=given["PREFETCH_COMPONENT_MESSAGE_TOKEN"],
        component_aes_key=given["PREFETCH_COMPONENT_AES_KEY"],
        base_url=given["PREFETCH_BASE_URL"],
        pre_fetch=given["PREFETCH_PRE_FETCH"],
        period_fetch=given["PREFETCH_PERIOD_FETCH"],
        confirm_files=given["PREFETCH_CONFIRM_FILES"] or {},
        token_max_age_s=given["PREFETCH_TOKEN_MAX_AGE"],
        max_bytes=given["PREFETCH_MAX_BYTES"],
        warn_bytes=given["PREFETCH_WARN_BYTES"],
        deadline_s=given["PREFETCH_DEADLINE"],
        threads=given["PREFETCH_THREADS"],
        cache_bytes=given["PREFETCH_CACHE_BYTES"],
        cache_url=given["PREFETCH_CACHE_URL"],
        cache_namespace=given["PREFETCH_CACHE_NAMESPACE"],
        release=given["PREFETCH_RELEASE"] or "",
        context_vars=given["PREFETCH_CONTEXT_VARS"] or frozenset(),
        api_base_url=given["PREFETCH_API_BASE_URL"],
        ca_file=given["PREFETCH_CA_FILE"],
        state_dir=Path(state_dir) if state_dir else Path(instance_path, "prefetch_kit"),
    )


def _refuse_token_of_which(given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """With several mini programs, one token would write the settings of the wrong one."""
    for key in ("PREFETCH_ACCESS_TOKEN", "PREFETCH_TOKEN_COMMAND"):
        names_appid = "{appid}" in " ".join(given["PREFETCH_TOKEN_COMMAND"] or ())
        if given[key] is not None and len(known) != 1 and not names_appid:
            raise ConfigError(
                key,
                "gives the token of one mini program, and PREFETCH_APPIDS lets in several",
                remedy="Use PREFETCH_APP_SECRETS, or PREFETCH_TOKEN_COMMAND with {appid} in it",
            )


def _refuse_unknown(settings: Mapping[str, object]) -> None:
    for key in settings:
        if key.startswith(PREFIX) and key not in TABLE:
            raise ConfigError(
                key, "is not a setting of prefetch_kit", remedy=f"Known are {', '.join(TABLE)}"
            )


def _read(key: str, settings: Mapping[str, object], environment: Mapping[str, str]) -> Any:
    read, default = TABLE[key]
    value = settings.get(key)
    name = key
    if value is None:
        value = environment.get(key) or None
    if value is None and key in _SECRET_KEYS and (path := environment.get(f"{key}_FILE")):
        name = f"{key}_FILE"
        value = _read_file(name, path)
    if value is None:
        if default is _REQUIRED:
            raise ConfigError(key, "is missing", remedy='Set it to your appids, such as ["wx…"]')
        return default
    try:
        return read(value)
    except values.InvalidError as error:
        problem, remedy = error.problem, error.remedy
    del value  # a traceback that goes through here shows no secret
    raise ConfigError(name, problem, remedy=remedy)


def _read_file(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is not UTF-8 text"
    raise ConfigError(name, f"names {path!r}, which cannot be read: {cause}", remedy="Fix the path")


def _app_secrets(given: Mapping[str, Any], known: tuple[str, ...]) -> dict[str, Secret]:
    secrets: dict[str, Secret] = given["PREFETCH_APP_SECRETS"] or {}
    single: Secret | None = given["PREFETCH_APP_SECRET"]
    if single is not None and (secrets or len(known) != 1):
        raise ConfigError(
            "PREFETCH_APP_SECRET",
            "needs exactly one appid in PREFETCH_APPIDS and no PREFETCH_APP_SECRETS",
            remedy='Use PREFETCH_APP_SECRETS = {"wx…": "its AppSecret"}',
        )
    if single is not None:
        return {known[0]: single}
    if known and (strangers := sorted(set(secrets) - set(known))):
        raise ConfigError(
            "PREFETCH_APP_SECRETS",
            f"names {', '.join(strangers)}, which PREFETCH_APPIDS does not",
            remedy="Add the appid there, or take it out here",
        )
    return secrets
