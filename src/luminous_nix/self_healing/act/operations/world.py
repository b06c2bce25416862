"""What an operation may look at, and what several of them ask."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from ...bus import Bus, BusRefused, BusUnavailable, target
from ...models import ActionRefused, ObservationError, Roots
from ...observe.diagnosis import Cgroups
from ...observe.host import switch_in_progress
from ...observe.systemd import MANAGER, SYSTEMD
from ...process import Finder
from ..steps import Plan

MIB: Final = 1 << 20


@dataclass(frozen=True)
class World:
    """What an operation may look at."""

    bus: Bus
    roots: Roots = field(default_factory=Roots)
    clock: Callable[[], float] = time.monotonic
    finder: Callable[[str], str | None] = field(default_factory=Finder)
    wall: Callable[[], float] = time.time  # only for the age of what carries a date, such as a generation
    rooted: bool = False  # whoever carries the steps out can write what only root may

    @cached_property
    def cgroups(self) -> Cgroups:
        return Cgroups(self.roots)


Operation = Callable[[World, Mapping[str, Any]], Awaitable[Plan]]


def read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ActionRefused(f"{path} cannot be read: {error.strerror}", "this kernel may not have it") from error


def names(folder: Path) -> list[str]:
    """What is in a folder; nothing where it is not there, or not for us to see. A third of what glob costs."""
    try:
        return os.listdir(folder)  # noqa: PTH208  as plain and as quick as it gets
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


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
