"""prefetch.toml and its list, written from what WeChat has now."""

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from prefetch_kit.addresses import public_url_problem
from prefetch_kit.errors import ConfigError
from prefetch_kit.registrar.project import Pace, Project
from prefetch_kit.weixin import sources
from prefetch_kit.weixin.settings import KINDS, FetchSetting, FetchSettings, Kind

_WECHAT: Final = "https://api.weixin.qq.com"


class Settings(sources.Settings, Protocol):
    """What an app says about WeChat."""

    @property
    def ca_file(self) -> str | None: ...


def project_of(settings: Settings, path: Path) -> Project:
    """A project that gets at WeChat as an app does, and wants nothing yet."""
    return Project(
        path=path,
        apps=None,
        templates={},
        off=frozenset(),
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

    A pull that is on, from a URL that can be registered, is taken over; any other is left alone,
    and counted in a comment. Raises `ConfigError` where a file is there already, or cannot be
    written, or no pull is on.
    """
    listed = project.path.with_suffix(".csv")
    seen = _Seen()
    try:
        with listed.open("x", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["appid", *map(_column, KINDS)])
            for appid, settings in found:
                urls = [seen.url(appid, kind, settings.for_kind(kind)) for kind in KINDS]
                writer.writerow([appid, *urls])
        if not seen.templates:
            listed.unlink()
            problem = "was not written: no pull is on"
            raise ConfigError(str(project.path), problem, remedy="Switch one on with apply first")
        with project.path.open("x", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in _lines(project, listed, seen))
    except OSError as error:
        problem = f"cannot be written ({error.strerror})"
        raise ConfigError(str(project.path), problem, remedy="Choose another with --out") from error
    return listed


@dataclass(slots=True)
class _Seen:
    """What the URLs have in common; None: not all of them are alike."""

    templates: dict[Kind, str | None] = field(default_factory=dict)
    without: set[Kind] = field(default_factory=set)
    left: Counter[str] = field(default_factory=Counter)

    def url(self, appid: str, kind: Kind, setting: FetchSetting) -> str:
        """The cell of one app's list: its URL, or nothing."""
        why = _why_left(setting)
        if why is not None or setting.url is None:
            self.without.add(kind)
            self.left[why or "never configured"] += 1
            return ""
        escaped = setting.url.replace("{", "{{").replace("}", "}}")
        template = escaped.replace(appid, "{appid}")
        if self.templates.setdefault(kind, template) != template:
            self.templates[kind] = None
        return setting.url

    def template(self, kind: Kind) -> str:
        """One for all apps, or the list's column."""
        template = self.templates[kind]
        return f"{{{_column(kind)}}}" if template is None or kind in self.without else template


def _column(kind: Kind) -> str:
    return f"{kind}_url"


def _why_left(setting: FetchSetting) -> str | None:
    if setting.source is None:
        return "never configured"
    if not setting.open:
        return "switched off"
    if setting.source == "cloud_function":
        return "from a cloud function"
    return "from a URL that cannot be registered" if public_url_problem(setting.url or "") else None


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
    yield "[urls]"
    for kind in KINDS:
        if kind in seen.templates:
            yield f"{kind} = {_quoted(seen.template(kind))}"
    yield ""
    yield "[tokens]"
    yield from _tokens(project)


def _tokens(project: Project) -> Iterator[str]:
    """Where the secrets are; never what they are."""
    if project.token_command is not None:
        yield f"command = {json.dumps(list(project.token_command))}"
    if project.component_appid is not None:
        yield f"component_appid = {_quoted(project.component_appid)}"
        yield 'component_secret = { env = "PREFETCH_COMPONENT_SECRET" }'
    if project.app_secrets or (project.token_command, project.component_appid) == (None, None):
        yield 'app_secrets = { env = "PREFETCH_APP_SECRETS" } # JSON of appid and AppSecret'
    if project.token_call != "stable_token":  # noqa: S105 - the name of a call
        yield f"call = {_quoted(project.token_call)}"
    if project.token_store_url is not None:
        yield 'store_url = { env = "PREFETCH_TOKEN_STORE_URL" }'
        yield f"namespace = {_quoted(project.cache_namespace)}"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
