"""The helper's door: who may speak, and what a frame must be before anybody looks into it.

Nothing is parsed before its mac. A connection that breaks a rule ends without a word; the process goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ..journal import notify, watchdog_seconds
from ..models import ActionRefused, HealingError
from ..observe.host import boot_clock
from .broker import Broker, Caller, printable_word
from .keys import boot_id, boot_ns
from .protocol import (
    LONGEST_FRAME,
    STATUS,
    WINDOW_NS,
    Code,
    Denied,
    Key,
    Keys,
    Reply,
    Request,
    encode_reply,
    fresh,
    parse_request,
)

log = logging.getLogger(__name__)

_IDLE_S: Final = 300.0
_AT_ONCE: Final = 64  # connections taken in one turn of the loop
_SWEEP_S: Final = 1.0
_LINES_A_MINUTE: Final = 10
_SLICE_NS: Final = 10_000_000_000
_ACTED: Final = frozenset({Code.DONE, Code.FAILED, Code.UNKNOWN})  # has its own lines
_SO_PEERPIDFD: Final = 77  # asm-generic/socket.h, Linux 6.5


@dataclass(frozen=True, slots=True)
class Quota:
    """How many connections at once: the engine's, and root's own besides them. Each may have so many looks in a
    minute that are `remembered`."""

    engine: int = 16
    root: int = 8
    remembered: int = 1 << 18
    idle_s: float = 5.0  # without a request


@dataclass(slots=True, eq=False)
class _Connection:
    socket: socket.socket
    caller: Caller
    since: float
    work: asyncio.Task[None] | None = None


class _Seen:
    """Nonces of what changes nothing, for as long as they are fresh. What changes something is kept on disk.

    The engine and root have room of their own: who fills his, fills nobody else's. They are forgotten by the slice of
    time, at no cost: a quarter of a million of them, one by one, would hold everybody up.
    """

    def __init__(self, started_ns: int, most: int) -> None:
        self._started_ns, self._most = started_ns, most
        self._slices: tuple[dict[int, set[int]], dict[int, set[int]]] = ({}, {})

    def add(self, nonce: str, ts_ns: int, now_ns: int, *, person: bool) -> None:
        """Raises Denied: it was here before, or may have been before we started, or there are too many."""
        if ts_ns < self._started_ns:
            raise Denied(Code.STALE)
        short = int(nonce[:15], 16)  # sixty bits: what Python keeps small
        if any(short in one for slices in self._slices for one in slices.values()):
            raise Denied(Code.REPLAY)
        mine, at = self._slices[person], now_ns // _SLICE_NS
        for old in [one for one in mine if (at - one) * _SLICE_NS > 2 * WINDOW_NS]:
            del mine[old]
        if sum(map(len, mine.values())) >= self._most:
            raise Denied(Code.BUSY)
        mine.setdefault(at, set()).add(short)


@dataclass(slots=True)
class _Refusals:
    """At most ten lines a minute, and a count of the rest: who is refused must not fill the disk."""

    note: Callable[[Mapping[str, Any]], None]
    clock: Callable[[], float]
    minute: float = float("-inf")
    lines: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    untold: int = 0

    def add(self, caller: Caller, code: Code, op: str = "", why: str = "") -> None:
        self.counts[code.value] = self.counts.get(code.value, 0) + 1
        now = self.clock()
        if now - self.minute >= 60.0:
            self.minute, self.lines = now, 0
        if self.lines >= _LINES_A_MINUTE:
            self.untold += 1
            return
        self.lines += 1
        entry = {"event": "denied", "code": code.value, "uid": caller.uid, "pid": caller.pid, "untold": self.untold}
        entry |= {"op": op, "why": why} if op else {}
        self.untold = 0
        try:
            self.note(entry)
        except HealingError as error:
            log.warning("a refusal could not be kept: %s", error.message)


class Helper:
    """Serves `listener`, a SOCK_SEQPACKET socket, until `stop` or until nobody asked for `idle_s` seconds.

    `engine_uid` is who may ask besides root; `engine_unit`, unless empty, the unit whose cgroup it must be in.
    """

    def __init__(
        self, listener: socket.socket, keys: Keys, broker: Broker, *, engine_uid: int, engine_unit: str = "",
        quota: Quota | None = None, idle_s: float = _IDLE_S, boot: str = "", clock_ns: Callable[[], int] = boot_ns,
        note: Callable[[Mapping[str, Any]], None] = lambda _: None, proc: Path = Path("/proc"),
    ) -> None:  # fmt: skip
        self._listener, self._keys, self._broker = listener, keys, broker
        self._uids = {engine_uid, 0}
        self._engine_unit, self._proc = engine_unit, proc
        self._quota, self._idle_s = quota or Quota(), idle_s
        self._boot, self._clock_ns = boot or boot_id(), clock_ns
        self._seen = _Seen(clock_ns(), self._quota.remembered)
        self._refusals = _Refusals(note, boot_clock, counts=broker.counts)
        self._open: dict[int, _Connection] = {}
        self._works: set[asyncio.Task[None]] = set()
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._over = asyncio.Event()
        self._asked_at = boot_clock()

    async def run(self) -> None:
        """Until the end. What is under way then is finished first."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        loop.add_reader(self._listener, self._accept)
        sweeper = loop.create_task(self._sweep(), name="sweep")
        try:
            await self._over.wait()
        finally:
            loop.remove_reader(self._listener)
            sweeper.cancel()
            for connection in list(self._open.values()):
                if connection.work is None:
                    self._end(connection)
            await asyncio.gather(
                *self._works, return_exceptions=True
            )  # also what was let go of: it has a line to write
            for connection in list(self._open.values()):
                self._end(connection)
            self._give_up_the_spare()

    def stop(self) -> None:
        self._over.set()

    # -- connections -----------------------------------------------------------------------------------------

    def _accept(self) -> None:
        """All that wait, up to a number. Out of descriptors: the spare one lets us turn one away cleanly."""
        for _ in range(_AT_ONCE):
            try:
                connection = self._listener.accept()[0]
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in {errno.EMFILE, errno.ENFILE} and self._turn_one_away():
                    continue
                log.debug("nobody was let in: %s", error.strerror)
                return  # whatever it is, the next turn of the loop tries again
            self._take(connection)

    def _turn_one_away(self) -> bool:
        """Whether there was one."""
        self._give_up_the_spare()
        try:
            self._listener.accept()[0].close()
        except OSError:
            return False
        finally:
            with contextlib.suppress(OSError):
                self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        return True

    def _give_up_the_spare(self) -> None:
        spare, self._spare = self._spare, -1
        if spare >= 0:
            os.close(spare)

    def _take(self, connection: socket.socket) -> None:
        """Who it is the kernel says (SO_PEERCRED); an address or a request never does."""
        pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        open_now = sum(1 for one in self._open.values() if one.caller.uid == uid)
        most = self._quota.root if uid == 0 else self._quota.engine
        if uid not in self._uids or open_now >= most:
            connection.close()
            self._refusals.add(Caller(uid, pid), Code.BUSY if uid in self._uids else Code.KEY)
            return
        connection.setblocking(False)
        self._asked_at = boot_clock()
        one = _Connection(connection, Caller(uid, pid), self._asked_at)
        self._open[connection.fileno()] = one
        asyncio.get_running_loop().add_reader(connection, self._readable, one)

    def _end(self, connection: _Connection) -> None:
        number = connection.socket.fileno()
        if number < 0:
            return
        asyncio.get_running_loop().remove_reader(connection.socket)
        self._open.pop(number, None)
        connection.socket.close()
        if connection.work is not None:
            connection.work.cancel()  # nobody waits for it any more: it is let go of, and its line says so

    async def _sweep(self) -> None:
        """End idle connections, and the process when nobody asked for long."""
        every = watchdog_seconds()
        while True:
            await asyncio.sleep(min(_SWEEP_S, (every or 60.0) / 2, max(self._idle_s / 2, 0.05)))
            now = boot_clock()
            if every:
                notify("WATCHDOG=1")
            for connection in list(self._open.values()):
                if connection.work is None and now - connection.since > self._quota.idle_s:
                    self._end(connection)
            if not self._open and now - self._asked_at > self._idle_s:
                self.stop()

    # -- requests --------------------------------------------------------------------------------------------

    def _readable(self, connection: _Connection) -> None:
        """One frame is one packet. A second one before the answer, a descriptor, a cut: the connection ends."""
        try:
            frame, passed, flags, _ = connection.socket.recvmsg(LONGEST_FRAME)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end(connection)
            return
        odd = passed or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)
        if not frame or odd or connection.work is not None:
            if frame:
                self._refusals.add(connection.caller, Code.SIZE if odd else Code.BUSY)
            self._end(connection)
            return
        self._asked_at = connection.since = boot_clock()
        try:
            self._serve(connection, frame)
        except Exception:  # one connection's trouble is nobody else's
            log.exception("an error of this program")
            self._end(connection)

    def _serve(self, connection: _Connection, frame: bytes) -> None:
        now = self._clock_ns()
        try:
            request, key = parse_request(frame, self._keys, now)
        except Denied as denied:
            self._refusals.add(connection.caller, denied.code)
            self._end(connection)  # nobody is told what was wrong with a frame
            return
        try:
            fresh(request, now, self._boot)
            looks = request.op == STATUS or request.dry_run
            ts_ns = request.ts_boot_ns if looks else now
            self._seen.add(request.nonce, ts_ns, now, person=connection.caller.person)
        except Denied as denied:
            self._refusals.add(connection.caller, denied.code)
            self._reply(connection, Reply(request.nonce, denied.code), key)
            return
        if request.op == STATUS:
            self._reply(connection, Reply(request.nonce, Code.DONE, self._broker.status()), key)
            return
        work = self._work(connection, request, key)
        connection.work = asyncio.get_running_loop().create_task(work, name=f"{request.op} {request.nonce}")
        self._works.add(connection.work)
        connection.work.add_done_callback(self._works.discard)

    async def _work(self, connection: _Connection, request: Request, key: Key) -> None:
        try:
            self._from_the_engine(connection)
            code, result = await self._broker.answer(request, connection.caller)
        except ActionRefused as error:
            code, result = Code.REFUSED, {"reason": printable_word(error.message)}
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("an error of this program")
            code, result = Code.FAILED, {}
        connection.work = None
        connection.since = boot_clock()
        if code not in _ACTED:
            self._refusals.add(connection.caller, code, request.op, str(result.get("reason", "")))
        self._reply(connection, Reply(request.nonce, code, result), key)

    def _reply(self, connection: _Connection, reply: Reply, key: Key) -> None:
        """One packet; who does not take it has no more to say."""
        try:
            frame = encode_reply(reply, key)
        except Denied:
            log.exception("a reply that cannot be said: %.200r", reply)
            frame = encode_reply(Reply(reply.nonce, reply.code), key)
        try:
            connection.socket.send(frame)
        except OSError:
            self._end(connection)

    def _from_the_engine(self, connection: _Connection) -> None:
        """The peer's process must be in the engine's cgroup: held by a pidfd while we look. Raises ActionRefused."""
        if connection.caller.uid == 0 or not self._engine_unit:
            return
        try:
            handle = _pidfd(connection.socket, connection.caller.pid)
        except OSError as error:
            raise ActionRefused(f"the asking process is gone: {error.strerror}") from None
        try:
            paths = (self._proc / str(connection.caller.pid) / "cgroup").read_text("ascii")
            signal.pidfd_send_signal(handle, 0)  # still the same process
        except (OSError, UnicodeDecodeError):
            raise ActionRefused("who asks cannot be told") from None
        finally:
            os.close(handle)
        if not any(_within(line, self._engine_unit) for line in paths.splitlines()):
            raise ActionRefused("the asking process is not of the engine's unit")


def _within(line: str, unit: str) -> bool:
    """Whether a line of /proc/PID/cgroup names the system's own unit: with slices above it and nothing else. Below a
    service or a session others make groups, and name them as they like."""
    *above, name = line.split(":", 2)[-1].split("/")[1:] or [""]
    return name == unit and bool(above) and all(part.endswith(".slice") for part in above)


def _pidfd(connection: socket.socket, pid: int) -> int:
    """SO_PEERPIDFD where the kernel has it, which names the peer itself; else by number. Raises OSError."""
    try:
        return int.from_bytes(connection.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4), sys.byteorder)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    return os.pidfd_open(pid)
