"""Limits and freezing on a real systemd: what is set is in force, and is set back to what it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.conftest import CHECKOUT
from tests.lab.container import Container
from tests.lab.demo import service, unit_property, wait_for
from tests.lab.fixtures import missing_for_container
from tests.lab.guest import Guest
from tests.lab.install import HOME, install_project

pytestmark = pytest.mark.container
MIB = 1 << 20
ACT = """
import asyncio, dataclasses, json, sys
from luminous_nix.self_healing.permission_handler import ExecutionMode, NixOSPermissionHandler

async def main(what, argument):
    handler = NixOSPermissionHandler(ExecutionMode.DEVELOPMENT)
    if what == "restore":
        return await handler.restore(argument)
    return await handler.execute_healing_action(what, argument)

print(json.dumps(dataclasses.asdict(asyncio.run(main(sys.argv[1], json.loads(sys.argv[2]))))))
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """A container on cgroup v2, which alone can freeze a service."""
    if reason := missing_for_container():
        pytest.skip(reason)
    with Container.boot("cgroups", cgroups="unified") as booted:
        install_project(booted, CHECKOUT)
        yield booted


@pytest.fixture
def unit(guest: Guest) -> Iterator[str]:
    name = service(guest, "demo", "/bin/sh -c 'while :; do echo x >>/run/demo; sleep 0.05; done'", CPUWeight="200")
    guest.run("systemctl", "start", name)
    yield name
    guest.run("systemctl", "thaw", name, check=False)
    guest.run("systemctl", "stop", name)
    guest.run("systemctl", "revert", name, check=False)


def act(guest: Guest, what: str, argument: Any) -> dict[str, Any]:
    path = {"PYTHONPATH": f"{HOME}/src:{HOME}/deps"}
    done = guest.run("python3", "-c", ACT, what, json.dumps(argument), env=path, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def limits(guest: Guest, unit: str) -> tuple[str, ...]:
    names = ("MemoryHigh", "CPUWeight", "CPUQuotaPerSecUSec", "IOWeight")
    return tuple(unit_property(guest, unit, name) for name in names)


def test_a_unit_is_limited_and_set_back(guest: Guest, unit: str) -> None:
    before = limits(guest, unit)
    assert before == ("infinity", "200", "infinity", "[not set]")
    wanted = {"memory_high_bytes": 64 * MIB, "cpu_weight": 50, "cpu_quota_percent": 30, "io_weight": 20}
    result = act(guest, "limit_unit", {"unit": unit, **wanted})
    assert (result["success"], result["error"]) == (True, None)
    assert limits(guest, unit) == (str(64 * MIB), "50", "300ms", "20")
    knobs = result["knobs"]
    assert [f"unit:{unit}:CPUWeight", "200", "50"] in knobs
    assert [f"unit:{unit}:MemoryHigh", "infinity", str(64 * MIB)] in knobs

    looser = act(guest, "limit_unit", {"unit": unit, "memory_high_bytes": 65 * MIB})
    assert (looser["refused"], "would loosen it" in looser["error"]) == (True, True)

    guest.run("systemctl", "set-property", "--runtime", unit, "CPUWeight=77")
    refused = act(guest, "restore", knobs)
    assert (refused["success"], refused["refused"]) == (False, True)
    assert f"unit:{unit}:CPUWeight was changed since (it is 77, we left 50)" in refused["error"]
    assert limits(guest, unit) == (str(64 * MIB), "77", "300ms", "20")

    guest.run("systemctl", "set-property", "--runtime", unit, "CPUWeight=50")
    restored = act(guest, "restore", knobs)
    assert (restored["success"], restored["error"]) == (True, None)
    assert limits(guest, unit) == before
    again = act(guest, "restore", knobs)
    assert (again["refused"], "nothing to set back" in again["error"]) == (True, True)


def test_the_command_that_is_told_does_the_same(guest: Guest, unit: str) -> None:
    """A person or sudo gets systemctl set-property; it must say what the call over D-Bus says."""
    said = (
        "from luminous_nix.self_healing.act.steps import SetProperties, UNLIMITED as U; import sys, json;"
        "names = ['MemoryHigh', 'CPUWeight', 'CPUQuotaPerSecUSec', 'IOWeight'];"
        "values = [int(word) for word in sys.argv[2:]] or [U] * 4;"
        "step = SetProperties(sys.argv[1], tuple((n, 't', v) for n, v in zip(names, values, strict=True)));"
        "print(json.dumps(step.command))"
    )
    path = {"PYTHONPATH": f"{HOME}/src:{HOME}/deps"}
    for values, seen in (
        ((str(32 * MIB), "60", "250000", "30"), (str(32 * MIB), "60", "250ms", "30")),
        ((), ("infinity", "[not set]", "infinity", "[not set]")),
    ):
        command = json.loads(guest.run("python3", "-c", said, unit, *values, env=path).stdout)
        guest.run(*command)
        assert limits(guest, unit) == seen


def written(guest: Guest) -> int:
    return len(guest.run("cat", "/run/demo").stdout)


def test_a_unit_is_frozen_and_thawed(guest: Guest, unit: str) -> None:
    wait_for(lambda: written(guest) > 0, what="it writes")
    frozen = act(guest, "freeze_unit", {"unit": unit})
    assert (frozen["success"], frozen["error"]) == (True, None)
    assert frozen["knobs"] == [[f"frozen:{unit}", "0", "1"]]
    assert unit_property(guest, unit, "FreezerState") == "frozen"
    still = written(guest)
    assert act(guest, "freeze_unit", {"unit": unit})["error"] == f"{unit} is frozen already"
    assert written(guest) == still

    thawed = act(guest, "thaw_unit", {"unit": unit})
    assert (thawed["success"], thawed["error"]) == (True, None)
    assert thawed["knobs"] == [[f"frozen:{unit}", "1", "0"]]
    wait_for(lambda: written(guest) > still, what="it writes again")
    assert act(guest, "thaw_unit", {"unit": unit})["error"] == f"{unit} is not frozen"


def test_freezing_is_set_back(guest: Guest, unit: str) -> None:
    knobs = act(guest, "freeze_unit", {"unit": unit})["knobs"]
    assert act(guest, "restore", knobs)["success"]
    assert unit_property(guest, unit, "FreezerState") == "running"


@pytest.mark.parametrize("action", ["limit_unit", "freeze_unit", "thaw_unit"])
def test_a_unit_that_is_down_is_left_alone(guest: Guest, unit: str, action: str) -> None:
    guest.run("systemctl", "stop", unit)
    result = act(guest, action, {"unit": unit})
    assert (result["refused"], result["error"]) == (True, f"{unit} is not running (it is inactive)")


def test_without_accounting_a_limit_must_be_named(guest: Guest, unit: str) -> None:
    result = act(guest, "limit_unit", {"unit": unit})
    if unit_property(guest, unit, "MemoryCurrent") == "[not set]":
        assert (result["refused"], f"how much memory {unit} takes is unknown" in result["error"]) == (True, True)
    else:
        assert result["success"]
