"""The asking side of the control socket: one request, one answer, a deadline."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from .control import encode
from .models import ActionRefused, HealingError

NOT_A_MEMBER: Final = (
    "ask as root, or join the group luminous-healing, whose members may look and hold back (`luminous-healing"
    " install` makes it; without that root does with `groupadd luminous-healing`, and starts the engine again)"
)


class ControlError(HealingError):
    """The engine answered, and the answer is no."""


class ControlUnavailable(HealingError):  # noqa: N818
    """There was no answer: nobody listens, we may not ask, or it took too long."""


def ask_now(
    path: Path, do: str, arguments: Mapping[str, Any] | None = None, *, within: float = 5.0
) -> dict[str, Any]:
    """Ask the engine at `path` one thing and wait for the answer.

    Raises ActionRefused when it was refused, ControlError when the answer is another no, ControlUnavailable when
    there is none.
    """
    line = encode({"do": do, "arguments": dict(arguments or {})})
    try:
        answer = json.loads(_exchange(path, line, time.monotonic() + within))
    except TimeoutError as error:
        raise ControlUnavailable(f"no answer from {path} within {within:g} s", "is the engine busy?") from error
    except PermissionError as error:
        raise ControlUnavailable(f"no permission to ask at {path}", NOT_A_MEMBER) from error
    except OSError as error:
        why = error.strerror or str(error)
        raise ControlUnavailable(f"no engine answers at {path}: {why}", "does `luminous-healing run` run?") from error
    except (ValueError, RecursionError):
        answer = None
    match answer:
        case {"ok": True, "result": dict() as result}:
            return result
        case {"ok": False, "error": str() as words, "hint": hint, "refused": True}:
            raise ActionRefused(words, str(hint or ""))
        case {"ok": False, "error": str() as words, "hint": hint}:
            raise ControlError(words, str(hint or ""))
    raise ControlUnavailable(f"{path} answers in words unknown here", "are both sides of the same version?")


def _exchange(path: Path, line: bytes, until: float) -> bytes:
    answer = bytearray()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        _connect(connection, path, until)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # turned away: the answer says why
            connection.sendall(line)
        while not answer.endswith(b"\n"):
            connection.settimeout(_left(until))
            if not (more := connection.recv(1 << 16)):
                raise ConnectionResetError("the connection was closed without an answer")
            answer += more
    return bytes(answer)


def _connect(connection: socket.socket, path: Path, until: float) -> None:
    while True:
        connection.settimeout(_left(until))
        try:
            return connection.connect(str(path))
        except BlockingIOError:  # its queue is full
            time.sleep(min(0.001, _left(until)))


def _left(until: float) -> float:
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError
    return left
