"""What an action comes to, as values: the steps, the command a person would type for each, the way back."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class UnitJob:
    """A method of systemd's manager on one unit: RestartUnit, ReloadUnit, StartUnit or ResetFailedUnit."""

    method: str
    unit: str

    @property
    def command(self) -> tuple[str, ...]:
        verbs = {
            "RestartUnit": "restart",
            "ReloadUnit": "reload",
            "StartUnit": "start",
            "ResetFailedUnit": "reset-failed",
        }
        return ("systemctl", verbs[self.method], "--", self.unit)


@dataclass(frozen=True, slots=True)
class WriteFile:
    """A few bytes to a file of the kernel. `partial_ok`: EAGAIN means that it did a part, which is fine."""

    path: Path
    text: str
    partial_ok: bool = False
    timeout_s: float = 20.0

    @property
    def command(self) -> tuple[str, ...]:
        return ("tee", "--", str(self.path))


@dataclass(frozen=True, slots=True)
class RunProgram:
    """A program with a fixed argument list. `unprivileged`: an ordinary user may run it just as well."""

    command: tuple[str, ...]
    timeout_s: float
    unprivileged: bool = False


@dataclass(frozen=True, slots=True)
class EndProcess:
    """TERM, and KILL after the grace, to the process that has this start time (clock ticks since boot)."""

    pid: int
    start_time: int
    grace_s: float = 10.0

    @property
    def command(self) -> tuple[str, ...]:
        return ("kill", "-TERM", str(self.pid))


Step = UnitJob | WriteFile | RunProgram | EndProcess


def typed(step: Step, *, root: bool = False) -> str:
    """The step as a person would type it, as root or with sudo."""
    sudo = "" if root or (isinstance(step, RunProgram) and step.unprivileged) else "sudo "
    if isinstance(step, WriteFile):
        return f"echo {shlex.quote(step.text)} | {sudo}tee -- {shlex.quote(str(step.path))}"
    return sudo + shlex.join(step.command)


@dataclass(frozen=True, slots=True)
class Plan:
    """What an action will do on this host: what the precheck found, the steps, and the steps back."""

    checks: tuple[str, ...]
    steps: tuple[Step, ...]
    undo: tuple[Step, ...] = ()

    def describe(self, how: Callable[[Step], str]) -> str:
        """For a dry run; `how` says a step as it would be done."""
        return "\n".join([*self.checks, *(f"would run: {how(step)}" for step in self.steps)])
