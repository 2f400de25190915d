"""Call quotas, for a minute and for a day."""

from datetime import UTC, datetime
from typing import Final

from prefetch_kit.sandbox.errors import ApiError

_MINUTE_S: Final = 60
_DAY_S: Final = 86_400
# Quotas of a day start anew at midnight in Beijing.
_BEIJING_OFFSET_S: Final = 8 * 3600


class Quotas:
    """Counts calls by name; not thread-safe by itself."""

    def __init__(self) -> None:
        self._windows: dict[tuple[str, ...], tuple[int, int]] = {}

    def spend(
        self,
        *name: str,
        now: float,
        per_minute: int | None = None,
        per_day: int | None = None,
    ) -> None:
        """Count one call; raises 45009 or 45011 when it is one too many."""
        day = int((now + _BEIJING_OFFSET_S) // _DAY_S)
        if per_day is not None and self._count(("day", *name), day) > per_day:
            raise ApiError(45009)
        minute = int(now // _MINUTE_S)
        if per_minute is not None and self._count(("minute", *name), minute) > per_minute:
            raise ApiError(45011)

    def clear(self, appid: str, *, now: float, per_month: int | None) -> None:
        """Forget the calls of an account; raises 48006 when that was done too often.

        Page: developers.weixin.qq.com/doc/oplatform/openApi/openapi-management/clearQuota.html.
        """
        today = datetime.fromtimestamp(now + _BEIJING_OFFSET_S, UTC)
        cleared = self._count(("month", "clear_quota", appid), today.year * 12 + today.month)
        if per_month is not None and cleared > per_month:
            raise ApiError(48006)
        for key in [key for key in self._windows if key[0] != "month" and appid in key]:
            del self._windows[key]

    def _count(self, key: tuple[str, ...], window: int) -> int:
        counted_in, calls = self._windows.get(key, (window, 0))
        calls = calls + 1 if counted_in == window else 1
        self._windows[key] = (window, calls)
        return calls
