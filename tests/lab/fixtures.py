"""The guests as pytest fixtures, for conftest.py to re-export."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator

import pytest

from .container import Container
from .image import base_key, is_cached
from .machine import Machine, state_is_cached

BUILD_COMMANDS = ("debootstrap", "unshare")
CONTAINER_COMMANDS = ("systemd-nspawn", "nsenter", "unshare", "setpriv", "mount")
MACHINE_COMMANDS = ("qemu-system-x86_64", "qemu-img", "ssh", "setpriv")


def _missing_commands(commands: Iterable[str]) -> str | None:
    absent = [command for command in commands if shutil.which(command) is None]
    return f"missing commands: {', '.join(absent)}" if absent else None


def _missing_for_building() -> str | None:
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return "only on Linux on x86_64"
    if os.geteuid() != 0:
        return "needs root"
    return None if is_cached("base", base_key()) else _missing_commands(BUILD_COMMANDS)


def missing_for_container() -> str | None:
    """Why there can be no container here, or None."""
    return _missing_for_building() or _missing_commands(CONTAINER_COMMANDS)


def missing_for_machine() -> str | None:
    """Why there can be no virtual machine here, or None. Once its image is built it needs no root."""
    commands = _missing_commands(MACHINE_COMMANDS)
    if commands or state_is_cached():
        return commands
    return _missing_for_building() or _missing_commands(("ssh-keygen", "mkfs.ext4"))


@pytest.fixture(scope="session")
def container() -> Iterator[Container]:
    reason = missing_for_container()
    if reason:
        pytest.skip(reason)
    with Container.boot("tests") as guest:
        yield guest


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    reason = missing_for_machine()
    if reason:
        pytest.skip(reason)
    with Machine.boot("tests") as guest:
        yield guest
