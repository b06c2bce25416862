"""The values that pass through the loop: frozen, parsed once, standard library only.

Reading order: `Snapshot` (what was seen) → `Issue` (what is wrong) → `Action` (what to do) →
`ExecutionResult` (what the act said) → `HealingResult` (what was measured afterwards).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple


class HealingError(Exception):
    """The root of the family: a sentence for a person, and a hint how to go on."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(HealingError):
    """A setting is wrong; `problems` lists each as 'key: what is wrong'."""

    def __init__(self, problems: list[str], hint: str = "") -> None:
        super().__init__("; ".join(problems), hint)
        self.problems = problems


class ObservationError(HealingError):
    """A sensor could not read its part of the world. Neither healthy nor failed: unknown."""


class ActionRefused(HealingError):  # noqa: N818  a refusal is an answer, not a malfunction
    """The action was not started; nothing was touched. `passing`: what stands in its way will pass by itself, so it
    is no word about whether it would help."""

    def __init__(self, message: str, hint: str = "", *, passing: bool = False) -> None:
        super().__init__(message, hint)
        self.passing = passing


class NeedsPrivilege(HealingError):  # noqa: N818
    """This step needs more rights than this runner has; another runner may have them."""


class ActionFailed(HealingError):  # noqa: N818
    """The action was started and did not end well."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the name that was probably meant, or all that there are."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else "known: " + ", ".join(names)


CHECKS: Final = ("cpu", "memory", "swap", "load", "disk", "pressure", "services")


class IssueType(StrEnum):
    RESOURCE = "resource"  # CPU, memory, swap, load, disk
    SERVICE = "service"  # a unit failed, or a watched unit is not running
    SYSTEM = "system"  # the host as a whole


class Severity(IntEnum):
    LOW = 1  # watched only
    MEDIUM = 2  # heals when resources allow
    HIGH = 3  # heals at once
    CRITICAL = 4  # goes first


class Status(StrEnum):
    OK = "ok"
    ISSUE = "issue"
    UNKNOWN = "unknown"


class Verdict(StrEnum):
    """How a heal ended, by measurement; an exit status of 0 is never a verdict."""

    HEALED = "healed"
    NO_EFFECT = "no_effect"
    WORSE = "worse"  # undone where it can be
    RECOVERED_BY_ITSELF = "recovered_by_itself"
    REFUSED = "refused"
    FAILED = "failed"
    DRY_RUN = "dry_run"


class ExecutionMode(Enum):
    SERVICE = "service"  # everything privileged goes through the helper
    DEVELOPMENT = "dev"  # direct when root, else sudo -n, else user space, else the command to type


@dataclass(frozen=True, slots=True)
class Roots:
    """Where the world is rooted; tests and simulations pass their own."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    run: Path = Path("/run")
    journal: Path = Path("/var/log/journal")
    nix: Path = Path("/nix")
    state: Path = Path("/var/lib/luminous-healing")
    plugins: Path = Path("/etc/luminous-healing/plugins")
    boot: Path = Path("/boot")
    tmp: Path = Path("/var/tmp")  # noqa: S108  where temporary files of the host lie; nothing of ours


class SensorHealth(NamedTuple):
    """Whether one sensor could read its part of the world, and what that cost."""

    name: str
    ok: bool
    error: str = ""
    duration_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class UnitState:
    """One systemd unit, as `org.freedesktop.systemd1` tells it. Times are CLOCK_MONOTONIC in µs, 0 = never."""

    name: str
    load: str = "loaded"
    active: str = "inactive"
    sub: str = "dead"
    result: str = "success"
    file_state: str = ""
    kind: str = ""  # Type= of a service
    job: int = 0  # id of a job in flight, 0 = none
    transient: bool = False
    triggered: bool = False  # a socket, timer, path or bus name starts it when needed
    condition: bool = True
    inactive_exit_us: int = 0
    active_exit_us: int = 0
    inactive_enter_us: int = 0
    main_exit_us: int = 0
    main_code: int = 0  # CLD_EXITED 1, CLD_KILLED 2, CLD_DUMPED 3
    main_status: int = 0  # exit status, or signal number
    start_limit_us: int = 0
    start_limit_burst: int = 0
    restarts: int = 0
    restart_prevented: bool = False  # it ended with a status of RestartPreventExitStatus=
    aliases: tuple[str, ...] = ()
    ended_by: str = ""  # from the journal, where the times do not tell: stop, itself, never, unknown
    can_reload: bool = False
    refuse_start: bool = False
    invocation: str = ""

    @property
    def ended_itself(self) -> bool:
        """Its main process went before it left `active`, so nobody told it to go (systemd notes the exit
        first). What the times cannot prove, the journal must tell."""
        was_active = self.active_exit_us >= self.inactive_exit_us > 0
        return was_active and 0 < self.main_exit_us <= self.active_exit_us

    @property
    def stopped_on_purpose(self) -> bool:
        """A stop job ended it: by the journal's word, or because the main process went after it had left
        `active` (`ActiveExitTimestamp` is set on entering `deactivating`)."""
        if self.ended_by:
            return self.ended_by == "stop"
        was_active = self.active_exit_us >= self.inactive_exit_us > 0
        told = was_active and self.main_exit_us > self.active_exit_us
        return told and self.result in {"success", "exit-code", "signal", "core-dump"}

    @property
    def gave_up(self) -> bool:
        """systemd restarted it until its start limit. The result then often still tells the last exit."""
        return self.active == "failed" and (
            self.result == "start-limit-hit" or 0 < self.start_limit_burst <= self.restarts
        )


class HostState(NamedTuple):
    """The system as a whole: systemd's SystemState, why nothing may be changed now, or why it cannot be told."""

    state: str = "running"
    busy: str = ""
    unknown: str = ""


class Snapshot(NamedTuple):
    """What one look at the host saw. A reading that is missing from `values` is unknown.

    `values` maps a reading's name to percent (or plain load): `cpu`, `memory`, `swap`, `load`,
    `disk:MOUNT`, `inodes:MOUNT`, `pressure:RESOURCE:some|full`. `looks` has (sensor, error or empty,
    nanoseconds) of each sensor that was asked; `sensors` is the same as values of their own. `watched` is how
    many units are watched by name.
    """

    values: Mapping[str, float]
    units: tuple[UnitState, ...] = ()
    looks: tuple[tuple[str, str, int], ...] = ()
    watched: int = 0

    @property
    def sensors(self) -> tuple[SensorHealth, ...]:
        return tuple(SensorHealth(name, not error, error, took / 1e6) for name, error, took in self.looks)


@dataclass(frozen=True, slots=True)
class Reading:
    """One figure of a snapshot as people and programs read it."""

    name: str
    value: float | None
    unit: str
    status: Status
    threshold: float | None = None


# Names of issue types in the older API, and what they are here: (type, component, kind, metric).
_LEGACY_TYPES: Final[Mapping[str, tuple[IssueType, str, str]]] = MappingProxyType(
    {
        "cpu_high": (IssueType.RESOURCE, "cpu", "cpu_percent"),
        "memory_high": (IssueType.RESOURCE, "memory", "memory_percent"),
        "disk_full": (IssueType.RESOURCE, "disk", "disk_percent"),
        "disk_high": (IssueType.RESOURCE, "disk", "disk_percent"),
        "swap_high": (IssueType.RESOURCE, "swap", "swap_percent"),
        "load_high": (IssueType.RESOURCE, "load", "load_average"),
        "service_failed": (IssueType.SERVICE, "", ""),
        "system_health": (IssueType.SYSTEM, "system", "health"),
    }
)
UNCLASSIFIED: Final = "unclassified"


def unit_name(component: str) -> str:
    """`nginx` → `nginx.service`; a name that says its own type stays as it is."""
    suffix = component.rpartition(".")[2]
    return component if suffix in _UNIT_TYPES else f"{component}.service"


_UNIT_TYPES: Final = frozenset({
    "service", "socket", "timer", "mount", "automount", "path", "slice", "scope", "target", "swap", "device",
})  # fmt: skip


def _severity(value: Any) -> Severity:
    """`"high"` and `3` are understood, too."""
    try:
        return Severity[value.upper()] if isinstance(value, str) else Severity(value)
    except (KeyError, ValueError):
        names = ", ".join(grade.name for grade in Severity)
        raise HealingError(f"{value!r:.80} is no severity", f"one of {names}") from None


@dataclass(frozen=True)
class Issue:
    """Something that is wrong, with its evidence.

    `type` may be one of the older names (`memory_high`); an unknown one becomes a SYSTEM issue that is
    only observed. `kind` is the machine's word for what is wrong (`bytes`, `inodes`, `unit_failed`, …),
    `cause` a sentence for a person. `metric_value` and `threshold` are in percent, or plain for the load.
    """

    type: IssueType
    severity: Severity
    description: str
    component: str = ""
    metric_value: float = 0.0
    threshold: float = 0.0
    timestamp: datetime = field(default_factory=datetime.now)
    id: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    affected_components: tuple[str, ...] = ()
    kind: str = ""
    cause: str = ""

    def __post_init__(self) -> None:
        if type(self.severity) is not Severity:
            object.__setattr__(self, "severity", _severity(self.severity))
        if type(self.affected_components) is not tuple:
            object.__setattr__(self, "affected_components", tuple(self.affected_components))
        if type(self.type) is not IssueType:
            for name, value in self._from_legacy(str(self.type)).items():
                object.__setattr__(self, name, value)

    def _from_legacy(self, name: str) -> dict[str, Any]:
        if name in IssueType._value2member_map_:
            return {"type": IssueType(name)}
        if name not in _LEGACY_TYPES:
            return {"type": IssueType.SYSTEM, "component": self.component or "system", "kind": UNCLASSIFIED}
        kind, component, metric = _LEGACY_TYPES[name]
        affected = self.affected_components[0] if self.affected_components else ""
        value = self.metrics.get(metric, self.metric_value)
        return {
            "type": kind,
            "component": self.component or component or affected,
            "metric_value": float(value),
        }

    def subject(self) -> str:
        """What is in trouble, whatever the kind of trouble: type and component; a filesystem by its mount point,
        because which one is the fullest, and so called `disk`, changes."""
        mount = self.metrics.get("mount")
        return f"{self.type}/disk:{mount}" if mount else f"{self.type}/{self.component}"

    def fingerprint(self) -> str:
        """What makes two issues the same kind of trouble: subject and kind; no figures, no time."""
        return f"{self.subject()}/{self.kind or '-'}"


@dataclass(frozen=True, slots=True)
class Action:
    """A request to change the host: a name of the catalogue and its arguments."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, request: object) -> Action:
        """From an `Action` or a mapping `{"action": name, "parameters": {...}}`.

        Raises ActionRefused when it is neither.
        """
        if isinstance(request, Action):
            return request
        shape = "an action is a mapping {'action': name, 'parameters': {...}}"
        if not isinstance(request, Mapping) or not isinstance(request.get("action"), str):
            raise ActionRefused(f"not an action: {request!r:.200}", shape)
        parameters = request.get("parameters") or {}
        if not isinstance(parameters, Mapping):
            raise ActionRefused(f"the parameters of {request['action']} are not a mapping", shape)
        return cls(request["action"], dict(parameters))


@dataclass(frozen=True, slots=True)
class ExecutionResult:
    """What an act answered. `success` is the act's own word, not a verdict: the reading decides that."""

    success: bool
    output: str = ""
    error: str | None = None
    suggestion: str | None = None
    mode: str = ""
    duration_ms: float = 0.0
    refused: bool = False  # nothing was touched
    knobs: tuple[tuple[str, str, str], ...] = ()  # what was set: name, former value, ours; the way back


@dataclass(frozen=True)
class HealingResult:
    """How one issue's heal ended. `action_taken` names the actions, in a dry run behind `[DRY RUN]`."""

    issue: Issue
    action_taken: str
    success: bool
    error: str | None = None
    duration_ms: float = 0.0
    timestamp: datetime = field(default_factory=datetime.now)
    verdict: Verdict = Verdict.FAILED
    actions_taken: list[str] = field(default_factory=list)
    detail: str = ""
    would_act: bool = False  # in a dry run: whether anything would be done now
    record: str = ""  # the id of its record
