"""Snapshot + thresholds → issues. `find_issues` is pure; `SimpleDetector` reads the host, then finds."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Final

from ..bus import Bus
from ..decide.thresholds import Thresholds
from ..models import (
    CHECKS,
    ConfigError,
    Issue,
    IssueType,
    ObservationError,
    Reading,
    Roots,
    Severity,
    Snapshot,
    Status,
    UnitState,
    nearest,
)
from .procfs import CpuSensor, DiskSensor, LoadSensor, MemorySensor, PressureSensor
from .systemd import SystemdSensor

log = logging.getLogger(__name__)

_SAMPLED: Final = frozenset({"cpu", "memory", "load", "pressure", "disk"})
_WARM_UP_S: Final = 0.1

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
    worst: dict[str, Severity] = {}
    for issue in issues:
        if issue.kind == HEALTH:  # the sum of the others
            continue
        key = issue.fingerprint()
        worst[key] = max(worst.get(key, Severity.LOW), issue.severity)
    return max(0, 100 - sum(_POINTS[grade] for grade in worst.values()))


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
    """The kinds that are only watched: a one-off command, a job that its timer runs again, and a unit of
    which nobody can tell whether it was stopped on purpose."""
    if unit.transient:
        return "one_off"
    if unit.kind == "oneshot" and unit.triggered:
        return "job_failed"
    if unit.ended_by == "unknown":
        return "unclear"
    return "crash_loop" if unit.gave_up else "unit_failed"


_WATCHED_ONLY: Final = frozenset({"one_off", "job_failed", "unclear"})


def _unit_issue(unit: UnitState, kind: str, cause: str) -> Issue:
    component = unit.name.removesuffix(".service")
    what = "failed" if unit.active == "failed" else "is not running"
    grade = Severity.LOW if kind in _WATCHED_ONLY else Severity.HIGH
    return Issue(IssueType.SERVICE, grade, f"{unit.name} {what}: {cause}", component, 0.0, 1.0, kind=kind,
                 cause=cause, metrics={"result": unit.result, "restarts": unit.restarts})  # fmt: skip


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


class SimpleDetector:
    """Reads the host and compares with `thresholds`.

    `enabled_checks` selects among cpu, memory, swap, load, disk, pressure, services; `monitored_units` are
    watched even when merely not running. Every part of the world is a constructor argument.
    """

    def __init__(
        self,
        thresholds: Mapping[str, float] | None = None,
        *,
        monitored_units: Iterable[str] = (),
        enabled_checks: Iterable[str] = CHECKS,
        include_tmpfs: bool = False,
        ignore_mounts: Iterable[str] = (),
        roots: Roots | None = None,
        bus: Bus | None = None,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        cpus: int | None = None,
    ) -> None:
        roots = roots or Roots()
        self._cpus = cpus or cpu_count(roots)
        self._thresholds = Thresholds(thresholds, cpus=self._cpus)
        self._clock_ns = clock_ns
        self.monitored_units = tuple(monitored_units)
        self.units = SystemdSensor(bus or Bus(clock=time.monotonic), roots)
        self._cpu = CpuSensor(roots, clock_ns)
        self._memory = MemorySensor(roots)
        self._sensors = (
            ("cpu", self._cpu),
            ("memory", self._memory),
            ("load", LoadSensor(roots)),
            ("pressure", PressureSensor(roots)),
            ("disk", DiskSensor(roots, tmpfs=include_tmpfs, ignore=ignore_mounts)),
        )
        self.enabled_checks = enabled_checks

    @property
    def thresholds(self) -> MutableMapping[str, float]:
        return self._thresholds

    @thresholds.setter
    def thresholds(self, values: Mapping[str, float]) -> None:
        """A partial mapping keeps the other defaults."""
        self._thresholds = Thresholds(values, cpus=self._cpus)

    @property
    def enabled_checks(self) -> tuple[str, ...]:
        return self._enabled

    @enabled_checks.setter
    def enabled_checks(self, names: Iterable[str]) -> None:
        chosen = (names,) if isinstance(names, str) else tuple(names)
        for name in chosen:
            if name not in CHECKS:
                raise ConfigError([f"enabled_checks: there is no check {name!r}"], nearest(str(name), CHECKS))
        self._enabled = chosen
        self._services_wanted, self._warm_up_wanted = "services" in chosen, "cpu" in chosen
        wanted = set(chosen) | ({"memory"} if "swap" in chosen else set())
        self._active = tuple((name, sensor) for name, sensor in self._sensors if name in wanted)
        self._hidden = {"memory", "swap"} - set(chosen) if {"memory", "swap"} & set(chosen) else set()

    def threshold_for(self, issue: Issue) -> float:
        """What the issue's reading must fall below: its own threshold, or the live one."""
        return issue.threshold or self._thresholds.get(issue.component.partition(":")[0], 0.0)

    async def detect_issues(self) -> list[Issue]:
        """Look once and say what is wrong, worst first. The first call awaits 0.1 s for a CPU figure."""
        return find_issues(await self.observe(), self._thresholds.values_)

    def find(self, snapshot: Snapshot) -> list[Issue]:
        """What is wrong in a snapshot, by the thresholds of now."""
        return find_issues(snapshot, self._thresholds.values_)

    async def observe(self) -> Snapshot:
        """Read every enabled sensor once; one that fails leaves its readings out and says why."""
        if self._warm_up_wanted and not self._cpu.warm:
            await self._warm_up()
        values: dict[str, float] = {}
        looks = []
        clock = self._clock_ns
        at = clock()
        for name, sensor in self._active:
            error = ""
            try:
                sensor.read(values)
            except (OSError, ValueError, ObservationError) as problem:
                error = _problem(problem)
            now = clock()
            looks.append((name, error, now - at))
            at = now
        for name in self._hidden:
            values.pop(name, None)
        units: tuple[UnitState, ...] = ()
        if self._services_wanted:
            units, error, unclear = await self.units.read(self.monitored_units)
            looks.append(("services", error, clock() - at))
            looks += [(f"unit:{name}", why, 0) for name, why in unclear.items()]
        if log.isEnabledFor(logging.DEBUG):
            log.debug("readings %s; unknown: %s", values, [look for look in looks if look[1]])
        return Snapshot(values, units, tuple(looks))

    async def _warm_up(self) -> None:
        """A first CPU sample, 0.1 s before the reading; an error shows at the reading itself."""
        try:
            self._cpu.sample()
        except (OSError, ValueError) as problem:
            log.debug("no CPU figure yet: %s", _problem(problem))
        else:
            await asyncio.sleep(_WARM_UP_S)

    def readings(self, snapshot: Snapshot) -> list[Reading]:
        """Every figure with its unit and status; what an enabled sensor could not read is UNKNOWN."""
        found = []
        for name, value in snapshot.values.items():
            key = _THRESHOLD_OF[name]
            threshold = None if key is None else self._thresholds.values_[key]
            status = Status.ISSUE if threshold is not None and value >= threshold else Status.OK
            found.append(Reading(name, value, "load" if name == "load" else "percent", status, threshold))
        seen = {_CLASSES[name.partition(":")[0]][1] for name in snapshot.values}
        for sensor in snapshot.sensors:
            if not sensor.ok and sensor.name not in seen and sensor.name in _SAMPLED:
                unit = "load" if sensor.name == "load" else "percent"
                found.append(Reading(sensor.name, None, unit, Status.UNKNOWN))
        return found


def cpu_count(roots: Roots) -> int:
    """CPUs that are online, from sysfs (`0-3,8`); 1 when it cannot be read."""
    try:
        ranges = (roots.sys / "devices/system/cpu/online").read_text().strip().split(",")
        return sum(int(part.rpartition("-")[2]) - int(part.partition("-")[0]) + 1 for part in ranges) or 1
    except (OSError, ValueError) as error:
        log.debug("the CPUs could not be counted: %s", _problem(error))
        return 1


def _problem(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
    return str(error) or type(error).__name__
