"""The nix store, the journal, the generations: bounded, and the generations are the backup."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...models import ActionRefused
from ...observe.procfs import Mount, parse_mountinfo
from ..steps import Plan, RunProgram
from .world import MIB, World, no_switch, read


def _same_filesystem(world: World, arguments: Mapping[str, Any], place: Path, what: str) -> None:
    """By st_dev, or where that differs by the mount table: the subvolumes of one btrfs have devices of their own."""
    wanted = arguments.get("filesystem")
    try:
        if wanted is None or Path(wanted).stat().st_dev == place.stat().st_dev:
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


async def clean_nix_store(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Collect dead store paths up to a bound, at idle I/O priority. Never -d: generations are the backup."""
    store = world.roots.nix / "store"
    if not store.is_dir():
        raise ActionRefused("there is no nix store on this host")
    if (collector := world.finder("nix-store")) is None:
        raise ActionRefused("nix is not installed")
    _same_filesystem(world, arguments, store, "the nix store")
    no_switch(world)
    bound = arguments.get("max_freed_bytes") or _bytes_above(store, 0.80)
    gentle = tuple(
        word
        for name, words in (("nice", ("-n", "19")), ("ionice", ("-c", "3")))
        if (path := world.finder(name)) is not None
        for word in (path, *words)
    )
    argv = (*gentle, collector, "--gc", "--max-freed", str(bound))
    return Plan((f"the nix store is here; at most {bound // MIB} MiB of dead paths, no generation is deleted",),
                (RunProgram(argv, 1800.0, unprivileged=True),))  # fmt: skip


def _bytes_above(place: Path, share: float) -> int:
    """How many bytes must go until the filesystem is used to `share`; at least 256 MiB, at most 20 GiB."""
    at = os.statvfs(place)
    used = (at.f_blocks - at.f_bfree) * at.f_frsize
    usable = used + at.f_bavail * at.f_frsize
    return max(256 * MIB, min(20 << 30, int(used - share * usable)))


async def vacuum_journal(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Drop the oldest journal files: no more than is needed and never more than half, or to the size asked for."""
    place = world.roots.journal
    tool = world.finder("journalctl")
    if tool is None or not place.is_dir():
        raise ActionRefused("there is no journal on disk")
    _same_filesystem(world, arguments, place, "the journal")
    size = sum(file.stat().st_blocks * 512 for file in place.glob("*/*.journal"))
    keep = arguments.get("keep_bytes") or max(64 * MIB, size // 2, size - _bytes_above(place, 0.80))
    if size <= keep:
        raise ActionRefused(f"the journal takes only {size // MIB} MiB; at least {keep // MIB} MiB of it are kept")
    return Plan((f"the journal takes {size // MIB} MiB; its newest {keep // MIB} MiB stay",),
                (RunProgram((tool, "--rotate", f"--vacuum-size={keep}"), 60.0),))  # fmt: skip


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
