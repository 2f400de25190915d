"""A service provider's app, really listening, and a played WeChat that pushes to it."""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from prefetch_kit.endpoint.app_state import state_of
from prefetch_kit.pushes import PlatformPushes
from prefetch_kit.sandbox import Sandbox
from prefetch_kit.weixin.third_party import ThirdParty, third_party_of
from prefetch_kit.weixin.transport import Transport

APPID, COMPONENT = "wx01", "wxplatform"
SECRET, TOKEN = "canary-component-secret", "canary-message-token"
AES_KEY = "canary0AES0key0canary0AES0key0canary0AES0ke"


@pytest.fixture
def wx() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        sandbox.add_app(APPID, secret="s")
        sandbox.add_platform(
            COMPONENT,
            secret=SECRET,
            token=TOKEN,
            aes_key=AES_KEY,
            receive_url="https://provider.example/wechat/events",
        )
        yield sandbox


@pytest.fixture
def settings(wx: Sandbox, tmp_path: Path) -> dict[str, Any]:
    return {
        "PREFETCH_APPIDS": lambda _: True,
        "PREFETCH_COMPONENT_APPID": COMPONENT,
        "PREFETCH_COMPONENT_SECRET": SECRET,
        "PREFETCH_COMPONENT_MESSAGE_TOKEN": TOKEN,
        "PREFETCH_COMPONENT_AES_KEY": AES_KEY,
        "PREFETCH_API_BASE_URL": wx.base_url,
        "PREFETCH_STATE_DIR": tmp_path / "state",
    }


@pytest.fixture
def pushes() -> PlatformPushes:
    return PlatformPushes("wechat", __name__, url_prefix="/wechat")


@pytest.fixture
def app(settings: dict[str, Any], pushes: PlatformPushes) -> Flask:
    made = Flask("provider")
    made.logger.setLevel(logging.DEBUG)
    made.config.update(settings)
    made.register_blueprint(pushes)
    return made


@pytest.fixture
def served(wx: Sandbox, app: Flask, serve: Callable[[Flask], str]) -> None:
    """Let the app listen where WeChat pushes to."""
    wx.map_origin("provider.example", serve(app))


@pytest.fixture
def platform(app: Flask, wx: Sandbox) -> Iterator[ThirdParty]:
    """The platform as another process of the app's has it."""
    with Transport(base_url=wx.base_url) as transport:
        made = third_party_of(state_of(app).config, transport)
        assert made is not None
        yield made
