"""What can be set and set back: a closed grammar of names, how each is read and how it is set.

    vm.swappiness             0 to 200
    cpufreq:policyN           the name of a governor
    unit:NAME:PROPERTY        a limit of a service: a number, or `infinity` where there is none
    frozen:NAME               1 when the service's processes stand still, else 0

A name comes back from a record, so it is never trusted: only what fully matches here becomes a path or a call.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from ...decide.actions import protected, valid_unit
from ...models import ActionRefused
from ..steps import UNLIMITED, Knob, Plan, SetProperties, Step, UnitJob, WriteFile
from .world import World, no_switch, properties, read

_FROZEN: Final = {"running": "0", "thawing": "0", "frozen": "1", "freezing": "1"}  # FreezerState → our value


class _Kind(NamedTuple):
    """A row of the grammar: which names, which values, how it is read, the step that sets it."""

    name: re.Pattern[str]
    value: re.Pattern[str]
    read: Callable[[World, re.Match[str]], Awaitable[str]]
    step: Callable[[World, re.Match[str], str], Step]


def _swappiness(world: World) -> Path:
    return world.roots.proc / "sys/vm/swappiness"


async def _read_swappiness(world: World, _name: re.Match[str]) -> str:
    return read(_swappiness(world))


def _set_swappiness(world: World, _name: re.Match[str], value: str) -> Step:
    return WriteFile(_swappiness(world), value, power=f"swappiness@{value}")


def _governor(world: World, name: re.Match[str]) -> Path:
    return world.roots.sys / "devices/system/cpu/cpufreq" / name["policy"] / "scaling_governor"


async def _read_governor(world: World, name: re.Match[str]) -> str:
    return read(_governor(world, name))


def _set_governor(world: World, name: re.Match[str], value: str) -> Step:
    return WriteFile(_governor(world, name), value, power=f"governor@{name['policy']}:{value}")


def _service(name: re.Match[str]) -> str:
    """The unit of a knob's name: a service, and not a protected one. Raises ActionRefused."""
    unit = name["unit"]
    try:
        good = valid_unit(unit) == unit and unit.endswith(".service")
    except ValueError:
        good = False
    if not good:
        raise ActionRefused(f"{unit!r:.120} is no service")
    if protected(unit):
        raise ActionRefused(f"{unit} is in the protected set", "it is never touched, so look at it yourself")
    return unit


async def _told(world: World, name: re.Match[str], *interfaces: str) -> dict[str, Any]:
    unit = _service(name)
    found = await properties(world, unit, "Unit", *interfaces)
    aliases = (str(found.get("Id", "")), *map(str, found.get("Names", ())))
    if guarded := next((alias for alias in aliases if protected(alias)), ""):
        raise ActionRefused(f"{unit} is {guarded}, which is in the protected set")
    return found


async def _read_property(world: World, name: re.Match[str]) -> str:
    return spoken((await _told(world, name, "Service")).get(name["property"]), name["property"])


def spoken(value: object, what: str) -> str:
    """A limit as text. Raises ActionRefused when systemd told none."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ActionRefused(f"systemd does not tell {what}", "this version of it may not have that")
    return "infinity" if value == UNLIMITED else str(value)


def _set_property(_world: World, name: re.Match[str], value: str) -> Step:
    number = UNLIMITED if value == "infinity" else int(value)
    return SetProperties(_service(name), ((name["property"], "t", number),))


async def _read_frozen(world: World, name: re.Match[str]) -> str:
    state = str((await _told(world, name)).get("FreezerState", "unknown"))
    if state not in _FROZEN:
        raise ActionRefused(f"whether {name['unit']} is frozen cannot be told (it is {state})")
    return _FROZEN[state]


def _set_frozen(_world: World, name: re.Match[str], value: str) -> Step:
    return UnitJob("FreezeUnit" if value == "1" else "ThawUnit", _service(name))


_KINDS: Final = tuple(
    _Kind(re.compile(name, re.ASCII), re.compile(value, re.ASCII), reader, step)
    for name, value, reader, step in (
        (r"vm\.swappiness", r"[0-9]|[1-9][0-9]|1[0-9][0-9]|200", _read_swappiness, _set_swappiness),
        (r"cpufreq:(?P<policy>policy[0-9]{1,4})", r"[a-z][a-z0-9_-]{0,31}", _read_governor, _set_governor),
        (r"unit:(?P<unit>.+):(?P<property>MemoryHigh|CPUWeight|CPUQuotaPerSecUSec|IOWeight)", r"[0-9]{1,19}|infinity",
         _read_property, _set_property),
        (r"frozen:(?P<unit>.+)", r"[01]", _read_frozen, _set_frozen),
    )
)  # fmt: skip


def _kind(name: str) -> tuple[_Kind, re.Match[str]]:
    for kind in _KINDS:
        if found := kind.name.fullmatch(name):
            return kind, found
    raise ActionRefused(f"there is no knob {name!r:.120}")


async def read_knob(world: World, name: str) -> str:
    """The present value. Raises ActionRefused when the name is none of the grammar, or cannot be read."""
    kind, found = _kind(name)
    return await kind.read(world, found)


def set_knob(world: World, name: str, value: str) -> Step:
    """The step that sets it. Raises ActionRefused when name or value are none of the grammar."""
    kind, found = _kind(name)
    if not kind.value.fullmatch(value):
        raise ActionRefused(f"{value!r:.80} is no value for {name}")
    return kind.step(world, found, value)


async def way_back(world: World, knobs: Iterable[tuple[str, str, str]]) -> Plan:
    """Each knob to its former value, the last that was set first; a knob that stands there already is left.

    Raises ActionRefused when somebody changed one of them since, so that nothing is undone by halves.
    """
    no_switch(world)
    checks, steps = [], []
    for name, former, ours in reversed([_parsed(knob) for knob in knobs]):
        step, present = set_knob(world, name, former), await read_knob(world, name)
        if present == former:
            checks.append(f"{name} is {former} already")
        elif present == ours:
            checks.append(f"{name} is {ours}, as we left it, and was {former}")
            steps.append(step)
        else:
            raise ActionRefused(f"{name} was changed since (it is {present}, we left {ours})",
                                "whoever changed it decides: set it yourself, if that is still right")  # fmt: skip
    if not steps:
        raise ActionRefused("there is nothing to set back" + "".join(f": {check}" for check in checks[:1]))
    return Plan(tuple(checks), tuple(steps))


def _parsed(knob: object) -> Knob:
    """From a record, where a tuple may have become a list."""
    if not isinstance(knob, tuple | list) or len(knob) != 3 or not all(isinstance(part, str) for part in knob):
        raise ActionRefused(f"not a knob: {knob!r:.120}", "a knob is its name, its former value and ours")
    return Knob(*knob)
