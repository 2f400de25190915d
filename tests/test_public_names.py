"""What `import prefetch_kit` gives, and what it leaves alone."""

import subprocess
import sys
from types import ModuleType

import pytest

import prefetch_kit
from prefetch_kit import fleet, registrar


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


@pytest.mark.parametrize(
    ("package", "names"),
    [
        (
            registrar,
            "Change FetchSetting FetchSettings Guard Kind OffIfFrom Plan Probed Registrar Secret"
            " StaticToken TokenSource Transport Verdict Wanted",
        ),
        (
            fleet,
            "Begun Fleet Group Limits Pace Project Report Result Summary Tally load_project",
        ),
    ],
)
def test_public_names_of_the_registering_half(package: ModuleType, names: str) -> None:
    """They are public wherever their code is; each exists, and others raise an error."""
    assert package.__all__ == names.split()
    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        package.Nothing  # noqa: B018 (looked up for its error)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["registrar.gunicorn", "registrar", "fleet"])
def test_importing_a_package_loads_none_of_it(module: str) -> None:
    """gunicorn's master imports the hook, and must not load an HTTP client."""
    script = f"""
import sys
import prefetch_kit.{module}
heavy = ["requests", "urllib3", "prefetch_kit.weixin", "prefetch_kit.registrar.registrar"]
print([name for name in heavy if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout.decode().strip() == "[]"


@pytest.mark.slow
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
