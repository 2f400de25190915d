"""A Secret is used but never shown."""

import copy
import json
import logging
import pickle
import pprint
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass

import orjson
import pytest

from prefetch_kit.secret import Secret

CANARY = "canary-4f1d"


@dataclass
class Settings:
    secret: Secret


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        ascii,
        lambda secret: f"{secret}",
        lambda secret: f"{secret!r:>40}",
        lambda secret: f"{secret:>40}",
        lambda secret: "%s %r" % (secret, secret),  # noqa: UP031 (logging formats this way)
        lambda secret: pprint.pformat({"key": [secret]}),
        lambda secret: repr(Settings(secret)),
        lambda secret: str(asdict(Settings(secret))),
        lambda secret: str(ValueError(secret)),
    ],
)
def test_no_text_shows_the_value(show: Callable[[Secret], str]) -> None:
    """Every way to write a Secret down gives its mask."""
    shown = show(Secret(CANARY))
    assert CANARY not in shown
    assert "Secret(***)" in shown


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_is_refused(protocol: int) -> None:
    """No protocol writes a Secret, alone or inside something."""
    with pytest.raises(TypeError) as caught:
        pickle.dumps([Secret(CANARY)], protocol)
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("dumps", [json.dumps, orjson.dumps])
def test_json_is_refused(dumps: Callable[[object], object]) -> None:
    """No JSON encoder writes a Secret."""
    with pytest.raises(TypeError) as caught:
        dumps({"key": Secret(CANARY)})
    assert CANARY not in str(caught.value)


def test_log_and_traceback_hide_the_value(caplog: pytest.LogCaptureFixture) -> None:
    """A log line and a traceback that prints local variables show the mask."""
    secret = Secret(CANARY)
    nothing: dict[Secret, str] = {}
    try:
        nothing[secret]
    except KeyError as error:
        trace = traceback.TracebackException.from_exception(error, capture_locals=True)
        logging.getLogger("shop").exception("failed with %s", secret)
    text = "".join(trace.format()) + caplog.text
    assert "secret = Secret(***)" in text
    assert CANARY not in text


def test_reveal_gives_the_value() -> None:
    """What went in comes out by the one named way."""
    assert Secret(CANARY).reveal() == CANARY


def test_copies_are_the_same_object() -> None:
    """Copying a settings object makes no second copy of a secret in memory."""
    secret = Secret(CANARY)
    assert copy.copy(secret) is secret
    assert copy.deepcopy({"key": secret})["key"] is secret


@pytest.mark.parametrize("value", ["x", "密", "\ud800"])
def test_equal_values_are_equal(value: str) -> None:
    """Equality and hash follow the value, even one that is no UTF-8."""
    assert Secret(value) == Secret(value)
    assert hash(Secret(value)) == hash(Secret(value))
    assert Secret(value) != Secret(value + "y")


def test_secret_is_not_equal_to_its_text() -> None:
    """A plain string never passes for a Secret."""
    assert Secret("x") != "x"


def test_secret_has_no_attributes_to_walk() -> None:
    """Printers that walk `vars()` find nothing."""
    with pytest.raises(TypeError):
        vars(Secret(CANARY))


def test_empty_secret_is_refused() -> None:
    """An unset variable does not become a secret."""
    with pytest.raises(ValueError, match="empty"):
        Secret("")
