"""Self-healing for NixOS and other systemd hosts.

    from luminous_nix.self_healing import create_self_healing_engine

Everything here loads on first use, so that importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .act.executor import SimpleExecutor
    from .decide.resolver import SimpleResolver
    from .healing_engine import (
        SelfHealingEngine,
        SimplifiedHealingEngine,
        create_self_healing_engine,
        quick_heal,
    )
    from .models import (
        ExecutionMode,
        ExecutionResult,
        HealingError,
        HealingResult,
        Issue,
        IssueType,
        Severity,
        Verdict,
    )
    from .observe.detector import SimpleDetector
    from .permission_handler import NixOSPermissionHandler

__version__ = "2.0.0"

_HOME = {
    "ExecutionMode": "models",
    "ExecutionResult": "models",
    "HealingError": "models",
    "HealingResult": "models",
    "Issue": "models",
    "IssueType": "models",
    "NixOSPermissionHandler": "permission_handler",
    "SelfHealingEngine": "healing_engine",
    "Severity": "models",
    "SimpleDetector": "observe.detector",
    "SimpleExecutor": "act.executor",
    "SimpleResolver": "decide.resolver",
    "SimplifiedHealingEngine": "healing_engine",
    "Verdict": "models",
    "create_self_healing_engine": "healing_engine",
    "quick_heal": "healing_engine",
}

__all__ = [
    "ExecutionMode",
    "ExecutionResult",
    "HealingError",
    "HealingResult",
    "Issue",
    "IssueType",
    "NixOSPermissionHandler",
    "SelfHealingEngine",
    "Severity",
    "SimpleDetector",
    "SimpleExecutor",
    "SimpleResolver",
    "SimplifiedHealingEngine",
    "Verdict",
    "create_self_healing_engine",
    "quick_heal",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
