"""The app's logger, as it can be used wherever no request is."""

import traceback
from logging import Logger, LoggerAdapter
from typing import Any


class SafeLogger(LoggerAdapter[Logger]):
    """Logs to an app's logger. Where that fails, it is told on standard error, and no pull fails.

    An app's filters and formatters may ask for a request, and threads of ours have none.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        try:
            super().log(level, msg, *args, **{"stacklevel": 2, **kwargs})
        except Exception:  # noqa: BLE001 (a filter can raise anything)
            traceback.print_exc(chain=False)
