"""observe/systemd.py: what the journal tells, and the sensor on a real bus with a peer that answers as systemd."""

from __future__ import annotations

import pytest

from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.models import ObservationError
from luminous_nix.self_healing.observe.systemd import SystemdSensor, ending, unit_from
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, FakeHost, no_bus

pytestmark = pytest.mark.anyio
STARTED, STOPPING, STOPPED, ENDED = (
    "39f53479d3a045ac8e11786248231fbf", "de5b426a63be47a7b6ac3eaac82e2f6f",
    "9d1aaa27d60140bd96365438aad20286", "7ad2d189f7e94e70a38c781354912448",
)  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "told"),
    [
        pytest.param([], "never", id="nothing"),
        pytest.param([STARTED, STOPPING, ENDED, STOPPED], "stop", id="stopped"),
        pytest.param([STARTED, ENDED], "itself", id="ended-by-itself"),
        pytest.param([STARTED, STOPPING, STOPPED, STARTED, ENDED], "itself", id="stopped-started-ended"),
        pytest.param([STARTED, ENDED, STARTED, STOPPING, ENDED, STOPPED], "stop", id="ended-started-stopped"),
    ],
)
def test_how_a_forgotten_unit_ended(messages: list[str], told: str) -> None:
    assert ending(messages) == told


def test_properties_that_an_old_systemd_lacks() -> None:
    unit = unit_from({"Id": "a.service"}, {})
    assert (unit.name, unit.job, unit.result, unit.condition) == ("a.service", 0, "success", True)


async def test_only_what_looks_wrong_is_read(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    systemd.put("good.service", "active", "running")
    systemd.put("bad.service", "failed", "failed", typed={"Result": ("s", "signal"), "ExecMainCode": ("i", 2)})
    systemd.put("other.service", "failed", "failed")
    async with systemd.on(bus_daemon.address):
        units, unclear = await SystemdSensor(bus, host.roots).read(["good", "bad"])
        unit = await SystemdSensor(bus, host.roots).unit("bad.service")
        await bus.close()
    assert ([unit.name for unit in units], unclear) == (["bad.service", "other.service"], "")
    assert (unit.active, unit.result, unit.main_code, unit.invocation) == ("failed", "signal", 2, "01" * 16)


async def test_a_watched_unit_that_does_not_exist_is_told(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    async with systemd.on(bus_daemon.address):
        _, unclear = await SystemdSensor(bus, host.roots).read(["ghost"])
        await bus.close()
    assert unclear == "there is no unit ghost.service"


async def test_a_thousand_failed_units_are_one_trouble(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    for number in range(200):
        systemd.put(f"u{number}.service", "failed", "failed")
    async with systemd.on(bus_daemon.address):
        units, _ = await SystemdSensor(bus, host.roots).read([])
        await bus.close()
    assert len(units) == 64


async def test_without_a_bus_a_unit_is_unobserved(host: FakeHost) -> None:
    with pytest.raises(ObservationError, match="D-Bus is not available"):
        await SystemdSensor(no_bus(), host.roots).unit("a.service")


async def test_a_bus_without_systemd_is_unobserved(host: FakeHost, bus_daemon: BusDaemon) -> None:
    bus = Bus(bus_daemon.address, clock=Clock())
    units, unclear = await SystemdSensor(bus, host.roots).read([])
    assert (units, bool(unclear)) == ((), True)
    with pytest.raises(ObservationError):
        await SystemdSensor(bus, host.roots).unit("a.service")
    await bus.close()
