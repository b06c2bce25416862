"""Who carries a step out. Small implementations of one protocol; nothing downstream asks who we are."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol, assert_never

from .. import process
from ..bus import Bus, BusRefused, BusUnavailable
from ..models import ActionFailed, ActionRefused, NeedsPrivilege, Roots
from ..observe.systemd import MANAGER
from .operations import read_process
from .steps import EndProcess, RunProgram, Step, UnitJob, WriteFile, typed


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
            case WriteFile():
                return await self._write(step)
            case RunProgram():
                return await self._program(step)
            case EndProcess():
                return await end_process(step, self._roots)
        assert_never(step)

    async def _unit_job(self, step: UnitJob) -> str:
        body = (step.unit,) if step.method == "ResetFailedUnit" else (step.unit, "fail")
        try:
            await self._bus.call(MANAGER, step.method, "s" * len(body), body)
        except BusRefused as error:
            if error.access_denied:
                raise NeedsPrivilege(f"{step.method} of {step.unit} is not allowed: {error.message}") from error
            raise ActionFailed(f"{step.method} of {step.unit}: {error.message}") from error
        except BusUnavailable as error:
            raise ActionFailed(f"{step.method} of {step.unit}: {error.message}", error.hint) from error
        return f"{step.method} {step.unit}"

    async def _write(self, step: WriteFile) -> str:
        try:
            async with asyncio.timeout(step.timeout_s):
                await _in_thread(partial(_write_file, step.path, step.text.encode()))
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
        done = await process.run(step.command, timeout=step.timeout_s)
        if done.returncode != 0:
            raise ActionFailed(f"{Path(step.command[0]).name} ended with {done.returncode}: {done.last_words:.300}")
        return done.last_words[:300]


async def _in_thread(work: Callable[[], None]) -> None:
    """The kernel may work for seconds before a write returns (memory.reclaim). A daemon thread, unlike the
    loop's own pool, does not hold up the end of the program."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: OSError | None) -> None:
        if not done.done():
            done.set_result(None) if error is None else done.set_exception(error)

    def run() -> None:
        problem = None
        try:
            work()
        except OSError as error:
            problem = error
        with contextlib.suppress(RuntimeError):  # the loop ended meanwhile: nobody waits any more
            loop.call_soon_threadsafe(settle, problem)

    threading.Thread(target=run, name="write", daemon=True).start()
    await done


def _write_file(path: Path, data: bytes) -> None:
    """No O_CREAT: a knob that the kernel lacks must not become a file."""
    handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


async def end_process(step: EndProcess, roots: Roots, *, opener: Callable[[int], int] = os.pidfd_open) -> str:
    """pidfd_open(2) first, then compare the start time: the number cannot change hands after that.

    Raises ActionRefused when it is another process by now, NeedsPrivilege, ActionFailed when it survives.
    """
    try:
        handle = opener(step.pid)
    except OSError as error:
        raise ActionRefused(f"process {step.pid} is gone already, or no process: {error.strerror}") from None
    try:
        stat = read_process(roots, step.pid)
        if stat is None or stat.start_time != step.start_time:
            raise ActionRefused(f"process {step.pid} is another one by now")
        for number, patience in ((signal.SIGTERM, step.grace_s), (signal.SIGKILL, 5.0)):
            signal.pidfd_send_signal(handle, number)
            if await _gone(handle, patience):
                return f"process {step.pid} ended by {number.name}"
        raise ActionFailed(
            f"process {step.pid} survives SIGKILL", "it hangs in the kernel: look at its /proc/PID/wchan"
        )
    except PermissionError as error:
        raise NeedsPrivilege(f"process {step.pid} belongs to another user") from error
    except ProcessLookupError:
        return f"process {step.pid} ended"
    finally:
        os.close(handle)


async def _gone(handle: int, patience: float) -> bool:
    """A pidfd becomes readable when its process ends (pidfd_open(2))."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    loop.add_reader(handle, ended.set)
    try:
        async with asyncio.timeout(patience):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(handle)
    return True


class SudoRunner:
    """The same through `sudo -n`, with the step's fixed argument list; it never asks for a password."""

    def __init__(self, sudo: str) -> None:
        self._sudo = sudo

    async def run(self, step: Step) -> str:
        if isinstance(step, EndProcess):  # kill(1) knows only the number, which may be another's by then
            raise NeedsPrivilege(f"process {step.pid} belongs to another user")
        stdin = step.text.encode() if isinstance(step, WriteFile) else None
        limit = 120.0 if isinstance(step, UnitJob) else step.timeout_s
        program = process.find(step.command[0]) if not step.command[0].startswith("/") else step.command[0]
        if program is None:
            raise ActionFailed(f"{step.command[0]} is not installed")
        command = (program, *step.command[1:])
        # Asked first: afterwards nobody can tell sudo's own complaints from the program's.
        allowed = await process.run((self._sudo, "-n", "-l", "--", *command), timeout=10.0)
        if allowed.returncode != 0:
            raise NeedsPrivilege(f"sudo: {allowed.last_words.removeprefix('sudo: ') or 'not allowed'}")
        done = await process.run((self._sudo, "-n", "--", *command), timeout=limit, stdin=stdin)
        if done.returncode != 0:
            raise ActionFailed(f"{step.command[0]} ended with {done.returncode}: {done.last_words:.300}")
        return done.last_words[:300]


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
