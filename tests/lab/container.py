"""A container with systemd as PID 1, on a throw-away overlay of the base image."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Self

from .guest import Guest, GuestError, tied_to_us
from .image import CLEAN_ENV, base_image, run_dir

MEMORY_LIMIT = 4 << 30
MASKED = ("ssh", "console-getty", "systemd-networkd", "systemd-oomd")
# Runs in a mount namespace of its own, in the directory of the guest: the overlay cannot outlive it.
START = """
for dir in $LAB_CGROUPS; do echo $$ > "$dir/cgroup.procs"; done
mount -t overlay lab -o "lowerdir=$LAB_BASE,upperdir=upper,workdir=work" root
exec systemd-nspawn "$@"
"""


def _new_cgroups(name: str) -> Iterator[Path]:
    """Make a cgroup `name` in every hierarchy (one with v2, many with v1)."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, mount_point, kind, *_ = line.split()
        if kind not in ("cgroup", "cgroup2"):
            continue
        parent = Path(mount_point)
        if kind == "cgroup2":
            for controller in ("cpu", "memory", "pids", "io"):
                _set(parent / "cgroup.subtree_control", f"+{controller}")
        (parent / name).mkdir(exist_ok=True)
        yield parent / name
        for inherited in ("cpuset.cpus", "cpuset.mems"):
            if kind == "cgroup" and (parent / inherited).exists():
                _set(parent / name / inherited, (parent / inherited).read_text(encoding="ascii"))
        for limit in ("memory.limit_in_bytes", "memory.max"):
            if (parent / name / limit).exists():
                _set(parent / name / limit, str(MEMORY_LIMIT))


def _set(path: Path, value: str) -> None:
    """Write a cgroup attribute where this host has it and allows it."""
    with contextlib.suppress(OSError):
        path.write_text(value, encoding="ascii")


def _remove_cgroups(tops: Sequence[Path]) -> None:
    """Remove empty cgroups, bottom up; the kernel may need a moment after the last process."""
    deadline = time.monotonic() + 10
    while (left := [top for top in tops if top.exists()]) and time.monotonic() < deadline:
        for top in left:
            for directory, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(directory).rmdir()
        time.sleep(0.02)


def _child_named(parent: int, name: str) -> int | None:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found = re.match(r"\d+ \((.*)\) \S (\d+)", (entry / "stat").read_text(errors="replace"), re.DOTALL)
            except OSError:
                continue
            if found and found.group(1) == name and int(found.group(2)) == parent:
                return int(entry.name)
    return None


class Container(Guest):
    """Quick to start and run at native speed, but on the kernel of the host."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = f"{name}-{secrets.token_hex(3)}"
        self._directory = run_dir(name)
        self._cgroups: list[Path] = []
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader: int | None = None
        self._leader_fd: int | None = None

    @classmethod
    def boot(
        cls,
        name: str = "lab",
        cgroups: Literal["hybrid", "unified"] = "hybrid",
        private_network: bool = True,
    ) -> Self:
        """Start a container. `hybrid` follows the host's layout of cgroups, `unified` insists on v2."""
        base = base_image()
        guest = cls(name)
        try:
            guest._start(base, cgroups, private_network)
            guest._find_leader(timeout=60)
            guest._settle()
        except BaseException:
            guest.close()
            raise
        return guest

    def _start(self, base: Path, cgroups: str, private_network: bool) -> None:
        for part in ("upper", "work", "root"):
            (self._directory / part).mkdir()
        for cgroup in _new_cgroups(f"luminous-{self.name}"):
            self._cgroups.append(cgroup)
        env = {**CLEAN_ENV, "LAB_BASE": str(base), "LAB_CGROUPS": " ".join(map(str, self._cgroups))}
        if cgroups == "unified":
            env["SYSTEMD_NSPAWN_UNIFIED_HIERARCHY"] = "1"
        options = ["--quiet", "--directory=root", f"--machine={self.name}", "--hostname=lab", "--register=no"]
        options += ["--keep-unit", "--kill-signal=SIGRTMIN+3"]
        options += ["--link-journal=no", "--timezone=off", "--resolv-conf=off"]
        options += ["--private-network"] if private_network else []
        options += [f"--bind={node}" for node in Path("/dev").glob("loop*") if not node.is_dir()]
        init = ["/usr/sbin/lab-init", *(f"systemd.mask={unit}.service" for unit in MASKED)]
        with (self._directory / "console.log").open("wb") as log:
            self._nspawn = subprocess.Popen(
                [*tied_to_us("TERM"), "unshare", "--mount", "sh", "-euc", START, "start", *options, *init],
                cwd=self._directory, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def _find_leader(self, timeout: float) -> None:
        assert self._nspawn is not None
        deadline = time.monotonic() + timeout
        while self._leader is None:
            if self._nspawn.poll() is not None or time.monotonic() > deadline:
                raise GuestError(f"the container did not start:\n{self.console()[-2000:]}")
            time.sleep(0.02)
            self._leader = _child_named(self._nspawn.pid, "systemd")
        self._leader_fd = os.pidfd_open(self._leader)

    def console(self) -> str:
        """What the container wrote to its console so far."""
        return (self._directory / "console.log").read_text(encoding="utf-8", errors="replace")

    def enter(self, argv: Sequence[str]) -> list[str]:
        if self._leader is None:
            raise GuestError("the container is not running")
        return ["nsenter", "--target", str(self._leader), "--all", "--", *argv]

    def close(self) -> None:
        atexit.unregister(self.close)
        if self._leader_fd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._leader_fd, signal.SIGKILL)
            os.close(self._leader_fd)
        elif self._nspawn is not None:
            self._nspawn.kill()
        self._leader = self._leader_fd = None
        if self._nspawn is not None:
            try:
                self._nspawn.wait(10)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait(10)
        _remove_cgroups(self._cgroups)
        shutil.rmtree(self._directory, ignore_errors=True)
