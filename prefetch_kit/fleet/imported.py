"""prefetch.toml and its list, written from what WeChat has now."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from prefetch_kit.errors import ConfigError, SourceRefused
from prefetch_kit.fetch_setting import KINDS, FetchSetting, FetchSettings, Kind
from prefetch_kit.fleet.project import Pace, Project
from prefetch_kit.weixin.token_stores import settings as weixin_settings

_WECHAT: Final = "https://api.weixin.qq.com"


class Settings(weixin_settings.Settings, Protocol):
    """What an app says about WeChat."""

    @property
    def ca_file(self) -> str | None: ...


def project_of(settings: Settings, path: Path) -> Project:
    """A project that gets at WeChat as an app does, and wants nothing yet."""
    return Project(
        path=path,
        apps=None,
        pulls={},
        pace=Pace(),
        state_dir=settings.state_dir,
        api_base_url=settings.api_base_url,
        ca_file=settings.ca_file,
        component_appid=settings.component_appid,
        component_secret=settings.component_secret,
        app_secrets=settings.app_secrets,
        token_command=settings.token_command,
        token_call=settings.token_call,
        token_store_url=settings.token_store_url,
        cache_namespace=settings.cache_namespace,
        access_token=settings.access_token,
    )


def check_free(path: Path) -> None:
    """Raises `ConfigError` where a project cannot be written there, before it is asked for."""
    for each in (path, path.with_suffix(".csv")):
        if each.exists():
            raise ConfigError(str(each), "is there already", remedy="Choose another with --out")
    if not path.absolute().parent.is_dir():
        raise ConfigError(str(path), "is in no directory", remedy="Choose another with --out")


def write_project(project: Project, found: Iterable[tuple[str, FetchSettings]]) -> Path:
    """Write the project's file, and beside it the list it names, which is returned.

    A pull that comes from a URL or a cloud function that can be registered, or is switched off,
    is taken over; any other is left alone, and counted in a comment. Raises `ConfigError` where a
    file is there already, or cannot be written, or nothing can be taken over.
    """
    listed = project.path.with_suffix(".csv")
    seen = _Seen()
    try:
        with listed.open("x", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["appid", *KINDS])
            for appid, settings in found:
                cells = [seen.cell(appid, kind, settings.for_kind(kind)) for kind in KINDS]
                writer.writerow([appid, *cells])
        if not seen.templates:
            listed.unlink()
            problem = "was not written: no pull is set that could be taken over"
            raise ConfigError(str(project.path), problem, remedy="Set one with apply first")
        with project.path.open("x", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in _lines(project, listed, seen))
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise ConfigError(str(project.path), problem, remedy="Choose another with --out") from error
    return listed


@dataclass(slots=True)
class _Seen:
    """What all apps have alike, for each kind of pull; None where they differ."""

    templates: dict[Kind, str | None] = field(default_factory=dict)
    without: set[Kind] = field(default_factory=set)
    left: Counter[str] = field(default_factory=Counter)

    def cell(self, appid: str, kind: Kind, setting: FetchSetting) -> str:
        """What the list says of one app's pull, or nothing."""
        text, why_left = _taken_over(setting)
        if why_left is not None:
            self.without.add(kind)
            self.left[why_left] += 1
            return ""
        escaped = text.replace("{", "{{").replace("}", "}}")
        template = escaped.replace(appid, "{appid}")
        if self.templates.setdefault(kind, template) != template:
            self.templates[kind] = None
        return text

    def template(self, kind: Kind) -> str:
        """One for all apps, or the list's column."""
        template = self.templates[kind]
        return f"{{{kind}}}" if template is None or kind in self.without else template


def _taken_over(setting: FetchSetting) -> tuple[str, str | None]:
    """A setting as a text that can be set again, or why it is left alone."""
    if setting.source is None:
        return "", "never configured"
    if not setting.open:
        return FetchSetting.off().to_text(), None
    try:
        return setting.of_its_source().checked().to_text(), None
    except SourceRefused:
        what = "a URL" if setting.source == "server" else "a cloud function"
        return "", f"from {what} that cannot be registered"


def _lines(project: Project, listed: Path, seen: _Seen) -> Iterator[str]:
    yield "# What WeChat had. Pulls that are not taken over are left alone."
    for why, count in seen.left.items():
        yield f"# {count} {why}"
    yield f"state_dir = {_quoted(str(project.state_dir.absolute()))}"
    if project.api_base_url != _WECHAT:
        yield f"api_base_url = {_quoted(project.api_base_url)}"
    if project.ca_file is not None:
        yield f"ca_file = {_quoted(str(Path(project.ca_file).absolute()))}"
    yield ""
    yield "[apps]"
    yield f"list = {_quoted(listed.name)}"
    yield ""
    yield from _pulls(seen)
    yield "[tokens]"
    yield from _tokens(project)


def _pulls(seen: _Seen) -> Iterator[str]:
    templates = {kind: seen.template(kind) for kind in KINDS if kind in seen.templates}
    functions = {kind: text for kind, text in templates.items() if text.startswith("cloud:")}
    if templates.keys() - functions.keys():
        yield "[urls]"
        for kind, text in templates.items():
            if kind not in functions:
                yield f"{kind} = {_quoted(text)}"
        yield ""
    for kind, text in functions.items():
        env, _, function_name = text.removeprefix("cloud:").partition("/")
        yield f"[cloud.{kind}]"
        yield f"env = {_quoted(env)}"
        yield f"function_name = {_quoted(function_name)}"
        yield ""


def _tokens(project: Project) -> Iterator[str]:
    """Where the secrets are; never what they are."""
    if project.token_command is not None:
        yield f"command = {json.dumps(list(project.token_command))}"
    if project.component_appid is not None:
        yield f"component_appid = {_quoted(project.component_appid)}"
        yield 'component_secret = { env = "PREFETCH_COMPONENT_SECRET" }'
    if project.app_secrets or (project.token_command, project.component_appid) == (None, None):
        yield 'app_secrets = { env = "PREFETCH_APP_SECRETS" } # JSON of appid and AppSecret'
    if project.token_call != "stable_token":  # noqa: S105 (the name of a call)
        yield f"call = {_quoted(project.token_call)}"
    if project.token_store_url is not None:
        yield 'store_url = { env = "PREFETCH_TOKEN_STORE_URL" }'
        yield f"namespace = {_quoted(project.cache_namespace)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
