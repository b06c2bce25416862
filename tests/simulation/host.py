"""The simulated host: what is true of its units, filesystems, memory and clocks. It knows nothing of the engine."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime, timedelta

from luminous_nix.self_healing.models import UnitState

from .faults import MOUNTS, REQUIRES, UNITS, Fault, Moment, kind, make, moments, schedule, seeded

TICK_S = 60.0
LOOKS_EVERY = 720  # ticks, after which a person looks at what waits for one
CPUS = 4
BASE: dict[str, dict[str, float]] = {
    "cpu": {"cpu": 20.0},
    "memory": {"memory": 50.0, "swap": 5.0},
    "load": {"load": 1.0},
    "pressure": {f"pressure:{name}:full": 1.0 for name in ("cpu", "memory", "io")},
    "disk": {f"{what}:{mount}": 40.0 for mount in MOUNTS for what in ("disk", "inodes")},
}
SENSOR_OF = {reading: sensor for sensor, readings in BASE.items() for reading in readings}
_LIMITS = {
    "cpu": 80.0,
    "memory": 85.0,
    "swap": 80.0,
    "load": 2.0 * CPUS,
    "pressure": 60.0,
    "disk": 90.0,
    "inodes": 90.0,
}
LIMIT = {reading: _LIMITS[reading.partition(":")[0]] for reading in SENSOR_OF}
POOL_OF = {name: pool for pool, names in UNITS.items() for name in names}
_HOST_MOMENTS = frozenset({"stopped_on_purpose", "masked", "reboot", "suspend"})
_NOON = datetime(2026, 3, 1, 12)  # noqa: DTZ001  the engine shows local time


class Host:
    """`tick` moves it on by a minute; `attempt` is the only way in which an act changes it."""

    def __init__(self, seed: int | str, ticks: int) -> None:
        self.seed, self.ticks, self.at = seed, ticks, -1
        self.now = 1_000.0  # true seconds since the first boot, sleep included
        self.booted_at, self.asleep, self.resumed_at = 0.0, 0.0, float("-inf")
        self.jump = timedelta(0)
        self.faults = schedule(seed, ticks)
        self.active: list[Fault] = []
        self.moments: list[Moment] = []  # of now
        self.on_purpose: set[str] = set()
        self.masked: set[str] = set()
        self.hanging: dict[str, float] = {}  # unit → until when its start job lasts
        self.gave_in: set[str] = set()  # ended by itself, and a start of it failed since
        self.down_since: dict[str, float] = {}
        self.down: dict[str, UnitState] = {}  # units that do not run
        self.starts: dict[str, int] = defaultdict(int)
        self.levels = {sensor: dict(values) for sensor, values in BASE.items()}
        self.busy = ""
        self.visited = False  # a person came in this tick
        self.culprit = ""  # the unit that is seen to hold the memory
        self.points = self.points_up = 0
        self._restless: list[Fault] = []
        self._begins: dict[int, list[Fault]] = defaultdict(list)
        self._ends: dict[int, list[Fault]] = defaultdict(list)
        for fault in self.faults:
            self._begins[fault.start].append(fault)
        self._moments_begin: dict[int, list[Moment]] = defaultdict(list)
        for moment in moments(seed, ticks):
            self._moments_begin[moment.start].append(moment)
        self._points_now = self._up_now = 0
        self._settle()

    # -- clocks ----------------------------------------------------------------------------------------------

    def boot_clock(self) -> float:
        return self.now - self.booted_at

    def wall(self) -> datetime:
        return _NOON + timedelta(seconds=self.now) + self.jump

    # -- time goes on ----------------------------------------------------------------------------------------

    def tick(self) -> tuple[list[Moment], list[Moment]]:
        """One minute later: what begins and what ends. Returns the disturbances that begin, and that end."""
        self.at += 1
        began = self._moments_begin.get(self.at, [])
        over = [moment for moment in self.moments if moment.end <= self.at] if self.moments else []
        if began or over:
            self.moments = [moment for moment in self.moments if moment.end > self.at] + began
            for moment in over:
                self._stop(moment)
            for moment in began:
                self._start(moment)
        self.follow()
        self.points += self._points_now
        self.points_up += self._up_now
        return began, over

    def follow(self) -> None:
        """Faults that end and begin at this tick, and those that change by themselves."""
        ending, beginning = self._ends.get(self.at, ()), self._begins.get(self.at, ())
        self.visited = self.at % LOOKS_EVERY == LOOKS_EVERY - 1
        for fault in ending:
            self.visited |= fault.ended is None and fault.tried and fault.kind.ends_by == "person"
            self.finish(fault)
        for fault in beginning:
            self.begin(fault)
        if self._restless:
            for fault in self._restless:
                if fault.kind.flap:
                    fault.hidden = bool((self.at - fault.start) // fault.kind.flap % 2)
            self._restless = [fault for fault in self._restless if self._changes(fault)]
        if ending or beginning or self._restless or self.hanging:
            self._settle()

    def _changes(self, fault: Fault) -> bool:
        if fault.ended is not None:
            return False
        return bool(fault.kind.flap) or self.at - fault.start <= fault.kind.grow

    def begin(self, fault: Fault) -> None:
        self.active.append(fault)
        self._ends[max(fault.end, self.at + 1)].append(fault)
        if fault.kind.flap or fault.kind.grow:
            self._restless.append(fault)

    def finish(self, fault: Fault, *, mended: bool = False) -> None:
        if fault.ended is None:
            fault.ended, fault.mended = self.at, mended
            self.active.remove(fault)

    def _start(self, moment: Moment) -> None:
        watched = UNITS["watched"]
        if moment.name == "stopped_on_purpose":
            self.on_purpose.add(watched[int(moment.pick * len(watched))])
        elif moment.name == "masked":
            self.masked.add(watched[int(moment.pick * len(watched))])
        elif moment.name == "suspend":
            self.now += 60.0 + moment.pick * 8 * 3600.0
            self.asleep += 60.0 + moment.pick * 8 * 3600.0
            self.resumed_at = self.now
        elif moment.name == "reboot":
            self._boot()
        self._settle()

    def _stop(self, moment: Moment) -> None:
        watched = UNITS["watched"]
        if moment.name == "stopped_on_purpose":
            self.on_purpose.discard(watched[int(moment.pick * len(watched))])
        elif moment.name == "masked":
            self.masked.discard(watched[int(moment.pick * len(watched))])
        self._settle()

    def _boot(self) -> None:
        self.now += 30.0
        self.booted_at, self.asleep = self.now, 0.0
        self.resumed_at = float("-inf")
        self.hanging.clear()
        for fault in [fault for fault in self.active if fault.kind.reboot]:
            self.finish(fault)
        self.down_since = dict.fromkeys(self.down_since, self.now + 1.0)

    # -- what an act does ------------------------------------------------------------------------------------

    def attempt(self, fault: Fault, action: str) -> str:
        """An act on a fault: it mends, does nothing, or breaks something else (`harms`)."""
        fault.tried = True
        if fault.draw() < fault.kind.mends[action]:
            self.finish(fault, mended=True)
            self.starts[fault.unit] += 1
            self.gave_in.discard(fault.unit)
            self._settle()
            return "mends"
        harms = fault.draw() < fault.kind.harms
        if harms:
            self._break_something(fault)
        if fault.unit:
            self.gave_in.add(fault.unit)
            self.down_since[fault.unit] = self.now
            if fault.kind.fails == "hangs":
                self.hanging[fault.unit] = self.now + (20.0 if fault.draw() < 0.5 else 150.0)
        self._settle()
        return "harms" if harms else "nothing"

    def _break_something(self, fault: Fault) -> None:
        name = "collateral_unit" if fault.unit else "collateral_pressure"
        number = f"{fault.number}/harm{fault.draw():.9f}"
        for broken in make(kind(name), self.at, seeded(number), number, without=fault.unit):
            self.begin(broken)

    def undo_pressure(self) -> None:
        for fault in [fault for fault in self.active if fault.kind.name == "collateral_pressure"]:
            self.finish(fault)
        self._settle()

    def faults_of(self, unit: str) -> list[Fault]:
        return [fault for fault in self.active if fault.unit == unit and not fault.hidden]

    def faults_in(self, reading: str) -> list[Fault]:
        return [fault for fault in self.active if reading in fault.levels and not fault.hidden]

    # -- what follows from it --------------------------------------------------------------------------------

    def _settle(self) -> None:
        self._settle_units()
        self._settle_levels()
        wanted = [name for name in UNITS["watched"] if name not in self.on_purpose and name not in self.masked]
        up = sum(name not in self.down for name in wanted)
        others = self._others()
        self._points_now, self._up_now = len(wanted) + len(others), up + sum(others)

    def _others(self) -> list[bool]:
        """What is counted beside the units: filesystems with room, memory, processor and disks that can be had."""
        disk, memory, pressure = self.levels["disk"], self.levels["memory"], self.levels["pressure"]
        return [
            *(max(disk[f"disk:{mount}"], disk[f"inodes:{mount}"]) < 90.0 for mount in MOUNTS),
            memory["memory"] < 95.0 and pressure["pressure:memory:full"] < 20.0,
            self.levels["cpu"]["cpu"] < 90.0,
            pressure["pressure:io:full"] < 40.0,
        ]

    def _settle_levels(self) -> None:
        for sensor, base in BASE.items():
            self.levels[sensor].update(base)
        self.culprit = ""
        for fault in self.active:
            self.culprit = fault.culprit or self.culprit
            for reading, level in fault.levels.items():
                values, low = self.levels[SENSOR_OF[reading]], BASE[SENSOR_OF[reading]][reading]
                share = min(1.0, (self.at - fault.start) / fault.kind.grow) if fault.kind.grow else 1.0
                values[reading] = max(values[reading], low + (level - low) * share)

    def _settle_units(self) -> None:
        names = {fault.unit for fault in self.active if fault.unit and not fault.hidden}
        names |= self.on_purpose | self.masked
        for name in self.down_since.keys() - names:
            del self.down_since[name]
            self.gave_in.discard(name)
            self.hanging.pop(name, None)
        for name in names:
            self.down_since.setdefault(name, self.now)
        self.down = {name: self._state(name) for name in sorted(names)}

    def _state(self, name: str) -> UnitState:
        full, since = f"{name}.service", int((self.down_since[name] - self.booted_at) * 1e6)
        if name in self.masked:
            return UnitState(full, load="masked", file_state="masked")
        if name in self.on_purpose:
            return UnitState(full, file_state="enabled", ended_by="stop", inactive_enter_us=since)
        looks = self.faults_of(name)[-1].kind.units
        if self.hanging.get(name, 0.0) > self.now:
            return UnitState(full, active="activating", sub="start", file_state="enabled", job=7)
        self.hanging.pop(name, None)
        if looks == "auto_restart":
            return UnitState(full, active="activating", sub="auto-restart", file_state="enabled", restarts=1)
        failed = looks != "inactive" or name in self.gave_in
        loop = looks == "crash_loop"
        return UnitState(
            full, active="failed" if failed else "inactive", sub="failed" if failed else "dead",
            result="exit-code" if failed else "success", file_state="enabled", ended_by="itself",
            kind="oneshot" if looks == "job" else "simple", triggered=looks == "job",
            main_code=1, main_status=int(failed), restart_prevented=looks == "prevented",
            restarts=5 if loop else 0, start_limit_burst=5, inactive_enter_us=since,
        )  # fmt: skip

    def running(self, name: str) -> UnitState:
        return UnitState(f"{name}.service", active="active", sub="running", file_state="enabled",
                         invocation=f"{name}/{self.starts[name]}")  # fmt: skip

    def refresh(self, name: str) -> None:
        """A start job that hung has ended meanwhile."""
        if name in self.hanging and self.hanging[name] <= self.now:
            self._settle()


def requires(name: str) -> str:
    """The unit that must run before this one can start, or empty."""
    return REQUIRES.get(name, "")
