"""May this happen by itself, now? [pure]"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from ..models import Issue, Severity

_HEALTH_FLOOR: Final = 30  # below this nothing heals by itself
_BUSY: Final = 20.0  # % of the last minute in which all tasks waited


def postponed(issue: Issue, issues: Iterable[Issue], values: Mapping[str, float], health: int) -> str:
    """Why an automatic heal waits: the host is too sick, or short of resources for a MEDIUM issue. Else empty."""
    if health < _HEALTH_FLOOR:
        return f"health is {health}, below {_HEALTH_FLOOR} nothing heals by itself: a person is needed"
    if issue.severity is not Severity.MEDIUM:
        return ""
    worse = next((other.description for other in issues if other.severity >= Severity.HIGH), "")
    stalled = (name for name in ("pressure:memory:full", "pressure:io:full") if values.get(name, 0.0) > _BUSY)
    short = worse or next(stalled, "")
    return f"postponed until resources allow: {short}" if short else ""
