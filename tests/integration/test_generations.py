"""Generations of a profile that the real nix-env keeps; their activation is a script that notes how it was called."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.conftest import CHECKOUT
from tests.lab.container import Container
from tests.lab.fixtures import missing_for_container
from tests.lab.guest import Guest
from tests.lab.install import HOME, install_project

pytestmark = pytest.mark.container
PROFILE = "/nix/var/nix/profiles/system"
MAKE = f"""
mkdir -p /nix/var/nix/profiles
for n in 1 2 3 4 5 6 7 8; do
    dir=/var/tmp/gen-$n; mkdir -p $dir/bin; echo 1 >$dir/init-interface-version
    printf '#!/bin/sh\\necho %s "$@" >>/run/switched\\n' $n >$dir/bin/switch-to-configuration
    chmod +x $dir/bin/switch-to-configuration
    nix-env --profile {PROFILE} --set $(nix-store --add $dir)
done
ln -sfn $(readlink -f {PROFILE}) /run/current-system
ln -sfn $(readlink -f {PROFILE}-2-link) /run/booted-system
"""
ACT = """
import asyncio, dataclasses, json, sys
from luminous_nix.self_healing.models import Roots
from luminous_nix.self_healing.observe.nixos import mark_known_good, read_generations
from luminous_nix.self_healing.permission_handler import ExecutionMode, NixOSPermissionHandler

def main(what, argument):
    if what == "mark":
        mark_known_good(Roots(), argument)
    if what in ("mark", "list"):
        return [one._asdict() for one in read_generations(Roots())]
    handler = NixOSPermissionHandler(ExecutionMode.DEVELOPMENT)
    return dataclasses.asdict(asyncio.run(handler.execute_healing_action(what, argument)))

print(json.dumps(main(sys.argv[1], json.loads(sys.argv[2]))))
"""


@pytest.fixture
def guest() -> Iterator[Guest]:
    if reason := missing_for_container():
        pytest.skip(reason)
    with Container.boot("generations") as booted:
        install_project(booted, CHECKOUT)
        booted.run("sh", "-euc", MAKE)
        yield booted


def act(guest: Guest, what: str, argument: Any) -> Any:
    path = {"PYTHONPATH": f"{HOME}/src:{HOME}/deps"}
    return json.loads(guest.run("python3", "-c", ACT, what, json.dumps(argument), env=path, timeout=60).stdout)


def switched(guest: Guest) -> list[str]:
    return guest.run("sh", "-c", "cat /run/switched; rm -f /run/switched").stdout.splitlines()


def numbers(guest: Guest, kind: str = "number") -> list[int]:
    return [one["number"] for one in act(guest, "list", None) if one[kind]]


def test_generations_of_a_real_profile(guest: Guest) -> None:
    assert numbers(guest) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (numbers(guest, "current"), numbers(guest, "booted"), numbers(guest, "known_good")) == ([8], [2], [])

    # Re-activated: the generation that runs, and nothing else.
    assert act(guest, "rebuild_system", {})["success"]
    assert switched(guest) == ["8 switch"]

    # Gone back to the one that was good, once.
    assert "no generation before 8 is known to be good" in act(guest, "rollback_generation", {})["error"]
    six = next(one for one in act(guest, "list", None) if one["number"] == 6)
    act(guest, "mark", six["path"])
    assert act(guest, "rollback_generation", {})["error"] is None
    assert switched(guest) == ["6 dry-activate", "6 switch"]
    assert numbers(guest, "current") == [6]
    again = act(guest, "rollback_generation", {})
    assert (again["refused"], again["error"]) == (True, "we rolled back from 8 to 6 already: never twice in a row")

    # Pruned: the booted, the current and the newest stay.
    pruned = act(guest, "prune_generations", {"keep": 3})
    assert (pruned["success"], pruned["error"]) == (True, None)
    assert numbers(guest) == [2, 6, 7, 8]
    assert switched(guest) == ["6 boot"]
    assert "no generation lies beyond" in act(guest, "prune_generations", {"keep": 3})["error"]
