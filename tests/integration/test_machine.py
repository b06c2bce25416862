"""What needs a kernel of one's own: memory.reclaim, cpufreq governors, swappiness, processes of others."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.conftest import Host
from tests.lab.demo import service, unit_property, wait_for

pytestmark = pytest.mark.machine
ENV = {"LUMINOUS_DEV_MODE": "1", "PYTHONPATH": "/opt/luminous/src:/opt/luminous/deps"}
SCRIPT = """
import asyncio, dataclasses, json, sys
from luminous_nix.self_healing import SimpleExecutor
action = json.loads(sys.argv[1])
print(json.dumps(dataclasses.asdict(asyncio.run(SimpleExecutor().execute(action, dry_run=len(sys.argv) > 2)))))
"""


@pytest.fixture(scope="module", autouse=True)
def hog(vm: Host) -> str:
    """Started first, because a process younger than a minute is left alone."""
    unit = service(vm.guest, "hog", "/bin/sleep infinity", User="tester")
    vm.guest.run("systemctl", "start", unit)
    return unit


def execute(vm: Host, name: str, *flags: str, user: str | None = None, **parameters: object) -> dict[str, Any]:
    action = json.dumps({"action": name, "parameters": parameters})
    done = vm.guest.run("python3", "-c", SCRIPT, action, *flags, env=ENV, user=user, timeout=180)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def read(vm: Host, path: str) -> str:
    return vm.guest.run("cat", path).stdout.strip()


def test_idle_file_cache_of_a_background_service_is_reclaimed(vm: Host) -> None:
    """A service reads a file once and holds it in its cgroup's cache; the kernel is asked to give it back."""
    vm.guest.run("sh", "-c", "head -c 96000000 /dev/urandom > /var/tmp/big; sync; echo 3 > /proc/sys/vm/drop_caches")
    unit = service(vm.guest, "reader", "/bin/sh -c 'cat /var/tmp/big > /dev/null; sleep infinity'")
    vm.guest.run("systemctl", "start", unit)
    stat = f"/sys/fs/cgroup/system.slice/{unit}/memory.stat"

    def idle() -> int:
        rows = dict(line.split() for line in read(vm, stat).splitlines())
        return int(rows["inactive_file"])

    before = wait_for(lambda: idle() if idle() > 64_000_000 else 0, what="the file is in the cache")
    told = execute(vm, "clear_system_cache", "dry")
    assert "memory.reclaim" in told["output"]
    assert idle() >= 0.9 * before
    assert execute(vm, "clear_system_cache")["success"]
    assert idle() < 0.5 * before
    vm.guest.run("systemctl", "stop", unit)


def test_a_governor_that_holds_the_cpu_down_is_raised_and_only_then(vm: Host) -> None:
    knobs = "/sys/devices/system/cpu/cpufreq/policy*/scaling_governor"
    vm.guest.run("sh", "-c", f"for knob in {knobs}; do echo powersave > $knob; done")
    assert execute(vm, "set_cpu_governor")["success"]
    governors = set(vm.guest.run("sh", "-c", f"cat {knobs}").stdout.split())
    assert governors <= {"schedutil", "ondemand", "performance"}
    again = execute(vm, "set_cpu_governor")
    assert not again["success"]
    assert "no governor holds the CPU down" in again["error"]
    assert "not one to raise to" in execute(vm, "set_cpu_governor", governor="powersave")["error"]


def test_a_governor_that_another_tool_owns_is_left_to_it(vm: Host) -> None:
    unit = service(vm.guest, "tlp", "/bin/sleep infinity")
    vm.guest.run("systemctl", "start", unit)
    try:
        assert "tlp.service owns the CPU governor" in execute(vm, "set_cpu_governor")["error"]
    finally:
        vm.guest.run("systemctl", "stop", unit)


def test_swappiness_is_written_and_a_second_time_refused(vm: Host) -> None:
    former = int(read(vm, "/proc/sys/vm/swappiness"))
    assert execute(vm, "adjust_swappiness", value=former - 7)["success"]
    assert int(read(vm, "/proc/sys/vm/swappiness")) == former - 7
    assert "already" in execute(vm, "adjust_swappiness", value=former - 7)["error"]
    told = execute(vm, "adjust_swappiness", user="tester", value=former)
    assert told["refused"]
    assert told["suggestion"] == f"echo {former} | sudo tee -- /proc/sys/vm/swappiness"


def test_only_the_process_that_was_meant_is_killed(vm: Host, hog: str) -> None:
    pid = int(unit_property(vm.guest, hog, "MainPID"))
    start_time = int(read(vm, f"/proc/{pid}/stat").rpartition(")")[2].split()[19])
    assert "is not the one that was meant" in execute(vm, "kill_process", pid=pid, start_time=start_time + 1)["error"]
    young = int(vm.guest.run("sh", "-c", "setpriv --reuid=tester sleep 60 >/dev/null 2>&1 & echo $!").stdout)
    started = int(read(vm, f"/proc/{young}/stat").rpartition(")")[2].split()[19])
    assert "s old" in execute(vm, "kill_process", pid=young, start_time=started)["error"]
    root = int(unit_property(vm.guest, "systemd-journald.service", "MainPID"))
    its_start = int(read(vm, f"/proc/{root}/stat").rpartition(")")[2].split()[19])
    assert "belongs to root" in execute(vm, "kill_process", pid=root, start_time=its_start)["error"]
    assert unit_property(vm.guest, hog, "ActiveState") == "active"
    old = start_time / 100 + 61
    wait_for(lambda: float(read(vm, "/proc/uptime").split()[0]) > old, timeout=120, what="it is a minute old")
    done = execute(vm, "kill_process", pid=pid, start_time=start_time)
    assert done["success"], done
    assert "SIGTERM" in done["output"]
    wait_for(lambda: unit_property(vm.guest, hog, "ActiveState") == "inactive", what="it is gone")
