"""One pull by hand."""

from dataclasses import dataclass
from typing import IO

import click

from prefetch_kit.cli.app import AppAtHand
from prefetch_kit.cli.errors import CommandFailed
from prefetch_kit.fetch_setting import Kind
from prefetch_kit.registrar.probe import (
    DEADLINE_S,
    MAX_BYTES,
    body_dropped,
    locate,
    pull_parameters,
    refusal,
)
from prefetch_kit.secret import Secret


@dataclass(frozen=True, slots=True)
class Credentials:
    """The user of the pull: at most one of the three."""

    user: str | None
    token_file: IO[str] | None
    code_file: IO[str] | None

    def parameters(self, at_hand: AppAtHand) -> dict[str, Secret]:
        given = [c for c in (self.user, self.token_file, self.code_file) if c is not None]
        if len(given) > 1:
            raise click.UsageError("Give one of --user, --token-file and --code-file.")
        if self.user is not None:
            return {"token": Secret(at_hand.issue_token(self.user))}
        if self.token_file is not None:
            return {"token": _read(self.token_file)}
        if self.code_file is not None:
            return {"code": _read(self.code_file)}
        return {}


@dataclass(frozen=True, slots=True)
class ByHand:
    """The answer, and whether a phone would keep it."""

    status: int
    refused: str | None
    incident: str | None
    ms: int
    raw: bytes

    @property
    def dropped_because(self) -> str | None:
        if self.status != 200:
            reason = f", refused as {self.refused}" if self.refused else ""
            incident = f" (incident {self.incident})" if self.incident else ""
            return f"status {self.status}{reason}{incident}"
        return body_dropped(self.raw)

    @property
    def body(self) -> str:
        return self.raw.decode(errors="replace")

    def sentence(self) -> str:
        kept = (
            "a phone would keep it"
            if not self.dropped_because
            else (f"a phone would keep nothing: {self.dropped_because}")
        )
        return f"{self.status}, {len(self.raw)} bytes in {self.ms} ms; {kept}."

    def record(self) -> dict[str, object]:
        return {
            "status": self.status,
            "refused": self.refused,
            "incident": self.incident,
            "bytes": len(self.raw),
            "ms": self.ms,
            "kept": self.dropped_because is None,
            "body": self.body,
        }


def pull_once(
    at_hand: AppAtHand,
    url: str | None,
    *,
    credentials: Credentials,
    kind: Kind,
    path: str | None,
    query: str | None,
    scene: int | None,
) -> ByHand:
    """Pull `url`, or the app's own URL of this kind. Raises `OutcomeUnknown` and `UrlRefused`."""
    route = next(route for route in at_hand.routes if route.kind == kind)
    if kind == "pre_fetch" and path is None:
        path = at_hand.page(route)
    parameters: dict[str, str | Secret] = {**pull_parameters(at_hand.appid, path)}
    parameters |= credentials.parameters(at_hand)
    if query is not None:
        parameters["query"] = query
    if scene is not None:
        parameters["scene"] = str(scene)
    address, origin = locate(at_hand.transport, url or at_hand.url(route))
    reply = at_hand.transport.fetch(
        address, query=parameters, origin=origin, deadline_s=DEADLINE_S, max_bytes=MAX_BYTES
    )
    refused, incident = refusal(reply)
    return ByHand(
        status=reply.status,
        refused=refused,
        incident=incident,
        ms=round(reply.elapsed_s * 1000),
        raw=reply.body,
    )


def _read(file: IO[str]) -> Secret:
    try:
        value = file.read().strip()
    except UnicodeDecodeError:
        value = ""
    if not value:
        raise CommandFailed(f"{file.name} holds no text.")
    return Secret(value)
