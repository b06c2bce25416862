"""Which unit is the cause, with figures. Looked for only while an issue is open, and bounded."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import NamedTuple

from ..decide.actions import protected
from ..models import Roots

log = logging.getLogger(__name__)

_MOST = 512  # services looked at
_SHARE = 0.2  # of the host's memory that a culprit holds at least
_AHEAD = 2.0  # times as much as the next one


class Culprit(NamedTuple):
    unit: str
    size: int  # bytes of memory that cannot be given back without swap


def cgroup_root(roots: Roots) -> Path | None:
    """The cgroup v2 tree, alone or beside v1."""
    places = ("fs/cgroup", "fs/cgroup/unified")
    return next((roots.sys / at for at in places if os.access(f"{roots.sys}/{at}/cgroup.controllers", os.F_OK)), None)


class Cgroups:
    """Where that tree is. Once found it is remembered: nothing moves it while a host is up."""

    def __init__(self, roots: Roots) -> None:
        self._roots = roots
        self._root: Path | None = None

    def root(self) -> Path | None:
        self._root = self._root or cgroup_root(self._roots)
        return self._root


def memory_culprit(roots: Roots, total: int | None = None, root: Path | None = None) -> Culprit | None:
    """The service that holds a fifth of the memory at least, and twice what the next one holds; None when no
    single one stands out, or it is protected. `total` is the host's memory in bytes and `root` that of the cgroups;
    None reads the one where any service is there to be held against it, and looks for the other."""
    root = root or cgroup_root(roots)
    sizes = sorted(_sizes(root / "system.slice"), reverse=True) if root else []
    if not sizes:
        return None
    size, unit = sizes[0]
    total = memory_total(roots) if total is None else total
    if size < _SHARE * total or (len(sizes) > 1 and size < _AHEAD * sizes[1][0]) or protected(unit):
        return None
    return Culprit(unit, size)


def _sizes(directory: Path) -> list[tuple[int, str]]:
    """(anonymous bytes, unit) of each service, from memory.stat (cgroup-v2.rst)."""
    found = []
    try:
        names = [entry.name for entry in os.scandir(directory) if entry.name.endswith(".service")][:_MOST]
    except OSError:  # no cgroup v2, or it is not for us to see: then nobody is named
        return []
    for name in names:
        try:
            first = (directory / name / "memory.stat").read_text("ascii").partition("\n")[0].split()
        except OSError:  # the unit ended while we looked, or has no memory controller
            continue
        if len(first) == 2 and first[0] == "anon" and first[1].isdigit():
            found.append((int(first[1]), name))
    return found


def memory_total(roots: Roots) -> int:
    """MemTotal in bytes; so large that nothing has a share of it when it cannot be read."""
    try:
        first = (roots.proc / "meminfo").read_text("ascii").partition("\n")[0].split()
        return int(first[1]) << 10
    except (OSError, ValueError, IndexError) as error:
        log.debug("MemTotal could not be read: %s", error)
        return 1 << 80
