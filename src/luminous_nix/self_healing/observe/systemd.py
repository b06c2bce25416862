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
from ..decide.actions import valid_unit
from ..models import ActionFailed, ObservationError, Roots, UnitState
from ..privileged.ways import PREFIX
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
        restart_prevented=_prevented(typed),
        aliases=tuple(map(str, unit.get("Names", ()))),
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


async def relations(bus: Bus, name: str, *kinds: str) -> dict[str, str]:
    """The units that `name` names in these properties (`Conflicts`, `Requires`, …), each with its ActiveState.

    Raises BusUnavailable, BusRefused.
    """
    (path,) = await bus.call(MANAGER, "LoadUnit", "s", (name,))
    unit = await _properties(bus, path, "Unit")
    named = [other for kind in kinds for other in unit.get(kind, ())]
    if not named:
        return {}
    (listed,) = await bus.call(MANAGER, "ListUnitsByNames", "as", (named,))
    return {row[0]: row[3] for row in listed}


class SystemdSensor:
    """Units that failed, and watched units that are not running, each read in full."""

    def __init__(self, bus: Bus, roots: Roots) -> None:
        self._bus = bus
        self._roots = roots

    async def read(self, watched: Iterable[str]) -> tuple[tuple[UnitState, ...], str, dict[str, str]]:
        """(the units, why systemd could not be asked at all, why single watched units cannot be told)."""
        if why := self._bus.out_of_reach:
            return (), why, {}
        names, unclear = _valid(watched)
        known: list[UnitState] = []
        try:
            units = [await read_unit(self._bus, name) for name in await self._suspects(names)]
        except (BusUnavailable, BusRefused) as error:
            return (), error.message, unclear
        for unit in units:
            if unit.load == "not-found":
                unclear[unit.name] = "there is no such unit"
            try:
                known.append(await self._remembered(unit))
            except ObservationError as error:
                unclear[unit.name] = error.message
        return tuple(known), "", unclear

    async def unit(self, name: str) -> UnitState:
        """One unit, and how it ended if it is down. Raises ObservationError."""
        try:
            return await self._remembered(await read_unit(self._bus, name))
        except (BusUnavailable, BusRefused) as error:
            raise ObservationError(error.message, error.hint) from error

    async def _suspects(self, watched: Iterable[str]) -> Iterable[str]:
        (failed,) = await self._bus.call(MANAGER, "ListUnitsFiltered", "as", (["failed"],))
        # A failed act of ours is told by its heal; as an issue it would keep others from being healed.
        names = dict.fromkeys(row[0] for row in failed[:_TROUBLED] if not row[0].startswith(PREFIX))
        if asked := list(watched):
            (listed,) = await self._bus.call(MANAGER, "ListUnitsByNames", "as", (asked,))
            # A not-found unit has the name that was asked for; an alias is answered with the unit's own name.
            names |= dict.fromkeys(row[0] for row in listed if row[3] not in _RUNNING)
        return names

    async def _remembered(self, unit: UnitState) -> UnitState:
        """Where the times do not prove how it ended (a failed start, a timeout, no main process, a unit that
        systemd has forgotten because nothing refers to it), PID 1's lines in the journal tell."""
        down = unit.load == "loaded" and unit.active in {"failed", "inactive"}
        if not down or unit.ended_itself or unit.stopped_on_purpose:
            return unit
        try:
            return replace(unit, ended_by=await how_it_ended(unit.name, self._roots))
        except ObservationError:
            if unit.active == "failed":
                return replace(unit, ended_by="unknown")
            raise


# Message ids of PID 1 (systemd's catalogue) that tell how a unit came and went. All others, such as what
# it says while a unit file is read again, mean nothing here.
_MEANING: Final = {
    "7d4958e842da4a758f6c1cdc7b36dcc5": "start",  # starting
    "39f53479d3a045ac8e11786248231fbf": "start",  # started
    "de5b426a63be47a7b6ac3eaac82e2f6f": "stop",  # stopping
    "9d1aaa27d60140bd96365438aad20286": "stop",  # stopped
    "7ad2d189f7e94e70a38c781354912448": "end",  # deactivated successfully
    "d9b373ed55a64feb8242e02dbe79a49c": "end",  # failed with result
}


def _valid(watched: Iterable[str]) -> tuple[list[str], dict[str, str]]:
    """The watched names that can be names of units, and a word about each that cannot."""
    names: list[str] = []
    unclear: dict[str, str] = {}
    for name in watched:
        try:
            names.append(valid_unit(name))
        except ValueError as error:
            unclear[str(name)] = f"not {error}"
    return names, unclear


def _prevented(typed: Mapping[str, Any]) -> bool:
    statuses, signals = typed.get("RestartPreventExitStatus", ([], []))
    code, status = int(typed.get("ExecMainCode", 0)), int(typed.get("ExecMainStatus", 0))
    return (code == 1 and status in statuses) or (code in {2, 3} and status in signals)


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
    argv = ("journalctl", "-q", "-b", "-o", "json", "-n", "8", "--no-pager", "--output-fields=MESSAGE_ID,JOB_TYPE",
            "_PID=1", f"UNIT={name}", *(f"MESSAGE_ID={known}" for known in _MEANING))  # fmt: skip
    try:
        done = await run(argv, timeout=10.0)
        if done.returncode != 0:
            raise ObservationError(f"{unclear}: {done.last_words:.200}")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        return ending((str(line.get("MESSAGE_ID", "")), str(line.get("JOB_TYPE", ""))) for line in lines)
    except (ActionFailed, ValueError) as error:
        raise ObservationError(f"{unclear}: {error}") from error


def ending(lines: Iterable[tuple[str, str]]) -> str:
    """(message id, type of the job) of PID 1's lines about a unit, oldest first → stop, itself or never.

    The stop that belongs to a restart has the job type `restart`.
    """
    told = "never"
    for message_id, job in lines:
        meaning = _MEANING.get(message_id, "")
        if meaning == "stop" and job == "stop":
            told = "stop"
        elif meaning == "start" or (meaning == "end" and told != "stop"):
            told = "itself"
    return told
