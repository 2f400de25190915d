"""The calls for business domains (业务域名), both ways.

Pages: those of `domains`. Confirm files are really fetched, from where the host is mapped to, and
without the lock: their server may call the API meanwhile.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prefetch_kit.sandbox.call import Call
from prefetch_kit.sandbox.components import Components
from prefetch_kit.sandbox.domains import (
    ConfirmFile,
    bare_host,
    changed,
    confirm_file,
    covered,
    host_of,
    urls,
)
from prefetch_kit.sandbox.errors import ApiError
from prefetch_kit.sandbox.http_get import fetch
from prefetch_kit.sandbox.state import App
from prefetch_kit.sandbox.third_party import Component

_OK: Final[Mapping[str, object]] = {"errcode": 0, "errmsg": "ok"}


class DomainApi:
    """`component_of` and `merchant_of` find the owner of the token of a call, or refuse it."""

    def __init__(
        self,
        platform: Components,
        component_of: Callable[[Call], Component],
        merchant_of: Callable[[Call], App],
    ) -> None:
        self._platform = platform
        self._component_of = component_of
        self._merchant_of = merchant_of
        self.calls: dict[str, Callable[[Call], dict[str, object]]] = {
            "/cgi-bin/component/get_domain_confirmfile": self._platform_file,
            "/cgi-bin/component/modify_wxa_jump_domain": self._platform_domains,
            "/wxa/setwebviewdomain": self._third_domains,
            "/wxa/get_webviewdomain_confirmfile": self._merchant_file,
            "/wxa/setwebviewdomain_directly": self._direct_domains,
            "/wxa/get_effective_webviewdomain": self._effective_domains,
        }

    def _platform_file(self, call: Call) -> dict[str, object]:
        if call.method != "POST":
            raise ApiError(43002)
        with self._platform.lock:
            return _shown(confirm_file(self._component_of(call).appid))

    def _merchant_file(self, call: Call) -> dict[str, object]:
        with self._platform.lock:
            app = self._merchant_of(call)
            call.posted()
            return _shown(confirm_file(app.appid))

    def _platform_domains(self, call: Call) -> dict[str, object]:
        with self._platform.lock:
            component = self._component_of(call)
            body = call.posted()
        if call.action == "get":
            named = self._platform.switches.jump_domain_get_has_errcode
            return {**(_OK if named else {}), **self._listed(component)}
        given = _split(body.get("wxa_jump_h5_domain"))
        hosts = [host for each in given if (host := bare_host(each))]
        if call.action != "delete":
            hosts = [host for host in hosts if self._proves(host, component.appid)]
        invalid = [each for each in given if each.lower() not in hosts]
        told_by = self._platform.switches.unproved_platform_domain
        if invalid and told_by != "listed":
            raise ApiError(int(told_by))
        with self._platform.lock:
            domains = component.domains
            domains.testing = self._changed(domains.testing, call, hosts)
            if body.get("is_modify_published_together") is True:
                domains.published = self._changed(domains.published, call, hosts)
        told = {"invalid_wxa_jump_h5_domain": ";".join(invalid)} if invalid else {}
        return {**_OK, **self._listed(component), **told}

    def _listed(self, component: Component) -> dict[str, object]:
        with self._platform.lock:
            lists = {
                "testing_wxa_jump_h5_domain": component.domains.testing,
                "published_wxa_jump_h5_domain": self._platform.published(component),
            }
            written = urls if self._platform.switches.platform_domains_with_scheme else list
            return {name: ";".join(written(hosts)) for name, hosts in lists.items()}

    def _changed(self, stored: list[str], call: Call, given: Iterable[str]) -> list[str]:
        limit = self._platform.switches.max_domains
        return changed(stored, call.action, given, limit=limit)

    def _third_domains(self, call: Call) -> dict[str, object]:
        with self._platform.lock:
            app = self._merchant_of(call)
            body = call.posted()
            if call.action == "get":
                return {**_OK, "webviewdomain": urls(app.webview.third)}
            accepted = self._platform.accepted(app).platform
            if not accepted:
                raise ApiError(89020)
            action, given = call.action, _hosts(body.get("webviewdomain"))
            if "action" not in body:
                action, given = "add", sorted(accepted)
            if not all(covered(host, accepted) for host in given):
                raise ApiError(89021)
            limit = self._platform.switches.max_domains
            after = changed(app.webview.third, action, given, limit=limit)
            if after == app.webview.third:
                raise ApiError(89019)
            app.webview.third = after
            return {**_OK}

    def _direct_domains(self, call: Call) -> dict[str, object]:
        with self._platform.lock:
            app = self._merchant_of(call)
            body = call.posted()
            if call.action == "get":
                return {**_OK, "webviewdomain": urls(app.webview.direct)}
        given = _hosts(body.get("webviewdomain"))
        if call.action != "delete" and not all(self._proves(h, app.appid) for h in given):
            raise ApiError(86103)
        with self._platform.lock:
            after = self._changed(app.webview.direct, call, given)
            for host in set(after) - set(app.webview.direct):
                self._refuse_crowded(host)
            app.webview.direct = after
            return {**_OK, "webviewdomain": urls(after)}

    def _refuse_crowded(self, host: str) -> None:
        bound = sum(host in app.webview.direct for app in self._platform.state.apps.values())
        if bound >= self._platform.switches.apps_per_domain:
            raise ApiError(506015)

    def _effective_domains(self, call: Call) -> dict[str, object]:
        with self._platform.lock:
            app = self._merchant_of(call)
            call.posted()
            return {
                **_OK,
                "mp_webviewdomain": urls(sorted(app.domains.miniprogram)),
                "third_webviewdomain": urls(app.webview.third),
                "direct_webviewdomain": urls(app.webview.direct),
                "effective_webviewdomain": urls(sorted(self._platform.accepted(app).miniprogram)),
            }

    def _proves(self, host: str, appid: str) -> bool:
        file = confirm_file(appid)
        answer = fetch(
            f"https://{host}/{file.name}",
            origins=self._platform.origins(),
            switches=self._platform.switches,
        )
        found = None if answer.problem else (answer.status, answer.body)
        return found == (200, file.content.encode())


def _shown(file: ConfirmFile) -> dict[str, object]:
    return {**_OK, "file_name": file.name, "file_content": file.content}


def _split(given: object) -> list[str]:
    if not isinstance(given, str):
        raise ApiError(47001, "wxa_jump_h5_domain must be a string")
    return [part for part in given.split(";") if part]


def _hosts(given: object) -> list[str]:
    """Raises 89021 unless it is `https://host`, as WeChat does for a missing scheme."""
    if given is None:
        return []
    if not isinstance(given, list):
        raise ApiError(47001, "webviewdomain must be an array")
    hosts = [host for each in given if (host := host_of(each))]
    if len(hosts) != len(given):
        raise ApiError(89021)
    return hosts
