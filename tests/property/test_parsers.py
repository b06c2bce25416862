"""A parser answers with a value in its range, or with ValueError; never with anything else."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from luminous_nix.self_healing.observe.procfs import (
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

_JUST_ABOVE = 100.0 + 1e-9  # one rounding of 100 * a / b


def _percent(value: float | None) -> bool:
    return value is None or 0.0 <= value <= _JUST_ABOVE


def _cpu(data: bytes) -> bool:
    times = parse_cpu(data)
    return 0 <= times[0] <= times[1] and _percent(cpu_percent((0, 0), times))


def _memory(data: bytes) -> bool:
    return all(map(_percent, parse_memory(data)))


def _load(data: bytes) -> bool:
    load = parse_load(data)
    return load >= 0 and isfinite(load)


def _pressure(data: bytes) -> bool:
    return all(map(_percent, parse_pressure(data)))


def _process(data: bytes) -> bool:
    stat = parse_process(data)
    return stat.command.isascii() and "\n" not in stat.command


PARSERS: list[tuple[str, Callable[[bytes], bool]]] = [
    ("stat", _cpu), ("meminfo", _memory), ("loadavg", _load), ("pressure/memory", _pressure), ("self/stat", _process),
]  # fmt: skip


def _in_range_or_refused(check: Callable[[bytes], bool], data: bytes) -> None:
    try:
        good = check(data)
    except ValueError:
        return
    assert good, data


@given(st.binary(max_size=300), st.sampled_from([parser for _, parser in PARSERS]))
def test_any_bytes(data: bytes, parser: Callable[[bytes], bool]) -> None:
    _in_range_or_refused(parser, data)


_SAMPLES = {
    "stat": b"cpu  4705 356 584 3699 23 23 0 0 0 0\ncpu0 1 2 3\n",
    "meminfo": b"MemTotal: 16307800 kB\nMemFree: 1 kB\nMemAvailable: 8000000 kB\nSwapTotal: 999 kB\nSwapFree: 9 kB\n",
    "loadavg": b"0.20 0.18 0.12 1/80 11206\n",
    "pressure/memory": b"some avg10=0.00 avg60=1.00 avg300=0.00 total=1\nfull avg10=0 avg60=0.50 avg300=0 total=1\n",
    "self/stat": b"7 (a b) S 1 " + b"0 " * 17 + b"4242 0 0\n",
}


def _real(name: str) -> bytes:
    try:
        return (Path("/proc") / name).read_bytes()[:4096]
    except OSError:
        return _SAMPLES[name]


@st.composite
def mutated(draw: st.DrawFn) -> tuple[Callable[[bytes], bool], bytes]:
    """A real file with a piece cut out and something else put in its place."""
    name, parser = draw(st.sampled_from(PARSERS))
    data = draw(st.sampled_from([_SAMPLES[name], _real(name)]))
    start = draw(st.integers(0, min(len(data), 400)))
    end = draw(st.integers(start, min(len(data), start + 40)))
    piece = draw(st.one_of(
        st.binary(max_size=8), st.sampled_from([b"", b"-", b"0", b"nan", b"inf", b"1e9", b"\n", b" ", b"9" * 30]),
        st.integers().map(lambda number: str(number).encode()),
    ))  # fmt: skip
    return parser, data[:start] + piece + data[end:]


@given(mutated())
def test_mutated_files(case: tuple[Callable[[bytes], bool], bytes]) -> None:
    _in_range_or_refused(*case)


@given(st.binary(max_size=400))
@example(b"22 1 8:1 / / rw - ext4 /dev/sda1 rw\n")
@example(b"22 1 : / \\040 rw -  - /dev/ rw\n")
def test_any_mount_table(data: bytes) -> None:
    mounts = parse_mountinfo(data.decode("utf-8", "surrogateescape"))
    paths = real_filesystems(mounts, tmpfs=True)
    assert len(paths) <= len({mount.device for mount in mounts})
    assert set(paths) <= {mount.path for mount in mounts}


_FIGURE = st.integers(0, 2**63)


@given(_FIGURE, _FIGURE, _FIGURE)
def test_usage_is_a_share(blocks: int, free: int, available: int) -> None:
    assert _percent(usage(blocks, free, available))


@given(_FIGURE, _FIGURE, _FIGURE, _FIGURE)
def test_a_cpu_share_is_a_share(busy: int, idle: int, more_busy: int, more_idle: int) -> None:
    assert _percent(cpu_percent((busy, busy + idle), (more_busy, more_busy + more_idle)))


@given(st.binary(max_size=15))
def test_a_command_name_is_found_whatever_it_holds(name: bytes) -> None:
    stat = parse_process(b"7 (" + name + b") S 1 " + b"0 " * 17 + b"4242 0 0\n")
    assert (stat.parent, stat.start_time) == (1, 4242)
