"""Guests with the project installed, and the command in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.container import Container
from tests.lab.demo import service, unit_property, wait_for
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


CONFIG = "/etc/luminous-healing/config.toml"
SWITCH = "/etc/luminous-healing/disabled"
STORY = """mode = "dev"
interval = 1
enabled_checks = [{checks}]
{more}
[policy]
boot_grace_seconds = 0
resume_grace_seconds = 0
{policy}
"""


class Healer:
    """`luminous-healing run --interval 1` as a transient unit of root's, and what it did so far."""

    UNIT = "luminous-healing-lab"

    def __init__(self, host: Host) -> None:
        self.host = host
        self._since = host.guest.run("date", "+%s.%N").stdout.strip()

    def configure(self, policy: str = "", more: str = "", checks: str = '"services"') -> None:
        self.host.guest.write(CONFIG, STORY.format(checks=checks, more=more, policy=policy))

    def start(self, *command: str) -> None:
        """The command is `luminous-healing run`, unless another is given."""
        argv = ["systemd-run", f"--unit={self.UNIT}", "--property=Type=notify", "--property=NotifyAccess=all"]
        argv += ["-E", "LUMINOUS_DEV_MODE=1", *(command or ("luminous-healing", "run", "--interval", "1"))]
        self.host.guest.run(*argv, timeout=240)

    def stop(self) -> None:
        self.host.guest.run("systemctl", "stop", self.UNIT, check=False, timeout=240)
        self.host.guest.run("systemctl", "reset-failed", self.UNIT, check=False)

    def restart(self) -> None:
        self.stop()
        self.start()

    @property
    def running(self) -> bool:
        return unit_property(self.host.guest, self.UNIT, "ActiveState") == "active"

    def records(self, component: str) -> list[dict[str, Any]]:
        """Of this component, newest first."""
        found: list[dict[str, Any]] = self.host.data("history", component)["records"]
        return found

    def told(self, component: str, words: str, timeout: float = 60) -> dict[str, Any]:
        """The newest record of the component that tells these words, once there is one."""

        def newest() -> dict[str, Any] | None:
            return next((one for one in self.records(component) if words in "\n".join(one["told"])), None)

        found = wait_for(newest, timeout=timeout, what=f"{component}: {words!r} is told")
        assert found is not None
        return found

    def journal(self) -> list[dict[str, str]]:
        """What this healer wrote since it was made, over all its starts."""
        argv = ("journalctl", "-b", "-o", "json", "-u", self.UNIT, f"--since=@{self._since}")
        return [json.loads(line) for line in self.host.guest.run(*argv).stdout.splitlines()]


class Units:
    """Demo units that tell each start in a file of their own, and how to break them."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._made: list[str] = []

    def start(self, name: str, **directives: str) -> str:
        """A running unit."""
        unit = self._write(name, **directives)
        self.host.guest.run("rm", "-f", f"/var/tmp/{name}.starts")
        self.host.guest.run("systemctl", "start", unit, timeout=240)
        wait_for(lambda: self.starts(unit), what=f"{unit} told its start")
        return unit

    def _write(self, name: str, **directives: str) -> str:
        self._made.append(name)
        command = f"/bin/sh -c 'echo $INVOCATION_ID >> /var/tmp/{name}.starts; exec sleep infinity'"
        return service(self.host.guest, name, command, None, **directives)

    def kill(self, *units: str) -> None:
        """All at once."""
        self.host.guest.run("systemctl", "kill", "-s", "KILL", *units)
        for unit in units:
            wait_for(lambda unit=unit: self.state(unit) == "failed", what=f"{unit} failed")  # type: ignore[misc]

    def broken(self, name: str, **directives: str) -> str:
        unit = self.start(name, **directives)
        self.kill(unit)
        return unit

    def slow(self, name: str, seconds: int) -> str:
        """A failed unit that takes so long to start, but for the first time."""
        return self.broken(name, ExecStartPre=f"/bin/sh -c 'test ! -s /var/tmp/{name}.starts || sleep {seconds}'")

    def state(self, unit: str) -> str:
        return unit_property(self.host.guest, unit, "ActiveState")

    def starts(self, unit: str) -> int:
        path = f"/var/tmp/{unit.removesuffix('.service')}.starts"
        return len(self.host.guest.run("cat", path, check=False).stdout.splitlines())

    def active(self, unit: str, timeout: float = 60) -> None:
        wait_for(lambda: self.state(unit) == "active", timeout=timeout, what=f"{unit} is active")

    def forget(self) -> None:
        for name in self._made:
            for verb in ("stop", "reset-failed"):
                self.host.guest.run("systemctl", verb, name, check=False, timeout=240)
            self.host.guest.run("systemctl", "revert", name, check=False)


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


def _story(host: Host) -> Iterator[tuple[Healer, Units]]:
    healer, units = Healer(host), Units(host)
    healer.configure()
    try:
        yield healer, units
    finally:
        healer.stop()
        units.forget()
        host.guest.run("rm", "-rf", CONFIG, SWITCH, *STATE)


@pytest.fixture
def lab(host: Host) -> Iterator[tuple[Healer, Units]]:
    """A healer that is not started yet, and units to break, in the container."""
    yield from _story(host)


@pytest.fixture
def vm_lab(vm: Host) -> Iterator[tuple[Healer, Units]]:
    """The same in the virtual machine."""
    yield from _story(vm)


@pytest.fixture
def cleanup(host: Host) -> Callable[..., None]:
    """Forget failed units, so that one test's remains are not another's issue."""

    def forget(*units: str) -> None:
        for unit in units:
            host.guest.run("systemctl", "stop", unit, check=False)
            host.guest.run("systemctl", "reset-failed", unit, check=False)

    return forget
