"""Issue → ladder of actions, as data. [pure]

A rung is an action's name and where its arguments come from. The ladder climbs from the least to the most
regrettable; the first action that the older interface named for an issue is what `get_action` returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from ..models import UNCLASSIFIED, Action, Issue, IssueType
from .actions import OBSERVE
from .judge import SHARED


# Argument name → where its value comes from: the issue's component, or a key of its evidence (left out when
# the evidence lacks it).
class _Rung(NamedTuple):
    name: str
    arguments: Mapping[str, str] = {}
    needs: str = ""  # the evidence without which this is no rung


_COMPONENT: Final = "component"
_RESTART: Final = _Rung("restart_service", {"service": _COMPONENT})
_AGAIN: Final = _Rung("restart_service", {"service": _COMPONENT, "again": "again"})
_START: Final = _Rung("start_unit", {"unit": _COMPONENT})
_RERUN: Final = _Rung("rerun_timer", {"unit": _COMPONENT})
_RECLAIM: Final = _Rung("clear_system_cache")
_LIMIT: Final = _Rung("limit_unit", {"unit": "unit"}, "unit")
_RESTART_CULPRIT: Final = _Rung("restart_service", {"service": "unit", "running": "running"}, "unit")
_COLLECT: Final = _Rung("clean_nix_store", {"filesystem": "mount"})
_VACUUM: Final = _Rung("vacuum_journal", {"filesystem": "mount"})
_CLEAN: Final = _Rung("clean_disk", {"filesystem": "mount"})
_GOVERNOR: Final = _Rung("set_cpu_governor")
_ROLLBACK: Final = _Rung("rollback_generation")

# (type, class of component, kind) → rungs; the kind "" is what holds where no row names the kind.
LADDERS: Final[Mapping[tuple[IssueType, str, str], tuple[_Rung, ...]]] = MappingProxyType(
    {
        (IssueType.SERVICE, "unit", ""): (_RESTART,),
        (IssueType.SERVICE, "unit", "unit_inactive"): (_START, _RESTART),
        (IssueType.SERVICE, "unit", "one_off"): (),
        (IssueType.SERVICE, "unit", "job_failed"): (_RERUN,),
        (IssueType.SERVICE, "unit", "oneshot_failed"): (_AGAIN,),
        (IssueType.SERVICE, "unit", "unclear"): (),
        (IssueType.RESOURCE, "cpu", ""): (_GOVERNOR,),
        (IssueType.RESOURCE, "memory", ""): (_RECLAIM, _LIMIT, _RESTART_CULPRIT),
        (IssueType.RESOURCE, "disk", ""): (_COLLECT, _VACUUM, _CLEAN),
        (IssueType.RESOURCE, "disk", "inodes"): (_COLLECT, _CLEAN),
        (IssueType.SYSTEM, "system", ""): (_ROLLBACK,),
        (IssueType.SYSTEM, "system", "pressure"): (),
        (IssueType.SYSTEM, "system", "health"): (),
        (IssueType.SYSTEM, "system", SHARED): (),
        (IssueType.SYSTEM, "system", UNCLASSIFIED): (),
    }
)

_NOT_RESTARTED: Final = frozenset({"one_off", "job_failed", "unclear"})

# What `get_action` names, by type and class of component.
_FIRST: Final[Mapping[str, _Rung]] = MappingProxyType({
    "cpu": _GOVERNOR, "memory": _RECLAIM, "disk": _COLLECT, "system": _ROLLBACK,
})  # fmt: skip


def component_class(issue: Issue) -> str:
    """`unit` for a service, else the component without what follows the colon: `disk:/var` → `disk`."""
    return "unit" if issue.type is IssueType.SERVICE else issue.component.partition(":")[0]


class SimpleResolver:
    """Looks the remedy up. Subclass it and override `get_action` for remedies of your own: what it
    returns is then the only rung."""

    def get_action(self, issue: Issue) -> dict[str, Any]:
        """The first remedy as `{"action": name, "parameters": {...}}`; `observe` where nothing is known to help."""
        if issue.type is IssueType.SERVICE and issue.kind not in _NOT_RESTARTED:
            return {"action": "restart_service", "parameters": {"service": issue.component}}
        if issue.kind and not self._rungs(issue):
            return {"action": OBSERVE, "parameters": {}}
        rung = _FIRST.get(issue.component.partition(":")[0])
        if rung is None:
            return {"action": OBSERVE, "parameters": {}}
        return {"action": rung[0], "parameters": _arguments(rung, issue) if issue.metrics else {}}

    def get_ladder(self, issue: Issue) -> tuple[Action, ...]:
        """Every rung in the order of risk; empty where nothing is known to help."""
        return tuple(
            Action(rung.name, _arguments(rung, issue))
            for rung in self._rungs(issue)
            if not rung.needs or rung.needs in issue.metrics
        )

    def climb(self, issue: Issue) -> tuple[Action, ...]:
        """The rungs that the engine tries: the ladder, or the one action of an overridden `get_action`."""
        if type(self).get_action is SimpleResolver.get_action:
            return self.get_ladder(issue)
        action = Action.parse(self.get_action(issue))
        return () if action.name == OBSERVE else (action,)

    @staticmethod
    def _rungs(issue: Issue) -> tuple[_Rung, ...]:
        what, name = issue.type, component_class(issue)
        found = LADDERS.get((what, name, issue.kind))
        return LADDERS.get((what, name, ""), ()) if found is None else found


def _arguments(rung: _Rung, issue: Issue) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, source in rung[1].items():
        value = issue.component if source == _COMPONENT else issue.metrics.get(source)
        if value is not None:
            values[name] = value
    return values
