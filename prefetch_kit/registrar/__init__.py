"""Point WeChat at the URLs or cloud functions that one mini program's data comes from.

`Registrar` reads, plans, applies, rolls back and probes; all other names are what it takes and
gives. They load when they are first used: gunicorn's master imports the hook from here, and must
not load an HTTP client.
"""

from typing import TYPE_CHECKING

from prefetch_kit.lazy_names import lazy_names

if TYPE_CHECKING:
    from prefetch_kit.fetch_setting import FetchSetting, FetchSettings, Kind
    from prefetch_kit.registrar.plan import Change, Guard, OffIfFrom, Plan, Wanted
    from prefetch_kit.registrar.probe import Probed, Verdict
    from prefetch_kit.registrar.registrar import Registrar
    from prefetch_kit.secret import Secret
    from prefetch_kit.weixin.tokens import StaticToken, TokenSource
    from prefetch_kit.weixin.transport import Transport

__all__ = [
    "Change",
    "FetchSetting",
    "FetchSettings",
    "Guard",
    "Kind",
    "OffIfFrom",
    "Plan",
    "Probed",
    "Registrar",
    "Secret",
    "StaticToken",
    "TokenSource",
    "Transport",
    "Verdict",
    "Wanted",
]

if not TYPE_CHECKING:  # where it is, a wrong name is an error
    __getattr__ = lazy_names(
        __name__,
        {
            "prefetch_kit.fetch_setting": ("FetchSetting", "FetchSettings", "Kind"),
            "prefetch_kit.registrar.registrar": ("Registrar",),
            "prefetch_kit.registrar.plan": ("Change", "Guard", "Plan", "OffIfFrom", "Wanted"),
            "prefetch_kit.registrar.probe": ("Probed", "Verdict"),
            "prefetch_kit.secret": ("Secret",),
            "prefetch_kit.weixin.tokens": ("StaticToken", "TokenSource"),
            "prefetch_kit.weixin.transport": ("Transport",),
        },
    )
