"""`install` on a real host: what systemd and polkit make of it, and that `uninstall` leaves the host as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.lab.container import Container
from tests.lab.demo import service, unit_property, wait_for
from tests.lab.guest import Result
from tests.lab.install import HOME, install_project

from .conftest import CHECKOUT

pytestmark = pytest.mark.container
HELPER = "luminous-healing-executor"
CONFIG = "/etc/luminous-healing/config.toml"


@pytest.fixture(scope="module")
def installed() -> Iterator[Container]:
    """A guest of its own with one allowed unit and one that is not."""
    with Container.boot("deploy") as guest:
        install_project(guest, CHECKOUT)
        for name in ("demo", "other"):
            service(guest, name, "/bin/sleep infinity")
            guest.run("systemctl", "start", name)
        guest.write("/run/before", listing(guest))
        guest.write("/run/systemd/system/plain.service", "[Service]\nExecStart=/bin/true\n")
        guest.write(CONFIG, "")
        allow(guest, "demo.service")
        yield guest


def listing(guest: Container) -> str:
    argv = ("find", "/etc", "/usr/share/polkit-1", "/var/lib", "-xdev", "-type", "f", "-newer", "/usr/local/bin")
    return guest.run(*argv).stdout


def allow(guest: Container, unit: str) -> dict[str, object]:
    guest.write(f"{CONFIG}", f'allowed_units = ["{unit}"]\n')
    return told(guest, "install")


def told(guest: Container, *argv: str) -> dict[str, object]:
    done = guest.run("luminous-healing", *argv, "--json", check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def asks(guest: Container, method: str, signature: str, *arguments: str, user: str = HELPER) -> Result:
    """A call to systemd's manager, as that user."""
    manager = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")
    argv = ["busctl", "--system", "call", *manager, method, *((signature,) if signature else ()), *arguments]
    return guest.run(*argv, check=False, user=user)


def test_a_second_install_has_nothing_to_do(installed: Container) -> None:
    again = told(installed, "install")
    assert (again["written"], again["removed"], again["edited"]) == ([], [], [])


def test_the_socket_waits_and_the_engine_was_not_started(installed: Container) -> None:
    assert unit_property(installed, f"{HELPER}.socket", "ActiveState") == "active"
    assert unit_property(installed, "luminous-healing-rotate.timer", "ActiveState") == "active"
    assert unit_property(installed, "luminous-healing.service", "ActiveState") == "inactive"
    assert unit_property(installed, "luminous-healing.service", "UnitFileState") == "disabled"
    status = installed.run("stat", "-c", "%U %a", f"/run/{HELPER}.sock").stdout.strip()
    assert status == "luminous-healing 600"


def refused(done: Result) -> bool:
    """By systemd or by polkit, and not for another reason."""
    return "denied" in done.stderr.lower() or "authentication" in done.stderr.lower()


ALLOWED = {
    "restart": ("RestartUnit", "ss", "demo.service", "replace"),
    "reset-failed": ("ResetFailedUnit", "s", "demo.service"),
    "set-property": ("SetUnitProperties", "sba(sv)", "demo.service", "true", "1", "CPUWeight", "t", "50"),
    "act unit": ("StartUnit", "ss", "luminous-healing-act-tmpfiles.service", "replace"),
    "act unit of the allowed unit": ("StartUnit", "ss", "luminous-healing-act-thaw@demo.service.service", "replace"),
}
DENIED = {
    "restart of another": ("RestartUnit", "ss", "other.service", "replace"),
    "stop": ("StopUnit", "ss", "demo.service", "replace"),
    "start": ("StartUnit", "ss", "demo.service", "replace"),
    "kill": ("KillUnit", "ssi", "demo.service", "all", "9"),
    "properties of another": ("SetUnitProperties", "sba(sv)", "other.service", "true", "1", "CPUWeight", "t", "50"),
    "act unit out of shape": ("StartUnit", "ss", "luminous-healing-act-swappiness@201.service", "replace"),
    "act unit of another": ("StartUnit", "ss", "luminous-healing-act-freeze@other.service.service", "replace"),
    "restart of an act unit": ("RestartUnit", "ss", "luminous-healing-act-rollback@1.service", "replace"),
    "stop of the engine": ("StopUnit", "ss", "luminous-healing.service", "replace"),
    "transient": ("StartTransientUnit", "ssa(sv)a(sa(sv))", "fresh.service", "replace", "0", "0"),
    "transient of an allowed name": ("StartTransientUnit", "ssa(sv)a(sa(sv))", "demo.service", "replace", "0", "0"),
    "transient act unit": (
        "StartTransientUnit", "ssa(sv)a(sa(sv))", "luminous-healing-act-swappiness@7.service", "replace", "0", "0",
    ),
    "every failed unit": ("ResetFailed", ""),
    "reload of the manager": ("Reload", ""),
    "its execution again": ("Reexecute", ""),
    "jobs": ("ClearJobs", ""),
    "enable": ("EnableUnitFiles", "asbb", "1", "demo.service", "false", "false"),
    "mask": ("MaskUnitFiles", "asbb", "1", "demo.service", "true", "false"),
    "link": ("LinkUnitFiles", "asbb", "1", "/tmp/x.service", "true", "false"),
    "environment": ("SetEnvironment", "as", "1", "PATH=/tmp"),
    "reboot": ("Reboot", ""),
}  # fmt: skip


@pytest.mark.parametrize("what", ALLOWED)
def test_the_helper_may(installed: Container, what: str) -> None:
    method, signature, *arguments = ALLOWED[what]
    done = asks(installed, method, signature, *arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("what", DENIED)
def test_the_helper_may_not(installed: Container, what: str) -> None:
    method, signature, *arguments = DENIED[what]
    done = asks(installed, method, signature, *arguments)
    assert done.returncode != 0
    assert refused(done), done.stderr


@pytest.mark.parametrize("user", ["luminous-healing", "daemon", "tester"])
def test_nobody_else_may_what_the_helper_may(installed: Container, user: str) -> None:
    for method, signature, *arguments in ALLOWED.values():
        done = asks(installed, method, signature, *arguments, user=user)
        assert done.returncode != 0
        assert refused(done), done.stderr


def test_the_allow_list_follows_the_configuration(installed: Container) -> None:
    restart = ("RestartUnit", "ss", "other.service", "replace")
    try:
        allow(installed, "other.service")
        wait_for(lambda: asks(installed, *restart).returncode == 0, timeout=20, what="polkit read its rule again")
        assert asks(installed, *ALLOWED["restart"]).returncode != 0
    finally:
        allow(installed, "demo.service")
    wait_for(lambda: asks(installed, *restart).returncode != 0, timeout=20, what="polkit read its rule again")


def test_polkit_knows_the_actions(installed: Container) -> None:
    told = installed.run("pkaction", "--verbose", "--action-id", "org.luminous.healing.kill").stdout
    assert "implicit active:   auth_admin" in told


def test_the_helper_may_ask_about_a_person_and_others_may_not(installed: Container) -> None:
    """With details, which polkit takes only from an action's owner. Nobody is there to answer."""
    installed.run("systemd-run", "--unit=person", "--uid=tester", "sleep", "infinity")
    person = unit_property(installed, "person", "MainPID")
    argv = [
        "pkcheck",
        "--action-id",
        "org.luminous.healing.restart",
        "--process",
        person,
        "--detail",
        "operation",
        "x",
    ]
    try:
        asked = installed.run(*argv, user=HELPER, check=False)
        assert asked.returncode in {1, 2}, asked.stderr  # not authorized, or a challenge; not an error
        assert "Error checking" not in asked.stderr
        assert "Error checking" in installed.run(*argv, user="daemon", check=False).stderr
    finally:
        installed.run("systemctl", "stop", "person")


def test_the_engine_works_behind_its_walls(installed: Container) -> None:
    """Keys are made for it, it says that it is ready, and a member of its group may ask it."""
    told(installed, "install", "--now")
    try:
        assert unit_property(installed, "luminous-healing.service", "ActiveState") == "active"
        keys = installed.run("stat", "-c", "%U %a %n", "/var/lib/luminous-healing-keys/keys").stdout
        assert keys.startswith("root 400 ")
        installed.run("usermod", "-aG", "luminous-healing", "tester")
        done = installed.run("luminous-healing", "history", "--json", user="tester", check=False)
        assert done.returncode == 0, done.stderr
        assert unit_property(installed, "luminous-healing.service", "NRestarts") == "0"
    finally:
        installed.run("systemctl", "disable", "--now", "luminous-healing.service", check=False)


# Each with real programs, behind its walls.
ACTS = ("journal@1048576", "tmpfiles", "gc@1048576", "optimise", "freeze@demo.service", "thaw@demo.service")
PROFILES = "/nix/var/nix/profiles"


@pytest.fixture(scope="module")
def nix(installed: Container) -> Container:
    installed.run("systemd-run", "--unit=nixd", "nix-daemon")
    socket = "/nix/var/nix/daemon-socket/socket"
    wait_for(lambda: installed.run("test", "-S", socket, check=False).returncode == 0, what="the Nix daemon")
    installed.write("/tmp/thing", "thing\n")
    path = installed.run("nix-store", "--add", "/tmp/thing").stdout.strip()
    installed.run("mkdir", "-p", PROFILES)
    for number in (1, 2):
        installed.run("ln", "-sfn", path, f"{PROFILES}/system-{number}-link")
    installed.run("ln", "-sfn", "system-2-link", f"{PROFILES}/system")
    return installed


@pytest.mark.parametrize("act", ACTS)
def test_an_act_unit_can_do_its_one_thing(nix: Container, act: str) -> None:
    unit = f"luminous-healing-act-{act}.service"
    done = nix.run("systemctl", "start", unit, check=False, timeout=120)
    assert done.returncode == 0, nix.run("journalctl", "-u", unit, "-n", "20", "-o", "cat").stdout


def within(guest: Container, act: str, command: str) -> str:
    """What a command says that runs in place of the act, behind the act's walls."""
    template = f"luminous-healing-act-{act.partition('@')[0]}{'@' if '@' in act else ''}.service"
    place = f"/run/systemd/system/{template}.d"
    unit = f"luminous-healing-act-{act}.service"
    try:
        guest.write("/usr/local/bin/probe", f"#!/usr/bin/python3 -I\n{command}\n", 0o755)
        guest.write(f"{place}/probe.conf", "[Service]\nExecStart=\nExecStart=/usr/local/bin/probe\n")
        guest.run("systemctl", "daemon-reload")
        done = guest.run("systemctl", "start", unit, check=False, timeout=120)
        guest.run("journalctl", "--sync", check=False)
        said = guest.run("journalctl", "-u", unit, "-o", "cat").stdout
        assert done.returncode == 0, said
        return said
    finally:
        guest.run("rm", "-rf", place)
        guest.run("systemctl", "daemon-reload")


def test_nix_can_delete_a_generation_there(nix: Container) -> None:
    argv = ["nix-env", "--profile", f"{PROFILES}/system", "--delete-generations", "1"]
    within(
        nix, "generations@1", f"import subprocess; subprocess.run({argv!r}, check=True, env={{'PATH': '/usr/bin'}})"
    )
    assert "system-1-link" not in nix.run("ls", PROFILES).stdout


PROBE = """
import os, socket
def tried(what, deed):
    try:
        deed()
    except OSError as error:
        print(what, "refused", error.errno)
    else:
        print(what, "POSSIBLE")
def connect(path):
    socket.socket(socket.AF_UNIX).connect(path)
tried("keys", lambda: open("/var/lib/luminous-healing-keys/keys").read())
tried("shadow", lambda: open("/etc/shadow", "a"))
tried("unit", lambda: open("/etc/systemd/system/x.service", "w"))
tried("swap", lambda: open("/proc/sys/vm/overcommit_memory", "w"))
tried("core", lambda: open("/proc/sys/kernel/core_pattern", "w"))
tried("cgroup", lambda: open("/sys/fs/cgroup/cgroup.procs", "w"))
tried("bus", lambda: connect("/run/dbus/system_bus_socket"))
tried("manager", lambda: connect("/run/systemd/private"))
tried("helper", lambda: connect("/run/luminous-healing-executor.sock"))
tried("engine", lambda: connect("/run/luminous-healing/control.sock"))
tried("network", lambda: socket.socket(socket.AF_INET))
tried("chown", lambda: os.chown("/tmp", 1, 1))
tried("chroot", lambda: os.chroot("/"))
tried("user", lambda: os.setuid(1))
tried("open file of another", lambda: open("/proc/1/environ").read())
"""


@pytest.mark.parametrize("act", ["dropcaches", "freeze@demo.service", "tmpfiles", "journal@1048576", "gc@1048576"])
def test_behind_its_walls_it_can_do_nothing_else(nix: Container, act: str) -> None:
    said = within(nix, act, PROBE)
    assert said.count("refused") == 15, said
    assert "POSSIBLE" not in said


def test_where_polkit_is_missing_nothing_is_written(installed: Container) -> None:
    so_far = listing(installed)
    installed.run("systemctl", "mask", "--runtime", "--now", "polkit.service")
    try:
        done = installed.run("luminous-healing", "install", check=False)
        assert (done.returncode, "polkit is masked" in done.stderr) == (1, True), done.stderr
        assert asks(installed, *ALLOWED["restart"]).returncode != 0  # without polkit nothing is granted
    finally:
        installed.run("systemctl", "unmask", "--runtime", "polkit.service")
    assert listing(installed) == so_far


def test_code_that_others_can_change_is_not_run_as_root(installed: Container) -> None:
    installed.run("chown", "tester", f"{HOME}/src/luminous_nix/self_healing/cli.py")
    try:
        done = installed.run("luminous-healing", "install", check=False)
        assert (done.returncode, "others than root may change" in done.stderr) == (1, True)
    finally:
        installed.run("chown", "root", f"{HOME}/src/luminous_nix/self_healing/cli.py")


def test_a_configuration_that_others_can_change_gives_no_power(installed: Container) -> None:
    installed.run("chmod", "o+w", CONFIG)
    try:
        done = installed.run("luminous-healing", "install", check=False)
        assert (done.returncode, "others than root may write it" in done.stderr) == (2, True)
    finally:
        installed.run("chmod", "o-w", CONFIG)


def test_uninstall_leaves_the_host_as_it_was(installed: Container) -> None:
    told(installed, "uninstall")
    left = set(listing(installed).split()) - set(installed.run("cat", "/run/before").stdout.split())
    stays = (
        "/var/lib/luminous-healing/",
        "/var/lib/luminous-healing-",
        "/etc/luminous-healing/",
        "/var/lib/systemd/",
    )
    assert [path for path in left if "luminous" in path and not path.startswith(stays)] == []
    assert unit_property(installed, f"{HELPER}.socket", "LoadState") == "not-found"
    assert asks(installed, *ALLOWED["restart"]).returncode != 0
