"""What runs in an act unit: one power, one instance, checked again. Its walls are its unit's.

python -I -m luminous_nix.self_healing.privileged.act POWER [INSTANCE]
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from ..act.operations import OPERATIONS, World
from ..act.operations.nixos import boot_entries, deletable, profile_tool
from ..act.runners import DirectRunner
from ..bus import Bus
from ..decide.actions import protected
from ..models import ActionFailed, ActionRefused, HealingError, Roots
from ..observe.diagnosis import cgroup_root
from ..process import find, run
from .ways import POWERS, power_of

Deed = Callable[[World, str], Awaitable[str]]
_MOST_SLICES: Final = 4096
_CANNOT_ALL: Final = frozenset({73})  # systemd-tmpfiles(8): what lies in other users' folders needs more than we have


def _write(path: Path, text: str) -> str:
    """No O_CREAT: what the kernel lacks must not become a file. Raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.write(handle, text.encode("ascii"))
    finally:
        os.close(handle)
    return f"{path} = {text}"


async def _swappiness(world: World, value: str) -> str:
    return _write(world.roots.proc / "sys/vm/swappiness", value)


async def _dropcaches(world: World, _: str) -> str:
    return _write(world.roots.proc / "sys/vm/drop_caches", "1")


async def _governor(world: World, instance: str) -> str:
    policy, _, governor = instance.partition(":")
    at = world.roots.sys / "devices/system/cpu/cpufreq" / policy
    if governor not in (at / "scaling_available_governors").read_text("ascii").split():
        raise ActionRefused(f"{policy} has no governor {governor}")
    return _write(at / "scaling_governor", governor)


async def _reclaim(world: World, instance: str) -> str:
    unit, _, amount = instance.rpartition(":")
    try:
        return _write(_cgroup(world.roots, unit) / "memory.reclaim", amount)
    except OSError as error:
        if error.errno != errno.EAGAIN:  # it did a part, which is fine
            raise
        return f"a part of {amount}"


def _frozen(value: str) -> Deed:
    async def deed(world: World, unit: str) -> str:
        return _write(_cgroup(world.roots, unit) / "cgroup.freeze", value)

    return deed


def _cgroup(roots: Roots, unit: str) -> Path:
    """The unit's control group: below system.slice, or in another slice. Raises ActionRefused."""
    if protected(unit):
        raise ActionRefused(f"{unit} is in the protected set")
    root = cgroup_root(roots)
    waiting, looked = [root] if root else [], 0
    while waiting and looked < _MOST_SLICES:
        folder, looked = waiting.pop(), looked + 1
        if (found := folder / unit).is_dir():
            return found
        waiting += [part for part in folder.glob("*.slice") if part.is_dir() and not part.is_symlink()]
    raise ActionRefused(f"{unit} has no control group (cgroup v2) here")


async def _program(*argv: str, within: float, partly: frozenset[int] = frozenset()) -> str:
    path = find(argv[0])
    if path is None:
        raise ActionRefused(f"{argv[0]} is not installed")
    done = await run((path, *argv[1:]), timeout=within)
    if done.returncode in partly:
        return "a part"
    if done.returncode:
        raise ActionFailed(f"{argv[0]} ended with {done.returncode}: {done.last_words:.200}")
    return done.last_words[:200]


async def _journal(_world: World, keep: str) -> str:
    return await _program("journalctl", "--rotate", f"--vacuum-size={keep}", within=50.0)


async def _tmpfiles(_world: World, _: str) -> str:
    return await _program("systemd-tmpfiles", "--clean", within=150.0, partly=_CANNOT_ALL)


async def _gc(_world: World, bound: str) -> str:
    return await _program("nix-store", "--gc", "--max-freed", bound, within=1800.0)


async def _optimise(_world: World, _: str) -> str:
    return await _program("nix-store", "--optimise", within=7200.0)


async def _generations(world: World, instance: str) -> str:
    numbers = deletable(world, [int(number) for number in instance.split("-")])
    return await _program(*profile_tool(world, "--delete-generations", *map(str, numbers)), within=50.0)


def _operation(name: str, argument: str = "", kind: type[int | str] = str) -> Deed:
    """The action itself, with its own precheck: its unit is root, so policy and this are its walls."""

    async def deed(world: World, instance: str) -> str:
        plan = await OPERATIONS[name](world, {argument: kind(instance)} if argument else {})
        return await _carried_out(world, plan.steps)

    return deed


async def _carried_out(world: World, steps: tuple[object, ...]) -> str:
    runner = DirectRunner(world.bus, world.roots, privileged=True)
    return "; ".join([await runner.run(step) for step in steps])  # type: ignore[arg-type]


async def _boot(world: World, _: str) -> str:
    return await _carried_out(world, (boot_entries(world),))


DEEDS: Final[Mapping[str, Deed]] = {
    "swappiness": _swappiness, "governor": _governor, "reclaim": _reclaim, "freeze": _frozen("1"),
    "thaw": _frozen("0"), "dropcaches": _dropcaches, "journal": _journal, "tmpfiles": _tmpfiles, "gc": _gc,
    "optimise": _optimise, "generations": _generations, "boot": _boot, "rebuild": _operation("rebuild_system"),
    "rollback": _operation("rollback_generation", "generation", int), "plugin": _operation("run_plugin", "name"),
}  # fmt: skip


async def act(world: World, name: str, instance: str = "") -> str:
    """Raises HealingError, OSError."""
    power = POWERS.get(name)
    if power is None or power_of(power.unit(instance)) is None:
        raise ActionRefused(f"there is no act {name!r:.40} of {instance!r:.120}")
    return await DEEDS[name](world, instance)


def main(argv: list[str]) -> int:
    os.umask(0o077)
    if len(argv) not in {1, 2}:
        sys.stderr.write("usage: act POWER [INSTANCE]\n")
        return 2
    world = World(Bus(clock=time.monotonic), rooted=True)
    try:
        said = asyncio.run(act(world, *argv))
    except HealingError as error:
        sys.stderr.write(f"{error.message}\n")
        return 3
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}\n")
        return 1
    sys.stdout.write(f"{said}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
