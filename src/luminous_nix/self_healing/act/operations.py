"""What each action of the catalogue means on this host: read, check, and return a plan. Nothing is changed here.

Every operation is named like its row in the catalogue and answers with a `Plan`, or raises ActionRefused
with the reason. The remedies are those that docs/design.md calls right: collection never deletes a
generation, caches are reclaimed and not dropped, a governor is only ever raised.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..bus import Bus, BusRefused, BusUnavailable
from ..decide.actions import protected
from ..models import ActionRefused, ObservationError, Roots, UnitState
from ..observe.procfs import Mount, ProcessStat, parse_mountinfo, parse_process
from ..observe.systemd import SystemdSensor, read_unit, relations
from ..process import find
from .steps import EndProcess, Plan, RunProgram, Step, UnitJob, WriteFile

_MIB: Final = 1 << 20
_HOLD_US: Final = 300_000_000  # a unit that hit its start limit is left alone for at least this long
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
_DAY_S: Final = 86400.0


@dataclass(frozen=True)
class World:
    """What an operation may look at."""

    bus: Bus
    roots: Roots = field(default_factory=Roots)
    clock: Callable[[], float] = time.monotonic
    finder: Callable[[str], str | None] = find


Operation = Callable[[World, Mapping[str, Any]], Awaitable[Plan]]


async def observe(_world: World, _arguments: Mapping[str, Any]) -> Plan:
    """Nothing: where no remedy is known, watching is the right answer."""
    return Plan(("watched only: nothing is known to help against it safely",), ())


# -- units ---------------------------------------------------------------------------------------------------


async def _unit(world: World, name: str) -> UnitState:
    if protected(name):
        raise ActionRefused(f"{name} is in the protected set", "it is never touched, so look at it yourself")
    _no_switch(world)
    try:
        unit = await SystemdSensor(world.bus, world.roots).unit(name)
    except ObservationError as error:
        raise ActionRefused(f"{name} cannot be looked at: {error.message}", error.hint) from error
    if guarded := next((alias for alias in (unit.name, *unit.aliases) if protected(alias)), ""):
        raise ActionRefused(f"{name} is {guarded}, which is in the protected set")
    if unit.load != "loaded" or unit.file_state.startswith("masked"):
        said = {"not-found": "there is no such unit", "masked": "it is masked"}.get(
            unit.load, f"it is {unit.file_state}"
        )
        raise ActionRefused(f"{name}: {said}")
    if unit.job:
        raise ActionRefused(f"{name} has a job in flight already", "systemd is at work on it, so look again later")
    if unit.sub == "auto-restart":
        raise ActionRefused(f"{name} is being restarted by systemd itself (Restart=)")
    if unit.refuse_start:
        raise ActionRefused(f"{name} refuses to be started or stopped by hand (RefuseManualStart/Stop=)")
    return unit


def _startable(unit: UnitState) -> str:
    """What the precheck found. Raises ActionRefused."""
    if unit.active in {"active", "reloading", "activating", "deactivating"}:
        raise ActionRefused(f"{unit.name} is {unit.active} ({unit.sub})")
    if unit.stopped_on_purpose:
        raise ActionRefused(
            f"{unit.name} was stopped on purpose", f"systemctl start {unit.name}, if that was an error"
        )
    if unit.file_state == "disabled" and unit.active != "failed":
        raise ActionRefused(f"{unit.name} is disabled")
    if unit.transient:
        raise ActionRefused(f"{unit.name} is a one-off command: running it again is for whoever started it")
    if unit.restart_prevented:
        raise ActionRefused(f"{unit.name} ended with a status that must not be answered by a restart",
                            "RestartPreventExitStatus= of the unit says so")  # fmt: skip
    return f"{unit.name} is {unit.active} ({unit.result}), not masked, not stopped on purpose, no job in flight"


def _held(unit: UnitState, now_s: float) -> list[Step]:
    """A unit in a crash loop rests; after that its counter is reset first. Raises ActionRefused during the rest."""
    if not unit.gave_up:
        return []
    hold = max(_HOLD_US, unit.start_limit_us)
    left = (hold - (now_s * 1e6 - unit.inactive_enter_us)) / 1e6
    if left > 0:
        when = f"one clean start is tried in {left:.0f} s" if left < _DAY_S else "only a person starts it again"
        raise ActionRefused(f"{unit.name} is in a crash loop and held: {unit.restarts} restarts did not help",
                            f"mend its cause first: {when}")  # fmt: skip
    return [UnitJob("ResetFailedUnit", unit.name)]


async def _no_side_effects(world: World, unit: UnitState) -> None:
    """Starting a unit stops what conflicts with it and starts what it requires: neither may be against a will."""
    try:
        rivals = await relations(world.bus, unit.name, "Conflicts", "ConflictedBy")
        needed = await relations(world.bus, unit.name, "Requires", "BindsTo", "Requisite")
        for name, active in rivals.items():
            if active in {"active", "activating", "reloading"} and not name.endswith(".target"):
                raise ActionRefused(f"starting {unit.name} would stop {name}, which runs (Conflicts=)")
        for name, active in needed.items():
            if active in {"failed", "inactive"} and name.endswith((".service", ".mount")):
                other = await SystemdSensor(world.bus, world.roots).unit(name)
                if active == "failed" or other.stopped_on_purpose or other.load != "loaded" or protected(name):
                    raise ActionRefused(f"{unit.name} needs {name}, which is {active}", "that comes first")
    except (BusUnavailable, BusRefused, ObservationError) as error:
        raise ActionRefused(f"what {unit.name} depends on cannot be looked at: {error.message}") from error


async def restart_service(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Start a unit that is down; in a crash loop it is reset first, once the hold is over.

    StartUnit and not RestartUnit, which would take along running units that require this one.
    """
    return await _start(world, arguments["service"])


async def start_unit(world: World, arguments: Mapping[str, Any]) -> Plan:
    """StartUnit of a unit that is down."""
    return await _start(world, arguments["unit"])


async def _start(world: World, name: str) -> Plan:
    unit = await _unit(world, name)
    found = _startable(unit)
    first = _held(unit, world.clock())
    await _no_side_effects(world, unit)
    return Plan((found,), (*first, UnitJob("StartUnit", unit.name)))


async def reload_service(world: World, arguments: Mapping[str, Any]) -> Plan:
    """ReloadUnit of a running unit that can reload."""
    unit = await _unit(world, arguments["service"])
    if unit.active != "active":
        raise ActionRefused(
            f"{unit.name} is {unit.active}: only a running unit can reload", "restart_service starts it"
        )
    if not unit.can_reload:
        raise ActionRefused(f"{unit.name} cannot reload (it has no ExecReload=)")
    return Plan((f"{unit.name} is running and can reload",), (UnitJob("ReloadUnit", unit.name),))


# -- memory --------------------------------------------------------------------------------------------------


def _cgroup_root(roots: Roots) -> Path | None:
    """The cgroup v2 tree, alone or beside v1."""
    root = roots.sys / "fs/cgroup"
    return next((at for at in (root, root / "unified") if (at / "cgroup.controllers").exists()), None)


def _reclaimable(root: Path) -> Iterator[tuple[int, Path]]:
    """(bytes of file cache not in use, memory.reclaim) of the services below system.slice."""
    for directory in (root / "system.slice").glob("*.service"):
        knob, stat = directory / "memory.reclaim", directory / "memory.stat"
        if protected(directory.name) or not os.access(knob, os.W_OK):
            continue
        try:
            fields = dict(line.split() for line in stat.read_text().splitlines())
            size = int(fields.get("inactive_file", 0))
        except (OSError, ValueError):  # the unit ended while we looked
            continue
        if size >= 4 * _MIB:
            yield size, knob


async def clear_system_cache(world: World, arguments: Mapping[str, Any]) -> Plan:
    """memory.reclaim of background services where the kernel has it; dropping all caches only on a word."""
    root = _cgroup_root(world.roots)
    budget = arguments.get("bytes", 1 << 40)
    steps: list[Step] = []
    found = sorted(_reclaimable(root), reverse=True)[:16] if root else []
    for size, knob in found:
        amount = min(size, budget)
        if amount >= _MIB:
            steps.append(WriteFile(knob, str(amount), partial_ok=True))
            budget -= amount
    if steps:
        return Plan((f"{sum(size for size, _ in found) // _MIB} MiB of idle file cache in background services",),
                    tuple(steps))  # fmt: skip
    if arguments.get("drop_caches"):
        knob = world.roots.proc / "sys/vm/drop_caches"
        return Plan(("nothing to reclaim by cgroup; dropping the page cache was asked for",), (WriteFile(knob, "1"),))
    if root and any((root / "system.slice").glob("*.service/memory.reclaim")):
        raise ActionRefused("no background service holds idle file cache that may be reclaimed",
                            "as root there may be more to reclaim")  # fmt: skip
    raise ActionRefused(
        "this kernel has no memory.reclaim (cgroup v2, Linux 5.19)",
        "dropping the whole page cache slows everything down, so it is done only when asked: drop_caches=true",
    )


async def adjust_swappiness(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Write vm.swappiness; the former value is the way back."""
    knob = world.roots.proc / "sys/vm/swappiness"
    former, wanted = _read(knob), str(arguments["value"])
    if former == wanted:
        raise ActionRefused(f"vm.swappiness is {wanted} already")
    return Plan((f"vm.swappiness is {former}",), (WriteFile(knob, wanted),), (WriteFile(knob, former),))


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise ActionRefused(f"{path} cannot be read: {error.strerror}", "this kernel may not have it") from error


# -- CPU -----------------------------------------------------------------------------------------------------


async def set_cpu_governor(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Raise the governors that hold the CPU down; never lower one, never against another tool."""
    policies = sorted((world.roots.sys / "devices/system/cpu/cpufreq").glob("policy*"))
    if not policies:
        raise ActionRefused(
            "this host has no CPU frequency control (no cpufreq policy)", "a virtual machine has none"
        )
    await _nobody_else_owns_the_governor(world)
    steps, undo, checks = [], [], []
    for policy in policies:
        former = _read(policy / "scaling_governor")
        choices = _read(policy / "scaling_available_governors").split()
        wanted = arguments.get("governor") or next((name for name in _RISING if name in choices), "")
        if wanted not in choices or wanted not in _RISING:
            offer = ", ".join(name for name in _RISING if name in choices) or "none that raises"
            raise ActionRefused(
                f"the governor {wanted or '?'} is not one to raise to", f"{policy.name} offers: {offer}"
            )
        if former in _HOLDING_DOWN and _read(policy / "scaling_driver") not in _OWN_POLICY:
            checks.append(f"{policy.name} is held down by {former}")
            steps.append(WriteFile(policy / "scaling_governor", wanted))
            undo.append(WriteFile(policy / "scaling_governor", former))
    if not steps:
        raise ActionRefused(f"no governor holds the CPU down (it is {_read(policies[0] / 'scaling_governor')})")
    return Plan(tuple(checks), tuple(steps), tuple(undo))


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


# -- disk ----------------------------------------------------------------------------------------------------


def _same_filesystem(world: World, arguments: Mapping[str, Any], place: Path, what: str) -> None:
    """By st_dev, or where that differs by the mount table: the subvolumes of one btrfs have devices of their own."""
    wanted = arguments.get("filesystem")
    try:
        if wanted is None or Path(wanted).stat().st_dev == place.stat().st_dev:
            return
    except OSError as error:
        raise ActionRefused(f"{error.filename} cannot be looked at: {error.strerror}") from error
    mounts = parse_mountinfo(_read(world.roots.proc / "self/mountinfo"))
    if not _source(mounts, Path(wanted)) == _source(mounts, place.resolve()) != "":
        raise ActionRefused(f"{what} is not on {wanted}: freeing it would not help there")


def _source(mounts: list[Mount], path: Path) -> str:
    """The block device that the innermost mount around a path comes from, or empty."""
    around = [mount for mount in mounts if path.is_relative_to(mount.path)]
    source = max(around, key=lambda mount: len(mount.path)).source if around else ""
    return source if source.startswith("/dev/") else ""


async def clean_nix_store(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Collect dead store paths up to a bound, at idle I/O priority. Never -d: generations are the backup."""
    store = world.roots.nix / "store"
    if not store.is_dir():
        raise ActionRefused("there is no nix store on this host")
    if (collector := world.finder("nix-store")) is None:
        raise ActionRefused("nix is not installed")
    _same_filesystem(world, arguments, store, "the nix store")
    _no_switch(world)
    bound = arguments.get("max_freed_bytes") or _bytes_above(store, 0.80)
    gentle = tuple(
        word
        for name, words in (("nice", ("-n", "19")), ("ionice", ("-c", "3")))
        if (path := world.finder(name)) is not None
        for word in (path, *words)
    )
    argv = (*gentle, collector, "--gc", "--max-freed", str(bound))
    return Plan((f"the nix store is here; at most {bound // _MIB} MiB of dead paths, no generation is deleted",),
                (RunProgram(argv, 1800.0, unprivileged=True),))  # fmt: skip


def _no_switch(world: World) -> None:
    """switch-to-configuration holds its lock with flock(2); /proc/locks names the holder's inode."""
    lock = world.roots.run / "nixos/switch-to-configuration.lock"
    try:
        if not lock.exists():
            return
        inode = lock.stat().st_ino
        held = any(line.split()[5].endswith(f":{inode}") for line in _read(world.roots.proc / "locks").splitlines())
    except (OSError, IndexError) as error:
        raise ActionRefused(f"whether a switch is in progress is unknown: {error}") from error
    if held:
        raise ActionRefused("a switch of the system's generation is in progress", "look again when it is done")


def _bytes_above(place: Path, share: float) -> int:
    """How many bytes must go until the filesystem is used to `share`; at least 256 MiB, at most 20 GiB."""
    at = os.statvfs(place)
    used = (at.f_blocks - at.f_bfree) * at.f_frsize
    usable = used + at.f_bavail * at.f_frsize
    return max(256 * _MIB, min(20 << 30, int(used - share * usable)))


async def vacuum_journal(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Drop the oldest journal files: no more than is needed and never more than half, or to the size asked for."""
    place = world.roots.journal
    tool = world.finder("journalctl")
    if tool is None or not place.is_dir():
        raise ActionRefused("there is no journal on disk")
    _same_filesystem(world, arguments, place, "the journal")
    size = sum(file.stat().st_blocks * 512 for file in place.glob("*/*.journal"))
    keep = arguments.get("keep_bytes") or max(64 * _MIB, size // 2, size - _bytes_above(place, 0.80))
    if size <= keep:
        raise ActionRefused(f"the journal takes only {size // _MIB} MiB; at least {keep // _MIB} MiB of it are kept")
    return Plan((f"the journal takes {size // _MIB} MiB; its newest {keep // _MIB} MiB stay",),
                (RunProgram((tool, "--rotate", f"--vacuum-size={keep}"), 60.0),))  # fmt: skip


# -- processes -----------------------------------------------------------------------------------------------


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
    units = _read(directory / "cgroup").rpartition(":")[2].split("/")
    guarded = next((unit for unit in units if protected(unit) and not unit.startswith("user@")), None)
    if guarded:
        raise ActionRefused(f"process {pid} ({stat.command}) belongs to {guarded}, which is protected")
    age = float(_read(world.roots.proc / "uptime").split()[0]) - stat.start_time / os.sysconf("SC_CLK_TCK")
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


# -- generations ---------------------------------------------------------------------------------------------


async def rollback_generation(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Switch to the generation before this one, or to the one named; offline, from what the store holds."""
    profiles = world.roots.nix / "var/nix/profiles"
    links = {
        int(number): link for link in profiles.glob("system-*-link") if (number := link.name.split("-")[1]).isdigit()
    }
    if not links:
        raise ActionRefused("this host has no NixOS generations", "rolling back is for NixOS")
    name = (profiles / "system").readlink().name
    current = next((number for number, link in links.items() if link.name == name), None)
    if current is None:
        raise ActionRefused(f"the system profile leads to {name!r:.80}, which is no generation of it")
    wanted = arguments.get("generation") or max((number for number in links if number < current), default=0)
    if wanted not in links or wanted == current:
        raise ActionRefused(f"there is no generation {wanted or 'before ' + str(current)} to go back to")
    switch = links[wanted] / "bin/switch-to-configuration"
    profile = str(profiles / "system")
    tool = world.finder("nix-env") or "nix-env"
    return Plan((f"generation {current} is current, {wanted} is in the store",), (
        RunProgram((tool, "--profile", profile, "--switch-generation", str(wanted)), 60.0),
        RunProgram((str(switch), "switch"), 600.0),
    ))  # fmt: skip


OPERATIONS: Final[Mapping[str, Operation]] = {
    operation.__name__: operation
    for operation in (
        observe, restart_service, reload_service, start_unit, clear_system_cache, adjust_swappiness, set_cpu_governor,
        clean_nix_store, vacuum_journal, kill_process, rollback_generation,
    )
}  # fmt: skip
