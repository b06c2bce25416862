"""Generations: re-activated, pruned, gone back to. Always from what the store holds; no Nix is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...models import ActionRefused
from ...observe.nixos import (
    Generation,
    default_boot,
    interface_version,
    marks_unread,
    profile,
    read_generations,
    rollback_mark,
    rolled_back,
    running_system,
)
from ..steps import Plan, RunProgram, Step, WriteFile
from .world import World, no_switch

_DAY_S: Final = 86400.0
_KEEP: Final = 5
_FEWEST: Final = 3
_AT_ONCE: Final = 16  # the oldest; the rest with the next time
_SWITCH_S: Final = 600.0


def _generations(world: World) -> tuple[tuple[Generation, ...], Generation]:
    """All of them, and the current one. Raises ActionRefused."""
    no_switch(world)
    found = read_generations(world.roots)
    if not found:
        raise ActionRefused("this host has no NixOS generations", "rolling back is for NixOS")
    current = next((one for one in found if one.current), None)
    if current is None:
        raise ActionRefused(f"{profile(world.roots)} leads to no generation", "nix-env --list-generations tells more")
    return found, current


def _activate(world: World, one: Generation, how: str, power: str) -> Step:
    """The generation's own program. By its store path: the link could lead elsewhere by then. As a unit of its own
    where systemd-run is there: a switch that restarts us, or a kill switch, must not end it half-way."""
    switch = (f"{one.path}/bin/switch-to-configuration", how)
    if (runner := world.finder("systemd-run")) is None:
        return RunProgram(switch, _SWITCH_S, power=power)
    apart = (runner, "--quiet", "--collect", "--wait", "--pipe", "--unit=luminous-healing-switch", "--")
    return RunProgram((*apart, *switch), _SWITCH_S, power=power)


def _profile_step(world: World, power: str, *words: str) -> Step:
    tool = world.finder("nix-env") or "nix-env"
    return RunProgram((tool, "--profile", str(profile(world.roots)), *words), 60.0, power=power)


async def rebuild_system(world: World, _arguments: Mapping[str, Any]) -> Plan:
    """Activate the generation that runs once more, which mends what was changed by hand since."""
    _, current = _generations(world)
    if running_system(world.roots) != current.path:
        raise ActionRefused(f"what runs is not the current generation {current.number}: a switch would change it",
                            "switch or reboot into it first, if that is wanted")  # fmt: skip
    return Plan(
        (f"generation {current.number} is current and runs",), (_activate(world, current, "switch", "rebuild"),)
    )


def _not_the_good(world: World) -> None:
    """What was seen healthy is never deleted, so nothing is while that cannot be told. Raises ActionRefused."""
    if why := marks_unread(world.roots):
        raise ActionRefused(f"which generations are known to be good cannot be told: {why}")


def boot_entries(world: World) -> Step:
    """Write the boot entries of the current generation anew. Raises ActionRefused."""
    return _activate(world, _generations(world)[1], "boot", "boot")


def profile_tool(world: World, *words: str) -> tuple[str, ...]:
    """The command that works on the system's profile."""
    return ("nix-env", "--profile", str(profile(world.roots)), *words)


def deletable(world: World, numbers: list[int]) -> list[int]:
    """These, if none of them is current, booted, booted by default, known good, or among the newest three. Raises
    ActionRefused."""
    found, _ = _generations(world)
    _not_the_good(world)
    newest = {one.number for one in found[-_FEWEST:]}
    kept = {one.number for one in found if one.current or one.booted or one.known_good} | newest
    kept.add(default_boot(world.roots))
    if bad := [number for number in numbers if number in kept or number not in {one.number for one in found}]:
        raise ActionRefused(f"generation {bad[0]} is kept, or there is none of that number")
    return numbers


async def prune_generations(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Delete old generations by number, then write the boot entries anew, which frees the boot partition."""
    found, current = _generations(world)
    _not_the_good(world)
    default = default_boot(world.roots)
    newest = {one.number for one in found[-arguments.get("keep", _KEEP) :]}
    kept = [one for one in found if one.current or one.booted or one.known_good or one.number in newest | {default}]
    gone = [str(one.number) for one in found if one not in kept][:_AT_ONCE]
    if not gone:
        raise ActionRefused(f"no generation lies beyond those that are kept ({_numbers(kept)})")
    if len(kept) < _FEWEST:
        raise ActionRefused(f"fewer than {_FEWEST} generations would stay ({_numbers(kept)})")
    return Plan((f"generations {_numbers(kept)} stay",),
                (_profile_step(world, f"generations@{'-'.join(gone)}", "--delete-generations", *gone),
                 _activate(world, current, "boot", "boot")))  # fmt: skip


def _numbers(some: list[Generation]) -> str:
    return ", ".join(str(one.number) for one in some)


async def rollback_generation(world: World, arguments: Mapping[str, Any]) -> Plan:
    """Switch to a generation that was good: the newest before this one, or the one named; once, and soon."""
    found, current = _generations(world)
    _not_twice(world, current)
    age = world.wall() - current.made
    if not 0 <= age < _DAY_S:
        raise ActionRefused(f"generation {current.number} is {age / 3600:.0f} h old: what fails now is not its fault",
                            "a rollback is for a generation younger than a day")  # fmt: skip
    target = _target(found, current, arguments.get("generation"))
    if not (version := interface_version(current.path)) or interface_version(target.path) != version:
        raise ActionRefused(f"generation {target.number} needs a reboot: its init differs, or cannot be told",
                            "a person decides when to reboot")  # fmt: skip
    power = f"rollback@{target.number}"
    return Plan((f"generation {current.number} is current and {age / 3600:.1f} h old, {target.number} was good",), (
        _activate(world, target, "dry-activate", power),
        # Noted before it happens: after a crash in between it must not look as if there had been none.
        WriteFile(rollback_mark(world.roots), f"{current.number} {target.number}\n", ours=True, power=power),
        _profile_step(world, power, "--switch-generation", str(target.number)),
        _activate(world, target, "switch", power),
    ))  # fmt: skip


def _not_twice(world: World, current: Generation) -> None:
    try:
        left, went = rolled_back(world.roots)
    except (OSError, ValueError) as error:
        raise ActionRefused(f"whether we rolled back just now is unknown: {error}",
                            f"look at {rollback_mark(world.roots)} and remove it") from error  # fmt: skip
    if went == current.number:
        raise ActionRefused(f"we rolled back from {left} to {current.number} already: never twice in a row",
                            "the cause lies elsewhere; a new generation lifts this")  # fmt: skip


def _target(found: tuple[Generation, ...], current: Generation, wanted: int | None) -> Generation:
    """The generation to go to. Raises ActionRefused."""
    others = [one for one in found if one.path != current.path]
    if wanted is None:
        good = [one for one in others if one.known_good and one.number < current.number]
        if not good:
            raise ActionRefused(f"no generation before {current.number} is known to be good",
                                "only one that was seen healthy is gone back to")  # fmt: skip
        return good[-1]
    target = next((one for one in others if one.number == wanted), None)
    if target is None:
        raise ActionRefused(f"there is no other generation {wanted} to go back to",
                            f"there are: {_numbers(others) or 'none'}")  # fmt: skip
    if not target.known_good:
        raise ActionRefused(f"generation {wanted} is not known to be good",
                            "only one that was seen healthy is gone back to")  # fmt: skip
    return target
