"""Units for tests to break, and ways to watch them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from .guest import Guest

T = TypeVar("T")


def service(
    guest: Guest, name: str, exec_start: str, unit: Mapping[str, str] | None = None, **directives: str
) -> str:
    """Write NAME.service; keywords go to [Service], `unit` to [Unit]. Returns the unit's name."""
    lines = ["[Unit]", *(f"{key}={value}" for key, value in (unit or {}).items()), "[Service]"]
    lines += [f"{key}={value}" for key, value in {"ExecStart": exec_start, **directives}.items()]
    guest.write(f"/etc/systemd/system/{name}.service", "\n".join(lines) + "\n")
    guest.run("systemctl", "daemon-reload")
    return f"{name}.service"


def unit_property(guest: Guest, unit: str, prop: str) -> str:
    return guest.run("systemctl", "show", "--property", prop, "--value", unit).stdout.strip()


def wait_for(predicate: Callable[[], T], timeout: float = 60, what: str = "condition") -> T:
    """Poll until the predicate returns something true, and return that."""
    deadline = time.monotonic() + timeout
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: still {value!r} after {timeout:g} s")
        time.sleep(0.1)
    return value
