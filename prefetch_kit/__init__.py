"""Serve WeChat Mini Program data pre-fetch from Flask, and point WeChat at it."""

from prefetch_kit.cache.policy import CachePolicy
from prefetch_kit.endpoint.blueprint import Prefetch, pull_refused, pull_served
from prefetch_kit.endpoint.fast_path import fast_path
from prefetch_kit.endpoint.payload import NO_DATA
from prefetch_kit.endpoint.pull import PageQuery, Pull
from prefetch_kit.errors import (
    ConfigError,
    ForeignAppid,
    PrefetchKitError,
    QueryKeyMissing,
    UserIdError,
    WeixinError,
)

__all__ = [
    "NO_DATA",
    "CachePolicy",
    "ConfigError",
    "ForeignAppid",
    "PageQuery",
    "Prefetch",
    "PrefetchKitError",
    "Pull",
    "QueryKeyMissing",
    "UserIdError",
    "WeixinError",
    "fast_path",
    "pull_refused",
    "pull_served",
]
