"""Which access token the commands use: the settings decide."""

from typing import TYPE_CHECKING, Any

import pytest
from flask import Flask

from prefetch_kit import Prefetch
from prefetch_kit.endpoint.app_state import state_of
from prefetch_kit.sandbox import Sandbox
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.third_party import third_party_of
from prefetch_kit.weixin.transport import Transport

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Leaks

COMPONENT, COMPONENT_SECRET = "wxplatform", "canary-component-secret"
APPLY = ("apply", "--yes", "--skip-probe")


@pytest.fixture
def platform_app(
    settings: dict[str, Any], prefetch: Prefetch, wx: Sandbox, leaks: "Leaks"
) -> Flask:
    """An app without any AppSecret, whose merchant authorized a platform; WeChat wants that."""
    wx.add_platform(COMPONENT, secret=COMPONENT_SECRET, token="t", aes_key="k" * 43)
    wx.switches.own_token_accepted = False
    leaks.secrets.append(COMPONENT_SECRET)
    app = Flask(__name__)
    app.config.update(settings, PREFETCH_APP_SECRET=None)
    app.config["PREFETCH_COMPONENT_APPID"] = COMPONENT
    app.config["PREFETCH_COMPONENT_SECRET"] = COMPONENT_SECRET
    app.register_blueprint(prefetch)
    return app


def pushed(wx: Sandbox, app: Flask) -> None:
    """What WeChat's pushes would have brought: a ticket, and the merchant's code."""
    [appid] = state_of(app).config.appids
    with wx.lock:
        ticket = wx.component(COMPONENT).issue_ticket(now=wx.now())
    with Transport(base_url=wx.base_url) as transport:
        platform = third_party_of(state_of(app).config, transport)
        assert platform is not None
        platform.tickets.keep(Secret(ticket), pushed_at=wx.now())
        since = wx.authorize(COMPONENT, appid).at
        *_, code = wx.component(COMPONENT).codes
        platform.authorizers.accept(Secret(code), since=since)


def test_a_platform_registers_for_its_merchant(
    wx: Sandbox, cli: "Cli", platform_app: Flask
) -> None:
    """With the merchant's token, which the platform gets."""
    pushed(wx, platform_app)
    assert cli(*APPLY, app=platform_app).status == 0
    assert wx.count(path="/wxa/fetchdatasetting", action="set_pre_fetch") == 1


def test_a_platform_that_was_pushed_nothing(cli: "Cli", platform_app: Flask) -> None:
    """One sentence says what is missing, and where it would come from."""
    assert "no component_verify_ticket came yet" in cli.refused("show", app=platform_app)


def test_an_own_secret_goes_before_the_platform(
    wx: Sandbox, cli: "Cli", platform_app: Flask, settings: dict[str, Any], prefetch: Prefetch
) -> None:
    """A given token is used."""
    app = Flask(__name__)
    app.config.update(settings, PREFETCH_COMPONENT_APPID="wx9", PREFETCH_COMPONENT_SECRET="x")
    app.register_blueprint(prefetch)
    wx.switches.own_token_accepted = True
    assert cli("show", app=app).status == 0
    assert wx.count(path="/cgi-bin/stable_token") == 1


def test_the_plain_call_only_if_asked_for_and_with_its_warning(
    wx: Sandbox,
    cli: "Cli",
    settings: dict[str, Any],
    prefetch: Prefetch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Every such call is warned of: it ends the token of the app's other programs."""
    assert cli("show").status == 0
    assert wx.count(path="/cgi-bin/token") == 0
    app = Flask(__name__)
    app.config.update(settings, PREFETCH_TOKEN_CALL="token")
    app.register_blueprint(prefetch)
    assert [cli("show", app=app).status for _ in range(2)] == [0, 0]
    assert wx.count(path="/cgi-bin/token") == 1
    assert caplog.text.count("ends the one that any other program of this app holds") == 1


def test_tokens_may_be_kept_in_redis(
    cli: "Cli", settings: dict[str, Any], prefetch: Prefetch, redis_server: Any, redis: Any
) -> None:
    """The state directory has none then."""
    app = Flask(__name__)
    app.config.update(settings, PREFETCH_TOKEN_STORE_URL=redis_server.url)
    app.register_blueprint(prefetch)
    assert cli("show", app=app).status == 0
    [key] = redis.keys("prefetch_kit:tokens:*")
    assert b"access_token" in redis.hget(key, "record")
    assert not list(settings["PREFETCH_STATE_DIR"].rglob("tokens.sqlite3"))


def test_a_redis_that_is_away_is_one_sentence(
    cli: "Cli", settings: dict[str, Any], prefetch: Prefetch, leaks: "Leaks"
) -> None:
    """It names the setting, not the address."""
    leaks.secrets.append("canary-redis-password")
    app = Flask(__name__)
    url = "redis://:canary-redis-password@127.0.0.1:1"
    app.config.update(settings, PREFETCH_TOKEN_STORE_URL=url)
    app.register_blueprint(prefetch)
    assert "PREFETCH_TOKEN_STORE_URL: ConnectionError" in cli.refused("show", app=app)
