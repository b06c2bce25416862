"""Snapshot + thresholds → issues: which levels, and which units that are down, are trouble. [pure]"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from ..models import Issue, IssueType, Severity, Snapshot, UnitState

SHARED: Final = "shared_cause"
_TOGETHER_US: Final = 300_000_000  # units that went down within so long of each other went down together
_MANY: Final = 3
_SHARE: Final = 0.3

# A reading's class (what stands before the colon) → its threshold, its check, and how people read it.
_CLASSES: Final = {
    "cpu": ("cpu_percent", "cpu", "CPU use"),
    "memory": ("memory_percent", "memory", "memory use"),
    "swap": ("swap_percent", "swap", "swap use"),
    "load": ("load_average", "load", "one-minute load"),
    "disk": ("disk_percent", "disk", "disk use"),
    "inodes": ("disk_percent", "disk", "inode use"),
    "pressure": ("pressure_percent", "pressure", "pressure"),
}


def severity(value: float, threshold: float, *, unbounded: bool = False) -> Severity:
    """At the threshold MEDIUM; half of the way to the end (100 %, or twice the threshold) HIGH; 90 % CRITICAL."""
    room = max(threshold, 1.0) if unbounded else 100.0 - threshold
    beyond = (value - threshold) / room if room > 0 else 1.0
    return Severity.CRITICAL if beyond >= 0.9 else Severity.HIGH if beyond >= 0.5 else Severity.MEDIUM


HEALTH: Final = "health"
_SICK: Final = 50  # a health below this is an issue of its own


class _ThresholdTable(dict[str, str | None]):
    """Reading → the threshold that it is held against, None for one that is shown only; filled as names come."""

    def __missing__(self, reading: str) -> str | None:
        key = (
            None
            if reading.startswith("pressure:") and reading.endswith(":some")
            else _CLASSES[reading.partition(":")[0]][0]
        )
        if len(self) < 4096:
            self[reading] = key
        return key


_THRESHOLD_OF: Final = _ThresholdTable()


def threshold_of(reading: str) -> str | None:
    """The threshold that a reading is held against; None for one that is shown only."""
    return _THRESHOLD_OF[reading]


def check_of(reading: str) -> str:
    """The check that a reading belongs to: `inodes:/var` → `disk`."""
    return _CLASSES[reading.partition(":")[0]][1]


def find_issues(snapshot: Snapshot, thresholds: Mapping[str, float]) -> list[Issue]:
    """What is wrong in a snapshot, worst first. Missing readings are no issue: they are unknown."""
    issues = []
    for name, value in snapshot.values.items():
        key = _THRESHOLD_OF[name]
        if key is not None and value >= thresholds[key] and not _lesser(name, value, snapshot.values):
            issues.append(_resource_issue(name, value, thresholds[key], snapshot.values))
    for unit in snapshot.units:
        if (issue := judge_unit(unit)) is not None:
            issues.append(issue)
    if len(snapshot.units) > 1 and (shared := shared_cause(issues, snapshot.watched)) is not None:
        issues.append(shared)
    if len(issues) > 1:
        if (health := health_score(issues)) < _SICK:
            issues.append(Issue(IssueType.SYSTEM, Severity.HIGH, f"the host's health is {health} of 100", "system",
                                float(health), float(_SICK), kind=HEALTH))  # fmt: skip
        issues.sort(key=lambda issue: -issue.severity)
    return issues


_RIVAL: Final = {"disk": "inodes", "inodes": "disk"}


def _lesser(name: str, value: float, values: Mapping[str, float]) -> bool:
    """One issue a filesystem: of bytes and inodes, the one that is less used is left out."""
    kind, _, mount = name.partition(":")
    other = values.get(f"{_RIVAL.get(kind)}:{mount}", -1.0)
    return other > value or (other == value and kind == "inodes")


def _resource_issue(name: str, value: float, threshold: float, values: Mapping[str, float]) -> Issue:
    kind, _, mount = name.partition(":")
    said = f"{_CLASSES[kind][2]} at {value:.1f}" + ("" if kind == "load" else " %")
    if kind == "pressure":
        resource = mount.partition(":")[0]
        return Issue(IssueType.SYSTEM, Severity.LOW, f"all tasks wait for {resource} {value:.1f} % of the time",
                     "system", value, threshold, kind=kind, metrics={"resource": resource})  # fmt: skip
    if kind in {"disk", "inodes"}:
        fullest = max((key for key in values if key.startswith("disk:")), key=values.__getitem__, default=name)
        component = "disk" if fullest.partition(":")[2] == mount else f"disk:{mount}"
        return Issue(IssueType.RESOURCE, severity(value, threshold), f"{said} on {mount}", component, value,
                     threshold, kind="inodes" if kind == "inodes" else "bytes", metrics={"mount": mount})  # fmt: skip
    grade = severity(value, threshold, unbounded=kind == "load")
    return Issue(IssueType.RESOURCE, grade, said, kind, value, threshold)


_POINTS: Final = {Severity.LOW: 2, Severity.MEDIUM: 5, Severity.HIGH: 15, Severity.CRITICAL: 30}


def health_score(issues: Iterable[Issue]) -> int:
    """100 less 2, 5, 15, 30 per LOW, MEDIUM, HIGH, CRITICAL issue, one per cause; never below 0."""
    issues = tuple(issues)
    children = {name for issue in issues if issue.kind == SHARED for name in issue.affected_components}
    worst: dict[str, Severity] = {}
    for issue in issues:
        if issue.kind == HEALTH or (issue.type is IssueType.SERVICE and issue.component in children):
            continue  # the sum of the others, or told by its cause
        key = issue.fingerprint()
        if issue.severity > worst.get(key, 0):
            worst[key] = issue.severity
    return max(0, 100 - sum([_POINTS[grade] for grade in worst.values()]))


def measure(snapshot: Snapshot, issue: Issue) -> float | None:
    """The reading that an issue is about, as it is now; None when it cannot be seen."""
    if issue.type is not IssueType.RESOURCE:
        return None
    kind, _, mount = issue.component.partition(":")
    if kind != "disk":
        return snapshot.values.get(kind)
    kind = "inodes" if issue.kind == "inodes" else "disk"
    mount = mount or str(issue.metrics.get("mount", ""))
    if mount:
        return snapshot.values.get(f"{kind}:{mount}")
    return max((value for name, value in snapshot.values.items() if name.startswith(f"{kind}:")), default=None)


# SYSTEM issues that a look shows, and shows to be over.
MEASURED_KINDS: Final = frozenset({"pressure", HEALTH, SHARED})


def sensor_of(issue: Issue) -> str:
    """The sensor that reads what a RESOURCE issue is about."""
    name = issue.component.partition(":")[0]
    return "memory" if name == "swap" else name


def judge_unit(unit: UnitState) -> Issue | None:
    """Whether a unit that is not running is an issue: not when someone stopped, disabled or masked it, not
    while a job or systemd's own restart is in flight, not when something else starts it on demand."""
    if unit.load != "loaded" or unit.file_state.startswith("masked") or unit.job:
        return None
    if unit.active not in {"failed", "inactive"} or unit.stopped_on_purpose or not unit.condition:
        return None
    if unit.active == "failed":
        return _unit_issue(unit, _failed_kind(unit), failure(unit))
    on_demand = unit.kind == "oneshot" or unit.triggered or unit.name.endswith(".mount")
    if on_demand or unit.file_state == "disabled":
        return None
    never = unit.ended_by == "never" or not (unit.ended_by or unit.inactive_exit_us)
    return _unit_issue(unit, "unit_inactive", "it was never started" if never else "it ended by itself")


def _failed_kind(unit: UnitState) -> str:
    """A one-shot unit may not be meant to run twice: of a timer it is run once more, else a person is asked. A
    one-off command, and a unit of which nobody can tell whether it was stopped on purpose, are only watched."""
    if unit.transient:
        return "one_off"
    if unit.ended_by == "unknown":
        return "unclear"
    if unit.kind == "oneshot":
        return "job_failed" if unit.triggered else "oneshot_failed"
    return "crash_loop" if unit.gave_up else "unit_failed"


_GRADES: Final = {
    "one_off": Severity.LOW,
    "unclear": Severity.LOW,
    "job_failed": Severity.MEDIUM,
    "oneshot_failed": Severity.MEDIUM,
}


def _unit_issue(unit: UnitState, kind: str, cause: str) -> Issue:
    component = unit.name.removesuffix(".service")
    what = "failed" if unit.active == "failed" else "is not running"
    grade = _GRADES.get(kind, Severity.HIGH)
    evidence: dict[str, object] = {
        "result": unit.result, "restarts": unit.restarts, "since_us": unit.inactive_enter_us,
    }  # fmt: skip
    if kind == "oneshot_failed":
        evidence["again"] = True
    return Issue(IssueType.SERVICE, grade, f"{unit.name} {what}: {cause}", component, 0.0, 1.0, kind=kind,
                 cause=cause, metrics=evidence)  # fmt: skip


def failure(unit: UnitState) -> str:
    """Why a unit failed, in words; Result= values of systemd.exec(5)."""
    how = ""
    if unit.main_code == 1:
        how = f"main process exited with status {unit.main_status}"
    elif unit.main_code in {2, 3}:
        name = signal.Signals(unit.main_status).name if unit.main_status in set(signal.Signals) else unit.main_status
        how = f"main process was killed by {name}" + (", dumping core" if unit.main_code == 3 else "")
    if unit.gave_up:
        return f"crash loop: systemd gave up after {unit.restarts} restarts" + (f"; {how}" if how else "")
    if unit.result in {"exit-code", "signal", "core-dump"} and how:
        return how
    return f"{unit.result}" + (f"; {how}" if how and unit.main_status else "")


def shared_cause(issues: Sequence[Issue], watched: int) -> Issue | None:
    """Three units, or more than 30 % of the watched ones (two at least), that went down within five minutes of
    each other: one cause, and restarting them one by one is no remedy (invariant I-8)."""
    down = sorted(
        (issue for issue in issues if issue.type is IssueType.SERVICE and issue.severity > Severity.LOW),
        key=lambda issue: int(issue.metrics.get("since_us", 0)),
    )
    found: set[str] = set()
    for at, first in enumerate(down):
        since = int(first.metrics.get("since_us", 0))
        near = [one for one in down[at:] if int(one.metrics.get("since_us", 0)) - since <= _TOGETHER_US]
        if len(near) >= _MANY or (len(near) == 2 and 2 > _SHARE * watched > 0):
            found.update(one.component for one in near)
    if not found:
        return None
    names = tuple(sorted(found))
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return Issue(IssueType.SYSTEM, Severity.HIGH, f"{len(names)} units went down together: {shown}", "system",
                 float(len(names)), float(_MANY), kind=SHARED, affected_components=names,
                 cause="a cause that they share")  # fmt: skip
