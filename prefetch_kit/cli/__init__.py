"""The commands, as `flask --app … prefetch …` and as `prefetch-kit --app … …`."""

from prefetch_kit.cli import domains as domains  # adds its commands, as the next do
from prefetch_kit.cli import journal as journal
from prefetch_kit.cli import platform as platform
from prefetch_kit.cli import pull as pull
from prefetch_kit.cli import sandbox as sandbox
from prefetch_kit.cli import settings as settings
from prefetch_kit.cli import urls as urls
from prefetch_kit.cli.commands import commands, main

__all__ = ["commands", "main"]
