"""What an action comes to, as values: the steps, the command a person would type for each, the way back."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

UNLIMITED: Final = (1 << 64) - 1  # how systemd says "infinity", and "not set" of a weight

_VERBS: Final = {
    "RestartUnit": "restart",
    "ReloadUnit": "reload",
    "StartUnit": "start",
    "ResetFailedUnit": "reset-failed",
    "FreezeUnit": "freeze",
    "ThawUnit": "thaw",
}


@dataclass(frozen=True, slots=True)
class UnitJob:
    """A method of systemd's manager on one unit, one of those above."""

    method: str
    unit: str

    @property
    def command(self) -> tuple[str, ...]:
        return ("systemctl", _VERBS[self.method], "--", self.unit)


@dataclass(frozen=True, slots=True)
class SetProperties:
    """Properties of a unit, each (name, D-Bus type, value), until the next boot."""

    unit: str
    properties: tuple[tuple[str, str, int], ...]

    @property
    def command(self) -> tuple[str, ...]:
        words = (_assignment(name, value) for name, _, value in self.properties)
        return ("systemctl", "set-property", "--runtime", "--", self.unit, *words)


def _assignment(name: str, value: int) -> str:
    """As systemctl takes it, which says a quota in percent and unsets by an empty value."""
    if name == "CPUQuotaPerSecUSec":
        whole, hundredths = divmod(value // 100, 100)
        part = f".{hundredths:02}" if hundredths else ""
        return "CPUQuota=" + ("" if value == UNLIMITED else f"{whole}{part}%")
    if value == UNLIMITED:
        return name + ("=infinity" if name.startswith("Memory") else "=")
    return f"{name}={value}"


@dataclass(frozen=True, slots=True)
class ResolverJob:
    """A method of systemd-resolved: FlushCaches or ResetServerFeatures."""

    method: str

    @property
    def command(self) -> tuple[str, ...]:
        verbs = {"FlushCaches": "flush-caches", "ResetServerFeatures": "reset-server-features"}
        return ("resolvectl", verbs[self.method])


@dataclass(frozen=True, slots=True)
class WriteFile:
    """A few bytes to a file of the kernel. `partial_ok`: EAGAIN means that it did a part, which is fine.

    `ours`: not the kernel's but a file of our own state, made when it is missing and replaced as a whole.
    `power`: the act unit that does the same in SERVICE mode, NAME or NAME@INSTANCE.
    """

    path: Path
    text: str
    partial_ok: bool = False
    timeout_s: float = 20.0
    ours: bool = False
    power: str = field(default="", compare=False)

    @property
    def command(self) -> tuple[str, ...]:
        return ("tee", "--", str(self.path))

    @property
    def stdin(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class RunProgram:
    """A program with a fixed argument list. `unprivileged`: an ordinary user may run it just as well.

    `refused_exit`: the exit status by which it says that it refused and touched nothing. `power` as above; the
    same one in several steps does them all at once.
    """

    command: tuple[str, ...]
    timeout_s: float
    unprivileged: bool = False
    stdin: str = ""
    refused_exit: int | None = None
    power: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class EndProcess:
    """TERM, and KILL after the grace, to the process that has this start time (clock ticks since boot)."""

    pid: int
    start_time: int
    grace_s: float = 10.0

    @property
    def command(self) -> tuple[str, ...]:
        return ("kill", "-TERM", str(self.pid))


@dataclass(frozen=True, slots=True)
class AskHelper:
    """A whole action, asked of the helper (SERVICE mode), which looks, decides and plans again by itself."""

    op: str
    arguments: Mapping[str, Any]
    timeout_s: float

    @property
    def command(self) -> tuple[str, ...]:
        return ("luminous-healing-executor", self.op, *(f"{name}={value}" for name, value in self.arguments.items()))


Step = AskHelper | UnitJob | SetProperties | ResolverJob | WriteFile | RunProgram | EndProcess


def typed(step: Step, *, root: bool = False) -> str:
    """The step as a person would type it, as root or with sudo."""
    if isinstance(step, AskHelper):
        return f"the helper: {shlex.join(step.command[1:])}"
    sudo = "" if root or (isinstance(step, RunProgram) and step.unprivileged) else "sudo "
    fed = step.stdin if isinstance(step, WriteFile | RunProgram) else ""
    return (f"echo {shlex.quote(fed)} | " if fed else "") + sudo + shlex.join(step.command)


class Knob(NamedTuple):
    """Something that a plan sets: its name in the grammar of operations/knobs.py, its former value, and ours."""

    name: str
    former: str
    ours: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What an action will do on this host: what the precheck found, the steps, and what the way back needs."""

    checks: tuple[str, ...]
    steps: tuple[Step, ...]
    knobs: tuple[Knob, ...] = ()
    settled: Mapping[str, Any] = field(default_factory=dict)  # left open by the request; with it the same comes again

    def describe(self, how: Callable[[Step], str]) -> str:
        """For a dry run; `how` says a step as it would be done."""
        return "\n".join([*self.checks, *(f"would run: {how(step)}" for step in self.steps)])
