"""The settings of an app: read once, each mistake named by its key, no secret shown."""

from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError, fields
from datetime import timedelta
from pathlib import Path
from typing import get_type_hints

import pytest
from flask import Flask
from werkzeug.wrappers import Response

from prefetch_kit import ConfigError, Prefetch
from prefetch_kit.endpoint.config import TABLE, Config, key_of, load_config
from prefetch_kit.secret import Secret

CANARY = "canary-3b9e"
APP_SECRET = "0123456789abcdef" * 2
NO_ENVIRONMENT: Mapping[str, str] = {}
# Of QQ's and of FinClip's.
OTHER_APPIDS = ("1109653401", "fc2259339955292421", "5facb3a52dcbff00017469bd")
REDIS = (
    *("redis://:p@b", "redis://u:p%23@b:7/15", "redis://[::1]:7", "rediss://b/"),
    *("rediss://b?db=1&ssl_ca_certs=/ca.pem", "unix:///run/redis.sock?db=2"),
)
NO_REDIS = [
    *("http://a.example", "redis:/x", "redis://", "redis:///0", "redis://a:b", "redis://[::1"),
    *("redis://:p#w@a", "redis://:p/w@a", "redis://:p?w@a", "redis://a/shop", "redis://a/0#1"),
    *(
        "redis://a?socket_timeout=9",
        "redis://a?protocol=3",
        "redis://a?x",
        "rediss://a?ssl_password=x",
        *("rediss://a?ssl_cert_reqs=no", "redis://a?ssl_cert_reqs=none"),
    ),
]
WRONG: Mapping[str, list[object]] = {
    "PREFETCH_APPIDS": [
        *(
            7,
            [],
            "",
            [""],
            ["wx1", 2],
            b"wx1",
            "wx1,,wx2",
            ["shop"],
            ["shop2"],
            "wx",
            ["wx1", "app"],
        ),
        APP_SECRET,
    ],
    "PREFETCH_APP_SECRET": ["", "  ", 7, b"x", ["x"]],
    "PREFETCH_APP_SECRETS": [7, "x", "[]", [], {"wx1": ""}, {1: "x"}, {"wx2": "x"}],
    "PREFETCH_ACCESS_TOKEN": ["", 7, b"x"],
    "PREFETCH_TOKEN_COMMAND": ["", [], 7, ["x", 1], "say 'it", {"x": 1}],
    "PREFETCH_REFRESH": ["", 7, "before", True],
    "PREFETCH_TOKEN_CALL": ["", 7, "force_refresh", ["token"]],
    "PREFETCH_TOKEN_STORE_URL": ["", 7, *NO_REDIS],
    "PREFETCH_COMPONENT_APPID": ["", 7, "a b"],
    "PREFETCH_COMPONENT_SECRET": ["", 7],
    "PREFETCH_COMPONENT_MESSAGE_TOKEN": ["", 7],
    "PREFETCH_COMPONENT_AES_KEY": ["", 7, "k" * 42, "k" * 44, "k" * 42 + "+", "k" * 43 + "\nk"],
    "PREFETCH_COMPONENT_PREVIOUS_MESSAGE_TOKEN": ["", 7],
    "PREFETCH_COMPONENT_PREVIOUS_AES_KEY": ["", 7, "k" * 42],
    "PREFETCH_BASE_URL": [7, "", "http://a.example", "https://a.example:1", b"x"],
    "PREFETCH_PRE_FETCH": ["", 7, [], {}, "on", "cloud:e", {"env": "e"}, "http://a.example"],
    "PREFETCH_PERIOD_FETCH": ["", 7, [], {}, "on", "cloud:e", {"env": "e"}, "http://a.example"],
    "PREFETCH_CONFIRM_FILES": ["", 7, "[]", "{", ["x.txt"], {"x.html": "x"}, {"x.txt": ""}],
    "PREFETCH_APPIDS_MAX_AGE": [-1, 86_401, "1h", True],
    "PREFETCH_ENTRY_PAGE": ["", 7, "/pages/index/index", "pages/index/index?id=1"],
    "PREFETCH_TOKEN_MAX_AGE": [59, 366 * 86_400 + 1, "8d", 90.5, True, "+90", "９０", "9" * 5000],
    "PREFETCH_MAX_BYTES": [0, 262_145, "256K", [1]],
    "PREFETCH_WARN_BYTES": [0, 262_145, "x", [1]],
    "PREFETCH_BIG_INTEGERS": ["", 7, "str", ["text"]],
    "PREFETCH_DEADLINE": [0, 3601, "2s", True, [1], float("nan"), "1e3", None.__class__],
    "PREFETCH_THREADS": [0, 10_001, "many", 1.5],
    "PREFETCH_CACHE_BYTES": [-1, 2**40 + 1, "64M", 1.5],
    "PREFETCH_CACHE_URL": ["", 7, *NO_REDIS],
    "PREFETCH_CACHE_NAMESPACE": ["", 7],
    "PREFETCH_RELEASE": ["", 7],
    "PREFETCH_CONTEXT_VARS": [7, [1], {"a": 1}],
    "PREFETCH_API_BASE_URL": [7, "", "http://a.example", "x", "https://"],
    "PREFETCH_CA_FILE": ["", 7, b"x"],
    "PREFETCH_PROXY": ["", 7, "proxy.example:3128", "https://a.example:1", "http://a.example"],
    "PREFETCH_STATE_DIR": ["", 7, b"x"],
}


def read(settings: Mapping[str, object], environment: Mapping[str, str] = NO_ENVIRONMENT) -> Config:
    ours = {"PREFETCH_APPIDS": ["wx1"]} | dict(settings)
    return load_config(ours, instance_path="/srv/instance", environment=environment)


def test_defaults_need_one_key() -> None:
    """With the appids alone an app answers pulls."""
    config = read({})
    assert config.appids == ("wx1",)
    assert [config.admits(appid) for appid in ("wx1", "wx2", "")] == [True, False, False]
    assert config.app_secrets == {}
    assert (config.base_url, config.access_token, config.token_command) == (None, None, None)
    assert (config.max_bytes, config.warn_bytes) == (262_144, 240_000)
    assert config.token_max_age_s == 8 * 86_400
    assert (config.deadline_s, config.threads, config.cache_bytes) == (2.0, 64, 67_108_864)
    assert config.context_vars == frozenset()
    assert (config.cache_url, config.cache_namespace, config.release) == (None, "prefetch_kit", "")
    assert (config.api_base_url, config.ca_file) == ("https://api.weixin.qq.com", None)
    assert config.state_dir == Path("/srv/instance/prefetch_kit")


def test_missing_appids_are_an_error() -> None:
    """The one required key is named, with what to write."""
    with pytest.raises(ConfigError, match="PREFETCH_APPIDS is missing") as caught:
        load_config({}, instance_path="/srv", environment={})
    assert caught.value.key == "PREFETCH_APPIDS"
    assert caught.value.remedy


@pytest.mark.parametrize("key", ["PREFETCH_APPID", "PREFETCH_", "PREFETCH_MAX_BYTE"])
def test_unknown_key_is_an_error(key: str) -> None:
    """A misspelled setting is found at start-up, not by its lack of effect."""
    with pytest.raises(ConfigError, match=f"{key} is not a setting of prefetch_kit") as caught:
        read({key: 1})
    assert all(known in caught.value.remedy for known in TABLE)


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("PREFETCH_APPID", "APPIDS"),
        ("PREFETCH_APPIDs", "APPIDS"),
        ("PREFETCH_DEADLINES", "DEADLINE"),
        ("PREFETCH_TOKEN_AGE", "TOKEN_MAX_AGE"),
        ("PREFETCH_BASEURL", "BASE_URL"),
        ("PREFETCH_SECRET", "APP_SECRET"),
    ],
)
def test_misspelt_key_is_answered_with_the_nearest(key: str, meant: str) -> None:
    """The remedy begins with what was probably meant."""
    with pytest.raises(ConfigError) as caught:
        read({key: 1})
    assert caught.value.remedy.startswith(f"Did you mean PREFETCH_{meant}? Known are ")


def test_appids_that_are_none_are_not_quoted() -> None:
    """It may be the AppSecret, in the wrong place."""
    with pytest.raises(
        ConfigError, match=r"something that is no appid \(number 2 of 2\)"
    ) as caught:
        read({"PREFETCH_APPIDS": ["wx1", APP_SECRET]})
    assert APP_SECRET not in f"{caught.value} {vars(caught.value)}"


@pytest.mark.parametrize("key", ["prefetch_appid", "MY_PREFETCH_KEY", "PREFETCHED"])
def test_other_peoples_keys_are_left_alone(key: str) -> None:
    """Only the kit's own prefix is the kit's business."""
    assert read({key: 1}).appids == ("wx1",)


@pytest.mark.parametrize(
    ("key", "wrong"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_wrong_value_names_its_key(key: str, wrong: object) -> None:
    """Each setting refuses what it cannot use, and says what to write instead."""
    with pytest.raises(ConfigError) as caught:
        read({key: wrong})
    assert caught.value.key == key
    assert str(caught.value).startswith(f"{key} ")
    assert caught.value.remedy


def test_every_key_has_a_wrong_value() -> None:
    """A new setting cannot be added without its own row."""
    assert WRONG.keys() == TABLE.keys()


@pytest.mark.parametrize(
    ("key", "value", "attribute", "read_as"),
    [
        ("PREFETCH_APPIDS", "wx1, wx2", "appids", ("wx1", "wx2")),
        ("PREFETCH_APPIDS", ("wx1", "wx2"), "appids", ("wx1", "wx2")),
        ("PREFETCH_APPIDS", str.isdigit, "appids", ()),
        *(("PREFETCH_APPIDS", [other], "appids", (other,)) for other in OTHER_APPIDS),
        ("PREFETCH_APP_SECRET", f" {CANARY}\n", "app_secrets", {"wx1": Secret(CANARY)}),
        ("PREFETCH_APP_SECRET", Secret(CANARY), "app_secrets", {"wx1": Secret(CANARY)}),
        ("PREFETCH_APP_SECRETS", '{"wx1": "s"}', "app_secrets", {"wx1": Secret("s")}),
        ("PREFETCH_APP_SECRETS", {"wx1": Secret("s")}, "app_secrets", {"wx1": Secret("s")}),
        ("PREFETCH_ACCESS_TOKEN", "t", "access_token", Secret("t")),
        ("PREFETCH_TOKEN_COMMAND", "tool 'a b' c", "token_command", ("tool", "a b", "c")),
        ("PREFETCH_TOKEN_COMMAND", ["tool", "a b"], "token_command", ("tool", "a b")),
        ("PREFETCH_BASE_URL", "https://a.example/", "base_url", "https://a.example"),
        ("PREFETCH_BASE_URL", "https://a.example/m/", "base_url", "https://a.example/m"),
        ("PREFETCH_TOKEN_MAX_AGE", timedelta(days=2), "token_max_age_s", 172_800),
        ("PREFETCH_TOKEN_MAX_AGE", "3600", "token_max_age_s", 3600),
        ("PREFETCH_MAX_BYTES", 1, "max_bytes", 1),
        ("PREFETCH_WARN_BYTES", 262_144, "warn_bytes", 262_144),
        ("PREFETCH_DEADLINE", "0.5", "deadline_s", 0.5),
        ("PREFETCH_DEADLINE", timedelta(minutes=1), "deadline_s", 60.0),
        ("PREFETCH_CACHE_BYTES", "1073741824", "cache_bytes", 2**30),
        *(("PREFETCH_CACHE_URL", url, "cache_url", Secret(url)) for url in REDIS),
        ("PREFETCH_TOKEN_CALL", "token", "token_call", "token"),
        ("PREFETCH_REFRESH", "within", "refresh", "within"),
        ("PREFETCH_COMPONENT_AES_KEY", f"{'k' * 43}\n", "component_aes_key", Secret("k" * 43)),
        ("PREFETCH_CONTEXT_VARS", "a, b", "context_vars", frozenset({"a", "b"})),
        ("PREFETCH_API_BASE_URL", "http://127.0.0.1:9", "api_base_url", "http://127.0.0.1:9"),
        ("PREFETCH_CA_FILE", Path("/ca.pem"), "ca_file", "/ca.pem"),
        ("PREFETCH_PROXY", "http://u:p@a.example:1", "proxy", Secret("http://u:p@a.example:1")),
        ("PREFETCH_STATE_DIR", "/var/kit", "state_dir", Path("/var/kit")),
    ],
)
def test_values_are_read(key: str, value: object, attribute: str, read_as: object) -> None:
    """The forms a setting may be written in."""
    assert getattr(read({key: value}), attribute) == read_as


@pytest.mark.parametrize("key", [key for key in TABLE if key != "PREFETCH_APPIDS"])
def test_environment_is_read_by_exact_name(key: str) -> None:
    """A key missing from app.config comes from the variable of the same name only."""
    texts = {"PREFETCH_APP_SECRETS": '{"wx1": "x"}'}
    texts |= dict.fromkeys(("PREFETCH_CACHE_URL", "PREFETCH_TOKEN_STORE_URL"), "redis://127.0.0.1")
    texts |= {"PREFETCH_CONFIRM_FILES": '{"x.txt": "x"}'}
    texts |= {
        "PREFETCH_BIG_INTEGERS": "text",
        "PREFETCH_TOKEN_CALL": "token",
        "PREFETCH_REFRESH": "within",
        "PREFETCH_COMPONENT_AES_KEY": "k" * 43,
    }
    texts |= {"PREFETCH_COMPONENT_PREVIOUS_AES_KEY": "k" * 43, "PREFETCH_PROXY": "http://a.b:1"}
    texts |= dict.fromkeys(("PREFETCH_BASE_URL", "PREFETCH_API_BASE_URL"), "https://b.example")
    texts |= dict.fromkeys(("PREFETCH_PRE_FETCH", "PREFETCH_PERIOD_FETCH"), "cloud:e/f")
    text = texts.get(key, "3600")
    beside = {} if key == "PREFETCH_COMPONENT_SECRET" else {"PREFETCH_COMPONENT_SECRET": "s"}
    in_app = values(read({key: text, **beside}))
    assert values(read(beside, {key: text})) == in_app != values(read(beside))
    other = {f"X_{key}": text, key.lower(): text, f"{key}_": text, key: ""}
    assert values(read(beside, other)) == values(read(beside))


def values(config: Config) -> dict[str, object]:
    names = [field.name for field in fields(config) if field.name != "admits"]
    return {name: getattr(config, name) for name in names}


def test_settings_go_before_the_environment() -> None:
    """What the app itself says wins; None counts as not said."""
    environment = {"PREFETCH_MAX_BYTES": "7", "PREFETCH_UNKNOWN": "x"}
    assert read({"PREFETCH_MAX_BYTES": 8}, environment).max_bytes == 8
    assert read({"PREFETCH_MAX_BYTES": None}, environment).max_bytes == 7


@pytest.mark.parametrize(
    ("key", "attribute", "read_as"),
    [
        ("PREFETCH_APP_SECRET", "app_secrets", {"wx1": Secret('{"wx1": "s"}')}),
        ("PREFETCH_APP_SECRETS", "app_secrets", {"wx1": Secret("s")}),
        ("PREFETCH_ACCESS_TOKEN", "access_token", Secret('{"wx1": "s"}')),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_secrets_may_stand_in_a_file(
    tmp_path: Path, key: str, attribute: str, read_as: object, encoding: str
) -> None:
    """As Docker and systemd hand them over, with a line end; or as editors on Windows write."""
    (tmp_path / "secret").write_text('{"wx1": "s"}\n', encoding=encoding)
    environment = {f"{key}_FILE": str(tmp_path / "secret")}
    assert getattr(read({}, environment), attribute) == read_as
    assert getattr(read({key: '{"wx1": "own"}'}, environment), attribute) != read_as


def test_each_secret_is_marked() -> None:
    """A setting may be in a file exactly if its value is held as a Secret."""
    hints = get_type_hints(Config).items()
    held = {key_of(name) for name, hint in hints if "Secret" in str(hint)}
    assert {key for key, row in TABLE.items() if row.secret} == held


def test_other_settings_have_no_file() -> None:
    """`_FILE` is for secrets."""
    assert read({}, {"PREFETCH_MAX_BYTES_FILE": "/no/such/file"}).max_bytes == 262_144


@pytest.mark.parametrize("content", [None, b"", b"\xff" + CANARY.encode(), b" \n"])
def test_unreadable_secret_file_names_its_variable(tmp_path: Path, content: bytes | None) -> None:
    """A file that is missing, empty or not text is named, its content is not."""
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read({}, {"PREFETCH_APP_SECRET_FILE": str(tmp_path / "secret")})
    assert caught.value.key == "PREFETCH_APP_SECRET_FILE"
    assert CANARY not in str(caught.value)
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "settings",
    [
        {"PREFETCH_APP_SECRETS": {"wx1": CANARY, "wx2": CANARY}},
        {"PREFETCH_APP_SECRETS": {"wx1": CANARY}, "PREFETCH_APP_SECRET": CANARY},
        {"PREFETCH_APP_SECRET": CANARY, "PREFETCH_APPIDS": ["wx1", "wx2"]},
        {"PREFETCH_APP_SECRET": CANARY, "PREFETCH_APPIDS": str.isdigit},
        {"PREFETCH_APP_SECRET": [CANARY]},
        {"PREFETCH_APP_SECRETS": [CANARY]},
        {"PREFETCH_APP_SECRETS": f'{{"wx1": "{CANARY}"'},
        {"PREFETCH_APP_SECRETS": {"wx1": [CANARY]}},
        {"PREFETCH_ACCESS_TOKEN": CANARY, "PREFETCH_TOKEN_COMMAND": "tool"},
        {"PREFETCH_ACCESS_TOKEN": {"token": CANARY}},
        {"PREFETCH_COMPONENT_AES_KEY": CANARY},
        {"PREFETCH_COMPONENT_PREVIOUS_AES_KEY": CANARY},
        {"PREFETCH_COMPONENT_SECRET": [CANARY]},
        {"PREFETCH_TOKEN_STORE_URL": f"redis://:{CANARY}/@host"},
        {"PREFETCH_COMPONENT_APPID": "wx9", "PREFETCH_COMPONENT_MESSAGE_TOKEN": CANARY},
        {"PREFETCH_PROXY": f"http://me:{CANARY}@proxy.example"},
        {"PREFETCH_API_BASE_URL": f"https://me:{CANARY}@api.example"},
        {"PREFETCH_API_BASE_URL": f"http://{CANARY}.example"},
        {"PREFETCH_BASE_URL": f"https://me:{CANARY}@shop.example"},
    ],
)
def test_config_error_shows_no_secret(settings: Mapping[str, object]) -> None:
    """Neither the sentence nor what led to it repeats a value."""
    with pytest.raises(ConfigError) as caught:
        read(settings)
    assert CANARY not in f"{caught.value} {vars(caught.value)}"
    assert caught.value.__context__ is None


def test_config_repr_shows_no_secret() -> None:
    """A settings object may be printed."""
    secrets = {"PREFETCH_APP_SECRETS": {"wx1": CANARY}, "PREFETCH_ACCESS_TOKEN": CANARY}
    shown = repr(read(secrets))
    assert CANARY not in shown
    assert shown.count("Secret(***)") == 2


def test_config_is_frozen() -> None:
    """Nothing changes a setting behind a running app."""
    with pytest.raises(FrozenInstanceError):
        read({}).max_bytes = 1  # type: ignore[misc]


def test_settings_are_read_once(
    make_app: Callable[..., Flask],
    prefetch: Prefetch,
    ask: Callable[..., Response],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What changes after registration has no effect, for a second instance neither."""
    prefetch.pre_fetch()(lambda _: "four")
    app = make_app(prefetch)
    app.config["PREFETCH_MAX_BYTES"] = "wrong"
    monkeypatch.setenv("PREFETCH_WARN_BYTES", "wrong")
    app.register_blueprint(Prefetch("other", __name__), url_prefix="/other")
    assert ask(app).data == b"four"


def test_process_environment_is_read_at_registration(
    make_app: Callable[..., Flask],
    prefetch: Prefetch,
    ask: Callable[..., Response],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An app with nothing in app.config is configured by its environment alone."""
    prefetch.pre_fetch()(lambda _: "four")
    monkeypatch.setenv("PREFETCH_APPIDS", "wx7")
    app = make_app(prefetch, PREFETCH_APPIDS=None)
    assert [ask(app, appid=appid).status_code for appid in ("wx7", "wx1")] == [200, 403]


@pytest.mark.parametrize("appids", [["wx1"], ["wx1", "wx2"]])
def test_code_user_without_secret_is_refused_at_start(
    make_app: Callable[..., Flask], prefetch: Prefetch, appids: list[str]
) -> None:
    """An app that maps login codes must be able to exchange them for each of its appids."""
    prefetch.code_user(lambda _appid, openid, _unionid: openid)
    secrets = dict.fromkeys(appids[:-1], "x")
    with pytest.raises(ConfigError, match=f"PREFETCH_APP_SECRETS lacks {appids[-1]}"):
        make_app(prefetch, PREFETCH_APPIDS=appids, PREFETCH_APP_SECRETS=secrets)


def test_login_required_without_any_proof_is_refused_at_start(
    make_app: Callable[..., Flask], prefetch: Prefetch
) -> None:
    """A page nobody could ever see is a mistake of the settings."""
    prefetch.pre_fetch(login_required=True)(lambda _: {})
    with pytest.raises(ConfigError, match="SECRET_KEY is missing"):
        make_app(prefetch, SECRET_KEY=None)


def test_login_required_is_content_with_the_apps_own_proof(
    make_app: Callable[..., Flask], prefetch: Prefetch
) -> None:
    """Where the app checks tokens itself, it needs no key to sign them."""
    prefetch.pre_fetch(login_required=True)(lambda _: {})
    prefetch.token_verifier(lambda _appid, _token: None)
    make_app(prefetch, SECRET_KEY=None)


@pytest.mark.parametrize(
    "fallbacks",
    ["an earlier key", b"an earlier key", {"a": 1}, [""], [b"old", b""], [3], [None], 3],
)
def test_earlier_keys_anyone_could_sign_with_are_refused_at_start(
    make_app: Callable[..., Flask], prefetch: Prefetch, fallbacks: object
) -> None:
    """A string taken for a list has one-letter keys, and an empty key is everybody's."""
    with pytest.raises(ConfigError, match=r"SECRET_KEY_FALLBACKS (is not a list|holds a key)"):
        make_app(prefetch, SECRET_KEY_FALLBACKS=fallbacks)


def test_key_that_is_no_text_is_refused_at_start(
    make_app: Callable[..., Flask], prefetch: Prefetch
) -> None:
    """Its failure would otherwise come with the first login."""
    with pytest.raises(ConfigError, match="SECRET_KEY holds a key"):
        make_app(prefetch, SECRET_KEY=12345)


@pytest.mark.parametrize("appids", [["wx1", "wx2"], lambda _: True])
@pytest.mark.parametrize(
    "source", [{"PREFETCH_ACCESS_TOKEN": "t"}, {"PREFETCH_TOKEN_COMMAND": ["my-tool", "token"]}]
)
def test_one_token_for_several_mini_programs_is_refused(
    make_app: Callable[..., Flask], prefetch: Prefetch, appids: object, source: dict[str, object]
) -> None:
    """It belongs to one of them, and `--appid` could name the other."""
    with pytest.raises(ConfigError, match=f"{next(iter(source))} gives the token of one"):
        make_app(prefetch, PREFETCH_APPIDS=appids, **source)


def test_command_told_the_appid_serves_several(
    make_app: Callable[..., Flask], prefetch: Prefetch
) -> None:
    """It can print each one's own token."""
    make_app(
        prefetch,
        PREFETCH_APPIDS=["wx1", "wx2"],
        PREFETCH_TOKEN_COMMAND=["my-tool", "--account={appid}"],
    )


@pytest.mark.parametrize(("key", "warnings"), [("dev", 1), (b"dev", 1), ("k" * 16, 0), (None, 0)])
def test_a_short_key_is_told_of(
    make_app: Callable[..., Flask],
    logged: Callable[[], list[str]],
    key: object,
    warnings: int,
) -> None:
    """Once for an app, and without the key."""
    make_app(Prefetch("one", __name__), Prefetch("two", __name__), SECRET_KEY=key)
    found = [line for line in logged() if "SECRET_KEY is shorter than 16 characters" in line]
    assert len(found) == warnings
    assert "dev" not in "".join(found)
