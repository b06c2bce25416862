"""Generations on a host of links and files: re-activated, pruned, gone back to, and when not."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from luminous_nix.self_healing.act.steps import RunProgram, WriteFile
from luminous_nix.self_healing.models import ActionRefused
from luminous_nix.self_healing.observe.nixos import mark_known_good, replace_text, rollback_mark
from tests.unit.host import FakeHost
from tests.unit.worlds import NOW, lock, nowhere, plan, rooted, world

pytestmark = pytest.mark.anyio
HOUR = 3600.0
ACTIONS = ["rollback_generation", "rebuild_system", "prune_generations"]


def path(host: FakeHost, number: int) -> str:
    return str(host.roots.nix / f"store/x-{number}")


def nixos(
    host: FakeHost, *numbers: int, current: int, good: Iterable[int] = (), booted: int = 0, age: float = HOUR
) -> Path:
    """A host with these generations, the current one of that age; returns the folder of the profiles."""
    rooted(host)
    profiles = host.roots.nix / "var/nix/profiles"
    profiles.mkdir(parents=True)
    for number in numbers:
        host.write(Path(path(host, number)) / "init-interface-version", "1\n")
        link = profiles / f"system-{number}-link"
        link.symlink_to(path(host, number))
        made = NOW - (age if number == current else 10 * 86400)
        os.utime(link, (made, made), follow_symlinks=False)
    (profiles / "system").symlink_to(f"system-{current}-link")
    host.roots.run.mkdir(exist_ok=True)
    (host.roots.run / "current-system").symlink_to(path(host, current))
    (host.roots.run / "booted-system").symlink_to(path(host, booted or current))
    for number in good:
        mark_known_good(host.roots, path(host, number))
    return profiles


@pytest.mark.parametrize("action", ACTIONS)
async def test_a_host_without_generations(host: FakeHost, action: str) -> None:
    with pytest.raises(ActionRefused, match="this host has no NixOS generations"):
        await plan(world(rooted(host)), action)


@pytest.mark.parametrize("action", ACTIONS)
async def test_a_profile_that_leads_to_none_of_them(host: FakeHost, action: str) -> None:
    profiles = nixos(host, 1, 2, current=2)
    (profiles / "system").unlink()
    (profiles / "system").symlink_to("elsewhere")
    with pytest.raises(ActionRefused, match="leads to no generation"):
        await plan(world(host), action)


@pytest.mark.parametrize("action", ACTIONS)
async def test_nothing_during_a_switch(host: FakeHost, action: str) -> None:
    nixos(host, 1, 2, current=2, good=[1])
    lock(host, held=True)
    with pytest.raises(ActionRefused, match=r"a switch .* is in progress"):
        await plan(world(host), action)


# A switch that restarts us must not end with us.
APART = ("/bin/systemd-run", "--quiet", "--collect", "--wait", "--pipe", "--unit=luminous-healing-switch", "--")

# -- rollback ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "chosen"), [({}, 9), ({"generation": 3}, 3), ({"generation": 12}, 12)], ids=["before", "named", "later"]
)
async def test_a_rollback_goes_to_a_good_one(host: FakeHost, asked: dict[str, int], chosen: int) -> None:
    profiles = nixos(host, 3, 8, 9, 10, 11, 12, current=11, good=[9, 3, 12])
    found = await plan(world(host), "rollback_generation", **asked)
    switch = f"{path(host, chosen)}/bin/switch-to-configuration"
    assert found.steps == (
        RunProgram((*APART, switch, "dry-activate"), 600.0),
        WriteFile(rollback_mark(host.roots), f"11 {chosen}\n", ours=True),
        RunProgram(("/bin/nix-env", "--profile", str(profiles / "system"), "--switch-generation", str(chosen)), 60.0),
        RunProgram((*APART, switch, "switch"), 600.0),
    )
    assert found.checks == (f"generation 11 is current and 1.0 h old, {chosen} was good",)


@pytest.mark.parametrize(
    ("asked", "good", "said"),
    [
        ({}, [], "no generation before 11 is known to be good"),
        ({}, [11, 12], "no generation before 11 is known to be good"),
        ({"generation": 10}, [9], "generation 10 is not known to be good"),
        ({"generation": 11}, [11], "there is no other generation 11"),
        ({"generation": 7}, [9], "there is no other generation 7"),
    ],
)
async def test_a_rollback_to_what_is_not_good(
    host: FakeHost, asked: dict[str, int], good: list[int], said: str
) -> None:
    nixos(host, 9, 10, 11, 12, current=11, good=good)
    with pytest.raises(ActionRefused, match=said):
        await plan(world(host), "rollback_generation", **asked)


async def test_the_same_system_under_another_number_is_no_way_back(host: FakeHost) -> None:
    profiles = nixos(host, 10, 11, current=11, good=[11])
    (profiles / "system-10-link").unlink()
    (profiles / "system-10-link").symlink_to(path(host, 11))
    for asked in ({}, {"generation": 10}):
        with pytest.raises(ActionRefused, match=r"known to be good|no other generation 10"):
            await plan(world(host), "rollback_generation", **asked)


@pytest.mark.parametrize(("age", "fits"), [(0, True), (24 * HOUR - 1, True), (24 * HOUR, False), (-5, False)])
async def test_only_what_is_younger_than_a_day_is_left(host: FakeHost, age: float, fits: bool) -> None:
    nixos(host, 10, 11, current=11, good=[10], age=age)
    if fits:
        assert (await plan(world(host), "rollback_generation")).steps
    else:
        with pytest.raises(ActionRefused, match=r"generation 11 is -?\d+ h old"):
            await plan(world(host), "rollback_generation")


@pytest.mark.parametrize("versions", [("1", "2"), ("", "1"), ("1", ""), ("", "")])
async def test_what_needs_a_reboot_is_for_a_person(host: FakeHost, versions: tuple[str, str]) -> None:
    nixos(host, 10, 11, current=11, good=[10])
    for number, version in zip((10, 11), versions, strict=True):
        file = Path(path(host, number)) / "init-interface-version"
        file.write_text(version, encoding="utf-8") if version else file.unlink()
    with pytest.raises(ActionRefused, match="generation 10 needs a reboot"):
        await plan(world(host), "rollback_generation")


async def test_never_twice_in_a_row(host: FakeHost) -> None:
    profiles = nixos(host, 9, 10, 11, 12, current=11, good=[9, 10])
    replace_text(rollback_mark(host.roots), "12 11\n")
    with pytest.raises(ActionRefused, match="we rolled back from 12 to 11 already: never twice in a row"):
        await plan(world(host), "rollback_generation")
    (profiles / "system").unlink()
    (profiles / "system").symlink_to("system-12-link")
    os.utime(profiles / "system-12-link", (NOW, NOW), follow_symlinks=False)
    assert (await plan(world(host), "rollback_generation")).steps


async def test_a_mark_of_a_rollback_that_cannot_be_read_counts_as_one(host: FakeHost) -> None:
    nixos(host, 10, 11, current=11, good=[10])
    replace_text(rollback_mark(host.roots), "rubbish")
    with pytest.raises(ActionRefused, match="whether we rolled back just now is unknown"):
        await plan(world(host), "rollback_generation")


# -- rebuild -------------------------------------------------------------------------------------------------


async def test_the_current_generation_is_activated_again(host: FakeHost) -> None:
    nixos(host, 1, 2, current=2)
    found = await plan(world(host), "rebuild_system")
    switch = f"{path(host, 2)}/bin/switch-to-configuration"
    assert found.steps == (RunProgram((*APART, switch, "switch"), 600.0),)
    alone = await plan(world(host, nowhere), "rebuild_system")
    assert alone.steps == (RunProgram((switch, "switch"), 600.0),)


@pytest.mark.parametrize("leads", [True, False])
async def test_what_runs_is_never_changed_by_a_rebuild(host: FakeHost, leads: bool) -> None:
    nixos(host, 1, 2, current=2)
    (host.roots.run / "current-system").unlink()
    if leads:
        (host.roots.run / "current-system").symlink_to(path(host, 1))
    with pytest.raises(ActionRefused, match="what runs is not the current generation 2"):
        await plan(world(host), "rebuild_system")


# -- prune ---------------------------------------------------------------------------------------------------


async def test_what_is_beyond_the_keep_set_goes_by_number_and_from_the_boot_menu(host: FakeHost) -> None:
    profiles = nixos(host, *range(1, 13), current=12, good=[3], booted=5)
    host.write(host.roots.boot / "loader/loader.conf", "default nixos-generation-6.conf\n")
    found = await plan(world(host, nowhere), "prune_generations", keep=4)
    assert found.steps == (
        RunProgram(("nix-env", "--profile", str(profiles / "system"), "--delete-generations", *"12478"), 60.0),
        RunProgram((f"{path(host, 12)}/bin/switch-to-configuration", "boot"), 600.0),
    )  # fmt: skip
    assert found.checks == ("generations 3, 5, 6, 9, 10, 11, 12 stay",)


async def test_the_current_one_stays_even_when_it_is_old(host: FakeHost) -> None:
    nixos(host, *range(1, 9), current=1, booted=2)
    (first, _) = (await plan(world(host), "prune_generations")).steps
    assert isinstance(first, RunProgram)
    assert first.command[-2:] == ("--delete-generations", "3")


async def test_nothing_to_prune(host: FakeHost) -> None:
    nixos(host, 1, 2, 3, current=3)
    with pytest.raises(ActionRefused, match=r"no generation lies beyond those that are kept \(1, 2, 3\)"):
        await plan(world(host), "prune_generations", keep=3)


async def test_never_fewer_than_three_stay(host: FakeHost) -> None:
    """The grammar asks for three at least; the operation does not rely on it."""
    nixos(host, 1, 2, 3, current=3)
    with pytest.raises(ActionRefused, match="fewer than 3 generations would stay"):
        await plan(world(host), "prune_generations", keep=2)


async def test_a_loader_that_cannot_be_read_stops_the_pruning(host: FakeHost) -> None:
    nixos(host, *range(1, 9), current=8)
    (host.roots.boot / "loader/loader.conf").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):  # the handler answers it as a refusal
        await plan(world(host), "prune_generations")
