"""prefetch.toml: which mini programs there are, where each is pulled from, and how to get at them.

It holds no secret: each is named, by an environment variable or a file.
"""

import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prefetch_kit.addresses import proxy_url_problem, redis_url_problem, wechat_name
from prefetch_kit.errors import ConfigError
from prefetch_kit.fetch_setting import KINDS, Kind
from prefetch_kit.fleet.project_schema import checked
from prefetch_kit.quoting import harmless
from prefetch_kit.registrar.execute import WAIT_S
from prefetch_kit.registrar.template import PullTemplate, PullTemplates
from prefetch_kit.secret import Secret

_POSITION: Final = re.compile(r"\(at [^()]*\)\Z")
_SECRETS: Final = ("component_secret", "app_secrets", "store_url")


@dataclass(frozen=True, slots=True)
class Pace:
    """How a fleet goes about it.

    Rates are calls a second; None is as fast as the workers are. For `wait_s` seconds WeChat may
    show less than what was set, and is asked again.
    """

    workers: int = 32
    rate: float | None = None
    per_app_rate: float | None = None
    canary: int = 5
    stop_at: float = 0.1
    max_changes: int | None = None
    wait_s: float = WAIT_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """What prefetch.toml says. `apps` is the list's file, None for the platform's merchants."""

    path: Path
    apps: Path | None
    pulls: PullTemplates
    pace: Pace
    state_dir: Path
    api_base_url: str
    ca_file: str | None
    proxy: Secret | None
    component_appid: str | None
    component_secret: Secret | None
    app_secrets: Mapping[str, Secret]
    token_command: tuple[str, ...] | None
    token_call: str
    token_store_url: Secret | None
    cache_namespace: str
    access_token: Secret | None = None  # it would be one app's, and here are many

    @property
    def wechat_dir(self) -> Path:
        """Where the journal and the locks of this WeChat are."""
        return self.state_dir / wechat_name(self.api_base_url)


def load_project(path: str | Path, *, environment: Mapping[str, str] = os.environ) -> Project:
    """Read prefetch.toml, and the secrets it names. Raises `ConfigError`."""
    path = Path(path)
    read = checked(path, _parse(path))
    apps, tokens = read["apps"], read["tokens"]
    secrets = {
        name: _secret(path, f"[tokens] {name}", tokens[name], environment) for name in _SECRETS
    }
    proxy = _secret(path, "proxy", read["proxy"], environment)
    if proxy is not None and (problem := proxy_url_problem(proxy.reveal())):
        raise ConfigError(f"{path}: proxy", problem[0], remedy=problem[1])
    store_url = secrets["store_url"]
    if store_url is not None and (problem := redis_url_problem(store_url.reveal())):
        raise ConfigError(f"{path}: [tokens] store_url", problem[0], remedy=problem[1])
    here = path.absolute().parent
    state_dir = here / (read["state_dir"] or ".prefetch_kit")
    if read["state_dir"] is None and (the_apps := environment.get("PREFETCH_STATE_DIR")):
        state_dir = Path(the_apps).absolute()  # as the app itself reads it
    return Project(
        path=path,
        apps=None if apps.get("authorized") else here / apps["list"],
        pulls=_pulls(path, read),
        pace=Pace(**read["fleet"]),
        state_dir=state_dir,
        api_base_url=read["api_base_url"],
        ca_file=None if read["ca_file"] is None else str(here / read["ca_file"]),
        proxy=proxy,
        component_appid=tokens["component_appid"],
        component_secret=secrets["component_secret"],
        app_secrets=_app_secrets(path, secrets["app_secrets"]),
        token_command=tuple(tokens["command"] or ()) or None,
        token_call=tokens["call"],
        token_store_url=store_url,
        cache_namespace=tokens["namespace"],
    )


def _pulls(path: Path, read: Mapping[str, Any]) -> dict[Kind, PullTemplate]:
    pulls: dict[Kind, PullTemplate] = {}
    for kind in KINDS:
        templates = [read[table][kind] for table in ("urls", "cloud") if kind in read[table]]
        if len(templates) > 1 and not any(each.columns for each in templates):
            raise ConfigError(
                f"{path}: [cloud.{kind}]",
                f"and [urls] {kind} name two sources at once",
                remedy="Keep one of them, or fill both from columns of which one is empty",
            )
        if templates:
            pulls[kind] = PullTemplate(tuple(templates), is_off=kind in read["urls"]["off"])
    if nowhere := set(read["urls"]["off"]) - pulls.keys():
        raise ConfigError(
            f"{path}: [urls] off",
            f"names {min(nowhere)}, of which nothing else is said",
            remedy=f'Say where it comes from, or write {min(nowhere)} = "off" for any source',
        )
    return pulls


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        problem, remedy = f"cannot be read ({error.strerror})", "Name the file with --config"
    except UnicodeDecodeError:
        problem, remedy = "is not UTF-8 text", "Save it as UTF-8"
    except tomllib.TOMLDecodeError as error:
        # What comes before the position may quote the file.
        where = _POSITION.search(str(error))
        problem, remedy = f"is not TOML {where[0] if where else ''}".rstrip(), "Correct that line"
    raise ConfigError(harmless(path), problem, remedy=remedy)


def _secret(
    path: Path, name: str, reference: Mapping[str, str] | None, environment: Mapping[str, str]
) -> Secret | None:
    """The secret that the file names, from where it is named."""
    if reference is None:
        return None
    key = f"{path}: {name}"
    if (variable := reference.get("env")) is not None:
        if not environment.get(variable, "").strip():
            problem = "names a variable that is not set in the environment"
            raise ConfigError(key, problem, remedy="Export it")
        return Secret(environment[variable].strip())
    try:
        return Secret((path.parent / reference["file"]).read_text(encoding="utf-8-sig").strip())
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except ValueError:  # not UTF-8, or nothing
        problem = "holds no text"
    raise ConfigError(
        key, f"names {harmless(reference['file'])}, which {problem}", remedy="Fix the path"
    )


def _app_secrets(path: Path, packed: Secret | None) -> dict[str, Secret]:
    if packed is None:
        return {}
    try:
        return {
            appid: Secret(secret) for appid, secret in dict(json.loads(packed.reveal())).items()
        }
    except (ValueError, AttributeError, TypeError, RecursionError):
        pass
    raise ConfigError(
        f"{path}: [tokens] app_secrets",
        "does not lead to JSON of appid and AppSecret",
        remedy='Write {"wx…": "its AppSecret"} there',
    )
