"""A Flask blueprint at the push URL (授权事件接收URL) of a third-party platform."""

import os
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Final, TypeVar

from flask import Blueprint, Flask, Response, request
from flask.blueprints import BlueprintSetupState
from werkzeug.exceptions import RequestEntityTooLarge

from prefetch_kit.endpoint.app_state import init_app
from prefetch_kit.endpoint.config import Config
from prefetch_kit.endpoint.foreign_answers import exempt
from prefetch_kit.endpoint.handlers import refuse_unfit
from prefetch_kit.endpoint.run_context import rule_host
from prefetch_kit.errors import ConfigError
from prefetch_kit.pushes.envelope import Keys
from prefetch_kit.pushes.events import Receiver
from prefetch_kit.pushes.xml import MAX_BYTES
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.token_stores.settings import stores_of
from prefetch_kit.weixin.transport import transport_of

# WeChat waits five seconds: one call for the platform's token, one for the merchant's.
_DEADLINE_S: Final = 2.0

_F = TypeVar("_F", bound=Callable[[str], object])
_V = TypeVar("_V", str, Secret)


class PlatformPushes(Blueprint):
    """Receives tickets and authorizations at `{url_prefix}/events` and stores them.

    It needs the four PREFETCH_COMPONENT_ settings and `prefetch-kit[crypto]`; registering it
    raises ConfigError where one is missing. Answers are `success`, or an empty body with a
    status that is not 200; the app's log says why.
    """

    def __init__(self, name: str, import_name: str, **options: Any) -> None:
        super().__init__(name, import_name, **options)
        self._on_authorized: Callable[[str], object] | None = None
        self.record(self._join)
        self.url_value_preprocessor(exempt)

    def on_authorized(self, function: _F) -> _F:
        """Call this with the appid of each merchant that authorizes or changes its permissions.

        It runs in a separate thread, in the app's context, once the merchant's refresh token
        is stored; what it raises is logged. It may be called again for the same merchant.
        """
        refuse_unfit(function, "appid")
        if self._on_authorized is not None:
            raise ValueError(f"on_authorized is set already: {self._on_authorized!r}")
        self._on_authorized = function
        return function

    def _join(self, setup: BlueprintSetupState) -> None:
        app: Flask = setup.app  # type: ignore[assignment]
        state = init_app(app)
        config = state.config
        state.push_endpoint = f"{setup.name_prefix}.{setup.name}.events".lstrip(".")
        # One for each process: a lock that was made before a worker became one of gevent's would
        # stop all of its greenlets. The first one refuses what is missing.
        receivers = {os.getpid(): self._receiver(app, config)}

        def answer() -> Response:
            pid = os.getpid()
            found = receivers.get(pid) or receivers.setdefault(pid, self._receiver(app, config))
            return _answer(app, found)

        setup.add_url_rule(
            "/events",
            "events",
            answer,
            methods=["POST"],
            provide_automatic_options=False,
            host=rule_host(app, config.base_url),
        )

    def _receiver(self, app: Flask, config: Config) -> Receiver:
        keys = _keys(config)
        platform = ThirdParty(
            transport_of(config, deadline_s=_DEADLINE_S),
            keys.appid,
            _given("PREFETCH_COMPONENT_SECRET", config.component_secret),
            stores_of(config, lock_wait_s=_DEADLINE_S),
        )
        return Receiver(
            keys, platform, authorized=lambda appid: self._tell(app, appid), logger=app.logger
        )

    def _tell(self, app: Flask, appid: str) -> None:
        function = self._on_authorized
        if function is None:
            return

        def work() -> None:
            try:
                with app.app_context():
                    function(appid)
            except Exception:
                app.logger.exception("on_authorized failed for %s", appid)

        threading.Thread(target=work, name=f"authorized {appid}").start()


def _answer(app: Flask, receiver: Receiver) -> Response:
    request.max_content_length = MAX_BYTES
    try:
        status = receiver.receive(request.args, request.get_data(cache=False))
    except RequestEntityTooLarge:
        status = 413
    except Exception as error:  # noqa: BLE001 (an error page could show what was decrypted)
        app.logger.error("a push could not be processed: %s", type(error).__name__)  # noqa: TRY400 (a traceback could show it too)
        status = 500
    body = "success" if status == 200 else ""
    return app.response_class(body, status=status, content_type="text/plain; charset=utf-8")


def _keys(config: Config) -> Keys:
    if find_spec("cryptography") is None:
        raise ConfigError(
            "PREFETCH_COMPONENT_AES_KEY",
            "needs a library for AES",
            remedy='Install "prefetch-kit[crypto]"',
        )
    return Keys(
        _given("PREFETCH_COMPONENT_APPID", config.component_appid),
        _given("PREFETCH_COMPONENT_MESSAGE_TOKEN", config.component_message_token),
        _given("PREFETCH_COMPONENT_AES_KEY", config.component_aes_key),
        config.component_previous_message_token,
        config.component_previous_aes_key,
    )


def _given(key: str, value: _V | None) -> _V:
    if value is None:
        raise ConfigError(key, "is missing, and what WeChat pushes cannot be read", remedy="Set it")
    return value
