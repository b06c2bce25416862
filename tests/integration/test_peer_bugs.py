"""Bugs of peers that only a real systemd can show: the daemon at work beside it. The others are in tests/unit."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest

from tests.integration.conftest import Host
from tests.integration.test_daemon import CONFIG, UNIT, journal
from tests.integration.test_generations import ACT, act, guest, numbers, switched
from tests.lab.demo import service, unit_property, wait_for
from tests.lab.guest import Guest
from tests.lab.install import HOME

__all__ = ["guest"]  # a fixture

pytestmark = pytest.mark.container
CYCLES_S = 3.5  # several looks of the daemon
SETTINGS = 'mode = "dev"\ninterval = 1\nenabled_checks = ["services"]\nmonitored_units = ["demo", "rival"]\n'


@pytest.fixture
def healer(host: Host, cleanup: Callable[..., None]) -> Iterator[Host]:
    """The daemon as systemd runs it; it watches demo and rival."""
    host.guest.write(CONFIG, SETTINGS)
    service(host.guest, UNIT, "/usr/local/bin/luminous-healing run", None, Type="notify", NotifyAccess="all",
            WatchdogSec="5", TimeoutStopSec="2", TimeoutAbortSec="2", Restart="on-watchdog")  # fmt: skip
    host.guest.run("systemctl", "start", UNIT)
    yield host
    host.guest.run("systemctl", "stop", UNIT)
    host.guest.run("rm", "-f", CONFIG)
    cleanup("demo", "rival", "hung", "a", "b", "c", "d")


def begin(host: Host, name: str = "demo", command: str = "/bin/sleep infinity", **directives: str) -> str:
    unit = service(host.guest, name, command, None, **directives)
    host.guest.run("systemctl", "start", unit)
    return unit


def state(host: Host, unit: str) -> str:
    return unit_property(host.guest, unit, "ActiveState")


def acts(host: Host) -> int:
    """How many the daemon counts."""
    found: int = host.data("status", "--check", "load")["steering"]["heals_last_hour"]
    return found


def said(host: Host, words: str = "") -> list[str]:
    """What the daemon that runs now logged."""
    pid = unit_property(host.guest, UNIT, "MainPID")
    return [line["MESSAGE"] for line in journal(host) if line["_PID"] == pid and words in line["MESSAGE"]]


def healed(host: Host, unit: str) -> None:
    wait_for(lambda: said(host, f"{unit} is active (running)"), what="healed")
    assert state(host, unit) == "active"


def test_bug_03_a_condition_clears_when_its_unit_is_forgotten_or_removed(healer: Host) -> None:
    """NPD #215: what was failed once stayed a condition. Here an administrator resets it, or takes the unit away."""
    for name, forget in (("a", ("systemctl", "reset-failed", "a")), ("b", ("rm", "/etc/systemd/system/b.service"))):
        unit = service(healer.guest, name, "/bin/false", None, Type="oneshot")
        before = time.monotonic()
        healer.guest.run("systemctl", "start", unit, check=False)
        wait_for(lambda: "open issues" in unit_property(healer.guest, UNIT, "StatusText"), what="seen")
        healer.guest.run(*forget)
        healer.guest.run("systemctl", "daemon-reload")
        healer.guest.run("systemctl", "reset-failed", unit, check=False)
        wait_for(lambda: "open issues" not in unit_property(healer.guest, UNIT, "StatusText"), what="cleared")
        assert time.monotonic() - before < 60


def test_bug_04_a_daemon_that_does_not_progress_is_ended_by_systemd(healer: Host) -> None:
    """NPD #1168; basnijholt/dotfiles #65: alive and not progressing. A healer that stands still is started anew by
    the watchdog, and heals again."""
    pid = unit_property(healer.guest, UNIT, "MainPID")
    healer.guest.run("systemctl", "kill", "-s", "STOP", UNIT)
    wait_for(lambda: unit_property(healer.guest, UNIT, "NRestarts") == "1", what="the watchdog noticed")
    wait_for(lambda: state(healer, UNIT) == "active", what="it is back")
    assert unit_property(healer.guest, UNIT, "MainPID") != pid
    unit = begin(healer)
    healer.guest.run("systemctl", "kill", "-s", "KILL", unit)
    healed(healer, unit)


def test_bug_05_what_is_still_starting_is_not_started_again(healer: Host) -> None:
    """Monit #787: the check ran while the service was starting, and restarted it for ever."""
    unit = begin(healer)
    log = "/var/tmp/starts.log"
    service(healer.guest, "demo", "/bin/sleep infinity", None, ExecStartPre=f"/bin/sh -c 'echo x >>{log}; sleep 5'")
    healer.guest.run("systemctl", "kill", "-s", "KILL", unit)
    healed(healer, unit)
    time.sleep(CYCLES_S)
    assert healer.guest.run("cat", log).stdout == "x\n"
    assert acts(healer) == 1
    healer.guest.run("rm", log)


def test_bug_08_a_rival_that_stopped_a_unit_is_not_fought(healer: Host) -> None:
    """HARDN PR #181: Conflicts= stopped one unit for the other, the monitor started it, which stopped the other."""
    service(healer.guest, "rival", "/bin/sleep infinity", {"Conflicts": "demo.service"})
    unit = begin(healer)
    healer.guest.run("systemctl", "start", "rival")
    wait_for(lambda: state(healer, unit) == "inactive", what="its rival stopped it")
    invocation = unit_property(healer.guest, "rival.service", "InvocationID")
    time.sleep(CYCLES_S)
    assert (state(healer, unit), state(healer, "rival.service")) == ("inactive", "active")
    assert unit_property(healer.guest, "rival.service", "InvocationID") == invocation
    assert acts(healer) == 0


def test_bug_08_what_is_stopped_disabled_or_masked_stays_so_before_the_daemons_eyes(healer: Host) -> None:
    """HARDN PR #181: a person's will, with the daemon looking on."""
    unit = begin(healer)
    for will in (("stop",), ("disable", "--now"), ("mask", "--runtime", "--now")):
        healer.guest.run("systemctl", "unmask", "--runtime", unit, check=False)
        healer.guest.run("systemctl", "start", unit)
        healer.guest.run("systemctl", *will, unit)
        time.sleep(CYCLES_S)
        assert state(healer, unit) == "inactive", will
    healer.guest.run("systemctl", "unmask", "--runtime", unit)
    assert acts(healer) == 0


def test_bug_09_systemds_own_restart_is_waited_for(healer: Host) -> None:
    """keystone PR #501: a unit between two restarts counted as failed."""
    unit = begin(healer, Restart="always", RestartSec="4s")
    healer.guest.run("systemctl", "kill", "-s", "KILL", unit)
    wait_for(lambda: unit_property(healer.guest, unit, "SubState") == "auto-restart", what="auto-restart")
    wait_for(lambda: state(healer, unit) == "active", what="systemd restarted it")
    assert unit_property(healer.guest, unit, "NRestarts") == "1"
    assert (acts(healer), said(healer, "demo")) == (0, [])


def test_bug_13_units_that_go_down_together_are_left_to_a_person(healer: Host) -> None:
    """qf-studio/pilot #4780: an outage of the platform became a storm of restarts."""
    units = [begin(healer, name) for name in "abcd"]
    healer.guest.run("systemctl", "stop", UNIT)
    healer.guest.run("systemctl", "kill", "-s", "KILL", *units)
    wait_for(lambda: {state(healer, unit) for unit in units} == {"failed"}, what="all are down")
    healer.guest.run("systemctl", "start", UNIT)
    wait_for(lambda: said(healer, "went down together"), what="told")
    time.sleep(CYCLES_S)
    assert {state(healer, unit) for unit in units} == {"failed"}
    assert acts(healer) == 0


def test_bug_14_an_endless_restart_by_systemd_is_not_made_worse_and_does_not_drown_the_log(healer: Host) -> None:
    """Containarium PR #1233, hermes PR #64433: StartLimitIntervalSec=0 and a flat delay. Ours: no start is added to
    those of systemd, and what the daemon says of it does not grow with them."""
    unit = service(healer.guest, "demo", "/bin/sh -c 'exit 3'", {"StartLimitIntervalSec": "0"}, Restart="always",
                   RestartSec="100ms")  # fmt: skip
    healer.guest.run("systemctl", "start", unit)
    wait_for(lambda: int(unit_property(healer.guest, unit, "NRestarts")) > 20, what="a loop")
    assert acts(healer) == 0
    assert len(said(healer, "demo")) <= 3
    assert unit_property(healer.guest, UNIT, "NRestarts") == "0"


HANG = """
import socket, time
held = []
for words in (b'{"schema": 1, "do": ', b'{"schema": 1, "do": "status"}\\n' * 3000, b''):
    one = socket.socket(socket.AF_UNIX)
    one.connect("/run/luminous-healing/control.sock")
    one.setblocking(False)
    try:
        one.send(words)
    except BlockingIOError:
        pass
    held.append(one)
print("hanging", flush=True)
time.sleep(600)
"""


def test_bug_17_it_heals_while_a_client_hangs(healer: Host) -> None:
    """Glances #2240: actions ran only with a client at hand. Nor may a client that never reads be in the way."""
    healer.guest.write("/run/hang.py", HANG)
    begin(healer, "hung", "/usr/bin/python3 /run/hang.py")
    wait_for(lambda: "hanging" in healer.guest.run("journalctl", "-b", "-u", "hung").stdout, what="it hangs")
    unit = begin(healer)
    healer.guest.run("systemctl", "kill", "-s", "KILL", unit)
    healed(healer, unit)
    assert state(healer, "hung.service") == "active"
    assert acts(healer) == 1


OFFLINE = ("systemd-run", "--pipe", "--wait", "--quiet", "-p", "PrivateNetwork=yes", "-p", "IPAddressDeny=any")


def test_bug_16_a_rollback_needs_no_network_and_writes_nothing_to_the_store(guest: Guest) -> None:
    """NixOS/nix #12724: a rollback wanted the network. With the real nix-env, in a network namespace of its own that
    holds nothing, not even an interface that is up, and with a store that cannot be written."""
    good = next(one for one in act(guest, "list", None) if one["number"] == 6)
    act(guest, "mark", good["path"])
    path = f"PYTHONPATH={HOME}/src:{HOME}/deps"
    alone = (*OFFLINE, "-E", path, "-p", "ReadOnlyPaths=/nix/store")
    assert guest.run(*alone, "ip", "-4", "route").stdout == ""
    assert guest.run(*alone, "touch", "/nix/store/new", check=False).returncode == 1
    done = guest.run(*alone, "python3", "-c", ACT, "rollback_generation", "{}", timeout=120)
    assert json.loads(done.stdout)["error"] is None
    assert numbers(guest, "current") == [6]
    assert switched(guest) == ["6 dry-activate", "6 switch"]
