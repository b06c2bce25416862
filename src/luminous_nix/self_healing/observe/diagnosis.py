"""Which unit is the cause, with figures. Looked for only while an issue is open, and bounded."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..decide.actions import protected
from ..models import Roots

_MOST = 512  # services looked at
_SHARE = 0.2  # of the host's memory that a culprit holds at least
_AHEAD = 2.0  # times as much as the next one


class Culprit(NamedTuple):
    unit: str
    size: int  # bytes of memory that cannot be given back without swap


def cgroup_root(roots: Roots) -> Path | None:
    """The cgroup v2 tree, alone or beside v1."""
    root = roots.sys / "fs/cgroup"
    return next((at for at in (root, root / "unified") if (at / "cgroup.controllers").exists()), None)


def memory_culprit(roots: Roots, total: int) -> Culprit | None:
    """The service that holds a fifth of the memory at least, and twice what the next one holds; None when no
    single one stands out, or it is protected. `total` is the host's memory in bytes."""
    root = cgroup_root(roots)
    sizes = sorted(_sizes(root / "system.slice"), reverse=True) if root else []
    if not sizes:
        return None
    size, unit = sizes[0]
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
