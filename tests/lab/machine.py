"""A virtual machine, with a kernel of its own: all of cgroup v2, /dev/kmsg, cpufreq, power cuts."""

from __future__ import annotations

import atexit
import json
import os
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO, Self

from .disk import disk_image, disk_key
from .guest import Guest, GuestError, tied_to_us
from .image import cached, digest, host_run, is_cached, run_dir

KERNEL_ARGUMENTS = (
    "root=/dev/vda rw console=ttyS0 quiet psi=1 systemd.unified_cgroup_hierarchy=1 net.ifnames=0"
    " mitigations=off panic=-1"
)


def accelerator() -> str:
    """KVM only with the processor's own virtualisation: /dev/kvm may be there and yet run nothing."""
    told = os.environ.get("LUMINOUS_LAB_ACCEL")
    usable = os.access("/dev/kvm", os.W_OK) and any(Path(f"/sys/module/kvm_{x}").exists() for x in ("intel", "amd"))
    return told or ("kvm" if usable else "tcg")


def _qemu(disk: Path, accel: str) -> list[str]:
    """The machine, but for its connections. Its own files are named relative to its directory."""
    # acpi-cpufreq does not load on the AMD family that "max" is otherwise taken for.
    cpu = {"tcg": "max,family=25", "kvm": "host"}[accel]
    accel_options = {"tcg": "tcg,thread=multi,tb-size=512", "kvm": "kvm"}[accel]
    argv = ["qemu-system-x86_64", "-machine", "q35,hpet=off,vmport=off", "-accel", accel_options, "-cpu", cpu]
    argv += ["-smp", "2", "-m", "1536", "-nodefaults", "-no-user-config", "-display", "none"]
    argv += ["-kernel", f"{disk}/vmlinuz", "-initrd", f"{disk}/initrd", "-append", KERNEL_ARGUMENTS]
    argv += ["-drive", "file=disk.qcow2,if=none,id=disk,format=qcow2,cache=unsafe,discard=unmap"]
    argv += ["-device", "virtio-blk-pci,drive=disk", "-device", "virtio-net-pci,netdev=net,romfile="]
    argv += ["-device", "virtio-rng-pci", "-device", "pc-testdev", "-acpitable", f"file={disk}/cpufreq.aml"]
    return [*argv, "-serial", "file:console.log"]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _state_key(disk: Path) -> str:
    version = host_run(["qemu-system-x86_64", "--version"], timeout=60)
    return digest(disk_key(), version, *_qemu(disk, accelerator()))


def saved_state() -> Path:
    """The cached memory and disk of a machine that has just booted."""
    return cached("state", _state_key(disk_image()), _save_state)


def state_is_cached() -> bool:
    return is_cached("disk", disk_key()) and is_cached("state", _state_key(disk_image()))


def _save_state(target: Path) -> None:
    with Machine.boot("state", cold=True) as machine:
        # Have in memory what tests use first, and let the machine come to rest.
        machine.run("python3", "-c", "import json, socket, subprocess, sqlite3", timeout=300)
        machine.run("sh", "-c", "systemctl start polkit; busctl list; sync; sleep 5", timeout=300)
        machine.save(target)


class Machine(Guest):
    """QEMU on loopback only: the host reaches its ssh, and it reaches nothing."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._disk = disk_image()
        self._directory = run_dir(name)
        self._qemu: subprocess.Popen[bytes] | None = None
        self._ssh_master: subprocess.Popen[bytes] | None = None
        self._monitor: socket.socket | None = None
        self._answers: BinaryIO | None = None
        self._port = 0

    @classmethod
    def boot(cls, name: str = "lab", cold: bool = False) -> Self:
        """Start a machine from the saved state, or really boot one if `cold`."""
        source = disk_image() if cold else saved_state()
        guest = cls(name)
        try:
            overlay = [str(source / "disk.qcow2"), str(guest._directory / "disk.qcow2")]
            host_run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", *overlay])
            guest._start(None if cold else source / "memory")
            if cold:
                guest._come_up()
            else:
                guest._connect(patience=15)
                guest._settle()
        except BaseException:
            guest.close()
            raise
        return guest

    def _start(self, memory: Path | None = None) -> None:
        self._port = _free_port()
        ours, theirs = socket.socketpair()
        fd, port = theirs.fileno(), self._port
        argv = [*tied_to_us(), *_qemu(self._disk, accelerator())]
        argv += ["-chardev", f"socket,id=qmp,fd={fd}", "-mon", "chardev=qmp,mode=control"]
        argv += ["-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"]
        if memory:
            (self._directory / "memory").symlink_to(memory)
            argv += ["-incoming", "exec:cat memory"]
        with theirs, (self._directory / "qemu.log").open("ab") as log:
            self._qemu = subprocess.Popen(
                argv, cwd=self._directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                pass_fds=[fd], start_new_session=True,
            )  # fmt: skip
        ours.settimeout(300)
        self._monitor, self._answers = ours, ours.makefile("rb")
        self._receive("QMP")
        self._command("qmp_capabilities")
        # Who connects before a restored machine runs waits for a retransmission.
        self._wait_for("query-status", "running", True)

    def _receive(self, *wanted: str) -> dict[str, object]:
        """The next message of QEMU that has one of the wanted keys."""
        message: dict[str, object] = {}
        while not any(key in message for key in wanted):
            try:
                line = self._answers.readline() if self._answers else b""
            except TimeoutError:
                line = b""
            if not line:
                raise GuestError(f"QEMU does not answer:\n{self.console()[-2000:]}")
            message = json.loads(line)
        return message

    def _command(self, execute: str, **arguments: object) -> object:
        assert self._monitor is not None
        self._monitor.sendall(json.dumps({"execute": execute, "arguments": arguments}).encode() + b"\n")
        answer = self._receive("return", "error")
        if "error" in answer:
            raise GuestError(f"QEMU: {execute}: {answer['error']}")
        return answer["return"]

    def _wait_for(self, query: str, key: str, value: object, timeout: float = 300) -> None:
        deadline = time.monotonic() + timeout
        while True:
            answer = self._command(query)
            assert isinstance(answer, dict)
            if answer.get(key) == value:
                return
            if answer.get("status") == "failed" or time.monotonic() > deadline:
                raise GuestError(f"QEMU: {query} says {answer}")
            time.sleep(0.05)

    def console(self) -> str:
        """What QEMU and the guest's kernel wrote since the last start."""
        logs = (self._directory / name for name in ("qemu.log", "console.log"))
        return "".join(log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists())

    def _ssh(self, *options: str) -> list[str]:
        argv = [
            "ssh",
            "-q",
            "-F",
            "none",
            "-i",
            str(self._disk / "key"),
            "-p",
            str(self._port),
            "-o",
            "BatchMode=yes",
        ]
        for option in (
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "IdentitiesOnly=yes",
            "IPQoS=none",
        ):
            argv += ["-o", option]
        return [*argv, "-S", str(self._directory / "ssh"), *options, "root@127.0.0.1"]

    def enter(self, argv: Sequence[str]) -> list[str]:
        if self._ssh_master is None:
            raise GuestError("the machine is not running")
        return [*self._ssh(), "--", shlex.join(argv)]

    def _connect(self, patience: float = 2, timeout: float = 300) -> None:
        """Hold a connection that commands share. An attempt at a machine that still boots is better short."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and self._qemu is not None and self._qemu.poll() is None:
            self._disconnect()
            master = self._ssh("-M", "-N", "-o", f"ConnectTimeout={int(patience)}", "-o", "ServerAliveInterval=15")
            self._ssh_master = subprocess.Popen(
                [*tied_to_us(), *master], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            while self._ssh_master.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
                if (self._directory / "ssh").exists():
                    # A restored clock is slow.
                    self.run("date", "-u", "-s", f"@{time.time()}", timeout=120)
                    return
            patience = min(patience * 1.2, 15)
            time.sleep(0.2)
        raise GuestError(f"no answer from the machine:\n{self.console()[-2000:]}")

    def _disconnect(self) -> None:
        if self._ssh_master is not None:
            self._ssh_master.terminate()
            self._ssh_master.wait(10)
        self._ssh_master = None
        (self._directory / "ssh").unlink(missing_ok=True)

    def save(self, target: Path) -> None:
        """Write memory and disk to a directory; the machine ends with that."""
        self._disconnect()
        self._command("migrate-set-parameters", **{"max-bandwidth": 1 << 32})
        (self._directory / "saved").symlink_to(target / "memory")
        self._command("migrate", uri="exec:cat > saved")
        self._wait_for("query-migrate", "status", "completed")
        self._stop(kill=False)
        shutil.move(self._directory / "disk.qcow2", target / "disk.qcow2")

    def reboot(self) -> None:
        """Reboot in good order and wait until the machine is up again."""
        self._command("query-status")
        self.run("systemctl", "reboot", check=False)
        self._disconnect()
        while self._receive("event")["event"] != "RESET":
            pass
        self._come_up()

    def power_cut(self) -> None:
        """Lose all that was not on the disk yet, and boot from the same disk."""
        self._stop(kill=True)
        self._start()
        self._come_up()

    def _come_up(self) -> None:
        """Wait for a machine that really boots. Now and then emulated CPUs hang before the kernel's first word:
        then it is switched off and on again."""
        for patience in (90, 120, 300):
            try:
                self._connect(timeout=patience)
            except GuestError:
                if patience == 300:
                    raise
                self._stop(kill=True)
                self._start()
            else:
                break
        self._settle()

    def _stop(self, kill: bool) -> None:
        self._disconnect()
        if self._qemu is not None:
            # QEMU flushes its disk on SIGTERM.
            if kill:
                self._qemu.kill()
            else:
                self._qemu.terminate()
            try:
                self._qemu.wait(30)
            except subprocess.TimeoutExpired:
                self._qemu.kill()
                self._qemu.wait(30)
        if self._monitor is not None:
            self._monitor.close()
        if self._answers is not None:
            self._answers.close()
        self._qemu = self._monitor = self._answers = None

    def close(self) -> None:
        atexit.unregister(self.close)
        self._stop(kill=True)
        shutil.rmtree(self._directory, ignore_errors=True)
