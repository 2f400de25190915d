"""The shop itself, pulled from without a server."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from example_app import create_app
from example_app.shop import APPID
from prefetch_kit.sandbox import Sandbox

SECRET = "canary-app-secret"


@pytest.fixture
def wechat() -> Iterator[Sandbox]:
    with Sandbox() as sandbox:
        sandbox.add_app(APPID, secret=SECRET)
        sandbox.add_user(APPID, "openid-alice")
        yield sandbox


@pytest.fixture
def shop(wechat: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Flask:
    monkeypatch.setenv("SHOP_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("PREFETCH_APP_SECRET", SECRET)
    monkeypatch.setenv("PREFETCH_API_BASE_URL", wechat.base_url)
    return create_app()


def pull(shop: Flask, kind: str = "pre_fetch", **query: str) -> Any:
    given = {"appid": APPID, "timestamp": "1700000000"} | query
    return shop.test_client().get(f"/prefetch/{kind}", query_string=given)


def log_in(wechat: Sandbox, shop: Flask) -> str:
    code = wechat.login_code(APPID, "openid-alice")
    answer: Any = shop.test_client().post("/login", json={"code": code}).json
    return str(answer["token"])


def test_everybody_sees_the_same_home_page(wechat: Sandbox, shop: Flask) -> None:
    """What is for everybody is made once, and comes without a user."""
    home = pull(shop, path="pages/index/index").json
    assert len(home["products"]) == 3
    token = log_in(wechat, shop)
    assert pull(shop, path="pages/index/index", token=token).json == home
    assert pull(shop, path="pages/cart/cart").status_code == 401


def test_a_user_sees_the_own_cart(wechat: Sandbox, shop: Flask) -> None:
    """The token from the login opens Alice's cart, on both kinds of pull."""
    token = log_in(wechat, shop)
    assert len(pull(shop, path="pages/cart/cart", token=token).json["cart"]) == 2
    assert len(pull(shop, "period_fetch", token=token).json["cart"]) == 2


def test_product_page(shop: Flask) -> None:
    """A product is found by its id; one that does not exist is no data."""
    assert pull(shop, path="pages/product/detail", query="id=2").json["stock"] == 6
    assert pull(shop, path="pages/product/detail", query="id=99").data == b""
    assert pull(shop, path="pages/product/detail").status_code == 400


@pytest.mark.parametrize(("body", "status"), [({"code": "x"}, 401), ({}, 400), ([], 400)])
def test_logins_that_fail(shop: Flask, body: Any, status: int) -> None:
    """A wrong code is nobody's; anything else is a bad request."""
    assert shop.test_client().post("/login", json=body).status_code == status


def test_all_processes_share_one_key(shop: Flask, tmp_path: Path) -> None:
    """However many start at once, they end up with the same secret key."""
    keys: list[Any] = []
    threads = [
        threading.Thread(target=lambda: keys.append(create_app().secret_key)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert keys == [shop.secret_key] * 8
