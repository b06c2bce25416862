"""Services held in bounds through their cgroups: limited, frozen, thawed. All of it can be set back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from ...models import ActionRefused, UnitState
from ..steps import UNLIMITED, Knob, Plan, SetProperties
from .knobs import read_knob, set_knob, spoken
from .resources import clear_system_cache
from .units import checked_unit
from .world import MIB, World, properties

# Argument → the property that it sets, and how many of the property's units one of its own is.
_LIMITS: Final[Mapping[str, tuple[str, int]]] = {
    "memory_high_bytes": ("MemoryHigh", 1),
    "cpu_weight": ("CPUWeight", 1),
    "cpu_quota_percent": ("CPUQuotaPerSecUSec", 10_000),
    "io_weight": ("IOWeight", 1),
}
_CEILINGS: Final = frozenset({"MemoryHigh", "CPUQuotaPerSecUSec"})  # a weight is relative: neither tight nor loose
_PAGE: Final = 4096
_LEAST_HIGH: Final = 16 * MIB


async def _running(world: World, name: str) -> UnitState:
    unit = await checked_unit(world, name)
    if not unit.name.endswith(".service"):
        raise ActionRefused(f"{unit.name} is no service: it has no processes to hold in bounds")
    if unit.active not in {"active", "reloading"}:
        raise ActionRefused(f"{unit.name} is not running (it is {unit.active})")
    return unit


async def limit_unit(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Limits until the next boot; without one named, memory to nine tenths of what it takes now."""
    unit = (await _running(world, arguments["unit"])).name
    present = await properties(world, unit, "Service")
    wanted = {name: arguments[key] * unit_of for key, (name, unit_of) in _LIMITS.items() if key in arguments}
    if not wanted and present.get("MemoryHigh", UNLIMITED) != UNLIMITED:
        raise ActionRefused(f"{unit} has a limit already", "a tighter one must be named: memory_high_bytes")
    settled = {}
    if not wanted:
        settled = {"memory_high_bytes": _nine_tenths(unit, present.get("MemoryCurrent", UNLIMITED))}
        wanted = {"MemoryHigh": settled["memory_high_bytes"]}
    knobs = []
    for name, value in wanted.items():
        former = spoken(present.get(name), f"{name} of {unit}")
        if name in _CEILINGS and value > present[name]:
            raise ActionRefused(f"{unit} has {name}={former} already: {value} would loosen it")
        if value != present[name]:
            knobs.append(Knob(f"unit:{unit}:{name}", former, str(value)))
    if not knobs:
        raise ActionRefused(f"{unit} is limited to that already")
    checks = (f"{unit} is running; {knob.name.rpartition(':')[2]} is {knob.former}" for knob in knobs)
    step = SetProperties(unit, tuple((knob.name.rpartition(":")[2], "t", int(knob.ours)) for knob in knobs))
    return Plan(tuple(checks), (step,), tuple(knobs), settled)


def _nine_tenths(unit: str, current: int) -> int:
    if current == UNLIMITED:
        raise ActionRefused(f"how much memory {unit} takes is unknown", "say memory_high_bytes, or a CPU or IO limit")
    return max(_LEAST_HIGH, current * 9 // 10 // _PAGE * _PAGE)


async def freeze_unit(world: World, arguments: Mapping[str, Any]) -> Plan:
    """All processes of a running service stand still; its memory stays, and it answers nobody."""
    unit = (await _running(world, arguments["unit"])).name
    if not (await properties(world, unit, "Unit")).get("CanFreeze", True):
        raise ActionRefused(f"{unit} cannot be frozen here", "that needs cgroup v2")
    return await _flip(world, unit, "1", f"{unit} is running")


async def thaw_unit(world: World, arguments: Mapping[str, Any]) -> Plan:
    """The processes of a frozen service run again."""
    unit = (await _running(world, arguments["unit"])).name
    return await _flip(world, unit, "0", f"{unit} is frozen")


async def _flip(world: World, unit: str, wanted: str, found: str) -> Plan:
    name = f"frozen:{unit}"
    former = await read_knob(world, name)
    if former == wanted:
        raise ActionRefused(f"{unit} is frozen already" if wanted == "1" else f"{unit} is not frozen")
    return Plan((found,), (set_knob(world, name, wanted),), (Knob(name, former, wanted),))


async def free_memory(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Reclaim as clear_system_cache does; where nothing is to be had, limit the unit that was named."""
    rest = dict(arguments)
    limit: dict[str, Any] = {name: rest.pop(name) for name in ("unit", "memory_high_bytes") if name in rest}
    try:
        return await clear_system_cache(world, rest)
    except ActionRefused as nothing:
        if "unit" not in limit:
            raise
        plan = await limit_unit(world, limit)
        return replace(plan, checks=(nothing.message, *plan.checks))
