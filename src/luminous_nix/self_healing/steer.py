"""What the command asks of the running engine, or, where none runs, of the store: data and lines, no printing."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from .bus import Bus
from .config import Settings
from .control import socket_path
from .control_client import NOT_A_MEMBER, ControlUnavailable, ask_now
from .daemon import build_engine
from .desk import FAILED, Desk
from .heal.records import explain_lines, history_lines
from .home import SWITCH_FILE, kept_by_another, kill_switch, open_store, state_file
from .models import ActionRefused, ExecutionMode, HealingError, Roots
from .privileged.client import HELPER_SOCKET, helper_client
from .privileged.protocol import GRANT
from .privileged.ways import asked
from .process import beside, find
from .report import SCHEMA, Lines, printable

HOST_SOCKET: Final = Path("/run/luminous-healing/control.sock")
_PATIENCE_S: Final = {"confirm": 9000.0, "confirm_as": 9000.0, "undo": 120.0}


# The status of a host on which nothing was ever done.
NO_PAST: Final[Mapping[str, Any]] = {
    "running": False, "stopped": None, "store": None, "store_lifts": None, "breakers": [], "waiting": [],
    "silences": [], "open": [], "heals_last_hour": 0, "heals_per_hour": 10,
}  # fmt: skip


class Answer(NamedTuple):
    data: dict[str, Any]
    lines: Lines
    code: int = 0


def ask(settings: Settings, verb: str, **given: Any) -> dict[str, Any]:
    """The running engine's answer; where nobody listens, what the store says. Raises HealingError."""
    for path in dict.fromkeys((HOST_SOCKET, socket_path(os.environ))):
        try:
            if not path.is_socket():
                continue
        except PermissionError as error:
            raise ControlUnavailable(f"no permission to ask at {path}", NOT_A_MEMBER) from error
        try:
            return ask_now(path, verb, given, within=_PATIENCE_S.get(verb, 10.0))
        except ControlUnavailable as error:
            cause = error.__cause__
            if not (isinstance(cause, OSError) and cause.errno in {errno.ECONNREFUSED, errno.ENOENT}):
                raise
    return asyncio.run(_by_myself(settings, verb, given))


async def _by_myself(settings: Settings, verb: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if verb != "status" and "STATE_DIRECTORY" not in os.environ and kept_by_another():
        raise HealingError(
            "the engine that keeps this host's records does not run, and they are its own user's",
            "systemctl start luminous-healing; what must stop at once: touch /etc/luminous-healing/disabled",
        )
    if not state_file(os.environ).parent.exists() and verb in _NOTHING_YET:
        return dict(_NOTHING_YET[verb])
    with _engine(settings) as desk:
        found = await desk.ask(verb, given)
    return found if os.geteuid() == 0 else {**found, "own": True}


_NOTHING_YET: Final[Mapping[str, Mapping[str, Any]]] = {"history": {"records": []}}


@contextmanager
def _engine(settings: Settings) -> Iterator[Desk]:
    store = open_store(os.environ)
    try:
        yield Desk(build_engine(settings, store=store), running=False)
    finally:
        store.close()


def history(settings: Settings, component: str, number: int) -> Answer:
    given = {"number": max(1, min(number, 1000))} | ({"component": component} if component else {})
    records = ask(settings, "history", **given)["records"]
    none = f"there is no record of {component}" if component else "nothing was done yet"
    return Answer({"schema": SCHEMA, "records": records}, history_lines(records) or [("", none)])


def explain(settings: Settings, what: str) -> Answer:
    found = ask(settings, "explain", what=what)
    return Answer({"schema": SCHEMA, "record": found["record"]}, explain_lines(found["record"], found["now"]))


def confirm(settings: Settings, identity: str) -> Answer:
    """In SERVICE mode the helper must hear the person's word, too: from root directly, else through polkit."""
    through_helper = settings.mode is ExecutionMode.SERVICE and (Roots().run / HELPER_SOCKET).exists()
    if through_helper and os.geteuid() != 0:
        found = asyncio.run(_confirm_as_myself(settings, identity))
    else:
        if through_helper:
            record = ask(settings, "explain", what=identity)["record"]
            if str(record["id"]).startswith(identity):  # not the newest of a unit of that name
                asyncio.run(_give_word(record))
        found = ask(settings, "confirm", id=identity)
    result = found["result"]
    good = result["verdict"] not in FAILED
    said = result["error"] or result["detail"] or ""
    lines: Lines = [("green" if good else "bold red", f"{result['action']}: {result['verdict']}")]
    lines += [
        ("dim", f"  {printable(part)}") for part in said.split("\n") if part and f"confirm {found['id']}" not in part
    ]
    return Answer({"schema": SCHEMA, **found}, lines, int(not good))


async def _give_word(record: Mapping[str, Any]) -> None:
    """Root's word, for exactly what the record asks. Raises HealingError."""
    asks = record.get("asks")
    if not asks:
        return  # the engine says why
    word = {"op": asks["action"], "args": asked(asks["action"], asks["parameters"])}
    reply = await helper_client(Roots().run, os.environ).ask(GRANT, word)
    if not reply.ok:
        raise ActionRefused(str(reply.result.get("reason", reply.code)), str(reply.result.get("hint", "")))


async def _confirm_as_myself(settings: Settings, identity: str) -> dict[str, Any]:
    """polkit asks whoever holds this connection to the bus, while it lasts. Raises HealingError."""
    bus = Bus(clock=time.monotonic)
    try:
        subject = await bus.name()
        async with _somebody_to_ask():
            return await asyncio.to_thread(ask, settings, "confirm_as", id=identity, subject=subject)
    finally:
        await bus.close()


@asynccontextmanager
async def _somebody_to_ask() -> AsyncIterator[None]:
    """On a terminal polkit's own agent asks for the password there. Not as a fallback: polkit 122 does not find such
    a one by the bus name of a process."""
    agent = find("pkttyagent") if sys.stdin is not None and sys.stdin.isatty() else None
    if agent is None:
        yield
        return
    async with beside((agent, "--process", str(os.getpid())), notify="--notify-fd"):
        yield


def undo(settings: Settings, identity: str) -> Answer:
    found = ask(settings, "undo", id=identity)
    return Answer({"schema": SCHEMA, **found}, [("green", printable(told)) for told in found["told"]])


def silence(settings: Settings, pattern: str, span: float, reason: str) -> Answer:
    found = ask(settings, "silence", pattern=pattern, seconds=span, **({"reason": reason} if reason else {}))
    said = f"nothing is done about {pattern} for {span / 60:.0f} minutes"
    lines: Lines = [*_own(found), ("green", said), ("", f"`luminous-healing silence --end {found['id']}` ends that")]
    return Answer({"schema": SCHEMA, **found}, lines)


def unsilence(settings: Settings, identity: str) -> Answer:
    found = ask(settings, "unsilence", id=identity)
    return Answer({"schema": SCHEMA, **found}, [("green", f"silences ended: {found['ended']}")])


def pause(settings: Settings, reason: str) -> Answer:
    """Root's pause is a file: it needs no engine that answers, and holds whatever happens to the store."""
    if os.geteuid() == 0:
        try:
            SWITCH_FILE.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            SWITCH_FILE.write_text(f"{reason or 'a person asked for it'}\n", "utf-8")
        except OSError as error:
            found = {"stopped": ask(settings, "pause", **({"reason": reason} if reason else {}))["stopped"]}
            return _stopped(found, f" ({SWITCH_FILE} could not be made: {error.strerror})")
        return _stopped({"stopped": f"{SWITCH_FILE} is there"})
    return _stopped(ask(settings, "pause", **({"reason": reason} if reason else {})))


def _stopped(found: Mapping[str, Any], more: str = "") -> Answer:
    said = f"nothing acts any more: {printable(str(found['stopped']))}{more}"
    lines: Lines = [*_own(found), ("yellow", said), ("", "`luminous-healing resume` ends it")]
    return Answer({"schema": SCHEMA, **found}, lines)


def _own(found: Mapping[str, Any]) -> Lines:
    """An ordinary user without a running engine speaks for nobody else."""
    if not found.get("own"):
        return []
    return [
        ("bold yellow", "no engine runs here: this holds for your own heals only, the host's are root's to hold back")
    ]


def resume(settings: Settings, *, breakers: bool, store: bool) -> Answer:
    """Raises HealingError when something still holds: a request that was refused lifts nothing."""
    more = {name: True for name, on in (("breakers", breakers), ("store", store)) if on}
    try:
        nobody = not more and kept_by_another() and not HOST_SOCKET.is_socket()
        # The engine's own pause, if there is one, is lifted when it runs; the file is root's.
        found = {"stopped": None} if nobody else ask(settings, "resume", **more)
    except HealingError as error:
        held = kill_switch()
        still = f"; and still nothing acts: {held}" if held else ""
        raise HealingError(f"{error.message}{still}", error.hint) from error
    if os.geteuid() == 0 and kill_switch():
        try:
            SWITCH_FILE.unlink()
        except OSError as error:
            raise HealingError(f"{SWITCH_FILE} cannot be removed: {error.strerror}", "remove it by hand") from error
        found = found if nobody else {**found, **ask(settings, "resume")}
    if found["stopped"]:
        hint = "as root, `luminous-healing resume` lifts the file"
        raise HealingError(f"still nothing acts: {found['stopped']}", hint)
    lines: Lines = [("green", "healing goes on")]
    if store:
        kept = found.get("kept_aside")
        lines.insert(
            0, ("yellow", "a new store begins" + (f"; the old one is kept as {printable(kept)}" if kept else ""))
        )
    return Answer({"schema": SCHEMA, **found}, lines)


def status(settings: Settings) -> Mapping[str, Any]:
    """What stands in the way; of an engine that this user may not ask, that it may not be asked."""
    try:
        return ask(settings, "status")
    except ControlUnavailable as error:
        return {**NO_PAST, "stopped": kill_switch() or None, "unknown": error.message}


def status_lines(found: Mapping[str, Any]) -> Lines:
    """What stands in the way, the loudest first."""
    lines: Lines = []
    if found.get("unknown"):
        lines.append(("yellow", f"engine      {printable(found['unknown'])}"))
    if found.get("powerless"):
        lines.append(("bold yellow", f"powerless   {printable(found['powerless'])}"))
    if found["stopped"]:
        lines.append(("bold yellow", f"stopped     {printable(found['stopped'])}"))
    lines += _held(found)
    if found["store"]:
        lines.append(("bold red", f"store       {printable(found['store'])}: nothing will act"))
        lines.append(("", f"            lifts {found['store_lifts']}"))
    for one in found["breakers"]:
        lines.append(("bold red", f"breaker     open: {printable(one['reason'])}; lifts {one['lifts']}"))
    for one in found["waiting"]:
        what = f"`luminous-healing confirm {one['id']}` takes {one['action']} ({printable(one['component'])})"
        lines.append(("yellow", f"waits       {what}, {one['ends_in_s'] / 60:.0f} minutes left"))
    for one in found["silences"]:
        reason = f": {printable(one['reason'])}" if one["reason"] else ""
        left = f"{one['ends_in_s'] / 60:.0f} minutes"
        lines.append(("yellow", f"silenced    {one['pattern']} for {left}{reason} ({one['id']})"))
    if not found.get("unknown"):
        lines.append(("", f"heals       {found['heals_last_hour']} of {found['heals_per_hour']} in the last hour"))
    return lines


def _held(found: Mapping[str, Any]) -> Lines:
    """What holds back by the configuration."""
    lines: Lines = []
    for name, said in (("dry_run", "it is a dry run"), ("maintenance", "it is a maintenance window")):
        if found.get(name):
            lines.append(("yellow", f"holds       {said}" + (f": {found[name]}" if name == "maintenance" else "")))
    if found.get("mode", "auto") != "auto":
        lines.append(("yellow", f"policy      {found['mode']}"))
    return lines
