"""Who carries a step out. Small implementations of one protocol; nothing downstream asks who we are."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any, Final, Protocol, assert_never

from .. import process
from ..bus import Bus, BusRefused, BusUnavailable, target
from ..models import ActionFailed, NeedsPrivilege, Roots
from ..observe.systemd import MANAGER
from .effects import end_process, write
from .steps import AskHelper, EndProcess, ResolverJob, RunProgram, SetProperties, Step, UnitJob, WriteFile, typed

_RESOLVER: Final = target("/org/freedesktop/resolve1", "org.freedesktop.resolve1.Manager", "org.freedesktop.resolve1")
_UNIT_ONLY: Final = frozenset({"ResetFailedUnit", "FreezeUnit", "ThawUnit"})  # the others take a job mode, too


class Runner(Protocol):
    """Carries out a step and returns what it said.

    Raises NeedsPrivilege when it lacks the right, ActionRefused when nothing was started, ActionFailed.
    """

    async def run(self, step: Step) -> str: ...


class DirectRunner:
    """Does it itself: over D-Bus, by writing the kernel's file, by pidfd, by starting the program."""

    def __init__(self, bus: Bus, roots: Roots, *, privileged: bool) -> None:
        self._bus = bus
        self._roots = roots
        self._privileged = privileged

    async def run(self, step: Step) -> str:
        match step:
            case UnitJob():
                return await self._unit_job(step)
            case SetProperties():
                return await self._set_properties(step)
            case ResolverJob():
                return await self._resolver_job(step)
            case WriteFile():
                return await self._write(step)
            case RunProgram():
                return await self._program(step)
            case EndProcess():
                return await end_process(step, self._roots)
            case AskHelper():
                raise NeedsPrivilege("only in SERVICE mode the helper is asked")
        assert_never(step)

    async def _unit_job(self, step: UnitJob) -> str:
        body = (step.unit,) if step.method in _UNIT_ONLY else (step.unit, "fail")
        await self._call(MANAGER, step.method, "s" * len(body), body, f"{step.method} of {step.unit}")
        return f"{step.method} {step.unit}"

    async def _set_properties(self, step: SetProperties) -> str:
        values = [(name, (signature, value)) for name, signature, value in step.properties]
        until_reboot = True
        await self._call(MANAGER, "SetUnitProperties", "sba(sv)", (step.unit, until_reboot, values),
                         f"setting limits of {step.unit}")  # fmt: skip
        return f"{step.unit}: " + ", ".join(f"{name}={value}" for name, _, value in step.properties)

    async def _resolver_job(self, step: ResolverJob) -> str:
        await self._call(_RESOLVER, step.method, "", (), f"{step.method} of systemd-resolved")
        return step.method

    async def _call(self, at: Any, member: str, signature: str, body: tuple[Any, ...], what: str) -> None:
        try:
            await self._bus.call(at, member, signature, body)
        except BusRefused as error:
            if error.access_denied:
                raise NeedsPrivilege(f"{what} is not allowed: {error.message}") from error
            raise ActionFailed(f"{what}: {error.message}") from error
        except BusUnavailable as error:
            raise ActionFailed(f"{what}: {error.message}", error.hint) from error

    async def _write(self, step: WriteFile) -> str:
        try:
            async with asyncio.timeout(step.timeout_s):
                await write(step)
        except PermissionError as error:
            raise NeedsPrivilege(f"{step.path} is not writable for this user") from error
        except RuntimeError as error:  # no thread to be had: the host is out of processes
            raise ActionFailed(f"writing {step.path}: {error}") from error
        except TimeoutError:
            raise ActionFailed(f"writing {step.path} took more than {step.timeout_s:.0f} s") from None
        except OSError as error:
            if not (step.partial_ok and error.errno == errno.EAGAIN):
                if error.errno == errno.EROFS:
                    raise NeedsPrivilege(f"{step.path} is read-only in here") from error
                raise ActionFailed(f"writing {step.path}: {error.strerror}") from error
            return f"{step.path}: a part"
        return f"{step.path} = {step.text}"

    async def _program(self, step: RunProgram) -> str:
        if not (self._privileged or step.unprivileged):
            raise NeedsPrivilege(f"{Path(step.command[0]).name} needs root")
        done = await process.run(step.command, timeout=step.timeout_s, stdin=_fed(step))
        return _outcome(step, Path(step.command[0]).name, done)


def _fed(step: Step) -> bytes | None:
    """What a program reads, when there is something for it."""
    text = step.stdin if isinstance(step, WriteFile | RunProgram) else ""
    return text.encode() or None


def _outcome(step: Step, name: str, done: process.Completed) -> str:
    """Its last words. Raises ActionFailed."""
    if done.returncode == 0:
        return done.last_words[:300]
    said = f": {done.last_words:.300}" if done.last_words else ""
    if isinstance(step, RunProgram) and done.returncode == step.refused_exit:
        raise ActionFailed(f"{name} refused{said}", "it says that nothing was touched; that is not taken on trust")
    raise ActionFailed(f"{name} ended with {done.returncode}{said}")


class SudoRunner:
    """The same through `sudo -n`, with the step's fixed argument list; it never asks for a password."""

    def __init__(self, sudo: str) -> None:
        self._sudo = sudo

    async def run(self, step: Step) -> str:
        if isinstance(step, EndProcess):  # kill(1) knows only the number, which may be another's by then
            raise NeedsPrivilege(f"process {step.pid} belongs to another user")
        limit = step.timeout_s if isinstance(step, WriteFile | RunProgram) else 120.0
        program = process.find(step.command[0]) if not step.command[0].startswith("/") else step.command[0]
        if program is None:
            raise ActionFailed(f"{step.command[0]} is not installed")
        command = (program, *step.command[1:])
        # Asked first: afterwards nobody can tell sudo's own complaints from the program's.
        allowed = await process.run((self._sudo, "-n", "-l", "--", *command), timeout=10.0)
        if allowed.returncode != 0:
            raise NeedsPrivilege(f"sudo: {allowed.last_words.removeprefix('sudo: ') or 'not allowed'}")
        done = await process.run((self._sudo, "-n", "--", *command), timeout=limit, stdin=_fed(step))
        return _outcome(step, step.command[0], done)


class ManualRunner:
    """The last in a chain: it cannot, and tells the person what to type."""

    async def run(self, step: Step) -> str:
        raise NeedsPrivilege("this needs more rights than there are here", typed(step))


class ChainRunner:
    """The first of several that has the right."""

    def __init__(self, *runners: Runner) -> None:
        self._runners = runners

    async def run(self, step: Step) -> str:
        last = NeedsPrivilege("nobody may do this", typed(step))
        for runner in self._runners:
            try:
                return await runner.run(step)
            except NeedsPrivilege as error:
                last = NeedsPrivilege(last.message if error.hint else error.message, error.hint)
        raise last
