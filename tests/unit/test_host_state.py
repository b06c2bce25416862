"""May anything be changed now? The host's state from a real bus, with peers that answer as systemd and logind do."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.models import HostState, ObservationError
from luminous_nix.self_healing.observe.host import boot_clock, read_host, switch_in_progress, time_asleep
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, FakeHost, no_bus

pytestmark = pytest.mark.anyio
LOGIND = "org.freedesktop.login1"
SWITCHING = HostState("switching", "a switch of the system's generation is in progress")


@asynccontextmanager
async def asked(
    daemon: BusDaemon, host: FakeHost, systemd: Systemd, *, logind: bool = True
) -> AsyncIterator[HostState]:
    """What the host's state is while these answer."""
    bus = Bus(daemon.address, clock=Clock())
    async with systemd.on(daemon.address, *((LOGIND,) if logind else ())):
        yield await read_host(bus, host.roots)
        await bus.close()


def at_rest(state: str = "running", /, **logind: bool) -> Systemd:
    systemd = Systemd()
    systemd.manager = {"SystemState": ("s", state), "PreparingForShutdown": ("b", False),
                       "PreparingForSleep": ("b", False)}  # fmt: skip
    systemd.manager |= {name: ("b", on) for name, on in logind.items()}
    return systemd


def lock(host: FakeHost, lines: str = "1: FLOCK  ADVISORY  WRITE 77 08:01:{inode} 0 EOF\n") -> Path:
    """The lock of switch-to-configuration; `{inode}` in /proc/locks is its own."""
    file = host.write(host.roots.run / "nixos/switch-to-configuration.lock", "")
    host.write(host.roots.proc / "locks", lines.format(inode=file.stat().st_ino))
    return file


# -- a switch, by files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "held"),
    [
        ("1: FLOCK  ADVISORY  WRITE 77 08:01:{inode} 0 EOF\n", True),
        ("1: POSIX  ADVISORY  READ  5 00:1a:5 0 EOF\n2: FLOCK  ADVISORY  WRITE 77 08:01:{inode} 0 EOF\n", True),
        ("1: FLOCK  ADVISORY  WRITE 77 08:01:1{inode} 0 EOF\n", False),
        ("1: FLOCK  ADVISORY  WRITE 77 08:01:1 0 EOF\n", False),
        ("", False),
    ],
    ids=["held", "held, among others", "an inode that ends so", "another file", "no lock at all"],
)
def test_a_switch_is_in_progress_while_its_lock_is_held(host: FakeHost, lines: str, held: bool) -> None:
    assert not switch_in_progress(host.roots)  # no lock file: not NixOS, or never switched
    lock(host, lines)
    assert switch_in_progress(host.roots) is held


@pytest.mark.parametrize("lines", [None, "junk\n"], ids=["no /proc/locks", "a line that is cut off"])
async def test_whether_a_switch_is_in_progress_may_be_unknown_and_then_nothing_is_done(
    host: FakeHost, lines: str | None
) -> None:
    lock(host, lines or "")
    if lines is None:
        (host.roots.proc / "locks").unlink()
    with pytest.raises(ObservationError, match="whether a switch is in progress is unknown"):
        switch_in_progress(host.roots)
    state = await read_host(no_bus(), host.roots)
    assert "whether a switch is in progress is unknown" in state.busy


async def test_a_switch_is_told_without_asking_anybody(host: FakeHost) -> None:
    lock(host)
    assert await read_host(no_bus(), host.roots) == SWITCHING


# -- systemd and logind ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["running", "degraded"])
async def test_a_system_that_runs_may_be_changed(bus_daemon: BusDaemon, host: FakeHost, state: str) -> None:
    async with asked(bus_daemon, host, at_rest(state)) as found:
        assert found == HostState(state, "", "")


@pytest.mark.parametrize("state", ["initializing", "starting", "stopping", "maintenance", "offline"])
async def test_a_system_that_comes_or_goes_may_not(bus_daemon: BusDaemon, host: FakeHost, state: str) -> None:
    async with asked(bus_daemon, host, at_rest(state)) as found:
        assert found == HostState(state, f"the system is {state}")


@pytest.mark.parametrize(
    "unit",
    ["nixos-upgrade.service", "nixos-rebuild-switch-to-configuration.service", "apt-daily-upgrade.service",
     "packagekit-offline-update.service"],
)  # fmt: skip
@pytest.mark.parametrize("active", ["active", "activating"])
async def test_while_an_updater_works_nothing_is_changed(
    bus_daemon: BusDaemon, host: FakeHost, unit: str, active: str
) -> None:
    systemd = at_rest()
    systemd.put(unit, active, "start")
    async with asked(bus_daemon, host, systemd) as found:
        assert found == HostState("running", f"{unit} is at work")


@pytest.mark.parametrize(("unit", "active"), [("nixos-upgrade.service", "inactive"), ("nginx.service", "active"),
                                              ("apt-daily-upgrade.service", "failed")])  # fmt: skip
async def test_what_is_no_updater_at_work(bus_daemon: BusDaemon, host: FakeHost, unit: str, active: str) -> None:
    systemd = at_rest()
    systemd.put(unit, active, "x")
    async with asked(bus_daemon, host, systemd) as found:
        assert found == HostState("running")


@pytest.mark.parametrize(
    ("logind", "said"),
    [
        ({"PreparingForShutdown": True}, "the host is shutting down"),
        ({"PreparingForSleep": True}, "it is going to sleep"),
        ({"PreparingForShutdown": True, "PreparingForSleep": True}, "the host is shutting down"),
    ],
    ids=["shutdown", "sleep", "both"],
)
async def test_a_host_that_leaves_is_left_alone(
    bus_daemon: BusDaemon, host: FakeHost, logind: dict[str, bool], said: str
) -> None:
    async with asked(bus_daemon, host, at_rest("running", **logind)) as found:
        assert found == HostState("running", said)


async def test_a_host_without_logind_prepares_for_nothing(bus_daemon: BusDaemon, host: FakeHost) -> None:
    """The bus itself answers that nobody has the name."""
    async with asked(bus_daemon, host, at_rest(PreparingForShutdown=True), logind=False) as found:
        assert found == HostState("running")


# -- what cannot be told --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "missing", ["SystemState", "PreparingForShutdown", "PreparingForSleep"]
)  # fmt: skip
async def test_an_answer_that_is_an_error_leaves_it_unknown(
    bus_daemon: BusDaemon, host: FakeHost, missing: str
) -> None:
    systemd = at_rest()
    del systemd.manager[missing]
    async with asked(bus_daemon, host, systemd) as found:
        assert found == HostState("unknown", "", "no such property")


async def test_without_systemd_it_is_unknown(bus_daemon: BusDaemon, host: FakeHost) -> None:
    bus = Bus(bus_daemon.address, clock=Clock())
    found = await read_host(bus, host.roots)
    assert (found.state, found.busy) == ("unknown", "")
    assert "org.freedesktop.systemd1" in found.unknown
    await bus.close()


async def test_without_a_bus_it_is_unknown_and_is_not_tried_again_at_once(host: FakeHost) -> None:
    bus = no_bus()
    first = await read_host(bus, host.roots)
    assert (first.state, first.busy) == ("unknown", "")
    assert "D-Bus is not available" in first.unknown
    assert await read_host(bus, host.roots) == first
    assert bus.out_of_reach == first.unknown


# -- the clocks -------------------------------------------------------------------------------------------------


def test_the_boot_clock_counts_suspend_and_no_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now: dict[int, float] = {time.CLOCK_BOOTTIME: 500.0, time.CLOCK_MONOTONIC: 420.0}

    def clock_gettime(clock: int) -> Any:
        return now[clock]  # any other clock is an error

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    assert boot_clock() == 500.0
    assert time_asleep() == 80.0
