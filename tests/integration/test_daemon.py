"""`luminous-healing run` under a real service manager."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from tests.integration.conftest import Host
from tests.lab.demo import service, unit_property, wait_for

pytestmark = pytest.mark.container
UNIT = "luminous-healing"
CONFIG = "/etc/luminous-healing/config.toml"


@pytest.fixture
def daemon(host: Host) -> Iterator[Host]:
    host.guest.write(CONFIG, 'mode = "dev"\ninterval = 1\nenabled_checks = ["services", "memory"]\n')
    service(host.guest, UNIT, "/usr/local/bin/luminous-healing run", Type="notify", NotifyAccess="all",
            ExecReload="/bin/kill -HUP $MAINPID", WatchdogSec="5", Environment="LUMINOUS_DEV_MODE=0")  # fmt: skip
    host.guest.run("systemctl", "start", UNIT)
    yield host
    host.guest.run("systemctl", "stop", UNIT)
    host.guest.run("rm", "-f", CONFIG)


def journal(host: Host) -> list[dict[str, str]]:
    out = host.guest.run("journalctl", "-b", "-o", "json", f"SYSLOG_IDENTIFIER={UNIT}").stdout
    return [json.loads(line) for line in out.splitlines()]


def test_it_heals_by_itself_and_logs_structured_fields(daemon: Host) -> None:
    unit = service(daemon.guest, "victim", "/bin/sleep infinity")
    daemon.guest.run("systemctl", "start", unit)
    daemon.guest.run("systemctl", "kill", "-s", "KILL", unit)
    wait_for(lambda: unit_property(daemon.guest, unit, "ActiveState") == "active", what="healed by the daemon")
    entry = wait_for(
        lambda: next((line for line in journal(daemon) if line.get("LUMINOUS_VERDICT") == "healed"), None),
        what="told",
    )
    assert entry is not None
    assert entry["LUMINOUS_ACTION"] == "restart_service"
    assert entry["LUMINOUS_ISSUE"] == "service/victim/unit_failed"
    daemon.guest.run("systemctl", "stop", unit)


def test_the_watchdog_is_fed_and_the_status_is_told(daemon: Host) -> None:
    time.sleep(6)  # longer than WatchdogSec=
    assert unit_property(daemon.guest, UNIT, "ActiveState") == "active"
    assert unit_property(daemon.guest, UNIT, "NRestarts") == "0"
    assert unit_property(daemon.guest, UNIT, "StatusText") == "all is well"
    assert "active (running)" in daemon.command("status")[1]


def test_a_bad_file_keeps_the_old_configuration_and_names_the_key(daemon: Host) -> None:
    daemon.guest.write(CONFIG, 'mode = "dev"\ninterval = 1\n[thresholds]\nmemory = 150\n')
    daemon.guest.run("systemctl", "reload", UNIT)
    wait_for(
        lambda: [line for line in journal(daemon) if "thresholds.memory_percent" in line["MESSAGE"]], what="told"
    )
    assert unit_property(daemon.guest, UNIT, "ActiveState") == "active"
    daemon.guest.write(CONFIG, 'mode = "dev"\ninterval = 1\ndry_run = true\n')
    daemon.guest.run("systemctl", "reload", UNIT)
    wait_for(lambda: [line for line in journal(daemon) if "read again" in line["MESSAGE"]], what="reloaded")
    unit = service(daemon.guest, "victim", "/bin/sleep infinity")
    daemon.guest.run("systemctl", "start", unit)
    daemon.guest.run("systemctl", "kill", "-s", "KILL", unit)
    wait_for(lambda: [line for line in journal(daemon) if line.get("LUMINOUS_VERDICT") == "dry_run"], what="dry run")
    assert unit_property(daemon.guest, unit, "ActiveState") == "failed"
    daemon.guest.run("systemctl", "reset-failed", unit)


def test_it_ends_at_once_when_told(daemon: Host) -> None:
    began = time.monotonic()
    daemon.guest.run("systemctl", "stop", UNIT)
    assert unit_property(daemon.guest, UNIT, "Result") == "success"
    assert time.monotonic() - began < 30  # far below TimeoutStopSec=90: it was not killed


def test_a_blind_sensor_is_told_and_not_called_well(daemon: Host) -> None:
    """Also: connections that fail while the bus does not answer leave no open file behind."""
    pid = unit_property(daemon.guest, UNIT, "MainPID")

    def files() -> int:
        return len(daemon.guest.run("ls", f"/proc/{pid}/fd").stdout.split())

    wait_for(lambda: unit_property(daemon.guest, UNIT, "StatusText") == "all is well", what="a first cycle")
    before = files()
    daemon.guest.run("systemctl", "kill", "-s", "STOP", "dbus.service")
    try:
        time.sleep(25)
    finally:
        bus = daemon.guest.run("pgrep", "-x", "dbus-daemon", "-u", "messagebus").stdout.split()[0]
        daemon.guest.run("kill", "-CONT", bus)
    assert [line for line in journal(daemon) if "not observed: services" in line["MESSAGE"]]
    wait_for(lambda: unit_property(daemon.guest, UNIT, "StatusText") == "all is well", what="it recovered by itself")
    assert files() <= before + 2


def test_a_frozen_journal_does_not_hold_the_loop(daemon: Host) -> None:
    daemon.guest.run("systemctl", "kill", "-s", "STOP", "systemd-journald.service")
    unit = "frozen-victim.service"
    try:
        service(
            daemon.guest, "frozen-victim", "/bin/sleep infinity", None, StandardOutput="null", StandardError="null"
        )
        daemon.guest.run("systemctl", "start", unit)
        daemon.guest.run("systemctl", "kill", "-s", "KILL", unit)
        wait_for(lambda: unit_property(daemon.guest, unit, "ActiveState") == "active", what="healed all the same")
    finally:
        daemon.guest.run("systemctl", "kill", "-s", "CONT", "systemd-journald.service")
    assert unit_property(daemon.guest, UNIT, "NRestarts") == "0"
    daemon.guest.run("systemctl", "stop", unit)
