"""Third-party platforms: registration, authorization by merchants, pushes."""

import re
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import urlsplit

from prefetch_kit.sandbox.errors import NotFoundError, SandboxError
from prefetch_kit.sandbox.http_get import NO_ANSWER, NO_ORIGIN
from prefetch_kit.sandbox.phone import Phones
from prefetch_kit.sandbox.pushes import Envelope, Pushed, event, post, seal
from prefetch_kit.sandbox.settings import Domains
from prefetch_kit.sandbox.state import App
from prefetch_kit.sandbox.third_party import (
    CODE_LIFETIME_S,
    FETCH_PERMISSION,
    Authorization,
    Component,
    new_refresh_token,
)

_AES_KEY: Final = re.compile(r"[A-Za-z0-9]{43}\Z")


class Components(Phones):
    """The platform and the phones, with third-party platforms (第三方平台)."""

    def add_platform(
        self, appid: str, *, secret: str, token: str, aes_key: str, receive_url: str | None = None
    ) -> None:
        """Register a third-party platform.

        `token` and `aes_key` (43 letters and digits) are those for messages. `receive_url` is
        the https URL for pushes; its host is to be mapped with `map_origin`.
        """
        if not _AES_KEY.match(aes_key):
            raise SandboxError("aes_key is not of 43 letters and digits: make another one.")
        if find_spec("cryptography") is None:
            raise SandboxError('Pushes are encrypted: install "prefetch-kit[crypto]".')
        if receive_url is not None and not receive_url.startswith("https://"):
            raise SandboxError("receive_url is no https URL: name a host and map_origin it.")
        with self.lock:
            self.refuse_taken(appid)
            self.state.components[appid] = Component(
                appid, secret, token, aes_key, receive_url, self.now()
            )

    def push_ticket(self, platform: str) -> Pushed:
        """Push a new `component_verify_ticket` now."""
        with self.lock:
            component = self.component(platform)
            ticket = component.issue_ticket(now=self.now())
        pushed = self._push(platform, "component_verify_ticket", ComponentVerifyTicket=ticket)
        with self.lock:
            component.unanswered = 0 if pushed.accepted else component.unanswered + 1
        return pushed

    def push_due_tickets(self) -> None:
        """Push to each platform whose last ticket is as old as `ticket_every_s` says."""
        with self.lock:
            every_s, limit = self.switches.ticket_every_s, self.switches.ticket_failures
            due = [
                each.appid
                for each in self.state.components.values()
                if each.receive_url
                and every_s
                and self.now() - each.pushed_at >= every_s
                and (limit is None or each.unanswered < limit)
            ]
        for appid in due:
            self.push_ticket(appid)

    def authorize(
        self, platform: str, appid: str, *, permissions: list[int] | None = None
    ) -> Pushed:
        """A merchant authorizes a platform for its mini program, or changes its permissions.

        `permissions` are the permission sets, 18 alone if left out. Where they are those it
        granted before, nothing is pushed.
        """
        pushed, _ = self._authorize(platform, appid, "preauthcode@@@sandbox", permissions)
        return pushed

    def confirm_authorization(
        self,
        platform: str,
        appid: str,
        *,
        pre_auth_code: str,
        permissions: list[int] | None = None,
    ) -> str:
        """A merchant authorizes a platform on the page of its link; the `auth_code` it brings.

        Pushes what `authorize` pushes.
        """
        with self.lock:
            if not self.component(platform).admits(pre_auth_code, now=self.now()):
                raise SandboxError(
                    "pre_auth_code is not one of this platform's, or older than half an hour: "
                    "call api_create_preauthcode."
                )
        _, code = self._authorize(platform, appid, pre_auth_code, permissions)
        if not self.switches.own_redirect_code:
            return code
        with self.lock:
            return self.component(platform).issue_code(appid, now=self.now())

    def _authorize(
        self, platform: str, appid: str, pre_auth_code: str, permissions: list[int] | None
    ) -> tuple[Pushed, str]:
        """The push, and the authorization code in it."""
        granted = (FETCH_PERMISSION,) if permissions is None else tuple(permissions)
        with self.lock:
            component, now = self.component(platform), self.now()
            earlier = component.authorizations.get(self.app(appid).appid)
            kept = earlier if self.switches.update_keeps_refresh_token else None
            if kept is None:
                kept = Authorization(granted, now, new_refresh_token())
            changes = earlier is None or set(earlier.permissions) != set(granted)
            kept.permissions, kept.authorized_at = granted, now
            component.authorizations[appid] = kept
            code = component.issue_code(appid, now=now)
        info_type = "authorized" if earlier is None else "updateauthorized"
        if not (changes or self.switches.unchanged_update_is_pushed):
            unchanged = Pushed(
                platform=platform,
                info_type=info_type,
                appid=appid,
                at=now,
                reason="the permissions did not change",
            )
            return unchanged, code
        pushed = self._push(
            platform,
            info_type,
            AuthorizerAppid=appid,
            AuthorizationCode=code,
            AuthorizationCodeExpiredTime=int(now + CODE_LIFETIME_S),
            PreAuthCode=pre_auth_code,
        )
        return pushed, code

    def revoke(self, platform: str, appid: str) -> Pushed:
        """A merchant withdraws its authorization; the platform's tokens for it end."""
        with self.lock:
            if self.component(platform).authorizations.pop(appid, None) is None:
                raise NotFoundError(f"{appid!r} has not authorized {platform}: authorize first.")
        return self._push(platform, "unauthorized", AuthorizerAppid=appid)

    def replace_refresh_token(self, platform: str, appid: str) -> None:
        """Replace the refresh token of the merchant's authorization, without a push."""
        with self.lock:
            authorization = self.component(platform).authorizations[appid]
            authorization.refresh_token = new_refresh_token()
            authorization.earlier.clear()

    def refresh_token(self, platform: str, appid: str) -> str:
        """The valid refresh token, without a call."""
        with self.lock:
            return self.component(platform).authorizations[appid].refresh_token

    def pushes(self) -> list[Pushed]:
        """The last 10,000 pushes, oldest first."""
        with self.lock:
            return list(self.state.pushes)

    def accepted(self, app: App) -> Domains:
        """The hosts that count for this app now; hold `lock`.

        A domain that was set directly does not have to be a domain of a platform.
        """
        serving = [c for c in self.state.components.values() if app.appid in c.authorizations]
        published = {host for each in serving for host in self.published(each)}
        released = set(app.webview.released)
        return Domains(
            app.domains.platform | published | released,
            app.domains.miniprogram | set(app.webview.third) | released,
        )

    def published(self, component: Component) -> list[str]:
        """The business domains of a platform, with those that were added by hand."""
        by_hand = {
            host for appid in component.authorizations for host in self.app(appid).domains.platform
        }
        return sorted({*component.domains.published, *by_hand})

    def component(self, appid: str) -> Component:
        """The live record of a third-party platform; hold `lock` while using it."""
        try:
            return self.state.components[appid]
        except KeyError:
            raise NotFoundError(f"platform {appid!r} is not known: add_platform first.") from None

    def _push(self, platform: str, info_type: str, **members: object) -> Pushed:
        """Deliver without holding the lock: the receiver calls the API back before it answers."""
        with self.lock:
            component, now = self.component(platform), self.now()
        envelope = seal(component, event(component, info_type, now=now, **members), now=now)
        appid = members.get("AuthorizerAppid")
        pushed = Pushed(
            platform=platform,
            info_type=info_type,
            appid=None if appid is None else str(appid),
            at=now,
            **self._delivered(component.receive_url, envelope),
        )
        with self.lock:
            self.state.pushes.append(pushed)
        told = [info_type, pushed.appid, f"to {platform}: {pushed.reason or 'success'}"]
        self.tell(f"push {' '.join(filter(None, told))}")
        return pushed

    def _delivered(self, url: str | None, envelope: Envelope) -> dict[str, Any]:
        """The outcome, as members of a Pushed."""
        if url is None:
            return {"reason": "no receive_url"}
        origin = self.origin(urlsplit(url).hostname or "")
        if origin is None:
            return {"reason": NO_ORIGIN}
        attempts, status, reason = 0, None, NO_ANSWER
        while reason and attempts <= self.switches.push_retries:
            attempts += 1
            deadline_s = self.switches.push_deadline_s
            status, reason = post(url, envelope, origin=origin, deadline_s=deadline_s)
        return {
            "attempts": attempts,
            "status": status,
            "accepted": not reason,
            "reason": reason,
        }
