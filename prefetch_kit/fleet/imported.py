"""prefetch.toml and its list, written from what WeChat has now."""

import csv
import json
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Final, TextIO

from prefetch_kit.errors import ConfigError, SourceRefused
from prefetch_kit.fetch_setting import KINDS, FetchSetting, FetchSettings, Kind
from prefetch_kit.fleet.project import Project
from prefetch_kit.quoting import harmless

_WECHAT: Final = "https://api.weixin.qq.com"


def check_free(path: Path) -> None:
    """Raises `ConfigError` where a project cannot be written there, before it is asked for."""
    if path.suffix == ".csv":
        problem = "is the name of a list, which comes beside the project"
        raise ConfigError(str(path), problem, remedy="Name the project with --out prefetch.toml")
    for each in (path, path.with_suffix(".csv")):
        if not each.exists():
            continue
        remedy = "Choose another with --out"
        if each != path:  # the list is written first
            remedy += ", or remove it if an import that was cut short left it"
        raise ConfigError(str(each), "is there already", remedy=remedy)
    if not path.absolute().parent.is_dir():
        raise ConfigError(harmless(path), "is in no directory", remedy="Choose another with --out")


def write_project(project: Project, found: Iterable[tuple[str, FetchSettings]]) -> Path:
    """Write the project's file, and beside it the list it names, which is returned.

    A pull that comes from a URL or a cloud function that can be registered, or is switched off,
    is taken over; any other is left alone, and counted in a comment. Raises `ConfigError` where a
    file is there already, or cannot be written, or nothing can be taken over; then neither stays.
    """
    listed = project.path.with_suffix(".csv")
    seen = _Seen()
    with ExitStack() as made:
        try:
            with _new_file(listed, made) as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(["appid", *KINDS])
                for appid, settings in found:
                    cells = [seen.cell(appid, kind, settings.for_kind(kind)) for kind in KINDS]
                    writer.writerow([appid, *cells])
            if not seen.templates():
                problem = "was not written: no pull is set that could be taken over"
                raise ConfigError(
                    harmless(project.path), problem, remedy="Set one with apply first"
                )
            with _new_file(project.path, made) as file:
                file.write(_toml(project, listed, seen))
            made.pop_all()
        except OSError as error:
            problem = f"cannot be written ({error.strerror})"
            remedy = "Choose another with --out"
            raise ConfigError(harmless(project.path), problem, remedy=remedy) from error
        except UnicodeEncodeError:
            problem = "cannot be written: the name of a file or of a command is not UTF-8"
            raise ConfigError(harmless(project.path), problem, remedy="Rename it") from None
    return listed


def _new_file(path: Path, made: ExitStack) -> TextIO:
    """A file that was not there before, and is removed again with the stack."""
    file = path.open("x", encoding="utf-8", newline="")
    made.callback(path.unlink, missing_ok=True)
    return file


class _Seen:
    """What the apps have alike."""

    def __init__(self) -> None:
        # Two templates are enough to know that apps differ; "" is a pull that is left alone.
        self._templates: dict[Kind, set[str]] = {kind: set() for kind in KINDS}
        self.left: Counter[str] = Counter()

    def cell(self, appid: str, kind: Kind, setting: FetchSetting) -> str:
        """What the list says of one app's pull: a text that can be set again, or nothing."""
        text = ""
        if setting.source is None:
            self.left["never configured"] += 1
        elif not setting.open:
            text = FetchSetting.off().to_text()
        else:
            try:
                text = setting.of_its_source().checked().to_text()
            except SourceRefused:
                what = "a URL" if setting.source == "server" else "a cloud function"
                self.left[f"from {what} that cannot be registered"] += 1
        if len(self._templates[kind]) < 2:
            self._templates[kind].add(text.replace(appid, "{appid}"))
        return text

    def templates(self) -> dict[Kind, str]:
        """For each kind of pull that is set, one template for all apps or the list's column."""
        return {
            kind: min(found) if len(found) == 1 else f"{{{kind}}}"
            for kind, found in self._templates.items()
            if any(found)
        }


def _toml(project: Project, listed: Path, seen: _Seen) -> str:
    """The text of prefetch.toml."""
    comments = ["# What WeChat had. Pulls that are not taken over are left alone."]
    comments += [f"# {count} {why}" for why, count in seen.left.items()]
    top = {"state_dir": _quoted(str(project.state_dir.absolute()))}
    if project.api_base_url != _WECHAT:
        top["api_base_url"] = _quoted(project.api_base_url)
    if project.ca_file is not None:
        top["ca_file"] = _quoted(str(Path(project.ca_file).absolute()))
    if project.proxy is not None:
        top["proxy"] = _variable("PREFETCH_PROXY")
    tables = {"apps": {"list": _quoted(listed.name)}, "urls": {}}
    for kind, template in seen.templates().items():
        if not template.startswith("cloud:"):
            tables["urls"][kind] = _quoted(template)
            continue
        env, _, name = template.removeprefix("cloud:").partition("/")
        tables[f"cloud.{kind}"] = {"env": _quoted(env), "function_name": _quoted(name)}
    tables["tokens"] = _tokens(project)
    if project.token_command is not None and "command" not in tables["tokens"]:
        comments.append("# The token command is not: without {appid} it is for one mini program.")
    blocks = [[*comments, *_pairs(top)]]
    blocks += [[f"[{name}]", *_pairs(table)] for name, table in tables.items() if table]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _tokens(project: Project) -> dict[str, str]:
    """Where the secrets are; never what they are."""
    table: dict[str, str] = {}
    if "{appid}" in " ".join(project.token_command or ()):
        table["command"] = _quoted(project.token_command)
    if project.component_appid is not None:
        table["component_appid"] = _quoted(project.component_appid)
        table["component_secret"] = _variable("PREFETCH_COMPONENT_SECRET")
    if project.app_secrets or not table:
        what = "JSON of appid and AppSecret"
        table["app_secrets"] = f"{_variable('PREFETCH_APP_SECRETS')} # {what}"
    if project.token_call != "stable_token":  # noqa: S105 (the name of a call)
        table["call"] = _quoted(project.token_call)
    if project.token_store_url is not None:
        table["store_url"] = _variable("PREFETCH_TOKEN_STORE_URL")
        table["namespace"] = _quoted(project.cache_namespace)
    return table


def _pairs(table: dict[str, str]) -> list[str]:
    return [f"{key} = {value}" for key, value in table.items()]


def _variable(name: str) -> str:
    return f'{{ env = "{name}" }}'


def _quoted(value: object) -> str:
    # Of what TOML forbids, this is the one character that JSON allows.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
