"""The settings of an app: one table, read once, frozen.

The fields of `Config` are the table. A new setting is a new field; the README lists it too.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Never, TypeVar, overload

from prefetch_kit.endpoint import values
from prefetch_kit.errors import ConfigError
from prefetch_kit.fetch_setting import FetchSetting
from prefetch_kit.quoting import harmless
from prefetch_kit.refusals import MAX_ANSWER_BYTES
from prefetch_kit.secret import Secret

PREFIX: Final = "PREFETCH_"
_DEFAULT_STATE_DIR: Final = Path("prefetch_kit")  # in the instance folder
_NOTHING: Final[Mapping[str, Never]] = MappingProxyType({})

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """How one setting is read, and what the README says of it (Markdown).

    `default` applies where the setting is absent. A `secret` may also be in a file, which
    `<KEY>_FILE` names.
    """

    read: Callable[[Any], object]
    default: object
    required: bool
    secret: bool
    meaning: str


@overload
def setting(
    read: Callable[[Any], _T], *, required: bool, secret: bool = ..., meaning: str
) -> _T: ...
@overload
def setting(read: Callable[[Any], _T], *, default: _T, secret: bool = ..., meaning: str) -> _T: ...
@overload
def setting(read: Callable[[Any], _T], *, secret: bool = ..., meaning: str) -> _T | None: ...
def setting(
    read: Callable[[Any], object],
    *,
    default: object = None,
    required: bool = False,
    secret: bool = False,
    meaning: str,
) -> Any:
    """A field of `Config` that is read from `PREFETCH_` and its name, less the unit `_s`."""
    row = Setting(read=read, default=default, required=required, secret=secret, meaning=meaning)
    return field(metadata={"setting": row})


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings of one app, from `app.config` and the environment."""

    # Empty where a callable decides.
    appids: tuple[str, ...] = setting(
        values.read_appids,
        required=True,
        meaning="the appids that are ours: a list (comma-separated in the environment), "
        "or a callable appid → bool",
    )
    admits: Callable[[str], bool]  # from PREFETCH_APPIDS
    appids_max_age_s: float = setting(
        values.read_seconds(0, 86_400),
        default=0.0,
        meaning="seconds for which an answer of a callable `PREFETCH_APPIDS` is remembered",
    )
    app_secret: Secret | None = setting(
        values.read_secret, secret=True, meaning="the AppSecret, where there is exactly one appid"
    )
    # With the one of PREFETCH_APP_SECRET.
    app_secrets: Mapping[str, Secret] = setting(
        values.read_secrets,
        default=_NOTHING,
        secret=True,
        meaning="appid → AppSecret (JSON in the environment)",
    )
    access_token: Secret | None = setting(
        values.read_secret, secret=True, meaning="a ready access token for the registrar"
    )
    token_command: tuple[str, ...] | None = setting(
        values.read_command, meaning="a program that prints one"
    )
    token_call: str = setting(
        values.read_token_call,
        default="stable_token",
        meaning="or `token`: each such token ends the one that other programs of the app hold",
    )
    token_store_url: Secret | None = setting(
        values.read_redis_url,
        secret=True,
        meaning="a Redis that keeps tokens for many machines, instead of the state directory; "
        "needs `prefetch-kit[redis]`, and an append-only file there",
    )
    component_appid: str | None = setting(
        values.read_component_appid,
        meaning="the third-party platform (第三方平台) that serves the mini programs "
        "without an AppSecret here",
    )
    component_secret: Secret | None = setting(
        values.read_secret, secret=True, meaning="its AppSecret"
    )
    component_message_token: Secret | None = setting(
        values.read_secret, secret=True, meaning="its 消息校验Token, for what WeChat pushes"
    )
    component_aes_key: Secret | None = setting(
        values.read_aes_key, secret=True, meaning="its 消息加解密Key, 43 letters and digits"
    )
    component_previous_message_token: Secret | None = setting(
        values.read_secret,
        secret=True,
        meaning="the 消息校验Token before it was changed, for pushes made with that one",
    )
    component_previous_aes_key: Secret | None = setting(
        values.read_aes_key, secret=True, meaning="the 消息加解密Key before it was changed"
    )
    base_url: str | None = setting(
        values.read_base_url,
        meaning="the public https origin, with a mount path if there is one",
    )
    # None: WeChat pulls from this app itself.
    pre_fetch: FetchSetting | None = setting(
        values.read_fetch_setting,
        meaning='where WeChat pre-fetches from, if not from this app: `"https://…"`, '
        '`{"env": …, "function_name": …}` (JSON in the environment), `"cloud:ENV/NAME"` '
        'or `"off"`',
    )
    period_fetch: FetchSetting | None = setting(
        values.read_fetch_setting, meaning="the same for the periodic pull"
    )
    confirm_files: Mapping[str, str] = setting(
        values.read_confirm_files,
        default=_NOTHING,
        meaning="confirm files (校验文件) to serve at the root of the host: "
        "name → content (JSON in the environment)",
    )
    entry_page: str | None = setting(
        values.read_page,
        meaning="the page that is opened where a pull has no path, such as `pages/index/index`",
    )
    token_max_age_s: int = setting(
        values.read_whole_number(60, 366 * 86_400),
        default=8 * 86_400,
        meaning="seconds for which a minted token is valid (8 days), and five minutes more",
    )
    max_bytes: int = setting(
        values.read_whole_number(1, MAX_ANSWER_BYTES),
        default=MAX_ANSWER_BYTES,
        meaning="no answer is larger",
    )
    warn_bytes: int = setting(
        values.read_whole_number(1, MAX_ANSWER_BYTES),
        default=240_000,  # less than 256 x 1000, should a KB be so long
        meaning="larger answers are logged",
    )
    big_integers: str = setting(
        values.read_big_integers,
        default="number",
        meaning="integers beyond 2**53, which JavaScript rounds: warned of once a handler, or "
        "`text`: sent as text",
    )
    deadline_s: float = setting(
        values.read_seconds(0.01, 3600),
        default=2.0,
        meaning="seconds a handler has, unless it has a `deadline` itself",
    )
    threads: int = setting(
        values.read_whole_number(1, 10_000),
        default=64,
        meaning="threads for handlers in each process, and as many for your verifiers; a page gets "
        "at most half of those that the others leave",
    )
    cache_bytes: int = setting(
        values.read_whole_number(0, 2**40),
        default=64 * 1024 * 1024,
        meaning="memory for cached answers in each process (64 MiB)",
    )
    cache_url: Secret | None = setting(
        values.read_redis_url,
        secret=True,
        meaning="a Redis that shares answers: `redis://`, `rediss://`, `unix://`, or "
        "`redis+sentinel://:password@host:26379,host2:26379/name/0`; "
        "needs `prefetch-kit[redis]`",
    )
    cache_namespace: str = setting(
        values.read_text, default="prefetch_kit", meaning="the first part of its keys there"
    )
    release: str = setting(
        values.read_text,
        default="",
        meaning="answers are shared only by processes of the same release",
    )
    refresh: str = setting(
        values.read_refresh,
        default="after",
        meaning="when a stale answer is made anew: after the pull that finds it, or `within` its "
        "time, where nothing may run after an answer (微信云托管)",
    )
    context_vars: frozenset[str] = setting(
        values.read_names,
        default=frozenset(),
        meaning="names of context variables that cached handlers keep; the traces of Sentry and "
        "OpenTelemetry need none",
    )
    api_base_url: str = setting(
        values.read_api_base_url,
        default="https://api.weixin.qq.com",
        meaning="https, or a sandbox on loopback",
    )
    ca_file: str | None = setting(
        values.read_text, meaning="certificates (PEM) that are trusted besides the usual ones"
    )
    proxy: Secret | None = setting(
        values.read_proxy,
        secret=True,
        meaning="an HTTP proxy for all calls to WeChat, `http://user:password@host:port`; "
        "`probe` does not use it",
    )
    state_dir: Path = setting(
        values.read_path,
        default=_DEFAULT_STATE_DIR,
        meaning="the journal, locks and tokens; the default is in the instance folder",
    )

    @property
    def wechat_appids(self) -> tuple[str, ...]:
        """The listed appids that are WeChat's: it can be asked for these, and has their secrets."""
        return tuple(appid for appid in self.appids if appid.startswith("wx"))


def key_of(name: str) -> str:
    """The key of a field of `Config`: `PREFETCH_DEADLINE` for `deadline_s`."""
    return PREFIX + name.removesuffix("_s").upper()


_BY_NAME: Final[Mapping[str, Setting]] = {
    each.name: each.metadata["setting"] for each in fields(Config) if each.metadata
}
TABLE: Final[Mapping[str, Setting]] = {key_of(name): row for name, row in _BY_NAME.items()}


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
    given = {name: _read(name, settings, environment) for name in _BY_NAME}
    if given["state_dir"] is _DEFAULT_STATE_DIR:
        given["state_dir"] = Path(instance_path, _DEFAULT_STATE_DIR)
    appids = given.pop("appids")
    known = () if callable(appids) else appids
    config = Config(
        appids=known,
        admits=appids if callable(appids) else frozenset(known).__contains__,
        **given,
    )
    _refuse_contradictions(config)
    return replace(config, app_secrets=_app_secrets(config))


def _refuse_contradictions(config: Config) -> None:
    if config.access_token and config.token_command:
        raise ConfigError(
            "PREFETCH_TOKEN_COMMAND",
            "and PREFETCH_ACCESS_TOKEN are both set",
            remedy="Keep one of them",
        )
    if config.component_appid and not config.component_secret:
        raise ConfigError(
            "PREFETCH_COMPONENT_SECRET",
            "is missing beside PREFETCH_COMPONENT_APPID",
            remedy="Set it to the AppSecret of the third-party platform",
        )
    # With several mini programs, one token would write the settings of the wrong one.
    names_appid = "{appid}" in " ".join(config.token_command or ())
    for name in ("access_token", "token_command"):
        if getattr(config, name) is not None and len(config.wechat_appids) != 1 and not names_appid:
            raise ConfigError(
                key_of(name),
                "gives the token of one mini program, and PREFETCH_APPIDS lets in several",
                remedy="Use PREFETCH_APP_SECRETS, or PREFETCH_TOKEN_COMMAND with {appid} in it",
            )


def _refuse_unknown(settings: Mapping[str, object]) -> None:
    for key in settings:
        if key.startswith(PREFIX) and key not in TABLE:
            near = get_close_matches(key, TABLE, n=1)
            meant = f"Did you mean {near[0]}? " if near else ""
            raise ConfigError(
                key,
                "is not a setting of prefetch_kit",
                remedy=f"{meant}Known are {', '.join(TABLE)}",
            )


def _read(name: str, settings: Mapping[str, object], environment: Mapping[str, str]) -> Any:
    key = key_of(name)
    row = TABLE[key]
    value = settings.get(key)
    name = key
    if value is None:
        value = environment.get(key) or None
    if value is None and row.secret and (path := environment.get(f"{key}_FILE")):
        name = f"{key}_FILE"
        value = _read_file(name, path)
    if value is None:
        if row.required:
            raise ConfigError(key, "is missing", remedy='Set it to your appids, such as ["wx…"]')
        return row.default
    try:
        return row.read(value)
    except values.InvalidError as error:
        problem, remedy = error.problem, error.remedy
    del value  # a traceback that goes through here shows no secret
    raise ConfigError(name, problem, remedy=remedy)


def _read_file(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is not UTF-8 text"
    problem = f"names {harmless(path)}, which cannot be read: {cause}"
    raise ConfigError(name, problem, remedy="Name the file that holds the secret")


def _app_secrets(config: Config) -> Mapping[str, Secret]:
    """AppSecrets by appid, from either of the two settings."""
    known, single, secrets = config.wechat_appids, config.app_secret, config.app_secrets
    if single is not None and (secrets or len(known) != 1):
        raise ConfigError(
            "PREFETCH_APP_SECRET",
            "needs exactly one appid in PREFETCH_APPIDS and no PREFETCH_APP_SECRETS",
            remedy='Use PREFETCH_APP_SECRETS = {"wx…": "its AppSecret"}',
        )
    if single is not None:
        return {known[0]: single}
    if known and (unknown := sorted(set(secrets) - set(known))):
        raise ConfigError(
            "PREFETCH_APP_SECRETS",
            f"names {', '.join(map(harmless, unknown))}, which PREFETCH_APPIDS does not",
            remedy="Add the appid there, or take it out here; appids come before their secrets",
        )
    return secrets
