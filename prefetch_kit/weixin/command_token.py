"""Access tokens printed by a command, the way kubectl takes credentials."""

import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from shutil import which
from typing import IO, cast

from prefetch_kit.errors import ConfigError, TokenSourceError
from prefetch_kit.quoting import harmless
from prefetch_kit.secret import Secret
from prefetch_kit.weixin.answers import UnreadableError, parse
from prefetch_kit.weixin.token_stores.records import StoredToken, decode_secret

_MAX_BYTES = 8192


class CommandToken:
    """The token a command prints: bare, or as JSON with `access_token` and `expires_in` seconds.

    The command runs without a shell and without input. It is asked once, and again when the
    token ends or is rejected; without `expires_in` it does not end. At `deadline_s` the command
    is killed, with what it started. Its output is never shown. Raises TokenSourceError,
    which names the setting and, where there is one of that name, the program only.
    """

    def __init__(self, argv: Sequence[str], *, deadline_s: float = 10.0) -> None:
        if isinstance(argv, str) or not argv:
            raise ConfigError(
                "PREFETCH_TOKEN_COMMAND",
                "is not a list of a program and its arguments",
                remedy="Give at least the program",
            )
        self._argv = tuple(argv)
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._held: StoredToken | None = None

    def get(self) -> Secret:
        return self.renew(None)

    def renew(self, failed: Secret | None) -> Secret:
        with self._lock:
            held = self._held
            if held is None or held.value == failed or held.ends_soon(time.time()):
                held = self._held = self._asked()
            return held.value

    def _asked(self) -> StoredToken:
        """Run the command. Raises its errors here, from no frame that saw the output."""
        outcome = self._run()
        if isinstance(outcome, str):
            raise TokenSourceError(
                f"PREFETCH_TOKEN_COMMAND ({self._program()})",
                outcome,
                remedy="Run it by hand: it must print the token, or JSON, and exit with 0",
            )
        return outcome

    def _program(self) -> str:
        # No frame that an error goes through holds it by itself: it may be the token.
        return self._argv[0] if which(self._argv[0]) else harmless(self._argv[0])

    def _run(self) -> StoredToken | str:
        ends_at = time.monotonic() + self._deadline_s
        try:
            process = subprocess.Popen(  # noqa: S603 (no shell; the command is the operator's own)
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return f"it cannot be started ({getattr(error, 'strerror', 'bad argument')})"
        try:
            output = _read(process, ends_at)
            if len(output) > _MAX_BYTES:
                return f"it printed more than {_MAX_BYTES} bytes"
            status = process.wait(max(0, ends_at - time.monotonic()))
        except (TimeoutError, subprocess.TimeoutExpired):
            return f"it did not finish within {self._deadline_s:g} s"
        finally:
            with process:  # closes the pipe
                if process.returncode is None:  # so no other process can have its number yet
                    os.killpg(process.pid, signal.SIGKILL)
        if status:
            return f"it ended with status {status}"
        return _token(output) or "what it printed is neither a token nor JSON with one"


def _read(process: subprocess.Popen[bytes], ends_at: float) -> bytes:
    """What the command prints, cut to one byte more than is accepted."""
    output = b""
    pipe = cast("IO[bytes]", process.stdout)
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(output) <= _MAX_BYTES:
            if not selector.select(max(0, ends_at - time.monotonic())):
                raise TimeoutError
            chunk = os.read(pipe.fileno(), _MAX_BYTES + 1 - len(output))
            if not chunk:
                break
            output += chunk
    return output


def _token(output: bytes) -> StoredToken | None:
    try:
        text = output.decode("utf-8-sig").strip()
        value: object = text
        expires_in: object = float("inf")
        # No token begins like JSON: `jq` without -r prints its string with the quotes.
        if text.startswith(("{", "[", '"')):
            plain = parse(output)
            value, expires_in = plain.get("access_token"), plain.get("expires_in", expires_in)
        if not isinstance(expires_in, int | float) or isinstance(expires_in, bool):
            return None
        secret = decode_secret(value)
        if secret is None or expires_in <= 0:
            return None
        return StoredToken(secret, time.time() + expires_in)
    except (UnicodeError, UnreadableError, OverflowError):  # a time beyond all floats
        return None
