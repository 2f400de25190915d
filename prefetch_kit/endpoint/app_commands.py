"""The commands as `app.cli` has them: for `app.test_cli_runner()`, and without any metadata."""

from importlib import import_module
from typing import Any, Final

import click
from flask import Flask

_NAME: Final = "prefetch"


class _Commands(click.Command):
    """Becomes the group of commands when it is called: most processes never load that."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        commands: click.Group = import_module("prefetch_kit.cli").commands
        return commands.make_context(*args, **kwargs)


def add_commands(app: Flask) -> None:
    """Add `prefetch` to `app.cli`, unless the app has a command of that name."""
    if _NAME not in app.cli.commands:
        app.cli.add_command(_Commands(_NAME, short_help="Serve WeChat's data pre-fetch."))
