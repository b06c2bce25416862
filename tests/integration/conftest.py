"""Guests with the project installed, and the command in them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.lab.container import Container
from tests.lab.guest import Guest
from tests.lab.install import install_project
from tests.lab.machine import Machine

CHECKOUT = Path(__file__).parents[2]


class Host:
    """A guest with the project in it; `heal`, `check` and the like run there."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest

    def command(self, *argv: str, user: str | None = None, **env: str) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        env = {"LUMINOUS_DEV_MODE": "1", **env}
        done = self.guest.run("luminous-healing", *argv, check=False, user=user, env=env, timeout=180)
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    def data(self, *argv: str, user: str | None = None, **env: str) -> dict[str, Any]:
        """The JSON object that a command prints."""
        code, out, err = self.command(*argv, "--json", user=user, **env)
        assert code in {0, 1, 3}, err
        found: dict[str, Any] = json.loads(out)
        return found

    def issues(self, component: str, *argv: str) -> list[dict[str, Any]]:
        return [issue for issue in self.data("check", *argv)["issues"] if issue["component"] == component]

    def heal(self, component: str, *argv: str) -> dict[str, Any]:
        """The result of a real heal for one component."""
        results = self.data("heal", "--apply", *argv)["results"]
        return next(result for result in results if result["issue"]["component"] == component)


@pytest.fixture(scope="session")
def host(container: Container) -> Host:
    install_project(container, CHECKOUT)
    return Host(container)


@pytest.fixture(scope="session")
def vm(machine: Machine) -> Host:
    install_project(machine, CHECKOUT)
    return Host(machine)


STATE = ("/var/lib/luminous-healing", "/home/tester/.local/state/luminous-healing")


@pytest.fixture(autouse=True)
def _no_past(request: pytest.FixtureRequest) -> None:
    """Acts are remembered; one test's acts must not be another's limits."""
    for name in ("host", "vm"):
        if name in request.fixturenames:
            request.getfixturevalue(name).guest.run("rm", "-rf", *STATE)


@pytest.fixture
def cleanup(host: Host) -> Callable[..., None]:
    """Forget failed units, so that one test's remains are not another's issue."""

    def forget(*units: str) -> None:
        for unit in units:
            host.guest.run("systemctl", "stop", unit, check=False)
            host.guest.run("systemctl", "reset-failed", unit, check=False)

    return forget
