"""Put the project into a guest."""

from __future__ import annotations

import sys
from pathlib import Path

from .guest import Guest
from .image import cached, digest, host_run

HOME = "/opt/luminous"
DEPENDENCIES = ("jeepney", "msgspec", "rich")
GUEST_PYTHON = "3.11"
PATH_FILE = f"/usr/local/lib/python{GUEST_PYTHON}/dist-packages/luminous.pth"  # read even with `python -I`
LAUNCHER = f"""#!/bin/sh
exec env PYTHONPATH={HOME}/src:{HOME}/deps python3 -m luminous_nix.self_healing.cli "$@"
"""


def dependencies(checkout: Path) -> Path:
    """The cached third-party packages, in the versions that the checkout's constraints.txt names."""
    constraints = checkout / "constraints.txt"
    pinned = constraints.read_text(encoding="utf-8") if constraints.exists() else ""

    def fill(target: Path) -> None:
        argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--target", str(target)]
        argv += ["--python-version", GUEST_PYTHON, "--implementation", "cp", "--only-binary=:all:"]
        argv += ["-c", str(constraints)] if pinned else []
        host_run([*argv, *DEPENDENCIES])

    return cached("deps", digest(pinned, GUEST_PYTHON, *DEPENDENCIES), fill)


def install_project(guest: Guest, checkout: Path) -> None:
    """Install src/ and what it depends on, with the command `luminous-healing`."""
    guest.run("rm", "-rf", HOME)
    guest.copy(checkout / "src", f"{HOME}/src")
    guest.copy(dependencies(checkout), f"{HOME}/deps")
    guest.write("/usr/local/bin/luminous-healing", LAUNCHER, 0o755)
    guest.write(PATH_FILE, f"{HOME}/src\n{HOME}/deps\n")
