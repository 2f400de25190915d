"""Encode what a handler returned: the kit, with orjson, and the json module."""

import json
from collections.abc import Iterator
from functools import partial
from logging import getLogger

from benchmarks.entrants import KB, data
from benchmarks.report import Table
from benchmarks.timing import cost_of, interleaved
from prefetch_kit.endpoint.payload import Encoder
from prefetch_kit.logs import SafeLogger

_JSON = "json.dumps, compact UTF-8"


def run(*, rounds: int, seconds: float = 0.2) -> Iterator[Table]:
    encoder = Encoder(
        max_bytes=256 * KB,
        big_integers_as_text=False,
        app_dumps=json.dumps,
        logger=SafeLogger(getLogger(__name__)),
        debug=False,
    )
    for size in (2 * KB, 32 * KB, 200 * KB):
        answer = data(size)
        calls = {
            _JSON: partial(_compact, answer),
            "kit encode, orjson": partial(encoder.encode, answer, schema=None, handler="benchmark"),
        }
        measures = {name: cost_of(call, seconds=seconds) for name, call in calls.items()}
        samples = interleaved(measures, rounds=rounds)
        yield Table(f"encode, {size // KB} KB", samples, baseline=_JSON)


def _compact(answer: object) -> bytes:
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()
