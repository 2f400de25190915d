"""The credentials of a pull, out of sight of what takes a request's query as it is.

That is the app's own loggers, and trackers such as Sentry and OpenTelemetry.
"""

import logging
import re
import sys
from copy import copy
from typing import Any, Final

from flask import Request

from prefetch_kit.endpoint.parameters import PARAMETERS
from prefetch_kit.fetch_setting import KINDS
from prefetch_kit.secret import Secret

# In the WSGI environment: the query as it came.
_AS_IT_CAME: Final = "prefetch_kit.query_string"
_CREDENTIALS: Final = tuple(each.name for each in PARAMETERS if each.is_credential)
_ENDINGS: Final = tuple(f"/{kind}" for kind in KINDS)
# Each letter of a name, which may be percent-encoded.
_SPELLED: Final = "|".join(
    "".join(f"(?:{letter}|%(?i:{ord(letter):x}))" for letter in name) for name in _CREDENTIALS
)
# After a question mark too: a registered URL that has a query gets another.
_CREDENTIAL: Final = re.compile(rf"\?(?:(?:{_SPELLED})=[^&]*(?:&|\Z))+|&(?:{_SPELLED})=[^&]*")
# What werkzeug has computed from the query, if something asked for it.
_COMPUTED: Final = ("args", "values", "url", "full_path")
# A pull as a server logs it: a request line that ends with its version, or a target alone.
_PULL: Final = re.compile(r"((?:pre|period)_fetch/*\?)(?:.*(?= HTTP/)|.*)", re.DOTALL)
# Where a log format prints the query apart from the path.
_CREDENTIAL_IN_TEXT: Final = re.compile(rf"\b({'|'.join(_CREDENTIALS)})=[^&\s\"']*")
# Their loggers print the whole target, of a malformed request too.
_SERVER_LOGS: Final = ("gunicorn.access", "gunicorn.error", "werkzeug")


def is_of_pull(path: str) -> bool:
    """Whether a path is that of a pull, or of one that misses it by a slash."""
    return path.rstrip("/").endswith(_ENDINGS)


def without_credentials(query: str) -> str:
    """A query string, or what ends with one, without the token and the code."""
    return _CREDENTIAL.sub(_mark_before, f"?{query}")[1:].rstrip("&?")


def _mark_before(found: re.Match[str]) -> str:
    return "?" if found[0].startswith("?") else ""


def hide_credentials(request: Request) -> None:
    """Take the credentials out of a request, and keep its query for `query_of`."""
    environ = request.environ
    if not (query := environ.get("QUERY_STRING")):
        return
    environ.setdefault(_AS_IT_CAME, Secret(query))
    shown = environ["QUERY_STRING"] = without_credentials(query)
    request.query_string = shown.encode("latin-1")
    for name in ("RAW_URI", "REQUEST_URI"):
        if "?" in environ.get(name, ""):
            environ[name] = f"{environ[name].partition('?')[0]}?{shown}"
    for name in _COMPUTED:
        request.__dict__.pop(name, None)
    hide_from_sentry()


def query_of(request: Request) -> bytes:
    """The query of a request as it came."""
    kept: Secret | None = request.environ.get(_AS_IT_CAME)
    return request.query_string if kept is None else kept.reveal().encode("latin-1")


def hide_from_sentry() -> None:
    """Have Sentry, which kept the query before Flask began, send this request without them."""
    get_scope = getattr(sys.modules.get("sentry_sdk"), "get_isolation_scope", None)
    if get_scope is None:
        return
    scope = get_scope()
    # It has to come last. A scope that is not of one request has it already.
    if getattr(scope, "_event_processors", [])[-1:] != [_clean_event]:
        scope.add_event_processor(_clean_event)


def _clean_event(event: Any, _hint: object) -> Any:
    request = event.get("request") or {}
    for name in ("query_string", "url"):
        if isinstance(request.get(name), str):
            request[name] = without_credentials(request[name])
    return event


def hide_from_server_logs() -> None:
    """Have gunicorn and Flask's own server log pulls without their query."""
    for name in _SERVER_LOGS:
        logging.getLogger(name).addFilter(_shorten_record)


def _shorten_record(record: logging.LogRecord) -> bool:
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 (whatever is wrong with it, the handlers will tell)
        return True
    if "_fetch" not in text:
        return True
    if isinstance(record.args, dict):  # by name, which formatters of access logs look at
        shortened = copy(record.args)  # gunicorn's own class, with "-" for what is missing
        shortened.update((name, _shortened(value)) for name, value in record.args.items())
        record.args = shortened
    else:
        record.msg, record.args = _shortened(text), ()
    return True


def _shortened(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return _CREDENTIAL_IN_TEXT.sub(r"\1=***", _PULL.sub(r"\1***", value))
