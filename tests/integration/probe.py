"""Runs in place of a unit's program, behind the unit's walls, and tells as JSON what it could do there.

Standard library only; it changes nothing that it does not change back.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
STATE = os.environ.get("STATE_DIRECTORY", "")
FOLDERS = (
    "/", "/etc", "/etc/systemd/system", "/etc/luminous-healing", "/usr", "/usr/bin", "/usr/lib",
    "/usr/local/bin", "/boot",
    "/root", "/home", "/home/tester", "/opt", "/opt/luminous", "/nix/store", "/var", "/var/lib", "/var/log",
    "/var/log/journal",
    "/var/tmp", "/tmp", "/srv", "/mnt", "/run", "/run/systemd", "/run/systemd/system", "/run/lock",
    "/run/log/journal",
    "/run/luminous-healing", "/run/user", "/var/lib/luminous-healing", "/var/lib/luminous-healing-executor",
    "/var/lib/luminous-healing-keys", "/dev", "/dev/shm", "/dev/mqueue", "/sys", "/sys/kernel", "/sys/fs/cgroup",
)  # fmt: skip
WRITTEN = (
    "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/vm/overcommit_memory",
    "/proc/sysrq-trigger",
    "/etc/passwd", "/etc/shadow", "/usr/bin/python3", "/proc/1/oom_score_adj", "/sys/kernel/mm/ksm/run",
)  # fmt: skip
READ = (
    "/var/lib/luminous-healing-keys/keys", "/var/lib/luminous-healing-keys/audit", "/dev/kmsg", "/dev/mem",
    "/dev/loop0",
    "/dev/loop-control", "/proc/kcore", "/proc/1/environ", "/proc/1/mem", "/root/.profile", "/home/tester/.profile",
    "/var/lib/luminous-healing/state.db", "/var/lib/luminous-healing-executor/register.db",
)  # fmt: skip
CONNECTED = (
    "/run/dbus/system_bus_socket", "/run/systemd/private", "/run/luminous-healing-executor.sock",
    "/run/luminous-healing/control.sock",
)  # fmt: skip
FAMILIES = ("INET", "INET6", "NETLINK", "PACKET", "VSOCK", "UNIX")
# x86-64.
SYSTEM_CALLS: dict[str, tuple[int, tuple[int | bytes | None, ...]]] = {
    "mount": (165, (b"none", b"/mnt", b"tmpfs", 0, None)), "new user namespace": (272, (0x10000000,)),
    "new mount namespace": (272, (0x20000,)), "pivot_root": (155, (b"/", b"/")), "chroot": (161, (b"/",)),
    "reboot": (169, (0, 0, 0, 0)), "init_module": (175, (None, 0, b"")), "bpf": (321, (0, None, 0)),
    "perf_event_open": (298, (None, 0, -1, -1, 0)), "keyctl": (250, (0, -3, 0)), "personality": (135, (8,)),
    "swapon": (167, (b"/x", 0)), "settimeofday": (164, (None, None)), "setuid": (105, (1000,)), "setgid": (106,
    (1000,)),
    "sethostname": (170, (b"x", 1)), "iopl": (172, (3,)), "open_by_handle_at": (304, (0, None, 0)),
    "userfaultfd": (323, (0,)), "mknod": (133, (b"/tmp/node", 0o060600, 0x700)), "acct": (163, (None,)),
    "kcmp": (312, (1, 1, 0, 0, 0)),
    "mlockall": (151, (1,)),
}  # fmt: skip


def called(number: int, *arguments: int | bytes | None) -> None:
    if LIBC.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "")


def write(folder: str) -> None:
    path = Path(folder) / "written-by-the-probe"
    path.touch(exist_ok=False)
    path.unlink()


def connect(path: str) -> None:
    kind = socket.SOCK_SEQPACKET if "executor" in path else socket.SOCK_STREAM
    with socket.socket(socket.AF_UNIX, kind) as one:
        one.connect(path)


def run(folder: str) -> None:
    """A program of our own, from there."""
    path = Path(folder) / "program-of-the-probe"
    shutil.copy("/usr/bin/true", path)
    try:
        executed(str(path))
    finally:
        path.unlink()


def executed(path: str) -> None:
    if (child := os.fork()) == 0:
        with contextlib.suppress(OSError):
            os.execv(path, [path])  # noqa: S606
        os._exit(1)
    if os.waitpid(child, 0)[1]:
        raise OSError("not executed")


def trace() -> None:
    """Its own child, which is the easiest."""
    if (child := os.fork()) == 0:
        signal.pause()
        os._exit(0)
    try:
        ctypes.set_errno(0)
        if LIBC.ptrace(16, child, None, None) < 0:
            raise OSError(ctypes.get_errno(), "")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def writable_code() -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def other_interfaces() -> None:
    if [name for _, name in socket.if_nameindex() if name != "lo"] == []:
        raise OSError("none")


def set_uid_bit() -> None:
    path = Path(STATE or "/tmp") / "program-of-the-probe"
    path.touch()
    try:
        path.chmod(0o4755)
    finally:
        path.unlink()


def deeds() -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {
        "run /usr/bin/true": lambda: executed("/usr/bin/true"), "trace": trace, "writable code": writable_code,
        "other interfaces": other_interfaces, "set-uid bit": set_uid_bit,
        "real time": lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)),
    }  # fmt: skip
    found |= {f"write {folder}": lambda folder=folder: write(folder) for folder in FOLDERS}  # type: ignore[misc]
    found |= {f"open {path}": lambda path=path: os.close(os.open(path, os.O_WRONLY)) for path in WRITTEN}  # type: ignore[misc]
    found |= {f"read {path}": lambda path=path: os.close(os.open(path, os.O_RDONLY)) for path in READ}  # type: ignore[misc]
    found |= {f"connect {path}": lambda path=path: connect(path) for path in CONNECTED}  # type: ignore[misc]
    found |= {
        f"socket {name}": lambda name=name: socket.socket(getattr(socket, f"AF_{name}"), socket.SOCK_DGRAM).close()  # type: ignore[misc]
        for name in FAMILIES
    }
    found |= {
        f"call {name}": lambda number=number, given=given: called(number, *given)  # type: ignore[misc]
        for name, (number, given) in SYSTEM_CALLS.items()
    }
    places = {*FOLDERS, *STATE.split(":")} - {""}
    return found | {f"run from {folder}": lambda folder=folder: run(folder) for folder in sorted(places)}


def main() -> None:
    could = []
    for what, deed in deeds().items():
        with contextlib.suppress(OSError):
            deed()
            could.append(what)
    status = dict(
        line.split(":\t") for line in Path("/proc/self/status").read_text("ascii").splitlines() if ":\t" in line
    )
    words = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
    print(json.dumps({"could": could, "uid": os.getuid(), **{word: int(status[word], 16) for word in words}}))


if __name__ == "__main__":
    main()
