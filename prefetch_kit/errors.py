"""Every error the kit raises on purpose.

Callers decide from the class and its attributes; the sentence is for people.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Final, Literal, Self

from prefetch_kit.quoting import harmless
from prefetch_kit.refusals import ABORTED, MALFORMED, REFUSALS, Refusal


class PrefetchKitError(Exception):
    """Root of all errors of the kit."""


class ConfigError(PrefetchKitError):
    """A setting is missing or wrong. `key` is its name as the developer wrote it."""

    def __init__(self, key: str, problem: str, *, remedy: str) -> None:
        self.key = key
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{key} {problem}. {remedy}.")


class UserIdError(PrefetchKitError, ValueError):
    """No background token can be made for this user id."""


class ForeignAppid(PrefetchKitError, ValueError):
    """The appid is not one that PREFETCH_APPIDS lets in."""

    def __init__(self, appid: str) -> None:
        self.appid = appid
        super().__init__(
            f"{harmless(appid)} is not in PREFETCH_APPIDS. Add it there, or pass another appid."
        )


class PullRefused(PrefetchKitError):
    """A pull gets an empty answer: HTTP `status` and, in a header, `reason`.

    The reason is one of `REFUSALS`, or the name of a parameter with `MALFORMED` as the refusal.
    `detail` goes to the log only. It may name the page; it never repeats a token, a code or a
    malformed value.
    """

    def __init__(self, reason: str, detail: str = "", *, refusal: Refusal | None = None) -> None:
        refusal = refusal or REFUSALS[reason]
        self.reason = reason
        self.status = refusal.status
        self.detail = detail or refusal.meaning
        super().__init__(self.detail)


class QueryKeyMissing(PullRefused, KeyError):
    """The handler asked for a query key that did not come; unhandled, the pull is refused.

    `of` is "query", or "extra" for a parameter that the platform does not document.
    """

    def __init__(self, key: str, *, of: str = "query") -> None:
        self.key = key
        super().__init__(
            of, f"the handler needs {of}[{key!r}], which did not come", refusal=MALFORMED
        )

    __str__ = PullRefused.__str__


class Aborted(PullRefused):
    """A function of the app refused the pull on purpose, as `abort(404)` does.

    `status` is from 400 to 499. What was answered to such pulls before is not served any more.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__("aborted", detail, refusal=Refusal(status, ABORTED))


class WeixinError(PrefetchKitError):
    """A call to WeChat did not succeed. `action` names the call.

    `rules_out_effect` says whether the call certainly changed nothing there.
    """

    action: str
    rules_out_effect: bool


class Refused(WeixinError):
    """WeChat answered with an error code.

    `kind` says what a caller can do: `transient`, `renew`, `quota_day`, `quota_minute` or
    `permanent`. `rid` is the request id WeChat asks for in support threads, if it gave one. A
    busy system (-1) and a code that is not known may have taken the call all the same.
    """

    def __init__(
        self,
        action: str,
        *,
        errcode: int,
        errmsg: str,
        rid: str | None,
        kind: str,
        meaning: str,
        remedy: str,
        rules_out_effect: bool = True,
    ) -> None:
        self.action = action
        self.rules_out_effect = rules_out_effect
        self.errcode = errcode
        self.errmsg = errmsg
        self.rid = rid
        self.kind = kind
        self.meaning = meaning
        self.remedy = remedy
        trace = f" (rid {rid})" if rid else ""
        super().__init__(
            f"WeChat refused {action}: {errcode}, {meaning}; it said {errmsg!r}{trace}. {remedy}."
        )

    def with_remedy(self, remedy: str) -> Self:
        """The same refusal for a caller who can do something else about it."""
        return type(self)(
            self.action,
            errcode=self.errcode,
            errmsg=self.errmsg,
            rid=self.rid,
            kind=self.kind,
            meaning=self.meaning,
            remedy=remedy,
        )


class TokenRejected(Refused):
    """The access token is wrong, invalid or expired."""


class QuotaReached(Refused):
    """A quota is used up; `kind` says whether for the day or for the minute."""


class SystemBusy(Refused):
    """WeChat asks to try again."""


class DomainRefused(Refused):
    """The URL's host is not a business domain (业务域名) of the mini program."""


class OutcomeUnknown(WeixinError):
    """No answer, or one that cannot be read: the call may or may not have taken effect.

    `sent` is False where the request certainly never left, so nothing can have changed.
    `retry_after_s` is for how many seconds WeChat asked to be left alone (`Retry-After`).
    """

    def __init__(
        self,
        action: str,
        cause: str,
        *,
        sent: bool,
        remedy: str,
        retry_after_s: float | None = None,
    ) -> None:
        self.action = action
        self.cause = cause
        self.sent = sent
        self.rules_out_effect = not sent
        self.remedy = remedy
        self.retry_after_s = retry_after_s
        super().__init__(f"{action}: {cause}. {remedy}.")


FetchRule = Literal["address", "tls", "answered"]
_FETCH_REMEDIES: Final[Mapping[FetchRule, str]] = {
    "address": "Let every address of the name in DNS be one that WeChat can reach",
    "tls": "Serve the whole certificate chain, of an authority that phones trust, for this host",
    "answered": "Check that the address can be reached from this machine",
}


class NotFetched(OutcomeUnknown):
    """A URL of our own could not be pulled; `rule` names what is wrong with it."""

    def __init__(self, url: str, cause: str, *, rule: FetchRule, sent: bool) -> None:
        self.rule = rule
        super().__init__(f"GET {url}", cause, sent=sent, remedy=_FETCH_REMEDIES[rule])


class NotAsked(OutcomeUnknown):
    """WeChat is not asked about a login code now: too many came, or it just failed."""

    def __init__(self, action: str, cause: str) -> None:
        super().__init__(
            action,
            f"not asked: {cause}",
            sent=False,
            remedy="Let the mini program set its background token: pulls with one need no code",
        )


class TokenSourceError(PrefetchKitError):
    """No access token could be had from where the settings say it comes from."""

    def __init__(self, source: str, problem: str, *, remedy: str) -> None:
        self.source = source
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"No access token from {source}: {problem}. {remedy}.")


class TokenStoreFailed(TokenSourceError):
    """The file of all tokens cannot be used, so whichever is renewed now would be lost."""


class PlatformUnusable(TokenSourceError):
    """The third-party platform itself has no token, so none of its merchants has one."""


class NotAuthorized(TokenSourceError):
    """The merchant has to authorize the third-party platform, again or at all."""


class RegistrarError(PrefetchKitError):
    """A registration was not carried out."""


class SourceRefused(RegistrarError):
    """WeChat could not be told this of a pull; nothing was sent.

    `field` is the attribute of `FetchSetting` that is wrong, `subject` what named it. `problem`
    goes on from there: "names a cloud function without its environment (env)".
    """

    def __init__(self, problem: str, *, field: str, remedy: str, subject: str = "It") -> None:
        self.subject = subject
        self.problem = problem
        self.field = field
        self.remedy = remedy
        super().__init__(f"{subject} {problem}. {remedy}.")

    def of(self, subject: str) -> "SourceRefused":
        """The same, said of the setting, flag or column that named it."""
        return SourceRefused(self.problem, field=self.field, remedy=self.remedy, subject=subject)


class UrlRefused(SourceRefused):
    """WeChat would not take, or could not reach, this URL."""

    def __init__(self, url: str, problem: str, *, remedy: str, subject: str = "The URL") -> None:
        self.url = url
        self._why = problem
        super().__init__(
            f"cannot be registered: {problem}",
            field="url",
            remedy=remedy,
            subject=subject,
        )

    def of(self, subject: str) -> "UrlRefused":
        return UrlRefused(self.url, self._why, remedy=self.remedy, subject=subject)


class Ambiguous(RegistrarError):
    """Several answers are possible; `flag` is the option that chooses among `choices`."""

    def __init__(self, what: str, choices: Sequence[str], *, flag: str) -> None:
        self.choices = tuple(choices)
        self.flag = flag
        super().__init__(f"Several {what} are possible: {', '.join(choices)}. Choose with {flag}.")


class GuardRefused(RegistrarError):
    """A change takes something away and was not asked for by its own flag."""

    def __init__(self, change: str, reason: str, *, flag: str) -> None:
        self.change = change
        self.reason = reason
        self.flag = flag
        super().__init__(f"Nothing was sent: {change} {reason}. If this is meant, add {flag}.")


class PlanStale(RegistrarError):
    """What has to be sent now is not what was approved."""

    def __init__(self, appid: str, *, remedy: str = "Run the same command again") -> None:
        self.appid = appid
        super().__init__(
            f"Nothing was sent: what WeChat holds for {appid} changed since the plan was made. "
            f"{remedy}."
        )


class DomainMissing(RegistrarError):
    """WeChat would not pull from this host; `problems` says why, each with what to do."""

    def __init__(self, appid: str, host: str, problems: Sequence[str]) -> None:
        self.appid = appid
        self.host = host
        self.problems = tuple(problems)
        super().__init__(
            f"No URL was set for {appid}: {'. '.join(problems)}. The server domains (服务器域名) "
            "are another list. If WeChat knows better, add --skip-preflight."
        )


class ConfirmFileMissing(RegistrarError):
    """The host does not serve the confirm file (校验文件) of that name and content."""

    def __init__(self, url: str, problem: str, *, name: str, content: str) -> None:
        self.url = url
        self.problem = problem
        self.name = name
        self.content = content
        setting = json.dumps({name: content})
        super().__init__(
            f"Nothing was added: {url} is not the confirm file that WeChat wants to see: "
            f"{problem}. Set PREFETCH_CONFIRM_FILES='{setting}' where the app runs, beside those "
            "that are there, deploy it, and run this again."
        )


class ProbeFailed(RegistrarError):
    """Our own URL does not answer the way WeChat needs it to."""

    def __init__(self, url: str, problems: Sequence[str]) -> None:
        self.url = url
        self.problems = tuple(problems)
        super().__init__(
            f"Nothing was sent: {url} failed the probe ({'; '.join(problems)}). "
            "Deploy first, or add --skip-probe if this machine cannot reach the public address."
        )


class NotConfirmed(RegistrarError):
    """WeChat accepted what was set, and did not show it within the time to wait."""

    def __init__(self, appid: str, differences: Sequence[str]) -> None:
        self.appid = appid
        self.differences = tuple(differences)
        super().__init__(
            f"{appid}: set, not yet confirmed: {'; '.join(differences)}. WeChat may show it later: "
            "run the same command again, and give it longer with --wait if need be."
        )


class PartlySet(RegistrarError):
    """Of two kinds of pull one was set, and then the other could not be.

    `kept` are the kinds that WeChat accepted, `error` is what happened to the other.
    """

    def __init__(self, appid: str, kept: Sequence[str], error: PrefetchKitError) -> None:
        self.appid = appid
        self.kept = tuple(kept)
        self.error = error
        super().__init__(
            f"{appid}: {' and '.join(kept)} was set and stays so; the rest was not: {error} "
            "Then run the same command again, or rollback to undo what was set."
        )


def _cause_of(error: PrefetchKitError) -> str:
    """What happened, without what to do."""
    match error:
        case OutcomeUnknown():
            return f"{error.action}: {error.cause}"
        case Refused():
            return f"WeChat answered {error.action} with {error.errcode}, {error.meaning}"
    return str(error).rstrip(".")


class MayBeSet(RegistrarError):
    """No certain answer came to a set, and WeChat does not show it: it may hold it, or not.

    `kinds` are the kinds of pull of which this is so, `kept` those that WeChat accepted, and
    `unsent` those that were not sent after that. `doubt` is what was said of the first of `kinds`,
    `error` why no more was tried, which may be the same.
    """

    def __init__(
        self,
        appid: str,
        kinds: Sequence[str],
        doubt: WeixinError,
        *,
        error: PrefetchKitError,
        kept: Sequence[str] = (),
        unsent: Sequence[str] = (),
    ) -> None:
        self.appid = appid
        self.kinds = tuple(kinds)
        self.kept = tuple(kept)
        self.unsent = tuple(unsent)
        self.doubt = doubt
        self.error = error
        parts = [
            *(f"{kind} was set and stays so" for kind in kept),
            *(f"{kind} may have been set, or not" for kind in kinds),
            *(f"{kind} was not sent" for kind in unsent),
        ]
        causes = dict.fromkeys(map(_cause_of, (doubt, error)))
        super().__init__(
            f"{appid}: {', '.join(parts)}: {'; '.join(causes)}. Run the same command again, or "
            "rollback to undo it; show says what WeChat has now."
        )


class NothingToRollBack(RegistrarError):
    """The journal knows no state of this app to go back to."""

    def __init__(self, appid: str, journal: str) -> None:
        self.appid = appid
        super().__init__(
            f"{appid}: nothing is left to undo. {journal} holds no applied change that was not "
            "rolled back already. If apply ran on another machine, or with another state "
            "directory, run rollback there."
        )


class NoSuchRun(RegistrarError):
    """The journal knows no run of this number that changed something; `runs` are those it knows."""

    def __init__(self, run: int, runs: Sequence[int], journal: str) -> None:
        self.run = run
        self.runs = tuple(runs)
        known = ", ".join(map(str, self.runs[-20:])) or "none"
        super().__init__(
            f"Nothing was sent: {journal} knows no run {run} that changed something. "
            f"It knows {known}."
        )


class PlanUnusable(RegistrarError):
    """A saved plan cannot be read, or is for something else."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(
            f"Nothing was sent: the saved plan {harmless(path)} cannot be used: {problem}. "
            "Make a new one with plan --out."
        )


class ListRefused(RegistrarError):
    """Some lines of a list of mini programs cannot be used; each problem names its line."""

    def __init__(self, path: str, problems: Sequence[str]) -> None:
        self.path = path
        self.problems = tuple(problems)
        super().__init__(f"Nothing was sent: {path} cannot be used. {'; '.join(problems)}.")


class NotListed(RegistrarError):
    """A command is for mini programs that are not where it looks for them."""

    def __init__(self, appids: Sequence[str], source: str) -> None:
        self.appids = tuple(appids)
        self.source = source
        shown = [each for each in appids if harmless(each) == each][:3]
        rest = len(appids) - len(shown)
        names = [*shown, *([f"{rest} more" if shown else f"{rest} names"] if rest else [])]
        super().__init__(
            f"Nothing was sent: {', '.join(names)} (--only, --exclude) cannot be found "
            f"in {source}. Correct the name, or leave it out."
        )


class JournalFailed(RegistrarError):
    """The journal or a lock beside it cannot be used, so nothing may be sent."""

    def __init__(self, path: str, cause: str, *, remedy: str, sent_for: str = "") -> None:
        self.path = path
        self.cause = cause
        self.remedy = remedy
        sent = f" Something was sent for {sent_for}: show says what WeChat has." if sent_for else ""
        super().__init__(f"The journal {path} cannot be used: {cause}. {remedy}.{sent}")

    def with_sent(self, appid: str) -> Self:
        """The same, where WeChat may hold what could not be recorded."""
        return type(self)(self.path, self.cause, remedy=self.remedy, sent_for=appid)


class TemporaryFileFailed(RegistrarError):
    """A fleet has no room for the file in which it keeps its apps while it runs."""

    def __init__(self, cause: str) -> None:
        self.cause = cause
        super().__init__(
            f"A temporary file cannot be used: {cause}. Make room in the temporary directory, or "
            "name another one with TMPDIR, then run the same command again."
        )


class BackupFailed(RegistrarError):
    """The journal was not copied; nothing is there that was not there before."""

    def __init__(self, path: str, cause: str, *, remedy: str) -> None:
        self.path = path
        self.cause = cause
        self.remedy = remedy
        super().__init__(f"Nothing was copied to {harmless(path)}: {cause}. {remedy}.")


class LockHeld(RegistrarError):
    """Another process or thread is changing the same settings; `holder` says which, if known.

    `name` is the appid, or that of the fleet's lock.
    """

    def __init__(self, path: str, waited_s: float, *, name: str, holder: str | None = None) -> None:
        self.path = path
        self.waited_s = waited_s
        self.name = name
        self.holder = holder
        super().__init__(
            f"Another registrar, {holder or 'which ended just now'}, holds the lock of {name} in "
            f"{path} (waited {waited_s:g} s). Let it finish; the lock ends with its process."
        )
