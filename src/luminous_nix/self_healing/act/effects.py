"""The effects that need more care than a call: a write that the kernel may sit on, the end of a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ..models import ActionFailed, ActionRefused, NeedsPrivilege, Roots
from ..observe.nixos import replace_text
from .operations import read_process
from .steps import EndProcess, WriteFile


async def write(step: WriteFile) -> None:
    """Raises OSError, and RuntimeError when there is no thread to be had."""
    if step.ours:
        await _in_thread(partial(replace_text, step.path, step.text))
    else:
        await _in_thread(partial(_write_file, step.path, step.text.encode()))


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
