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
    SystemBusy,
)
from prefetch_kit.registrar.probe import DEADLINE_S, Verdict, failed, locate, passed
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
_PERMITTED: Final = passed("permission", "the merchant granted permission set 18")
_COMPANY: Final = passed("account", "the account may have business domains")


@dataclass(frozen=True, slots=True)
class DomainStatus:
    """Whether a host is a business domain, rule by rule; `verdicts` are in the order to mend."""

    appid: str
    host: str
    verdicts: tuple[Verdict, ...]

    @property
    def broken(self) -> tuple[Verdict, ...]:
        return tuple(verdict for verdict in self.verdicts if not verdict.kept)

    def check(self) -> None:
        """Raises DomainMissing where WeChat would not pull from the host."""
        if self.broken:
            told = [f"{verdict.says}. {verdict.remedy}" for verdict in self.broken]
            raise DomainMissing(self.appid, self.host, told)


@dataclass(frozen=True, slots=True)
class HostDomains:
    """One host and one mini program, which a third-party platform serves.

    `turn` is entered where the platform's list is changed, which is one for all its mini programs.
    Methods raise `RegistrarError`, `WeixinError` and `TokenSourceError`. Whatever is reported as
    added was read back.
    """

    appid: str
    host: str
    transport: Transport
    platform: PlatformDomains
    mini_program: MiniProgramDomains
    turn: Callable[[], AbstractContextManager[None]] = nullcontext

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

    def inspect(self) -> DomainStatus:
        """Permission, account, and both lists. Changes nothing."""
        try:
            # Also because no other of these calls is known to refuse a person's account.
            self.mini_program.third()
        except Refused as refused:
            if refused.errcode not in (_NOT_GRANTED, _PERSON):
                raise
            said = f"{refused.meaning} ({refused.errcode})"
            if refused.errcode == _NOT_GRANTED:
                return self._standing(failed("permission", said, refused.remedy))
            return self._standing(_PERMITTED, failed("account", said, refused.remedy))
        hosts = self.mini_program.hosts()
        platform = [] if self.host in hosts.direct else [self._judge_platform()]
        mini_program = self._judge_mini_program(hosts)
        return self._standing(_PERMITTED, _COMPANY, *platform, mini_program)

    def ensure(self, *, directly: bool, checks_file: bool = True) -> DomainStatus:
        """Add the host wherever it is missing, and say which rules are kept then.

        Through the platform, which counts at once; or `directly`, which counts from the mini
        program's next release on. Raises `ConfirmFileMissing` before anything is sent, if the
        host does not serve WeChat's file; with `checks_file` False, WeChat finds that out.
        """
        before = self.inspect()
        missing = {verdict.rule for verdict in before.verdicts if not verdict.kept}
        kept = {verdict.rule for verdict in before.verdicts if verdict.kept}
        if missing & {"permission", "account"}:
            before.check()
        if missing and directly:
            self._ensure_direct(checks_file=checks_file)
        elif missing:
            # Of a host that was set directly nobody has asked yet whether the platform has it.
            if "platform" not in kept:
                self._ensure_platform(checks_file=checks_file)
            if "mini program" in missing:
                self._add(self.mini_program.add, lambda: self.mini_program.hosts().effective)
        return self.inspect()

    def _ensure_platform(self, *, checks_file: bool) -> None:
        with self.turn():
            if self._judge_platform().kept:  # since it was looked at
                return
            if checks_file:
                self._check_file(self.platform.confirm_file())
            self._add(self.platform.add, self.platform.hosts)

    def _ensure_direct(self, *, checks_file: bool) -> None:
        if self.host in self.mini_program.hosts().direct:
            return
        if checks_file:
            self._check_file(self.mini_program.confirm_file())
        self._add(self.mini_program.add_directly, lambda: self.mini_program.hosts().direct)

    def _add(self, add: Callable[[str], None], read: Callable[[], frozenset[str]]) -> None:
        unknown: OutcomeUnknown | SystemBusy | None = None
        try:
            add(self.host)
        except (OutcomeUnknown, SystemBusy) as error:
            unknown = error
        if self.host not in read():
            raise unknown or NotConfirmed(self.appid, [f"{self.host} is not where it was added"])

    def _check_file(self, file: ConfirmFile) -> None:
        """What WeChat is about to do, done first: its own refusal tells less."""
        url = f"https://{self.host}/{file.name}"
        address, origin = locate(self.transport, url)
        content = file.content.encode()
        try:
            reply = self.transport.fetch(
                address, origin=origin, deadline_s=DEADLINE_S, max_bytes=len(content) + len(_BOM)
            )
        except NotFetched as error:
            problem: str | None = error.cause
        else:
            problem = _file_problem(reply.status, reply.body, content)
        if problem is not None:
            raise ConfirmFileMissing(url, problem, name=file.name, content=file.content)

    def _judge_platform(self) -> Verdict:
        hosts = self.platform.hosts()
        if any(self.host == each or self.host.endswith(f".{each}") for each in hosts):
            return passed("platform", f"{self.host} is a business domain of the platform")
        says = f"{self.host} is not a business domain (业务域名) of the third-party platform"
        return failed("platform", says, _ENSURE)

    def _judge_mini_program(self, hosts: MiniProgramHosts) -> Verdict:
        if self.host in hosts.effective:
            return passed("mini program", f"{self.host} is a business domain of the mini program")
        if self.host in hosts.direct:
            says = f"{self.host} is set for the mini program, but not released yet"
            return failed("mini program", says, _RELEASE)
        says = f"{self.host} is not a business domain (业务域名) of the mini program"
        return failed("mini program", says, _ENSURE)

    def _standing(self, *verdicts: Verdict) -> DomainStatus:
        return DomainStatus(self.appid, self.host, verdicts)


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
