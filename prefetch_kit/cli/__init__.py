"""The commands, as `flask --app … prefetch …` and as `prefetch-kit --app … …`."""

from prefetch_kit.cli import domains as domains  # adds its commands
from prefetch_kit.cli import settings as settings  # so does this
from prefetch_kit.cli.commands import commands, main

__all__ = ["commands", "main"]
