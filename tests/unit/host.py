"""A host as a folder of files, a clock that only sleeping moves, and a runner that notes what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from luminous_nix.self_healing.act.steps import Step
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.models import HealingError, Roots

NO_BUS = "unix:path=/nonexistent/bus"


class Clock:
    """Virtual seconds."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def ns(self) -> int:
        return int(self.now * 1e9)

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def no_bus() -> Bus:
    """A bus that nobody offers."""
    return Bus(NO_BUS, clock=Clock())


class FakeHost:
    """Files in the shape of /proc, /sys, /run, /nix and the journal. They are rewritten in place."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.roots = Roots(root / "proc", root / "sys", root / "run", root / "journal", root / "nix")
        self.cpu(busy=0, idle=1000)
        self.memory(50.0)
        self.load(0.5)
        for resource in ("cpu", "memory", "io"):
            self.pressure(resource)
        self.mounts([])
        self.write(self.roots.sys / "devices/system/cpu/online", "0-3\n")

    def write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def cpu(self, *, busy: int, idle: int) -> None:
        self.write(self.roots.proc / "stat", f"cpu  {busy} 0 0 {idle} 0 0 0 0 0 0\ncpu0 1 2 3\n")

    def memory(self, used_percent: float, swap_percent: float = 10.0) -> None:
        total, swap = 1_000_000, 100_000
        lines = {
            "MemTotal": total,
            "MemFree": 1000,
            "MemAvailable": round(total * (1 - used_percent / 100)),
            "SwapTotal": swap,
            "SwapFree": round(swap * (1 - swap_percent / 100)),
        }
        self.write(self.roots.proc / "meminfo", "".join(f"{key}:{value:>15} kB\n" for key, value in lines.items()))

    def load(self, value: float) -> None:
        self.write(self.roots.proc / "loadavg", f"{value:.2f} 0.40 0.30 1/234 5678\n")

    def pressure(self, resource: str, some: float = 0.0, full: float = 0.0) -> None:
        text = "{} avg10=0.00 avg60={:.2f} avg300=0.00 total=1\n"
        self.write(self.roots.proc / "pressure" / resource, text.format("some", some) + text.format("full", full))

    def mounts(self, lines: Iterable[str]) -> None:
        self.write(self.roots.proc / "self/mountinfo", "".join(f"{line}\n" for line in lines))

    def service_cache(self, unit: str, idle_bytes: int) -> Path:
        """A unit's cgroup with so much idle file cache; returns its memory.reclaim."""
        root = self.roots.sys / "fs/cgroup"
        self.write(root / "cgroup.controllers", "cpu io memory\n")
        self.write(root / "system.slice" / unit / "memory.stat", f"anon 1\ninactive_file {idle_bytes}\n")
        return self.write(root / "system.slice" / unit / "memory.reclaim", "")

    def cpufreq(self, governor: str, choices: str = "schedutil powersave", driver: str = "acpi-cpufreq") -> Path:
        """One cpufreq policy; returns its folder."""
        policy = self.roots.sys / "devices/system/cpu/cpufreq/policy0"
        for name, text in (("governor", governor), ("available_governors", choices), ("driver", driver)):
            self.write(policy / f"scaling_{name}", text + "\n")
        return policy

    def process(self, pid: int, *, start: int = 100, parent: int = 1, cgroup: str = "/user.slice/x.scope") -> Path:
        """A process of the age of uptime less its start; returns its folder."""
        fields = " ".join(["S", str(parent), *["0"] * 17, str(start), "0", "0"])
        folder = self.roots.proc / str(pid)
        self.write(folder / "stat", f"{pid} (worker) {fields}\n")
        self.write(folder / "cgroup", f"0::{cgroup}\n")
        self.write(self.roots.proc / "uptime", "100000.00 200000.00\n")
        return folder


class Recorder:
    """A runner: notes each step, then does to the host what the test says."""

    def __init__(self, effect: Callable[[Step], None] | None = None, problem: HealingError | None = None) -> None:
        self.steps: list[Step] = []
        self._effect = effect
        self._problem = problem

    async def run(self, step: Step) -> str:
        self.steps.append(step)
        if self._problem is not None:
            raise self._problem
        if self._effect is not None:
            self._effect(step)
        return "done"
