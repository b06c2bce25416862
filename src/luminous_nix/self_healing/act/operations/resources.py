"""Memory, CPU and processes: reclaim and not drop, raise and never lower, end only who was meant."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ...bus import BusRefused, BusUnavailable
from ...decide.actions import protected
from ...models import ActionRefused, Roots
from ...observe.procfs import ProcessStat, parse_process
from ...observe.systemd import read_unit
from ..steps import EndProcess, Knob, Plan, Step, WriteFile
from .knobs import read_knob, set_knob
from .world import MIB, World, names, read

_KNOB_OWNERS: Final = (
    "tlp.service",
    "power-profiles-daemon.service",
    "auto-cpufreq.service",
    "tuned.service",
)
_HOLDING_DOWN: Final = frozenset({"powersave", "conservative", "userspace"})
_RISING: Final = ("schedutil", "ondemand", "performance")  # the gentlest first
_OWN_POLICY: Final = frozenset({"intel_pstate", "amd-pstate-epp"})  # their "powersave" is a full-range policy
_YOUNG_S: Final = 60.0


def _reclaimable(services: Path, found: list[str], *, rooted: bool) -> Iterator[tuple[int, Path]]:
    """(bytes of file cache not in use, memory.reclaim) of the services found below system.slice."""
    for name in found:
        knob, stat = services / name / "memory.reclaim", services / name / "memory.stat"
        if protected(name) or not (knob.exists() if rooted else os.access(knob, os.W_OK)):
            continue
        try:
            fields = dict(line.split() for line in stat.read_text().splitlines())
            size = int(fields.get("inactive_file", 0))
        except (OSError, ValueError):  # the unit ended while we looked
            continue
        if size >= 4 * MIB:
            yield size, knob


async def clear_system_cache(world: World, arguments: Mapping[str, Any]) -> Plan:
    """memory.reclaim of background services where the kernel has it; dropping all caches only on a word."""
    root = world.cgroups.root()
    services = root / "system.slice" if root else None
    here = [name for name in names(services) if name.endswith(".service")] if services else []
    budget = arguments.get("bytes", 1 << 40)
    steps: list[Step] = []
    found = sorted(_reclaimable(services, here, rooted=world.rooted), reverse=True)[:16] if services else []
    for size, knob in found:
        amount = min(size, budget)
        if amount >= MIB:
            steps.append(WriteFile(knob, str(amount), partial_ok=True, power=f"reclaim@{knob.parent.name}:{amount}"))
            budget -= amount
    if steps:
        return Plan((f"{sum(size for size, _ in found) // MIB} MiB of idle file cache in background services",),
                    tuple(steps))  # fmt: skip
    if arguments.get("drop_caches"):
        knob = world.roots.proc / "sys/vm/drop_caches"
        return Plan(
            ("nothing to reclaim by cgroup; dropping the page cache was asked for",),
            (WriteFile(knob, "1", power="dropcaches"),),
        )
    if services and any((services / name / "memory.reclaim").exists() for name in here):
        raise ActionRefused("no background service holds idle file cache that may be reclaimed",
                            "as root there may be more to reclaim")  # fmt: skip
    raise ActionRefused(
        "this kernel has no memory.reclaim (cgroup v2, Linux 5.19)",
        "dropping the whole page cache slows everything down, so it is done only when asked: drop_caches=true",
    )


async def adjust_swappiness(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Write vm.swappiness; the former value is the way back."""
    name, wanted = "vm.swappiness", str(arguments["value"])
    former = await read_knob(world, name)
    if former == wanted:
        raise ActionRefused(f"vm.swappiness is {wanted} already")
    return Plan((f"vm.swappiness is {former}",), (set_knob(world, name, wanted),), (Knob(name, former, wanted),))


async def set_cpu_governor(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Raise the governors that hold the CPU down; never lower one, never against another tool."""
    cpufreq = world.roots.sys / "devices/system/cpu/cpufreq"
    policies = sorted(cpufreq / name for name in names(cpufreq) if name.startswith("policy"))
    if not policies:
        raise ActionRefused(
            "this host has no CPU frequency control (no cpufreq policy)", "a virtual machine has none"
        )
    await _nobody_else_owns_the_governor(world)
    knobs = []
    for policy in policies:
        name = f"cpufreq:{policy.name}"
        former = await read_knob(world, name)
        choices = read(policy / "scaling_available_governors").split()
        wanted = arguments.get("governor") or next((rising for rising in _RISING if rising in choices), "")
        if wanted not in choices or wanted not in _RISING:
            offer = ", ".join(rising for rising in _RISING if rising in choices) or "none that raises"
            raise ActionRefused(
                f"the governor {wanted or '?'} is not one to raise to", f"{policy.name} offers: {offer}"
            )
        if former in _HOLDING_DOWN and read(policy / "scaling_driver") not in _OWN_POLICY:
            knobs.append(Knob(name, former, wanted))
    if not knobs:
        raise ActionRefused(f"no governor holds the CPU down (it is {read(policies[0] / 'scaling_governor')})")
    checks = (f"{knob.name} is held down by {knob.former}" for knob in knobs)
    return Plan(tuple(checks), tuple(set_knob(world, knob.name, knob.ours) for knob in knobs), tuple(knobs))


async def _nobody_else_owns_the_governor(world: World) -> None:
    for name in _KNOB_OWNERS:
        try:
            unit = await read_unit(world.bus, name)
        except (BusUnavailable, BusRefused) as error:
            raise ActionRefused(
                f"whether {name} owns the governor is unknown: {error.message}", error.hint
            ) from error
        if unit.active in {"active", "activating"}:
            raise ActionRefused(f"{name} owns the CPU governor", "change it there; two owners of one knob fight")


async def kill_process(world: World, arguments: Mapping[str, Any]) -> Plan:
    """TERM, then KILL, to exactly the process that was diagnosed: pid and start time must both match."""
    pid, wanted = arguments["pid"], arguments["start_time"]
    stat = read_process(world.roots, pid)
    if stat is None or stat.start_time != wanted:
        raise ActionRefused(f"process {pid} is not the one that was meant: it ended, and the number may be another's")
    if stat.parent == 2 or pid == 2:
        raise ActionRefused(f"process {pid} is a kernel thread")
    if pid == os.getpid() or pid == os.getppid():
        raise ActionRefused(f"process {pid} is this program or the one that started it")
    directory = world.roots.proc / str(pid)
    owner = directory.stat().st_uid
    if owner == 0:
        raise ActionRefused(f"process {pid} ({stat.command}) belongs to root")
    units = read(directory / "cgroup").rpartition(":")[2].split("/")
    guarded = next((unit for unit in units if protected(unit) and not unit.startswith("user@")), None)
    if guarded:
        raise ActionRefused(f"process {pid} ({stat.command}) belongs to {guarded}, which is protected")
    age = float(read(world.roots.proc / "uptime").split()[0]) - stat.start_time / os.sysconf("SC_CLK_TCK")
    if age < _YOUNG_S:
        raise ActionRefused(f"process {pid} ({stat.command}) is only {age:.0f} s old", "what just started may settle")
    return Plan(
        (f"process {pid} ({stat.command}) of uid {owner} is the one that was meant",),
        (EndProcess(pid, wanted),),
    )


def read_process(roots: Roots, pid: int) -> ProcessStat | None:
    """/proc/PID/stat, or None when there is no such process."""
    try:
        return parse_process((roots.proc / str(pid) / "stat").read_bytes())
    except (OSError, ValueError):
        return None
