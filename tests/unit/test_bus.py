"""bus.py against a real dbus-daemon."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from luminous_nix.self_healing.bus import Bus, BusRefused, BusUnavailable, target
from tests.unit.buses import BusDaemon
from tests.unit.host import NO_BUS, Clock

DBUS = target("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")


@pytest.mark.anyio
async def test_a_call_is_answered(bus_daemon: BusDaemon) -> None:
    bus = Bus(bus_daemon.address, clock=Clock())
    (names,) = await bus.call(DBUS, "ListNames")
    assert "org.freedesktop.DBus" in names
    await bus.close()


@pytest.mark.anyio
async def test_an_error_reply_is_a_refusal_with_its_name(bus_daemon: BusDaemon) -> None:
    bus = Bus(bus_daemon.address, clock=Clock())
    with pytest.raises(BusRefused, match="NoSuchMember") as refusal:
        await bus.call(DBUS, "NoSuchMember")
    assert refusal.value.name == "org.freedesktop.DBus.Error.UnknownMethod"
    assert not refusal.value.access_denied
    (names,) = await bus.call(DBUS, "ListNames")  # the connection lives on
    assert names
    await bus.close()


@pytest.mark.anyio
async def test_a_name_that_nobody_owns_is_a_refusal(bus_daemon: BusDaemon) -> None:
    bus = Bus(bus_daemon.address, clock=Clock())
    with pytest.raises(BusRefused) as refusal:
        await bus.call(target("/x", "org.example.X", "org.example.Absent"), "Do")
    assert refusal.value.name == "org.freedesktop.DBus.Error.ServiceUnknown"
    await bus.close()


async def silent_peer(address: str) -> tuple[Bus, str]:
    """A connection that never answers: a second Bus, which reads no method calls. Returns its unique name."""
    peer = Bus(address, clock=Clock())
    (identity,) = await peer.call(DBUS, "GetNameOwner", "s", ("org.freedesktop.DBus",))
    assert identity
    (names,) = await peer.call(DBUS, "ListNames")
    return peer, next(name for name in names if name.startswith(":"))


@pytest.mark.anyio
async def test_no_answer_in_time_is_unavailable(bus_daemon: BusDaemon) -> None:
    peer, name = await silent_peer(bus_daemon.address)
    bus = Bus(bus_daemon.address, clock=Clock())
    with pytest.raises(BusUnavailable, match="no answer within"):
        await bus.call(target("/x", "org.example.X", name), "Wait", within=0.1)
    assert await bus.call(DBUS, "ListNames")
    await bus.close()
    await peer.close()


@pytest.mark.anyio
async def test_a_bus_that_dies_ends_pending_calls_and_is_found_again(
    bus_daemon: BusDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    peer, name = await silent_peer(bus_daemon.address)
    bus = Bus(bus_daemon.address, clock=Clock())
    pending = asyncio.ensure_future(bus.call(target("/x", "org.example.X", name), "Wait", within=60.0))
    await bus.call(DBUS, "ListNames")
    bus_daemon.stop()
    with pytest.raises(BusUnavailable, match="the connection ended"):
        await asyncio.wait_for(pending, 30)
    assert any("D-Bus ended" in record.message for record in caplog.records)
    bus_daemon.start()
    (names,) = await bus.call(DBUS, "ListNames")
    assert names
    await bus.close()
    await peer.close()


@pytest.mark.anyio
async def test_an_absent_bus_is_asked_again_only_after_a_pause(bus_daemon: BusDaemon) -> None:
    bus_daemon.stop()
    clock = Clock()
    bus = Bus(bus_daemon.address, clock=clock)
    with pytest.raises(BusUnavailable, match="D-Bus is not available") as absent:
        await bus.call(DBUS, "ListNames")
    assert "systemctl status dbus" in absent.value.hint
    bus_daemon.start()
    clock.now += 1.9
    with pytest.raises(BusUnavailable):
        await bus.call(DBUS, "ListNames")
    clock.now += 0.2
    assert await bus.call(DBUS, "ListNames")
    await bus.close()


@pytest.mark.parametrize("address", [NO_BUS, "", "nonsense", "unix:", "tcp:host=127.0.0.1,port=1"])
@pytest.mark.anyio
async def test_an_address_without_a_bus_is_unavailable(address: str) -> None:
    with pytest.raises(BusUnavailable):
        await Bus(address, clock=Clock()).call(DBUS, "ListNames")


# jeepney leaves the half-open connection to the garbage collector, which warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.anyio
async def test_something_that_is_not_a_bus_is_unavailable(tmp_path: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    server = await asyncio.start_unix_server(hang_up, tmp_path / "no.sock")
    with pytest.raises(BusUnavailable):
        await Bus(f"unix:path={tmp_path}/no.sock", clock=Clock()).call(DBUS, "ListNames")
    server.close()
    await server.wait_closed()


def test_two_event_loops_in_turn(bus_daemon: BusDaemon) -> None:
    bus = Bus(bus_daemon.address, clock=Clock())

    async def once() -> bool:
        return bool(await bus.call(DBUS, "ListNames"))

    async def once_and_close() -> bool:
        answered = await once()
        await bus.close()
        return answered

    assert asyncio.run(once())
    assert asyncio.run(once_and_close())


@pytest.mark.anyio
async def test_many_calls_at_once(bus_daemon: BusDaemon) -> None:
    bus = Bus(bus_daemon.address, clock=Clock())
    asked = [bus.call(DBUS, "NameHasOwner", "s", (f"org.example.N{number}",), within=60) for number in range(499)]
    answers = await asyncio.gather(*asked, bus.call(DBUS, "NameHasOwner", "s", ("org.freedesktop.DBus",), within=60))
    assert answers == [(False,)] * 499 + [(True,)]
    await bus.close()


@pytest.mark.anyio
async def test_a_cancelled_call_leaves_the_connection_usable(bus_daemon: BusDaemon) -> None:
    peer, name = await silent_peer(bus_daemon.address)
    bus = Bus(bus_daemon.address, clock=Clock())
    calls = [asyncio.ensure_future(bus.call(target("/x", "org.example.X", name), "Wait")) for _ in range(100)]
    await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    assert all(
        isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*calls, return_exceptions=True)
    )
    assert await bus.call(DBUS, "ListNames")
    await bus.close()
    await peer.close()
