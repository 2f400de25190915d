"""The parameters of a pull, as WeChat writes them behind a registered URL.

Pages: developers.weixin.qq.com/miniprogram/dev/framework/ability/pre-fetch.html and
/miniprogram/dev/framework/ability/background-fetch.html.
"""

from collections.abc import Mapping
from urllib.parse import quote

from prefetch_kit.sandbox.switches import Switches


def pull_query(
    appid: str,
    credential: Mapping[str, str],
    launch: Mapping[str, object],
    *,
    now: float,
    switches: Switches,
) -> str:
    """The query of one pull.

    `credential` is a token, a login code or nothing; `launch` is the page that is being opened,
    empty for a periodic pull; `now` is in seconds since 1970.
    """
    parameters: dict[str, object] = {
        "appid": appid,
        "timestamp": int(now * (1000 if switches.timestamp_unit == "ms" else 1)),
        **credential,
        **{name: value for name, value in launch.items() if value != ""},
    }
    if launch and switches.custom_miniprogram_version is not None:
        parameters["customMiniprogramVersion"] = switches.custom_miniprogram_version
    return "&".join(f"{name}={quote(str(value), safe='')}" for name, value in parameters.items())
