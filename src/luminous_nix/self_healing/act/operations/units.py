"""Units: start what is down, reload what runs; never against somebody's will."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...bus import BusRefused, BusUnavailable
from ...decide.actions import protected
from ...models import ActionRefused, ObservationError, UnitState
from ...observe.systemd import SystemdSensor, relations
from ..steps import Plan, Step, UnitJob
from .world import World, no_switch, properties

_HOLD_US: Final = 300_000_000  # a unit that hit its start limit is left alone for at least this long
_DAY_S: Final = 86400.0


async def checked_unit(world: World, name: str) -> UnitState:
    """A unit that may be touched at all. Raises ActionRefused: protected, masked, in a job, or during a switch."""
    if protected(name):
        raise ActionRefused(f"{name} is in the protected set", "it is never touched, so look at it yourself")
    no_switch(world)
    try:
        unit = await SystemdSensor(world.bus, world.roots).unit(name)
    except ObservationError as error:
        raise ActionRefused(f"{name} cannot be looked at: {error.message}", error.hint, passing=True) from error
    if guarded := next((alias for alias in (unit.name, *unit.aliases) if protected(alias)), ""):
        raise ActionRefused(f"{name} is {guarded}, which is in the protected set")
    if unit.load != "loaded" or unit.file_state.startswith("masked"):
        said = {"not-found": "there is no such unit", "masked": "it is masked"}.get(
            unit.load, f"it is {unit.file_state}"
        )
        raise ActionRefused(f"{name}: {said}")
    if unit.job:
        raise ActionRefused(f"{name} has a job in flight already", "systemd is at work on it, so look again later",
                            passing=True)  # fmt: skip
    if unit.sub == "auto-restart":
        raise ActionRefused(f"{name} is being restarted by systemd itself (Restart=)", passing=True)
    if unit.refuse_start:
        raise ActionRefused(f"{name} refuses to be started or stopped by hand (RefuseManualStart/Stop=)")
    return unit


def _startable(unit: UnitState) -> str:
    """What the precheck found. Raises ActionRefused."""
    if unit.active in {"active", "reloading", "activating", "deactivating"}:
        raise ActionRefused(f"{unit.name} is {unit.active} ({unit.sub})")
    if unit.stopped_on_purpose:
        raise ActionRefused(
            f"{unit.name} was stopped on purpose", f"systemctl start {unit.name}, if that was an error"
        )
    if unit.file_state == "disabled" and unit.active != "failed":
        raise ActionRefused(f"{unit.name} is disabled")
    if unit.transient:
        raise ActionRefused(f"{unit.name} is a one-off command: running it again is for whoever started it")
    if unit.restart_prevented:
        raise ActionRefused(f"{unit.name} ended with a status that must not be answered by a restart",
                            "RestartPreventExitStatus= of the unit says so")  # fmt: skip
    return f"{unit.name} is {unit.active} ({unit.result}), not masked, not stopped on purpose, no job in flight"


def _held(unit: UnitState, now_s: float) -> list[Step]:
    """A unit in a crash loop rests; after that its counter is reset first. Raises ActionRefused during the rest."""
    if not unit.gave_up:
        return []
    hold = max(_HOLD_US, unit.start_limit_us)
    left = (hold - (now_s * 1e6 - unit.inactive_enter_us)) / 1e6
    if left > 0:
        when = f"one clean start is tried in {left:.0f} s" if left < _DAY_S else "only a person starts it again"
        raise ActionRefused(f"{unit.name} is in a crash loop and held: {unit.restarts} restarts did not help",
                            f"mend its cause first: {when}", passing=left < _DAY_S)  # fmt: skip
    return [UnitJob("ResetFailedUnit", unit.name)]


async def _no_side_effects(world: World, unit: UnitState) -> None:
    """Starting a unit stops what conflicts with it and starts what it requires: neither may be against a will."""
    try:
        rivals = await relations(world.bus, unit.name, "Conflicts", "ConflictedBy")
        needed = await relations(world.bus, unit.name, "Requires", "BindsTo", "Requisite")
        for name, active in rivals.items():
            if active in {"active", "activating", "reloading"} and not name.endswith(".target"):
                raise ActionRefused(f"starting {unit.name} would stop {name}, which runs (Conflicts=)")
        for name, active in needed.items():
            if active in {"failed", "inactive"} and name.endswith((".service", ".mount")):
                other = await SystemdSensor(world.bus, world.roots).unit(name)
                if active == "failed" or other.stopped_on_purpose or other.load != "loaded" or protected(name):
                    raise ActionRefused(f"{unit.name} needs {name}, which is {active}", "that comes first")
    except (BusUnavailable, BusRefused, ObservationError) as error:
        raise ActionRefused(
            f"what {unit.name} depends on cannot be looked at: {error.message}", passing=True
        ) from error


async def restart_service(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Start a unit that is down; in a crash loop it is reset first, once the hold is over.

    StartUnit and not RestartUnit, which would take along running units that require this one. With `running`,
    a unit that runs is restarted, because it is the cause of something else.
    """
    if not arguments.get("running"):
        return await _start(world, arguments["service"])
    unit = await checked_unit(world, arguments["service"])
    if unit.active != "active":
        raise ActionRefused(f"{unit.name} is {unit.active}: only a running unit is restarted for another's sake")
    return Plan((f"{unit.name} is running",), (UnitJob("RestartUnit", unit.name),))


async def start_unit(world: World, arguments: Mapping[str, Any]) -> Plan:
    """StartUnit of a unit that is down."""
    return await _start(world, arguments["unit"])


async def _start(world: World, name: str) -> Plan:
    unit = await checked_unit(world, name)
    found = _startable(unit)
    first = _held(unit, world.clock())
    await _no_side_effects(world, unit)
    return Plan((found,), (*first, UnitJob("StartUnit", unit.name)))


async def reload_service(world: World, arguments: Mapping[str, Any]) -> Plan:
    """ReloadUnit of a running unit that can reload."""
    unit = await checked_unit(world, arguments["service"])
    if unit.active != "active":
        raise ActionRefused(
            f"{unit.name} is {unit.active}: only a running unit can reload", "restart_service starts it"
        )
    if not unit.can_reload:
        raise ActionRefused(f"{unit.name} cannot reload (it has no ExecReload=)")
    return Plan((f"{unit.name} is running and can reload",), (UnitJob("ReloadUnit", unit.name),))


async def rerun_timer(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Start the job of a timer once more after its last run failed; the timer itself stays as it is."""
    name = arguments["unit"]
    if name.endswith(".timer"):
        timer, service = name, str((await properties(world, name, "Timer")).get("Unit", ""))
    else:
        named = (await properties(world, name, "Unit")).get("TriggeredBy", ())
        timer, service = next((str(other) for other in named if str(other).endswith(".timer")), ""), name
    if not timer or not service:
        raise ActionRefused(f"{name} has no timer" if service else f"there is no timer {name}",
                            "start_unit starts a service that has none")  # fmt: skip
    active = (await checked_unit(world, timer)).active
    if active != "active":
        raise ActionRefused(f"{timer} is {active}: its jobs are switched off")
    unit = await checked_unit(world, service)
    if unit.active != "failed":
        raise ActionRefused(f"the last run of {service} did not fail (it is {unit.active})")
    found = _startable(unit)
    first = _held(unit, world.clock())
    await _no_side_effects(world, unit)
    return Plan((f"{timer} is active", found), (*first, UnitJob("StartUnit", unit.name)))
