"""Unit states over D-Bus (org.freedesktop.systemd1), never by parsing what systemctl prints.

One call lists what failed, one asks for the watched units; only units that look wrong are read in full.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn

from ..bus import Bus, BusRefused, BusUnavailable, target
from ..models import ObservationError, UnitState, unit_name

SYSTEMD: Final = "org.freedesktop.systemd1"
MANAGER: Final = target("/org/freedesktop/systemd1", f"{SYSTEMD}.Manager", SYSTEMD)
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_INTERFACES: Final = {
    "service": "Service", "socket": "Socket", "mount": "Mount", "timer": "Timer", "swap": "Swap",
}  # fmt: skip
_RUNNING: Final = frozenset({"active", "activating", "reloading"})
_TROUBLED: Final = 64  # read at most so many failed units in full; more than that is one trouble, not many


def unit_from(unit: Mapping[str, Any], typed: Mapping[str, Any]) -> UnitState:
    """Two property maps (`Unit` and the type's own interface), variants unpacked, to a value."""
    return UnitState(
        name=str(unit.get("Id", "")),
        load=str(unit.get("LoadState", "")),
        active=str(unit.get("ActiveState", "")),
        sub=str(unit.get("SubState", "")),
        result=str(typed.get("Result", "success")),
        file_state=str(unit.get("UnitFileState", "")),
        kind=str(typed.get("Type", "")),
        job=int(unit.get("Job", (0, "/"))[0]),
        transient=bool(unit.get("Transient", False)),
        triggered=bool(unit.get("TriggeredBy", [])),
        condition=bool(unit.get("ConditionResult", True)) or not unit.get("ConditionTimestampMonotonic", 0),
        inactive_exit_us=int(unit.get("InactiveExitTimestampMonotonic", 0)),
        active_exit_us=int(unit.get("ActiveExitTimestampMonotonic", 0)),
        inactive_enter_us=int(unit.get("InactiveEnterTimestampMonotonic", 0)),
        main_exit_us=int(typed.get("ExecMainExitTimestampMonotonic", 0)),
        main_code=int(typed.get("ExecMainCode", 0)),
        main_status=int(typed.get("ExecMainStatus", 0)),
        start_limit_us=int(unit.get("StartLimitIntervalUSec", 0)),
        restarts=int(typed.get("NRestarts", 0)),
        can_reload=bool(unit.get("CanReload", False)),
        refuse_start=bool(unit.get("RefuseManualStart", False)) or bool(unit.get("RefuseManualStop", False)),
        invocation=bytes(unit.get("InvocationID", b"")).hex(),
    )


async def read_unit(bus: Bus, name: str) -> UnitState:
    """Everything about one unit; a name that systemd does not know comes back with load `not-found`.

    Raises BusUnavailable, BusRefused.
    """
    (path,) = await bus.call(MANAGER, "LoadUnit", "s", (name,))
    interface = _INTERFACES.get(name.rpartition(".")[2])
    unit = await _properties(bus, path, "Unit")
    return unit_from(unit, await _properties(bus, path, interface) if interface else {})


async def _properties(bus: Bus, path: str, interface: str) -> dict[str, Any]:
    (found,) = await bus.call(target(path, _PROPERTIES, SYSTEMD), "GetAll", "s", (f"{SYSTEMD}.{interface}",))
    return {name: value for name, (_, value) in found.items()}


class SystemdSensor:
    """Units that failed, and watched units that are not running, each read in full."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def read(self, watched: Iterable[str]) -> tuple[UnitState, ...]:
        """Raises ObservationError when systemd cannot be asked."""
        try:
            return await self._read([unit_name(name) for name in watched])
        except (BusUnavailable, BusRefused) as error:
            _unobserved(error)

    async def unit(self, name: str) -> UnitState:
        """One unit. Raises ObservationError."""
        try:
            return await read_unit(self._bus, name)
        except (BusUnavailable, BusRefused) as error:
            _unobserved(error)

    async def _read(self, watched: list[str]) -> tuple[UnitState, ...]:
        (failed,) = await self._bus.call(MANAGER, "ListUnitsFiltered", "as", (["failed"],))
        names = dict.fromkeys(row[0] for row in failed[:_TROUBLED])
        if watched:
            (listed,) = await self._bus.call(MANAGER, "ListUnitsByNames", "as", (watched,))
            # A not-found unit has the name that was asked for; an alias is answered with the unit's own name.
            names |= dict.fromkeys(row[0] for row in listed if row[3] not in _RUNNING)
        return tuple([await read_unit(self._bus, name) for name in names])


def _unobserved(error: BusUnavailable | BusRefused) -> NoReturn:
    raise ObservationError(error.message, error.hint) from error
