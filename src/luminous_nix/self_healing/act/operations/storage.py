"""The nix store, the journal, temporary files: bounded, gentle, and no generation is deleted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ...models import ActionRefused
from ...observe.procfs import Mount, parse_mountinfo
from ..steps import Plan, RunProgram
from .world import MIB, World, names, no_switch, read

_ROOMY: Final = 0.80


def _same_filesystem(world: World, arguments: Mapping[str, Any], place: Path, what: str) -> None:
    """By st_dev, or where that differs by the mount table: the subvolumes of one btrfs have devices of their own."""
    wanted = arguments.get("filesystem")
    try:
        if wanted is None or os.stat(wanted).st_dev == os.stat(place).st_dev:  # noqa: PTH116  asked often
            return
    except OSError as error:
        raise ActionRefused(f"{error.filename} cannot be looked at: {error.strerror}") from error
    mounts = parse_mountinfo(read(world.roots.proc / "self/mountinfo"))
    if not _source(mounts, Path(wanted)) == _source(mounts, place.resolve()) != "":
        raise ActionRefused(f"{what} is not on {wanted}: freeing it would not help there")


def _source(mounts: list[Mount], path: Path) -> str:
    """The block device that the innermost mount around a path comes from, or empty."""
    around = [mount for mount in mounts if path.is_relative_to(mount.path)]
    source = max(around, key=lambda mount: len(mount.path)).source if around else ""
    return source if source.startswith("/dev/") else ""


def _store(world: World, arguments: Mapping[str, Any]) -> tuple[Path, str]:
    """The store and the program that works on it. Raises ActionRefused."""
    store = world.roots.nix / "store"
    if not store.is_dir():
        raise ActionRefused("there is no nix store on this host")
    if (tool := world.finder("nix-store")) is None:
        raise ActionRefused("nix is not installed")
    _same_filesystem(world, arguments, store, "the nix store")
    no_switch(world)
    return store, tool


def _gently(world: World) -> tuple[str, ...]:
    """What goes before a command that must not slow others down, as far as it is installed."""
    return tuple(
        word
        for name, words in (("nice", ("-n", "19")), ("ionice", ("-c", "3")))
        if (path := world.finder(name)) is not None
        for word in (path, *words)
    )


async def clean_nix_store(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Collect dead store paths up to a bound, at idle I/O priority. Never -d: generations are the backup."""
    store, collector = _store(world, arguments)
    bound = arguments.get("max_freed_bytes") or _bytes_above(store, 0.80)
    argv = (*_gently(world), collector, "--gc", "--max-freed", str(bound))
    return Plan((f"the nix store is here; at most {bound // MIB} MiB of dead paths, no generation is deleted",),
                (RunProgram(argv, 1800.0, unprivileged=True, power=f"gc@{bound}"),))  # fmt: skip


async def optimize_store(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Let equal files share one copy. Not on a disk that fills up: it writes links before it frees anything."""
    store, tool = _store(world, arguments)
    used, usable = _space(store)
    if used > _ROOMY * usable:
        raise ActionRefused(f"the nix store's filesystem is used to {100 * used / max(usable, 1):.0f} %",
                            "optimising writes first: collect dead paths before it")  # fmt: skip
    argv = (*_gently(world), tool, "--optimise")
    return Plan(
        ("the nix store is here, and there is room to work in",),
        (RunProgram(argv, 7200.0, unprivileged=True, power="optimise"),),
    )


def _space(place: Path) -> tuple[int, int]:
    """(bytes used, bytes that can be used at all) of a filesystem."""
    at = os.statvfs(place)
    used = (at.f_blocks - at.f_bfree) * at.f_frsize
    return used, used + at.f_bavail * at.f_frsize


def _bytes_above(place: Path, share: float) -> int:
    """How many bytes must go until the filesystem is used to `share`; at least 256 MiB, at most 20 GiB."""
    used, usable = _space(place)
    return max(256 * MIB, min(20 << 30, int(used - share * usable)))


async def vacuum_journal(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Drop the oldest journal files: no more than is needed and never more than half, or to the size asked for."""
    place = world.roots.journal
    if not place.is_dir() or (tool := world.finder("journalctl")) is None:
        raise ActionRefused("there is no journal on disk")
    _same_filesystem(world, arguments, place, "the journal")
    size = sum(file.stat().st_blocks * 512 for file in _journals(place))
    keep = arguments.get("keep_bytes") or max(64 * MIB, size // 2, size - _bytes_above(place, 0.80))
    if size <= keep:
        raise ActionRefused(f"the journal takes only {size // MIB} MiB; at least {keep // MIB} MiB of it are kept")
    return Plan(
        (f"the journal takes {size // MIB} MiB; its newest {keep // MIB} MiB stay",),
        (RunProgram((tool, "--rotate", f"--vacuum-size={keep}"), 60.0, power=f"journal@{keep}"),),
    )


def _journals(place: Path) -> Iterator[Path]:
    for machine in names(place):
        yield from (place / machine / name for name in names(place / machine) if name.endswith(".journal"))


async def clean_disk(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Old journal files, then temporary files by the host's own rules. Each where it lies on that filesystem."""
    parts, reasons = [], []
    for operation in (vacuum_journal, _clean_temporary):
        try:
            parts.append(await operation(world, arguments))
        except ActionRefused as error:
            reasons.append(error.message)
    if not parts:
        raise ActionRefused("; ".join(reasons))
    checks = [check for part in parts for check in part.checks]
    return Plan((*checks, *reasons), tuple(step for part in parts for step in part.steps))


async def _clean_temporary(world: World, arguments: Mapping[str, Any]) -> Plan:
    _same_filesystem(world, arguments, world.roots.tmp, str(world.roots.tmp))
    if (tool := world.finder("systemd-tmpfiles")) is None:
        raise ActionRefused("systemd-tmpfiles is not installed")
    return Plan(
        ("temporary files that are due go (tmpfiles.d)",), (RunProgram((tool, "--clean"), 120.0, power="tmpfiles"),)
    )
