"""The helper's arm on a real bus: what it asks of systemd, how it waits, and what it says of how an act ended."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, Message, new_error
from jeepney.io.asyncio import DBusConnection

from luminous_nix.self_healing.act.steps import AskHelper, RunProgram, SetProperties, Step, UnitJob, WriteFile
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.models import ActionFailed, HealingError, NeedsPrivilege
from luminous_nix.self_healing.privileged.runner import ServiceRunner
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, FakeHost, no_bus

pytestmark = pytest.mark.anyio
SWAPPINESS = "luminous-healing-act-swappiness@10.service"
TO_TEN = WriteFile(Path("/proc/sys/vm/swappiness"), "10", power="swappiness@10")
TO_NINE = RunProgram(("/bin/true",), 1.0, power="rollback@9")
ROLLBACK = "luminous-healing-act-rollback@9.service"
DENIED = "org.freedesktop.DBus.Error.AccessDenied"


class Acting(Systemd):
    """Its act units run for so many looks, then they are `end`."""

    def __init__(self, end: str = "inactive", looks: int = 0) -> None:
        super().__init__()
        self.end, self.looks = end, looks
        self.silent: list[str] = []  # the errors that its next looks are answered with
        self.meanwhile: Callable[[str], None] = lambda _: None  # at each call that it answers

    def _answer(self, message: Message) -> Message:
        member = message.header.fields[HeaderFields.member]
        self.meanwhile(member)
        if member == "GetAll" and message.body[0].endswith(".Unit"):
            if self.silent:
                return new_error(message, self.silent.pop(0), "s", ("no answer",))
            self._go_on()
        answer = super()._answer(message)
        if member == "StartUnit" and not self.denied:
            self.put(message.body[0], "activating", "start")
            self._settle()
        return answer

    def _go_on(self) -> None:
        if self.looks:
            self.looks -= 1
            self._settle()

    def _settle(self) -> None:
        """Those that are under way end when no look is left."""
        under_way = [name for name, unit in self.unit.items() if unit["ActiveState"][1] == "activating"]
        for name in under_way if not self.looks else []:
            result = {"Result": ("s", "exit-code"), "ExecMainStatus": ("i", 3)} if self.end == "failed" else {}
            self.put(name, self.end, "dead", typed=result)

    async def _serve(self, connection: DBusConnection) -> None:
        with contextlib.suppress(EOFError, OSError):  # the bus may be taken away
            await super()._serve(connection)


class Bench:
    def __init__(self, host: FakeHost, bus: Bus, sleep: Callable[[float], Any] | None = None) -> None:
        self.clock = Clock()
        self.runner = ServiceRunner(bus, host.roots, clock=self.clock, sleep=sleep or self.clock.sleep)

    async def problem(self, step: Step, kind: type[HealingError]) -> HealingError:
        with pytest.raises(kind) as problem:
            await self.runner.run(step)
        return problem.value


@contextlib.asynccontextmanager
async def bench(
    host: FakeHost, daemon: BusDaemon, systemd: Systemd, sleep: Callable[[float], Any] | None = None
) -> AsyncIterator[Bench]:
    bus = Bus(daemon.address, clock=Clock())
    async with systemd.on(daemon.address):
        yield Bench(host, bus, sleep)
        await bus.close()


def started(systemd: Systemd) -> list[str]:
    return [body[0] for method, body in systemd.jobs if method == "StartUnit"]


# -- which way -----------------------------------------------------------------------------------------------


async def test_a_start_is_a_restart_and_the_rest_goes_as_it_is(host: FakeHost, bus_daemon: BusDaemon) -> None:
    """polkit lets the helper start its own units alone."""
    systemd = Systemd()
    async with bench(host, bus_daemon, systemd) as at:
        for method in ("StartUnit", "RestartUnit", "ReloadUnit", "ResetFailedUnit"):
            await at.runner.run(UnitJob(method, "web.service"))
        await at.runner.run(SetProperties("web.service", (("CPUWeight", "t", 50),)))
    assert systemd.jobs == [
        ("RestartUnit", ("web.service", "fail")), ("RestartUnit", ("web.service", "fail")),
        ("ReloadUnit", ("web.service", "fail")), ("ResetFailedUnit", ("web.service",)),
        ("SetUnitProperties", ("web.service", True, [("CPUWeight", ("t", 50))])),
    ]  # fmt: skip


async def test_freezing_and_thawing_are_acts(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd = Acting()
    async with bench(host, bus_daemon, systemd) as at:
        for method in ("FreezeUnit", "ThawUnit"):
            await at.runner.run(UnitJob(method, "web.service"))
    assert systemd.jobs == [
        ("StartUnit", (f"luminous-healing-act-{what}@web.service.service", "fail")) for what in ("freeze", "thaw")
    ]


@pytest.mark.parametrize(
    "step",
    [WriteFile(Path("/proc/sys/vm/swappiness"), "10"), RunProgram(("/bin/true",), 1.0), AskHelper("x", {}, 1.0)],
    ids=["a file", "a program", "itself"],
)
async def test_what_has_no_way_is_for_a_person(host: FakeHost, bus_daemon: BusDaemon, step: Step) -> None:
    systemd = Acting()
    async with bench(host, bus_daemon, systemd) as at:
        await at.problem(step, NeedsPrivilege)
    assert systemd.jobs == []
    assert not host.roots.proc.joinpath("sys/vm/swappiness").exists()


@pytest.mark.parametrize(
    "instance", ["web.service\n", "web.socket", "a b.service", "../x.service", "", "x" * 250 + ".service"]
)
async def test_an_instance_out_of_shape_starts_nothing(host: FakeHost, bus_daemon: BusDaemon, instance: str) -> None:
    systemd = Acting()
    async with bench(host, bus_daemon, systemd) as at:
        problem = await at.problem(UnitJob("FreezeUnit", instance), ActionFailed)
        assert await at.runner.running() == ""
    assert "is no act unit" in problem.message
    assert systemd.jobs == []


# -- how it ends ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", [0, 1, 6])
async def test_an_act_that_ends_well_is_waited_for(host: FakeHost, bus_daemon: BusDaemon, looks: int) -> None:
    systemd = Acting(looks=looks)
    async with bench(host, bus_daemon, systemd) as at:
        assert await at.runner.run(TO_TEN) == f"{SWAPPINESS} did it"
        assert await at.runner.running() == ""
    assert systemd.jobs == [("StartUnit", (SWAPPINESS, "fail"))]
    assert systemd.looks == 0


async def test_a_job_that_waits_in_the_queue_is_no_end(host: FakeHost, bus_daemon: BusDaemon) -> None:
    """Inactive, but with a job: it was not even begun."""
    systemd = Acting()
    looks: list[str] = []

    def meanwhile(member: str) -> None:
        looks.extend([member] * (member == "GetAll"))
        if member == "GetAll":
            job = (7, "/org/freedesktop/systemd1/job/7") if len(looks) < 4 else (0, "/")
            systemd.put(SWAPPINESS, "inactive", "dead", Job=("(uo)", job))

    systemd.meanwhile = meanwhile
    async with bench(host, bus_daemon, systemd) as at:
        await at.runner.run(TO_TEN)
    assert len(looks) == 4


async def test_an_act_that_fails_is_told_and_then_forgotten(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd = Acting("failed", looks=2)
    async with bench(host, bus_daemon, systemd) as at:
        problem = await at.problem(TO_TEN, ActionFailed)
        assert await at.runner.running() == ""
    assert problem.message == f"{SWAPPINESS} ended with exit-code, status 3"
    assert problem.hint == f"journalctl -u {SWAPPINESS}"
    assert systemd.jobs == [("StartUnit", (SWAPPINESS, "fail")), ("ResetFailedUnit", (SWAPPINESS,))]


async def test_an_act_that_never_ends_is_told_after_its_time_and_goes_on_being_named(
    host: FakeHost, bus_daemon: BusDaemon
) -> None:
    systemd = Acting(looks=10**9)
    async with bench(host, bus_daemon, systemd) as at:
        problem = await at.problem(TO_TEN, ActionFailed)
        assert problem.message == f"{SWAPPINESS} is not done yet"
        assert 60.0 <= at.clock.now - Clock().now < 61.0
        assert [await at.runner.running() for _ in range(2)] == [SWAPPINESS] * 2
        systemd.put(SWAPPINESS, "inactive", "dead")
        assert await at.runner.running() == ""
        systemd.put(SWAPPINESS, "active", "running")  # whoever starts it now, it was not us
        assert await at.runner.running() == ""
    assert systemd.jobs == [("StartUnit", (SWAPPINESS, "fail"))]


async def test_polkits_no_is_a_lack_of_privilege(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd = Acting()
    systemd.denied = DENIED
    async with bench(host, bus_daemon, systemd) as at:
        problem = await at.problem(TO_TEN, NeedsPrivilege)
        assert problem.message == f"{SWAPPINESS} may not be started: not today"
        assert "polkit" in problem.hint
        assert await at.runner.running() == ""
        refused = await at.problem(UnitJob("StartUnit", "web.service"), NeedsPrivilege)
        assert "RestartUnit of web.service is not allowed" in refused.message


async def test_systemds_own_no_is_a_failure(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd = Acting()
    systemd.denied = "org.freedesktop.systemd1.NoSuchUnit"
    async with bench(host, bus_daemon, systemd) as at:
        problem = await at.problem(TO_TEN, ActionFailed)
    assert problem.message == f"{SWAPPINESS}: not today"


# -- without a bus -------------------------------------------------------------------------------------------


async def test_without_a_bus_nothing_is_begun_and_nobody_knows(host: FakeHost) -> None:
    at = Bench(host, no_bus())
    assert "D-Bus is not available" in (await at.problem(TO_TEN, ActionFailed)).message
    assert await at.runner.running() == SWAPPINESS  # it may have been begun: that cannot be told


@pytest.mark.parametrize("when", ["LoadUnit", "GetAll"])
async def test_a_bus_that_goes_away_in_the_middle(host: FakeHost, bus_daemon: BusDaemon, when: str) -> None:
    systemd = Acting(looks=10)
    async with bench(host, bus_daemon, systemd) as at:
        systemd.meanwhile = lambda member: bus_daemon.stop() if member == when else None
        problem = await at.problem(TO_TEN, ActionFailed)
        assert problem.message.startswith(f"{SWAPPINESS}: D-Bus is not available")
        assert await at.runner.running() == SWAPPINESS


@pytest.mark.parametrize("when", ["LoadUnit", "GetAll"])
async def test_a_bus_that_goes_away_while_we_look_leaves_the_act_unfinished(
    host: FakeHost, bus_daemon: BusDaemon, when: str
) -> None:
    systemd = Acting(looks=10**9)
    async with bench(host, bus_daemon, systemd) as at:
        await at.problem(TO_TEN, ActionFailed)
        systemd.meanwhile = lambda member: bus_daemon.stop() if member == when else None
        assert await at.runner.running() == SWAPPINESS


@pytest.mark.parametrize(
    "error", ["org.freedesktop.DBus.Error.NoReply", "org.freedesktop.DBus.Error.ServiceUnknown", DENIED]
)
async def test_a_look_that_is_refused_is_no_end(host: FakeHost, bus_daemon: BusDaemon, error: str) -> None:
    """systemd answers nobody while it executes itself anew, which a switch of the system's generation has it do."""
    systemd = Acting("failed", looks=3)
    systemd.silent = [error] * 5
    async with bench(host, bus_daemon, systemd) as at:
        await at.problem(TO_NINE, ActionFailed)
        assert systemd.silent == []
        systemd.put(ROLLBACK, "activating", "start")
        at.runner._begun.add(ROLLBACK)
        systemd.silent = [error]
        assert await at.runner.running() == ROLLBACK


async def test_a_unit_that_was_forgotten_is_done(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd = Acting(looks=10**9)
    systemd.silent = ["org.freedesktop.DBus.Error.UnknownObject"]
    async with bench(host, bus_daemon, systemd) as at:
        assert await at.runner.run(TO_TEN) == f"{SWAPPINESS} did it"


# -- an asker that goes away ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "unit", "stopped"), [(TO_TEN, SWAPPINESS, True), (TO_NINE, ROLLBACK, False)])
async def test_an_act_ends_with_its_asker_but_the_systems_own_switch(
    host: FakeHost, bus_daemon: BusDaemon, step: Step, unit: str, stopped: bool
) -> None:
    waiting = asyncio.Event()

    async def sleep(_: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    systemd = Acting(looks=10**9)
    async with bench(host, bus_daemon, systemd, sleep) as at:
        work = asyncio.create_task(at.runner.run(step))
        await waiting.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert systemd.jobs == [
            ("StartUnit", (unit, "fail")),
            *([("StopUnit", (unit, "replace"))] if stopped else []),
        ]
        assert await at.runner.running() == unit  # systemd may take its time
        systemd.put(unit, "inactive", "dead")
        assert await at.runner.running() == ""


async def test_a_stop_that_cannot_be_had_hides_nothing(host: FakeHost, bus_daemon: BusDaemon) -> None:
    waiting = asyncio.Event()

    async def sleep(_: float) -> None:
        waiting.set()
        await asyncio.Event().wait()

    systemd = Acting(looks=10**9)
    async with bench(host, bus_daemon, systemd, sleep) as at:
        work = asyncio.create_task(at.runner.run(TO_TEN))
        await waiting.wait()
        systemd.denied = DENIED
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert await at.runner.running() == SWAPPINESS
    assert started(systemd) == [SWAPPINESS]
