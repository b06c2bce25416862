"""The control socket: one JSON line asks, one JSON line answers. Transport, authorisation, the shape of requests.

    {"schema": 1, "do": "pause", "arguments": {"minutes": 30}}
    {"schema": 1, "ok": true, "result": {…}} or {"schema": 1, "ok": false, "error": "a sentence", "hint": null}

Who asks is what the kernel says of the socket, never what a request says. Root and the engine's own user may do
everything; members of the group may see, and do what only makes us do less; everybody else is turned away.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import math
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

from .models import ActionRefused, HealingError, nearest

log = logging.getLogger(__name__)

LONGEST: Final = 64 << 10  # bytes of a request
_LONGEST_PATH: Final = 107  # unix(7)
_CONNECTIONS: Final = 32
_KEPT_FOR_ROOT: Final = 4  # of them: the kill switch always gets in
_PAUSE_S: Final = 1.0  # after accept failed
_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h; the socket module does not know it
_FIELDS: Final = ("schema", "do", "arguments")
_SHAPE: Final = 'a request is one line like {"schema": 1, "do": "status", "arguments": {}}'


class Rights(StrEnum):
    READ = "read"
    CALM = "calm"  # what can only make us do less: silence, pause
    ACT = "act"


class Peer(NamedTuple):
    """Who asks. The pid is for the log only: it may have passed to another process."""

    pid: int
    uid: int
    gids: frozenset[int]


Check = type[Any] | Callable[[Any], Any]


class Verb(NamedTuple):
    """What can be asked for. Each argument has a type, which must be met exactly (an int passes as a float), or
    a checker, which returns the value to use or raises ValueError or HealingError. `optional` ones may be missing."""

    rights: Rights
    arguments: Mapping[str, Check]
    run: Callable[[Mapping[str, Any], Peer], Awaitable[dict[str, Any]]]
    optional: frozenset[str] = frozenset()


def socket_path(environment: Mapping[str, str]) -> Path:
    """systemd's RuntimeDirectory=, the host's place for root, or a user's own; never a place others write to."""
    if given := environment.get("RUNTIME_DIRECTORY", "").partition(":")[0]:
        return Path(given) / "control.sock"
    if os.geteuid() == 0:
        return Path("/run/luminous-healing/control.sock")
    home = environment.get("XDG_RUNTIME_DIR") or f"{environment.get('HOME', '/nonexistent')}/.local/state"
    return Path(home) / "luminous-healing/control.sock"


class ControlServer:
    """Answers at `path` until stopped. `uid` is the engine's own user; members of `group` may see and calm.
    `idle` and `patience` are the seconds until the next request, and until an answer is taken.

    A verb runs to its end when its asker goes away; `stop` cancels it.
    """

    def __init__(
        self, path: Path, verbs: Mapping[str, Verb], *, group: int | None, uid: int | None = None,
        idle: float = 30.0, patience: float = 5.0
    ) -> None:  # fmt: skip
        self._path, self._verbs, self._group = path, verbs, group
        self._uid = os.geteuid() if uid is None else uid
        self._idle, self._patience = idle, patience
        self._open: dict[asyncio.Task[None], socket.socket] = {}
        self._listening: tuple[asyncio.Task[None], socket.socket, os.stat_result] | None = None

    async def start(self) -> None:
        """Listen. Raises HealingError when the place is taken or cannot be had."""
        try:
            listener = _listen(self._path, self._group)
            ours = self._path.lstat()
        except OSError as error:
            why = error.strerror or str(error)
            raise HealingError(f"cannot listen at {self._path}: {why}", "whose is that directory?") from error
        self._listening = (asyncio.create_task(self._accept(listener), name="control socket"), listener, ours)

    async def stop(self) -> None:
        """Listen no more, end every connection, and remove the file if it is still ours."""
        if self._listening is None:
            return
        (accepting, listener, ours), self._listening = self._listening, None
        if self._path.is_socket() and os.path.samestat(self._path.lstat(), ours):
            self._path.unlink(missing_ok=True)
        tasks = [accepting, *self._open]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        listener.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                self._admit((await loop.sock_accept(listener))[0])
            except OSError as error:  # too many open files, no memory: that passes
                log.warning("the control socket cannot take a connection now: %s", error.strerror)
                await asyncio.sleep(_PAUSE_S)
            await asyncio.sleep(0)  # sock_accept does not yield while others wait: the engine has its turn

    def _admit(self, connection: socket.socket) -> None:
        peer = peer_of(connection)
        if refusal := self._refusal(peer):
            with connection, contextlib.suppress(OSError):  # one that did not wait for it
                connection.send(refusal)
            return
        task = asyncio.create_task(self._serve(connection, peer), name=f"control of {peer.pid}")
        self._open[task] = connection
        task.add_done_callback(lambda task: self._open.pop(task).close())

    def _refusal(self, peer: Peer) -> bytes:
        if not self._rights(peer):
            return _no("you may not ask this engine", "ask as root, or join its group")
        if _CONNECTIONS - len(self._open) > (0 if peer.uid == 0 else _KEPT_FOR_ROOT):
            return b""
        return _no("too many connections", "try again in a moment; root has connections of its own")

    def _rights(self, peer: Peer) -> frozenset[Rights]:
        if peer.uid in {0, self._uid}:
            return frozenset(Rights)
        return frozenset({Rights.READ, Rights.CALM} if self._group in peer.gids else ())

    async def _serve(self, connection: socket.socket, peer: Peer) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=connection, limit=LONGEST)
        writer.transport.set_write_buffer_limits(high=0)  # drained means: the kernel has all of it
        try:
            while self._listening is not None:  # a verb may have kept the stop's cancellation to itself
                async with asyncio.timeout(self._idle):
                    line = await reader.readuntil()
                writer.write(await self._answer(line, peer))
                async with asyncio.timeout(self._patience):
                    await writer.drain()
                await asyncio.sleep(0)  # none of this yields while requests lie ready: the others have their turn
        except asyncio.LimitOverrunError:
            writer.write(_no(f"a request has at most {LONGEST} bytes"))
        except (EOFError, OSError) as error:  # half a line, gone, idle, or not reading
            log.debug("a control connection ended: %r", error)
        finally:
            writer.transport.abort()

    async def _answer(self, line: bytes, peer: Peer) -> bytes:
        try:
            return encode({"ok": True, "result": await self._run(*_request(line), peer)})
        except HealingError as error:
            return _no(error.message, error.hint, refused=isinstance(error, ActionRefused))
        except Exception:
            log.exception("a request to the control socket met an error of this program")
            return _no("an error of this program", "its log tells more")

    async def _run(self, name: str, given: Mapping[str, Any], peer: Peer) -> dict[str, Any]:
        verb = self._verbs.get(name)
        if verb is None:
            raise HealingError(f"unknown request {name!r:.80}", nearest(name, self._verbs))
        if verb.rights not in self._rights(peer):
            raise HealingError(f"{name} is for root and the engine's own user", "ask as root")
        arguments = checked(verb, given)
        if verb.rights is not Rights.READ:
            log.info("%s, asked for by uid %d, pid %d", name, peer.uid, peer.pid)
        return await verb.run(arguments, peer)


def peer_of(connection: socket.socket) -> Peer:
    """Who was at the other end when it connected, by the kernel's word."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("iII"))
    pid, uid, gid = struct.unpack("iII", credentials)
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
    except OSError as error:  # CPython reads at most 256 groups, and an old kernel tells none
        log.warning("of the groups of uid %d only the first counts: %s", uid, error.strerror)
        groups = b""
    return Peer(pid, uid, frozenset({gid, *struct.unpack(f"{len(groups) // 4}I", groups)}))


def _listen(path: Path, group: int | None) -> socket.socket:
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise HealingError(f"{path} is too long for a socket", f"at most {_LONGEST_PATH} bytes")
    if not path.parent.is_dir():
        path.parent.mkdir(mode=0o700, parents=True)
        path.parent.chmod(0o755)  # whatever the umask: the group passes through
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        os.fchmod(listener.fileno(), 0o600)  # bind makes the file with this mode: there is no laxer moment
        listener.bind(str(path))
        if group is not None:
            _open_to(path, group)
        listener.listen(2 * _CONNECTIONS)
    except BaseException:
        listener.close()
        raise
    return listener


def _open_to(path: Path, group: int) -> None:
    try:
        if path.lstat().st_gid != group:  # as a service it is already, and may not ask
            os.chown(path, -1, group, follow_symlinks=False)
    except PermissionError as error:
        log.warning("%s stays closed to group %d: %s", path, group, error.strerror)
    else:
        path.chmod(0o660)


def _clear(path: Path) -> None:
    """Remove what a dead server left. Raises HealingError when anything else is there."""
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(path.lstat().st_mode):
        raise HealingError(f"{path} is in the way: it is not a socket", "move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        reason = probe.connect_ex(str(path))
    if reason in {0, errno.EAGAIN}:  # EAGAIN: its queue is full
        raise HealingError(f"another engine listens at {path}", "stop that one, or give this one a place of its own")
    if reason != errno.ECONNREFUSED:
        raise OSError(reason, os.strerror(reason))
    path.unlink()


def encode(words: Mapping[str, Any]) -> bytes:
    return json.dumps({"schema": 1, **words}, allow_nan=False).encode() + b"\n"


def _no(error: str, hint: str = "", *, refused: bool = False) -> bytes:
    return encode({"ok": False, "error": error, "hint": hint or None, **({"refused": True} if refused else {})})


def _request(line: bytes) -> tuple[str, dict[str, Any]]:
    """What is asked for, and its arguments. Raises HealingError."""
    try:
        words = _parse(line)
    except (ValueError, RecursionError) as error:
        raise HealingError(f"not JSON: {error}", _SHAPE) from error
    if not isinstance(words, dict) or not isinstance(words.get("do"), str):
        raise HealingError("not a request", _SHAPE)
    if type(words.get("schema")) is not int or words["schema"] != 1:
        raise HealingError("this engine understands schema 1 only", _SHAPE)
    for field in words:
        if field not in _FIELDS:
            raise HealingError(f"unknown field {field!r:.80}", nearest(field, _FIELDS))
    if not isinstance(words.setdefault("arguments", {}), dict):
        raise HealingError("the arguments are not an object", _SHAPE)
    return words["do"], words["arguments"]


def _parse(line: bytes) -> Any:
    """JSON without what others read differently: a name twice, NaN and infinity, half a surrogate pair."""
    words = json.loads(line.decode(), object_pairs_hook=_object, parse_constant=_number, parse_float=_number)
    json.dumps(words, ensure_ascii=False).encode()
    return words


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(names := dict(pairs)) < len(pairs):
        raise ValueError("a name is there twice in one object")
    return names


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text:.80} is not a finite number")
    return value


def checked(verb: Verb, given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments as the verb gets them. Raises HealingError."""
    for name in given:
        if name not in verb.arguments:
            known = nearest(name, verb.arguments) if verb.arguments else "it takes no arguments"
            raise HealingError(f"unknown argument {name!r:.80}", known)
    for name in verb.arguments:
        if name not in given and name not in verb.optional:
            raise HealingError(f"the argument {name!r} is missing", "it takes: " + ", ".join(verb.arguments))
    return {name: _value(name, verb.arguments[name], value) for name, value in given.items()}


def _value(name: str, check: Check, value: Any) -> Any:
    if not isinstance(check, type):
        try:
            return check(value)
        except (TypeError, ValueError) as error:
            raise HealingError(f"{name}: {error}") from error
    if check is float and type(value) is int and abs(value) < 1 << 53:
        return float(value)
    if type(value) is not check:
        raise HealingError(f"{name} must be {check.__name__}, not {type(value).__name__}")
    return value
