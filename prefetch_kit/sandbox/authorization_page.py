"""The page on which a merchant authorizes a third-party platform (授权注册页面).

A form post with `appid` stands for the merchant who scans the code and confirms.
Page: developers.weixin.qq.com/doc/oplatform/Third-party_Platforms/2.0/api/Before_Develop/
Authorization_Process_Technical_Description.html.
"""

from collections.abc import Iterable
from html import escape
from typing import Final
from urllib.parse import urlencode, urlsplit
from wsgiref.types import StartResponse, WSGIEnvironment

from werkzeug.wrappers import Request, Response

from prefetch_kit.sandbox.components import Components
from prefetch_kit.sandbox.errors import SandboxError
from prefetch_kit.sandbox.platform import MINIPROGRAM
from prefetch_kit.sandbox.third_party import CODE_LIFETIME_S

# On the real hosts: mp.weixin.qq.com for a browser, open.weixin.qq.com for a link in WeChat, and
# the same link as it was before.
PATHS: Final = frozenset(
    {"/cgi-bin/componentloginpage", "/wxaopen/safe/bindcomponent", "/safe/bindcomponent"}
)

_MAX_FORM_BYTES: Final = 4096


class AuthorizationPage:
    """A WSGI application: GET shows the accounts to choose from, POST authorizes one of them.

    The query is that of WeChat: `component_appid`, `pre_auth_code`, `redirect_uri`, and if wanted
    `auth_type` (1: official accounts, 2: mini programs) and `biz_appid`, the only account to
    choose. The form has `appid` and, where they differ from 18, `permissions`, each a number.
    """

    def __init__(self, wechat: Components) -> None:
        self._wechat = wechat

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        request.max_content_length = _MAX_FORM_BYTES
        try:
            response = self._answer(request)
        except SandboxError as error:
            response = Response(f"{error}\n", 400, content_type="text/plain; charset=utf-8")
        return response(environ, start_response)

    def _answer(self, request: Request) -> Response:
        redirect_uri = _redirect_uri(request)
        choices = self._choices(request)
        if request.method != "POST":
            return Response(_page(choices), content_type="text/html; charset=utf-8")
        appid = request.form.get("appid", "")
        if appid not in choices:
            raise SandboxError(
                f"appid {appid!r} cannot be chosen here: the form needs one of {choices}."
            )
        code = self._wechat.confirm_authorization(
            request.args.get("component_appid", ""),
            appid,
            pre_auth_code=request.args.get("pre_auth_code", ""),
            permissions=request.form.getlist("permissions", int) or None,
        )
        brought = urlencode({"auth_code": code, "expires_in": CODE_LIFETIME_S})
        joined = "&" if urlsplit(redirect_uri).query else "?"
        return Response(status=302, headers={"Location": f"{redirect_uri}{joined}{brought}"})

    def _choices(self, request: Request) -> list[str]:
        only, kind = request.args.get("biz_appid"), request.args.get("auth_type")
        wechat = self._wechat
        with wechat.lock:
            wechat.component(request.args.get("component_appid", ""))
            return [
                app.appid
                for app in wechat.state.apps.values()
                if only in (None, "", app.appid)
                and (kind != "1" or app.kind != MINIPROGRAM)
                and (kind != "2" or app.kind == MINIPROGRAM)
            ]


def _redirect_uri(request: Request) -> str:
    given = request.args.get("redirect_uri", "")
    try:
        parts = urlsplit(given)
    except ValueError:
        parts = urlsplit("")
    printable = given.isascii() and given.isprintable() and " " not in given
    if not printable or parts.scheme not in ("http", "https") or not parts.hostname:
        raise SandboxError("redirect_uri is not an http or https URL: percent-encode one.")
    if parts.fragment:
        raise SandboxError("redirect_uri has a fragment: leave it out.")
    return given


def _page(appids: Iterable[str]) -> str:
    buttons = "".join(
        f'<p><button name="appid" value="{escape(appid)}">{escape(appid)}</button></p>'
        for appid in appids
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Authorize (授权)</title>'
        "<h1>Authorize the third-party platform for (授权)</h1>"
        f'<form method="post">{buttons}</form></html>\n'
    )
