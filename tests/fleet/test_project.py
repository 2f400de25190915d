"""prefetch.toml: what it may say, and what is said about one that is wrong."""

import traceback
from pathlib import Path

import pytest

from prefetch_kit.errors import ConfigError
from prefetch_kit.fleet.project import Project, load_project

SMALLEST = """
[apps]
list = "apps.csv"
[urls]
pre_fetch = "https://shop.example/p/{appid}/pre_fetch"
[tokens]
app_secrets = { env = "SECRETS" }
"""
ENVIRONMENT = {
    "SECRETS": '{"wx01": "canary-app-secret"}',
    "PLATFORM": "canary-platform",
    "NONE": "",
}


def loaded(tmp_path: Path, text: str) -> Project:
    path = tmp_path / "prefetch.toml"
    path.write_text(text, encoding="utf-8")
    return load_project(path, environment=ENVIRONMENT)


def test_the_smallest_file(tmp_path: Path) -> None:
    """Paths are relative to the file; what is left out has its default."""
    project = loaded(tmp_path, SMALLEST)
    assert project.apps == tmp_path / "apps.csv"
    assert project.state_dir == tmp_path / ".prefetch_kit"
    assert (project.pace.workers, project.pace.canary, project.pace.stop_at) == (32, 5, 0.1)
    assert project.api_base_url == "https://api.weixin.qq.com"
    assert project.app_secrets["wx01"].reveal() == "canary-app-secret"


def test_everything_at_once(tmp_path: Path) -> None:
    """Each table and key is in what is read."""
    (tmp_path / "secret").write_text("canary-platform\n")
    project = loaded(
        tmp_path,
        """
        state_dir = "/var/lib/prefetch"
        api_base_url = "http://127.0.0.1:9000"
        ca_file = "ca.pem"
        [apps]
        authorized = true
        [urls]
        pre_fetch = "https://shop.example/{appid}"
        period_fetch = "https://shop.example/{appid}/period"
        off = ["period_fetch"]
        [tokens]
        component_appid = "wxplatform"
        component_secret = { file = "secret" }
        namespace = "shop"
        [fleet]
        workers = 8
        rate = 100
        per_app_rate = 0.5
        canary = 1
        stop_at = "2.5%"
        max_changes = 10
        """,
    )
    assert project.apps is None
    assert project.pulls["period_fetch"].is_off
    assert not project.pulls["pre_fetch"].is_off
    assert project.component_secret is not None
    assert project.component_secret.reveal() == "canary-platform"
    assert (project.pace.rate, project.pace.stop_at, project.pace.max_changes) == (100, 0.025, 10)
    assert project.wechat_dir == Path("/var/lib/prefetch/127.0.0.1%3A9000")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("[apps]", "color = 1\n[apps]", r"\*\*\* is not known"),
        ("[apps]", "[aps]\n[apps]", "aps is not known"),
        ('list = "apps.csv"', 'lst = "apps.csv"', r"\[apps\] lst is not known"),
        ('list = "apps.csv"', "", r"\[apps\] list is not the one source"),
        ('list = "apps.csv"', 'list = "a.csv"\nauthorized = true', r"\[apps\] list is not the one"),
        ('list = "apps.csv"', "authorized = true", r"\[apps\] authorized .* third-party platform"),
        ('"apps.csv"', '"apps.xls"', r"\[apps\] list is neither .csv nor .jsonl"),
        ('"apps.csv"', "7", r"\[apps\] list Not a valid string"),
        ("[urls]", "[url]", "url is not known|urls is missing"),
        ("pre_fetch =", "pre_fech =", r"\[urls\] pre_fech is not known"),
        ("https://", "http://", r"\[urls\] pre_fetch cannot be registered: .*https://"),
        ("shop.example", "127.0.0.1", r"\[urls\] pre_fetch cannot be registered: .*IP address"),
        ("{appid}", "{appid", r"\[urls\] pre_fetch has a brace"),
        ("{appid}", "{appid!r}", r"\[urls\] pre_fetch has a placeholder"),
        ("{appid}", "{appid.__class__}", r"\[urls\] pre_fetch has a placeholder"),
        ("{appid}", "{}", r"\[urls\] pre_fetch has a placeholder"),
        ("{appid}", "{{appid}}", r"\[urls\] pre_fetch has doubled or encoded braces"),
        ("{appid}", "{appid}/{{x}}", r"\[urls\] pre_fetch has doubled or encoded braces"),
        ("{appid}", "%7Bappid%7d", r"\[urls\] pre_fetch has doubled or encoded braces"),
        ("[apps]", 'state_dir = ""\n[apps]', r"state_dir is empty\. Name a directory"),
        ("[tokens]", 'off = ["period_fetch"]\n[tokens]', r"\[urls\] off names period_fetch"),
        (
            '{ env = "SECRETS" }',
            '"canary-app-secret"',
            r"\[tokens\] app_secrets does not say where",
        ),
        ('"SECRETS"', '"GONE"', r"\[tokens\] app_secrets names a variable that is not set"),
        ('"SECRETS"', '"NONE"', r"\[tokens\] app_secrets names a variable that is not set"),
        ('"SECRETS"', '"PLATFORM"', r"\[tokens\] app_secrets does not lead to JSON"),
        ('env = "SECRETS"', 'file = "gone"', r"\[tokens\] app_secrets names \*\*\*, which cannot"),
        ("app_secrets", "command", r"\[tokens\] command"),
        ('app_secrets = { env = "SECRETS" }', "", r"\[tokens\] says nothing"),
        (
            'app_secrets = { env = "SECRETS" }',
            'command = ["tool", "token"]',
            r"\[tokens\] command does not say whose token",
        ),
        (
            "app_secrets",
            'component_appid = "wx9"\napp_secrets',
            r"component_secret and component_ap",
        ),
        ("[apps]", "[fleet]\nworkers = 0\n[apps]", r"\[fleet\] workers Must be"),
        ("[apps]", '[fleet]\nworkers = "8"\n[apps]', r"\[fleet\] workers Not a valid integer"),
        ("[apps]", "[fleet]\nrate = 0\n[apps]", r"\[fleet\] rate is not a number"),
        ("[apps]", '[fleet]\nstop_at = "0%"\n[apps]', r"\[fleet\] stop_at is not a share"),
        ("[apps]", "[fleet]\nstop_at = 0.1\n[apps]", r"\[fleet\] stop_at is not a share"),
        ("[apps]", '[fleet]\nstop_at = "nan%"\n[apps]', r"\[fleet\] stop_at is not a share"),
        ("[apps]", 'api_base_url = "http://x.example"\n[apps]', "api_base_url must begin with"),
        ("[apps]", "[apps", "is not TOML .*line 2"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    """File, table, key, cause and remedy stand in one sentence, and no secret does."""
    with pytest.raises(ConfigError, match=says) as caught:
        loaded(tmp_path, SMALLEST.replace(old, new, 1))
    assert caught.value.key.startswith(str(tmp_path / "prefetch.toml"))
    assert caught.value.remedy
    assert "canary-" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """Nor one that is no text."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_project(tmp_path / "prefetch.toml")
    (tmp_path / "prefetch.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_project(tmp_path / "prefetch.toml")


def test_no_secret_can_be_printed(tmp_path: Path) -> None:
    """Neither from the project nor from its parts."""
    assert "canary-" not in repr(loaded(tmp_path, SMALLEST))


@pytest.mark.parametrize(
    "url",
    [
        "redis://:canary-pa/ss@host:6379/0",
        "host:6379",
        "redis://:canary@host/0?decode_responses=true",
        "redis://:canary@host/0?socket_timeout=600",
    ],
)
def test_the_address_of_a_redis_that_is_none(tmp_path: Path, url: str) -> None:
    """Refused here, where a client would quote it, or read records otherwise than they are."""
    text = SMALLEST + 'store_url = { env = "STORE" }'
    (tmp_path / "prefetch.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"\[tokens\] store_url") as caught:
        load_project(tmp_path / "prefetch.toml", environment=ENVIRONMENT | {"STORE": url})
    assert "canary" not in "".join(traceback.format_exception(caught.value))


def test_the_apps_own_state_directory(tmp_path: Path) -> None:
    """What pushes keep for a platform is there, unless the file names another one."""
    (tmp_path / "prefetch.toml").write_text(SMALLEST)
    environment = ENVIRONMENT | {"PREFETCH_STATE_DIR": "/var/lib/shop"}
    project = load_project(tmp_path / "prefetch.toml", environment=environment)
    assert project.state_dir == Path("/var/lib/shop")


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    (tmp_path / "secret").write_text("canary-platform", encoding="utf-8-sig")
    tokens = 'component_appid = "wx9"\ncomponent_secret = { file = "secret" }'
    text = SMALLEST.replace('app_secrets = { env = "SECRETS" }', tokens)
    (tmp_path / "prefetch.toml").write_text(text, encoding="utf-8-sig")
    project = load_project(tmp_path / "prefetch.toml", environment={})
    assert project.component_secret is not None
    assert project.component_secret.reveal() == "canary-platform"


@pytest.mark.parametrize("text", ['"http://a.example:1"', '{ env = "PLATFORM" }', '{ env = "NO" }'])
def test_a_proxy_that_is_none(tmp_path: Path, text: str) -> None:
    """It stands elsewhere, as other secrets do, and is checked when it is read."""
    with pytest.raises(ConfigError, match=r"prefetch\.toml: proxy") as caught:
        loaded(tmp_path, f"proxy = {text}\n{SMALLEST}")
    assert "canary-platform" not in str(caught.value)
