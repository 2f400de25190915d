"""Business domains (业务域名), to which a host must belong before WeChat pulls from it.

developers.weixin.qq.com/doc/oplatform/openApi/: thirdparty-management/domain-mgnt/ for a
third-party platform's own ones, miniprogram-management/domain-management/ for a merchant's. Their
calls can also overwrite and delete, and one with no action hands out every domain there is:
nothing but `add` and `get` is ever sent from here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, Literal

from marshmallow import fields, validate

from prefetch_kit.addresses import CONFIRM_FILE_CONTENT, CONFIRM_FILE_NAME, public_url_problem
from prefetch_kit.errors import Refused, UrlRefused
from prefetch_kit.weixin.answers import answer_schema, promised, read
from prefetch_kit.weixin.errcodes import refusal
from prefetch_kit.weixin.tokens import TokenSource, with_token
from prefetch_kit.weixin.transport import Transport

_UNCHANGED: Final = 89019
_NOT_PROVED: Final = 86103

_Action = Literal["add", "get"]

_FILE: Final = answer_schema(
    file_name=fields.String(required=True, validate=validate.Regexp(CONFIRM_FILE_NAME)),
    file_content=fields.String(required=True, validate=validate.Regexp(CONFIRM_FILE_CONTENT)),
)
# Hosts with a semicolon between them, seen with and without https:// in front. The answer to
# `get` may come without an errcode.
_JUMP: Final = answer_schema(
    testing_wxa_jump_h5_domain=fields.String(load_default=""),
    published_wxa_jump_h5_domain=fields.String(load_default=None),
    invalid_wxa_jump_h5_domain=fields.String(load_default=""),
)


def _urls(name: str) -> "fields.List[str]":
    return fields.List(fields.String(), data_key=name, load_default=list)


_THIRD: Final = answer_schema(third=_urls("webviewdomain"))
_EFFECTIVE: Final = answer_schema(
    console=_urls("mp_webviewdomain"),
    third=_urls("third_webviewdomain"),
    direct=_urls("direct_webviewdomain"),
    effective=_urls("effective_webviewdomain"),
)


@dataclass(frozen=True, slots=True)
class ConfirmFile:
    """What WeChat wants to find at `https://{host}/{name}`, byte for byte; it is no secret."""

    name: str
    content: str


@dataclass(frozen=True, slots=True)
class MiniProgramHosts:
    """A mini program's business domains, by where they were set, and which of them count now."""

    console: frozenset[str]
    third: frozenset[str]
    direct: frozenset[str]
    effective: frozenset[str]


class _Domains:
    """Business domains; methods raise Refused, OutcomeUnknown and what the token source raises."""

    _path: ClassVar[str]

    def __init__(self, transport: Transport, tokens: TokenSource) -> None:
        self._transport = transport
        self._tokens = tokens

    def _post(self, name: str, body: Mapping[str, object]) -> dict[str, object]:
        path = f"{self._path}/{name}"
        return with_token(
            self._tokens,
            lambda token: self._transport.call(
                name, "POST", path, query={"access_token": token}, body=body
            ),
        )

    def _confirm_file(self, name: str) -> ConfirmFile:
        members = read(_FILE, self._post(name, {}))
        file = promised(name, members, what="confirm file of a plain name and text")
        return ConfirmFile(file["file_name"], file["file_content"])


class PlatformDomains(_Domains):
    """The business domains of a third-party platform; `tokens` gives the platform's own token."""

    _path = "/cgi-bin/component"

    def confirm_file(self) -> ConfirmFile:
        """The file that every domain of the platform has to serve."""
        return self._confirm_file("get_domain_confirmfile")

    def hosts(self) -> frozenset[str]:
        """The domains that merchants can use: the published ones, if the platform is published."""
        members = read(_JUMP, self._change("get", {}))
        lists = promised("modify_wxa_jump_domain", members, what="list of domains")
        published: str | None = lists["published_wxa_jump_h5_domain"]
        return _split(lists["testing_wxa_jump_h5_domain"] if published is None else published)

    def add(self, host: str) -> None:
        """Add a domain. Raises Refused with 86103 where its confirm file is not there.

        Raises UrlRefused for what cannot be a business domain, before anything is sent.
        """
        _refuse_other_than_host(host)
        # Left out, the platform's merchants would not get it before its next publication.
        given = {"wxa_jump_h5_domain": host, "is_modify_published_together": True}
        lists = read(_JUMP, self._change("add", given))
        if lists is not None and host in _split(lists["invalid_wxa_jump_h5_domain"]):
            said = "among invalid_wxa_jump_h5_domain"
            raise refusal("modify_wxa_jump_domain", _NOT_PROVED, said)

    def _change(self, action: _Action, given: Mapping[str, object]) -> dict[str, object]:
        return self._post("modify_wxa_jump_domain", {"action": action, **given})


class MiniProgramDomains(_Domains):
    """The business domains of one mini program; `tokens` gives its authorizer_access_token."""

    _path = "/wxa"

    def confirm_file(self) -> ConfirmFile:
        """The file that a domain has to serve before it can be added directly."""
        return self._confirm_file("get_webviewdomain_confirmfile")

    def hosts(self) -> MiniProgramHosts:
        """All of its domains."""
        name = "get_effective_webviewdomain"
        lists = promised(name, read(_EFFECTIVE, self._post(name, {})), what="lists")
        return MiniProgramHosts(**{name: _bare(urls) for name, urls in lists.items()})

    def third(self) -> frozenset[str]:
        """Those it has through the platform. Refused with 89231 for the account of a person."""
        members = read(_THIRD, self._change("setwebviewdomain", "get"))
        return _bare(promised("setwebviewdomain", members, what="list of domains")["third"])

    def add(self, host: str) -> None:
        """Give it a domain of the platform, or one below such a domain; counts at once.

        Raises UrlRefused for what cannot be a business domain, before anything is sent.
        """
        try:
            self._change("setwebviewdomain", "add", host)
        except Refused as refused:
            if refused.errcode != _UNCHANGED:
                raise

    def add_directly(self, host: str) -> None:
        """Give it a domain that the platform does not have; counts from its next release on.

        Raises as `add` does, and Refused with 86103 where its confirm file is not there.
        """
        self._change("setwebviewdomain_directly", "add", host)

    def _change(self, name: str, action: _Action, *hosts: str) -> dict[str, object]:
        for host in hosts:
            _refuse_other_than_host(host)
        # A host without its scheme is refused as if the platform did not have it.
        given = {"webviewdomain": [f"https://{host}" for host in hosts]} if hosts else {}
        return self._post(name, {"action": action, **given})


def _refuse_other_than_host(host: str) -> None:
    url = f"https://{host}"
    problem = public_url_problem(url)
    if problem is None and "/" in host:
        problem = "it is more than a host", "Leave out the path"
    if problem is not None:
        raise UrlRefused(url, problem[0], remedy=problem[1])


def _bare(urls: Iterable[str]) -> frozenset[str]:
    hosts = (url.strip().lower().removeprefix("https://").rstrip("/") for url in urls)
    return frozenset(filter(None, hosts))


def _split(urls: str) -> frozenset[str]:
    return _bare(urls.split(";"))
