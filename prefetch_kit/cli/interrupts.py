"""What a command for one app says when a signal ends it in the middle of a write."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial

from prefetch_kit.cli.app import LoadedApp
from prefetch_kit.cli.errors import Interrupted
from prefetch_kit.errors import JournalFailed
from prefetch_kit.registrar.journal import Journal
from prefetch_kit.registrar.records import UNSENT, newest_changes


@contextmanager
def _explained(explanation: Callable[[], str]) -> Iterator[None]:
    """After a signal, end with what may have been sent, and what to run next."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        failure = Interrupted(interrupt, explanation())
    else:
        return
    raise failure


def sets_explained(
    loaded: LoadedApp,
    *,
    next_step: str = "Run the same command again to go on, or rollback to undo it",
) -> AbstractContextManager[None]:
    """The same for what sets pulls: what was sent from now on is in the journal."""
    journal, appid = loaded.journal, loaded.appid
    last, _ = newest_changes(journal, appid)
    return _explained(partial(_what_was_sent, journal, appid, since=last, next_step=next_step))


def adding_explained(host: str) -> AbstractContextManager[None]:
    """The same for what adds a business domain."""
    return _explained(
        lambda: (
            f"{host} may have been added, or not. domains show says how it stands; the same "
            "command adds what is missing."
        )
    )


def _what_was_sent(journal: Journal, appid: str, *, since: int, next_step: str) -> str:
    states = ["what was being sent may have been set, or not"]
    # A second signal, or a journal that cannot be read, leaves it at that.
    with suppress(KeyboardInterrupt, JournalFailed):
        run, changes = newest_changes(journal, appid)
        sent = [each for each in changes if each.outcome not in UNSENT] if run > since else []
        if not sent:
            return "No pull was set."
        states = [
            f"{each.kind} was set"
            if each.outcome in ("sent", "confirmed")
            else f"{each.kind} may have been set, or not"
            for each in sent
        ]
    return f"Of {appid}, {'; '.join(states)}. {next_step}; show says what WeChat has now."
