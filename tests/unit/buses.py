"""A real dbus-daemon on a socket of its own, and on it a peer that answers as systemd's manager does."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, Message, MessageType, new_error, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.asyncio import DBusConnection, open_dbus_connection

_NAME = "org.freedesktop.systemd1"
_PATH = "/org/freedesktop/systemd1/unit/"
Properties = Mapping[str, tuple[str, Any]]


class BusDaemon:
    """dbus-daemon with the session policy. Only the process that was started here is ever stopped."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self.address = f"unix:path={socket}"
        self._child: subprocess.Popen[str] | None = None

    def start(self) -> None:
        program = shutil.which("dbus-daemon")
        if program is None:
            pytest.skip("dbus-daemon is not installed")
        self._socket.unlink(missing_ok=True)
        self._child = subprocess.Popen(
            [program, "--session", f"--address={self.address}", "--print-address", "--nofork", "--nopidfile"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._child.stdout is not None
        assert self._child.stdout.readline().startswith(self.address)

    def stop(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None


class Systemd:
    """Units by name; each is its `Unit` properties and those of its own type. Unknown ones are `not-found`."""

    def __init__(self) -> None:
        self.unit: dict[str, dict[str, tuple[str, Any]]] = {}
        self.typed: dict[str, dict[str, tuple[str, Any]]] = {}
        self.manager: dict[str, tuple[str, Any]] = {"SystemState": ("s", "running")}  # and logind's properties
        self.denied = ""  # the D-Bus error name that every job is answered with
        self.jobs: list[tuple[str, tuple[Any, ...]]] = []

    def put(
        self, name: str, active: str, sub: str, *, typed: Properties | None = None, **more: tuple[str, Any]
    ) -> None:
        basis: dict[str, tuple[str, Any]] = {
            "Id": ("s", name), "LoadState": ("s", "loaded"), "ActiveState": ("s", active), "SubState": ("s", sub),
            "InvocationID": ("ay", b"\x01" * 16), "Job": ("(uo)", (0, "/")), "UnitFileState": ("s", "enabled"),
        }  # fmt: skip
        self.unit[name] = basis | more
        self.typed[name] = {"Result": ("s", "success"), "Type": ("s", "simple")} | dict(typed or {})

    @contextlib.asynccontextmanager
    async def on(self, address: str, *more: str) -> AsyncIterator[None]:
        """Be there, at this bus, for as long as the block lasts; also under these names."""
        connection = await open_dbus_connection(address)
        for name in (_NAME, *more):
            await connection.send(message_bus.RequestName(name))
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            with contextlib.suppress(BrokenPipeError):  # the bus may be gone
                await connection.close()

    async def _serve(self, connection: DBusConnection) -> None:
        while True:
            message = await connection.receive()
            if message.header.message_type is MessageType.method_call:
                await connection.send(self._answer(message))

    def _answer(self, message: Message) -> Message:
        member = message.header.fields[HeaderFields.member]
        if member == "LoadUnit":
            return new_method_return(message, "o", (_PATH + message.body[0].encode().hex(),))
        if member == "GetAll":
            path = message.header.fields[HeaderFields.path]
            name = bytes.fromhex(path.rpartition("/")[2]).decode()
            return new_method_return(message, "a{sv}", (self._properties(name, message.body[0]),))
        if member == "Get":
            if (value := self.manager.get(message.body[1])) is None:
                return new_error(message, "org.freedesktop.DBus.Error.UnknownProperty", "s", ("no such property",))
            return new_method_return(message, "v", (value,))
        if member == "ListUnitsFiltered":
            failed = [name for name, unit in self.unit.items() if unit["ActiveState"][1] == "failed"]
            return new_method_return(message, "a(ssssssouso)", ([self._row(name) for name in failed],))
        if member == "ListUnitsByNames":
            return new_method_return(message, "a(ssssssouso)", ([self._row(name) for name in message.body[0]],))
        if self.denied:
            return new_error(message, self.denied, "s", ("not today",))
        self.jobs.append((member, message.body))
        return new_method_return(message)

    def _properties(self, name: str, interface: str) -> dict[str, tuple[str, Any]]:
        absent: dict[str, tuple[str, Any]] = {
            "Id": ("s", name), "LoadState": ("s", "not-found"), "ActiveState": ("s", "inactive"),
        }  # fmt: skip
        return self.unit.get(name, absent) if interface.endswith(".Unit") else self.typed.get(name, {})

    def _row(self, name: str) -> tuple[Any, ...]:
        unit = self._properties(name, ".Unit")
        states = (unit["LoadState"][1], unit["ActiveState"][1], "sub", "")
        return (unit["Id"][1], "", *states, _PATH + name.encode().hex(), 0, "", "/")
