"""Limits hold over restarts of the program and of the host, whatever people's clocks say: a real store file, the
engine above it, and a boot clock that is an argument."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from luminous_nix.self_healing.act.steps import RunProgram, Step, WriteFile
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.decide.limits import DAY_S, HOUR_S, MINUTE_S, Limits
from luminous_nix.self_healing.decide.policy import Mode, Policy, Rule
from luminous_nix.self_healing.models import HealingResult, Verdict
from luminous_nix.self_healing.store import Store
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, FakeHost
from tests.unit.test_engine import Answering, Scene, trouble
from tests.unit.test_operations_nixos import nixos
from tests.unit.test_peer_bugs import dated, deployed, down, rollbacks, up

pytestmark = pytest.mark.anyio
YEAR = timedelta(days=365)


class Gap(NamedTuple):
    """What lies between two acts: a new program, a new boot, and how far people's clocks jumped."""

    program: bool = False
    boot: bool = False
    jump: timedelta = timedelta()


GAPS = {
    "a clock a year ahead": Gap(jump=YEAR),
    "a clock a year back": Gap(jump=-YEAR),
    "a new program": Gap(program=True),
    "a new program, a year ahead": Gap(program=True, jump=YEAR),
    "a new program, a year back": Gap(program=True, jump=-YEAR),
    "a new boot": Gap(boot=True),
    "a new boot after a year switched off": Gap(boot=True, jump=YEAR),
    "a new boot, a year back": Gap(boot=True, jump=-YEAR),
}
over_every_gap = pytest.mark.parametrize("gap", GAPS.values(), ids=GAPS)


class Life:
    """One host, and one program after the other on it, with the same state file."""

    def __init__(self, host: FakeHost, file: Path, effect: Callable[[Step], None], **engine: Any) -> None:
        self.host, self.file, self.effect = host, file, effect
        self.clock, self.wall, self.boots = Clock(), datetime(2026, 11, 21, 12, 0), 1  # noqa: DTZ001
        policy = engine.pop("policy", Policy())
        self.engine = {"policy": policy, **engine}
        self.store: Store | None = None
        self.steps: list[Step] = []
        self.scene = self.start()

    def start(self) -> Scene:
        """A new program: all that it knows of the past is in the file."""
        self.close()
        self.store = store = Store(self.file, clock=self.clock, boot_id=f"boot-{self.boots}")
        assert store.fault == ""
        given: dict[str, Any] = {"store": store, "clock": self.clock, "sleep": self.clock.sleep,
                                 "wall": lambda: self.wall}  # fmt: skip
        self.scene = dated(Scene(self.host, self._act, **given, **self.engine))
        return self.scene

    def _act(self, step: Step) -> None:
        self.steps.append(step)
        self.effect(step)

    def pass_over(self, gap: Gap) -> None:
        if gap.boot:
            self.boots += 1
            self.close()
            self.clock.now = 1.0
        self.wall += gap.jump
        if gap.boot or gap.program:
            self.start()

    async def asked(self) -> HealingResult:
        """One automatic answer to the one trouble that there is, seen often enough."""
        (result,) = await self.scene.cycle()
        return result

    def close(self) -> None:
        if self.store is not None:
            self.store.close()
            self.store = None


# Nothing but the limits is in the way of an automatic act.
NO_GRACE: dict[str, Any] = {"boot_grace_s": 0.0, "resume_grace_s": 0.0, "flips": 99}


@pytest.fixture
def memory(host: FakeHost, tmp_path: Path) -> Iterator[Life]:
    """A host whose memory is short, until something is done about it."""
    host.memory(97.0)
    life = Life(host, tmp_path / "state/state.db", lambda _: host.memory(40.0), policy=Policy(**NO_GRACE))
    yield life
    life.close()


# -- a second act on a target ------------------------------------------------------------------------------------


@over_every_gap
async def test_a_second_act_within_five_minutes(memory: Life, gap: Gap) -> None:
    assert (await memory.asked()).verdict is Verdict.HEALED
    memory.host.memory(97.0)
    memory.pass_over(gap)
    for seconds in (0.0, 100.0, 190.0):
        memory.clock.now += seconds
        refused = await memory.asked()
        assert refused.verdict is Verdict.REFUSED
        assert "cooldown: the last act on memory ended" in str(refused.error)
        by_a_person = await memory.scene.engine.heal_issue(trouble())
        assert "cooldown" in str(by_a_person.error)
    assert len(memory.steps) == 1
    memory.clock.now += 45.0  # five minutes, and a tenth at most
    assert (await memory.asked()).verdict is Verdict.HEALED


async def test_many_short_boots_do_not_add_up_to_more_than_they_lasted(memory: Life) -> None:
    assert (await memory.asked()).verdict is Verdict.HEALED
    memory.host.memory(97.0)
    for _ in range(40):
        memory.pass_over(Gap(boot=True, jump=timedelta(days=1)))
        memory.clock.now += 5.0
        refused = await memory.asked()
        assert "cooldown" in str(refused.error)
    assert len(memory.steps) == 1


# -- the eleventh heal of an hour --------------------------------------------------------------------------------


@asynccontextmanager
async def units(host: FakeHost, daemon: BusDaemon, file: Path) -> AsyncIterator[tuple[Life, Systemd]]:
    """A host on which each start of a unit succeeds."""
    systemd, bus = Systemd(), Bus(daemon.address, clock=Clock())
    async with systemd.on(daemon.address):
        policy = Policy(**NO_GRACE)
        life = Life(host, file, lambda step: up(systemd, step.command[-1]), checks=("services",), bus=bus,
                    policy=policy)  # fmt: skip
        yield life, systemd
        life.close()
        await bus.close()


@over_every_gap
async def test_the_eleventh_heal_of_an_hour(host: FakeHost, bus_daemon: BusDaemon, tmp_path: Path, gap: Gap) -> None:
    async with units(host, bus_daemon, tmp_path / "state.db") as (life, systemd):
        for number in range(10):
            down(systemd, f"u{number}.service")
            assert (await life.asked()).verdict is Verdict.HEALED
            life.clock.now += MINUTE_S
        down(systemd, "u10.service")
        life.pass_over(gap)
        for seconds in (0.0, 30 * MINUTE_S, 18 * MINUTE_S):  # 58 minutes since the first, of time that counts
            life.clock.now += seconds
            refused = await life.asked()
            assert refused.verdict is Verdict.REFUSED
            assert "hourly limit: 10 in the last hour, at most 10 are allowed" in str(refused.error)
        assert len(life.steps) == 10
        life.clock.now += 3 * MINUTE_S
        assert (await life.asked()).verdict is Verdict.HEALED


@over_every_gap
async def test_heals_before_and_after_a_gap_count_together(
    host: FakeHost, bus_daemon: BusDaemon, tmp_path: Path, gap: Gap
) -> None:
    async with units(host, bus_daemon, tmp_path / "state.db") as (life, systemd):
        for number in range(10):
            down(systemd, f"u{number}.service")
            assert (await life.asked()).verdict is Verdict.HEALED
            life.clock.now += MINUTE_S
            life.pass_over(gap)
        down(systemd, "u10.service")
        assert "hourly limit" in str((await life.asked()).error)


# -- rollbacks ---------------------------------------------------------------------------------------------------

ROLLS = Policy(rules=(Rule(Mode.AUTO, action="rollback_generation"),), **NO_GRACE)
AUTOMATIC, A_DAY, A_WEEK = "1 automatic rollback in 24 hours", "3 rollbacks a day", "3 rollbacks in 7 days"


def without(*names: str) -> Limits:
    """The limits but for these windows."""
    found = tuple(window for window in Limits().others if window.name not in names)
    assert len(found) == len(Limits().others) - len(names)
    return Limits(others=found)


@pytest.fixture
def rolling(host: FakeHost, tmp_path: Path) -> Iterator[Callable[[Limits], Life]]:
    """A NixOS whose every new generation takes too much memory, and an engine that may roll back by itself."""
    nixos(host, 10, 11, current=11, good=[10])
    host.memory(97.0)
    made = []

    def act(step: Step) -> None:
        if isinstance(step, WriteFile):
            host.write(step.path, step.text)
            step.path.chmod(0o600)
        elif isinstance(step, RunProgram) and "--switch-generation" in step.command:
            deployed(host, int(step.command[-1]))
            host.memory(40.0)

    def make(limits: Limits) -> Life:
        resolver = Answering({"action": "rollback_generation", "parameters": {}})
        made.append(Life(host, tmp_path / "state.db", act, policy=ROLLS, resolver=resolver, limits=limits))
        return made[-1]

    yield make
    for life in made:
        life.close()


def deploy(life: Life, number: int) -> None:
    """A new generation, as bad as the one before."""
    deployed(life.host, number)
    life.host.memory(97.0)


def count(life: Life) -> int:
    return sum(isinstance(step, RunProgram) and step.command[-1] == "switch" for step in life.steps)


@over_every_gap
async def test_a_second_automatic_rollback_within_a_day(rolling: Callable[[Limits], Life], gap: Gap) -> None:
    life = rolling(Limits())
    assert (await life.asked()).verdict is Verdict.HEALED
    assert (count(life), len(rollbacks(life.scene))) == (1, 1)
    deploy(life, 12)
    life.pass_over(gap)
    for seconds in (0.0, 2 * HOUR_S, 21 * HOUR_S):
        life.clock.now += seconds
        refused = await life.asked()
        assert refused.verdict is Verdict.REFUSED
        assert AUTOMATIC in str(refused.error)
    assert count(life) == 1
    life.clock.now += HOUR_S + 1.0
    assert (await life.asked()).verdict is Verdict.HEALED
    assert count(life) == 2


@over_every_gap
async def test_a_fourth_rollback_within_a_day(rolling: Callable[[Limits], Life], gap: Gap) -> None:
    life = rolling(without(AUTOMATIC, A_WEEK))
    for number in (12, 13, 14):
        assert (await life.asked()).verdict is Verdict.HEALED
        life.clock.now += 6 * HOUR_S
        deploy(life, number)
    life.pass_over(gap)
    refused = await life.asked()
    assert refused.verdict is Verdict.REFUSED
    assert f"{A_DAY}: 3 in the last day" in str(refused.error)
    by_a_person = await life.scene.engine.heal_issue(trouble())
    assert A_DAY in str(by_a_person.error)
    assert count(life) == 3
    life.clock.now += 12 * HOUR_S + 1.0
    assert (await life.asked()).verdict is Verdict.HEALED


@over_every_gap
async def test_a_fourth_rollback_within_seven_days(rolling: Callable[[Limits], Life], gap: Gap) -> None:
    life = rolling(without(AUTOMATIC, A_DAY))
    for number in (12, 13, 14):
        assert (await life.asked()).verdict is Verdict.HEALED
        life.clock.now += 2 * DAY_S
        deploy(life, number)
    life.pass_over(gap)
    for seconds in (0.0, 0.9 * DAY_S):
        life.clock.now += seconds
        refused = await life.asked()
        assert refused.verdict is Verdict.REFUSED
        assert f"{A_WEEK}: 3 in the last 7 days" in str(refused.error)
    assert count(life) == 3
    life.clock.now += 2.2 * DAY_S
    assert (await life.asked()).verdict is Verdict.HEALED


@over_every_gap
async def test_a_raised_window_is_not_the_only_one(rolling: Callable[[Limits], Life], gap: Gap) -> None:
    """With the automatic window gone, three in a day is the day's last, and the week's."""
    life = rolling(without(AUTOMATIC))
    for number in (12, 13, 14):
        assert (await life.asked()).verdict is Verdict.HEALED
        life.pass_over(gap)
        life.clock.now += 2 * HOUR_S
        deploy(life, number)
    refused = await life.asked()
    assert A_WEEK in str(refused.error)
    life.clock.now += 2 * DAY_S
    assert A_WEEK in str((await life.asked()).error)
    assert count(life) == 3
