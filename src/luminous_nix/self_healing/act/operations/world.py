"""What an operation may look at, and what several of them ask."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ...bus import Bus
from ...models import ActionRefused, Roots
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


Operation = Callable[[World, Mapping[str, Any]], Awaitable[Plan]]


def read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ActionRefused(f"{path} cannot be read: {error.strerror}", "this kernel may not have it") from error


def no_switch(world: World) -> None:
    """switch-to-configuration holds its lock with flock(2); /proc/locks names the holder's inode."""
    lock = world.roots.run / "nixos/switch-to-configuration.lock"
    try:
        if not lock.exists():
            return
        inode = lock.stat().st_ino
        held = any(line.split()[5].endswith(f":{inode}") for line in read(world.roots.proc / "locks").splitlines())
    except (OSError, IndexError) as error:
        raise ActionRefused(f"whether a switch is in progress is unknown: {error}") from error
    if held:
        raise ActionRefused("a switch of the system's generation is in progress", "look again when it is done")
