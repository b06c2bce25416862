"""Guests by hand. `container` and `machine` boot one, run the command (or a shell) in it, and discard it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .container import Container
from .image import base_image
from .install import install_project
from .machine import Machine, saved_state


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    parser.add_argument("what", choices=("build", "container", "machine"))
    parser.add_argument("command", nargs="*", metavar="-- CMD ARG", help="default: a shell")
    asked = parser.parse_args()
    if asked.what == "build":
        print(base_image(), saved_state(), sep="\n")
        return 0
    checkout = Path(__file__).parents[2]
    with Container.boot() if asked.what == "container" else Machine.boot() as guest:
        if (checkout / "src/luminous_nix").is_dir():
            install_project(guest, checkout)
        return guest.call(*(asked.command or ["bash", "-l"]))


if __name__ == "__main__":
    sys.exit(main())
