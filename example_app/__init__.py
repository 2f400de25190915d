"""A small shop whose pages open with pre-fetched data."""

from example_app.shop import create_app

__all__ = ["create_app"]
