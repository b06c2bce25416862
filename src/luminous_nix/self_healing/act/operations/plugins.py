"""Remedies of the administrator's own: programs in one folder that only root can change.

A plugin gets no argument and JSON on standard input. It exits with 0 when it did its work, 1 when it could
not, and 2 when it refused. Whatever it says, the run counts against the limits.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from ...decide.actions import protected
from ...decide.grammar import word
from ...models import ActionRefused, Roots
from ..steps import Plan, RunProgram
from .world import World

_SCHEMA: Final = 1
_TIMEOUT_S: Final = 60.0
_REFUSED: Final = 2


def find_plugin(roots: Roots, name: str) -> Path:
    """The plugin's file. Raises ActionRefused when there is none, or somebody but root could have put it there."""
    try:
        path = roots.plugins / word(name)
    except ValueError as error:
        raise ActionRefused(f"{name!r:.80} is no name of a plugin", f"it is {error}") from None
    _only_roots(roots.plugins, stat.S_ISDIR, "a folder")
    mode = _only_roots(path, stat.S_ISREG, "a regular file")
    if not mode & stat.S_IXUSR:
        raise ActionRefused(f"{path} is not executable", f"chmod 0755 {path}")
    return path


def has_plugin(roots: Roots, name: str) -> bool:
    try:
        find_plugin(roots, name)
    except ActionRefused:
        return False
    return True


def _only_roots(path: Path, right: Any, what: str) -> int:
    """The file's mode. lstat(2): a link would hand the choice to whoever can change where it leads."""
    try:
        at = os.lstat(path)
    except OSError as error:
        raise ActionRefused(f"there is no plugin {path}: {error.strerror}") from error
    if not right(at.st_mode):
        raise ActionRefused(f"{path} is not {what}", "a link is not followed")
    if at.st_uid != 0 or at.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ActionRefused(f"{path} can be changed by others than root", f"chown root {path}; chmod go-w {path}")
    return at.st_mode


async def run_plugin(world: World, arguments: Mapping[str, Any]) -> Plan:
    """The program, with the trouble told on its standard input."""
    unit = arguments.get("unit")
    if unit and protected(unit):
        raise ActionRefused(f"{unit} is in the protected set", "it is never touched, so look at it yourself")
    path = find_plugin(world.roots, arguments["name"])
    told = {"schema": _SCHEMA, "issue": arguments.get("issue", {}), "dry_run": False}
    told |= {key: arguments[key] for key in ("unit", "parameters") if key in arguments}
    step = RunProgram((str(path),), _TIMEOUT_S, stdin=json.dumps(told), refused_exit=_REFUSED,
                      power=f"plugin@{arguments['name']}")  # fmt: skip
    return Plan((f"{path} is root's, and only root can change it",), (step,))
