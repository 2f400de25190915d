"""`python -m prefetch_kit` is `prefetch-kit`."""

from prefetch_kit.cli import main

main()
