"""Whether WeChat would pull from a host, and what it takes that it does.

A host has to be a business domain (业务域名) of the third-party platform and then of the mini
program, or of the mini program alone if it was set there directly and released.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Final, Self

from prefetch_kit.errors import (
    ConfirmFileMissing,
    DomainMissing,
    NotConfirmed,
    NotFetched,
    OutcomeUnknown,
    Refused,
)
from prefetch_kit.registrar.probe import DEADLINE_S, Verdict, locate
from prefetch_kit.weixin.domains import (
    ConfirmFile,
    MiniProgramDomains,
    MiniProgramHosts,
    PlatformDomains,
)
from prefetch_kit.weixin.third_party import ThirdParty
from prefetch_kit.weixin.transport import Transport

_NOT_GRANTED: Final = 61007
_PERSON: Final = 89231
_ENSURE: Final = "Run `domains ensure`, or apply with --ensure-domain"
_RELEASE: Final = "Release a version of the mini program, then run this again"
_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a host is a business domain, rule by rule; `verdicts` are in the order to mend."""

    appid: str
    host: str
    verdicts: tuple[Verdict, ...]

    @property
    def broken(self) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.verdicts if not verdict.kept)

    def keeps(self, rule: str) -> bool:
        """Whether a rule was looked at, and is kept."""
        return any(verdict.kept for verdict in self.verdicts if verdict.rule == rule)

    def check(self) -> None:
        """Raises DomainMissing where WeChat would not pull from the host."""
        if self.broken:
            told = [f"{verdict.says}. {verdict.remedy}" for verdict in self.broken]
            raise DomainMissing(self.appid, self.host, told)


class HostDomains:
    """One host and one mini program, which a third-party platform serves.

    `turn` is entered where the platform's list is changed, which is one for all its mini programs.
    Methods raise `RegistrarError`, `WeixinError` and `TokenSourceError`. Whatever is reported as
    added was read back.
    """

    def __init__(
        self,
        appid: str,
        host: str,
        *,
        transport: Transport,
        platform: PlatformDomains,
        mini_program: MiniProgramDomains,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._appid = appid
        self._host = host
        self._transport = transport
        self._platform = platform
        self._mini_program = mini_program
        self._turn = turn

    @classmethod
    def of_merchant(
        cls,
        appid: str,
        host: str,
        *,
        platform: ThirdParty,
        transport: Transport,
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> Self:
        """Those of one who authorized a platform."""
        return cls(
            appid,
            host,
            transport=transport,
            platform=PlatformDomains(transport, platform.token),
            mini_program=MiniProgramDomains(transport, platform.authorizers.token(appid)),
            turn=turn,
        )

    def inspect(self) -> Standing:
        """Permission, account, and both lists. Changes nothing."""
        try:
            # Also because no other of these calls is known to refuse a person's account.
            self._mini_program.third()
        except Refused as refused:
            if refused.errcode not in (_NOT_GRANTED, _PERSON):
                raise
            return self._standing(_judge_refusal(refused))
        hosts = self._mini_program.hosts()
        verdicts = [_PERMITTED, _COMPANY, self._judge_mini_program(hosts)]
        if self._host not in hosts.direct:
            verdicts.insert(2, self._judge_platform())
        return self._standing(verdicts)

    def ensure(self, *, directly: bool, checks_file: bool = True) -> Standing:
        """Add the host wherever it is missing, and say which rules are kept then.

        Through the platform, which counts at once; or `directly`, which counts from the mini
        program's next release on. Raises `ConfirmFileMissing` before anything is sent, if the
        host does not serve WeChat's file; with `checks_file` False, WeChat finds that out.
        """
        before = self.inspect()
        missing = {verdict.rule for verdict in before.broken}
        if missing & {"permission", "account"}:
            before.check()
        if directly and missing:
            self._ensure_direct(checks_file=checks_file)
        # Of a host that was set directly nobody has asked yet whether the platform has it.
        if not directly and missing and not before.keeps("platform"):
            self._ensure_platform(checks_file=checks_file)
        if not directly and "mini program" in missing:
            self._add(self._mini_program.add, lambda: self._mini_program.hosts().effective)
        return self.inspect()

    def _ensure_platform(self, *, checks_file: bool) -> None:
        with self._turn():
            if self._judge_platform().kept:  # since it was looked at
                return
            if checks_file:
                self._check_file(self._platform.confirm_file())
            self._add(self._platform.add, self._platform.hosts)

    def _ensure_direct(self, *, checks_file: bool) -> None:
        if self._host in self._mini_program.hosts().direct:
            return
        if checks_file:
            self._check_file(self._mini_program.confirm_file())
        self._add(self._mini_program.add_directly, lambda: self._mini_program.hosts().direct)

    def _add(self, add: Callable[[str], None], read: Callable[[], frozenset[str]]) -> None:
        unknown: OutcomeUnknown | None = None
        try:
            add(self._host)
        except OutcomeUnknown as error:
            unknown = error
        if self._host not in read():
            raise unknown or NotConfirmed(self._appid, [f"{self._host} is not where it was added"])

    def _check_file(self, file: ConfirmFile) -> None:
        """What WeChat is about to do, done first: its own refusal tells less."""
        url = f"https://{self._host}/{file.name}"
        address, origin = locate(self._transport, url)
        content = file.content.encode()
        try:
            reply = self._transport.fetch(
                address, origin=origin, deadline_s=DEADLINE_S, max_bytes=len(content) + len(_BOM)
            )
        except NotFetched as error:
            problem: str | None = error.cause
        else:
            problem = _file_problem(reply.status, reply.body, content)
        if problem is not None:
            raise ConfirmFileMissing(url, problem, name=file.name, content=file.content)

    def _judge_platform(self) -> Verdict:
        hosts = self._platform.hosts()
        if any(self._host == each or self._host.endswith(f".{each}") for each in hosts):
            says = f"{self._host} is a business domain of the platform"
            return Verdict("platform", kept=True, says=says)
        says = f"{self._host} is not a business domain (业务域名) of the third-party platform"
        return Verdict("platform", kept=False, says=says, remedy=_ENSURE)

    def _judge_mini_program(self, hosts: MiniProgramHosts) -> Verdict:
        if self._host in hosts.effective:
            says = f"{self._host} is a business domain of the mini program"
            return Verdict("mini program", kept=True, says=says)
        if self._host in hosts.direct:
            says = f"{self._host} is set for the mini program, but not released yet"
            return Verdict("mini program", kept=False, says=says, remedy=_RELEASE)
        says = f"{self._host} is not a business domain (业务域名) of the mini program"
        return Verdict("mini program", kept=False, says=says, remedy=_ENSURE)

    def _standing(self, verdicts: list[Verdict]) -> Standing:
        return Standing(self._appid, self._host, tuple(verdicts))


_PERMITTED: Final = Verdict("permission", kept=True, says="the merchant granted permission set 18")
_COMPANY: Final = Verdict("account", kept=True, says="the account may have business domains")


def _judge_refusal(refused: Refused) -> list[Verdict]:
    rule = "permission" if refused.errcode == _NOT_GRANTED else "account"
    says = f"{refused.meaning} ({refused.errcode})"
    broken = Verdict(rule, kept=False, says=says, remedy=refused.remedy)
    return [broken] if rule == "permission" else [_PERMITTED, broken]


def _file_problem(status: int, body: bytes, content: bytes) -> str | None:
    if 300 <= status < 400:
        return f"it redirects ({status}), and WeChat wants the file itself"
    if status != 200:
        return f"it answers {status}"
    if body == content:
        return None
    if body.startswith(_BOM):
        return "it begins with a byte order mark"
    if body.strip() == content.strip():
        return "there are spaces or line breaks around its text"
    return "it holds something else"
