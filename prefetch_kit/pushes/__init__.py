"""What WeChat pushes to a third-party platform (第三方平台), received by a Flask app."""

from prefetch_kit.pushes.blueprint import PlatformPushes

__all__ = ["PlatformPushes"]
