"""Which mini programs are ours: a list, or the app's own function under a page's deadline."""

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from prefetch_kit.concurrency.executor import Busy, Executor, Late
from prefetch_kit.endpoint.run_context import RunContext
from prefetch_kit.errors import PullRefused

# Of each of the two answers. Strangers invent appids, so "no" must not push out a "yes".
MAX_REMEMBERED: Final = 10_000


class Admission:
    """Admits appids in one process.

    `decide` is the app's function, called away from the request. Each of its answers is remembered
    for `max_age_s` seconds. Those that it never admitted are asked about in `stranger_executor`,
    since strangers invent any number of them.
    """

    def __init__(
        self,
        appids: tuple[str, ...],
        decide: Callable[[str], bool],
        *,
        max_age_s: float,
        context: RunContext,
        executor: Executor,
        stranger_executor: Executor,
    ) -> None:
        self._appids = frozenset(appids)
        self._decide = decide
        self._max_age_s = max_age_s
        self._context = context
        self._executor = executor
        self._stranger_executor = stranger_executor
        # For each appid, until when its answer is known, in monotonic seconds.
        self._admitted: dict[str, float] = {}
        self._refused: dict[str, float] = {}

    def known(self, appid: str) -> bool | None:
        """Whether an appid is ours; None where the app would have to be asked."""
        if self._appids:
            return appid in self._appids
        now = time.monotonic()
        if self._admitted.get(appid, now) > now:
            return True
        return False if self._refused.get(appid, now) > now else None

    def demand(self, appid: str, *, ends_at: float, share: str) -> None:
        """Raise `PullRefused` (403) for an appid that is not ours.

        Also raises what the app's function raises, and `PullRefused` (503) where it gives no answer
        by `ends_at`, in monotonic seconds.
        """
        is_ours = self.known(appid)
        if is_ours is None:
            ask = partial(self._ask, appid, self._context.capture())
            is_known = appid in self._admitted
            executor = self._executor if is_known else self._stranger_executor
            try:
                is_ours = executor.call(ask, ends_at=ends_at, share=share)
            except Late:
                problem = "the function of PREFETCH_APPIDS did not answer within the deadline"
                raise PullRefused("late", problem) from None
            except Busy as busy:
                problem = f"no thread for the function of PREFETCH_APPIDS: {busy}"
                raise PullRefused("busy", problem) from None
        if not is_ours:
            raise PullRefused("foreign-appid", "the appid is not in PREFETCH_APPIDS")

    def _ask(self, appid: str, run: Callable[[Callable[[], object]], object]) -> bool:
        is_ours = run(lambda: self._decide(appid))
        if is_ours is not None and not isinstance(is_ours, bool):
            # An iterator or a coroutine would be true, and admit everybody.
            raise TypeError(
                f"{self._decide!r} of PREFETCH_APPIDS gave a {type(is_ours).__name__}; "
                "return True or False"
            )
        answers, others = self._admitted, self._refused
        if not is_ours:
            answers, others = others, answers
        others.pop(appid, None)
        if len(answers) >= MAX_REMEMBERED:
            answers.clear()  # simpler than choosing; each is soon known again
        answers[appid] = time.monotonic() + self._max_age_s
        return bool(is_ours)
