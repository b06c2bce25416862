"""The D-Bus connection: one reader, replies matched by serial, bounded calls, loud when the bus dies.

jeepney's low-level connection raises EOFError as soon as the bus is gone; its router would wait for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final

from jeepney import DBusAddress, HeaderFields, Message, MessageType, new_method_call
from jeepney.auth import BEGIN, AuthenticationError, Authenticator
from jeepney.bus import get_bus
from jeepney.bus_messages import message_bus
from jeepney.io.asyncio import DBusConnection

from .models import HealingError

log = logging.getLogger(__name__)

_IN_FLIGHT: Final = 64  # dbus-daemon refuses a client with too many open calls
_CONNECT_S: Final = 5.0
_UNAVAILABLE: Final = "D-Bus is not available: "
_RETRY_S: Final = 2.0  # between two attempts to connect


class BusUnavailable(HealingError):  # noqa: N818
    """There is no bus, or it went away, or it does not answer."""

    def __init__(self, why: str) -> None:
        super().__init__(_UNAVAILABLE + why, "is dbus running? `systemctl status dbus.socket`")


class BusRefused(HealingError):  # noqa: N818
    """The other side answered with an error; `name` is the D-Bus error name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message or name)
        self.name = name

    @property
    def access_denied(self) -> bool:
        return self.name in {
            "org.freedesktop.DBus.Error.AccessDenied",
            "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired",
            "org.freedesktop.DBus.Error.AuthFailed",
        }


class Bus:
    """A connection that opens at the first call and again after it was lost.

    `address` is SYSTEM, SESSION or a D-Bus address. A connection belongs to the event loop that opened it;
    a call from another loop opens a new one.
    """

    def __init__(self, address: str = "SYSTEM", *, clock: Callable[[], float]) -> None:
        self._address = address
        self._clock = clock
        self._link: _Link | None = None
        self._failed_at = float("-inf")
        self._failure = ""
        self._opening: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    @property
    def out_of_reach(self) -> str:
        """Why a call would fail now without a try, because an attempt to connect just failed; else empty."""
        if self._failure and self._clock() - self._failed_at < _RETRY_S:
            return self._failure
        return ""

    async def call(
        self,
        target: DBusAddress,
        member: str,
        signature: str = "",
        body: tuple[Any, ...] = (),
        *,
        within: float = 5.0,
    ) -> tuple[Any, ...]:
        """Call a method and return the reply's body.

        Raises BusUnavailable when there is no bus or no answer `within` seconds, BusRefused when the answer
        is an error.
        """
        if (link := self._link) is None or not link.usable:
            link = await self._open()
        message = new_method_call(target, member, signature or None, body)
        return await link.call(message, within)

    async def name(self) -> str:
        """Our unique name on the bus, as long as this connection lasts. Raises BusUnavailable."""
        if (link := self._link) is None or not link.usable:
            link = await self._open()
        return link.name

    async def _open(self) -> _Link:
        if why := self.out_of_reach:
            raise BusUnavailable(why.removeprefix(_UNAVAILABLE))
        loop = asyncio.get_running_loop()
        if self._opening is None or self._opening[0] is not loop:
            self._opening = (loop, asyncio.Lock())
        async with self._opening[1]:
            if self._link is not None and self._link.usable:
                return self._link
            try:
                async with asyncio.timeout(_CONNECT_S):
                    self._link, self._failure = await _connect(self._address, loop), ""
            except _CANNOT_CONNECT as error:
                self._failed_at, self._failure = self._clock(), _UNAVAILABLE + _reason(error)
                raise BusUnavailable(_reason(error)) from error
            return self._link

    async def close(self) -> None:
        if self._link is not None:
            await self._link.close()
            self._link = None


async def _connect(address: str, loop: asyncio.AbstractEventLoop) -> _Link:
    """Open, authenticate (D-Bus specification, "Authentication Protocol"), say Hello. Closes what it opened
    when that fails; jeepney's own opener would leave the socket open."""
    reader, writer = await asyncio.open_unix_connection(get_bus(address))
    link: _Link | None = None
    try:
        dialogue = Authenticator()
        for words in dialogue:
            writer.write(words)
            await writer.drain()
            dialogue.feed(await _answer(reader))
        writer.write(BEGIN)
        link = _Link(DBusConnection(reader, writer), loop)
        (link.name,) = await link.call(message_bus.Hello(), _CONNECT_S)
    except BaseException:
        writer.close()
        if link is not None:
            await link.close()
        raise
    return link


async def _answer(reader: asyncio.StreamReader) -> bytes:
    if words := await reader.read(1024):
        return words
    raise EOFError("closed during authentication")


def target(path: str, interface: str, name: str) -> DBusAddress:
    """The object `path` of the bus name `name`, seen through `interface`."""
    address: DBusAddress = DBusAddress(path, bus_name=name, interface=interface)
    return address


_CANNOT_CONNECT: Final = (
    OSError, EOFError, ValueError, KeyError, RuntimeError, TimeoutError, AuthenticationError, BusUnavailable,
    BusRefused,
)  # fmt: skip


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    return str(getattr(error, "strerror", "") or error) or type(error).__name__


class _Link:
    """One open connection and its reader task."""

    def __init__(self, connection: DBusConnection, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.name = ""
        self._connection = connection
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self._closed = ""
        self._reader = loop.create_task(self._read(), name="bus reader")

    @property
    def usable(self) -> bool:
        return not self._closed and self.loop is asyncio.get_running_loop()

    async def call(self, message: Message, within: float) -> tuple[Any, ...]:
        reply: asyncio.Future[Message] = self.loop.create_future()
        serial = next(self._connection.outgoing_serial)
        try:
            async with asyncio.timeout(within), self._slots:
                if self._closed:
                    raise BusUnavailable(self._closed)
                self._waiting[serial] = reply
                await self._connection.send(message, serial=serial)
                answer = await reply
        except TimeoutError:
            raise BusUnavailable(f"no answer within {within:.0f} s") from None
        except OSError as error:
            raise BusUnavailable(_reason(error)) from error
        finally:
            self._waiting.pop(serial, None)
        if answer.header.message_type is MessageType.error:
            words = answer.body[0] if answer.body and isinstance(answer.body[0], str) else ""
            raise BusRefused(str(answer.header.fields.get(HeaderFields.error_name, "")), words)
        return tuple(answer.body)

    async def _read(self) -> None:
        try:
            while True:
                message = await self._connection.receive()
                serial = message.header.fields.get(HeaderFields.reply_serial)
                waiting = self._waiting.get(serial) if serial is not None else None
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
        except (EOFError, OSError, ValueError) as error:
            log.warning("the connection to D-Bus ended: %s", _reason(error))
            self._fail(f"the connection ended: {_reason(error)}")
        finally:
            self._fail("the connection was closed")
            self._connection.writer.close()

    def _fail(self, why: str) -> None:
        self._closed = self._closed or why
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(BusUnavailable(self._closed))

    async def close(self) -> None:
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
