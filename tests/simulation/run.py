"""A run: the real engine on the simulated host, tick by tick, with the checker beside it.

Nothing in it ever waits, so a cycle is driven by a single `send` and needs no event loop; a cycle that does
suspend is one that was killed there, and is never resumed.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from luminous_nix.self_healing.act.executor import SimpleExecutor
from luminous_nix.self_healing.healing_engine import SimplifiedHealingEngine
from luminous_nix.self_healing.models import HostState, Roots
from luminous_nix.self_healing.observe.detector import SimpleDetector
from luminous_nix.self_healing.permission_handler import NixOSPermissionHandler
from luminous_nix.self_healing.store import Store

from .checker import Checker, Violation
from .disturb import Disturber
from .faults import Fault
from .handler import SimHandler
from .host import BASE, CPUS, TICK_S, Host
from .ledger import Ledger
from .sensors import WATCHED, Shown, SimSensor, SimUnits, Trouble

_MEMORY = 16 << 30


class Killed(BaseException):
    """The program was killed here."""


class _Never:
    """Awaited, it never comes back."""

    def __await__(self) -> Generator[None, None, None]:
        yield


@dataclass(slots=True)
class Outcome:
    """What a run came to. Repair times are in ticks, a tick that was begun counts."""

    seed: int | str
    ticks: int
    points: int
    points_up: int
    repairs: dict[str, int]
    violations: list[tuple[int, str, str]] = field(default_factory=list)
    on_healthy: int = 0
    acts: list[tuple[int, str, str]] = field(default_factory=list)
    mended: int = 0
    restarts: int = 0
    issues: int = 0

    @property
    def availability(self) -> float:
        return self.points_up / self.points


@dataclass(frozen=True, slots=True)
class Options:
    """How a run differs from the plain one.

    `path` None keeps the store in memory; `order` is that of the sensors; `every` restarts the engine at each
    so-many-th tick; `engine` are constructor arguments of the engine. The last ones replace parts, to see whether
    the checker finds out.
    """

    path: Path | None = None
    order: Sequence[str] = tuple(BASE)
    jumps: bool = True
    every: int = 0
    strict: bool = True
    engine: Mapping[str, Any] = field(default_factory=dict)
    handler: type[SimHandler] = SimHandler
    units: type[SimUnits] = SimUnits
    sensor: type[SimSensor] = SimSensor
    store: type[Store] = Store


class Tree:
    """The few files that the detector's diagnosis reads: how much memory there is, and which unit holds it."""

    def __init__(self, folder: Path) -> None:
        self.roots = Roots(*[folder / name for name in ("proc", "sys", "run", *["none"] * 6)])
        self.culprit = ""
        self._slice = self.roots.sys / "fs/cgroup/system.slice"
        self._slice.mkdir(parents=True)
        self.roots.proc.mkdir()
        (self._slice.parent / "cgroup.controllers").write_text("cpu memory")
        (self.roots.proc / "meminfo").write_text(f"MemTotal: {_MEMORY >> 10} kB\n")

    def name(self, unit: str) -> None:
        for name, size in ((self.culprit, 0), (unit, _MEMORY // 2)):
            if name:
                place = self._slice / f"{name}.service"
                place.mkdir(exist_ok=True)
                (place / "memory.stat").write_text(f"anon {size}\n")
        self.culprit = unit


class Run:
    """`go` runs it to its end; with `strict` the first violation is raised."""

    def __init__(self, seed: int | str, ticks: int, folder: Path, options: Options | None = None) -> None:
        self.options = options or Options()
        self.tree = Tree(folder)
        self.host = Host(seed, ticks)
        self.shown, self.trouble = Shown(self.host), Trouble()
        self.sensors = {name: self.options.sensor(name, self.host, self.shown, self.trouble) for name in BASE}
        self.units = self.options.units(self.host, self.shown, self.trouble)
        self.ledger = Ledger(self.options.path)
        self.checker = Checker(self.host, self.shown, self.trouble, self.sensors, self.ledger, self.stopped)
        self.switch_until, self.paused = -1, False
        self.armed: tuple[str, int] | None = None
        self.restarts = self.issues = self._ids = self.boots = 0
        self.disturb = Disturber(self)
        self.engine: SimplifiedHealingEngine
        self._dead: list[Coroutine[Any, Any, Any]] = []
        self.build()

    # -- parts -----------------------------------------------------------------------------------------------

    def build(self) -> None:
        """The program starts: everything of its own is new, but what the store kept."""
        store = self._open_store()
        self.checker.dead = False
        handler = self.options.handler(self.host, self.checker, self.point, self.switch)
        detector = SimpleDetector(
            monitored_units=WATCHED, roots=self.tree.roots, cpus=CPUS, units=self.units, clock_ns=lambda: 0,
            sensors=[(name, self.sensors[name]) for name in self.options.order],
        )  # fmt: skip
        parts: dict[str, Any] = {
            "detector": detector, "executor": SimpleExecutor(cast("NixOSPermissionHandler", handler)),
            "store": store, "switch": self.switch, "host": self._host_state, "clock": self.host.boot_clock,
            "sleep": self._sleep, "suspended": lambda: self.host.asleep, "wall": self.host.wall,
            "ids": self._next_id,
        }  # fmt: skip
        self.engine = SimplifiedHealingEngine(**parts | dict(self.options.engine))
        self.restarts += 1
        self.checker.program_began = self.host.now

    def _open_store(self) -> Store:
        path = self.options.path
        store = self.ledger.store
        if path is None:
            self.ledger.store = store or self.options.store(None, clock=lambda: self.host.now, boot_id="")
            return self.ledger.store
        if store is not None:
            store.close()
        self.ledger.store = store = self.options.store(
            path, clock=self._clock_of_this_boot(), boot_id=str(self.boots)
        )
        if self.disturb.lasts("state_disk_full"):
            self.disturb.fill(store)
        return store

    def _clock_of_this_boot(self) -> Callable[[], float]:
        """A program does not outlive a boot: what it writes at its end is of the boot that it ran in."""
        host, booted_at = self.host, self.host.booted_at
        return lambda: host.now - booted_at

    def _next_id(self) -> str:
        self._ids += 1
        return f"{self._ids:012x}"

    async def _host_state(self) -> HostState:
        if self.trouble.bus_down:
            return HostState(unknown="the bus is out of reach")
        return HostState(busy=self.host.busy)

    # -- where the program may be ended, or told to stop -------------------------------------------------------

    async def _sleep(self, seconds: float) -> None:
        self.host.now += seconds
        await self.point()

    def switch(self) -> str:
        return "the simulation set it" if self.switch_until > self.host.at else ""

    def stopped(self) -> str:
        return self.switch() or ("paused" if self.paused else "")

    async def point(self) -> None:
        """A place in the middle of an act."""
        if self.armed is None:
            return
        name, left = self.armed
        self.armed = (name, left - 1)
        if left > 1:
            return
        self.armed = None
        if name == "kill_switch_in_an_act":
            self.switch_until = self.host.at + 10
            return
        self.checker.broken = self.checker.dead = True
        if name == "cancelled_in_an_act":
            raise asyncio.CancelledError
        if self.options.path is None:
            await _Never()
        assert self.ledger.store is not None
        self.ledger.store.close()
        raise Killed

    # -- ticks -----------------------------------------------------------------------------------------------

    def go(self) -> Outcome:
        try:
            for _ in range(self.host.ticks):
                self.tick()
        finally:
            for cycle in self._dead:
                with contextlib.suppress(Exception, Killed):
                    cycle.close()
            if self.ledger.store is not None:
                self.ledger.store.close()
        checker = self.checker
        return Outcome(
            self.host.seed, self.host.ticks, self.host.points, self.host.points_up, repairs(self.host),
            checker.problems, checker.count["healthy"],
            [(deed.tick, deed.action, deed.target) for deed in checker.deeds],
            sum(fault.mended for fault in self.host.faults), self.restarts - 1, self.issues,
        )  # fmt: skip

    def tick(self) -> None:
        host = self.host
        began_at = host.now
        began, over = host.tick()
        if began or over:
            for moment in over:
                self.disturb.end(moment)
            for moment in began:
                self.disturb.begin(moment)
        if host.visited:
            self.disturb.visit()
        if self.options.every and host.at % self.options.every == 0:
            self.build()
        if host.culprit != self.tree.culprit:
            self.tree.name(host.culprit)
        self.checker.before()
        self._cycle()
        self.checker.after()
        if self.checker.problems and self.options.strict:
            at, invariant, what = self.checker.problems[0]
            raise Violation(f"{invariant} at seed {host.seed}, tick {at}: {what}\n"
                            f"replay: python -m tests.simulation --seed {host.seed} --ticks {at + 1}")  # fmt: skip
        host.now = max(host.now, began_at + TICK_S)

    def _cycle(self) -> None:
        cycle = self.engine.detect_and_heal()
        try:
            cycle.send(None)
        except StopIteration as done:
            self.issues += len(done.value)
            for result in done.value:
                if result.error and "an error of this program" in result.error:
                    self.checker.wrong("error", result.error)
        except (asyncio.CancelledError, Killed):
            pass
        else:
            self._dead.append(cycle)  # its `finally` must not run: it was killed
        if self.checker.dead:
            self.build()


def repairs(host: Host) -> dict[str, int]:
    """How long each healable fault lasted, of those that began."""

    def lasted(fault: Fault) -> int:
        return (host.ticks if fault.ended is None else fault.ended) - fault.start + 1

    return {fault.number: lasted(fault) for fault in host.faults if fault.kind.healable}


def simulate(seed: int | str, ticks: int, options: Options | None = None) -> Outcome:
    with tempfile.TemporaryDirectory(prefix="simulated-") as folder:
        return Run(seed, ticks, Path(folder), options).go()


def baseline(seed: int | str, ticks: int) -> Outcome:
    """The same host and the same faults, and nobody does anything about them."""
    host = Host(seed, ticks)
    for _ in range(ticks):
        host.tick()
        host.now += TICK_S
    return Outcome(seed, ticks, host.points, host.points_up, repairs(host))
