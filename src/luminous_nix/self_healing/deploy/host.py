"""Whether this host can hold the trust boundary at all. Where a wall is missing nothing is installed: there is no
variant with fewer."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import site
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from .. import process
from ..models import ActionRefused

OLDEST_SYSTEMD: Final = 252  # an older one ignores directives that it does not know, without failing
_HIDDEN: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108  a unit sees others there, or none
MODULES: Final = ("luminous_nix.self_healing", "jeepney", "msgspec", "rich")
_FIND: Final = """
import importlib.util, sys
for name in sys.argv[1:]:
    __import__(name)
    print(importlib.util.find_spec(name).origin)
"""
_PATIENCE_S: Final = 30.0


def check_host(*, polkit: bool = True) -> None:
    """Raises ActionRefused with what is missing."""
    if os.geteuid() != 0:
        raise ActionRefused("only root can do this to the host", "sudo luminous-healing install; or --root DIR")
    if Path("/etc/NIXOS").exists():
        raise ActionRefused("on NixOS /etc belongs to the system's configuration", "name the units there")
    if not Path("/run/systemd/system").is_dir() or process.find("systemctl") is None:
        raise ActionRefused("systemd does not run here: it starts each act and guards it", "nothing was written")
    version = _said(["systemctl", "--version"]).stdout
    found = re.match(r"systemd ([0-9]{1,4})\b", version)
    if found is None or int(found[1]) < OLDEST_SYSTEMD:
        raise ActionRefused(
            f"systemd {found[1] if found else '?'} is too old: {OLDEST_SYSTEMD} is needed",
            "an older one would leave out walls without a word; nothing was written",
        )
    state = _said(["systemctl", "show", "--property=LoadState", "--value", "polkit.service"])
    if polkit and state.stdout.strip() != "loaded":
        raise ActionRefused(
            f"polkit is {state.stdout.strip() or state.last_words}: it decides what the helper may ask of systemd",
            "install polkit (Debian: polkitd) and unmask it; nothing was written",
        )


def _said(argv: list[str]) -> process.Completed:
    return asyncio.run(process.run(argv, timeout=_PATIENCE_S))


def places(*, isolated: bool) -> tuple[Path, ...]:
    """Where this program and what it imports lie. `isolated`: as the units find them, without PYTHONPATH and without
    a user's own packages. Raises ActionRefused."""
    if not isolated:
        origins = [spec.origin for name in MODULES if (spec := importlib.util.find_spec(name)) and spec.origin]
    else:
        done = _said([sys.executable, "-I", "-c", _FIND, *MODULES])
        if done.returncode:
            raise ActionRefused(
                f"{sys.executable} -I cannot import this program: {done.last_words}",
                "install it as root for that interpreter, for example in a virtual environment below /opt",
            )
        origins = done.stdout.splitlines()
    return tuple(dict.fromkeys(Path(origin).resolve().parent for origin in origins))


def check_code(found: Iterable[Path]) -> None:
    """Act units are root: whoever may change what they run is root, too. Raises ActionRefused."""
    interpreter = Path(sys.executable)
    says_where = [Path(sys.prefix) / "pyvenv.cfg", *map(Path, site.getsitepackages())]  # whose *.pth are run, too
    everything = (interpreter.parent, interpreter.resolve(), *filter(Path.exists, says_where), *found)
    for place in everything:
        if any(place.is_relative_to(hidden) for hidden in _HIDDEN):
            raise ActionRefused(
                f"{place} is out of the units' sight, or others can write beside it",
                "install the program as root below /opt or /usr",
            )
    if loose := next(_loose(everything), None):
        raise ActionRefused(
            f"others than root may change {loose}, and parts of this run as root",
            f"chown root:root {loose}; chmod go-w {loose}",
        )


def _loose(tops: Iterable[Path]) -> Iterator[Path]:
    for top in dict.fromkeys(tops):
        below = top.rglob("*") if top.is_dir() and top.name not in {"bin", "sbin"} else ()
        for path in (*reversed(top.parents), top, *below):
            status = path.lstat()
            if status.st_uid != 0 or (not stat.S_ISLNK(status.st_mode) and status.st_mode & 0o022):
                yield path
