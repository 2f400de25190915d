"""The shop: its settings, its login, and the data that WeChat pre-fetches."""

import os
from datetime import UTC, datetime
from pathlib import Path

from flask import Flask, abort, jsonify, request
from flask.typing import ResponseReturnValue

from example_app.database import close_database, create_database, select
from prefetch_kit import NO_DATA, Prefetch, Pull, fast_path

APPID = "wx5e0f00d5ca1ab1e0"

prefetch = Prefetch("prefetch", __name__, url_prefix="/prefetch")


@prefetch.pre_fetch("pages/index/index", cache=30)  # the same for everybody
def index(_pull: Pull) -> object:
    return {"made_at": datetime.now(UTC), "products": select("SELECT * FROM products")}


@prefetch.pre_fetch("pages/cart/cart", cache=10, login_required=True)  # one for each user
def cart(pull: Pull) -> object:
    return {"cart": cart_of(str(pull.user_id))}


@prefetch.pre_fetch("pages/product/detail", cache=60)
def detail(pull: Pull) -> object:
    found = select("SELECT * FROM products WHERE id = ?", pull.query["id"])
    return found[0] if found else NO_DATA


@prefetch.pre_fetch()
def anything(_pull: Pull) -> object:
    return NO_DATA


@prefetch.period_fetch(login_required=True)
def digest(pull: Pull) -> object:
    last_ones = select("SELECT id, name, stock FROM products WHERE stock < 10")
    return {"last_ones": last_ones, "cart": cart_of(str(pull.user_id))}


def cart_of(user_id: str) -> list[dict[str, object]]:
    return select(
        "SELECT name, count FROM carts JOIN products ON id = product_id WHERE user_id = ?", user_id
    )


def login() -> ResponseReturnValue:
    """The mini program sends what wx.login gave; it gets its background token."""
    body = request.get_json()
    if not isinstance(body, dict) or not isinstance(code := body.get("code"), str):
        abort(400)
    who = prefetch.exchange_code(code, appid=APPID)
    if who is None:
        abort(401)
    return jsonify(token=prefetch.issue_token(who.openid, appid=APPID))


def create_app() -> Flask:
    app = Flask(__name__)
    data = Path(os.environ.get("SHOP_DATA", app.instance_path))
    app.config.update(
        SECRET_KEY=create_database(data / "shop.sqlite3"),
        SHOP_DATABASE=data / "shop.sqlite3",
        PREFETCH_APPIDS=[APPID],
        PREFETCH_BASE_URL="https://shop.example",
        PREFETCH_STATE_DIR=data / "prefetch_kit",
    )
    app.teardown_appcontext(close_database)
    app.add_url_rule("/login", view_func=login, methods=["POST"])
    app.register_blueprint(prefetch)
    app.wsgi_app = fast_path(app)  # type: ignore[method-assign]
    return app
