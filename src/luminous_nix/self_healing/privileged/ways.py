"""What SERVICE mode can do, and how: each act unit with its one power, each action with its way there. [pure]

The units, the polkit rule and the program that runs in an act unit are all made from the tables here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from ..decide.actions import CATALOGUE, PLUGIN

PREFIX: Final = "luminous-healing-act-"
# Patterns are read by Python and by polkit's JavaScript, so they keep to what both understand alike.
UNIT_PATTERN: Final = r"[A-Za-z0-9_][A-Za-z0-9:_.@\\-]{0,200}\.service"
_LONGEST_NAME: Final = 255  # of a unit, unit-name.h
_NUMBER: Final = "[1-9][0-9]{0,8}"
_BYTES: Final = "[1-9][0-9]{6,13}"


@dataclass(frozen=True, slots=True)
class Power:
    """One act unit. `instance` is what may follow the @, None for a unit without; `unit` names its group that must
    be an allowed unit.

    `writes` are the only paths that it may change. `root` : it is root with all that this means, because what it
    runs is the system's own switch or a program of the administrator's. `daemon`: it asks the Nix daemon, as a
    user that exists only for it. `capabilities` are kept, none otherwise.
    """

    name: str
    does: str
    instance: str | None = None
    writes: tuple[str, ...] = ()
    root: bool = False
    daemon: bool = False
    capabilities: tuple[str, ...] = ()
    timeout_s: float = 60.0
    allowed: bool = False  # the instance is, or begins with, a unit that must be an allowed one
    sockets: bool = False  # it needs AF_UNIX

    def unit(self, instance: str = "") -> str:
        return f"{PREFIX}{self.name}" + (f"@{instance}" if self.instance is not None else "") + ".service"


POWERS: Final[Mapping[str, Power]] = MappingProxyType({
    power.name: power
    for power in (
        Power("swappiness", "set vm.swappiness", "[0-9]|[1-9][0-9]|1[0-9][0-9]|200", ("/proc/sys/vm/swappiness",)),
        Power("governor", "set the governor of one CPU frequency policy",
              "policy[0-9]{1,4}:[a-z][a-z0-9_-]{0,31}", ("/sys/devices/system/cpu",)),
        Power("reclaim", "reclaim idle memory of one service", f"{UNIT_PATTERN}:{_BYTES}", ("/sys/fs/cgroup",),
              allowed=True),
        Power("freeze", "let the processes of one service stand still", UNIT_PATTERN, ("/sys/fs/cgroup",),
              allowed=True),
        Power("thaw", "let them run again", UNIT_PATTERN, ("/sys/fs/cgroup",), allowed=True),
        Power("dropcaches", "drop the page cache", None, ("/proc/sys/vm/drop_caches",)),
        Power("journal", "drop the oldest files of the journal", _BYTES,
              ("/var/log/journal", "/run/log/journal"), sockets=True),
        Power("tmpfiles", "remove temporary files that are due", None, ("/tmp", "/var/tmp"), timeout_s=180.0),  # noqa: S108
        Power("gc", "collect dead store paths up to a bound", _BYTES, daemon=True, timeout_s=1860.0),
        Power("optimise", "let equal files of the store share one copy", None, daemon=True, timeout_s=7260.0),
        Power("generations", "delete generations by number", f"{_NUMBER}(?:-{_NUMBER}){{0,15}}",
              ("/nix/var/nix/profiles",)),
        Power("boot", "write the boot entries of the current generation", root=True, timeout_s=660.0),
        Power("rebuild", "activate the current generation once more", root=True, timeout_s=660.0),
        Power("rollback", "switch to a generation that is known to be good", _NUMBER, root=True, timeout_s=1500.0),
        Power("plugin", "run one program of the administrator's", "[a-z][a-z0-9_-]{0,31}", root=True,
              timeout_s=90.0),
    )
})  # fmt: skip


def power_of(unit: str) -> tuple[Power, str] | None:
    """The power and the instance of an act unit's name, None when it is none."""
    if not unit.startswith(PREFIX) or not unit.endswith(".service") or len(unit) > _LONGEST_NAME:
        return None
    name, at, instance = unit.removeprefix(PREFIX).removesuffix(".service").partition("@")
    power = POWERS.get(name)
    if power is None or (power.instance is None) is bool(at):
        return None
    if power.instance is not None and not re.fullmatch(power.instance, instance, re.ASCII):
        return None
    return power, instance


_BUS: Final = "systemd over D-Bus, which asks polkit"

# Action → its way in SERVICE mode, in words. No row: it has none, and is only proposed.
WAYS: Final[Mapping[str, str]] = MappingProxyType({
    "observe": "nothing is done",
    "restart_service": _BUS,
    "reload_service": _BUS,
    "start_unit": _BUS,
    "rerun_timer": _BUS,
    "limit_unit": _BUS,
    "freeze_unit": "act unit freeze@",
    "thaw_unit": "act unit thaw@",
    "clear_system_cache": "act units reclaim@, dropcaches",
    "free_memory": "act units reclaim@; " + _BUS,
    "adjust_swappiness": "act unit swappiness@",
    "set_cpu_governor": "act unit governor@",
    "clean_nix_store": "act unit gc@, through the Nix daemon and without privilege",
    "optimize_store": "act unit optimise, through the Nix daemon and without privilege",
    "vacuum_journal": "act unit journal@",
    "clean_disk": "act units journal@, tmpfiles",
    "kill_process": "the helper itself (CAP_KILL)",
    "restart_network": "systemd-resolved over D-Bus, which asks polkit",
    "rebuild_system": "act unit rebuild",
    "prune_generations": "act units generations@, boot",
    "rollback_generation": "act unit rollback@",
    "run_plugin": "act unit plugin@",
})  # fmt: skip

# No field of a request is a path or free text. What these say is looked at before the helper is asked. And a plugin
# is run for whatever it is for: a unit that is named beside it would only choose which rule covers it.
_NOT_ASKED: Final = frozenset({"filesystem", "issue", "parameters"})
_NOT_OF_A_PLUGIN: Final = frozenset({"unit"})


def asked(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an action as the helper takes them."""
    return {key: value for key, value in arguments.items() if key not in _left_out(name)}


def taken(name: str, arguments: Mapping[str, Any]) -> bool:
    """Whether the helper takes an action with these arguments at all."""
    return name in CATALOGUE and name in WAYS and not _left_out(name) & arguments.keys()


def _left_out(name: str) -> frozenset[str]:
    return _NOT_ASKED | _NOT_OF_A_PLUGIN if name == PLUGIN else _NOT_ASKED
