"""What operations look at in a test: a host of files, a real bus, a clock, and where programs are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from jeepney.bus_messages import message_bus
from jeepney.io.asyncio import open_dbus_connection

from luminous_nix.self_healing.act.operations import OPERATIONS, World
from luminous_nix.self_healing.act.steps import Plan
from luminous_nix.self_healing.bus import Bus
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, FakeHost, no_bus

NOW = 1_800_000_000.0  # the wall clock of these worlds
Finder = Callable[[str], str | None]


def here(program: str) -> str:
    return f"/bin/{program}"


def nowhere(program: str) -> None:
    return None


def only(*programs: str) -> Finder:
    return lambda program: f"/bin/{program}" if program in programs else None


def rooted(host: FakeHost) -> FakeHost:
    """The host with every root below its folder."""
    places = {name: host.root / name for name in ("state", "plugins", "boot", "tmp")}
    host.roots = replace(host.roots, **places)
    return host


def world(host: FakeHost, finder: Finder = here, bus: Bus | None = None) -> World:
    return World(bus or no_bus(), host.roots, Clock(10_000.0), finder, lambda: NOW)


async def plan(at: World, action: str, /, **arguments: Any) -> Plan:
    return await OPERATIONS[action](at, arguments)


@asynccontextmanager
async def managed(host: FakeHost, daemon: BusDaemon, systemd: Systemd) -> AsyncIterator[World]:
    bus = Bus(daemon.address, clock=Clock())
    async with systemd.on(daemon.address):
        yield world(host, bus=bus)
        await bus.close()


@asynccontextmanager
async def resolved(daemon: BusDaemon, answers: Systemd) -> AsyncIterator[None]:
    """systemd-resolved at the bus; it answers every method, and notes it."""
    connection = await open_dbus_connection(daemon.address)
    await connection.send(message_bus.RequestName("org.freedesktop.resolve1"))
    task = asyncio.get_running_loop().create_task(answers._serve(connection))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await connection.close()


def lock(host: FakeHost, *, held: bool) -> None:
    """The lock of switch-to-configuration, as /proc/locks shows it."""
    file = host.write(host.roots.run / "nixos/switch-to-configuration.lock", "")
    inode = file.stat().st_ino if held else 1
    host.write(host.roots.proc / "locks", f"1: FLOCK  ADVISORY  WRITE 77 08:01:{inode} 0 EOF\n")
