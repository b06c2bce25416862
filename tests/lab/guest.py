"""What tests can do with a guest, whether container or virtual machine."""

from __future__ import annotations

import atexit
import io
import subprocess
import tarfile
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from .image import CLEAN_ENV

Result = subprocess.CompletedProcess[str]


class GuestError(Exception):
    """A guest did not start, or a command in it failed."""


def tied_to_us(signal: str = "KILL") -> list[str]:
    """A prefix for a program that is to die with this process, however that ends.

    The kernel ties it to the thread that starts the program, so only the main thread may.
    """
    return ["setpriv", f"--pdeathsig={signal}"] if threading.current_thread() is threading.main_thread() else []


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Files arrive owned by root and without the host's bytecode."""
    if member.name.endswith("/__pycache__"):
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


class Guest(ABC):
    """A running system with systemd as PID 1. It is gone after close()."""

    def __init__(self) -> None:
        atexit.register(self.close)

    @abstractmethod
    def enter(self, argv: Sequence[str]) -> list[str]:
        """The host's command line that runs `argv` in the guest as root."""

    @abstractmethod
    def close(self) -> None:
        """Stop the guest and remove all that belongs to it. Closing twice is harmless."""

    def _pipe(
        self, argv: Sequence[str], stdin: bytes, timeout: float, prefix: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[bytes]:
        # `timeout` ends the command inside; the outer limit is for a guest that has stopped answering.
        command = self.enter(["timeout", "-s", "KILL", f"{timeout:g}", *prefix, *argv])
        started = time.monotonic()
        try:
            done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=timeout + 30)
        except subprocess.TimeoutExpired:
            raise GuestError(f"no answer from the guest for {timeout + 30:g} s: {' '.join(argv)}") from None
        if done.returncode in (137, -9) and time.monotonic() - started >= timeout:
            raise GuestError(f"not finished after {timeout:g} s: {' '.join(argv)}")
        return done

    def _checked(self, argv: Sequence[str], stdin: bytes = b"", timeout: float = 120) -> bytes:
        done = self._pipe(argv, stdin, timeout)
        if done.returncode:
            error = done.stderr.decode(errors="replace").strip()
            raise GuestError(f"{' '.join(argv)}: status {done.returncode}: {error}")
        return done.stdout

    def _prefix(self, user: str | None, env: Mapping[str, str] | None) -> list[str]:
        """Clean environment, and another user with what a login would have set."""
        values, switch = dict(CLEAN_ENV), []
        if user is not None and user != "root":
            runtime = f"/run/user/{self._checked(['id', '-u', user]).decode().strip()}"
            values |= {"HOME": f"/home/{user}", "USER": user, "XDG_RUNTIME_DIR": runtime}
            values["DBUS_SESSION_BUS_ADDRESS"] = f"unix:path={runtime}/bus"
            switch = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        values |= env or {}
        return [*switch, "env", "-i", *(f"{key}={value}" for key, value in values.items())]

    def run(
        self,
        *argv: str,
        check: bool = True,
        user: str | None = None,
        stdin: str | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 60,
    ) -> Result:
        """Run a command; its output and status come back. With `check`, a failure raises GuestError."""
        done = self._pipe(argv, (stdin or "").encode(), timeout, self._prefix(user, env))
        out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        if check and done.returncode:
            shown = (err.strip() or out.strip())[-2000:]
            raise GuestError(f"{' '.join(argv)}: status {done.returncode}: {shown}")
        return Result(list(argv), done.returncode, out, err)

    def call(self, *argv: str) -> int:
        """Run a command on this process's own terminal, for people."""
        return subprocess.call(self.enter(["env", "-i", *(f"{k}={v}" for k, v in CLEAN_ENV.items()), *argv]))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        self._checked(["install", "-D", "-m", f"{mode:o}", "/dev/stdin", path], text.encode())

    def copy(self, src: Path, dst: str) -> None:
        """Copy a file or directory of the host to the path `dst`."""
        target, data = Path(dst), io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as archive:
            archive.add(src, arcname=target.name, filter=_plain)
        script = 'mkdir -p "$1" && tar -C "$1" -xf -'
        self._checked(["sh", "-c", script, "copy", str(target.parent)], data.getvalue(), timeout=300)

    def fetch(self, src: str, dst: Path) -> None:
        """Copy a file or directory of the guest to the path `dst`, which must not be a directory yet."""
        path = Path(src)
        data = self._checked(["tar", "-C", str(path.parent), "-cf", "-", path.name], timeout=300)
        with tempfile.TemporaryDirectory(dir=dst.parent) as work:
            with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                # Python 3.11.4 brought filters; the guest is ours, so before that nothing is lost.
                archive.extraction_filter = getattr(tarfile, "tar_filter", None)
                archive.extractall(work)  # noqa: S202
            (Path(work) / path.name).rename(dst)

    def _settle(self, timeout: float = 300) -> None:
        """Wait until systemd has finished booting."""
        deadline = time.monotonic() + timeout
        state = ""
        while state not in ("running", "degraded"):
            if time.monotonic() > deadline:
                raise GuestError(f"systemd is still {state or 'silent'!r} after {timeout:g} s")
            time.sleep(0.05)
            done = self._pipe(["systemctl", "is-system-running", "--wait"], b"", timeout)
            state = done.stdout.decode(errors="replace").strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
