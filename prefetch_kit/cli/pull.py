"""One pull by hand."""

import sys
from typing import IO

import click

from prefetch_kit.cli.app import LoadedApp
from prefetch_kit.cli.commands import commands, url_argument, with_app
from prefetch_kit.cli.errors import FAILED, CommandFailed
from prefetch_kit.cli.options import as_json_option
from prefetch_kit.cli.output import print_json
from prefetch_kit.cli.usage import WrongUsage
from prefetch_kit.fetch_setting import KINDS, Kind
from prefetch_kit.quoting import harmless
from prefetch_kit.refusals import MAX_ANSWER_BYTES
from prefetch_kit.registrar.probe import (
    DEADLINE_S,
    body_dropped,
    locate,
    pull_parameters,
    refusal,
)
from prefetch_kit.secret import Secret


@commands.command()
@with_app
@url_argument
@click.option(
    "--kind",
    type=click.Choice(KINDS),
    default="pre_fetch",
    show_default=True,
    help="Which of the two pulls.",
)
@click.option("--path", help="The page being opened.  [default: a page of the app]")
@click.option("--query", help="That page's query, such as id=3.")
@click.option("--scene", type=click.IntRange(0, 999_999), help="The scene value (场景值).")
@click.option("--user", metavar="ID", help="Mint a token for this user.")
@click.option("--token-file", type=click.File(), help="Send this token; - reads standard input.")
@click.option("--code-file", type=click.File(), help="Send this login code; - likewise.")
@as_json_option
def pull(
    loaded: LoadedApp,
    url: str | None,
    *,
    kind: Kind,
    path: str | None,
    query: str | None,
    scene: int | None,
    user: str | None,
    token_file: IO[str] | None,
    code_file: IO[str] | None,
    as_json: bool,
) -> None:
    """Pull once, by hand, and say what a phone would keep."""
    route = loaded.route(kind)
    if kind == "pre_fetch" and path is None:
        path = loaded.page(route)
    parameters: dict[str, str | Secret] = {**pull_parameters(loaded.appid, path)}
    parameters |= _credentials(loaded, user, token_file, code_file)
    if query is not None:
        parameters["query"] = query
    if scene is not None:
        parameters["scene"] = str(scene)
    address, origin = locate(loaded.transport, url or loaded.url(route))
    reply = loaded.transport.fetch(
        address,
        query=parameters,
        origin=origin,
        deadline_s=DEADLINE_S,
        max_bytes=MAX_ANSWER_BYTES,
    )
    refused, incident = refusal(reply)
    dropped = body_dropped(reply.body)
    if reply.status != 200:
        reason = f", refused as {refused}" if refused else ""
        told = f" (incident {incident})" if incident else ""
        dropped = f"status {reply.status}{reason}{told}"
    ms, body = round(reply.elapsed_s * 1000), reply.body.decode(errors="replace")
    if as_json:
        print_json(
            {
                "status": reply.status,
                "refused": refused,
                "incident": incident,
                "bytes": len(reply.body),
                "ms": ms,
                "kept": dropped is None,
                "body": body,
            }
        )
    else:
        kept = f"a phone would keep nothing: {dropped}" if dropped else "a phone would keep it"
        click.echo(f"{reply.status}, {len(reply.body)} bytes in {ms} ms; {kept}.", err=True)
        click.echo(body)
    if reply.status != 200:
        sys.exit(FAILED)


def _credentials(
    loaded: LoadedApp, user: str | None, token_file: IO[str] | None, code_file: IO[str] | None
) -> dict[str, Secret]:
    """The user of the pull, if there is one."""
    if [user, token_file, code_file].count(None) < 2:
        raise WrongUsage("Give one of --user, --token-file and --code-file.")
    if user is not None:
        return {"token": Secret(loaded.issue_token(user))}
    if token_file is not None:
        return {"token": _read(token_file)}
    return {} if code_file is None else {"code": _read(code_file)}


def _read(file: IO[str]) -> Secret:
    try:
        value = file.read().strip()
    except UnicodeDecodeError:
        value = ""
    if not value:
        raise CommandFailed(f"{harmless(file.name)} holds no text.")
    return Secret(value)
