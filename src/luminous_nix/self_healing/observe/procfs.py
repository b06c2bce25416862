"""CPU, memory, swap, load, pressure and filesystems, from procfs(5) and statvfs(3).

Files are opened once and read again with pread; the text → value functions are pure and refuse what
they do not understand with ValueError. The root of the world is a parameter. Reading a filesystem asks
the kernel's superblock only; network filesystems are left out, and so are FUSE ones, because a dead server
would hold the loop.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Final, NamedTuple

from ..models import ObservationError, Roots

_BASE_NS: Final = 100_000_000  # the shortest span that a CPU figure is taken over: 0.1 s, ten ticks
_TOO_LARGE: Final = 1 << 80  # no counter of the kernel reaches this
_REAL: Final = frozenset({"bcachefs", "btrfs", "virtiofs", "zfs"})  # real, though not on /dev/…
_IMAGES: Final = frozenset({"cramfs", "erofs", "iso9660", "romfs", "squashfs", "udf"})  # always full, by nature
_MEMORY: Final = frozenset({"ramfs", "tmpfs"})


CpuTimes = tuple[int, int]  # (busy, total): clock ticks since boot over all CPUs


class Mount(NamedTuple):
    device: str  # major:minor
    path: str
    fstype: str
    source: str


def parse_cpu(data: bytes) -> CpuTimes:
    """The first line of /proc/stat. Idle and iowait are not work; guest time is already in user and nice."""
    name, user, nice, system, idle, iowait, irq, softirq, steal = data.split(None, 9)[:9]
    if name != b"cpu":
        raise ValueError("no 'cpu' line")
    busy = int(user) + int(nice) + int(system) + int(irq) + int(softirq) + int(steal)
    rest = int(idle) + int(iowait)
    if busy < 0 or rest < 0 or busy + rest >= _TOO_LARGE:
        raise ValueError("ticks out of range")
    return busy, busy + rest


def cpu_percent(before: CpuTimes, after: CpuTimes) -> float | None:
    """Busy share between two samples in percent; None when no tick passed or the counters went back."""
    busy, total = after[0] - before[0], after[1] - before[1]
    if total <= 0 or busy < 0:
        return None
    return min(100.0, 100.0 * busy / total)


def _kib(data: bytes, key: bytes) -> int:
    start = data.index(key) + len(key)
    return int(data[start : data.index(b" kB\n", start)])


def parse_memory(data: bytes) -> tuple[float, float | None]:
    """/proc/meminfo → (memory used in percent by MemAvailable, swap used in percent or None without swap).

    MemAvailable has been the third line since Linux 3.14.
    """
    first, total_kib, _, _, _, _, third, available_kib, _ = data.split(None, 9)[:9]
    if first != b"MemTotal:" or third != b"MemAvailable:":
        raise ValueError("no 'MemTotal' and 'MemAvailable' lines")
    total, available = int(total_kib), int(available_kib)
    swap = _kib(data, b"\nSwapTotal:")
    if not 0 <= available <= total < _TOO_LARGE or not total or not 0 <= swap < _TOO_LARGE:
        raise ValueError("MemAvailable is not within MemTotal")
    used = 100.0 * (total - available) / total
    if not swap:
        return used, None
    free = _kib(data, b"\nSwapFree:")
    if not 0 <= free <= swap:
        raise ValueError("SwapFree is not within SwapTotal")
    return used, 100.0 * (swap - free) / swap


def parse_load(data: bytes) -> float:
    """/proc/loadavg → the one-minute load."""
    load = float(data[: data.index(b" ")])
    if not isfinite(load) or load < 0:
        raise ValueError("not a load")
    return load


def parse_pressure(data: bytes) -> tuple[float, float]:
    """/proc/pressure/* → (some, full): share of the last minute in which some, or all, tasks stalled.

    Source: Documentation/accounting/psi.rst. A kernel before 5.13 has no `full` line for the CPU: 0.
    """
    parts = data.split(b" avg", 6)  # some|10=…|60=…|300=… total=… full|10=…|60=…|300=…
    if parts[0] != b"some" or len(parts) not in {4, 7}:
        raise ValueError("no 'some' line")
    some = float(parts[2].removeprefix(b"60="))
    full = float(parts[5].removeprefix(b"60=")) if len(parts) == 7 else 0.0
    if not (0.0 <= some <= 100.0 and 0.0 <= full <= 100.0):
        raise ValueError("not a share of time")
    return some, full


class ProcessStat(NamedTuple):
    command: str
    parent: int
    start_time: int  # clock ticks since boot


def parse_process(data: bytes) -> ProcessStat:
    """/proc/PID/stat. The command may hold blanks, brackets and newlines: it ends at the last bracket."""
    head, bracket, tail = data.rpartition(b")")
    fields = tail.split()
    if not bracket or len(fields) < 20:
        raise ValueError("not a process")
    name = head.partition(b"(")[2].decode("utf-8", "backslashreplace")
    return ProcessStat(name.encode("unicode_escape").decode(), int(fields[1]), int(fields[19]))


_OCTAL: Final = ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\"))


def _unescape(text: str) -> str:
    if "\\" in text:
        for code, char in _OCTAL:
            text = text.replace(code, char)
    return text


def parse_mountinfo(text: str) -> list[Mount]:
    """/proc/self/mountinfo → every mount, in the order of mounting. Lines of another shape are passed over."""
    mounts = []
    for line in text.split("\n"):
        left, dash, right = line.partition(" - ")
        head, tail = left.split(" "), right.split(" ")
        if dash and len(head) >= 6 and len(tail) >= 2 and ":" in head[2]:
            mounts.append(Mount(head[2], _unescape(head[4]), tail[0], _unescape(tail[1])))
    return mounts


def real_filesystems(mounts: Iterable[Mount], *, tmpfs: bool = False, ignore: Iterable[str] = ()) -> tuple[str, ...]:
    """Where to ask for free space: local filesystems that can fill up, each once, at its shortest path.

    What a container manager binds in from its own host (/run/host) is not this host's to look after.
    """
    ignored = tuple(ignore)
    best: dict[str, str] = {}
    for device, path, fstype, source in mounts:
        real = source.startswith("/dev/") or fstype in _REAL or (fstype == "overlay" and path == "/")
        if fstype in _IMAGES or fstype.startswith("fuse") or not (real or (tmpfs and fstype in _MEMORY)):
            continue
        if path.startswith("/run/host/") or any(fnmatchcase(path, pattern) for pattern in ignored):
            continue
        if device not in best or len(path) < len(best[device]):
            best[device] = path
    return tuple(sorted(set(best.values())))  # of two at one path only the upper can be asked


def usage(blocks: int, free: int, available: int) -> float | None:
    """Used share in percent of what an ordinary user could use, as df(1) counts; None where nothing is counted."""
    used = blocks - free
    usable = used + available
    return 100.0 * used / usable if usable > 0 and used >= 0 else None


class ProcFile:
    """A file below /proc that is opened at the first read and kept open. `size` covers what is parsed.

    `read()` returns the first `size` bytes; it raises OSError, and tries to open again the next time.
    """

    __slots__ = ("_fd", "_size", "path", "read")

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self._size = size
        self._fd = -1
        self.read: Callable[[], bytes] = self._first_read

    def fileno(self) -> int:
        """Raises OSError."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._fd

    def _first_read(self) -> bytes:
        self.read = partial(os.pread, self.fileno(), self._size, 0)  # from now on one call, nothing looked up
        return self.read()

    def read_all(self) -> bytes:
        """The whole text, however long: a read of a /proc table may end early. Raises OSError."""
        parts, at = [], 0
        while part := os.pread(self.fileno(), self._size, at):
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self.read = self._first_read

    def __del__(self) -> None:
        self.close()


class CpuSensor:
    """Busy share since the last sample that is at least 0.1 s old; unknown until two samples exist."""

    def __init__(self, roots: Roots, clock_ns: Callable[[], int]) -> None:
        self._file = ProcFile(roots.proc / "stat", 512)
        self._clock = clock_ns
        self._base: CpuTimes | None = None
        self._base_at = 0
        self._value: float | None = None

    @property
    def warm(self) -> bool:
        """False while the next read cannot yet give a figure."""
        return self._value is not None

    def sample(self) -> None:
        """Take a sample. Raises OSError, ValueError."""
        now, times = self._clock(), parse_cpu(self._file.read())
        if now - self._base_at >= _BASE_NS or self._base is None:
            if self._base is not None:
                self._value = cpu_percent(self._base, times)
            self._base, self._base_at = times, now

    def read(self, values: dict[str, float]) -> None:
        self.sample()
        if self._value is None:
            raise ObservationError("no two samples to compare yet")
        values["cpu"] = self._value


class MemorySensor:
    """Memory and swap; a host without swap has no swap reading."""

    def __init__(self, roots: Roots) -> None:
        self._file = ProcFile(roots.proc / "meminfo", 4096)

    def read(self, values: dict[str, float]) -> None:
        values["memory"], swap = parse_memory(self._file.read())
        if swap is not None:
            values["swap"] = swap


class LoadSensor:
    def __init__(self, roots: Roots) -> None:
        self._file = ProcFile(roots.proc / "loadavg", 128)

    def read(self, values: dict[str, float]) -> None:
        values["load"] = parse_load(self._file.read())


class PressureSensor:
    """Pressure stall information of CPU, memory and I/O."""

    def __init__(self, roots: Roots) -> None:
        self._files = tuple(
            (f"pressure:{name}:some", f"pressure:{name}:full", ProcFile(roots.proc / "pressure" / name, 256))
            for name in ("cpu", "memory", "io")
        )

    def read(self, values: dict[str, float]) -> None:
        for some, full, file in self._files:
            values[some], values[full] = parse_pressure(file.read())


class DiskSensor:
    """Bytes and inodes of every real filesystem. The mount table is read again only when poll(2) says
    that it changed (proc(5), /proc/pid/mountinfo: POLLPRI)."""

    def __init__(self, roots: Roots, *, tmpfs: bool = False, ignore: Iterable[str] = ()) -> None:
        self._file = ProcFile(roots.proc / "self" / "mountinfo", 65536)
        self._tmpfs = tmpfs
        self._ignore = tuple(ignore)
        self._poll: select.poll | None = None
        self._keys: tuple[tuple[str, str, str], ...] = ()

    def read(self, values: dict[str, float]) -> None:
        if self._poll is None or self._poll.poll(0):
            self._read_mounts()
        failed = ""
        for path, disk, inodes in self._keys:
            try:
                at = os.statvfs(path)
            except OSError as error:
                failed = f"{path}: {error.strerror}"
                continue
            if (used := usage(at.f_blocks, at.f_bfree, at.f_bavail)) is not None:
                values[disk] = used
            if (used := usage(at.f_files, at.f_ffree, at.f_favail)) is not None:
                values[inodes] = used
        if failed:
            raise ObservationError(failed)

    def _read_mounts(self) -> None:
        text = self._file.read_all().decode("utf-8", "surrogateescape")
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self._file.fileno(), select.POLLPRI)
        paths = real_filesystems(parse_mountinfo(text), tmpfs=self._tmpfs, ignore=self._ignore)
        self._keys = tuple((path, f"disk:{path}", f"inodes:{path}") for path in paths)
