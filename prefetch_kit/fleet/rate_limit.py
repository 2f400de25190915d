"""How fast a fleet may call WeChat."""

import threading
import time
from typing import Any, Final

from prefetch_kit.errors import OutcomeUnknown, WeixinError
from prefetch_kit.fleet.results import whose
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.transport import Transport

_TOKEN_CALLS: Final = frozenset(
    {"token", "stable_token", "api_component_token", "api_authorizer_token", "api_query_auth"}
    | {"api_get_authorizer_info", "api_get_authorizer_list"}
)


class Rate:
    """At most `rate` calls a second, evenly spread; None is no limit."""

    def __init__(self, rate: float | None, *, stopping: threading.Event) -> None:
        self._every_s = 0.0 if rate is None else 1 / rate
        self._stopping = stopping
        self._lock = threading.Lock()
        self._next = 0.0

    def wait(self) -> None:
        """Wait for the next turn; a fleet that is stopping waits no more."""
        if (left_s := self.take() - time.monotonic()) > 0:
            self._stopping.wait(left_s)

    def pause(self, seconds: float) -> None:
        """Have no turn before these seconds are over."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def take(self) -> float:
        """Take the next turn, and say when it is, in seconds of the monotonic clock."""
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self._every_s
        return turn


class RateLimitedTransport(Transport):
    """A transport whose calls keep to a rate, and pause for as long as WeChat asks for.

    What WeChat would say to each app it says once: then no more is sent.

    Those for tokens take their turns, and later calls wait for it, but they do not wait
    themselves: they are made under locks for which others wait, and not for long.
    """

    def __init__(
        self, rate: Rate, *, base_url: str, ca_file: str | None, proxy: Secret | None = None
    ) -> None:
        super().__init__(base_url=base_url, ca_file=ca_file, proxy=proxy)
        self._rate = rate
        self._said_to_all: WeixinError | None = None

    def call(self, action: str, *where: str, **what: Any) -> dict[str, object]:
        said = self._said_to_all
        # Apps that have their tokens can still be looked at.
        if said is not None and (action in _TOKEN_CALLS or said.action not in _TOKEN_CALLS):
            raise said.with_traceback(None)
        if action in _TOKEN_CALLS:
            self._rate.take()
        else:
            self._rate.wait()
        try:
            return super().call(action, *where, **what)
        except WeixinError as error:
            if whose(error) == "all":
                self._said_to_all = error
            elif isinstance(error, OutcomeUnknown) and error.retry_after_s is not None:
                self._rate.pause(error.retry_after_s)
            raise


class RateLimitedCalls:
    """The calls about one app, which keep to a rate of their own too."""

    def __init__(self, transport: Transport, rate: Rate) -> None:
        self._transport = transport
        self._rate = rate

    def call(self, action: str, *where: str, **what: Any) -> dict[str, object]:
        """As `Transport.call`."""
        self._rate.wait()
        return self._transport.call(action, *where, **what)
