"""The generations of a NixOS host: which there are, which one runs, booted, and was good. No Nix is evaluated."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from ..models import Roots

_KNOWN_GOOD: Final = "known-good"
_LINK: Final = re.compile(r"system-([0-9]{1,9})-link", re.ASCII)
_STORE_NAME: Final = re.compile(r"[A-Za-z0-9+_?=-][A-Za-z0-9+._?=-]{0,210}", re.ASCII)
# systemd-boot's `default`: the entry of a generation, of one of its specialisations, or of a named profile.
_DEFAULT: Final = re.compile(
    r"default\s+nixos-generation-([0-9]{1,9})(?:-specialisation-[\w-]+)?(?:\.conf)?\s*", re.ASCII
)
_LOADERS: Final = ("loader/loader.conf", "efi/loader/loader.conf")
_MOST: Final = 100  # lines of known-good
_MOST_BYTES: Final = 1 << 16


class Generation(NamedTuple):
    """One generation of the system profile. `made` is when its link was: seconds since the epoch."""

    number: int
    path: str  # in the store
    made: float
    current: bool  # the system profile leads to it
    booted: bool
    known_good: bool


def profile(roots: Roots) -> Path:
    """The system profile."""
    return roots.nix / "var/nix/profiles/system"


def read_generations(roots: Roots) -> tuple[Generation, ...]:
    """Oldest first; empty on a host that is no NixOS. Raises OSError when they are there and cannot be read."""
    system = profile(roots)
    current, booted, good = _leads_to(system), _leads_to(roots.run / "booted-system"), known_good(roots)
    found = []
    for link in system.parent.glob("system-*-link"):
        name = _LINK.fullmatch(link.name)
        path = _leads_to(link)
        if name and _in_store(roots, path):
            made = link.lstat().st_mtime
            found.append(Generation(int(name[1]), path, made, current == link.name, path == booted, path in good))
    return tuple(sorted(found))


def running_system(roots: Roots) -> str:
    """The store path of what runs now, or empty."""
    return _leads_to(roots.run / "current-system")


def default_boot(roots: Roots) -> int:
    """The number of the generation that systemd-boot starts by default; 0 where another loader decides, which
    then starts what the profile leads to. Raises OSError when the loader's file cannot be read."""
    for place in _LOADERS:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return default_in((roots.boot / place).read_text("utf-8", "replace").splitlines())
    return 0


def default_in(lines: Iterable[str]) -> int:
    """The number in the `default` line of a loader.conf, or 0. [pure]"""
    return next((int(found[1]) for line in lines if (found := _DEFAULT.fullmatch(line.strip()))), 0)


def interface_version(path: str) -> str:
    """What the generation's init expects of the system that runs; empty when that cannot be told."""
    try:
        return (Path(path) / "init-interface-version").read_text("utf-8").strip()
    except (OSError, ValueError):
        return ""


def _leads_to(link: Path) -> str:
    """The target of a link as it is written, or empty when there is no such link."""
    try:
        return str(link.readlink())
    except FileNotFoundError:
        return ""
    except OSError:
        if link.is_symlink():
            raise
        return ""  # something else lies there


def _in_store(roots: Roots, path: str) -> bool:
    """Directly in the store, and a name that Nix could have given."""
    folder, _, name = path.rpartition("/")
    return folder == str(roots.nix / "store") and _STORE_NAME.fullmatch(name) is not None


# -- what was good -------------------------------------------------------------------------------------------


def known_good(roots: Roots) -> tuple[str, ...]:
    """Store paths of systems that were seen healthy, oldest mark first. What we cannot trust says nothing: a
    link, a file that others could have written, or a line that is no store path, and none is known to be good."""
    try:
        return _marks(roots)
    except (OSError, ValueError):
        return ()  # so nothing is gone back to; what deletes asks `marks_unread` besides


def _marks(roots: Roots) -> tuple[str, ...]:
    """Raises OSError or ValueError."""
    path = roots.state / _KNOWN_GOOD
    lines = _own_text(path).splitlines()
    if len(lines) > _MOST or not all(_in_store(roots, line) for line in lines):
        raise ValueError(f"{path} holds something else, too")
    return tuple(lines)


def marks_unread(roots: Roots) -> str:
    """Why it cannot be told which systems were seen healthy; empty when it can, or none was yet."""
    try:
        _marks(roots)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        return str(error)
    return ""


def mark_known_good(roots: Roots, path: str) -> None:
    """Keep that this system was seen healthy; the oldest marks go. Raises ValueError when it is no store path,
    OSError."""
    if not _in_store(roots, path):
        raise ValueError(f"{path!r:.200} is not in the store")
    lines = [*(line for line in known_good(roots) if line != path), path][-_MOST:]
    replace_text(roots.state / _KNOWN_GOOD, "".join(f"{line}\n" for line in lines))


def rolled_back(roots: Roots) -> tuple[int, int]:
    """(left, went to) of our last rollback, or (0, 0) when there was none. Raises OSError or ValueError when
    there is a mark that cannot be understood: then it may have been just now."""
    try:
        left, went = _own_text(rollback_mark(roots)).split()
    except FileNotFoundError:
        return 0, 0
    return int(left), int(went)


def rollback_mark(roots: Roots) -> Path:
    """Where a rollback notes the numbers of the generation that it left and the one it went to."""
    return roots.state / "rolled-back"


def _own_text(path: Path) -> str:
    """A small file of ours. Raises OSError, or ValueError when it is not ours alone."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(handle, "rb") as file:  # noqa: PTH123  by handle: what was checked is what is read
        at = os.fstat(handle)
        if not stat.S_ISREG(at.st_mode) or at.st_uid not in {0, os.geteuid()} or at.st_mode & 0o022:
            raise ValueError(f"{path} could have been written by others")
        data = file.read(_MOST_BYTES + 1)
    if len(data) > _MOST_BYTES:
        raise ValueError(f"{path} is too long")
    return data.decode("ascii")


def replace_text(path: Path, text: str) -> None:
    """The whole file or the one before it, also after a power cut; a link in its place is replaced, not followed.
    Its folder is made when it is missing. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # O_EXCL, O_NOFOLLOW, 0600
    try:
        with open(handle, "wb") as file:  # noqa: PTH123
            file.write(text.encode())
            file.flush()
            os.fsync(handle)
        os.replace(name, path)  # noqa: PTH105
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)  # noqa: PTH108
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
