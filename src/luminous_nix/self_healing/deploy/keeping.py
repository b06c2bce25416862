"""What root does with what the helper keeps: verify and read its audit, rotate its key, begin its register anew."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Final, NamedTuple

from ..ledger import keep_aside
from ..models import HealingError
from ..privileged.keys import KEY_DIRECTORY, load_secret
from ..privileged.register import read_audit, verify
from ..process import run
from ..report import SCHEMA, Lines, printable
from .units import ENGINE, EXECUTOR

REGISTER: Final = Path("/var/lib") / EXECUTOR / "register.db"


class Kept(NamedTuple):
    data: dict[str, Any]
    lines: Lines
    code: int = 0


def _roots_only() -> None:
    if os.geteuid() != 0:
        raise HealingError("only root may do that", "run it with sudo")


def verify_audit(head: str = "", register: Path = REGISTER, keys: Path = KEY_DIRECTORY) -> Kept:
    """Whether the audit is whole; with `head`, "SEQ:MAC" as the journal has it, whether its end is there, too. Exit
    code 1 when it is not. Raises HealingError."""
    rows, checkpoint = _read(register)
    wrong = verify(rows, checkpoint, load_secret(keys / "audit"), head)
    last = f"{rows[-1].seq}:{rows[-1].mac.hex()}" if rows else f"{checkpoint.seq}:{checkpoint.mac.hex()}"
    since = f" since line {checkpoint.seq + 1}" if checkpoint.seq else ""
    lines: Lines = [("bold red", wrong)] if wrong else [("green", f"the audit is whole: {len(rows)} lines{since}")]
    data = {"schema": SCHEMA, "whole": not wrong, "wrong": wrong or None, "lines": len(rows), "head": last}
    return Kept(data, [*lines, ("dim", f"head {last}")], int(bool(wrong)))


def show_audit(number: int, register: Path = REGISTER) -> Kept:
    """The last lines, oldest first. Raises HealingError."""
    rows = _read(register)[0][-max(number, 1) :]
    found = [{"seq": row.seq} | _parsed(row.line) | {"seq": row.seq} for row in rows]
    lines: Lines = [("", _spoken(entry)) for entry in found]
    return Kept({"schema": SCHEMA, "audit": found}, lines or [("", "nothing was asked of the helper yet")])


def _parsed(line: str) -> dict[str, Any]:
    """The file is the helper's, so a line may be anything: what `verify` says of it is another matter."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"event": "?", "why": f"no line of the helper's: {line:.200}"}


def _spoken(entry: dict[str, Any]) -> str:
    words = " ".join(str(entry[name]) for name in ("op", "target", "code", "why") if entry.get(name))
    wall = entry.get("wall")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall)) if isinstance(wall, int) else "-"
    return printable(
        f"{entry['seq']:>6} {when:<19} {entry.get('event', '')!s:<8} {words}  uid {entry.get('uid', '-')}"
    )


def _read(register: Path) -> Any:
    _roots_only()
    if not register.exists():
        raise HealingError(f"there is no {register}: nothing was asked of the helper yet, or it is not installed")
    try:
        return read_audit(register)
    except (sqlite3.Error, ValueError, TypeError) as error:
        raise HealingError(
            f"{register} cannot be read: {error}", "`luminous-healing audit renew` puts it aside"
        ) from None


async def rotate_key() -> Kept:
    """A new key for engine and helper. A key file that cannot be read is replaced. Raises HealingError."""
    _roots_only()
    done = await run(("systemctl", "start", f"{ENGINE}-rotate.service"), timeout=120.0)
    if done.returncode:
        raise HealingError(f"the new key could not be handed on: {done.last_words}", f"journalctl -u {ENGINE}-rotate")
    said = "engine and helper have a new key; the one before counts for ten minutes more"
    return Kept({"schema": SCHEMA, "rotated": True}, [("green", said)])


def _put_aside(register: Path) -> Path | None:
    kept = keep_aside(register) if os.path.lexists(register) else None
    (register.parent / "initialized").unlink(missing_ok=True)
    return kept


def _whole(register: Path, keys: Path) -> bool:
    try:
        rows, checkpoint = read_audit(register)
        return verify(rows, checkpoint, load_secret(keys / "audit")) == ""
    except (sqlite3.Error, ValueError, TypeError, HealingError):
        return False


async def renew(register: Path = REGISTER, keys: Path = KEY_DIRECTORY) -> Kept:
    """Put a register aside that cannot be used: limits and audit begin anew. Raises HealingError, also where there is
    nothing wrong with it."""
    _roots_only()
    if not register.parent.is_dir():
        raise HealingError("there is no register: the helper is not installed", "`luminous-healing install`")
    if _whole(register, keys):
        raise HealingError("the register is whole: there is nothing to renew", "`luminous-healing audit verify`")
    stopped = await run(("systemctl", "stop", f"{EXECUTOR}.service"), timeout=120.0)
    if stopped.returncode:
        raise HealingError(f"the helper could not be stopped, and has it open: {stopped.last_words}")
    kept = _put_aside(register)
    said = f"a new register begins; the old one is {kept}" if kept else "a new register begins"
    return Kept({"schema": SCHEMA, "kept_aside": str(kept) if kept else None}, [("yellow", said)])
