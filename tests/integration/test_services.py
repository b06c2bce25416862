"""Services on a real systemd: killed, crash-looping, stopped on purpose, masked, disabled, missing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.integration.conftest import Host
from tests.lab.demo import service, unit_property, wait_for

pytestmark = pytest.mark.container
Forget = Callable[..., None]


@pytest.fixture(autouse=True)
def _tidy(cleanup: Forget) -> Iterator[None]:
    yield
    cleanup("demo", "loop", "rude", "short", "gone", "once", "sick")


def start(host: Host, name: str = "demo", command: str = "/bin/sleep infinity", **directives: str) -> str:
    unit = service(host.guest, name, command, None, **directives)
    host.guest.run("systemctl", "start", unit)
    return unit


def kill(host: Host, unit: str) -> None:
    host.guest.run("systemctl", "kill", "-s", "KILL", unit)
    wait_for(lambda: unit_property(host.guest, unit, "ActiveState") == "failed", what=f"{unit} failed")


def test_a_killed_unit_is_named_with_its_cause_and_healed(host: Host) -> None:
    unit = start(host)
    kill(host, unit)
    (issue,) = host.issues("demo")
    assert (issue["type"], issue["severity"], issue["kind"]) == ("service", "high", "unit_failed")
    assert issue["cause"] == "main process was killed by SIGKILL"
    before = unit_property(host.guest, unit, "InvocationID")
    result = host.heal("demo")
    assert (result["verdict"], result["action"], result["error"]) == ("healed", "restart_service", None)
    assert unit_property(host.guest, unit, "ActiveState") == "active"
    assert unit_property(host.guest, unit, "InvocationID") != before
    assert host.issues("demo") == []


def test_a_dry_run_tells_and_touches_nothing(host: Host) -> None:
    unit = start(host)
    kill(host, unit)
    code, out, _ = host.command("heal")
    assert code == 1
    assert "dry run: restart_service" in out
    assert "would run: systemctl start -- demo.service" in out
    assert unit_property(host.guest, unit, "ActiveState") == "failed"


def test_a_crash_loop_is_held_and_told(host: Host) -> None:
    unit = start(host, "loop", "/bin/sh -c 'exit 3'", Restart="always", RestartSec="20ms")
    wait_for(lambda: unit_property(host.guest, unit, "ActiveState") == "failed", what="systemd gave up")
    (issue,) = host.issues("loop")
    assert issue["kind"] == "crash_loop"
    assert "main process exited with status 3" in issue["cause"]
    invocation = unit_property(host.guest, unit, "InvocationID")
    result = host.heal("loop")
    assert result["verdict"] == "refused"
    assert "crash loop and held" in result["error"]
    assert "one clean start is tried in" in result["error"]
    assert unit_property(host.guest, unit, "InvocationID") == invocation


def test_a_restart_that_does_not_help_is_a_failure(host: Host) -> None:
    unit = start(host, "short", "/bin/sh -c 'sleep 0.1; exit 4'")
    wait_for(lambda: unit_property(host.guest, unit, "ActiveState") == "failed", what="it failed")
    result = host.heal("short")
    assert result["verdict"] == "failed"
    assert "short.service is failed" in result["error"]


RUDE = "/bin/bash -c 'trap \"exit 7\" TERM; while :; do read -t 1 <> <(:); done'"


@pytest.mark.parametrize("command", ["/bin/sleep infinity", RUDE], ids=["ends well", "exits 7 when told to stop"])
def test_a_unit_that_an_administrator_stopped_is_left_alone(host: Host, command: str) -> None:
    unit = start(host, "rude", command)
    time.sleep(0.3)  # until the trap is set
    host.guest.run("systemctl", "stop", unit)
    assert host.issues("rude", "--unit", "rude") == []
    data = host.data("heal", "--apply", "--unit", "rude")
    assert [result for result in data["results"] if result["issue"]["component"] == "rude"] == []
    assert unit_property(host.guest, unit, "ActiveState") in {"inactive", "failed"}


def test_a_watched_unit_that_ended_by_itself_is_an_issue_and_started(host: Host) -> None:
    unit = start(host)
    host.guest.run("systemctl", "kill", unit)  # SIGTERM: a clean end that no stop job asked for
    wait_for(lambda: unit_property(host.guest, unit, "ActiveState") == "inactive", what="it ended")
    assert host.issues("demo") == []
    (issue,) = host.issues("demo", "--unit", "demo")
    assert (issue["kind"], issue["cause"]) == ("unit_inactive", "it ended by itself")
    result = host.heal("demo", "--unit", "demo")
    assert (result["verdict"], result["action"]) == ("healed", "start_unit")


def test_a_masked_unit_is_left_alone(host: Host) -> None:
    host.guest.write("/usr/lib/systemd/system/gone.service", "[Service]\nExecStart=/bin/sleep infinity\n")
    host.guest.run("systemctl", "daemon-reload")
    host.guest.run("systemctl", "start", "gone")
    kill(host, "gone.service")
    host.guest.run("systemctl", "mask", "gone")
    try:
        assert host.issues("gone", "--unit", "gone") == []
    finally:
        host.guest.run("systemctl", "unmask", "gone")


def test_a_disabled_unit_is_left_alone(host: Host) -> None:
    text = "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
    host.guest.write("/etc/systemd/system/idle.service", text)
    host.guest.run("systemctl", "daemon-reload")
    assert host.issues("idle", "--unit", "idle") == []
    host.guest.run("systemctl", "enable", "idle")
    (issue,) = host.issues("idle", "--unit", "idle")
    assert issue["cause"] == "it was never started"
    host.guest.run("systemctl", "disable", "idle")
    host.guest.run("rm", "/etc/systemd/system/idle.service")
    host.guest.run("systemctl", "daemon-reload")


def test_a_unit_that_systemd_restarts_itself_is_not_an_issue(host: Host) -> None:
    unit = start(host, "once", "/bin/sleep infinity", Restart="always", RestartSec="30s")
    host.guest.run("systemctl", "kill", "-s", "KILL", unit)
    wait_for(lambda: unit_property(host.guest, unit, "SubState") == "auto-restart", what="auto-restart")
    assert host.issues("once", "--unit", "once") == []


def test_a_failed_one_off_command_is_told_and_not_repeated(host: Host) -> None:
    host.guest.run("systemd-run", "--unit=sick", "--wait", "false", check=False)
    (issue,) = host.issues("sick")
    assert (issue["severity"], issue["kind"]) == ("low", "one_off")
    assert host.heal("sick")["verdict"] == "refused"


def test_a_watched_unit_that_does_not_exist_is_unknown(host: Host) -> None:
    data = host.data("check", "--unit", "no-such-thing", "--check", "services")
    assert data["issues"] == []
    assert data["sensors"]["services"]["ok"] is True
    assert data["sensors"]["unit:no-such-thing.service"]["error"] == "there is no such unit"
    assert data["unknown"] == ["unit:no-such-thing.service"]


def test_a_protected_unit_is_never_touched(host: Host) -> None:
    host.guest.run("systemctl", "start", "systemd-logind", check=False)
    script = (
        "import asyncio; from luminous_nix.self_healing import SimpleExecutor;"
        "print(asyncio.run(SimpleExecutor().execute({'action': 'restart_service', 'parameters': {'service': NAME}})))"
    )
    env = {"LUMINOUS_DEV_MODE": "1", "PYTHONPATH": "/opt/luminous/src:/opt/luminous/deps"}
    for name in ("systemd-logind", "dbus", "dbus.socket", "polkit"):
        done = host.guest.run("python3", "-c", script.replace("NAME", repr(name)), env=env)
        assert "protected set" in done.stdout


def test_without_privilege_the_command_to_type_is_told(host: Host) -> None:
    unit = start(host)
    kill(host, unit)
    data = host.data("heal", "--apply", user="tester")
    (result,) = [result for result in data["results"] if result["issue"]["component"] == "demo"]
    assert result["verdict"] == "refused"
    assert "sudo systemctl start -- demo.service" in result["error"]
    assert unit_property(host.guest, unit, "ActiveState") == "failed"


def test_sudo_is_used_when_it_needs_no_password(host: Host) -> None:
    unit = start(host)
    kill(host, unit)
    host.guest.write(
        "/etc/sudoers.d/tester", "tester ALL=(root) NOPASSWD: /usr/bin/systemctl start -- demo.service\n", 0o440
    )
    try:
        data = host.data("heal", "--apply", user="tester")
    finally:
        host.guest.run("rm", "/etc/sudoers.d/tester")
    (result,) = [result for result in data["results"] if result["issue"]["component"] == "demo"]
    assert result["verdict"] == "healed"


def test_service_mode_without_helper_says_how_to_get_one(host: Host) -> None:
    unit = start(host)
    kill(host, unit)
    data = host.data("heal", "--apply", LUMINOUS_DEV_MODE="0")
    (result,) = [result for result in data["results"] if result["issue"]["component"] == "demo"]
    assert result["verdict"] == "refused"
    assert "SERVICE mode needs the helper" in result["error"]
    assert "LUMINOUS_DEV_MODE=1" in result["error"]


def test_no_bus_at_all_is_unknown_and_no_traceback(host: Host) -> None:
    data = host.data("check", DBUS_SYSTEM_BUS_ADDRESS="unix:path=/nowhere")
    assert data["sensors"]["services"]["ok"] is False
    assert "services" in data["unknown"]
    code, out, _ = host.command("check", "--check", "services", DBUS_SYSTEM_BUS_ADDRESS="unix:path=/nowhere")
    assert code == 3
    assert "nothing could be observed" in out


@pytest.mark.parametrize("kind", ["ignores TERM", "still starting", "no main process", "between two restarts"])
def test_more_ways_to_be_stopped_on_purpose(host: Host, kind: str) -> None:
    """Where the unit's times do not prove it, PID 1's lines in the journal do."""
    run = host.guest.run
    name = "stop-" + kind.replace(" ", "-").lower()
    if kind == "ignores TERM":
        unit = start(host, name, "/bin/sh -c 'trap \"\" TERM; while :; do sleep 1; done'", TimeoutStopSec="1")
        time.sleep(0.3)
    elif kind == "still starting":
        unit = service(host.guest, name, "/bin/sleep infinity", None, Type="notify")
        run("systemctl", "start", "--no-block", unit)
        wait_for(lambda: unit_property(host.guest, unit, "ActiveState") == "activating", what="activating")
    elif kind == "no main process":
        unit = start(host, name, "/bin/sh -c 'sleep infinity & sleep infinity &'", Type="forking", GuessMainPID="no")
    else:
        unit = start(host, name, "/bin/sh -c 'exit 3'", Restart="always", RestartSec="20s")
        wait_for(lambda: unit_property(host.guest, unit, "SubState") == "auto-restart", what="auto-restart")
    run("systemctl", "stop", unit)
    assert host.issues(name, "--unit", name) == []
    host.command("heal", "--apply", "--check", "services", "--unit", name)
    assert unit_property(host.guest, unit, "ActiveState") in {"inactive", "failed"}
    run("systemctl", "reset-failed", unit, check=False)


def test_a_unit_file_that_is_read_again_does_not_hide_the_stop(host: Host) -> None:
    unit = start(host, "odd", "/bin/sleep infinity", NoSuchDirective="yes")
    host.guest.run("systemctl", "stop", unit)
    for _ in range(4):
        host.guest.run("systemctl", "daemon-reload")
        assert host.issues("odd", "--unit", "odd") == []


def test_neighbours_are_not_taken_along(host: Host) -> None:
    """Starting a failed unit stops no rival, starts nothing that was stopped on purpose, restarts no dependant."""
    run = host.guest.run
    service(host.guest, "db", "/bin/sleep infinity")
    service(host.guest, "app", "/bin/sleep infinity", {"Requires": "db.service", "After": "db.service"})
    service(host.guest, "rival", "/bin/sleep infinity", {"Conflicts": "app.service"})
    run("systemctl", "start", "app")
    kill(host, "app.service")
    run("systemctl", "stop", "db")
    refused = host.heal("app", "--check", "services")
    assert refused["verdict"] == "refused"
    assert "app.service needs db.service, which is inactive" in refused["error"]
    assert unit_property(host.guest, "db.service", "ActiveState") == "inactive"
    run("systemctl", "start", "db")
    run("systemctl", "start", "rival")
    refused = host.heal("app", "--check", "services")
    assert "would stop rival.service" in refused["error"]
    assert unit_property(host.guest, "rival.service", "ActiveState") == "active"
    for unit in ("rival", "db"):
        run("systemctl", "stop", unit)
    run("systemctl", "reset-failed", "app", check=False)


def test_a_healthy_dependant_keeps_running(host: Host) -> None:
    run = host.guest.run
    service(host.guest, "base", "/bin/sleep infinity")
    service(host.guest, "user", "/bin/sleep infinity", {"Requires": "base.service"})
    run("systemctl", "start", "base", "user")
    before = unit_property(host.guest, "user.service", "InvocationID")
    kill(host, "base.service")
    assert host.heal("base", "--check", "services")["verdict"] == "healed"
    assert unit_property(host.guest, "user.service", "InvocationID") == before
    run("systemctl", "stop", "user", "base")


def test_a_failed_job_of_a_timer_is_run_once_more_and_then_left(host: Host) -> None:
    service(host.guest, "backup", "/bin/sh -c 'echo ran >> /var/tmp/backup.log; exit 1'", None, Type="oneshot")
    host.guest.write("/etc/systemd/system/backup.timer", "[Timer]\nOnCalendar=2035-01-01\n")
    host.guest.run("systemctl", "daemon-reload")
    host.guest.run("systemctl", "start", "backup.timer")
    host.guest.run("systemctl", "start", "backup", check=False)
    (issue,) = host.issues("backup")
    assert (issue["kind"], issue["severity"]) == ("job_failed", "medium")
    once = host.heal("backup", "--check", "services")
    assert (once["action"], once["verdict"]) == ("rerun_timer", "failed")
    again = host.heal("backup", "--check", "services")
    assert again["verdict"] == "refused"
    assert "1 rerun of a job in 24 hours" in again["error"]
    assert host.guest.run("cat", "/var/tmp/backup.log").stdout == "ran\nran\n"
    host.guest.run("systemctl", "stop", "backup.timer")
    host.guest.run("systemctl", "reset-failed", "backup")


def test_nothing_is_started_while_a_generation_is_switched(host: Host) -> None:
    unit = start(host)
    kill(host, unit)
    lock = "/run/nixos/switch-to-configuration.lock"
    script = f"import fcntl, time; f = open({lock!r}, 'w'); fcntl.flock(f, 2); time.sleep(30)"
    host.guest.run("mkdir", "/run/nixos")
    host.guest.run("systemd-run", "--unit=switching", "python3", "-c", script)
    wait_for(lambda: "FLOCK" in host.guest.run("cat", "/proc/locks").stdout, what="the lock is held")
    try:
        refused = host.heal("demo", "--check", "services")
        assert "a switch of the system's generation is in progress" in refused["error"]
    finally:
        host.guest.run("systemctl", "stop", "switching")
        host.guest.run("rm", "-r", "/run/nixos")
    assert host.heal("demo", "--check", "services")["verdict"] == "healed"
