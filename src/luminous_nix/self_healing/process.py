"""The one door through which processes start: argument lists only, never a shell, always a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .models import ActionFailed

# What a child sees of ours: nothing but this. /run/current-system/sw/bin is NixOS's /usr/bin.
SEARCH_PATH: Final = (
    "/run/wrappers/bin:/run/current-system/sw/bin:/nix/var/nix/profiles/default/bin:"
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)
_ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": SEARCH_PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
_OUTPUT_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Completed:
    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    @property
    def last_words(self) -> str:
        """The last line of what it said, for a message."""
        lines = (self.stderr.strip() or self.stdout.strip()).splitlines()
        return lines[-1] if lines else ""


def find(program: str) -> str | None:
    """The absolute path of a program on the fixed search path, or None.

    Like shutil.which, for fewer system calls.
    """
    for folder in SEARCH_PATH.split(":"):
        path = f"{folder}/{program}"
        if os.access(path, os.X_OK) and not Path(path).is_dir():
            return path
    return None


class Finder:
    """`find`, which remembers where a program was for as long as it is still there: each asking looks."""

    def __init__(self) -> None:
        self._found: dict[str, str] = {}

    def __call__(self, program: str) -> str | None:
        path = self._found.get(program)
        if path is not None and os.access(path, os.X_OK):
            return path
        if (path := find(program)) is not None:
            self._found[program] = path
        return path


async def run(argv: Sequence[str], *, timeout: float, stdin: bytes | None = None) -> Completed:  # noqa: ASYNC109
    """Run a program to its end.

    The environment is built from nothing, standard input is empty unless given, and output beyond 1 MiB is
    dropped. Raises ActionFailed when the program is missing or not done after `timeout` seconds; it and
    whatever it started are then killed.
    """
    program = argv[0] if argv[0].startswith("/") else find(argv[0])
    if program is None:
        raise ActionFailed(f"{argv[0]} is not installed", f"looked in {SEARCH_PATH}")
    try:
        child = await _started(
            (program, *argv[1:]), start_new_session=True,
            stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise ActionFailed(f"{program} could not be started: {error.strerror}") from error
    try:
        async with asyncio.timeout(timeout):
            out, err = await _talk(child, stdin)
            code = await child.wait()
    except TimeoutError:
        stopped = "was stopped" if await _end_group(child) else "what it started cannot be stopped by this user"
        raise ActionFailed(f"{argv[0]} was not done after {timeout:.0f} s and {stopped}") from None
    except asyncio.CancelledError:
        await _end_group(child)
        raise
    return Completed(tuple(argv), code, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))


async def _started(argv: Sequence[str], **how: Any) -> asyncio.subprocess.Process:
    """The one place where a program starts. Raises OSError."""
    return await asyncio.create_subprocess_exec(*argv, env=_ENVIRONMENT, cwd="/", **how)


@contextlib.asynccontextmanager
async def beside(argv: Sequence[str], *, notify: str, within: float = 5.0) -> AsyncIterator[None]:
    """A program that keeps us company on the same terminal until the block ends. It is ready when it closes the
    descriptor that it is told of by the option `notify`; one that cannot be started, or is not ready in time, is done
    without."""
    ready, told = os.pipe()
    child: asyncio.subprocess.Process | None = None
    try:
        with contextlib.suppress(OSError):
            child = await _started((*argv, notify, str(told)), pass_fds=(told,), stdin=asyncio.subprocess.DEVNULL)
        os.close(told)
        told = -1
        if child is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within):
                    await _closed(ready)
        yield
    finally:
        for handle in (ready, told):
            if handle >= 0:
                os.close(handle)
        if child is not None:
            with contextlib.suppress(ProcessLookupError):
                child.terminate()
            await child.wait()


async def _closed(handle: int) -> None:
    """The other end of the pipe is closed."""
    loop = asyncio.get_running_loop()
    end: asyncio.Future[None] = loop.create_future()
    loop.add_reader(handle, _settle, end)
    try:
        await end
    finally:
        loop.remove_reader(handle)


def _settle(end: asyncio.Future[None]) -> None:
    if not end.done():
        end.set_result(None)


async def _end_group(child: asyncio.subprocess.Process) -> bool:
    """End the child and what it started: TERM first, which sudo hands on to the command that it runs as another
    user, then KILL for the whole group. True when nobody holds its output any more."""
    for number, patience in ((signal.SIGTERM, 0.3), (signal.SIGKILL, 0.5)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                await _talk(child, None)  # to the end of its output, or the pipes stay open
                await child.wait()
                return True
    child._transport.close()  # type: ignore[attr-defined]  # noqa: SLF001  asyncio offers no other way to let go
    return False


async def _talk(child: asyncio.subprocess.Process, stdin: bytes | None) -> tuple[bytes, bytes]:
    if child.stdout is None or child.stderr is None:
        raise ActionFailed("the program has no output")
    out, err, _ = await asyncio.gather(_bounded(child.stdout), _bounded(child.stderr), _feed(child, stdin))
    return out, err


async def _feed(child: asyncio.subprocess.Process, stdin: bytes | None) -> None:
    if child.stdin is None:
        return
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        child.stdin.write(stdin or b"")
        await child.stdin.drain()
    child.stdin.close()


async def _bounded(stream: asyncio.StreamReader) -> bytes:
    kept = bytearray()
    while chunk := await stream.read(65536):
        kept += chunk[: _OUTPUT_LIMIT - len(kept)]
    return bytes(kept)
