"""A local WeChat for development and tests."""

from prefetch_kit.sandbox.errors import SandboxError
from prefetch_kit.sandbox.faults import Fault
from prefetch_kit.sandbox.phone import Pulled
from prefetch_kit.sandbox.pushes import Pushed
from prefetch_kit.sandbox.server import Sandbox
from prefetch_kit.sandbox.state import LoggedRequest
from prefetch_kit.sandbox.switches import Switches

__all__ = ["Fault", "LoggedRequest", "Pulled", "Pushed", "Sandbox", "SandboxError", "Switches"]
