"""The lab itself: guests are real systems, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.container import Container
from tests.lab.demo import service, unit_property, wait_for
from tests.lab.guest import Guest, GuestError
from tests.lab.install import HOME, install_project
from tests.lab.machine import Machine


def check_systemd(guest: Guest) -> None:
    assert guest.run("cat", "/proc/1/comm").stdout == "systemd\n"
    state = guest.run("systemctl", "is-system-running", check=False).stdout.strip()
    assert state in ("running", "degraded")


@pytest.mark.container
def test_container_runs_systemd(container: Container) -> None:
    check_systemd(container)


@pytest.mark.container
def test_commands_report_output_status_and_user(container: Container) -> None:
    failed = container.run("sh", "-c", "cat; echo $WORD >&2; exit 3", stdin="in", env={"WORD": "err"}, check=False)
    assert (failed.stdout, failed.stderr, failed.returncode) == ("in", "err\n", 3)
    with pytest.raises(GuestError, match=r"status 2: .*nowhere"):
        container.run("ls", "/nowhere")
    with pytest.raises(GuestError, match=r"not finished after 0\.2 s: sleep 30"):
        container.run("sleep", "30", timeout=0.2)
    assert container.run("id", "-un", user="tester").stdout == "tester\n"
    assert container.run("systemctl", "--user", "is-system-running", "--wait", user="tester").stdout == "running\n"


@pytest.mark.container
def test_files_travel_both_ways(container: Container, tmp_path: Path) -> None:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/sub/file").write_text("text", encoding="utf-8")
    container.copy(tmp_path / "tree", "/srv/there/renamed")
    container.write("/srv/there/renamed/script", "#!/bin/sh\necho ran\n", 0o755)
    assert container.run("/srv/there/renamed/script").stdout == "ran\n"
    container.fetch("/srv/there/renamed", tmp_path / "back")
    assert (tmp_path / "back/sub/file").read_text(encoding="utf-8") == "text"


@pytest.mark.container
def test_a_service_can_be_started_and_killed(container: Container) -> None:
    unit = service(container, "lab-sleeper", "/bin/sleep infinity", unit={"Description": "sleeps"}, Restart="no")
    container.run("systemctl", "start", unit)
    assert unit_property(container, unit, "Description") == "sleeps"
    container.run("systemctl", "kill", "--signal=KILL", unit)
    wait_for(lambda: unit_property(container, unit, "ActiveState") == "failed", what="unit failed")
    assert unit_property(container, unit, "Result") == "signal"
    container.run("systemctl", "reset-failed", unit)


@pytest.mark.container
def test_a_loop_file_system_can_be_mounted(container: Container) -> None:
    container.run("truncate", "--size=8M", "/srv/small.img")
    container.run("mkfs.ext4", "-q", "/srv/small.img")
    container.run("mount", "--mkdir", "-o", "loop", "/srv/small.img", "/mnt/small")
    full = container.run("dd", "if=/dev/zero", "of=/mnt/small/fill", "bs=1M", check=False)
    container.run("umount", "/mnt/small")
    assert "No space left on device" in full.stderr


@pytest.mark.container
def test_nix_works(container: Container) -> None:
    assert container.run("nix-store", "--version").stdout.startswith("nix-store (Nix) 2")


@pytest.mark.container
def test_the_project_can_be_installed(container: Container) -> None:
    install_project(container, Path(__file__).parents[2])
    path = f"PYTHONPATH={HOME}/src:{HOME}/deps"
    script = "import jeepney, msgspec, rich, luminous_nix.self_healing as it; print(it.__file__)"
    assert container.run("env", path, "python3", "-c", script).stdout.startswith(f"{HOME}/src/")
    assert container.run("stat", "-c", "%a", "/usr/local/bin/luminous-healing").stdout == "755\n"


@pytest.mark.container
def test_a_closed_container_leaves_nothing(container: Container) -> None:
    with Container.boot("brief", cgroups="unified") as brief:
        check_systemd(brief)
        assert brief.run("test", "-e", "/sys/fs/cgroup/cgroup.controllers").returncode == 0
        assert list(Path("/sys/fs/cgroup").rglob(f"luminous-{brief.name}"))
    assert not list(Path("/sys/fs/cgroup").rglob(f"luminous-{brief.name}"))
    with pytest.raises(GuestError, match="not running"):
        brief.run("true")
    brief.close()


@pytest.mark.machine
def test_machine_runs_systemd(machine: Machine) -> None:
    check_systemd(machine)


@pytest.mark.machine
def test_machine_has_cgroup_controllers(machine: Machine) -> None:
    controllers = machine.run("cat", "/sys/fs/cgroup/cgroup.controllers").stdout.split()
    assert {"cpu", "io", "memory", "pids"} <= set(controllers)
    assert "some avg10=" in machine.run("cat", "/sys/fs/cgroup/system.slice/memory.pressure").stdout


@pytest.mark.machine
def test_machine_has_a_kernel_log(machine: Machine) -> None:
    log = machine.run("dd", "if=/dev/kmsg", "iflag=nonblock", "bs=8K", "count=5").stdout
    assert "Linux version" in log


@pytest.mark.machine
def test_machine_has_cpufreq_governors(machine: Machine) -> None:
    policy = "/sys/devices/system/cpu/cpufreq/policy1"
    governors = machine.run("cat", f"{policy}/scaling_available_governors").stdout.split()
    assert {"performance", "powersave", "schedutil"} <= set(governors)
    machine.run("tee", f"{policy}/scaling_governor", stdin="powersave")
    assert machine.run("cat", f"{policy}/scaling_cur_freq").stdout == "800000\n"


@pytest.mark.machine
def test_machine_keeps_its_disk_over_reboot_and_power_cut(machine: Machine) -> None:
    def boot_id() -> str:
        return machine.run("cat", "/proc/sys/kernel/random/boot_id").stdout

    boots = [boot_id()]
    machine.write("/srv/kept", "text")
    machine.reboot()
    boots.append(boot_id())
    machine.write("/srv/lost", "not on the disk yet")
    machine.power_cut()
    boots.append(boot_id())
    assert len(set(boots)) == 3
    assert machine.run("ls", "/srv").stdout.split() == ["kept"]
