"""The version, here and not looked up: a zip, or a copied folder, has no metadata."""

__version__ = "0.1.0"
