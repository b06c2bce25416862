"""Files below a root, read and written without following a link on the way: the root may be a tree that somebody
else prepared, and a directory of the host one in which others may write."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ..models import HealingError

_LONGEST: Final = 1 << 20
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


class Tree:
    """Paths are absolute, and mean what lies below `root`. Everything raises HealingError with the path."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def read(self, path: str) -> bytes | None:
        """None where there is nothing."""
        found = self.look(path)
        return None if found is None else found[0]

    def look(self, path: str) -> tuple[bytes, os.stat_result] | None:
        """What is in a regular file, and what it is."""
        try:
            with self._folder(path) as (folder, name), open(
                name, "rb", opener=lambda name, _: os.open(name, _FILE, dir_fd=folder)
            ) as file:  # fmt: skip
                status = os.fstat(file.fileno())
                data = file.read(_LONGEST + 1) if stat.S_ISREG(status.st_mode) else b""
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _wrong(path, error) from error
        if not stat.S_ISREG(status.st_mode) or len(data) > _LONGEST:
            raise HealingError(f"{path} is no file of at most 1 MiB", "move it away")
        return data, status

    def write(self, path: str, data: bytes, mode: int, *, folders: int = 0o755) -> None:
        """As a whole or not at all, and durably. Missing directories are made."""
        try:
            with self._folder(path, make=folders) as (folder, name):
                new = f".{name}.{secrets.token_hex(4)}"
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                handle = os.open(new, flags, 0o600, dir_fd=folder)
                try:
                    with os.fdopen(handle, "wb") as file:
                        file.write(data)
                        os.fchmod(file.fileno(), mode)  # whatever the umask
                        file.flush()
                        os.fsync(file.fileno())
                    os.rename(new, name, src_dir_fd=folder, dst_dir_fd=folder)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.unlink(new, dir_fd=folder)
                    raise
                os.fsync(folder)
        except OSError as error:
            raise _wrong(path, error) from error

    def remove(self, path: str) -> None:
        try:
            with self._folder(path) as (folder, name):
                os.unlink(name, dir_fd=folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _wrong(path, error) from error

    def remove_empty(self, path: str) -> None:
        """A directory, where nothing is in it."""
        with contextlib.suppress(OSError), self._folder(path) as (folder, name):
            os.rmdir(name, dir_fd=folder)

    def names(self, path: str) -> list[str]:
        """What is in a directory; nothing where there is none."""
        try:
            with self._folder(f"{path}/.") as (folder, _):
                return sorted(os.listdir(folder))  # noqa: PTH208  of a descriptor
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _wrong(path, error) from error

    @contextmanager
    def _folder(self, path: str, make: int | None = None) -> Iterator[tuple[int, str]]:
        """The directory of a path, opened, and the last name."""
        *parents, name = path.strip("/").split("/")
        if not path.startswith("/") or ".." in (*parents, name):
            raise ValueError(path)
        here = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for part in parents:
                made = make is not None and _made(part, here)
                below = os.open(part, _FOLDER, dir_fd=here)
                os.close(here)
                here = below
                if made and make is not None:
                    os.fchmod(here, make)  # whatever the umask
            yield here, name
        finally:
            os.close(here)


def _made(name: str, folder: int) -> bool:
    try:
        os.mkdir(name, 0o700, dir_fd=folder)
    except FileExistsError:
        return False
    return True


def _wrong(path: str, error: OSError) -> HealingError:
    return HealingError(f"{path}: {error.strerror}", "is it, or a directory above it, a link?")
