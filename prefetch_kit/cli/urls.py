"""`urls`: for those who have no third-party platform, and set the URLs by hand.

developers.weixin.qq.com/miniprogram/dev/framework/ability/: pre-fetch.html, background-fetch.html
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Final
from urllib.parse import urlsplit

import click

from prefetch_kit.cli.app import LoadedApp
from prefetch_kit.cli.commands import commands, with_app
from prefetch_kit.cli.errors import FAILED, CommandFailed
from prefetch_kit.cli.options import as_json_option
from prefetch_kit.cli.output import print_json, print_probe
from prefetch_kit.fetch_setting import FetchSetting, Kind
from prefetch_kit.registrar.plan import OffIfFrom

_TITLES: Final[Mapping[Kind, str]] = {
    "pre_fetch": "数据预拉取",
    "period_fetch": "数据周期性更新",
}
_ENGLISH: Final[Mapping[Kind, str]] = {"pre_fetch": "pre-fetch", "period_fetch": "periodic fetch"}


@commands.command()
@with_app
@as_json_option
@click.option("--skip-probe", is_flag=True, help="Do not pull from the URLs.")
def urls(loaded: LoadedApp, *, as_json: bool, skip_probe: bool) -> None:
    """Print the URLs to paste into WeChat's console, and the steps there (控制台).

    For a mini program that no third-party platform serves. It asks WeChat for nothing and changes
    nothing there; it pulls from the URLs once, as WeChat will.
    """
    wanted = {
        kind: setting
        for kind, setting in loaded.wanted().items()
        if not isinstance(setting, OffIfFrom)
    }
    if not wanted:
        raise CommandFailed(
            "The app has no handler, so there is no URL to set. Register one with pre_fetch or "
            "period_fetch."
        )
    steps = {"zh": list(_steps_in_chinese(loaded, wanted)), "en": list(_steps(loaded, wanted))}
    if as_json:
        for kind, setting in wanted.items():
            print_json({"type": "url", "appid": loaded.appid, "kind": kind, **asdict(setting)})
        print_json({"type": "steps", "appid": loaded.appid, **steps})
    else:
        click.echo(loaded.appid)
        for kind, setting in wanted.items():
            click.echo(f"  {kind:12}  {setting.to_text()}")
        for language in steps.values():
            click.echo()
            for number, step in enumerate(language, start=1):
                click.echo(f"{number}. {step}")
    if not (skip_probe or _probe(loaded, wanted, as_json=as_json)):
        sys.exit(FAILED)


def _probe(loaded: LoadedApp, wanted: Mapping[Kind, FetchSetting], *, as_json: bool) -> bool:
    """Pull from each, print the verdicts, and return whether all are good."""
    if not as_json:
        click.echo()
    results = [loaded.probe(kind, setting) for kind, setting in wanted.items()]
    for probed in results:
        print_probe(probed, as_json=as_json)
    return not any(probed.problems for probed in results)


def _hosts(wanted: Mapping[Kind, FetchSetting]) -> list[str]:
    return sorted({urlsplit(each.url).hostname or "" for each in wanted.values() if each.url})


def _steps_in_chinese(loaded: LoadedApp, wanted: Mapping[Kind, FetchSetting]) -> Iterator[str]:
    yield f"登录 https://mp.weixin.qq.com，选择小程序 {loaded.appid}，进入“开发管理 → 开发设置”。"
    for host in _hosts(wanted):
        yield (
            f"“业务域名”：添加 {host}。下载校验文件，填入 PREFETCH_CONFIRM_FILES 并发布，再点保存。"
            "（服务器域名是另一个列表。）"
        )
    for kind, setting in wanted.items():
        yield f"“{_TITLES[kind]}”：{_entry_in_chinese(setting)}"
    if _hosts(wanted):
        yield "个人主体的小程序不能填写 HTTPS 地址，只能选择云开发环境。"


def _entry_in_chinese(setting: FetchSetting) -> str:
    if not setting.open:
        return "关闭。"
    if setting.source == "cloud_function":
        return f"开启，数据来源选云开发，环境 {setting.env}，云函数 {setting.function_name}。"
    return f"开启，数据来源选开发者服务器，数据下载地址填 {setting.url}"


def _steps(loaded: LoadedApp, wanted: Mapping[Kind, FetchSetting]) -> Iterator[str]:
    yield (
        f"Log in at https://mp.weixin.qq.com, choose the mini program {loaded.appid}, and open "
        "开发管理 → 开发设置 (development settings)."
    )
    for host in _hosts(wanted):
        yield (
            f"业务域名 (business domains): add {host}. Download the confirm file (校验文件), "
            "set it in PREFETCH_CONFIRM_FILES, deploy, then save. "
            "服务器域名 (server domains) is another list."
        )
    for kind, setting in wanted.items():
        yield f"{_TITLES[kind]} ({_ENGLISH[kind]}): {_entry(setting)}"
    if _hosts(wanted):
        yield "A mini program of a person cannot have a URL there, only a cloud environment."


def _entry(setting: FetchSetting) -> str:
    if not setting.open:
        return "switch it off."
    if setting.source == "cloud_function":
        env, name = setting.env, setting.function_name
        return f"switch it on, from the cloud function {name} in the environment {env}."
    return f"switch it on, choose the developer's server, and paste {setting.url}"
