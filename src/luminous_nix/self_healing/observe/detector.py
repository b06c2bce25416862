"""SimpleDetector: reads the host, each sensor for itself, then has it judged (decide/judge.py)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import replace
from typing import Final, Protocol

from ..bus import Bus
from ..decide.judge import check_of, find_issues, threshold_of
from ..decide.thresholds import Thresholds
from ..models import (
    CHECKS,
    ConfigError,
    Issue,
    ObservationError,
    Reading,
    Roots,
    Snapshot,
    Status,
    UnitState,
    nearest,
)
from .diagnosis import Cgroups, memory_culprit
from .procfs import CpuSensor, DiskSensor, LoadSensor, MemorySensor, PressureSensor
from .systemd import SystemdSensor

log = logging.getLogger(__name__)

_SAMPLED: Final = frozenset({"cpu", "memory", "load", "pressure", "disk"})
_WARM_UP_S: Final = 0.1


class Sensor(Protocol):
    """Adds its readings to `values`. Raises OSError, ValueError or ObservationError when it cannot read."""

    def read(self, values: dict[str, float]) -> None: ...


class Units(Protocol):
    """What SystemdSensor offers."""

    async def read(self, watched: Iterable[str]) -> tuple[tuple[UnitState, ...], str, dict[str, str]]: ...

    async def unit(self, name: str) -> UnitState: ...


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
        sensors: Iterable[tuple[str, Sensor]] | None = None,
        units: Units | None = None,
    ) -> None:
        self._roots = roots = roots or Roots()
        self._cgroups = Cgroups(roots)
        self._cpus = cpus or cpu_count(roots)
        self._thresholds = Thresholds(thresholds, cpus=self._cpus)
        self._clock_ns = clock_ns
        self.monitored_units = tuple(monitored_units)
        self.units: Units = units or SystemdSensor(bus or Bus(clock=time.monotonic), roots)
        self._cpu = CpuSensor(roots, clock_ns)
        self._sensors: tuple[tuple[str, Sensor], ...] = (
            (
                ("cpu", self._cpu),
                ("memory", MemorySensor(roots)),
                ("load", LoadSensor(roots)),
                ("pressure", PressureSensor(roots)),
                ("disk", DiskSensor(roots, tmpfs=include_tmpfs, ignore=ignore_mounts)),
            )
            if sensors is None
            else tuple(sensors)
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
        self._services_wanted = "services" in chosen
        self._warm_up_wanted = "cpu" in chosen and ("cpu", self._cpu) in self._sensors
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

    def diagnose(self, issue: Issue) -> Issue:
        """The issue with its cause where one stands out: of memory the service that holds most of it."""
        if issue.component not in {"memory", "swap"} or "unit" in issue.metrics:
            return issue
        culprit = memory_culprit(self._roots, root=self._cgroups.root())
        if culprit is None:
            return issue
        evidence = {"unit": culprit.unit, "unit_bytes": culprit.size, "running": True}
        cause = f"{culprit.unit} holds {culprit.size >> 20} MiB of memory"
        return replace(issue, metrics={**issue.metrics, **evidence}, cause=cause)

    async def observe(self, only: str = "") -> Snapshot:
        """Read every enabled sensor once, or only that one; one that fails leaves its readings out and says why."""
        if self._warm_up_wanted and not self._cpu.warm:
            await self._warm_up()
        values: dict[str, float] = {}
        looks = []
        clock = self._clock_ns
        at = clock()
        for name, sensor in self._active:
            if only and name != only:
                continue
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
        if self._services_wanted and not only:
            units, error, unclear = await self.units.read(self.monitored_units)
            looks.append(("services", error, clock() - at))
            looks += [(f"unit:{name}", why, 0) for name, why in unclear.items()]
        if log.isEnabledFor(logging.DEBUG):
            log.debug("readings %s; unknown: %s", values, [look for look in looks if look[1]])
        return Snapshot(values, units, tuple(looks), len(self.monitored_units))

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
            key = threshold_of(name)
            threshold = None if key is None else self._thresholds.values_[key]
            status = Status.ISSUE if threshold is not None and value >= threshold else Status.OK
            found.append(Reading(name, value, "load" if name == "load" else "percent", status, threshold))
        seen = {check_of(name) for name in snapshot.values}
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
