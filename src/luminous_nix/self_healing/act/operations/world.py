"""What an operation may look at, and what several of them ask."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ...bus import Bus, BusRefused, BusUnavailable, target
from ...models import ActionRefused, ObservationError, Roots
from ...observe.host import switch_in_progress
from ...observe.systemd import MANAGER, SYSTEMD
from ...process import find
from ..steps import Plan

MIB: Final = 1 << 20


@dataclass(frozen=True)
class World:
    """What an operation may look at."""

    bus: Bus
    roots: Roots = field(default_factory=Roots)
    clock: Callable[[], float] = time.monotonic
    finder: Callable[[str], str | None] = find
    wall: Callable[[], float] = time.time  # only for the age of what carries a date, such as a generation
    rooted: bool = False  # whoever carries the steps out can write what only root may


Operation = Callable[[World, Mapping[str, Any]], Awaitable[Plan]]


def read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ActionRefused(f"{path} cannot be read: {error.strerror}", "this kernel may not have it") from error


async def properties(world: World, unit: str, *interfaces: str) -> dict[str, Any]:
    """A unit's properties as systemd tells them (`Unit`, `Service`, `Timer`), variants unpacked.

    Raises ActionRefused when systemd cannot be asked.
    """
    found: dict[str, Any] = {}
    try:
        (path,) = await world.bus.call(MANAGER, "LoadUnit", "s", (unit,))
        at = target(path, "org.freedesktop.DBus.Properties", SYSTEMD)
        for interface in interfaces:
            (told,) = await world.bus.call(at, "GetAll", "s", (f"{SYSTEMD}.{interface}",))
            found |= {name: value for name, (_, value) in told.items()}
    except (BusUnavailable, BusRefused) as error:
        raise ActionRefused(f"{unit} cannot be looked at: {error.message}", error.hint, passing=True) from error
    return found


def no_switch(world: World) -> None:
    """Raises ActionRefused while a switch of the system's generation is in progress, or when that is unknown."""
    try:
        held = switch_in_progress(world.roots)
    except ObservationError as error:
        raise ActionRefused(error.message, passing=True) from error
    if held:
        why = "a switch of the system's generation is in progress"
        raise ActionRefused(why, "look again when it is done", passing=True)
