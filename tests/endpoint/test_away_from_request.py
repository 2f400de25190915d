"""Everyday Flask code that looks for a request in a handler is told what to use instead."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from flask import (
    Flask,
    after_this_request,
    current_app,
    flash,
    g,
    got_request_exception,
    render_template_string,
    request,
    session,
    url_for,
)
from flask_babel import Babel, force_locale, format_date, get_locale, gettext
from flask_login import LoginManager, UserMixin, current_user, login_required, login_user
from werkzeug.wrappers import Response

from prefetch_kit import Prefetch, Pull

App = Callable[..., Flask]
Ask = Callable[..., Response]
Logged = Callable[[], list[str]]


class User(UserMixin):  # type: ignore[misc]
    id = "alice"


@pytest.fixture
def app(make_app: App, prefetch: Prefetch) -> Callable[..., Flask]:
    """`app(**config)`: an app with real Flask-Login and Flask-Babel, and the blueprint."""

    def app(**config: object) -> Flask:
        app = make_app(prefetch, **config)
        LoginManager(app).user_loader(lambda _: User())
        Babel(app, locale_selector=lambda: request.accept_languages.best_match(["zh", "en"]))
        return app

    return app


def hidden_behind_another(_: Pull) -> object:
    try:
        return request.args["id"]
    except RuntimeError as error:
        raise ValueError("no id") from error


def flash_something(_: Pull) -> None:
    flash("x")


NOTED: dict[str, Callable[[Pull], object]] = {
    "request": lambda _: request.args["id"],
    "request's headers": lambda _: request.headers.get("Accept"),
    "session": lambda _: session["user"],
    "session.get": lambda _: session.get("user"),
    "g.user": lambda _: g.user,
    "g.pop": lambda _: g.pop("user"),
    "current_user": lambda _: current_user.id,
    "current_user.is_authenticated": lambda _: {"in": current_user.is_authenticated},
    "login_required": login_required(lambda _: "x"),
    "login_user": lambda _: login_user(User()),
    "get_locale": lambda _: str(get_locale()),
    "gettext": lambda _: gettext("tea"),
    "format_date": lambda _: format_date(),
    "flash": flash_something,
    "after_this_request": lambda _: after_this_request(lambda response: response),
    "a template": lambda _: render_template_string("{{ request.path }}"),
    "hidden": hidden_behind_another,
}


@pytest.mark.parametrize("cache", [None, 30])
@pytest.mark.parametrize("handler", NOTED.values(), ids=NOTED)
def test_the_error_says_what_to_use_instead(
    app: Callable[..., Flask],
    prefetch: Prefetch,
    ask: Ask,
    logged: Logged,
    handler: Callable[[Pull], object],
    cache: float | None,
) -> None:
    """In the log, once, right below the error itself; and for error trackers."""
    prefetch.pre_fetch(cache=cache)(handler)
    shop, heard = app(), list[BaseException]()
    with got_request_exception.connected_to(lambda _, exception: heard.append(exception), shop):
        assert ask(shop).status_code == 500
    text = logged()[-1]
    assert text.count("prefetch_kit: a handler runs outside of the request") == 1
    for instead in ("pull.query", "pull.user_id", "force_locale(pull.query.get("):
        assert instead in text
    (error,) = heard
    assert hasattr(error, "__notes__") or hasattr(error.__cause__, "__notes__")


def test_the_error_of_a_test_has_the_note_too(
    app: Callable[..., Flask], prefetch: Prefetch
) -> None:
    """Under TESTING it is raised on."""
    prefetch.pre_fetch()(lambda _: session["user"])
    client = app(TESTING=True).test_client()
    with pytest.raises(RuntimeError) as caught:
        client.get("/prefetch/pre_fetch?appid=wx1&timestamp=1700000000")
    assert "pull.user_id" in "".join(caught.value.__notes__)


def test_url_for_without_a_base_url_names_the_setting(
    app: Callable[..., Flask], prefetch: Prefetch, ask: Ask, logged: Logged
) -> None:
    """And works with it."""
    prefetch.pre_fetch()(lambda _: url_for("prefetch.pre_fetch"))
    assert ask(app()).status_code == 500
    assert "Set PREFETCH_BASE_URL" in logged()[-1]
    assert "outside of the request, since" not in logged()[-1]


def none_of_its_own(_: Pull) -> object:
    user: Any = None
    return user.id


OTHERS: dict[str, Callable[[Pull], object]] = {
    "None": none_of_its_own,
    "KeyError": lambda _: {"a": 1}["user"],
    "RuntimeError": lambda _: (_ for _ in ()).throw(RuntimeError("x")),
    "attribute of the app": lambda _: current_app.user,  # type: ignore[attr-defined]
    "template": lambda _: render_template_string("{{ 1 / 0 }}"),
}


@pytest.mark.parametrize("handler", OTHERS.values(), ids=OTHERS)
def test_other_errors_have_no_note(
    app: Callable[..., Flask],
    prefetch: Prefetch,
    ask: Ask,
    logged: Logged,
    handler: Callable[[Pull], object],
) -> None:
    """A mistake that has nothing to do with the request is left as it is."""
    prefetch.pre_fetch()(handler)
    assert ask(app()).status_code == 500
    assert not re.search("prefetch_kit: ", logged()[-1])


def test_what_the_note_says_works(app: Callable[..., Flask], prefetch: Prefetch, ask: Ask) -> None:
    """The locale from the pull: each language has its own answer."""

    @prefetch.pre_fetch(cache=30)
    def handler(pull: Pull) -> str:
        with force_locale(pull.query.get("lang", "zh")):
            return str(get_locale())

    shop = app()
    answers = [ask(shop, query=f"lang={lang}").data for lang in ("en", "zh", "en")]
    assert answers == [b"en", b"zh", b"en"]
