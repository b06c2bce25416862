"""The system as a whole: may anything be changed now? A switch, a shutdown, a sleep under way say no (I-13)."""

from __future__ import annotations

import os
import time
from typing import Any, Final

from ..bus import Bus, BusRefused, BusUnavailable, target
from ..models import HostState, ObservationError, Roots
from .systemd import MANAGER, SYSTEMD

_LOGIND: Final = "org.freedesktop.login1"
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_MANAGER_PROPERTIES: Final = target("/org/freedesktop/systemd1", _PROPERTIES, SYSTEMD)
_LOGIND_PROPERTIES: Final = target("/org/freedesktop/login1", _PROPERTIES, _LOGIND)
_UNSETTLED: Final = frozenset({"initializing", "starting", "stopping", "maintenance", "offline"})
# What changes the system's generation while it is active: our own reactivation is not among them.
_UPDATERS: Final = (
    "nixos-upgrade.service", "nixos-rebuild-switch-to-configuration.service", "apt-daily-upgrade.service",
    "packagekit-offline-update.service",
)  # fmt: skip
_COMING: Final = (
    ("PreparingForShutdown", "the host is shutting down"),
    ("PreparingForSleep", "it is going to sleep"),
)


def boot_clock() -> float:
    """Seconds since boot, suspend included; no wall-clock jump touches it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def time_asleep() -> float:
    """Seconds that the host has spent suspended since it came up."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


def switch_in_progress(roots: Roots) -> bool:
    """switch-to-configuration holds its lock with flock(2); /proc/locks names the holder's inode (proc(5)).

    Raises ObservationError.
    """
    try:
        try:
            inode = os.stat(f"{roots.run}/nixos/switch-to-configuration.lock").st_ino  # noqa: PTH116  asked often
        except (FileNotFoundError, NotADirectoryError):  # not NixOS, or it never switched since it came up
            return False
        lines = (roots.proc / "locks").read_text().splitlines()
        return any(line.split()[5].endswith(f":{inode}") for line in lines)
    except (OSError, IndexError) as error:
        why = f"{error.filename} cannot be read: {error.strerror}" if isinstance(error, OSError) else str(error)
        raise ObservationError(f"whether a switch is in progress is unknown: {why}") from error


async def read_host(bus: Bus, roots: Roots) -> HostState:
    """It raises nothing: what cannot be told is in `unknown`."""
    try:
        if switch_in_progress(roots):
            return HostState("switching", "a switch of the system's generation is in progress")
    except ObservationError as error:
        return HostState("unknown", error.message)
    if why := bus.out_of_reach:
        return HostState("unknown", unknown=why)
    try:
        state = str(await _property(bus, _MANAGER_PROPERTIES, f"{SYSTEMD}.Manager", "SystemState"))
        if state in _UNSETTLED:
            return HostState(state, f"the system is {state}")
        (listed,) = await bus.call(MANAGER, "ListUnitsByNames", "as", (list(_UPDATERS),))
        if busy := next((row[0] for row in listed if row[3] in {"active", "activating"}), ""):
            return HostState(state, f"{busy} is at work")
        return HostState(state, await _leaving(bus))
    except (BusUnavailable, BusRefused) as error:
        return HostState("unknown", unknown=error.message)


async def _leaving(bus: Bus) -> str:
    """What logind prepares for; a host without logind prepares for nothing."""
    for name, said in _COMING:
        try:
            if await _property(bus, _LOGIND_PROPERTIES, f"{_LOGIND}.Manager", name):
                return said
        except BusRefused as error:
            if "ServiceUnknown" in error.name or "NoSuchUnit" in error.name or "NameHasNoOwner" in error.name:
                return ""
            raise
    return ""


async def _property(bus: Bus, at: Any, interface: str, name: str) -> Any:
    ((_, value),) = await bus.call(at, "Get", "ss", (interface, name))
    return value
