"""What a developer writes, held against the types the package promises. Never run."""

from collections.abc import Mapping
from datetime import datetime

from flask import Flask
from marshmallow import Schema, fields

from prefetch_kit import NO_DATA, Prefetch, PrefetchKitError, Pull, pull_refused, pull_served
from prefetch_kit.fleet import Fleet, Limits, Summary, load_project
from prefetch_kit.pushes import PlatformPushes
from prefetch_kit.registrar import FetchSetting, Plan, Registrar, Wanted


class HomeSchema(Schema):
    banners = fields.List(fields.String())


prefetch = Prefetch("prefetch", __name__, url_prefix="/p/<appid>")
pushes = PlatformPushes("wechat", __name__, url_prefix="/wechat")


@prefetch.pre_fetch("pages/index/index", schema=HomeSchema())
def index(pull: Pull) -> dict[str, object]:
    kind: str = pull.kind
    appid: str = pull.appid
    path: str | None = pull.path
    scene: int | None = pull.scene
    version: str | None = pull.version
    timestamp: datetime = pull.timestamp
    user_id: str | None = pull.user_id
    return {"facts": [kind, appid, path, scene, version, timestamp, user_id]}


@prefetch.pre_fetch(login_required=True)
def anything(pull: Pull) -> object:
    query: Mapping[str, str] = pull.query
    ids: list[str] = pull.query.getlist("id")
    return NO_DATA if not ids else [query["id"], query.get("colour")]


@prefetch.period_fetch()
def digest(pull: Pull) -> str:
    return f"for {pull.appid}"


@prefetch.token_verifier
def verify(appid: str, token: str) -> str | None:
    return token if appid else None


@prefetch.code_user
def user_of(appid: str, openid: str, unionid: str | None) -> str | None:
    return unionid or openid if appid else None


@pushes.on_authorized
def welcome(appid: str) -> None:
    print(appid)


def create_app() -> Flask:
    app = Flask(__name__)
    app.register_blueprint(prefetch)
    app.register_blueprint(pushes)
    pull_served.connect(count, app)
    pull_refused.connect(count, app)
    return app


def count(app: Flask, **facts: object) -> None:
    app.logger.info("%s", facts)


def token_of(code: str) -> str | None:
    try:
        who = prefetch.exchange_code(code, appid="wx5e0f00d5ca1ab1e0")
        return prefetch.issue_token(who.openid, appid="wx5e0f00d5ca1ab1e0") if who else None
    except PrefetchKitError as error:
        return str(error)


def register(token: str) -> list[str]:
    wanted: Wanted = {
        "pre_fetch": FetchSetting.server("https://shop.example/prefetch/pre_fetch"),
        "period_fetch": FetchSetting.cloud_function("test-pfyol", "login"),
    }
    with Registrar("wx5e0f00d5ca1ab1e0", tokens=lambda: token, state_dir="state") as registrar:
        is_open: bool | None = registrar.read().pre_fetch.open
        plan: Plan = registrar.apply(wanted, allow={"takeover"}, approve=print)
        registrar.apply({"pre_fetch": FetchSetting.off()})
        registrar.rollback()
    return [f"{change.kind}: {is_open} to {change.after.open}" for change in plan.changes]


def register_all() -> int:
    summary: Summary = Fleet(load_project("prefetch.toml")).apply(Limits(max_changes=10))
    return summary.exit_code
