"""Two datagrams to systemd: sd_notify(3), and structured log lines to the journal's own socket."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_SOCKET: Final = Path("/run/systemd/journal/socket")
_LONGEST: Final = 48 << 10
_PRIORITIES: Final = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def notify(message: str, environment: Mapping[str, str] | None = None) -> bool:
    """Tell the service manager (`READY=1`, `WATCHDOG=1`, `STATUS=…`). False when nobody listens."""
    env = os.environ if environment is None else environment
    address = env.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.setblocking(False)  # a service manager that does not read must not hold us
        try:
            path = "\0" + address[1:] if address.startswith("@") else address
            sender.sendto(message.encode("utf-8", "backslashreplace"), path)
        except OSError as error:
            logging.getLogger(__name__).debug("the service manager did not listen: %s", error)
            return False
    return True


def watchdog_seconds(environment: Mapping[str, str] | None = None) -> float | None:
    """How often the service manager wants a sign of life from this process, or None."""
    env = os.environ if environment is None else environment
    if env.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = env.get("WATCHDOG_USEC", "")
    return int(text) / 1e6 if text.isascii() and text.isdigit() and int(text) > 0 else None


def encode(fields: Mapping[str, str]) -> bytes:
    """The native journal protocol: `NAME=value`, or length-prefixed where the value has a line break."""
    data = bytearray()
    for name, value in fields.items():
        raw = value.encode("utf-8", "backslashreplace")[:_LONGEST]
        if b"\n" in raw:
            data += name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"
        else:
            data += name.encode() + b"=" + raw + b"\n"
    return bytes(data)


class JournalHandler(logging.Handler):
    """Log records as structured journal entries; `extra={"fields": {...}}` adds fields of its own."""

    def __init__(self, path: Path = _SOCKET) -> None:
        super().__init__()
        self._path = str(path)
        self.dropped = 0
        self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._sender.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(_PRIORITIES.get(record.levelno, 6)),
            "SYSLOG_IDENTIFIER": "luminous-healing",
            "LOGGER": record.name,
        }
        fields |= {f"LUMINOUS_{name.upper()}": str(value) for name, value in getattr(record, "fields", {}).items()}
        try:
            self._sender.sendto(encode(fields), self._path)
        except OSError:
            # Standard error is the journal's own stream, which blocks when journald hangs: count, say nothing.
            self.dropped += 1

    def close(self) -> None:
        self._sender.close()
        super().close()


def connected_to_journal(environment: Mapping[str, str] | None = None) -> bool:
    """Whether our standard error is the journal (systemd.exec(5), $JOURNAL_STREAM)."""
    env = os.environ if environment is None else environment
    device, _, inode = env.get("JOURNAL_STREAM", "").partition(":")
    try:
        at = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(at.st_dev), str(at.st_ino)) and _SOCKET.exists()
