"""Pull our own URL the way WeChat will, and judge the answer rule by rule."""

import codecs
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from urllib.parse import urlsplit

from prefetch_kit.addresses import is_loopback, public_url_problem, shown
from prefetch_kit.errors import NotFetched, OutcomeUnknown, UrlRefused
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.refusals import MAX_ANSWER_BYTES, REFUSED_HEADER
from prefetch_kit.weixin.transport import Reply, Transport

DEADLINE_S: Final = 10.0
# Nobody knows how long WeChat waits; a page that opens sooner has no use for the answer.
SLOW_S: Final = 2.0
# Those who renew by themselves do so with a third of ninety days left.
_EXPIRES_SOON_S: Final = 14 * 86_400
# The kit's own ways of saying that it is there, and that this pull alone was not enough.
_NEEDS_MORE: Final = {
    "login": "it needs a user",
    "page": "this page has no handler",
    "query": "it needs a query",
    "aborted": "its handler refuses a pull like this one",
}
_DEPLOYED: Final = "See what the app logs, and whether the newest version is deployed there"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether one rule is kept. A broken rule that is no `failure` is a warning.

    `remedy` is a sentence without its full stop.
    """

    rule: str
    kept: bool
    says: str
    failure: bool = True
    remedy: str | None = None


def passed(rule: str, says: str) -> Verdict:
    return Verdict(rule, kept=True, says=says)


def failed(rule: str, says: str, remedy: str | None) -> Verdict:
    return Verdict(rule, kept=False, says=says, remedy=remedy)


@dataclass(frozen=True, slots=True)
class Probed:
    """What came back from a URL, and the verdicts on it."""

    url: str
    verdicts: tuple[Verdict, ...]
    status: int | None = None
    bytes: int | None = None
    ms: int | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(v.says for v in self.verdicts if v.failure and not v.kept)


def pull_parameters(appid: str, page: str | None) -> dict[str, str]:
    """What WeChat sends with a pull, without token or code."""
    parameters = {"appid": appid, "timestamp": str(int(time.time() * 1000))}
    if page is not None:
        parameters |= {"path": page, "scene": "1001"}
    return parameters


def probe(transport: Transport, url: str, *, appid: str, kind: Kind, page: str | None) -> Probed:
    """Pull `url` once and judge it by every rule: address, TLS, redirect, status, size, …

    Connects only to a public address, or to this machine with a sandbox. Ends within 10 s once
    the URL is located; raises what `locate` raises, and nothing that the app can cause.
    """
    address, origin = locate(transport, url)
    try:
        reply = transport.fetch(
            address,
            query=pull_parameters(appid, page if kind == "pre_fetch" else None),
            origin=origin,
            deadline_s=DEADLINE_S,
            max_bytes=MAX_ANSWER_BYTES,
        )
    except NotFetched as error:
        return Probed(shown(url), (failed(error.rule, error.cause, error.remedy),))
    return Probed(
        shown(url),
        tuple(_judge(reply, is_remote=origin is None)),
        status=reply.status,
        bytes=len(reply.body),
        ms=round(reply.elapsed_s * 1000),
    )


def probe_setting(
    transport: Transport, setting: FetchSetting, *, appid: str, kind: Kind, page: str | None
) -> Probed:
    """Probe where a setting leads. What is no URL cannot be pulled, and the verdict says so."""
    if setting.source == "server" and setting.url:
        return probe(transport, setting.url, appid=appid, kind=kind, page=page)
    if setting.source == "cloud_function":
        what = f"comes from cloud function {setting.function_name}"
    else:
        what = "is not configured" if setting.open is None else "is off"
    says = f"{kind} {what}, so there is nothing to probe"
    return Probed(setting.to_text(), (passed("source", says),))


def locate(transport: Transport, url: str) -> tuple[str, str | None]:
    """The URL as WeChat would have it, and where on this machine to connect for it, if there.

    That is only with a local WeChat behind `transport`: an http URL on loopback is its own
    origin, for any other the local WeChat has one. Raises `UrlRefused` for a URL WeChat could
    never pull, and `OutcomeUnknown` where the local WeChat does not know.
    """
    parts = urlsplit(url)
    is_here = is_loopback(parts.hostname or "") and "@" not in parts.netloc
    if transport.loopback and parts.scheme == "http" and is_here:
        return parts._replace(scheme="https").geturl(), f"http://{parts.netloc}"
    if problem := public_url_problem(url):
        raise UrlRefused(shown(url), problem[0], remedy=problem[1])
    if not transport.loopback:
        return url, None
    answer = transport.call("GET /_sandbox/origins", "GET", "/_sandbox/origins", query={})
    origins = answer.get("origins")
    origin = origins.get(parts.hostname) if isinstance(origins, dict) else None
    if not isinstance(origin, str):
        raise OutcomeUnknown(
            f"GET {shown(url)}",
            f"the sandbox has no origin for {parts.hostname}",
            sent=False,
            remedy="Tell it where the app listens: prefetch-kit sandbox --origin http://127.0.0.1:PORT",
        )
    return url, origin


def refusal(reply: Reply) -> tuple[str | None, str | None]:
    """Why the kit refused this pull, and the incident that its log tells more about."""
    reason, _, incident = reply.headers.get(REFUSED_HEADER, "").partition("; incident=")
    return reason or None, incident or None


def body_dropped(body: bytes) -> str | None:
    """Why a phone would not keep this body; None if it would."""
    if not body:
        return "the body is empty"
    if len(body) > MAX_ANSWER_BYTES:
        return f"the body is over {MAX_ANSWER_BYTES} bytes"
    if not _is_text(body):
        return "the body is not UTF-8 text"
    return None


def _is_text(body: bytes) -> bool:
    """Whether it is UTF-8, which is all a phone keeps; a body cut at its end still is."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(body, final=len(body) <= MAX_ANSWER_BYTES)
    except UnicodeDecodeError:
        return False
    return True


def _judge(reply: Reply, *, is_remote: bool) -> Iterator[Verdict]:
    if is_remote:
        yield passed("address", f"{reply.address} is public")
        yield _judge_tls(reply)
    if 300 <= reply.status < 400:
        says = f"it redirects ({reply.status})"
        yield failed("redirect", says, "Register the URL that answers by itself")
    else:
        yield passed("redirect", "it does not redirect")
    yield _judge_status(reply)
    if len(reply.body) > MAX_ANSWER_BYTES:
        says = f"over {MAX_ANSWER_BYTES} bytes, a phone keeps nothing"
        yield failed("size", says, "Let the page answer less")
    else:
        yield passed("size", f"{len(reply.body)} bytes")
    yield Verdict(
        "time",
        kept=reply.elapsed_s <= SLOW_S,
        says=f"answered in {reply.elapsed_s * 1000:.0f} ms",
        failure=False,
        remedy="Cache what the handler returns: nobody knows how long WeChat waits",
    )
    if _is_text(reply.body):
        yield passed("text", "the body is text")
    else:
        yield failed("text", "the body is not UTF-8 text", "Answer with JSON, uncompressed")
    # Only told: other rules say what of it is a failure.
    dropped = f"status {reply.status}" if reply.status != 200 else body_dropped(reply.body)
    kept = f"a phone would keep nothing: {dropped}" if dropped else "a phone would keep it"
    yield passed("phone", kept)


def _judge_tls(reply: Reply) -> Verdict:
    ends = reply.certificate_ends or 0.0
    left_s = ends - time.time()
    return Verdict(
        "tls",
        kept=left_s >= _EXPIRES_SOON_S,
        says=f"the certificate is good until {datetime.fromtimestamp(ends, UTC):%Y-%m-%d}, "
        f"for {left_s // 86_400:.0f} days",
        failure=False,
        remedy="Renew it, and see why that did not happen by itself",
    )


def _judge_status(reply: Reply) -> Verdict:
    refused, _ = refusal(reply)
    if reply.status == 200:
        return passed("status", "it answers 200")
    if refused in _NEEDS_MORE:
        return passed("status", f"the kit answers; {_NEEDS_MORE[refused]}")
    reason = f", refused as {refused}" if refused else ""
    return failed("status", f"it answers {reply.status}{reason}", _DEPLOYED)
