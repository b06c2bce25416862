"""Where the engine touches the simulated host: the real prechecks in essence, and what an act brings about.

It has the interface of NixOSPermissionHandler that the engine and its executor use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from luminous_nix.self_healing.act.steps import Knob, Plan, Step
from luminous_nix.self_healing.models import Action, ActionRefused, ExecutionMode, ExecutionResult, Roots

from .faults import Fault
from .host import POOL_OF, Host, requires

_SECONDS = {
    "clean_nix_store": 30.0,
    "vacuum_journal": 5.0,
    "rerun_timer": 30.0,
    "clear_system_cache": 1.0,
    "set_cpu_governor": 0.1,
}
_STUCK_S = 120.0
_HOLD_S = 300.0
_KNOBS = {
    "set_cpu_governor": (("cpu-governor:0", "powersave", "performance"),),
    "limit_unit": (("unit:culprit:MemoryHigh", "infinity", "1073741824"),),
}
STARTS = frozenset({"restart_service", "start_unit", "rerun_timer"})  # of a unit that is down
_READINGS = {
    "clear_system_cache": ("memory",), "set_cpu_governor": ("cpu",), "clean_nix_store": ("disk:/nix", "inodes:/nix"),
    "vacuum_journal": ("disk:/var",),
}  # fmt: skip


@dataclass(slots=True)
class Deed:
    """An act that was really begun on the host, for the checker."""

    tick: int
    look: int
    action: str
    target: str
    started: float
    cause: str = ""
    ended: float | None = None  # None: we were ended in the middle
    effect: str = ""  # mends, nothing, harms
    good: bool = False  # at the end of the cycle: the trouble is truly gone
    restored: bool = False
    knobs: bool = False


def target_of(action: str, parameters: Mapping[str, Any]) -> str:
    """A unit's short name, or the reading that the act is about."""
    unit = parameters.get("service") or parameters.get("unit")
    if unit:
        return str(unit).removesuffix(".service")
    mount = parameters.get("filesystem")
    return f"disk:{mount}" if mount else (_READINGS.get(action) or (action,))[0]


class SimHandler:
    """`watch` is told of every request and every deed; `point` is a place where this program may be ended."""

    mode = ExecutionMode.DEVELOPMENT
    unavailable = ""
    powerless = ""

    def __init__(
        self, host: Host, watch: Watch, point: Callable[[], Awaitable[None]], switch: Callable[[], str]
    ) -> None:
        nowhere = Path("/nonexistent")
        self.world = SimpleNamespace(bus=None, roots=Roots(*[nowhere] * 9))
        self._host, self._watch, self._point, self._switch = host, watch, point, switch

    def known(self, action: Action) -> Action:
        return action

    def typed(self, step: Step) -> str:
        return str(step)

    async def prepare(self, action: Action) -> Plan:
        self._watch.asked(action.name, action.parameters)
        try:
            self.faults(action.name, action.parameters)
        except ActionRefused:
            self._watch.refused(action.name, action.parameters)
            raise
        return Plan(
            ("the simulated host would let it",), (), tuple(Knob(*knob) for knob in _KNOBS.get(action.name, ()))
        )

    async def execute_healing_action(self, action: str, parameters: Mapping[str, Any]) -> ExecutionResult:
        """Precheck, then act. An end of the program may come before the effect, and after it."""
        self._watch.asked(action, parameters)
        try:
            faults = self.faults(action, parameters)
        except ActionRefused as error:
            self._watch.refused(action, parameters)
            return ExecutionResult(False, error=error.message, mode="dev", refused=True)
        deed = self._watch.begun(action, parameters)
        deed.knobs = action in _KNOBS
        self._host.now += 0.1  # nothing happens in no time
        await self._point()
        if why := self._switch():
            self._watch.ended(deed)
            return ExecutionResult(False, error=f"stopped by the kill switch: {why}", mode="dev")
        for fault in faults:
            fault.tried_to_limit |= action == "limit_unit"
        effects = [self._host.attempt(fault, action) for fault in faults]
        deed.effect = next((word for word in ("harms", "nothing", "mends") if word in effects), "nothing")
        stuck = deed.effect != "mends" and any(fault.kind.fails == "stuck" for fault in faults)
        self._host.now += _STUCK_S if stuck else _SECONDS.get(action, 2.0)
        await self._point()
        self._watch.ended(deed)
        if stuck:
            return ExecutionResult(False, error="it took too long", mode="dev")
        return ExecutionResult(True, "done", mode="dev", knobs=_KNOBS.get(action, ()))

    async def restore(self, knobs: Iterable[tuple[str, str, str]]) -> ExecutionResult:
        await self._point()
        self._watch.restored(tuple(knobs))
        self._host.undo_pressure()
        return ExecutionResult(True, "restored", mode="dev")

    # -- prechecks -------------------------------------------------------------------------------------------

    def faults(self, action: str, parameters: Mapping[str, Any]) -> list[Fault]:
        """The faults that the act works on. Raises ActionRefused."""
        if why := self._switch():
            raise ActionRefused(f"stopped by the kill switch: {why}")
        if self._host.busy:
            raise ActionRefused("a switch of the system's generation is in progress")
        if action in STARTS:
            return self._startable(target_of(action, parameters), action)
        if action == "limit_unit":
            return self._limitable(target_of(action, parameters))
        if action not in _READINGS:
            raise ActionRefused(f"{action} is not simulated")
        mount = parameters.get("filesystem")
        if mount is not None and f"disk:{mount}" not in _READINGS[action]:
            raise ActionRefused(f"what {action} frees is not on {mount}")
        faults = [
            fault for reading in _READINGS[action] for fault in self._host.faults_in(reading)
            if action in fault.kind.mends
        ]  # fmt: skip
        if not faults and action != "clean_nix_store":
            raise ActionRefused("nothing to gain here")
        return faults

    def _limitable(self, name: str) -> list[Fault]:
        if name not in POOL_OF or POOL_OF[name] == "protected" or name in self._host.down:
            raise ActionRefused(f"{name} is protected, unknown, or does not run")
        faults = [fault for fault in self._host.active if fault.culprit == name]
        if not faults or all(fault.tried_to_limit for fault in faults):
            raise ActionRefused(f"{name} is limited already, or holds little")
        return faults

    def _startable(self, name: str, action: str) -> list[Fault]:
        host = self._host
        if name not in POOL_OF or POOL_OF[name] == "protected":
            raise ActionRefused(f"{name} is protected or unknown")
        host.refresh(name)
        state = host.down.get(name)
        if state is None or state.active not in {"failed", "inactive"}:
            raise ActionRefused(f"{name} runs, or a job is in flight")
        if state.load != "loaded" or state.ended_by == "stop":
            raise ActionRefused(f"{name} is masked or was stopped on purpose")
        if state.restart_prevented:
            raise ActionRefused(f"{name} must not be answered by a restart")
        if state.gave_up and host.now - host.down_since[name] < _HOLD_S:
            raise ActionRefused(f"{name} is in a crash loop and held")
        if (action == "rerun_timer") != (state.kind == "oneshot"):
            raise ActionRefused(f"{name} has no timer, or is only run by its timer")
        needed = host.down.get(requires(name))
        if needed is not None and needed.active in {"failed", "inactive"}:
            raise ActionRefused(f"{name} needs {requires(name)}, which is down")
        faults = host.faults_of(name)
        if not all(action in fault.kind.mends for fault in faults):
            raise ActionRefused(f"{name}: systemd is at work on it")
        return faults


class Watch:
    """Who is told; the checker is one."""

    def asked(self, action: str, parameters: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def refused(self, action: str, parameters: Mapping[str, Any]) -> None:
        raise NotImplementedError

    def begun(self, action: str, parameters: Mapping[str, Any]) -> Deed:
        raise NotImplementedError

    def ended(self, deed: Deed) -> None:
        raise NotImplementedError

    def restored(self, knobs: tuple[tuple[str, str, str], ...]) -> None:
        raise NotImplementedError
