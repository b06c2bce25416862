"""The stories that the project promises, on a kernel of its own: limited first, then restarted; what harms is undone;
one cause is one issue. Each is told by `explain` as systemd saw it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.conftest import CHECKOUT, Healer, Host, Units
from tests.lab.demo import service, unit_property, wait_for
from tests.lab.fixtures import missing_for_machine
from tests.lab.guest import Guest
from tests.lab.install import install_project
from tests.lab.machine import Machine

pytestmark = pytest.mark.machine
Lab = tuple[Healer, Units]
THRESHOLD = 60
# Leaks START MiB at once, the first time only (the leak of weeks), then STEP KiB every PAUSE seconds, and tells after
# each step that it is alive. Past MOST MiB it lets the oldest go.
LEAKY = """
import os, pathlib, sys, time
start, step, most, pause = int(sys.argv[1]) << 20, int(sys.argv[2]) << 10, int(sys.argv[3]) << 20, float(sys.argv[4])
once = pathlib.Path("/run/leaked")
held = [] if once.exists() else [b"x" * (8 << 20) for _ in range(start >> 23)]
once.touch()
while True:
    held.append(b"x" * step)
    if sum(map(len, held)) > most:
        del held[0]
    pathlib.Path("/run/beat").touch()
    time.sleep(pause)
"""
# Fails when a dozen of its own looks show no new beat: a host that is slow as a whole slows both.
WATCH = """#!/bin/sh
last= looks=0
while sleep 1; do
    beat=$(stat -c %y /run/beat)
    [ "$beat" = "$last" ] && looks=$((looks + 1)) || looks=0
    last=$beat
    [ $looks -lt 12 ] || exit 7
done
"""


def leak(guest: Guest, *argv: int) -> str:
    guest.write("/var/tmp/leaky.py", LEAKY)
    guest.run("rm", "-f", "/run/leaked", "/run/beat")
    unit = service(guest, "leaky", f"/usr/bin/python3 /var/tmp/leaky.py {' '.join(map(str, argv))}")
    guest.run("systemctl", "start", unit)
    return unit


@pytest.fixture
def leaking(vm_lab: Lab) -> Iterator[Lab]:
    """A healer that watches memory and may restart what is called leaky."""
    rule = '[[policy.rules]]\nmode = "auto"\nunit = "leaky*"'
    vm_lab[0].configure(
        f"{rule}\n[thresholds]\nmemory_percent = {THRESHOLD}\n", checks='"memory", "services", "pressure"'
    )
    yield vm_lab
    run = vm_lab[0].host.guest.run
    run("systemctl", "stop", "leaky", "watch", "reader", check=False)
    run("systemctl", "reset-failed", "leaky", "watch", check=False)


def used(host: Host) -> float:
    """Percent of memory that is not available."""
    rows = dict(line.split(":") for line in host.guest.run("cat", "/proc/meminfo").stdout.splitlines())
    total, free = (int(rows[name].split()[0]) for name in ("MemTotal", "MemAvailable"))
    return 100 * (1 - free / total)


def cache(host: Host) -> None:
    """A service that holds file cache which nobody uses, so that there is something to reclaim."""
    host.guest.run(
        "sh", "-c", "head -c 48000000 /dev/urandom > /var/tmp/big; sync; echo 3 > /proc/sys/vm/drop_caches"
    )
    service(host.guest, "reader", "/bin/sh -c 'cat /var/tmp/big > /dev/null; exec sleep infinity'")
    host.guest.run("systemctl", "start", "reader")


def settled(healer: Healer, component: str, verdict: str, timeout: float = 120) -> dict[str, Any]:
    """The component's first record of an act that is over, which has this verdict."""

    def found() -> dict[str, Any] | None:
        acted = [one for one in healer.records(component) if one["actions"] and one["verdict"] != "open"]
        return acted[-1] if acted else None

    record = wait_for(found, timeout=timeout, what=f"{component} was healed, or not")
    assert record is not None
    assert record["verdict"] == verdict, explained(healer.host, record["id"])
    return record


def explained(host: Host, what: str) -> str:
    code, out, err = host.command("explain", what)
    assert (code, err) == (0, "")
    print(f"\n{out}")
    return out


def test_a_leak_is_limited_first_and_restarted_only_when_that_did_not_help(leaking: Lab, vm: Host) -> None:
    healer, _ = leaking
    cache(vm)
    unit = leak(vm.guest, 800, 16, 2000, 1)
    wait_for(lambda: used(vm) > THRESHOLD + 2, what="it leaks", timeout=120)
    leaked, first = used(vm), unit_property(vm.guest, unit, "InvocationID")
    healer.start()
    wait_for(lambda: unit_property(vm.guest, unit, "MemoryHigh") != "infinity", timeout=180, what="limited")
    limit = int(unit_property(vm.guest, unit, "MemoryHigh"))
    assert unit_property(vm.guest, unit, "InvocationID") == first  # limited, not restarted
    record = settled(healer, "memory", "healed")

    reclaim, limited, restarted = record["rungs"]
    assert [rung["action"] for rung in record["rungs"]] == ["clear_system_cache", "limit_unit", "restart_service"]
    assert reclaim["verdict"] in {"no_effect", ""}  # nothing to reclaim is an answer, too
    assert (limited["taken"], limited["verdict"]) == (True, "no_effect")
    assert limited["knobs"] == [[f"unit:{unit}:MemoryHigh", "infinity", str(limit)]]
    assert limited["undone"] == "undone: the former values are back"
    assert (restarted["taken"], restarted["verdict"]) == (True, "healed")
    assert restarted["arguments"] == {"service": unit, "running": True}
    for rung in (limited, restarted):
        before = float(rung["before"].partition(" is at ")[2].partition(",")[0])
        assert abs(before - leaked) < 8
    after = float(restarted["after"].partition(" is at ")[2].partition(",")[0])
    assert after < THRESHOLD
    assert record["issue"]["evidence"]["unit"] == unit
    assert record["issue"]["evidence"]["unit_bytes"] > 800 << 20

    # what systemd and the kernel say of it
    assert unit_property(vm.guest, unit, "MemoryHigh") == "infinity"
    assert unit_property(vm.guest, unit, "InvocationID") != first
    assert unit_property(vm.guest, unit, "NRestarts") == "0"  # by us, not by Restart=
    assert abs(used(vm) - after) < 10
    steering = vm.data("status", "--check", "memory")["steering"]
    assert steering["heals_last_hour"] == sum(rung["taken"] for rung in record["rungs"])
    healer.stop()
    told = explained(vm, "memory")
    size = record["issue"]["evidence"]["unit_bytes"] >> 20
    for words in (
        f"cause     {unit} holds {size} MiB of memory",
        f"rung 2    limit_unit(unit={unit}): taken",
        "measured  no_effect",
        "undone    undone: the former values are back",
        f"rung 3    restart_service(service={unit}, running=True): taken",
        "auto (rule 1 of the policy)",
        f"after     memory is at {after:.1f}, the threshold is {THRESHOLD}",
        "verdict   healed",
    ):
        assert words in told


def test_a_heal_that_makes_it_worse_is_undone(leaking: Lab, vm: Host) -> None:
    """The limit throttles a service that another one depends on."""
    healer, _ = leaking
    unit = leak(vm.guest, 800, 8192, 950, 2)
    vm.guest.write("/var/tmp/watch", WATCH, 0o755)
    watch = service(vm.guest, "watch", "/var/tmp/watch")
    wait_for(lambda: used(vm) > THRESHOLD + 2, what="it leaks", timeout=120)
    wait_for(
        lambda: vm.guest.run("test", "-e", "/run/beat", check=False).returncode == 0, what="it beats", timeout=60
    )
    vm.guest.run("systemctl", "start", watch)
    time.sleep(16)
    assert unit_property(vm.guest, watch, "ActiveState") == "active"  # a leak alone does not harm it
    first = unit_property(vm.guest, unit, "InvocationID")
    healer.start()
    wait_for(lambda: unit_property(vm.guest, unit, "MemoryHigh") != "infinity", timeout=180, what="limited")
    wait_for(
        lambda: unit_property(vm.guest, watch, "ActiveState") == "failed", timeout=120, what="the other one fails"
    )
    wait_for(
        lambda: unit_property(vm.guest, unit, "MemoryHigh") == "infinity", timeout=120, what="the limit is set back"
    )
    record = settled(healer, "memory", "worse")
    assert unit_property(vm.guest, unit, "MemoryHigh") == "infinity"
    assert unit_property(vm.guest, unit, "InvocationID") == first  # and nothing more regrettable was tried
    worse = record["rungs"][-1]
    assert (worse["action"], worse["verdict"]) == ("limit_unit", "worse")
    assert f"{watch} failed since" in worse["harm"]
    assert "no recovery within" not in worse["said"]  # at once, and not at the act's deadline
    assert worse["undone"] == "undone: the former values are back"
    _, status, _ = vm.command("status", "--check", "services")
    assert "breaker     open: the last heals of resource/memory had no effect that lasted, or did harm" in status
    wait_for(
        lambda: unit_property(vm.guest, watch, "ActiveState") == "active", timeout=120, what="the other is healed"
    )
    settled(healer, "watch", "healed", 60)
    held = healer.told("memory", "breaker: the last heals of resource/memory", timeout=60)
    assert held["verdict"] == "refused"
    healer.stop()
    told = explained(vm, record["id"])
    for words in (
        f"{unit} holds",
        f"harm      {watch} failed since",
        "measured  worse",
        "undone    undone: the former values are back",
        "verdict   worse: something else suffered",
    ):
        assert words in told
    told = explained(vm, "watch")
    for words in (
        "main process exited with status 7",
        "after     watch.service is active (running)",
        "verdict   healed",
    ):
        assert words in told


def test_three_units_that_fail_together_are_reported_as_one_cause(vm_lab: Lab, vm: Host) -> None:
    healer, units = vm_lab
    three = [units.start(f"joint-{number}") for number in range(3)]
    units.kill(*three)
    healer.start()
    for unit in three:
        assert healer.told(unit.removesuffix(".service"), "blast radius", timeout=120)["verdict"] == "refused"
    shared = "3 units went down together: joint-0, joint-1, joint-2"
    data = vm.data("status", "--check", "services")
    assert [issue["description"] for issue in data["issues"] if issue["type"] == "system"] == [shared]
    assert data["steering"]["heals_last_hour"] == 0
    told = explained(vm, three[1])
    for words in (
        "joint-1.service failed: main process was killed by SIGKILL",
        "restart_service(service=joint-1.service): not taken",
        f"gate ✗    blast radius: {shared}",
        "verdict   refused: nothing was done",
    ):
        assert words in told
    assert [units.starts(unit) for unit in three] == [1, 1, 1]
    assert [unit_property(vm.guest, unit, "Result") for unit in three] == ["signal"] * 3


def test_a_jump_of_the_clock_lifts_no_limit(vm_lab: Lab, vm: Host) -> None:
    """Ten heals in the hour; the eleventh, and a second one of a unit, a year later and a year ago by the clock."""
    healer, units = vm_lab
    run = vm.guest.run
    many = [units.start(f"many-{number}") for number in range(10)]
    units.kill(*many)
    results = vm.data("heal", "--apply", "--check", "services")["results"]
    assert [one["verdict"] for one in results if one["issue"]["type"] == "service"] == ["healed"] * 10
    vm.command("silence", "quiet", "1h")
    eleventh = units.broken("eleventh")
    units.kill(many[0])
    now = int(run("date", "+%s").stdout)
    try:
        for jump in (365 * 86400, -365 * 86400):
            run("date", "-s", f"@{now + jump}")
            healer.start()
            assert "hourly limit: 10 in the last hour" in "".join(healer.told("eleventh", "hourly limit")["told"])
            assert "cooldown: the last act on many-0.service" in "".join(healer.told("many-0", "cooldown")["told"])
            assert "hourly limit" in vm.heal("eleventh", "--check", "services")["error"]
            status = vm_status(vm)
            assert status["heals_last_hour"] == 10
            assert [one["pattern"] for one in status["silences"]] == ["quiet"]
            healer.stop()
    finally:
        run("date", "-s", f"@{now}")
    assert (units.starts(eleventh), units.starts(many[0])) == (1, 2)


@pytest.mark.skipif(os.environ.get("LUMINOUS_LONG") != "1", reason="a machine of its own: LUMINOUS_LONG=1")
def test_an_intent_survives_a_power_cut() -> None:
    """The power goes while a unit is being started: the act is known, it is told so, and it counts."""
    if reason := missing_for_machine():
        pytest.skip(reason)
    with Machine.boot("power") as guest:
        install_project(guest, CHECKOUT)
        host = Host(guest)
        healer, units = Healer(host), Units(host)
        healer.configure()
        unit = units.slow("cut", 15)
        guest.run("sync")
        healer.start()
        wait_for(lambda: units.state(unit) == "activating", timeout=120, what="the start is under way")
        guest.power_cut()
        (record,) = healer.records("cut")
        assert record["verdict"] == "open"
        assert vm_status(host)["heals_last_hour"] == 1
        healer.start()
        told = healer.told("cut", "the program ended while restart_service was under way")
        assert "it is not repeated" in "".join(told["told"])
        guest.run("systemctl", "start", unit, timeout=120)
        units.kill(unit)
        assert healer.told("cut", "cooldown: the last act on cut.service ended")["verdict"] == "refused"
        assert units.state(unit) == "failed"
        assert vm_status(host)["heals_last_hour"] == 1


def vm_status(host: Host) -> dict[str, Any]:
    found: dict[str, Any] = host.data("status", "--check", "services")["steering"]
    return found
