"""Seventeen bugs of peers, each as a test that our own engine, detector, limits or daemon could fail.

Where a bug concerns what we do not have, the nearest thing of ours that could have it is tested; the docstring says
so. The world is files, a real dbus-daemon and real sockets; time is virtual, except under the daemon.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, Message, new_method_return

from luminous_nix.self_healing.act.steps import EndProcess, RunProgram, Step, UnitJob, WriteFile
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.config import Loaded, Settings
from luminous_nix.self_healing.daemon import Daemon
from luminous_nix.self_healing.decide.limits import HOUR_S, MINUTE_S, Limits
from luminous_nix.self_healing.decide.policy import Mode, Policy, Rule
from luminous_nix.self_healing.decide.resolver import SimpleResolver
from luminous_nix.self_healing.desk import Desk
from luminous_nix.self_healing.healing_engine import SimplifiedHealingEngine
from luminous_nix.self_healing.models import (
    Action,
    ActionFailed,
    ExecutionMode,
    HealingResult,
    Issue,
    IssueType,
    Status,
    UnitState,
    Verdict,
)
from luminous_nix.self_healing.observe.detector import SimpleDetector
from luminous_nix.self_healing.observe.nixos import rollback_mark
from luminous_nix.self_healing.steer import status_lines
from luminous_nix.self_healing.store import Store
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, FakeHost, no_bus
from tests.unit.test_engine import Answering, Scene, TwoRungs, relief, trouble
from tests.unit.test_operations_nixos import nixos, path
from tests.unit.worlds import NOW, lock

pytestmark = pytest.mark.anyio
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes files of other users")
S = 1_000_000
START = UnitJob("StartUnit", "nginx.service")


# -- units on a bus --------------------------------------------------------------------------------------------


def down(systemd: Systemd, name: str = "nginx.service", *, since_s: float = 5, **unit: Any) -> None:
    """The unit failed: its main process went first, so nobody stopped it."""
    at = int(since_s * S)
    times = {"InactiveExitTimestampMonotonic": ("t", 1 * S), "ActiveExitTimestampMonotonic": ("t", at),
             "InactiveEnterTimestampMonotonic": ("t", at)}  # fmt: skip
    typed = {"Result": ("s", "exit-code"), "ExecMainExitTimestampMonotonic": ("t", at - 1)}
    systemd.put(name, "failed", "failed", typed=typed | unit.pop("typed", {}), **(times | unit))


def up(systemd: Systemd, name: str = "nginx.service") -> None:
    systemd.put(name, "active", "running", InvocationID=("ay", os.urandom(16)))


Effect = Callable[[Systemd, Step], None]


def starts(systemd: Systemd, step: Step) -> None:
    """Every start succeeds."""
    if isinstance(step, UnitJob) and step.method == "StartUnit":
        up(systemd, step.unit)


@asynccontextmanager
async def plant(
    host: FakeHost, daemon: BusDaemon, effect: Effect = starts, *, monitored: tuple[str, ...] = (), **engine: Any
) -> AsyncIterator[tuple[Systemd, Scene]]:
    """An engine that watches units, and the manager that it asks."""
    systemd, bus = Systemd(), Bus(daemon.address, clock=Clock())
    async with systemd.on(daemon.address):
        yield systemd, Scene(host, lambda step: effect(systemd, step), checks=("services",), bus=bus,
                             monitored=monitored, **engine)  # fmt: skip
        await bus.close()


def unreadable(host: FakeHost) -> None:
    """What the kernel says of the memory makes no sense."""
    host.write(host.roots.proc / "meminfo", "junk")


def told(results: Iterable[HealingResult]) -> list[tuple[str, Verdict]]:
    return [(result.issue.component, result.verdict) for result in results]


# -- levels by hand ----------------------------------------------------------------------------------------------


class Dial:
    """A sensor that reads what the test sets, or cannot."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.problem: Exception | None = None

    def read(self, values: dict[str, float]) -> None:
        if self.problem:
            raise self.problem
        values.update(self.values)


def dialled(host: FakeHost, check: str) -> tuple[Dial, SimplifiedHealingEngine]:
    """An engine that sees one check, by hand."""
    dial, scene = Dial(), Scene(host)
    detector = SimpleDetector(roots=host.roots, bus=no_bus(), enabled_checks=(check,), sensors=[(check, dial)])
    parts: dict[str, Any] = {"clock": scene.clock, "sleep": scene.clock.sleep, "executor": scene.engine.executor}
    return dial, SimplifiedHealingEngine(detector=detector, **parts)


# -- the daemon ----------------------------------------------------------------------------------------------------


class Manager(Systemd):
    """Systemd that also tells its own state, and carries starts out."""

    def _answer(self, message: Message) -> Message:
        if message.header.fields[HeaderFields.member] == "Get":
            return new_method_return(message, "v", (("s", "running"),))
        if message.header.fields[HeaderFields.member] == "StartUnit":
            up(self, message.body[0])
        return super()._answer(message)


async def eventually(happened: Callable[[], bool], within: float = 10.0) -> None:
    async with asyncio.timeout(within):
        while not happened():  # noqa: ASYNC110  what another program does sets no event
            await asyncio.sleep(0.01)


class Supervisor:
    """What the daemon tells the service manager. It is always listened to: a full queue would hold the sender."""

    def __init__(self, heard: socket.socket) -> None:
        self._heard = heard
        self._new = 0
        self.words: list[str] = []

    def hear(self) -> None:
        self.words.append(self._heard.recv(4096).decode())

    def listen(self) -> list[str]:
        """Everything told since the last call."""
        fresh = self.words[self._new :]
        self._new += len(fresh)
        return fresh

    async def until(self, words: str, within: float = 10.0) -> None:
        await eventually(lambda: any(words in told for told in self.listen()), within)


@contextmanager
def surroundings(tmp_path: Path, bus: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Supervisor]:
    """The environment that a service manager gives the daemon, with a bus of ours."""
    given = {"DBUS_SYSTEM_BUS_ADDRESS": bus, "STATE_DIRECTORY": f"{tmp_path}/state",
             "RUNTIME_DIRECTORY": f"{tmp_path}/run", "NOTIFY_SOCKET": f"{tmp_path}/notify"}  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(given["NOTIFY_SOCKET"])
        supervisor = Supervisor(heard)
        asyncio.get_running_loop().add_reader(heard, supervisor.hear)
        yield supervisor
        asyncio.get_running_loop().remove_reader(heard)


async def asked(place: Path, question: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_unix_connection(place)
    writer.write(question)
    answer: dict[str, Any] = json.loads(await reader.readline())
    writer.close()
    return answer


@asynccontextmanager
async def at_work(*checks: str) -> AsyncIterator[Daemon]:
    """The daemon, running in this loop. It watches nginx, and may act through the bus only."""
    settings = Settings(interval=0.05, mode=ExecutionMode.DEVELOPMENT, enabled_checks=checks or ("services",),
                        monitored_units=("nginx",), policy=Policy(boot_grace_s=0.0, resume_grace_s=0.0))  # fmt: skip
    daemon = Daemon(Loaded(settings, {}), lambda: Loaded(settings, {}))
    task = asyncio.create_task(daemon.run())
    try:
        yield daemon
    finally:
        task.cancel()
        await task


# -- 1 to 5: what is seen, and for how long it counts ------------------------------------------------------------


async def test_bug_01_could_not_observe_is_not_down(host: FakeHost, bus_daemon: BusDaemon) -> None:
    """NVSentinel ADR-050, PR #1380: what could not be asked was taken for broken, and remediated."""
    host.memory(50.0)
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    scene = Scene(host, checks=("memory", "services"), bus=bus, monitored=("nginx",))
    async with systemd.on(bus_daemon.address):
        up(systemd)
        assert await scene.cycle() == []
    unreadable(host)  # and systemd does not answer any more
    for _ in range(5):
        assert await scene.cycle() == []
    assert [sensor.name for sensor in scene.engine.last.sensors if sensor.ok] == []
    for asked in (trouble("nginx", IssueType.SERVICE), trouble()):  # not even when a person says it is down
        result = await scene.engine.heal_issue(asked)
        assert result.verdict is Verdict.REFUSED
    assert scene.runner.steps == []
    await bus.close()


async def test_bug_01_could_not_observe_is_not_recovered_either(host: FakeHost, bus_daemon: BusDaemon) -> None:
    """NVSentinel ADR-050, PR #1380: nor is it up. What was open stays open, and an act that cannot be measured is no
    success."""
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    scene = Scene(host, checks=("services",), bus=bus, monitored=("nginx",))
    async with systemd.on(bus_daemon.address):
        down(systemd)
        await scene.engine.look()
        assert len(scene.engine.incidents.open) == 1
    for _ in range(6):
        await scene.engine.look()
        assert len(scene.engine.incidents.open) == 1
    async with systemd.on(bus_daemon.address):
        up(systemd)
        await scene.engine.look()
        assert scene.engine.incidents.open == []
    await bus.close()
    host.memory(97.0)
    scene = Scene(host, lambda _: unreadable(host))
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, result.success) == (Verdict.FAILED, False)
    assert "memory cannot be observed" in str(result.error)


async def test_bug_02_the_start_state_is_unknown_not_healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NPD #429: conditions were published as healthy before the first check had run."""
    with surroundings(tmp_path, "unix:path=/nonexistent/bus", monkeypatch) as supervisor:
        async with at_work():
            await supervisor.until("not observed: 1")
        assert supervisor.words[0] == "READY=1\nSTATUS=first look"
        assert not any("all is well" in words for words in supervisor.words)


async def test_bug_02_no_reading_is_unknown_and_one_is_not_enough(host: FakeHost) -> None:
    """NPD #429: ours, for levels. Without a first figure there is no verdict, and a first figure alone is no fact."""
    dial, engine = dialled(host, "memory")
    dial.problem = OSError(5, "Input/output error")
    assert engine.get_metrics()["last_check"] is None
    await engine.look()
    assert [(one.name, one.status, one.value) for one in engine.detector.readings(engine.last)] == [
        ("memory", Status.UNKNOWN, None)
    ]
    host.memory(97.0)
    scene = Scene(host, relief(host))
    (first,) = await scene.engine.detect_and_heal()
    assert (first.verdict, scene.runner.steps) == (Verdict.REFUSED, [])
    assert "1 of the last five looks show it" in str(first.error)


LEVELS = ["cpu", "memory", "swap", "load", "disk:/srv", "inodes:/srv", "pressure:io:full"]


@pytest.mark.parametrize("reading", LEVELS)
async def test_bug_03_every_level_can_clear(host: FakeHost, reading: str) -> None:
    """NPD #215: a condition that was set once stayed set until the daemon was restarted."""
    kind = reading.partition(":")[0]
    dial, engine = dialled(host, "disk" if kind == "inodes" else kind)
    dial.values = {reading: 99.0}
    await engine.look()
    (incident,) = engine.incidents.open
    assert incident.issue.metric_value == 99.0
    dial.values = {reading: 1.0}
    await engine.look()
    assert engine.incidents.open == []
    dial.values = {reading: 99.0}
    await engine.look()
    assert len(engine.incidents.open) == 1


async def test_bug_03_one_sick_filesystem_among_many_can_clear_in_any_order(host: FakeHost) -> None:
    """NPD #215: the fullest filesystem is called `disk`, so that names change hands while incidents are open."""
    dial, engine = dialled(host, "disk")
    for one, other in ((99.0, 95.0), (94.0, 95.0), (1.0, 99.0), (99.0, 1.0), (1.0, 1.0)):
        dial.values = {"disk:/a": one, "disk:/b": other}
        await engine.look()
    assert engine.incidents.open == []


async def test_bug_03_a_condition_clears_when_nothing_can_show_it_any_more(host: FakeHost) -> None:
    """NPD #215: set, and nothing is left that could clear it: its filesystem is gone, or its threshold is another."""
    dial, engine = dialled(host, "disk")
    dial.values = {"disk:/": 10.0, "disk:/usb": 99.0}
    await engine.look()
    assert len(engine.incidents.open) == 1
    dial.values = {"disk:/": 10.0}
    await engine.look()
    assert engine.incidents.open == []
    dial, engine = dialled(host, "memory")
    dial.values = {"memory": 80.0}
    engine.set_threshold("memory", 70)
    await engine.look()
    assert len(engine.incidents.open) == 1
    engine.set_threshold("memory", 95)
    await engine.look()
    assert engine.incidents.open == []


async def test_bug_03_a_condition_clears_beside_a_sensor_that_never_works(host: FakeHost) -> None:
    """NPD #215: one dead sensor (a kernel without it, a watched unit that there is not) holds no other condition."""
    dial, dead, scene = Dial(), Dial(), Scene(host)
    dead.problem = FileNotFoundError(2, "No such file or directory")
    sensors = [("pressure", dial), ("load", dead)]
    detector = SimpleDetector(roots=host.roots, bus=no_bus(), enabled_checks=("pressure", "load"), sensors=sensors)
    parts: dict[str, Any] = {"clock": scene.clock, "sleep": scene.clock.sleep, "executor": scene.engine.executor}
    engine = SimplifiedHealingEngine(detector=detector, **parts)
    for value, open_now in ((99.0, 1), (0.0, 0)):
        dial.values = {"pressure:io:full": value}
        await engine.look()
        assert len(engine.incidents.open) == open_now


UNITS: dict[str, Callable[[Systemd], None]] = {
    "unit_failed": down,
    "crash_loop": lambda systemd: down(systemd, typed={"NRestarts": ("u", 5)}, StartLimitBurst=("u", 5)),
    "one_off": lambda systemd: down(systemd, Transient=("b", True)),
    "job_failed": lambda systemd: down(
        systemd, typed={"Type": ("s", "oneshot")}, TriggeredBy=("as", ["nginx.timer"])
    ),
    "unclear": lambda systemd: down(systemd, typed={"ExecMainExitTimestampMonotonic": ("t", 0)}),
    "unit_inactive": lambda systemd: systemd.put(
        "nginx.service", "inactive", "dead", typed={"ExecMainExitTimestampMonotonic": ("t", 4 * S)},
        InactiveExitTimestampMonotonic=("t", 1 * S), ActiveExitTimestampMonotonic=("t", 5 * S),
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNITS)
async def test_bug_03_every_kind_of_unit_trouble_can_clear(host: FakeHost, bus_daemon: BusDaemon, kind: str) -> None:
    """NPD #215: the same for units, whatever was wrong with them."""
    async with plant(host, bus_daemon, monitored=("nginx",)) as (systemd, scene):
        UNITS[kind](systemd)
        _, (issue,) = await scene.engine.look()
        assert issue.kind == kind
        up(systemd)
        await scene.engine.look()
        assert scene.engine.incidents.open == []


async def test_bug_03_what_is_told_of_the_whole_host_can_clear(host: FakeHost, bus_daemon: BusDaemon) -> None:
    """NPD #215: a shared cause is a condition, too."""
    async with plant(host, bus_daemon) as (systemd, scene):
        names = [f"u{number}.service" for number in range(4)]
        for name in names:
            down(systemd, name)
        await scene.engine.look()
        kinds = {incident.issue.kind for incident in scene.engine.incidents.open}
        assert "shared_cause" in kinds
        for name in names:
            up(systemd, name)
        await scene.engine.look()
        assert scene.engine.incidents.open == []


async def test_bug_03_a_low_health_can_clear(host: FakeHost) -> None:
    """NPD #215: the sum of all the others is a condition, too."""
    scene = Scene(host, checks=("memory", "swap", "load"))
    host.memory(99.9, swap_percent=99.9)
    host.load(90.0)
    await scene.engine.look()
    assert "health" in {incident.issue.kind for incident in scene.engine.incidents.open}
    host.memory(10.0)
    host.load(0.1)
    await scene.engine.look()
    assert scene.engine.incidents.open == []


async def test_bug_04_a_dead_sensor_is_told_while_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bus_daemon: BusDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    """NPD #1168: a monitor's process died, and its last state went on to be reported for days."""
    with surroundings(tmp_path, bus_daemon.address, monkeypatch) as supervisor:
        async with at_work("services", "memory"):
            async with Manager().on(bus_daemon.address):
                await supervisor.until("not observed: 1")  # nginx is no unit of this manager
            bus_daemon.stop()
            await eventually(lambda: any("not observed: services" in line for line in caplog.messages))
            supervisor.listen()
            await supervisor.until("not observed: 1")
            assert not any("all is well" in words for words in supervisor.words)


class Stuck:
    """A sensor of units that never answers, or is a bug."""

    def __init__(self, problem: Exception | None = None) -> None:
        self.problem = problem
        self.asked = asyncio.Event()

    async def read(self, watched: Iterable[str]) -> tuple[tuple[UnitState, ...], str, dict[str, str]]:
        del watched
        self.asked.set()
        if self.problem:
            raise self.problem
        return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]

    async def unit(self, name: str) -> UnitState:
        return UnitState(name)


async def test_bug_04_a_daemon_that_lives_and_does_not_progress_is_no_longer_vouched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """basnijholt/dotfiles #65: comin was active (running) for weeks and deployed nothing. Ours: a loop that hangs
    gives the watchdog no sign of life, although the process and its event loop live."""
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    with surroundings(tmp_path, "unix:path=/nonexistent/bus", monkeypatch) as supervisor:
        async with at_work() as daemon:
            stuck = Stuck()
            daemon.engine.detector.units = stuck
            await supervisor.until("WATCHDOG=1")
            await asyncio.wait_for(stuck.asked.wait(), 10)
            daemon._turned_at -= 86400.0  # the last turn was a day ago
            await asyncio.sleep(0.05)
            supervisor.listen()
            await asyncio.sleep(0.2)
            assert not [words for words in supervisor.listen() if "WATCHDOG=1" in words]


async def test_bug_04_a_detector_that_breaks_ends_the_daemon_loudly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NPD #1168: an error of the detector itself is not swallowed; the daemon ends with it, for systemd to see."""
    with surroundings(tmp_path, "unix:path=/nonexistent/bus", monkeypatch):
        settings = Settings(interval=0.05, enabled_checks=("services",))
        daemon = Daemon(Loaded(settings, {}), lambda: Loaded(settings, {}))
        daemon.engine.detector.units = Stuck(RuntimeError("a bug of the sensor"))
        with pytest.raises(RuntimeError, match="a bug of the sensor"):
            await asyncio.wait_for(daemon.run(), 10)


async def test_bug_05_samples_are_counted_anew_after_a_heal(host: FakeHost) -> None:
    """Monit #546: counters went on after the action, so that the next single bad reading acted again."""
    host.memory(97.0)
    scene = Scene(host, relief(host))
    assert told(await scene.cycle()) == [("memory", Verdict.HEALED)]
    for _ in range(2):
        await scene.engine.look()
    scene.clock.now += HOUR_S  # no cooldown, and no grace is in the way
    host.memory(97.0)
    for seen in (1, 2):
        (again,) = await scene.engine.detect_and_heal()
        assert f"samples: {seen} of the last five looks" in str(again.error)
    assert len(scene.runner.steps) == 1


@pytest.mark.parametrize("level", [40.0, 80.0], ids=["far below", "between exit and threshold"])
async def test_bug_05_looks_from_before_the_act_prove_nothing_after_it(host: FakeHost, level: float) -> None:
    """Monit #546: also where the condition has not closed in between, and looks are far apart."""
    host.memory(97.0)
    scene = Scene(host, lambda _: host.memory(level))
    assert told(await scene.cycle()) == [("memory", Verdict.HEALED)]
    scene.engine.interval = HOUR_S
    scene.clock.now += 2 * HOUR_S
    host.memory(97.0)
    (again,) = await scene.engine.detect_and_heal()
    assert "samples: 1 of the last five looks" in str(again.error)


async def test_bug_05_what_was_just_started_has_a_grace(host: FakeHost, bus_daemon: BusDaemon) -> None:
    """Monit #787: the check ran while the service was still starting, and restarted it for ever."""

    def slowly(systemd: Systemd, _: Step) -> None:
        systemd.put("nginx.service", "activating", "start", Job=("(uo)", (7, "/j")))

    async with plant(host, bus_daemon, slowly, monitored=("nginx",)) as (systemd, scene):
        down(systemd)
        assert told(await scene.cycle()) == [("nginx", Verdict.NO_EFFECT)]  # it started for longer than we wait
        for _ in range(30):
            scene.clock.now += MINUTE_S
            assert await scene.cycle() == []
        result = await scene.engine.heal_issue(trouble("nginx", IssueType.SERVICE))
        assert result.verdict is Verdict.REFUSED
        assert scene.runner.steps == [START]


# -- 6 to 9: when to go on, and when not to begin --------------------------------------------------------------------


async def test_bug_06_it_escalates_when_the_trouble_stays_although_the_act_went_well(host: FakeHost) -> None:
    """gluetun-monitor #27: the restart's API call succeeded, nothing was fixed, and the next step never came."""
    host.memory(97.0)
    knob = host.write(host.roots.proc / "sys/vm/swappiness", "60")

    def write(step: Step) -> None:
        if isinstance(step, WriteFile):
            step.path.write_text(step.text, "ascii")

    scene = Scene(host, write, resolver=TwoRungs())
    result = await scene.engine.heal_issue(trouble())
    assert result.actions_taken == ["clear_system_cache", "adjust_swappiness"]
    assert result.verdict is Verdict.NO_EFFECT
    assert knob.read_text("ascii").strip() == "60"  # and what did not help is not left behind


async def test_bug_06_it_does_not_escalate_when_only_the_call_failed(host: FakeHost) -> None:
    """gluetun-monitor #27, the other half: an error of the call says nothing of the trouble."""
    host.memory(97.0)
    host.write(host.roots.proc / "sys/vm/swappiness", "60")
    scene = Scene(host, problem=ActionFailed("no answer"), resolver=TwoRungs())
    assert (await scene.engine.heal_issue(trouble())).actions_taken == ["clear_system_cache"]


class Ladder(SimpleResolver):
    """One disruptive rung above a gentle one, and both are allowed."""

    def get_ladder(self, issue: Issue) -> tuple[Action, ...]:
        del issue
        return (Action("clear_system_cache"), Action("kill_process", {"pid": 4242, "start_time": 100}))


KILLS = Policy(rules=(Rule(Mode.AUTO, action="kill_process"),))


def victim(host: FakeHost, pid: int = 4242) -> None:
    os.chown(host.process(pid), 65534, 65534)


@as_root
@pytest.mark.parametrize("back_after", [4.0, 14.0])
async def test_bug_07_no_second_kill_while_the_first_ones_memory_comes_back(
    host: FakeHost, back_after: float
) -> None:
    """earlyoom #309: a killed process takes time to give its memory back, and meanwhile the next one was killed."""
    host.memory(97.0)
    victim(host)
    victim(host, 4343)
    clock = Clock()

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        if scene.runner.steps and clock.now >= 1000 + back_after:
            host.memory(40.0)

    kill = {"action": "kill_process", "parameters": {"pid": 4242, "start_time": 100}}
    hasty = Limits(cooldown_s=0.0, lasting_s=0.0)  # only the waiting itself is in the way
    scene = Scene(host, resolver=Answering(kill), policy=KILLS, clock=clock, sleep=sleep, limits=hasty)
    await scene.engine.look()
    await scene.engine.look()
    ours = asyncio.create_task(scene.engine.detect_and_heal())
    await asyncio.sleep(0)
    scene.engine.resolver = Answering(kill | {"parameters": {"pid": 4343, "start_time": 100}})
    theirs = await scene.engine.heal_issue(trouble())  # another one, at the same moment
    assert (told(await ours), theirs.verdict) == ([("memory", Verdict.HEALED)], Verdict.RECOVERED_BY_ITSELF)
    assert len([step for step in scene.runner.steps if isinstance(step, EndProcess)]) == 1


@as_root
async def test_bug_07_after_a_kill_that_freed_nothing_the_next_one_rests(host: FakeHost) -> None:
    """earlyoom #309: without any effect, too, the next victim is not taken at once."""
    host.memory(97.0)
    for pid in (4242, 4343):
        victim(host, pid)
    for pid in (4242, 4343):
        kill = {"action": "kill_process", "parameters": {"pid": pid, "start_time": 100}}
        if pid == 4242:
            scene = Scene(host, resolver=Answering(kill), policy=KILLS)
        scene.engine.resolver = Answering(kill)
        (result,) = await scene.cycle()
    assert result.verdict is Verdict.REFUSED
    assert "cooldown" in str(result.error)
    assert scene.runner.steps == [EndProcess(4242, 100)]


@as_root
async def test_bug_07_the_gentler_rung_has_its_whole_deadline_before_the_kill(host: FakeHost) -> None:
    """earlyoom #309: memory that comes back late, within the first rung's deadline, needs no second rung."""
    host.memory(97.0)
    victim(host)
    clock = Clock()

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        if clock.now >= 1004.5:
            host.memory(40.0)

    scene = Scene(host, resolver=Ladder(), policy=KILLS, clock=clock, sleep=sleep)
    await scene.engine.look()
    await scene.engine.look()
    (result,) = await scene.engine.detect_and_heal()
    assert (result.verdict, result.actions_taken) == (Verdict.HEALED, ["clear_system_cache"])


WILLS: dict[str, Callable[[Systemd], None]] = {
    "stopped": lambda systemd: systemd.put(
        "nginx.service", "inactive", "dead", typed={"ExecMainExitTimestampMonotonic": ("t", 6 * S)},
        InactiveExitTimestampMonotonic=("t", 1 * S), ActiveExitTimestampMonotonic=("t", 5 * S),
    ),
    "stopped, and its end was ugly": lambda systemd: down(
        systemd, typed={"ExecMainExitTimestampMonotonic": ("t", 6 * S)}
    ),
    "disabled": lambda systemd: systemd.put(
        "nginx.service", "inactive", "dead", typed={"ExecMainExitTimestampMonotonic": ("t", 4 * S)},
        UnitFileState=("s", "disabled"), InactiveExitTimestampMonotonic=("t", 1 * S),
        ActiveExitTimestampMonotonic=("t", 5 * S),
    ),
    "masked": lambda systemd: down(systemd, LoadState=("s", "masked")),
    "masked at run time": lambda systemd: down(systemd, UnitFileState=("s", "masked-runtime")),
    "a rival runs": lambda systemd: down(systemd, Conflicts=("as", ["rival.service"])),
    "a rival that names it runs": lambda systemd: down(systemd, ConflictedBy=("as", ["rival.service"])),
}  # fmt: skip


@pytest.mark.parametrize("will", WILLS)
async def test_bug_08_what_is_down_by_somebodys_will_stays_down(
    host: FakeHost, bus_daemon: BusDaemon, will: str
) -> None:
    """HARDN PR #181: monitor and systemd in a loop: each start of one unit stopped its rival, which the monitor
    started again. Also what an administrator stopped, disabled or masked."""
    async with plant(host, bus_daemon, monitored=("nginx", "rival")) as (systemd, scene):
        up(systemd, "rival.service")
        WILLS[will](systemd)
        for _ in range(5):
            await scene.cycle()
            scene.clock.now += 2 * HOUR_S
        asked = await scene.engine.heal_issue(trouble("nginx", IssueType.SERVICE))
        assert asked.verdict is Verdict.REFUSED
        assert scene.runner.steps == []


async def test_bug_09_a_unit_between_two_restarts_is_not_failed(host: FakeHost, bus_daemon: BusDaemon) -> None:
    """keystone PR #501: right after a switch a unit in auto-restart was counted as failed, and rolled back for."""
    async with plant(host, bus_daemon, monitored=("nginx",)) as (systemd, scene):
        systemd.put("nginx.service", "activating", "auto-restart", typed={"Result": ("s", "exit-code")})
        assert await scene.cycle() == []
        result = await scene.engine.heal_issue(trouble("nginx", IssueType.SERVICE))
        assert "being restarted by systemd itself" in str(result.error)
        # Neither is it a harm that an act elsewhere did.
        down(systemd, "other.service")
        assert told(await scene.cycle()) == [("other", Verdict.HEALED)]
        assert scene.runner.steps == [UnitJob("StartUnit", "other.service")]


async def test_bug_09_nothing_is_judged_failed_during_a_switch(host: FakeHost, bus_daemon: BusDaemon) -> None:
    """keystone PR #501: while the switch itself still stops and starts units, nothing is started beside it."""
    async with plant(host, bus_daemon) as (systemd, scene):
        down(systemd)
        lock(host, held=True)
        assert told(await scene.cycle()) == [("nginx", Verdict.REFUSED)]
        assert scene.runner.steps == []
        lock(host, held=False)
        assert told(await scene.cycle()) == [("nginx", Verdict.HEALED)]


# -- 10 to 14: brakes ----------------------------------------------------------------------------------------------


async def tripped(scene: Scene, times: int = 4) -> None:
    """Heals without an effect, until a person is needed."""
    scene.host.memory(97.0)
    for number in range(times):
        scene.clock.now += 2 * HOUR_S if number else 0.0
        assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.NO_EFFECT


def kept(host: FakeHost, clock: Clock, boot: str = "boot-1") -> Store:
    return Store(host.root / "state/state.db", clock=clock, boot_id=boot)


async def test_bug_10_a_tripped_breaker_is_told_until_a_person_resets_it(host: FakeHost) -> None:
    """cantinarr PR #638: a tripped breaker was one notice that somebody closed; it stayed tripped, dark, for 18
    days."""
    clock = Clock()
    scene = Scene(host, clock=clock, sleep=clock.sleep, store=kept(host, clock))
    scene.clock = clock
    await tripped(scene)
    desk = Desk(scene.engine)

    async def loud() -> bool:
        found = await desk.ask("status", {})
        assert ("breaker" in str(status_lines(found))) == bool(found["breakers"])
        return bool(found["breakers"])

    assert await loud()
    for verb, arguments in (("silence", {"pattern": "memory", "seconds": 3600.0}), ("pause", {}), ("resume", {})):
        await desk.ask(verb, arguments)
        assert await loud()
    for hours in (4, 25, 18 * 24):  # any rest is over, the day in which it tripped, and eighteen days
        clock.now += hours * HOUR_S
        assert await loud()
    scene.engine.store.close()
    again = Scene(host, relief(host), clock=clock, sleep=clock.sleep, store=kept(host, clock))
    desk = Desk(again.engine)
    assert await loud()  # a restart is no word of a person
    refused = await again.engine.heal_issue(trouble())
    assert "a person is needed" in str(refused.error)
    await desk.ask("resume", {"breakers": True})
    assert not await loud()
    assert (await again.engine.heal_issue(trouble())).verdict is Verdict.HEALED
    again.engine.store.close()


async def test_bug_10_a_breaker_of_a_slow_loop_is_told_while_the_trouble_is_there(host: FakeHost) -> None:
    """cantinarr PR #638: each heal worked, so nothing looks wrong; what refuses the next one must show."""
    host.memory(97.0)
    scene = Scene(host, relief(host))
    for _ in range(3):
        host.memory(97.0)
        (result,) = await scene.cycle()
        await scene.engine.look()
        scene.clock.now += 20 * MINUTE_S
    assert "breaker" in str(result.error)
    assert (await Desk(scene.engine).ask("status", {}))["breakers"]


@pytest.mark.parametrize("every", [20 * MINUTE_S, 50 * MINUTE_S])
async def test_bug_11_a_slow_loop_trips_the_breaker_also_over_restarts(host: FakeHost, every: float) -> None:
    """hermes PR #82039: the breaker counted failures within minutes and in memory; a loop slower than that, with a
    restart in between, went on for ever."""
    clock, verdicts = Clock(), []
    for number in range(3):
        clock.now += every
        store = kept(host, clock)
        scene = Scene(host, relief(host), clock=clock, sleep=clock.sleep, store=store)
        host.memory(97.0)
        (result,) = await scene.cycle()
        verdicts.append(result.verdict)
        store.close()
        assert number < 2 or "breaker" in str(result.error)
    assert verdicts == [Verdict.HEALED, Verdict.HEALED, Verdict.REFUSED]


async def test_bug_12_what_was_seen_before_the_breaker_closed_is_not_acted_upon(host: FakeHost) -> None:
    """NVSentinel #450: events that had queued up while the breaker was open were all acted upon when it closed. Ours:
    an issue of then is looked at again, whoever brings it."""
    scene = Scene(host)
    await tripped(scene)
    scene.clock.now += 2 * HOUR_S
    stale = [result.issue for result in await scene.cycle()]
    assert [issue.component for issue in stale] == ["memory"]
    host.memory(40.0)
    before = len(scene.runner.steps)
    await Desk(scene.engine).ask("resume", {"breakers": True})
    results = await scene.engine.heal_issues_batch(stale * 3)
    assert {result.verdict for result in results} == {Verdict.RECOVERED_BY_ITSELF}
    assert await scene.cycle() == []
    unreadable(host)  # nor what cannot be looked at again
    assert (await scene.engine.heal_issue(stale[0])).verdict is Verdict.REFUSED
    assert len(scene.runner.steps) == before


async def test_bug_12_a_persons_word_for_what_is_over_does_nothing(host: FakeHost) -> None:
    """NVSentinel #450: a question that waited is a queued event, too."""
    host.memory(97.0)
    scene = Scene(host, resolver=Answering({"action": "free_memory"}))
    await scene.cycle()
    (waiting,) = (await Desk(scene.engine).ask("status", {}))["waiting"]
    host.memory(40.0)
    answer = await Desk(scene.engine).ask("confirm", {"id": waiting["id"]})
    assert answer["result"]["verdict"] == "recovered_by_itself"
    assert scene.runner.steps == []


async def test_bug_13_what_fails_together_is_a_matter_of_the_platform(host: FakeHost, bus_daemon: BusDaemon) -> None:
    """qf-studio/pilot #4780: one outage of the platform became a storm of restarts, one for each victim."""
    async with plant(host, bus_daemon) as (systemd, scene):
        names = ["a", "b", "c", "d"]
        for number, name in enumerate(names):
            down(systemd, f"{name}.service", since_s=100 + 60 * number)
        for _ in range(4):
            results = await scene.cycle()
            assert {result.verdict for result in results} == {Verdict.REFUSED}
            shared = [result.issue for result in results if result.issue.kind == "shared_cause"]
            assert [issue.affected_components for issue in shared] == [tuple(names)]
            scene.clock.now += MINUTE_S
        assert scene.runner.steps == []


async def test_bug_13_what_fails_at_different_times_is_not(host: FakeHost, bus_daemon: BusDaemon) -> None:
    """qf-studio/pilot #4780, the other half: three failures of three days are healed."""
    async with plant(host, bus_daemon) as (systemd, scene):
        for number, name in enumerate("abc"):
            down(systemd, f"{name}.service", since_s=100 + 3600 * number)
        assert {verdict for _, verdict in told(await scene.cycle())} == {Verdict.HEALED}


LOOPS: dict[str, tuple[Effect, float]] = {
    "it fails at once": (lambda systemd, _: down(systemd), 0.0),
    "it runs for a minute": (starts, MINUTE_S),
    "it runs for half an hour": (starts, 30 * MINUTE_S),
}


@pytest.mark.parametrize("lives", [1, 6, 24], ids=["one program", "six programs", "one an hour"])
@pytest.mark.parametrize("loop", LOOPS)
async def test_bug_14_a_unit_that_fails_for_ever_is_not_started_for_ever(
    host: FakeHost, bus_daemon: BusDaemon, loop: str, lives: int
) -> None:
    """Containarium PR #1233: StartLimitIntervalSec=0 and a flat delay: 1655 restarts in 4 h took the alerting down;
    hermes PR #64433: 163 k in 13 days. Ours: a whole day, a look every five minutes, and the daemon itself starts
    anew now and then. The starts are few, and so are the records that tell of them."""
    effect, lasts = LOOPS[loop]
    clock, starting = Clock(), [0.0]
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())

    def start(step: Step) -> None:
        starting.append(clock.now)
        effect(systemd, step)

    async with systemd.on(bus_daemon.address):
        down(systemd)
        for _ in range(lives):
            store = kept(host, clock)
            scene = Scene(host, start, checks=("services",), bus=bus, clock=clock, sleep=clock.sleep, store=store)
            for _ in range(288 // lives):
                await scene.engine.detect_and_heal()
                clock.now += 5 * MINUTE_S
                if clock.now - starting[-1] >= lasts:
                    down(systemd)
            records = store.records(number=1000)
            store.close()
        await bus.close()
    assert 1 <= len(starting) - 1 <= 6
    assert len(records) <= 8 + lives  # a program that starts anew tells once more what it refuses


# -- 15 to 17: generations, and who is listening -----------------------------------------------------------------


def deployed(host: FakeHost, number: int) -> None:
    """A new generation is made and current, an hour ago."""
    profiles = host.roots.nix / "var/nix/profiles"
    link = profiles / f"system-{number}-link"
    if not link.is_symlink():
        host.write(Path(path(host, number)) / "init-interface-version", "1\n")
        link.symlink_to(path(host, number))
    os.utime(link, (NOW - HOUR_S, NOW - HOUR_S), follow_symlinks=False)
    for place, leads in ((profiles / "system", link.name), (host.roots.run / "current-system", path(host, number))):
        place.unlink()
        place.symlink_to(leads)


def rollbacks(scene: Scene) -> list[RunProgram]:
    """Each switch to a generation."""
    return [step for step in scene.runner.steps if isinstance(step, RunProgram) and step.command[-1] == "switch"]


def dated(scene: Scene) -> Scene:
    """Generations have dates; so has this scene's world."""
    handler = scene.engine.executor.handler
    handler.world = replace(handler.world, wall=lambda: NOW)
    return scene


ROLLS = Policy(rules=(Rule(Mode.AUTO, action="rollback_generation"), Rule(Mode.AUTO, action="restart_service")))


async def test_bug_15_a_stale_check_does_not_roll_a_fresh_deploy_back(host: FakeHost, bus_daemon: BusDaemon) -> None:
    """olafkfreund #858: a required check that named a unit of yesterday failed for ever, and every deploy was rolled
    back. Ours: whatever is open, also with automatic rollbacks allowed, none of it is an automatic rollback."""
    nixos(host, 10, 11, current=11, good=[10])
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    async with systemd.on(bus_daemon.address):
        checks = ("services", "pressure")
        scene = dated(Scene(host, checks=checks, bus=bus, monitored=("gone", "nginx"), policy=ROLLS))
        host.pressure("cpu", 99.0, 99.0)
        for number in range(4):
            down(systemd, f"u{number}.service", since_s=2)  # since long before the deploy
        for number in (11, 12, 13):
            deployed(host, number)
            for _ in range(3):
                results = await scene.cycle()
                assert {"system", "u0"} <= {result.issue.component for result in results}
                scene.clock.now += HOUR_S
        assert rollbacks(scene) == []
        await bus.close()


async def test_bug_15_one_rollback_that_did_not_help_is_not_repeated_for_the_next_deploy(host: FakeHost) -> None:
    """olafkfreund #858: the check fails whatever runs. Ours: with a resolver that always wants to roll back."""
    nixos(host, 10, 11, current=11, good=[10])
    host.memory(97.0)

    def switch(step: Step) -> None:
        if isinstance(step, WriteFile):
            host.write(step.path, step.text)
            step.path.chmod(0o600)
        if isinstance(step, RunProgram) and "--switch-generation" in step.command:
            deployed(host, int(step.command[-1]))

    resolver = Answering({"action": "rollback_generation", "parameters": {}})
    scene = dated(Scene(host, switch, resolver=resolver, policy=ROLLS))
    for number in range(12, 18):
        await scene.cycle()
        assert len(rollbacks(scene)) == 1
        deployed(host, number)
        scene.clock.now += 3 * HOUR_S


async def test_bug_16_a_rollback_needs_neither_network_nor_new_things(host: FakeHost) -> None:
    """NixOS/nix #12724: a rollback wanted the network, which the broken generation had taken away; #1248: or room on
    the boot partition. Ours: there is no bus, every step is a program of the old generation itself or a switch of
    links, nothing is built, fetched or deleted, and it is tried dry before anything is touched."""
    profiles = nixos(host, 10, 11, current=11, good=[10])
    host.memory(97.0)
    resolver = Answering({"action": "rollback_generation", "parameters": {}})
    scene = dated(Scene(host, resolver=resolver, policy=ROLLS))
    await scene.cycle()
    program = f"{path(host, 10)}/bin/switch-to-configuration"
    first, mark, links, last = scene.runner.steps
    for step, verb in ((first, "dry-activate"), (last, "switch")):
        assert isinstance(step, RunProgram)
        assert step.command[-2:] == (program, verb)
    assert mark == WriteFile(rollback_mark(host.roots), "11 10\n", ours=True)
    assert isinstance(links, RunProgram)
    assert links.command[1:] == ("--profile", str(profiles / "system"), "--switch-generation", "10")


async def test_bug_16_a_rollback_that_cannot_work_leaves_the_profile_as_it_is(host: FakeHost) -> None:
    """#1248: it failed in the middle, with the profile at one generation and the boot entries at another. Ours: what
    the old generation's own dry run refuses is not begun."""
    nixos(host, 10, 11, current=11, good=[10])
    host.memory(97.0)
    resolver = Answering({"action": "rollback_generation", "parameters": {}})
    scene = dated(Scene(host, resolver=resolver, policy=ROLLS, problem=ActionFailed("no room in /boot")))
    (result,) = await scene.cycle()
    assert (result.verdict, len(scene.runner.steps)) == (Verdict.FAILED, 1)


async def test_bug_17_it_heals_with_nobody_at_the_control_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bus_daemon: BusDaemon
) -> None:
    """Glances #2240: actions ran only while a client was connected to the server."""
    systemd = Manager()
    down(systemd)
    with surroundings(tmp_path, bus_daemon.address, monkeypatch) as supervisor:
        async with systemd.on(bus_daemon.address), at_work():
            await supervisor.until("all is well")
    assert [job for job in systemd.jobs if job[0] == "StartUnit"] == [("StartUnit", ("nginx.service", "fail"))]


async def test_bug_17_it_heals_with_clients_that_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bus_daemon: BusDaemon
) -> None:
    """Glances #2240: nor does a client hold it up: one that sends half a line, one that asks and never reads, and as
    many that say nothing as may connect."""
    systemd = Manager()
    up(systemd)
    with surroundings(tmp_path, bus_daemon.address, monkeypatch) as supervisor:
        place = tmp_path / "run/control.sock"
        async with systemd.on(bus_daemon.address), at_work():
            await supervisor.until("all is well")
            hanging = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(40)]
            for client in hanging:
                client.connect(str(place))
                client.setblocking(False)
            hanging[0].send(b'{"schema": 1, "do": ')
            question = json.dumps({"schema": 1, "do": "status"}).encode() + b"\n"
            with suppress(BlockingIOError):
                for _ in range(2000):
                    hanging[1].send(question)
            await asyncio.sleep(0.1)
            down(systemd)
            await eventually(lambda: systemd.unit["nginx.service"]["ActiveState"][1] == "active")
            supervisor.listen()
            await supervisor.until("all is well")
            for client in hanging:
                client.close()
            for _ in range(1000):
                status = await asked(place, question)
                if status["ok"]:
                    break
                await asyncio.sleep(0.01)  # it has not noticed yet that they went
            assert status["result"]["heals_last_hour"] == 1
