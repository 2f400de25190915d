"""A small shop whose pages open with their data already there."""

from example_app.shop import create_app

__all__ = ["create_app"]
