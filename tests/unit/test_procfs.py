"""observe/procfs.py: what kernels print, and what they never should."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luminous_nix.self_healing.models import ObservationError
from luminous_nix.self_healing.observe.procfs import (
    CpuSensor,
    DiskSensor,
    MemorySensor,
    Mount,
    PressureSensor,
    ProcessStat,
    ProcFile,
    cpu_percent,
    parse_cpu,
    parse_load,
    parse_memory,
    parse_mountinfo,
    parse_pressure,
    parse_process,
    real_filesystems,
    usage,
)
from tests.unit.host import Clock, FakeHost


@pytest.mark.parametrize(
    ("line", "times"),
    [
        pytest.param(b"cpu  10 2 5 80 3 1 1 0 0 0\ncpu0 1\n", (19, 102), id="linux-6"),
        pytest.param(b"cpu  10 2 5 80 3 1 1 4\n", (23, 106), id="linux-2.6.24-without-guest"),
        pytest.param(b"cpu  10 2 5 80 3 1 1 0 9 9\n", (19, 102), id="guest-time-counted-once"),
        pytest.param(b"cpu  0 0 0 0 0 0 0 0 0 0\n", (0, 0), id="all-zero"),
        pytest.param(b"cpu  18446744073709551615 0 0 1 0 0 0 0 0 0\n", (2**64 - 1, 2**64), id="the-largest-counter"),
    ],
)
def test_cpu_times(line: bytes, times: tuple[int, int]) -> None:
    assert parse_cpu(line) == times


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"cpu", b"cpu  1 2 3\n", b"cpu0 1 2 3 4 5 6 7 8\n", b"cpu  -99 2 3 4 5 6 7 8\n",
     b"cpu  a b c d e f g h\n", b"\x00\xff\xfe\n", b"intr 1 2 3 4 5 6 7 8\n", b"cpu  1.5 2 3 4 5 6 7 8\n"],
)  # fmt: skip
def test_cpu_times_refuse(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_cpu(data)


@pytest.mark.parametrize(
    ("before", "after", "percent"),
    [
        pytest.param((0, 0), (25, 100), 25.0, id="a-quarter"),
        pytest.param((5, 50), (5, 150), 0.0, id="idle"),
        pytest.param((5, 50), (105, 150), 100.0, id="full"),
        pytest.param((0, 0), (11, 10), 100.0, id="never-above-100"),
        pytest.param((5, 50), (5, 50), None, id="no-tick-passed"),
        pytest.param((5, 50), (4, 60), None, id="busy-went-back"),
        pytest.param((5, 50), (6, 40), None, id="total-went-back"),
    ],
)
def test_cpu_percent(before: tuple[int, int], after: tuple[int, int], percent: float | None) -> None:
    assert cpu_percent(before, after) == percent


def meminfo(**values: object) -> bytes:
    default: dict[str, object] = {
        "MemTotal": 1000,
        "MemFree": 100,
        "MemAvailable": 250,
        "SwapTotal": 0,
        "SwapFree": 0,
    }
    lines = {**default, **values}
    return "".join(f"{key}: {value:>10} kB\n" for key, value in lines.items() if value is not None).encode()


@pytest.mark.parametrize(
    ("data", "memory", "swap"),
    [
        pytest.param(meminfo(), 75.0, None, id="no-swap"),
        pytest.param(meminfo(SwapTotal=200, SwapFree=50), 75.0, 75.0, id="swap"),
        pytest.param(meminfo(MemAvailable=1000), 0.0, None, id="all-available"),
        pytest.param(meminfo(MemAvailable=0, SwapTotal=8, SwapFree=0), 100.0, 100.0, id="nothing-left"),
        pytest.param(meminfo() + b"HugePages_Total:       0\nHugetlb: 0 kB\n", 75.0, None, id="more-lines-after"),
    ],
)
def test_memory(data: bytes, memory: float, swap: float | None) -> None:
    assert parse_memory(data) == (memory, swap)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00" * 200, id="binary"),
        pytest.param(meminfo()[:40], id="truncated"),
        pytest.param(meminfo(MemAvailable=None), id="kernel-before-3.14"),
        pytest.param(meminfo(SwapTotal=None), id="no-swap-line"),
        pytest.param(meminfo(SwapTotal=5, SwapFree=None), id="no-swap-free-line"),
        pytest.param(meminfo(MemAvailable=1001), id="more-than-all"),
        pytest.param(meminfo(MemAvailable=-1), id="negative"),
        pytest.param(meminfo(MemTotal=0, MemAvailable=0), id="no-memory"),
        pytest.param(meminfo(SwapTotal=-5), id="negative-swap"),
        pytest.param(meminfo(SwapTotal=5, SwapFree=6), id="more-swap-free-than-there-is"),
        pytest.param(meminfo(MemTotal="9" * 5000), id="a-figure-of-5000-digits"),
        pytest.param(meminfo(MemTotal="many"), id="a-word"),
    ],
)
def test_memory_refuses(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_memory(data)


def test_figures_beyond_any_float_are_refused_too() -> None:
    with pytest.raises(ValueError):
        parse_memory(meminfo(MemTotal="9" * 400))
    with pytest.raises(ValueError):
        parse_cpu(b"cpu  " + b"9" * 400 + b" 0 0 1 0 0 0 0\n")


@pytest.mark.parametrize(("data", "load"), [(b"0.00 0.01 0.05 1/2 3\n", 0.0), (b"152.75 9 9 1/2 3\n", 152.75)])
def test_load(data: bytes, load: float) -> None:
    assert parse_load(data) == load


@pytest.mark.parametrize("data", [b"", b"0.5", b"x 1", b"-1 0", b"nan 0 0", b"inf 0", b"1e999 0", b"\xff 1", b" 1 2"])
def test_load_refuses(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_load(data)


SOME = b"some avg10=1.00 avg60=2.50 avg300=0.00 total=12345\n"


@pytest.mark.parametrize(
    ("data", "shares"),
    [
        pytest.param(SOME + b"full avg10=0.00 avg60=1.25 avg300=0.00 total=1\n", (2.5, 1.25), id="memory"),
        pytest.param(SOME, (2.5, 0.0), id="cpu-before-5.13"),
        pytest.param(SOME.replace(b"2.50", b"100.00"), (100.0, 0.0), id="all-of-it"),
    ],
)
def test_pressure(data: bytes, shares: tuple[float, float]) -> None:
    assert parse_pressure(data) == shares


@pytest.mark.parametrize(
    "data",
    [b"", b"some ", b"full avg60=1.0 \n", b"some avg60=x ", b"some avg60=nan ", b"some avg60=-1 ", b"some avg60=101 ",
     b"some avg60=1", SOME + b"full avg60=200.0 ", SOME + b"full avg60=nan "],
)  # fmt: skip
def test_pressure_refuses(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_pressure(data)


TAIL = b" S 1 " + b"0 " * 17 + b"4242 0 0"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        pytest.param(b"bash", "bash", id="plain"),
        pytest.param(b"tmux: server", "tmux: server", id="blank"),
        pytest.param(b"evil) S 2 (", "evil) S 2 (", id="brackets"),
        pytest.param(b"a\nb\x1b[2J", "a\\nb\\x1b[2J", id="control-characters-are-escaped"),
        pytest.param(b"\xff\xfe", "\\\\xff\\\\xfe", id="not-utf-8"),
        pytest.param(b"", "", id="empty"),
    ],
)
def test_process(command: bytes, shown: str) -> None:
    assert parse_process(b"7 (" + command + b")" + TAIL) == ProcessStat(shown, 1, 4242)


@pytest.mark.parametrize("data", [b"", b"7 (x", b"7 (x) S 1 2", b"7 (x)" + TAIL.replace(b"4242", b"x"), b"\0" * 50])
def test_process_refuses(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_process(data)


def test_this_very_process() -> None:
    stat = parse_process(Path("/proc/self/stat").read_bytes())
    assert stat.parent == os.getppid()
    assert stat.start_time > 0


# -- mounts --------------------------------------------------------------------------------------------------

ROOT = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw"
VAR = "23 22 8:2 / /var rw shared:2 - xfs /dev/sda2 rw"


@pytest.mark.parametrize(
    ("line", "mount"),
    [
        pytest.param(ROOT, Mount("8:1", "/", "ext4", "/dev/sda1"), id="with-a-tag"),
        pytest.param("22 1 8:1 / / rw - ext4 /dev/sda1 rw", Mount("8:1", "/", "ext4", "/dev/sda1"), id="no-tags"),
        pytest.param(
            r"9 1 8:3 / /mnt/my\040disk\011x\012y\134z rw - ext4 /dev/sdc rw",
            Mount("8:3", "/mnt/my disk\tx\ny\\z", "ext4", "/dev/sdc"), id="escapes",
        ),
        pytest.param(r"9 1 8:3 / /a\134040b rw - ext4 /dev/s rw", Mount("8:3", r"/a\040b", "ext4", "/dev/s"),
                     id="an-escaped-backslash-before-040"),
        pytest.param("9 1 8:3 / /a\x0bb rw - ext4 /dev/s rw", Mount("8:3", "/a\x0bb", "ext4", "/dev/s"),
                     id="a-vertical-tab-ends-no-line"),
        pytest.param("9 1 8:3 / /a\u2028b rw - ext4 /dev/s rw", Mount("8:3", "/a\u2028b", "ext4", "/dev/s"),
                     id="a-line-separator-ends-no-line"),
    ],
)  # fmt: skip
def test_mountinfo(line: str, mount: Mount) -> None:
    assert parse_mountinfo(f"{line}\n") == [mount]


@pytest.mark.parametrize(
    "text", ["", "\n\n", "garbage", "1 2 3 4 5 6", " - ", "a b c d e f - g h", "22 1 8:1 / /", "\udcff" * 9]
)
def test_mountinfo_passes_over_what_it_does_not_know(text: str) -> None:
    assert parse_mountinfo(text) == []
    assert parse_mountinfo(f"{text}\n{ROOT}\n") == parse_mountinfo(ROOT)


def found(*lines: str, tmpfs: bool = False, ignore: tuple[str, ...] = ()) -> tuple[str, ...]:
    return real_filesystems(parse_mountinfo("\n".join(lines)), tmpfs=tmpfs, ignore=ignore)


@pytest.mark.parametrize(
    ("lines", "paths"),
    [
        pytest.param((ROOT, VAR), ("/", "/var"), id="two-disks"),
        pytest.param((VAR, ROOT, "30 1 8:1 /a /srv/bind rw - ext4 /dev/sda1 rw"), ("/", "/var"), id="bind-mount"),
        pytest.param(("30 1 8:2 /a /srv/bind rw - xfs /dev/sda2 rw", VAR), ("/var",), id="the-shorter-path-wins"),
        pytest.param((ROOT, "31 1 7:0 / /snap/core ro - squashfs /dev/loop0 ro"), ("/",), id="read-only-image"),
        pytest.param((ROOT, "31 1 11:0 / /media/cd ro - iso9660 /dev/sr0 ro"), ("/",), id="cd"),
        pytest.param((ROOT, "31 1 0:22 / /proc rw - proc proc rw", "32 1 0:5 / /dev rw - devtmpfs dev rw"), ("/",),
                     id="kernel-filesystems"),
        pytest.param((ROOT, "31 1 0:50 / /net rw - nfs4 server:/export rw"), ("/",), id="network"),
        pytest.param((ROOT, "31 1 0:50 / /net rw - fuse.sshfs u@h:/ rw"), ("/",), id="sshfs"),
        pytest.param(("31 1 0:40 / / rw - overlay overlay rw",), ("/",), id="overlay-root-of-a-container"),
        pytest.param((ROOT, "31 1 0:40 / /var/lib/docker/x rw - overlay overlay rw"), ("/",), id="container"),
        pytest.param(("31 1 0:30 / / rw - zfs rpool/root rw",), ("/",), id="zfs"),
        pytest.param(("31 1 0:31 /@ / rw - btrfs /dev/sda2 rw", "32 1 0:31 /@home /home rw - btrfs /dev/sda2 rw"),
                     ("/",), id="btrfs-subvolumes-share-the-space"),
        pytest.param((ROOT, "31 1 0:25 / /tmp rw - tmpfs tmpfs rw"), ("/",), id="tmpfs-is-memory"),
        pytest.param((ROOT, VAR, "40 1 8:3 / /var rw - xfs /dev/sda3 rw"), ("/", "/var"), id="mounted-over"),
        pytest.param((), (), id="nothing"),
    ],
)  # fmt: skip
def test_real_filesystems(lines: tuple[str, ...], paths: tuple[str, ...]) -> None:
    assert found(*lines) == paths


def test_tmpfs_by_option() -> None:
    assert found(ROOT, "31 1 0:25 / /tmp rw - tmpfs tmpfs rw", tmpfs=True) == ("/", "/tmp")


@pytest.mark.parametrize(
    ("patterns", "paths"),
    [
        (("/var",), ("/",)),
        (("/v*",), ("/",)),
        (("/VAR",), ("/", "/var")),
        (("/*",), ()),
        (("/var/*",), ("/", "/var")),
    ],
)
def test_ignored_mounts(patterns: tuple[str, ...], paths: tuple[str, ...]) -> None:
    assert found(ROOT, VAR, ignore=patterns) == paths


@pytest.mark.parametrize(
    ("blocks", "free", "available", "percent"),
    [
        pytest.param(1000, 500, 450, 100 * 500 / 950, id="the-reserve-is-not-usable"),
        pytest.param(1000, 50, 0, 100.0, id="full-for-ordinary-users"),
        pytest.param(1000, 1000, 1000, 0.0, id="empty"),
        pytest.param(0, 0, 0, None, id="nothing-is-counted"),
        pytest.param(10, 20, 0, None, id="more-free-than-there-is"),
    ],
)
def test_usage_counts_as_df(blocks: int, free: int, available: int, percent: float | None) -> None:
    assert usage(blocks, free, available) == percent


# -- sensors -------------------------------------------------------------------------------------------------


def test_a_file_is_kept_open(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"first")
    file = ProcFile(path, 3)
    assert file.read() == b"fir"
    descriptor = file.fileno()
    path.write_bytes(b"second")  # in place
    assert file.read() == b"sec"
    assert file.read_all() == b"second"
    assert file.fileno() == descriptor
    path.unlink()
    assert file.read() == b"sec"
    file.close()
    with pytest.raises(FileNotFoundError):
        file.read()


def test_cpu_needs_two_samples_a_tenth_of_a_second_apart(host: FakeHost) -> None:
    clock = Clock()
    sensor = CpuSensor(host.roots, clock.ns)
    values: dict[str, float] = {}
    with pytest.raises(ObservationError, match="no two samples"):
        sensor.read(values)
    assert not sensor.warm
    clock.now += 0.05
    host.cpu(busy=100, idle=1000)
    with pytest.raises(ObservationError):
        sensor.read(values)
    clock.now += 0.06
    host.cpu(busy=100, idle=1100)
    sensor.read(values)
    assert values == {"cpu": 50.0}
    assert sensor.warm


def test_cpu_is_the_share_since_the_last_base(host: FakeHost) -> None:
    clock = Clock()
    sensor = CpuSensor(host.roots, clock.ns)
    seen: list[float | None] = []
    for busy, idle in ((0, 1000), (90, 1010), (90, 1110), (80, 1200)):
        host.cpu(busy=busy, idle=idle)
        sensor.sample()
        values: dict[str, float] = {}
        try:
            sensor.read(values)
        except ObservationError:
            seen.append(None)
        else:
            seen.append(values["cpu"])
        clock.now += 1
    assert seen == [None, 90.0, 0.0, None]  # first sample; load; rest; the counter went back


def test_a_hostile_stat_is_an_error_and_no_figure(host: FakeHost) -> None:
    sensor = CpuSensor(host.roots, Clock().ns)
    host.write(host.roots.proc / "stat", "nonsense")
    with pytest.raises(ValueError):
        sensor.sample()


def test_a_host_without_swap_has_no_swap_reading(host: FakeHost) -> None:
    host.write(host.roots.proc / "meminfo", meminfo().decode())
    values: dict[str, float] = {}
    MemorySensor(host.roots).read(values)
    assert values == {"memory": 75.0}


def test_pressure_of_three_resources(host: FakeHost) -> None:
    host.pressure("io", 12.0, 3.0)
    values: dict[str, float] = {}
    PressureSensor(host.roots).read(values)
    assert len(values) == 6
    assert (values["pressure:io:some"], values["pressure:io:full"]) == (12.0, 3.0)


def test_a_disk_is_measured_where_it_is_mounted(host: FakeHost) -> None:
    place = host.root / "my disk"
    place.mkdir()
    host.mounts([f"9 1 8:3 / {str(place).replace(' ', chr(92) + '040')} rw - ext4 /dev/sdc rw"])
    values: dict[str, float] = {}
    DiskSensor(host.roots).read(values)
    at = os.statvfs(place)
    assert values[f"disk:{place}"] == pytest.approx(usage(at.f_blocks, at.f_bfree, at.f_bavail), abs=0.5)


def test_a_mount_that_cannot_be_asked_is_told_and_the_others_are_read(host: FakeHost) -> None:
    place = host.root / "there"
    place.mkdir()
    host.mounts([f"9 1 8:3 / {place} rw - ext4 /dev/sdc rw", "8 1 8:4 / /nonexistent/mount rw - ext4 /dev/sdd rw"])
    values: dict[str, float] = {}
    with pytest.raises(ObservationError, match="/nonexistent/mount: No such file"):
        DiskSensor(host.roots).read(values)
    assert f"disk:{place}" in values


def test_a_long_mount_table_is_read_whole(host: FakeHost) -> None:
    place = host.root / "last"
    place.mkdir()
    many = [f"{n} 1 0:{n} / /sys/kernel/very/long/name/{n} rw - sysfs sysfs rw" for n in range(3000)]
    host.mounts([*many, f"9 1 8:3 / {place} rw - ext4 /dev/sdc rw"])
    values: dict[str, float] = {}
    DiskSensor(host.roots).read(values)
    assert f"disk:{place}" in values
