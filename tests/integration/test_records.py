"""What was done is remembered: limits hold over calls and restarts, and every heal can be explained."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.integration.conftest import Host
from tests.lab.demo import service, unit_property, wait_for

pytestmark = pytest.mark.container
STATE = "/var/lib/luminous-healing"
ONLY = ("--check", "services")


def broken(host: Host, name: str, command: str = "/bin/sleep infinity") -> str:
    unit = service(host.guest, name, command)
    host.guest.run("systemctl", "start", unit)
    host.guest.run("systemctl", "kill", "-s", "KILL", unit)
    wait_for(lambda: unit_property(host.guest, unit, "ActiveState") == "failed", what=f"{unit} failed")
    return unit


def kill(host: Host, unit: str) -> None:
    host.guest.run("systemctl", "kill", "-s", "KILL", unit)
    wait_for(lambda: unit_property(host.guest, unit, "ActiveState") == "failed", what=f"{unit} failed")


def test_the_cooldown_holds_over_calls_and_the_heal_is_explained(host: Host, cleanup: Callable[..., None]) -> None:
    unit = broken(host, "kept")
    assert host.heal("kept", *ONLY)["verdict"] == "healed"
    kill(host, unit)
    refused = host.heal("kept", *ONLY)
    assert refused["verdict"] == "refused"
    assert "cooldown: the last act on kept.service ended" in refused["error"]
    assert unit_property(host.guest, unit, "ActiveState") == "failed"
    code, out, _ = host.command("history", "kept")
    assert code == 0
    assert "healed" in out
    assert "restart_service" in out
    code, out, _ = host.command("explain", "kept.service")  # the newest: why nothing is done now
    assert code == 0
    for words in ("restart_service(service=kept.service): not taken", "gate ✗    cooldown: ", "verdict   refused"):
        assert words in out
    first = host.data("history", "kept")["records"][-1]
    code, out, _ = host.command("explain", first["id"])
    assert code == 0
    told = ("main process was killed by SIGKILL", "restart_service(service=kept.service): taken",
            "gate ✓    protected set: kept.service is not in it", "gate ✓    cooldown: over",
            "gate ✓    rate: hourly limit: 0 of 10", "predicted: the unit is active and stays so",
            "before    kept.service is failed (failed): signal", "after     kept.service is active (running)",
            "verdict   healed")  # fmt: skip
    for words in told:
        assert words in out
    code, _, err = host.command("explain", "nothing-of-the-kind")
    assert code == 2
    assert "there is no record" in err
    cleanup("kept")


def test_a_dry_run_and_a_check_leave_no_trace(host: Host, cleanup: Callable[..., None]) -> None:
    broken(host, "dry")
    host.command("heal", *ONLY)
    host.command("check", *ONLY)
    assert host.guest.run("test", "-e", STATE, check=False).returncode == 1
    assert host.command("history")[1] == "nothing was done yet\n"
    cleanup("dry")


def test_a_corrupt_store_means_observe_only_and_is_kept(host: Host, cleanup: Callable[..., None]) -> None:
    unit = broken(host, "kept")
    assert host.heal("kept", *ONLY)["verdict"] == "healed"
    host.guest.run("sh", "-c", f"head -c 9000 /dev/urandom > {STATE}/state.db; rm -f {STATE}/state.db-*")
    kill(host, unit)
    for _ in range(2):
        refused = host.heal("kept", *ONLY)
        assert refused["verdict"] == "refused"
        assert "the store is out of order" in refused["error"]
    _, out, _ = host.command("status", *ONLY)
    assert "nothing will act" in out
    assert "state.db.corrupt-1" in host.guest.run("ls", STATE).stdout
    assert unit_property(host.guest, unit, "ActiveState") == "failed"
    accepted = host.command("resume", "--store")  # by a person
    assert accepted[:2] == (0, "a new store begins\nhealing goes on\n")
    assert host.heal("kept", *ONLY)["verdict"] == "healed"
    cleanup("kept")


def test_a_full_state_filesystem_stops_every_act(host: Host, cleanup: Callable[..., None]) -> None:
    unit = broken(host, "kept")
    host.guest.run("mkdir", "-p", STATE)
    host.guest.run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", STATE)
    try:
        host.guest.run("sh", "-c", f"head -c 1040000 /dev/zero > {STATE}/filler", check=False)
        refused = host.heal("kept", *ONLY)
        assert refused["verdict"] == "refused"
        assert "store" in refused["error"]
        assert unit_property(host.guest, unit, "ActiveState") == "failed"
        host.guest.run("rm", f"{STATE}/filler")
        healed = host.heal("kept", *ONLY)
        assert healed["verdict"] == "healed", healed["error"]
    finally:
        host.guest.run("umount", STATE)
    cleanup("kept")


def slow(host: Host, seconds: int, command: str = "/bin/sleep infinity") -> str:
    """A failed unit whose next start takes a while."""
    unit = broken(host, "slow", command)
    service(host.guest, "slow", command, None, ExecStartPre=f"/bin/sleep {seconds}")
    return unit


def heal_in_the_background(host: Host) -> None:
    argv = ["luminous-healing", "heal", "--apply", *ONLY]
    host.guest.run("systemd-run", "--unit=healer", "--collect", "-E", "LUMINOUS_DEV_MODE=1", *argv)
    wait_for(lambda: unit_property(host.guest, "slow.service", "ActiveState") == "activating", what="under way")


def test_an_act_that_was_killed_in_the_middle_is_not_repeated(host: Host, cleanup: Callable[..., None]) -> None:
    """kill -9 while the unit is starting: the intent is on disk, and the next call is held by the cooldown."""
    unit = slow(host, 3, "/bin/sh -c 'echo ran >> /var/tmp/slow.log; exec sleep infinity'")
    heal_in_the_background(host)
    host.guest.run("systemctl", "kill", "-s", "KILL", "healer")
    wait_for(lambda: unit_property(host.guest, unit, "ActiveState") == "active", what="systemd finished the start")
    kill(host, unit)
    refused = host.heal("slow", *ONLY)
    assert refused["verdict"] == "refused"
    assert "cooldown" in refused["error"]
    assert host.guest.run("cat", "/var/tmp/slow.log").stdout == "ran\nran\n"  # by the test, and once by the heal
    cleanup("slow")


def test_two_heals_at_once_are_one(host: Host, cleanup: Callable[..., None]) -> None:
    slow(host, 4)
    heal_in_the_background(host)
    other = broken(host, "other")
    assert "another heal is in progress" in host.heal("other", *ONLY)["error"]
    wait_for(lambda: unit_property(host.guest, "slow.service", "ActiveState") == "active", what="started")
    wait_for(lambda: host.guest.run("systemctl", "is-active", "healer", check=False).returncode, what="it is done")
    assert host.heal("other", *ONLY)["verdict"] == "healed"
    cleanup("slow", other)
