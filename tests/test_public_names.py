"""What `import prefetch_kit` gives, and what it leaves alone."""

import subprocess
import sys

import prefetch_kit


def test_public_names_are_these() -> None:
    """A name is added to or taken from the package on purpose only."""
    assert prefetch_kit.__all__ == [
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
    assert all(hasattr(prefetch_kit, name) for name in prefetch_kit.__all__)


def test_import_brings_no_client_and_starts_nothing() -> None:
    """An app that only answers pulls pays neither for requests nor for a socket or thread."""
    script = """
import sys, threading
opened = []
sys.addaudithook(lambda event, _: opened.append(event) if event.startswith("socket.") else None)
import prefetch_kit
heavy = {"requests", "urllib3", "redis", "prefetch_kit.weixin", "prefetch_kit.sandbox"}
print(sorted(heavy & sys.modules.keys()), threading.active_count(), opened)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[] 1 []"
