"""Register when gunicorn starts: `from prefetch_kit.registrar.gunicorn import when_ready`.

The hook runs in gunicorn's arbiter before any worker answers, so it only starts a child, which
waits until the app answers and then runs `apply --yes`. Whatever becomes of that, gunicorn goes on
serving, unless `when_ready_or_stop` is imported instead. Its output goes where gunicorn's own goes.
`apply` runs as the workers' user and group, who must own the state directory. Of all that share
this directory, one sets the URLs.

For an app with several mini programs or blueprints, run `apply` with `--appid` and `--endpoint` in
the deploy pipeline instead.
"""

import atexit
import contextlib
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
from typing import Any, Final

_BOOT_WAIT_S: Final = 60


def when_ready(server: Any) -> None:
    """A gunicorn `when_ready` server hook that registers the served app with WeChat.

    https://docs.gunicorn.org/en/stable/settings.html#when-ready. Without PREFETCH_BASE_URL, where
    it is needed, the child says so and nothing is registered.
    """
    try:
        _start_child(server, [], **_identity(server.cfg))
    except Exception:  # raised on, it would end gunicorn
        server.log.exception("prefetch_kit: the registration could not be started")


def when_ready_or_stop(server: Any) -> None:
    """`when_ready` for those who would rather not serve than serve unregistered.

    Import it `as when_ready`. Where the registration fails, gunicorn is told to end (SIGTERM):
    requests under way are answered, and its exit status is 1.
    """
    told, tell = os.pipe()
    os.set_blocking(told, False)
    try:
        # The child keeps gunicorn's own rights, without which it could not end it.
        identity = json.dumps(_identity(server.cfg))
        _start_child(server, [str(os.getpid()), identity, str(tell)], pass_fds=(tell,))
    finally:
        os.close(tell)
    # gunicorn ends with 0 after any SIGTERM. Its workers are forks, which must
    # end as they do without this.
    atexit.register(_end, told, os.getpid())


def _end(told: int, gunicorn: int) -> None:
    """Exit with 1 where the child said that gunicorn ends because of it."""
    with contextlib.suppress(BlockingIOError):  # gunicorn ends before the child is done
        if os.getpid() == gunicorn and os.read(told, 1):
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)


def _start_child(server: Any, stop: list[str], **options: Any) -> None:
    address = server.LISTENERS[0].getsockname()
    if not isinstance(address, str):  # else it is the path of a Unix socket
        host, port = address[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 (read, not bound)
        address = f"{host}|{port}"
    # In another session, so that Ctrl-C at gunicorn does not cut a call to WeChat in half.
    subprocess.Popen(  # noqa: S603 (our own module and the app gunicorn was given)
        [sys.executable, "-m", __name__, server.app.app_uri, address, *stop],
        cwd=server.cfg.chdir,
        # The workers do not read .env either, and the child has to register what they serve.
        env=os.environ | {"PYTHONPATH": _python_path(server.cfg), "FLASK_SKIP_DOTENV": "1"},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        **options,
    )


def _python_path(cfg: Any) -> str:
    """What gunicorn puts in front of the import path, and what was there before."""
    added = [os.path.abspath(path) for path in (cfg.pythonpath or "").split(",") if path]
    # Each goes in front of the one before it.
    return os.pathsep.join(filter(None, [*reversed(added), os.environ.get("PYTHONPATH")]))


def _identity(cfg: Any) -> dict[str, Any]:
    """The workers' user and group: the child imports the app, which must not run as root."""
    if os.geteuid() != 0 or (cfg.uid, cfg.gid) == (0, 0):
        return {}
    return {"user": cfg.uid, "group": cfg.gid, "extra_groups": []}


def _wait_until_serving(listener: str) -> None:
    """Send one request; the listener queues it until a worker is up to answer.

    Raises OSError where nobody listens any more.
    """
    host, _, port = listener.rpartition("|")
    with contextlib.suppress(OSError), _connect(host, port) as connection:
        connection.settimeout(_BOOT_WAIT_S)
        connection.sendall(b"HEAD / HTTP/1.0\r\nHost: localhost\r\n\r\n")
        connection.recv(1)
    # A worker that wants TLS hangs up just as a server that ended does.
    _connect(host, port).close()


def _connect(host: str, port: str) -> socket.socket:
    if host:
        return socket.create_connection((host, int(port)), timeout=_BOOT_WAIT_S)
    connection = socket.socket(socket.AF_UNIX)
    try:
        # Not settimeout: with it, connecting fails at once while the listener's queue is full.
        wait = struct.pack("ll", _BOOT_WAIT_S, 0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, wait)
        connection.connect(port)
    except OSError:
        connection.close()
        raise
    return connection


def _main(
    app: str, listener: str, gunicorn: str = "", identity: str = "{}", tell: str = ""
) -> None:
    try:
        _wait_until_serving(listener)
    except OSError:
        sys.exit("prefetch_kit: gunicorn ended before it answered; nothing was registered.")
    command = [sys.executable, "-m", "prefetch_kit", "--app", app, "apply", "--yes"]
    if not gunicorn:
        os.execv(sys.executable, command)  # noqa: S606 (no shell is wanted)
    is_registered = False
    try:
        done = subprocess.run(command, check=False, **json.loads(identity))  # noqa: S603 (same)
        is_registered = done.returncode == 0
    finally:
        if not is_registered and os.getppid() == int(gunicorn):
            print("prefetch_kit: not registered, so gunicorn ends.", file=sys.stderr)  # noqa: T201
            os.write(int(tell), b"!")
            os.kill(int(gunicorn), signal.SIGTERM)


if __name__ == "__main__":
    _main(*sys.argv[1:])
