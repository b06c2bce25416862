"""Unit states over D-Bus (org.freedesktop.systemd1), never by parsing what systemctl prints.

One call lists what failed, one asks for the watched units; only units that look wrong are read in full.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from ..bus import Bus, BusRefused, BusUnavailable, target
from ..models import ActionFailed, ObservationError, Roots, UnitState, unit_name
from ..process import run

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
        start_limit_burst=int(unit.get("StartLimitBurst", 0)),
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

    def __init__(self, bus: Bus, roots: Roots) -> None:
        self._bus = bus
        self._roots = roots

    async def read(self, watched: Iterable[str]) -> tuple[tuple[UnitState, ...], str]:
        """The units, and what could not be told about them or some of them; empty when all is known."""
        if why := self._bus.out_of_reach:
            return (), why
        try:
            units = [await read_unit(self._bus, name) for name in await self._suspects(watched)]
        except (BusUnavailable, BusRefused) as error:
            return (), error.message
        known, unclear = [], ""
        for unit in units:
            if unit.load == "not-found":
                unclear = f"there is no unit {unit.name}"
            try:
                known.append(await self._remembered(unit))
            except ObservationError as error:
                unclear = error.message
        return tuple(known), unclear

    async def unit(self, name: str) -> UnitState:
        """One unit. Raises ObservationError."""
        try:
            return await read_unit(self._bus, name)
        except (BusUnavailable, BusRefused) as error:
            raise ObservationError(error.message, error.hint) from error

    async def _suspects(self, watched: Iterable[str]) -> Iterable[str]:
        (failed,) = await self._bus.call(MANAGER, "ListUnitsFiltered", "as", (["failed"],))
        names = dict.fromkeys(row[0] for row in failed[:_TROUBLED])
        if asked := [unit_name(name) for name in watched]:
            (listed,) = await self._bus.call(MANAGER, "ListUnitsByNames", "as", (asked,))
            # A not-found unit has the name that was asked for; an alias is answered with the unit's own name.
            names |= dict.fromkeys(row[0] for row in listed if row[3] not in _RUNNING)
        return names

    async def _remembered(self, unit: UnitState) -> UnitState:
        """systemd forgets a unit that ended well and that nothing refers to; the journal still knows why."""
        if unit.load != "loaded" or unit.active != "inactive" or unit.inactive_exit_us:
            return unit
        return replace(unit, ended_by=await how_it_ended(unit.name, self._roots))


# Message ids of PID 1 (systemd's catalogue): a stop job began, or was done; a unit reached `inactive`.
_STOP_IDS: Final = frozenset({"de5b426a63be47a7b6ac3eaac82e2f6f", "9d1aaa27d60140bd96365438aad20286"})
_ENDED_ID: Final = "7ad2d189f7e94e70a38c781354912448"


async def how_it_ended(name: str, roots: Roots) -> str:
    """Why a unit is not running, from what PID 1 wrote to the journal in this boot: stop, itself or never.

    Raises ObservationError when the journal cannot be read (journalctl then shows nothing, without a word).
    """
    unclear = f"why {name} is not running cannot be told"
    journals = (
        file for place in (roots.journal, roots.run / "log/journal") for file in place.glob("*/system.journal")
    )
    if not any(os.access(file, os.R_OK) for file in journals):
        raise ObservationError(f"{unclear}: the journal is not readable", "join the group systemd-journal")
    argv = ("journalctl", "-q", "-b", "-o", "json", "-n", "6", "--no-pager", "--output-fields=MESSAGE_ID", "_PID=1",
            f"UNIT={name}")  # fmt: skip
    try:
        done = await run(argv, timeout=10.0)
        if done.returncode != 0:
            raise ObservationError(f"{unclear}: {done.last_words:.200}")
        return ending([str(json.loads(line).get("MESSAGE_ID", "")) for line in done.stdout.splitlines()])
    except (ActionFailed, ValueError) as error:
        raise ObservationError(f"{unclear}: {error}") from error


def ending(message_ids: Iterable[str]) -> str:
    """The last of PID 1's messages about a unit, oldest first → stop, itself or never."""
    told = "never"
    for message_id in message_ids:
        if message_id in _STOP_IDS:
            told = "stop"
        elif message_id == _ENDED_ID:
            told = "stop" if told == "stop" else "itself"
        elif message_id:
            told = "never" if told == "never" else "itself"  # it was started again since
    return told
