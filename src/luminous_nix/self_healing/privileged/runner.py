"""How the helper has a step carried out: by PID 1, which asks polkit, or by itself where CAP_KILL is enough."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from ..act.runners import DirectRunner
from ..act.steps import AskHelper, EndProcess, ResolverJob, SetProperties, Step, UnitJob
from ..bus import Bus, BusRefused, BusUnavailable, target
from ..models import ActionFailed, NeedsPrivilege, Roots
from ..observe.systemd import MANAGER, SYSTEMD
from .ways import POWERS, power_of

_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_FROZEN: Final = {"FreezeUnit": "freeze", "ThawUnit": "thaw"}
_FORGOTTEN: Final = {"org.freedesktop.DBus.Error.UnknownObject", f"{SYSTEMD}.NoSuchUnit"}
_NOT_LET: Final = "is polkit running? after a change of allowed_units: `luminous-healing install`"
_STARTING_S: Final = 30.0  # polkit is started first, perhaps
_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.2


class ServiceRunner:
    """Restarts and limits over D-Bus, everything else by an act unit. It starts no program and writes no file."""

    def __init__(
        self, bus: Bus, roots: Roots, *, clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:  # fmt: skip
        self._bus, self._clock, self._sleep = bus, clock, sleep
        self._direct = DirectRunner(bus, roots, privileged=False)
        self._begun: set[str] = set()  # act units that were not seen to be done

    async def run(self, step: Step) -> str:
        match step:
            case UnitJob(method, unit) if method in _FROZEN:
                return await self._act(f"{_FROZEN[method]}@{unit}")
            # polkit allows `start` for our own units alone; what is down is started by a restart, too
            case UnitJob("StartUnit", _):
                return await self._by_itself(replace(step, method="RestartUnit"))
            case UnitJob() | SetProperties() | ResolverJob() | EndProcess():
                return await self._by_itself(step)
            case AskHelper():
                raise NeedsPrivilege("the helper asks nobody")
        if not step.power:
            raise NeedsPrivilege("this has no way in SERVICE mode", "a person can do it as root")
        return await self._act(step.power)

    async def _by_itself(self, step: Step) -> str:
        try:
            return await self._direct.run(step)
        except NeedsPrivilege as error:
            raise NeedsPrivilege(error.message, error.hint or _NOT_LET) from error

    async def _act(self, power: str) -> str:
        """Start the act unit and wait until it is done. Raises NeedsPrivilege, ActionFailed."""
        name, _, instance = power.partition("@")
        unit = POWERS[name].unit(instance)
        if power_of(unit) is None:
            raise ActionFailed(f"{unit!r:.200} is no act unit")
        self._begun.add(unit)
        try:
            await self._bus.call(MANAGER, "StartUnit", "ss", (unit, "fail"), within=_STARTING_S)
            return await self._done(unit, self._clock() + POWERS[name].timeout_s)
        except asyncio.CancelledError:
            if not POWERS[name].root:  # the system's own switch is never ended half way
                await self._stop(unit)
            raise
        except BusRefused as error:
            if error.access_denied:
                raise NeedsPrivilege(f"{unit} may not be started: {error.message}",
                                     _NOT_LET) from error  # fmt: skip
            raise ActionFailed(f"{unit}: {error.message}") from error
        except BusUnavailable as error:
            raise ActionFailed(f"{unit}: {error.message}", error.hint) from error

    async def _done(self, unit: str, until: float) -> str:
        """A one-shot unit that ended well is forgotten by systemd: one that is inactive and has no job is done."""
        pause = _FIRST_PAUSE_S
        (path,) = await self._bus.call(MANAGER, "LoadUnit", "s", (unit,))
        while True:
            await self._sleep(pause)
            told = await self._told(path, "Unit")
            if not told.get("Job", (0, ""))[0] and told.get("ActiveState") in {"inactive", "failed"}:
                break
            if self._clock() >= until:
                raise ActionFailed(f"{unit} is not done yet", f"systemctl status {unit}")
            pause = min(pause * 2, _LONGEST_PAUSE_S)
        self._begun.discard(unit)
        if told["ActiveState"] == "failed":
            how = await self._told(path, "Service")
            await self._forget(unit)
            raise ActionFailed(f"{unit} ended with {how.get('Result', '?')}, status {how.get('ExecMainStatus', '?')}",
                               f"journalctl -u {unit}")  # fmt: skip
        return f"{unit} did it"

    async def running(self) -> str:
        """An act unit that was begun and is not done yet, because nobody waited for its end; else empty."""
        for unit in sorted(self._begun):
            try:
                (path,) = await self._bus.call(MANAGER, "LoadUnit", "s", (unit,))
                told = await self._told(path, "Unit")
            except (BusRefused, BusUnavailable):
                return unit
            if told.get("Job", (0, ""))[0] or told.get("ActiveState") not in {"inactive", "failed"}:
                return unit
            self._begun.discard(unit)
        return ""

    async def _stop(self, unit: str) -> None:
        with contextlib.suppress(BusRefused, BusUnavailable):  # what then still runs keeps the next one waiting
            await self._bus.call(MANAGER, "StopUnit", "ss", (unit, "replace"))

    async def _forget(self, unit: str) -> None:
        """Its failure is told: what stays failed would be an issue of the host's."""
        with contextlib.suppress(BusRefused, BusUnavailable):
            await self._bus.call(MANAGER, "ResetFailedUnit", "s", (unit,))

    async def _told(self, path: str, interface: str) -> Mapping[str, Any]:
        """Nothing when the look was refused: systemd may be executing itself anew, and what runs goes on."""
        at = target(path, _PROPERTIES, SYSTEMD)
        try:
            (told,) = await self._bus.call(at, "GetAll", "s", (f"{SYSTEMD}.{interface}",))
        except BusRefused as error:
            return {"ActiveState": "inactive"} if error.name in _FORGOTTEN else {}
        return {name: value for name, (_, value) in told.items()}
