"""The catalogue: every action by name, with its arguments, its risk and what it should achieve. [pure]

Adding an action is a row here and an operation of the same name in act/operations/.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final

from ..models import Action, ActionRefused, Issue, nearest, unit_name


class Category(StrEnum):
    SERVICE = "service"
    RESOURCE = "resource"
    SYSTEM = "system"


class Risk(StrEnum):
    REVERSIBLE = "reversible"
    DISRUPTIVE = "disruptive"  # work in progress may be lost
    IRREVERSIBLE = "irreversible"  # what is gone stays gone


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return check


def _word(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", value, re.ASCII):
        raise ValueError("a short word of lower-case letters")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def _mount_point(value: Any) -> str:
    """Chosen among the host's own mounts and never handed to a program: only its shape is checked here."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or len(value) > 4096:
        raise ValueError("an absolute path")
    return value


_UNIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9:_.@\\-]{0,200}\.(service|socket|timer|mount)", re.ASCII)


def valid_unit(value: Any) -> str:
    """A unit's full name, `.service` supplied when no type is said. Raises ValueError.

    fullmatch, because `$` would let a newline pass.
    """
    name = unit_name(value) if isinstance(value, str) else ""
    if not _UNIT.fullmatch(name) or "@." in name:  # a bare template is no unit
        raise ValueError("the name of a service, socket, timer or mount unit")
    return name


@dataclass(frozen=True, slots=True)
class Argument:
    check: Callable[[Any], Any]
    required: bool = False


@dataclass(frozen=True, slots=True)
class Spec:
    """A row of the catalogue. `auto`: the engine may take it by itself; otherwise it asks a person first.

    `deadline_s` is by when the effect must show, counted from the end of the act.
    """

    name: str
    category: Category
    risk: Risk
    auto: bool
    deadline_s: float
    effect: str
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    timeout_s: float = 60.0


_SERVICE: Final = {"service": Argument(valid_unit, required=True)}

OBSERVE: Final = "observe"

CATALOGUE: Final[Mapping[str, Spec]] = MappingProxyType({
    spec.name: spec
    for spec in (
        Spec(OBSERVE, Category.SYSTEM, Risk.REVERSIBLE, True, 0.0, "none: nothing is known to help safely"),
        Spec("restart_service", Category.SERVICE, Risk.DISRUPTIVE, True, 30.0,
             "the unit is active and stays so", _SERVICE, 120.0),
        Spec("reload_service", Category.SERVICE, Risk.REVERSIBLE, True, 10.0,
             "the unit stays active with its configuration read again", _SERVICE),
        Spec("start_unit", Category.SERVICE, Risk.REVERSIBLE, True, 30.0,
             "the unit is active and stays so", {"unit": Argument(valid_unit, required=True)}, 120.0),
        Spec("clear_system_cache", Category.RESOURCE, Risk.REVERSIBLE, True, 5.0,
             "memory in use falls below the threshold",
             {"drop_caches": Argument(_flag), "bytes": Argument(_integer(1 << 20, 1 << 40))}),
        Spec("adjust_swappiness", Category.RESOURCE, Risk.REVERSIBLE, True, 60.0,
             "the kernel prefers the wanted side of swap and page cache",
             {"value": Argument(_integer(0, 200), required=True)}),
        Spec("set_cpu_governor", Category.RESOURCE, Risk.REVERSIBLE, True, 30.0,
             "CPU use falls below the threshold, because the CPU is no longer held down",
             {"governor": Argument(_word)}),
        Spec("clean_nix_store", Category.RESOURCE, Risk.IRREVERSIBLE, True, 10.0,
             "disk use falls below the threshold by collecting dead store paths",
             {"filesystem": Argument(_mount_point), "max_freed_bytes": Argument(_integer(1 << 20, 1 << 44))}, 1800.0),
        Spec("vacuum_journal", Category.RESOURCE, Risk.IRREVERSIBLE, True, 10.0,
             "disk use falls below the threshold by dropping the oldest journal files",
             {"filesystem": Argument(_mount_point), "keep_bytes": Argument(_integer(16 << 20, 1 << 44))}),
        Spec("kill_process", Category.RESOURCE, Risk.IRREVERSIBLE, False, 15.0,
             "the process is gone and what it held is free",
             {"pid": Argument(_integer(2, 1 << 22), required=True),
              "start_time": Argument(_integer(0, 1 << 62), required=True)}),
        Spec("rollback_generation", Category.SYSTEM, Risk.IRREVERSIBLE, False, 120.0,
             "the system runs the generation before this one",
             {"generation": Argument(_integer(1, 999_999_999))}, 600.0),
    )
})  # fmt: skip

# Never touched by any action: without these nobody can look, log in or decide.
PROTECTED: Final = (
    "init.scope", "systemd-*", "dbus*", "polkit*", "ssh.service", "sshd*", "ssh@*", "display-manager*",
    "gdm*", "sddm*", "lightdm*", "user@*", "user-runtime-dir@*", "getty@*", "serial-getty@*", "console-getty*",
    "NetworkManager*", "wpa_supplicant*", "iwd*", "dhcpcd*", "networking.service", "luminous-healing*", "-.mount",
)  # fmt: skip


def protected(unit: str) -> bool:
    """Whether the unit's name is in the protected set."""
    return any(fnmatchcase(unit, pattern) for pattern in PROTECTED)


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
    """What an act works on, whatever the issue is called: the unit, the filesystem, or the component."""
    mount = arguments.get("filesystem") or issue.metrics.get("mount")
    unit = arguments.get("service") or arguments.get("unit")
    return str(unit or (f"disk:{mount}" if mount else issue.component))
