"""The way of a pull: parse, admit, find the handler, prove the user, run it or not, encode."""

import math
import re
import secrets
import time
from collections.abc import Mapping
from functools import partial
from types import TracebackType
from typing import Final, NamedTuple, NoReturn

from werkzeug.exceptions import HTTPException

from prefetch_kit.cache.answers import AnswerCache, Freshness, RunFailed, Served
from prefetch_kit.cache.read_sets import Reads
from prefetch_kit.cache.runner import Handle
from prefetch_kit.concurrency.executor import Busy, Executor, Late, deadline_in
from prefetch_kit.endpoint.admission import Admission
from prefetch_kit.endpoint.app_errors import status_of
from prefetch_kit.endpoint.config import Config
from prefetch_kit.endpoint.handlers import Handler, Registration, Route
from prefetch_kit.endpoint.payload import Encoder, TooLarge
from prefetch_kit.endpoint.pull import Pull
from prefetch_kit.endpoint.request import Asked, Inputs
from prefetch_kit.endpoint.run_context import RunContext, add_hint
from prefetch_kit.endpoint.users import LazyUser, Request, UserLate, Users
from prefetch_kit.errors import Aborted, PullRefused
from prefetch_kit.fetch_setting import Kind
from prefetch_kit.logs import SafeLogger

_LONGEST_RETRY_AFTER_S: Final = 60


class Answer(NamedTuple):
    """What goes out, and the facts a signal receiver may count.

    None of them is a secret, and `appid` and `page` are only ever ones the app knows.
    """

    status: int
    body: bytes
    kind: Kind
    seconds: float
    appid: str | None = None
    page: str | None = None
    refused: str | None = None
    incident: str | None = None
    cache: Freshness | None = None
    unknown_parameters: int = 0
    retry_after_s: int | None = None
    error: BaseException | None = None


class Dispatcher:
    """Answers the pulls of one route, in one process."""

    def __init__(
        self,
        route: Route,
        *,
        config: Config,
        admission: Admission,
        users: Users,
        context: RunContext,
        encoder: Encoder,
        executor: Executor,
        user_executor: Executor,
        stranger_executor: Executor,
        cache: AnswerCache,
        logger: SafeLogger,
        debug: bool,
    ) -> None:
        self.route = route
        self.users = users
        self.cache = cache
        self.admission = admission
        self._deadline_s = config.deadline_s
        self._threads = config.threads
        self._warn_bytes = config.warn_bytes
        self._context_vars = config.context_vars
        self._context = context
        self._encoder = encoder
        self._executor = executor
        self._user_executor = user_executor
        self._stranger_executor = stranger_executor
        self._logger = logger
        self._debug = debug

    def answer(self, query_string: bytes, *, route_values: Mapping[str, object]) -> Answer:
        """Answer one pull. Never raises for what came in. An app's own failure is in `error`, and
        `log_failure` logs it."""
        started = time.perf_counter()
        asked: Asked | None = None
        registration: Registration | None = None
        status, served, deadline_s = 200, Served(b""), self._deadline_s
        refused = incident = failure = retry_after_s = None
        try:
            inputs = self.route.parser.parse(query_string)
            del query_string  # a traceback that goes through here shows no token and no code
            asked = inputs.asked
            found = self.route.find(asked.path)
            if found is not None:
                deadline_s = found.deadline_s
            ends_at = deadline_in(deadline_s)
            self._demand_ours(asked.appid, route_values, found, ends_at)
            registration = found or self._refuse_page(asked)
            served = self._serve(registration, inputs, ends_at)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 (a handler may raise anything, SystemExit too)
            if (refusal := self._refusal(error, registration)) is not None:
                status, refused = refusal.status, refusal.reason
                incident = self._note_refusal(refusal)
                if refused == "busy":
                    # By then each run of now has ended, or is late.
                    retry_after_s = math.ceil(min(deadline_s, _LONGEST_RETRY_AFTER_S))
            else:
                refused = "too-large" if isinstance(error, TooLarge) else "failed"
                status, incident = 500, secrets.token_hex(6)
                traceback = from_handler(error.__traceback__)
                failure = BaseException.with_traceback(error, traceback)  # whatever its class does
        handler = registration.handler if registration else None
        return Answer(
            status=status,
            body=served.body,
            kind=self.route.kind,
            seconds=time.perf_counter() - started,
            appid=asked.appid if asked and (handler or refused == "page") else None,
            page=handler.page if handler else None,
            refused=refused,
            incident=incident,
            cache=served.freshness,
            unknown_parameters=asked.unknown_parameters if asked else 0,
            retry_after_s=retry_after_s,
            error=failure,
        )

    def _demand_ours(
        self,
        appid: str,
        route_values: Mapping[str, object],
        found: Registration | None,
        ends_at: float,
    ) -> None:
        """Raise `PullRefused` (403) for an appid that is not ours. May take until `ends_at`."""
        if route_values and str(route_values.get("appid", appid)) != appid:  # <int:appid>, QQ's
            raise PullRefused("foreign-appid", "the appid is not the one in the URL's path")
        share = self.route.endpoint if found is None else found.name
        self.admission.demand(appid, ends_at=ends_at, share=share)

    def _refuse_page(self, asked: Asked) -> NoReturn:
        """Raise `PullRefused` (404) for a page without a handler."""
        kind = self.route.kind
        path, hint = asked.path if kind == "pre_fetch" else None, ""
        if self._debug:
            name = re.sub(r"\W+", "_", f"{kind}_{path or ''}", flags=re.ASCII).strip("_")
            hint = (
                f"; to add one:\n\n@prefetch.{kind}({'' if path is None else repr(path)})\n"
                f"def {name}(pull: Pull):\n    return NO_DATA\n"
            )
        raise PullRefused("page", f"no handler for page {path!r}{hint}")

    def _serve(self, registration: Registration, inputs: Inputs, ends_at: float) -> Served:
        if not self.users.have_to_ask(inputs):
            return self._run_or_fetch(registration, Request(inputs, self.users.verify), ends_at)
        is_known = not self.users.may_be_anybodys(inputs)
        executor = self._user_executor if is_known else self._stranger_executor
        user = LazyUser(inputs, self.users, executor, share=registration.name)
        with user.asked_until(ends_at):
            return self._run_or_fetch(registration, Request(inputs, user.prove, asks=True), ends_at)

    def check_login(self, registration: Registration, request: Request) -> None:
        """Raises `PullRefused` (401, 503) where the page needs a user and nothing proves one."""
        if registration.handler.login_required and request.demanded_user_id() is None:
            raise PullRefused("login")

    def _run_or_fetch(self, registration: Registration, request: Request, ends_at: float) -> Served:
        self.check_login(registration, request)
        if registration.scope is None:
            run = self._context.capture()
            handle = partial(self._handle, registration.handler, request, None)
            body = self._executor.call(
                partial(run, handle), ends_at=ends_at, share=registration.name
            )
            return Served(body)

        def prepare() -> Handle:
            run = self._context.capture(self._context_vars)
            return lambda reads: run(partial(self._handle, registration.handler, request, reads))

        return self.cache.fetch(registration.scope, request, prepare, ends_at=ends_at)

    def _handle(self, handler: Handler, request: Request, reads: Reads | None) -> bytes:
        pull = Pull(request, kind=self.route.kind, reads=reads)
        aborted = None
        try:
            answer = handler.function(pull)
            # Still within: data may be lazy, and read from the pull or a database only now.
            body = self._encoder.encode(answer, schema=handler.schema, handler=handler.name)
        except Exception as error:
            aborted = _aborted(error)
            if aborted is None:
                add_hint(error)
                raise
        if aborted is not None:
            raise aborted
        if len(body) > self._warn_bytes:
            self._logger.warning(
                "%s of page %r answered %d bytes, over PREFETCH_WARN_BYTES (%d)",
                self.route.kind,
                handler.page,
                len(body),
                self._warn_bytes,
            )
        return body

    def _refusal(
        self, error: BaseException, registration: Registration | None
    ) -> PullRefused | None:
        """What an error means for the pull; None where it is the app's own failure."""
        if isinstance(error, PullRefused):
            return error
        if isinstance(error, HTTPException):  # of a verifier, or a callable PREFETCH_APPIDS
            return _aborted(error)
        if isinstance(error, RunFailed):
            return PullRefused("failed", "the run that this pull waited for failed")
        if registration is None or not isinstance(error, (Late, Busy)):
            return None
        name = registration.name
        setting = "PREFETCH_DEADLINE" if registration.handler.deadline_s is None else "its deadline"
        limit = f"within {registration.deadline_s:g} s ({setting})"
        if isinstance(error, UserLate):
            return PullRefused("late", f"nobody said {limit} who the user of {name} is")
        if isinstance(error, Late):
            return PullRefused("late", f"{name} gave no answer {limit}")
        return PullRefused(
            "busy",
            f"no thread for {name}: {error}. Its runs should end {limit}; PREFETCH_THREADS is "
            f"{self._threads}",
        )

    def _note_refusal(self, refusal: PullRefused) -> str | None:
        status, reason, detail = refusal.status, refusal.reason, refusal.detail
        kind = self.route.kind
        if status < 500:
            self._logger.info("%s refused (%d %s): %s", kind, status, reason, detail)
            return None
        incident = secrets.token_hex(6)
        self._logger.warning(
            "%s refused (%d %s, incident %s): %s", kind, status, reason, incident, detail
        )
        return incident

    def log_failure(self, done: Answer) -> None:
        """Log the `error` of an answer with its traceback."""
        self._logger.error(
            "%s of page %r failed (incident %s)",
            done.kind,
            done.page,
            done.incident,
            exc_info=done.error,
        )


def _aborted(error: BaseException) -> Aborted | None:
    """The refusal that an app means by an HTTP error of 4xx; None for every other error.

    A `BadRequestKeyError` is a mistake of the app's: a form or a `MultiDict` lacks that key.
    """
    if not isinstance(error, HTTPException) or isinstance(error, KeyError):
        return None
    status = status_of(error)
    if status is None or not 400 <= status < 500:
        return None
    says = error.description if error.description != type(error).description else None
    return Aborted(status, f"the app aborted it{f': {says!r}' if says else ''}")


def from_handler(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames of ours that every run has above its handler."""
    entry = traceback
    while entry is not None:
        if entry.tb_frame.f_code is Dispatcher._handle.__code__:
            return entry
        entry = entry.tb_next
    return traceback
