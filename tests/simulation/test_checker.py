"""The checker is not blind: an engine that is made wrong on purpose, by constructor arguments, is found out."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.decide.limits import Limits
from luminous_nix.self_healing.decide.policy import Mode, Policy
from luminous_nix.self_healing.decide.resolver import SimpleResolver
from luminous_nix.self_healing.models import ActionRefused, HostState, Issue, IssueType, UnitState
from luminous_nix.self_healing.store import Store
from tests.simulation.checker import Violation
from tests.simulation.faults import UNITS, Fault
from tests.simulation.handler import SimHandler
from tests.simulation.run import Options, Run, simulate
from tests.simulation.sensors import SimSensor, SimUnits

TICKS = 8000
# Nothing counts acts: what else would hold a wrong engine back is out of the way.
UNLIMITED = Limits(heals_per_hour=10**6, cooldown_s=0.0, breaker_s=0.0, lasting_s=0.0, others=())
HASTY = Policy(samples=0, flips=10**6, boot_grace_s=0.0, resume_grace_s=0.0, health_floor=0)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def found(seed: int, *, ticks: int = TICKS, **options: Any) -> set[str]:
    """The invariants that a run violates."""
    return {rule for _, rule, _ in simulate(seed, ticks, Options(strict=False, **options)).violations}


async def _always_ready() -> HostState:
    return HostState()


class Restarts(SimpleResolver):
    """Restarts at once what might only be started."""

    def get_action(self, issue: Issue) -> dict[str, Any]:
        if issue.type is IssueType.SERVICE:
            return {"action": "restart_service", "parameters": {"service": issue.component}}
        return super().get_action(issue)


class Careless(SimpleResolver):
    """Collects the store whatever the trouble is."""

    def get_action(self, issue: Issue) -> dict[str, Any]:
        del issue
        return {"action": "clean_nix_store", "parameters": {"filesystem": "/nix"}}


class ScatteredUnits(SimUnits):
    """Each unit seems to have gone down at a time of its own."""

    async def read(self, watched: Any) -> tuple[tuple[UnitState, ...], str, dict[str, str]]:
        units, error, unclear = await super().read(watched)
        spread = tuple(replace(unit, inactive_enter_us=10**9 * at + 1) for at, unit in enumerate(units))
        return spread, error, unclear


class WilfulUnits(SimUnits):
    """Nobody ever stopped a unit on purpose, it says."""

    async def read(self, watched: Any) -> tuple[tuple[UnitState, ...], str, dict[str, str]]:
        units, error, unclear = await super().read(watched)
        return tuple(_as_if_it_failed(unit) for unit in units), error, unclear

    async def unit(self, name: str) -> UnitState:
        return _as_if_it_failed(await super().unit(name))


def _as_if_it_failed(unit: UnitState) -> UnitState:
    return replace(unit, ended_by="itself") if unit.ended_by == "stop" else unit


class NoPrecheck(SimHandler):
    def faults(self, action: str, parameters: Mapping[str, Any]) -> list[Fault]:
        try:
            return super().faults(action, parameters)
        except ActionRefused:
            return []


class Stubborn(SimSensor):
    """It tells the last value when it cannot read."""

    def read(self, values: dict[str, float]) -> None:
        try:
            super().read(values)
        except OSError:
            values.update({reading: 99.0 for reading in self.host.levels[self.name] if "pressure" not in reading})


class ForgetsOutcomes(Store):
    def end(self, number: int, **outcome: Any) -> None:
        """Kept nowhere."""


class ForgetsIntents(Store):
    def begin(self, act: Any, document: Any = None) -> int:
        del act, document
        return 0


class ForgetsAll(Store):
    def acts(self) -> list[Any]:
        return []


@pytest.mark.parametrize(
    ("rules", "options"),
    [
        ({"I-1", "I-2", "I-3"}, {"engine": {"limits": UNLIMITED}}),
        ({"I-1", "I-2", "I-3"}, {"store": ForgetsAll}),
        ({"I-2"}, {"engine": {"limits": replace(UNLIMITED, cooldown_s=30.0)}}),
        ({"I-5"}, {"engine": {"policy": HASTY}}),
        ({"I-7"}, {"engine": {"policy": replace(Policy(), flips=10**6), "limits": UNLIMITED}}),
        ({"I-14"}, {"engine": {"policy": replace(Policy(), boot_grace_s=0.0, resume_grace_s=0.0)}, "ticks": 50_000}),
        ({"I-14"}, {"engine": {"policy": HASTY, "suspended": lambda: 0.0}, "ticks": 30_000}),
        ({"I-13"}, {"engine": {"host": _always_ready}}),
        ({"I-17"}, {"engine": {"switch": lambda: ""}, "ticks": 50_000}),
        ({"I-24"}, {"engine": {"policy": Policy(mode=Mode.OBSERVE)}}),
        ({"I-12"}, {"engine": {"resolver": Restarts()}}),
        ({"I-5", "healthy"}, {"engine": {"resolver": Careless(), "limits": UNLIMITED, "policy": HASTY}}),
        ({"I-8"}, {"units": ScatteredUnits, "ticks": 20_000}),
        ({"I-16"}, {"units": WilfulUnits, "handler": NoPrecheck}),
        ({"I-6"}, {"sensor": Stubborn, "engine": {"limits": UNLIMITED, "policy": HASTY}}),
        ({"I-11"}, {"store": ForgetsOutcomes}),
        ({"I-23"}, {"store": ForgetsIntents}),
    ],
    ids=lambda value: "-".join(sorted(value)) if isinstance(value, set) else "",
)
def test_what_is_wrong_on_purpose_is_found(rules: set[str], options: dict[str, Any]) -> None:
    assert rules <= found(3, **options)


def test_a_violation_says_how_to_see_it_again() -> None:
    with pytest.raises(Violation, match=r"I-5 at seed 3, tick \d+: .*\nreplay: python -m tests.simulation --seed 3"):
        simulate(3, TICKS, Options(engine={"policy": HASTY}))


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(0, 10, tmp_path)
    yield run
    assert run.ledger.store is not None
    run.ledger.store.close()


@pytest.mark.parametrize(
    ("rule", "action", "parameters"),
    [
        ("I-10", "restart_service", {"service": "sshd"}),
        ("I-10", "limit_unit", {"unit": "dbus.service"}),
        ("I-25", "restart_service", {"service": "luminous-healing.service"}),
        ("I-9", "restart_service", {"service": "*"}),
        ("I-9", "start_unit", {"unit": "all"}),
        ("I-9", "vacuum_journal", {"filesystem": "/mnt"}),
        ("I-9", "rollback_generation", {}),
        ("I-9", "kill_process", {"pid": 2}),
        ("I-5", "clear_system_cache", {}),
    ],
)
def test_what_must_never_be_asked_for(run: Run, rule: str, action: str, parameters: dict[str, Any]) -> None:
    run.host.now = 5000.0
    run.checker.asked(action, parameters)
    assert rule in run.checker.count


def test_two_acts_at_once(run: Run) -> None:
    run.host.now = 5000.0
    for unit in UNITS["watched"][:2]:
        run.checker.asked("restart_service", {"service": unit})
        run.checker.begun("restart_service", {"service": unit})
    assert {"I-4", "I-23", "healthy"} <= run.checker.count.keys()


def test_an_act_after_the_end_of_the_program(run: Run) -> None:
    run.host.now, run.checker.dead = 5000.0, True
    run.checker.asked("restart_service", {"service": "web"})
    assert run.checker.count["I-18"] == 1


def test_an_act_with_a_store_out_of_order(run: Run) -> None:
    run.host.now = 5000.0
    assert run.ledger.store is not None
    run.ledger.store.fault = "spoilt"
    run.checker.asked("restart_service", {"service": "web"})
    assert run.checker.count["I-18"] == 1
