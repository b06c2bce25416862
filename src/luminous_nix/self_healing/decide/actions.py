"""The catalogue: every action by name, with its arguments, its risk and what it should achieve. [pure]

Adding an action is a row here and an operation of the same name in act/operations/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import translate
from types import MappingProxyType
from typing import Any, Final

from ..models import Action, ActionRefused, Issue, nearest
from .grammar import Argument, flag, integer, mapping, mount_point, valid_unit, word

__all__ = ["CATALOGUE", "OBSERVE", "PROTECTED", "Category", "Risk", "Spec", "protected", "specify", "target_of",
           "valid_unit"]  # fmt: skip


class Category(StrEnum):
    SERVICE = "service"
    RESOURCE = "resource"
    SYSTEM = "system"


class Risk(StrEnum):
    REVERSIBLE = "reversible"
    DISRUPTIVE = "disruptive"  # work in progress may be lost
    IRREVERSIBLE = "irreversible"  # what is gone stays gone


@dataclass(frozen=True, slots=True)
class Spec:
    """A row of the catalogue. `auto`: the engine may take it by itself; otherwise it asks a person first.

    `deadline_s` is by when the effect must show, counted from the end of the act. `asks_with` names the
    arguments whose presence makes a person be asked although the row is `auto`.
    """

    name: str
    category: Category
    risk: Risk
    auto: bool
    deadline_s: float
    effect: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    timeout_s: float = 60.0
    precheck: str = ""
    undo: str = ""
    asks_with: frozenset[str] = frozenset()


OBSERVE: Final = "observe"
PLUGIN: Final = "run_plugin"

_SERVICE: Final = {"service": Argument(valid_unit, required=True)}
_UNIT: Final = {"unit": Argument(valid_unit, required=True)}
_BYTES: Final = Argument(integer(1 << 20, 1 << 44))
_WEIGHT: Final = Argument(integer(1, 10_000))
_FILESYSTEM: Final = {"filesystem": Argument(mount_point)}
_KEEP_BYTES: Final = {"keep_bytes": Argument(integer(16 << 20, 1 << 44))}

_RESTORES: Final = "restores the former value"
_DOWN: Final = "none: it was down before, stopping it is for a person"
_STARTABLE: Final = "it is down, and neither stopped on purpose, masked, in a job nor held in a crash loop"
_RECLAIMABLE: Final = "background services hold idle file cache that the kernel can reclaim"
_RECLAIMED: Final = "none: cache fills again by itself"

CATALOGUE: Final[Mapping[str, Spec]] = MappingProxyType({
    spec.name: spec
    for spec in (
        Spec(OBSERVE, Category.SYSTEM, Risk.REVERSIBLE, True, 0.0, "none: nothing is known to help safely",
             precheck="none", undo="none: nothing is done"),
        # -- services
        Spec("restart_service", Category.SERVICE, Risk.DISRUPTIVE, True, 30.0,
             "the unit is active and stays so",
             {**_SERVICE, "running": Argument(flag), "again": Argument(flag)}, 120.0,
             precheck=_STARTABLE + "; or it was asked for although it runs", undo=_DOWN,
             asks_with=frozenset({"running", "again"})),
        Spec("reload_service", Category.SERVICE, Risk.REVERSIBLE, True, 10.0,
             "the unit stays active with its configuration read again", _SERVICE,
             precheck="it runs and can reload", undo="none: what it read is what is on disk"),
        Spec("start_unit", Category.SERVICE, Risk.REVERSIBLE, True, 30.0,
             "the unit is active and stays so", _UNIT, 120.0, precheck=_STARTABLE, undo=_DOWN),
        Spec("rerun_timer", Category.SERVICE, Risk.REVERSIBLE, True, 60.0,
             "the job of the timer runs and ends well", _UNIT, 600.0,
             precheck="its last run failed, its timer is active; " + _STARTABLE, undo="none: the job ran"),
        Spec("limit_unit", Category.SERVICE, Risk.REVERSIBLE, True, 30.0,
             "the unit takes no more than the limit, and pressure falls",
             {**_UNIT, "memory_high_bytes": _BYTES, "cpu_weight": _WEIGHT, "io_weight": _WEIGHT,
              "cpu_quota_percent": Argument(integer(1, 10_000))},
             precheck="it is a running service, and the limit is tighter than the present one", undo=_RESTORES),
        # Reversible, but a frozen service does not answer: only a person decides that.
        Spec("freeze_unit", Category.SERVICE, Risk.REVERSIBLE, False, 10.0,
             "the unit's processes stand still and take no CPU", _UNIT,
             precheck="it is a running service on cgroup v2, and not frozen", undo=_RESTORES),
        Spec("thaw_unit", Category.SERVICE, Risk.REVERSIBLE, True, 10.0,
             "the unit's processes run again", _UNIT, precheck="it is frozen", undo=_RESTORES),
        # -- resources
        Spec("clear_system_cache", Category.RESOURCE, Risk.REVERSIBLE, True, 5.0,
             "memory in use falls below the threshold",
             {"drop_caches": Argument(flag), "bytes": Argument(integer(1 << 20, 1 << 40))},
             precheck=_RECLAIMABLE, undo=_RECLAIMED, asks_with=frozenset({"drop_caches"})),
        Spec("free_memory", Category.RESOURCE, Risk.REVERSIBLE, False, 30.0,
             "memory in use falls below the threshold: reclaimed first, else the unit is limited",
             {"unit": Argument(valid_unit), "memory_high_bytes": _BYTES,
              "bytes": Argument(integer(1 << 20, 1 << 40))},
             precheck=_RECLAIMABLE + ", or the unit can be limited", undo=_RESTORES + " of a limit"),
        Spec("adjust_swappiness", Category.RESOURCE, Risk.REVERSIBLE, True, 60.0,
             "the kernel prefers the wanted side of swap and page cache",
             {"value": Argument(integer(0, 200), required=True)},
             precheck="it has another value now", undo=_RESTORES),
        Spec("set_cpu_governor", Category.RESOURCE, Risk.REVERSIBLE, True, 30.0,
             "CPU use falls below the threshold, because the CPU is no longer held down",
             {"governor": Argument(word)},
             precheck="a governor holds the CPU down, and no other tool owns the knob", undo=_RESTORES),
        Spec("clean_nix_store", Category.RESOURCE, Risk.IRREVERSIBLE, True, 10.0,
             "disk use falls below the threshold by collecting dead store paths",
             {**_FILESYSTEM, "max_freed_bytes": _BYTES}, 1800.0,
             precheck="the store is on that filesystem, and no switch is in progress",
             undo="none: what is dead can be fetched or built again"),
        Spec("optimize_store", Category.RESOURCE, Risk.REVERSIBLE, False, 10.0,
             "disk use falls, because equal files of the store share one copy", _FILESYSTEM, 7200.0,
             precheck="its filesystem is used to 80 % at most, and no switch is in progress",
             undo="none: the content of the files stays what it is"),
        Spec("vacuum_journal", Category.RESOURCE, Risk.IRREVERSIBLE, True, 10.0,
             "disk use falls below the threshold by dropping the oldest journal files",
             {**_FILESYSTEM, **_KEEP_BYTES},
             precheck="the journal is on that filesystem, and bigger than what is kept",
             undo="none: the oldest entries are gone"),
        Spec("clean_disk", Category.RESOURCE, Risk.IRREVERSIBLE, False, 10.0,
             "disk use falls below the threshold: old journal files, then temporary files that are due",
             {**_FILESYSTEM, **_KEEP_BYTES}, 300.0,
             precheck="the journal or the temporary files are on that filesystem", undo="none: what is old is gone"),
        Spec("kill_process", Category.RESOURCE, Risk.IRREVERSIBLE, False, 15.0,
             "the process is gone and what it held is free",
             {"pid": Argument(integer(2, 1 << 22), required=True),
              "start_time": Argument(integer(0, 1 << 62), required=True)},
             precheck="it is the process that was diagnosed, and neither root's, protected nor young",
             undo="none: a process does not come back"),
        # -- the system
        Spec("restart_network", Category.SYSTEM, Risk.REVERSIBLE, False, 15.0,
             "names resolve again, with no interface touched",
             precheck="systemd-resolved is active", undo="none: what was forgotten is asked again"),
        Spec("rebuild_system", Category.SYSTEM, Risk.DISRUPTIVE, False, 120.0,
             "the running system is what its generation says", {}, 600.0,
             precheck="NixOS runs its current generation, and no switch is in progress",
             undo="none: it is the same generation"),
        Spec("prune_generations", Category.SYSTEM, Risk.IRREVERSIBLE, False, 60.0,
             "old generations and their boot entries are gone", {"keep": Argument(integer(3, 100))}, 600.0,
             precheck="generations lie beyond those booted, current, booted by default, known good and newest",
             undo="none: a deleted generation does not come back"),
        Spec("rollback_generation", Category.SYSTEM, Risk.IRREVERSIBLE, False, 120.0,
             "the system runs a generation that was good",
             {"generation": Argument(integer(1, 999_999_999))}, 600.0,
             precheck="the present generation is younger than a day, the other is known good and needs no reboot",
             undo="none: the generation that was left stays in the store, and a person may switch to it"),
        Spec(PLUGIN, Category.SYSTEM, Risk.DISRUPTIVE, False, 60.0,
             "what the plugin is for",
             {"name": Argument(word, required=True), "unit": Argument(valid_unit),
              "issue": Argument(mapping), "parameters": Argument(mapping)},
             precheck="the plugin is a file that only root can change", undo="none: what it does is its own"),
    )
})  # fmt: skip

# Never touched by any action: without these nobody can look, log in or decide.
PROTECTED: Final = (
    "init.scope", "systemd-*", "dbus*", "polkit*", "ssh.service", "sshd*", "ssh@*", "display-manager*",
    "gdm*", "sddm*", "lightdm*", "user@*", "user-runtime-dir@*", "getty@*", "serial-getty@*", "console-getty*",
    "NetworkManager*", "wpa_supplicant*", "iwd*", "dhcpcd*", "networking.service", "connman*", "ssh.socket",
    "tailscaled*", "wg-quick@*", "wireguard-*", "openvpn*", "zerotier*", "greetd*", "lxdm*", "xdm*", "ly.service",
    "nix-daemon*", "cloud-init*", "luminous-healing*", "-.mount",
)  # fmt: skip

# Started again only with a person's word: they change the system, delete, or touch a filesystem that failed.
ASKS_FIRST: Final = (
    "nixos-upgrade*", "nixos-rebuild*", "nix-gc*", "nix-optimise*", "apt-*", "unattended-upgrades*", "dnf*",
    "packagekit*", "fwupd*", "*scrub*", "*.mount",
)  # fmt: skip


_PROTECTED: Final = re.compile("|".join(map(translate, PROTECTED)))


_ASKS_FIRST: Final = re.compile("|".join(map(translate, ASKS_FIRST)))


def asks_first(unit: str) -> bool:
    """Whether a person is asked before anything is done to the unit."""
    return _ASKS_FIRST.match(unit) is not None


def protected(unit: str) -> bool:
    """Whether the unit's name is in the protected set."""
    return _PROTECTED.match(unit) is not None


def specify(action: Action) -> tuple[Spec, dict[str, Any]]:
    """The action's row and its arguments, checked against the row's grammar.

    Raises ActionRefused for an unknown action, an unknown or missing argument, or a value out of grammar.
    """
    spec = CATALOGUE.get(action.name)
    if spec is None:
        raise ActionRefused(f"there is no action {action.name!r:.80}", nearest(action.name, CATALOGUE))
    checked: dict[str, Any] = {}
    for name, value in action.parameters.items():
        if name not in spec.arguments:
            raise ActionRefused(f"{spec.name} takes no {name!r:.80}", nearest(str(name), spec.arguments))
        try:
            checked[name] = spec.arguments[name].check(value)
        except ValueError as error:
            raise ActionRefused(f"{spec.name}: {name} must be {error}, not {value!r:.120}") from None
    missing = [name for name, argument in spec.arguments.items() if argument.required and name not in checked]
    if missing:
        raise ActionRefused(f"{spec.name} needs {', '.join(missing)}")
    return spec, checked


def target_of(issue: Issue, arguments: Mapping[str, Any]) -> str:
    """What an act works on, whatever the issue is called: the unit, the plugin, the filesystem, or the component."""
    mount = arguments.get("filesystem") or issue.metrics.get("mount")
    unit = arguments.get("service") or arguments.get("unit")
    plugin = arguments.get("name")
    return str(unit or (f"plugin:{plugin}" if plugin else f"disk:{mount}" if mount else issue.component))
