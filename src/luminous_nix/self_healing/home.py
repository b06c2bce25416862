"""Where this host, or this user, keeps what must survive, and the file that stops everything."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .config import DEFAULT_FILE
from .observe.host import boot_clock
from .store import Store

SWITCH_FILE: Final = DEFAULT_FILE.with_name("disabled")
_HOST: Final = Path("/var/lib/luminous-healing")
_CAREFULLY: Final = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


def state_file(environment: Mapping[str, str], host: Path = _HOST) -> Path:
    """Where acts and records are kept: systemd's StateDirectory=, the host's, or for a user the XDG place.

    Where an engine of another user keeps the host's, root has a place of its own: it neither believes nor writes what
    lies in a directory that somebody else can change.
    """
    if given := environment.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(given) / "state.db"
    if os.geteuid() == 0:
        return (host.with_name(f"{host.name}-root") if kept_by_another(host) else host) / "state.db"
    home = environment.get("XDG_STATE_HOME") or f"{environment.get('HOME', '/nonexistent')}/.local/state"
    return Path(home) / "luminous-healing/state.db"


def kept_by_another(host: Path = _HOST) -> bool:
    """Whether this is root, and the host's state an engine's that is not."""
    try:
        return os.geteuid() == 0 != host.lstat().st_uid
    except OSError:
        return False  # it is not there: whoever comes first makes it


def open_store(environment: Mapping[str, str]) -> Store:
    """The store of this host or user. It opens in any case; a fault shows in `fault`, and then nothing acts."""
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    return Store(state_file(environment), clock=boot_clock, boot_id=boot_id)


def kill_switch(path: Path = SWITCH_FILE) -> str:
    """Why nothing may act: the file is there, or whether it is cannot be told. Empty when it is not."""
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):  # a link, dangling or not, a folder, a pipe: it is there
            return f"{path} is there"
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | _CAREFULLY)) as file:
            reason = file.read(200).decode("utf-8", "replace").strip().partition("\n")[0]
    except (FileNotFoundError, NotADirectoryError):
        return ""
    except OSError as error:
        return f"{path} cannot be looked at: {error.strerror}"
    return f"{path} is there" + (f": {reason}" if reason else "")
