"""`urls` and `fleet urls`: for those who have no third-party platform, and set URLs by hand.

developers.weixin.qq.com/miniprogram/dev/framework/ability/: pre-fetch.html, background-fetch.html
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from prefetch_kit.cli.app import LoadedApp
from prefetch_kit.cli.commands import commands, with_app
from prefetch_kit.cli.errors import FAILED, CommandFailed, NothingDone
from prefetch_kit.cli.fleet import fleet
from prefetch_kit.cli.options import FILE, as_json_option, with_selection
from prefetch_kit.cli.output import print_json, print_probe
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.fleet.app_list import fill_targets, source_of_apps
from prefetch_kit.fleet.project import load_project
from prefetch_kit.fleet.selection import Selection
from prefetch_kit.fleet.targets import Targets, read_wanted
from prefetch_kit.registrar.plan import OffIfFrom, Wanted
from prefetch_kit.registrar.probe import Probed, probe_setting
from prefetch_kit.weixin.transport import Transport, transport_of

_Settings = Mapping[Kind, FetchSetting]
_Probe = Callable[[Kind, FetchSetting], Probed]

_TITLES: Final[Mapping[Kind, str]] = {
    "pre_fetch": "数据预拉取",
    "period_fetch": "数据周期性更新",
}
_ENGLISH: Final[Mapping[Kind, str]] = {"pre_fetch": "pre-fetch", "period_fetch": "periodic fetch"}

_skip_probe_option = click.option("--skip-probe", is_flag=True, help="Do not pull from the URLs.")


@commands.command()
@with_app
@as_json_option
@_skip_probe_option
def urls(loaded: LoadedApp, *, as_json: bool, skip_probe: bool) -> None:
    """Print the URLs to paste into WeChat's console, and the steps there (控制台).

    For a mini program that no third-party platform serves. It asks WeChat for nothing and changes
    nothing there; it pulls from the URLs once, as WeChat will.
    """
    settings = _to_set(loaded.wanted())
    if not settings:
        raise CommandFailed(
            "The app has no handler, so there is no URL to set. Register one with pre_fetch or "
            "period_fetch."
        )
    _print_settings(loaded.appid, settings, as_json=as_json)
    chinese = {kind: _entry_in_chinese(setting) for kind, setting in settings.items()}
    english = {kind: _entry(setting) for kind, setting in settings.items()}
    hosts = _hosts(settings)
    _print_steps(
        list(_steps_in_chinese(f"小程序 {loaded.appid}", hosts, chinese)),
        list(_steps(f"the mini program {loaded.appid}", hosts, english)),
        as_json=as_json,
    )
    if not (skip_probe or _probe(settings, loaded.probe, as_json=as_json)):
        sys.exit(FAILED)


@fleet.command("urls")
@click.option("--config", type=FILE, default="prefetch.toml", show_default=True)
@as_json_option
@with_selection
@_skip_probe_option
def fleet_urls(*, config: Path, as_json: bool, selection: Selection, skip_probe: bool) -> None:
    """Print the URLs of each mini program of a list, and the steps in its console (控制台).

    It asks WeChat for nothing and changes nothing there; it pulls from each URL once.
    """
    project = load_project(config)
    if project.apps is None:
        raise NothingDone(
            "[apps] authorized = true has a third-party platform, which needs no console: run "
            "`prefetch-kit fleet apply`, or name a list."
        )
    hosts: set[str] = set()
    all_are_good = True
    with transport_of(project) as transport, Targets() as targets:
        fill_targets(project, None, targets)
        selection.reduce(targets, source_of_apps(project))
        for appid, text in targets:
            settings = _to_set(read_wanted(text))
            hosts.update(_hosts(settings))
            _print_settings(appid, settings, as_json=as_json)
            probe = partial(_probe_for, transport, appid)
            all_are_good &= skip_probe or _probe(settings, probe, as_json=as_json)
    chinese = dict.fromkeys(project.pulls, "按上面列出的填写。")
    english = dict.fromkeys(project.pulls, "as listed above.")
    _print_steps(
        list(_steps_in_chinese("每个小程序", sorted(hosts), chinese)),
        list(_steps("each mini program", sorted(hosts), english)),
        as_json=as_json,
    )
    if not all_are_good:
        sys.exit(FAILED)


def _to_set(wanted: Wanted) -> _Settings:
    """What is to be set, without what is only switched off where it leads to this app."""
    return {kind: each for kind, each in wanted.items() if not isinstance(each, OffIfFrom)}


def _print_settings(appid: str, settings: _Settings, *, as_json: bool) -> None:
    if not as_json:
        click.echo(appid)
    for kind, setting in settings.items():
        if as_json:
            print_json({"type": "url", "appid": appid, "kind": kind, **asdict(setting)})
        else:
            click.echo(f"  {kind:12}  {setting.to_text()}")


def _print_steps(chinese: list[str], english: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"type": "steps", "zh": chinese, "en": english})
        return
    for steps in (chinese, english):
        click.echo()
        for number, step in enumerate(steps, start=1):
            click.echo(f"{number}. {step}")
    click.echo()


def _probe_for(transport: Transport, appid: str, kind: Kind, setting: FetchSetting) -> Probed:
    return probe_setting(transport, setting, appid=appid, kind=kind, page=None)


def _probe(settings: _Settings, probe: _Probe, *, as_json: bool) -> bool:
    """Pull from each, print the verdicts, and return whether all are good."""
    results = [probe(kind, setting) for kind, setting in settings.items()]
    for probed in results:
        print_probe(probed, as_json=as_json)
    return not any(probed.problems for probed in results)


def _hosts(settings: _Settings) -> list[str]:
    return sorted({urlsplit(each.url).hostname or "" for each in settings.values() if each.url})


def _steps_in_chinese(who: str, hosts: list[str], entries: Mapping[Kind, str]) -> Iterator[str]:
    yield f"登录 https://mp.weixin.qq.com，选择{who}，进入“开发管理 → 开发设置”。"
    for host in hosts:
        yield (
            f"“业务域名”：添加 {host}。下载校验文件，填入 PREFETCH_CONFIRM_FILES 并发布，再点保存。"
            "（服务器域名是另一个列表。）"
        )
    for kind, entry in entries.items():
        yield f"“{_TITLES[kind]}”：{entry}"
    if hosts:
        yield "个人主体的小程序不能填写 HTTPS 地址，只能选择云开发环境。"


def _entry_in_chinese(setting: FetchSetting) -> str:
    if not setting.open:
        return "关闭。"
    if setting.source == "cloud_function":
        return f"开启，数据来源选云开发，环境 {setting.env}，云函数 {setting.function_name}。"
    return f"开启，数据来源选开发者服务器，数据下载地址填 {setting.url}"


def _steps(who: str, hosts: list[str], entries: Mapping[Kind, str]) -> Iterator[str]:
    yield (
        f"Log in at https://mp.weixin.qq.com, choose {who}, and open 开发管理 → 开发设置 "
        "(development settings)."
    )
    for host in hosts:
        yield (
            f"业务域名 (business domains): add {host}. Download the confirm file (校验文件), "
            "set it in PREFETCH_CONFIRM_FILES, deploy, then save. "
            "服务器域名 (server domains) is another list."
        )
    for kind, entry in entries.items():
        yield f"{_TITLES[kind]} ({_ENGLISH[kind]}): {entry}"
    if hosts:
        yield "A mini program of a person cannot have a URL there, only a cloud environment."


def _entry(setting: FetchSetting) -> str:
    if not setting.open:
        return "switch it off."
    if setting.source == "cloud_function":
        env, name = setting.env, setting.function_name
        return f"switch it on, from the cloud function {name} in the environment {env}."
    return f"switch it on, choose the developer's server, and paste {setting.url}"
