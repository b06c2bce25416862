"""observe/systemd.py: what the journal tells, and the sensor on a real bus with a peer that answers as systemd."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.models import ObservationError
from luminous_nix.self_healing.observe.systemd import SystemdSensor, ending, how_it_ended, unit_from
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, FakeHost, no_bus

pytestmark = pytest.mark.anyio
STARTING, STARTED, STOPPING, STOPPED, ENDED, FAILED = (
    "7d4958e842da4a758f6c1cdc7b36dcc5", "39f53479d3a045ac8e11786248231fbf", "de5b426a63be47a7b6ac3eaac82e2f6f",
    "9d1aaa27d60140bd96365438aad20286", "7ad2d189f7e94e70a38c781354912448", "d9b373ed55a64feb8242e02dbe79a49c",
)  # fmt: skip
RELOADED = "a" * 32  # no message that tells how a unit came or went
UP = [(STARTING, "start"), (STARTED, "start")]
DOWN = [(STOPPING, "stop"), (ENDED, ""), (STOPPED, "stop")]
RESTARTED = [(STOPPING, "restart"), (ENDED, ""), (STOPPED, "restart"), (STARTED, "start")]
S = 1_000_000
BY_ITSELF: dict[str, Any] = {
    "InactiveExitTimestampMonotonic": ("t", 1 * S), "ActiveExitTimestampMonotonic": ("t", 5 * S),
    "typed": {"ExecMainExitTimestampMonotonic": ("t", 4 * S)},
}  # fmt: skip
STOPPED_BY_TIMES: dict[str, Any] = BY_ITSELF | {"typed": {"ExecMainExitTimestampMonotonic": ("t", 6 * S)}}


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        pytest.param([], "never", id="nothing"),
        pytest.param([(RELOADED, "stop"), ("", "stop"), ("", "")], "never", id="nothing-that-is-known"),
        pytest.param([*UP, *DOWN], "stop", id="stopped"),
        pytest.param([*UP, (STOPPING, "stop"), (FAILED, ""), (STOPPED, "stop")], "stop", id="stopped-and-failed"),
        pytest.param([*UP, *DOWN, (RELOADED, "start")], "stop", id="stopped-and-read-again"),
        pytest.param(DOWN[:1], "stop", id="stopping-is-all-that-is-left"),
        pytest.param([*UP, (ENDED, "")], "itself", id="ended-by-itself"),
        pytest.param([*UP, (FAILED, "")], "itself", id="failed"),
        pytest.param([(FAILED, "")], "itself", id="failing-is-all-that-is-left"),
        pytest.param([(STARTING, "start"), (FAILED, "")], "itself", id="failed-start"),
        pytest.param([*UP, *DOWN, *UP, (ENDED, "")], "itself", id="stopped-started-ended"),
        pytest.param([*UP, *DOWN, (STARTING, "start"), (FAILED, "")], "itself", id="stopped-start-failed"),
        pytest.param([*UP, (ENDED, ""), *UP, *DOWN], "stop", id="ended-started-stopped"),
        pytest.param([*UP, *RESTARTED, (ENDED, "")], "itself", id="restarted-ended"),
        pytest.param([*UP, *RESTARTED[:3], (FAILED, "")], "itself", id="failed-in-a-restart"),
        pytest.param([*UP, *RESTARTED, *DOWN], "stop", id="restarted-stopped"),
    ],
)
def test_how_a_forgotten_unit_ended(lines: list[tuple[str, str]], told: str) -> None:
    assert ending(lines) == told
    assert ending(iter(lines)) == told


@pytest.fixture
def journalctl(host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A program in journalctl's place that tells these lines; returns the file where it notes its arguments."""

    def place(*lines: tuple[str, str], script: str = "", journal: Path | None = None) -> Path:
        host.write((journal or host.roots.journal) / "abc/system.journal", "")
        said = "\n".join(json.dumps({"MESSAGE_ID": message, "JOB_TYPE": job}) for message, job in lines)
        told = host.write(tmp_path / "told", f"{said}\n" if said else "")
        asked = tmp_path / "asked"
        program = host.write(
            tmp_path / "bin/journalctl",
            f"""#!/bin/sh
printf '%s\\n' "$@" >>'{asked}'
{script or f"exec /bin/cat '{told}'"}
""",
        )
        program.chmod(0o755)
        monkeypatch.setattr("luminous_nix.self_healing.process.SEARCH_PATH", str(tmp_path / "bin"))
        return asked

    return place


@pytest.mark.parametrize(
    ("lines", "told"),
    [((), "never"), ((*UP, *DOWN), "stop"), ((*UP, (ENDED, "")), "itself")],
    ids=["", "stop", "end"],
)
async def test_the_journal_tells(
    host: FakeHost, journalctl: Callable[..., Path], lines: tuple[tuple[str, str], ...], told: str
) -> None:
    asked = journalctl(*lines)
    assert await how_it_ended("a.service", host.roots) == told
    words = asked.read_text("utf-8").splitlines()
    assert {"-b", "_PID=1", "UNIT=a.service", "--output-fields=MESSAGE_ID,JOB_TYPE"} <= set(words)
    known = {f"MESSAGE_ID={message}" for message in (STARTING, STARTED, STOPPING, STOPPED, ENDED, FAILED)}
    assert {word for word in words if word.startswith("MESSAGE_ID=")} == known


async def test_a_journal_in_run_will_do(host: FakeHost, journalctl: Callable[..., Path]) -> None:
    journalctl(*UP, *DOWN, journal=host.roots.run / "log/journal")
    assert await how_it_ended("a.service", host.roots) == "stop"


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo no >&2; exit 1", "why a.service is not running cannot be told: no"),
        ("echo junk", "why a.service is not running cannot be told: "),
    ],
)
async def test_a_journal_that_tells_nothing(
    host: FakeHost, journalctl: Callable[..., Path], script: str, said: str
) -> None:
    journalctl(script=script)
    with pytest.raises(ObservationError, match=said):
        await how_it_ended("a.service", host.roots)


async def test_a_journal_that_cannot_be_read(host: FakeHost, journalctl: Callable[..., Path]) -> None:
    asked = journalctl(*UP, *DOWN)
    (host.roots.journal / "abc/system.journal").unlink()
    with pytest.raises(ObservationError, match="the journal is not readable") as error:
        await how_it_ended("a.service", host.roots)
    assert error.value.hint == "join the group systemd-journal"
    assert not asked.exists()


@pytest.mark.parametrize("active", ["failed", "inactive"])
@pytest.mark.parametrize(
    ("state", "lines", "told"),
    [
        pytest.param({}, (*UP, *DOWN), "stop", id="stopped"),
        pytest.param({}, (*UP, (FAILED, "")), "itself", id="failed"),
        pytest.param({}, (), "never", id="never"),
        pytest.param({"InactiveExitTimestampMonotonic": ("t", 5 * S)}, (*UP, *DOWN), "stop", id="failed-start"),
        pytest.param({"InactiveExitTimestampMonotonic": ("t", 1 * S), "ActiveExitTimestampMonotonic": ("t", 5 * S)},
                     (*UP, *DOWN), "stop", id="no-main-process"),
        pytest.param(STOPPED_BY_TIMES | {"typed": STOPPED_BY_TIMES["typed"] | {"Result": ("s", "timeout")}},
                     (*UP, *DOWN), "stop", id="timeout"),
        pytest.param(BY_ITSELF, (*UP, *DOWN), None, id="the-times-prove-that-it-ended"),
        pytest.param(STOPPED_BY_TIMES, (*UP,), None, id="the-times-prove-that-it-was-stopped"),
        pytest.param({"LoadState": ("s", "masked")}, (*UP,), None, id="masked"),
    ],
)  # fmt: skip
async def test_the_journal_is_asked_where_the_times_prove_nothing(
    host: FakeHost, bus_daemon: BusDaemon, journalctl: Callable[..., Path], active: str, state: dict[str, Any],
    lines: tuple[tuple[str, str], ...], told: str | None,
) -> None:  # fmt: skip
    asked = journalctl(*lines)
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    systemd.put("a.service", active, "x", **state)
    async with systemd.on(bus_daemon.address):
        sensor = SystemdSensor(bus, host.roots)
        one, (units, error, unclear) = await sensor.unit("a.service"), await sensor.read(["a"])
        await bus.close()
    assert ([*units], error, unclear) == ([one], "", {})
    assert one.ended_by == (told or "")
    assert asked.exists() == (told is not None)


async def test_a_unit_that_runs_is_asked_of_nobody(
    host: FakeHost, bus_daemon: BusDaemon, journalctl: Callable[..., Path]
) -> None:
    asked = journalctl(*UP, *DOWN)
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    systemd.put("a.service", "active", "running")
    async with systemd.on(bus_daemon.address):
        assert (await SystemdSensor(bus, host.roots).unit("a.service")).ended_by == ""
        await bus.close()
    assert not asked.exists()


async def test_without_a_journal_a_failed_unit_is_unclear_and_an_inactive_one_unobserved(
    host: FakeHost, bus_daemon: BusDaemon
) -> None:
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    systemd.put("broken.service", "failed", "failed")
    systemd.put("down.service", "inactive", "dead")
    async with systemd.on(bus_daemon.address):
        sensor = SystemdSensor(bus, host.roots)
        units, error, unclear = await sensor.read(["broken", "down"])
        assert await sensor.unit("broken.service") == units[0]
        with pytest.raises(ObservationError, match=r"why down\.service is not running cannot be told"):
            await sensor.unit("down.service")
        await bus.close()
    assert [(unit.name, unit.ended_by) for unit in units] == [("broken.service", "unknown")]
    assert error == ""
    assert unclear == {"down.service": "why down.service is not running cannot be told: the journal is not readable"}


def test_properties_that_an_old_systemd_lacks() -> None:
    unit = unit_from({"Id": "a.service"}, {})
    assert (unit.name, unit.job, unit.result, unit.condition) == ("a.service", 0, "success", True)


async def test_only_what_looks_wrong_is_read(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    systemd.put("good.service", "active", "running")
    systemd.put("bad.service", "failed", "failed", typed={"Result": ("s", "signal"), "ExecMainCode": ("i", 2)})
    systemd.put("other.service", "failed", "failed")
    async with systemd.on(bus_daemon.address):
        units, error, unclear = await SystemdSensor(bus, host.roots).read(["good", "bad"])
        unit = await SystemdSensor(bus, host.roots).unit("bad.service")
        await bus.close()
    assert ([unit.name for unit in units], error, unclear) == (["bad.service", "other.service"], "", {})
    assert (unit.active, unit.result, unit.main_code, unit.invocation) == ("failed", "signal", 2, "01" * 16)


async def test_a_watched_unit_that_does_not_exist_is_told(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    async with systemd.on(bus_daemon.address):
        units, error, unclear = await SystemdSensor(bus, host.roots).read(["ghost", "../x", "a@"])
        await bus.close()
    assert ([(unit.name, unit.load) for unit in units], error) == ([("ghost.service", "not-found")], "")
    why = "not the name of a service, socket, timer or mount unit"
    assert unclear == {"ghost.service": "there is no such unit", "../x": why, "a@": why}


async def test_a_thousand_failed_units_are_one_trouble(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    for number in range(200):
        systemd.put(f"u{number}.service", "failed", "failed")
    async with systemd.on(bus_daemon.address):
        units, error, unclear = await SystemdSensor(bus, host.roots).read([])
        await bus.close()
    assert (len(units), error, unclear) == (64, "", {})


async def test_without_a_bus_a_unit_is_unobserved(host: FakeHost) -> None:
    with pytest.raises(ObservationError, match="D-Bus is not available"):
        await SystemdSensor(no_bus(), host.roots).unit("a.service")


async def test_a_bus_without_systemd_is_unobserved(host: FakeHost, bus_daemon: BusDaemon) -> None:
    bus = Bus(bus_daemon.address, clock=Clock())
    units, error, unclear = await SystemdSensor(bus, host.roots).read([])
    assert (units, bool(error), unclear) == ((), True, {})
    with pytest.raises(ObservationError):
        await SystemdSensor(bus, host.roots).unit("a.service")
    await bus.close()
