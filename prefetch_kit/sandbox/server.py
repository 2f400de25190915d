"""The sandbox itself: the platform, served on loopback."""

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urlsplit
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.serving import ThreadedWSGIServer, WSGIRequestHandler
from werkzeug.wrappers import Request

from prefetch_kit.sandbox.api import Api
from prefetch_kit.sandbox.authorization_page import PATHS, AuthorizationPage
from prefetch_kit.sandbox.components import Components
from prefetch_kit.sandbox.control import PREFIX, Control, refuse_strangers
from prefetch_kit.sandbox.errors import SandboxError

_HOST: Final = "127.0.0.1"
_POLL_S: Final = 0.02
_TICKET_POLL_S: Final = 0.5


class Sandbox(Components):
    """A local WeChat: `with Sandbox() as wx:` or `start()` and `stop()`.

    Port 0 means any free port. `log` is called with one line for each API call and each pull; no
    line holds a secret. Starting raises OSError where the port is taken.
    """

    def __init__(self, port: int = 0, *, log: Callable[[str], None] | None = None) -> None:
        super().__init__(log=log)
        self._port = port
        self._server: _Server | None = None
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    @property
    def base_url(self) -> str:
        """Where it listens, like `http://127.0.0.1:9000`; only while it runs."""
        if self._server is None:
            raise RuntimeError("The sandbox is not running: call start() first.")
        return f"http://{_HOST}:{self._server.port}"

    def start(self) -> None:
        """Listen and answer, in a new thread."""
        if self._server is not None:
            raise RuntimeError("The sandbox is running already: stop() it first.")
        with socket.create_server((_HOST, self._port), backlog=128) as listening:
            app = _route(Api(self), Control(self), AuthorizationPage(self))
            self._server = _Server(listening, app)
        self._stopping.clear()
        self._threads = [
            threading.Thread(target=work, args=args, name="sandbox", daemon=True)
            for work, args in ((self._server.serve_forever, (_POLL_S,)), (self._push_tickets, ()))
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Close every connection and wait for every thread; a pull under way is completed."""
        if self._server is None:
            return
        self._stopping.set()
        self._server.shutdown()
        self._server.cut_connections()
        for thread in self._threads:
            thread.join()
        self._server = None

    def _push_tickets(self) -> None:
        while not self._stopping.wait(_TICKET_POLL_S):
            with suppress(SandboxError):  # a platform that a reset has just forgotten
                self.push_due_tickets()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _route(api: Api, control: Control, page: AuthorizationPage) -> WSGIApplication:
    def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        inside = f"{path}/".startswith(PREFIX)
        asked = control if inside else page if path in PATHS else api
        answer = refuse_strangers(Request(environ)) or asked
        return answer(environ, start_response)

    return app


class _Handler(WSGIRequestHandler):
    def run_wsgi(self) -> None:
        try:
            urlsplit(self.path)
        except ValueError:
            self.send_error(400)
        else:
            super().run_wsgi()

    def connection_dropped(
        self,
        error: BaseException,  # noqa: ARG002 (werkzeug's signature)
        environ: WSGIEnvironment | None = None,  # noqa: ARG002 (likewise)
    ) -> None:
        # Also raised by a fault that used the connection up: there is nothing more to read.
        self.close_connection = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Print nothing, and do not read the URL, which may be invalid."""

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002 (werkzeug's name)
        """Print nothing: werkzeug's lines hold whole URLs, and so access tokens."""


class _Server(ThreadedWSGIServer):
    """A threaded server that can be stopped in the middle of its answers."""

    # Threads are waited for when the server closes.
    daemon_threads = False

    def __init__(self, listening: socket.socket, app: WSGIApplication) -> None:
        host, port = listening.getsockname()
        self._connections: set[socket.socket] = set()
        self._lock = threading.Lock()
        # Given a port, werkzeug would answer a taken one by ending the process.
        super().__init__(host, port, app, _Handler, fd=listening.fileno())

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
