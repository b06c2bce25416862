"""The loop on a host of files: the runner changes the files, virtual time passes, and the reading decides."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from luminous_nix.self_healing.act.executor import SimpleExecutor
from luminous_nix.self_healing.act.steps import Step, UnitJob
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.decide.actions import CATALOGUE
from luminous_nix.self_healing.decide.limits import Limits
from luminous_nix.self_healing.decide.resolver import SimpleResolver
from luminous_nix.self_healing.heal.verify import verify
from luminous_nix.self_healing.healing_engine import SimplifiedHealingEngine
from luminous_nix.self_healing.models import (
    Action,
    ActionFailed,
    ConfigError,
    ExecutionMode,
    ExecutionResult,
    HealingError,
    HealingResult,
    HostState,
    Issue,
    IssueType,
    Severity,
    UnitState,
    Verdict,
)
from luminous_nix.self_healing.observe.detector import SimpleDetector
from luminous_nix.self_healing.permission_handler import NixOSPermissionHandler
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, FakeHost, Recorder, no_bus

pytestmark = pytest.mark.anyio
MIB = 1 << 20
S = 1_000_000


class Scene:
    """A host under memory pressure with a cache to give back, and an engine that watches it."""

    def __init__(
        self,
        host: FakeHost,
        effect: Callable[[Step], None] | None = None,
        *,
        problem: HealingError | None = None,
        checks: tuple[str, ...] = ("memory",),
        bus: Bus | None = None,
        monitored: tuple[str, ...] = (),
        mode: ExecutionMode = ExecutionMode.SERVICE,
        **engine: Any,
    ) -> None:
        host.service_cache("idle.service", 64 * MIB)
        self.host = host
        self.clock = Clock()
        self.runner = Recorder(effect, problem)
        bus = bus or no_bus()
        handler = NixOSPermissionHandler(mode, bus=bus, roots=host.roots, runner=self.runner, environment={})
        self.detector = SimpleDetector(
            roots=host.roots, bus=bus, enabled_checks=checks, clock_ns=self.clock.ns, monitored_units=monitored
        )
        parts: dict[str, Any] = {"clock": self.clock, "sleep": self.clock.sleep, "host": running, **engine}
        self.engine = SimplifiedHealingEngine(detector=self.detector, executor=SimpleExecutor(handler), **parts)

    async def cycle(self) -> list[HealingResult]:
        """A cycle after two further looks: a level must show in three of five."""
        await self.engine.look()
        await self.engine.look()
        return await self.engine.detect_and_heal()


async def running() -> HostState:
    return HostState()


def relief(host: FakeHost) -> Callable[[Step], None]:
    return lambda _: host.memory(40.0)


def trouble(component: str = "memory", sort: IssueType = IssueType.RESOURCE, **more: Any) -> Issue:
    values: dict[str, Any] = {"metric_value": 97.0, "threshold": 85.0, **more}
    return Issue(sort, values.pop("severity", Severity.HIGH), "trouble", component, **values)


# -- verdicts ------------------------------------------------------------------------------------------------


async def test_healed_when_the_reading_recovers(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, relief(host))
    (result,) = await scene.cycle()
    assert (result.verdict, result.success, result.error) == (Verdict.HEALED, True, None)
    assert (result.action_taken, result.actions_taken) == ("clear_system_cache", ["clear_system_cache"])
    assert result.issue.component == "memory"
    assert scene.clock.now >= 1001.5  # it stayed recovered that long
    assert await scene.engine.detect_and_heal() == []


async def test_healed_late_but_within_the_deadline(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host)
    until = scene.clock.now + 3.0

    async def sleep(seconds: float) -> None:
        await scene.clock.sleep(seconds)
        if scene.clock.now >= until:
            host.memory(40.0)

    engine = SimplifiedHealingEngine(
        detector=scene.detector, executor=scene.engine.executor, clock=scene.clock, sleep=sleep
    )
    assert (await engine.heal_issue(trouble())).verdict is Verdict.HEALED


@pytest.mark.parametrize(("relapse_after", "verdict"), [(1.0, Verdict.NO_EFFECT), (3.0, Verdict.HEALED)])
async def test_a_level_must_stay_recovered(host: FakeHost, relapse_after: float, verdict: Verdict) -> None:
    host.memory(97.0)
    scene = Scene(host, relief(host))
    until = scene.clock.now + relapse_after

    async def sleep(seconds: float) -> None:
        await scene.clock.sleep(seconds)
        if scene.clock.now >= until:
            host.memory(97.0)

    engine = SimplifiedHealingEngine(
        detector=scene.detector, executor=scene.engine.executor, clock=scene.clock, sleep=sleep
    )
    assert (await engine.heal_issue(trouble())).verdict is verdict


async def test_no_effect_when_the_act_went_well_and_the_reading_did_not(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host)
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, result.success) == (Verdict.NO_EFFECT, False)
    assert "no recovery within 5 s: memory is at 97.0, the threshold is 85" in str(result.error)
    assert scene.clock.now == pytest.approx(1005, abs=1.5)


async def test_failed_when_the_act_fails(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, problem=ActionFailed("the knob is stuck"))
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, result.success) == (Verdict.FAILED, False)
    assert "clear_system_cache: the knob is stuck" in str(result.error)


async def test_failed_when_the_reading_is_lost(host: FakeHost) -> None:
    host.memory(97.0)

    def spoil(_: Step) -> None:
        host.write(host.roots.proc / "meminfo", "junk")

    scene = Scene(host, spoil)
    result = await scene.engine.heal_issue(trouble())
    assert result.verdict is Verdict.FAILED
    assert "memory cannot be observed" in str(result.error)


async def test_recovered_by_itself_is_not_touched(host: FakeHost) -> None:
    scene = Scene(host)
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, result.success, result.action_taken) == (Verdict.RECOVERED_BY_ITSELF, True, "none")
    assert scene.runner.steps == []


async def test_nothing_is_done_on_what_cannot_be_seen(host: FakeHost) -> None:
    (host.roots.proc / "meminfo").unlink()
    scene = Scene(host)
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, scene.runner.steps) == (Verdict.REFUSED, [])
    assert "cannot be seen" in str(result.error)


@pytest.mark.parametrize(
    ("issue", "said"),
    [
        (trouble("swap"), "nothing is known to help"),
        (trouble("load"), "nothing is known to help"),
        (trouble(severity=Severity.LOW), "its severity is LOW"),
        (trouble("system", IssueType.SYSTEM), "asks a person first"),
        (trouble("system", IssueType.SYSTEM, kind="pressure"), "nothing is known to help"),
        (trouble("nginx", IssueType.SERVICE), "nginx cannot be observed: D-Bus"),
    ],
)
async def test_what_is_refused_names_the_rule(host: FakeHost, issue: Issue, said: str) -> None:
    host.memory(97.0)
    scene = Scene(host)
    result = await scene.engine.heal_issue(issue)
    assert (result.verdict, result.success, scene.runner.steps) == (Verdict.REFUSED, False, [])
    assert said in str(result.error)


async def test_healing_can_be_switched_off_and_on(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, relief(host), healing_enabled=False)
    result = await scene.engine.heal_issue(trouble())
    assert "healing_enabled" in str(result.error)
    scene.engine.healing_enabled = True
    assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.HEALED


# -- limits --------------------------------------------------------------------------------------------------


async def test_the_cooldown_of_a_target(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, relief(host))
    assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.HEALED
    host.memory(97.0)
    refused = await scene.engine.heal_issue(trouble())
    assert refused.verdict is Verdict.REFUSED
    assert "cooldown" in str(refused.error)
    assert "lifts in 3" in str(refused.error)
    scene.clock.now += 331
    assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.HEALED


async def test_the_eleventh_heal_of_an_hour_is_refused(host: FakeHost) -> None:
    scene = Scene(host, relief(host), limits=Limits(cooldown_s=0.0, lasting_s=0.0, others=()))
    verdicts = []
    for _ in range(11):
        host.memory(97.0)
        scene.clock.now += 1
        last = await scene.engine.heal_issue(trouble())
        verdicts.append(last.verdict)
    assert verdicts == [Verdict.HEALED] * 10 + [Verdict.REFUSED]
    assert "hourly limit: 10 in the last hour" in str(last.error)
    scene.clock.now += 3600
    assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.HEALED


async def test_a_refused_act_costs_nothing(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, relief(host), limits=Limits(heals_per_hour=1))
    knob = host.service_cache("idle.service", 0)
    for _ in range(3):
        assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.REFUSED
    assert knob.exists()
    host.service_cache("idle.service", 64 * MIB)
    assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.HEALED


async def test_a_failed_act_costs_as_much_as_a_good_one(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, problem=ActionFailed("no"))
    await scene.engine.heal_issue(trouble())
    assert "cooldown" in str((await scene.engine.heal_issue(trouble())).error)


# -- an automatic cycle --------------------------------------------------------------------------------------


async def test_a_medium_issue_waits_while_the_host_is_busy(host: FakeHost) -> None:
    host.memory(88.0)
    host.pressure("io", 50.0, 40.0)
    scene = Scene(host, relief(host), checks=("memory", "pressure"))
    (waiting,) = await scene.cycle()
    assert waiting.verdict is Verdict.REFUSED
    assert "resources: pressure:io:full is 40 %" in str(waiting.error)
    host.pressure("io")
    (result,) = await scene.engine.detect_and_heal()
    assert result.verdict is Verdict.HEALED


async def test_a_worse_issue_without_a_remedy_holds_nothing_back(host: FakeHost) -> None:
    host.memory(88.0)
    host.load(12.0)
    scene = Scene(host, relief(host), checks=("memory", "load"))
    results = await scene.cycle()
    assert [result.issue.component for result in results] == ["load", "memory"]
    assert [result.verdict for result in results] == [Verdict.REFUSED, Verdict.HEALED]


async def test_below_the_health_floor_nothing_heals_by_itself(host: FakeHost) -> None:
    host.memory(99.5, swap_percent=99.0)
    host.load(900.0)
    scene = Scene(host, relief(host), checks=("memory", "swap", "load"))
    results = await scene.engine.detect_and_heal()
    assert {result.verdict for result in results} == {Verdict.REFUSED}
    assert "health is 10, below 30" in str(results[0].error)
    assert scene.runner.steps == []
    assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.HEALED  # a person's request


async def test_a_batch_heals_the_worst_first(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, relief(host))
    issues = [trouble("swap", severity=Severity.MEDIUM), trouble(severity=Severity.CRITICAL)]
    results = await scene.engine.heal_issues_batch(issues)
    assert [result.issue.component for result in results] == ["memory", "swap"]


# -- dry run -------------------------------------------------------------------------------------------------


async def test_a_dry_run_tells_and_spends_nothing(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, relief(host), dry_run=True, limits=Limits(heals_per_hour=1))
    for _ in range(3):
        (result,) = await scene.engine.detect_and_heal()
        assert (result.verdict, result.success) == (Verdict.DRY_RUN, True)
        assert result.action_taken == "[DRY RUN] clear_system_cache"
        assert "memory.reclaim" in result.detail
        # SERVICE mode without the helper could not act:
        assert "would be refused: SERVICE mode needs the helper" in result.detail
        assert not result.would_act
    assert scene.runner.steps == []
    assert scene.engine.get_metrics()["issues_resolved"] == 0
    scene.engine.dry_run = False
    assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.HEALED


async def test_a_dry_run_tells_a_precheck_that_would_refuse(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, dry_run=True)
    host.service_cache("idle.service", 0)
    result = await scene.engine.heal_issue(trouble())
    assert result.success
    assert not result.would_act
    assert "would be refused: no background service" in result.detail


async def test_a_dry_run_looks_at_the_host_once_for_all_issues_and_anew_when_asked_again(host: FakeHost) -> None:
    busy: list[str] = []

    async def state() -> HostState:
        busy.append("an upgrade")
        return HostState("running", "it is being upgraded" if len(busy) > 1 else "")

    scene = Scene(host, dry_run=True)
    scene.engine.host_state = state
    issues = [trouble(), trouble("cpu"), trouble("disk")]
    first = await scene.engine.heal_issues_batch(issues)
    assert len(busy) == 1
    assert not [result for result in first if "it is being upgraded" in result.detail]
    for again in (await scene.engine.heal_issues_batch(issues), [await scene.engine.heal_issue(trouble())]):
        assert all("now refused: update lock: it is being upgraded" in result.detail for result in again)
    assert len(busy) == 3


async def test_a_dry_run_tells_whether_it_would_act(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, relief(host), dry_run=True, mode=ExecutionMode.DEVELOPMENT)
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, result.would_act) == (Verdict.DRY_RUN, True)
    assert "refused" not in result.detail
    low = await scene.engine.heal_issue(trouble(severity=Severity.LOW))
    assert (low.verdict, low.would_act) == (Verdict.DRY_RUN, False)
    assert "clear_system_cache: now refused: severity: watched only: its severity is LOW" in low.detail
    scene.engine.healing_enabled = False
    off = await scene.engine.heal_issue(trouble())
    assert (off.verdict, off.would_act) == (Verdict.DRY_RUN, False)
    assert "now refused: kill switch: healing is switched off" in off.detail
    scene.engine.healing_enabled, scene.engine.dry_run = True, False
    assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.HEALED
    scene.engine.dry_run = True
    cooling = await scene.engine.heal_issue(trouble())
    assert (cooling.verdict, cooling.would_act) == (Verdict.DRY_RUN, False)
    assert "clear_system_cache: now refused: cooldown" in cooling.detail


# -- resolvers of one's own ----------------------------------------------------------------------------------


class Answering(SimpleResolver):
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def get_action(self, issue: Issue) -> dict[str, Any]:
        del issue
        if isinstance(self.answer, Exception):
            raise self.answer
        found: dict[str, Any] = self.answer
        return found


async def test_a_plain_mapping_is_the_only_rung(host: FakeHost) -> None:
    host.memory(97.0)
    host.write(host.roots.proc / "sys/vm/swappiness", "60")
    scene = Scene(host, relief(host))
    scene.engine.resolver = Answering({"action": "adjust_swappiness", "parameters": {"value": 10}})
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, result.actions_taken) == (Verdict.HEALED, ["adjust_swappiness"])


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        pytest.param(RuntimeError("oh no"), "the resolver failed: oh no", id="raises"),
        pytest.param(None, "the resolver failed: not an action", id="nothing"),
        pytest.param("restart", "the resolver failed: not an action", id="text"),
        pytest.param({"action": "observe"}, "nothing is known to help", id="observe"),
        pytest.param({"action": "clear_sytem_cache"}, "did you mean 'clear_system_cache'", id="unknown"),
        pytest.param({"action": "restart_service", "parameters": {"service": "a\nb"}}, "must be", id="hostile"),
        pytest.param(
            {"action": "kill_process", "parameters": {"pid": 5, "start_time": 5}}, "asks a person", id="asks"
        ),
    ],
)
async def test_a_resolver_that_answers_badly(host: FakeHost, answer: Any, said: str) -> None:
    host.memory(97.0)
    scene = Scene(host)
    scene.engine.resolver = Answering(answer)
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, result.success, scene.runner.steps) == (Verdict.REFUSED, False, [])
    assert said in str(result.error)


@pytest.mark.parametrize("answer", [{"action": "no_such"}, {"action": "kill_process"}])
async def test_a_dry_run_of_a_bad_request_is_no_success(host: FakeHost, answer: dict[str, str]) -> None:
    scene = Scene(host, dry_run=True, resolver=Answering(answer))
    assert not (await scene.engine.heal_issue(trouble())).success


class TwoRungs(SimpleResolver):
    def get_ladder(self, issue: Issue) -> tuple[Action, ...]:
        del issue
        return (Action("clear_system_cache"), Action("adjust_swappiness", {"value": 10}))


async def test_the_ladder_climbs_only_when_the_rung_below_had_no_effect(host: FakeHost) -> None:
    host.memory(97.0)
    knob = host.write(host.roots.proc / "sys/vm/swappiness", "60")

    def only_the_second_helps(step: Step) -> None:
        if getattr(step, "path", None) == knob:
            host.memory(40.0)

    scene = Scene(host, only_the_second_helps, resolver=TwoRungs())
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, result.action_taken) == (Verdict.HEALED, "clear_system_cache, adjust_swappiness")
    scene.clock.now += 301
    host.memory(97.0)
    other = Scene(host, relief(host), resolver=TwoRungs())
    assert (await other.engine.heal_issue(trouble())).actions_taken == ["clear_system_cache"]


async def test_the_ladder_passes_over_a_rung_that_is_refused(host: FakeHost) -> None:
    host.memory(97.0)
    host.write(host.roots.proc / "sys/vm/swappiness", "60")
    scene = Scene(host, relief(host), resolver=TwoRungs())
    host.service_cache("idle.service", 0)
    assert (await scene.engine.heal_issue(trouble())).actions_taken == ["adjust_swappiness"]


async def test_the_ladder_ends_at_an_act_that_failed(host: FakeHost) -> None:
    host.memory(97.0)
    host.write(host.roots.proc / "sys/vm/swappiness", "60")
    scene = Scene(host, problem=ActionFailed("broken"), resolver=TwoRungs())
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, len(scene.runner.steps)) == (Verdict.FAILED, 1)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("healing_enabled", False, "adjust_swappiness: kill switch: healing is switched off (healing_enabled)"),
        ("dry_run", True, "adjust_swappiness: a dry run was asked for meanwhile"),
        ("limits", Limits(heals_per_hour=1), "adjust_swappiness: hourly limit"),
    ],
)
async def test_the_gates_are_looked_at_before_each_rung(host: FakeHost, name: str, value: Any, said: str) -> None:
    host.memory(97.0)
    host.write(host.roots.proc / "sys/vm/swappiness", "60")

    def change(_: Step) -> None:
        setattr(scene.engine, name, value)

    scene = Scene(host, change, resolver=TwoRungs())
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, result.actions_taken) == (Verdict.NO_EFFECT, ["clear_system_cache"])
    assert len(scene.runner.steps) == 1
    assert said in str(result.error)


# -- errors of this program -----------------------------------------------------------------------------------


class Broken(SimpleExecutor):
    async def execute(self, action: Any, dry_run: bool = False) -> ExecutionResult:
        del action, dry_run
        raise ValueError("a bug")


async def test_an_error_of_this_program_is_a_failed_result_and_costs_the_budget(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, limits=Limits(heals_per_hour=2))
    scene.engine.executor = Broken(scene.engine.executor.handler)
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, result.success) == (Verdict.FAILED, False)
    assert "an error of this program: ValueError('a bug')" in str(result.error)
    assert scene.engine.get_metrics()["issues_failed"] == 1
    assert "cooldown: " in str((await scene.engine.heal_issue(trouble())).error)
    scene.clock.now += 700
    assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.FAILED
    scene.clock.now += 700
    assert "hourly limit: 2 in" in str((await scene.engine.heal_issue(trouble())).error)


async def test_an_error_while_measuring_costs_the_budget_too(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host)

    async def sleep(seconds: float) -> None:
        raise OSError(f"no sleep of {seconds}")

    engine = SimplifiedHealingEngine(
        detector=scene.detector, executor=scene.engine.executor, clock=scene.clock, sleep=sleep
    )
    assert (await engine.heal_issue(trouble())).verdict is Verdict.FAILED
    assert "cooldown" in str((await engine.heal_issue(trouble())).error)


# -- what the cooldown holds for ------------------------------------------------------------------------------


async def test_a_unit_cools_down_whatever_the_issue_is_called(host: FakeHost, bus_daemon: BusDaemon) -> None:
    async with failed_unit(host, bus_daemon, None) as scene:
        first = await scene.engine.heal_issue(trouble("nginx", IssueType.SERVICE))
        assert first.verdict is Verdict.FAILED
        for name, kind in (("nginx.service", ""), ("nginx", "unit_inactive")):
            again = await scene.engine.heal_issue(trouble(name, IssueType.SERVICE, kind=kind))
            assert again.verdict is Verdict.REFUSED
            assert "cooldown" in str(again.error)
        other = await scene.engine.heal_issue(trouble("other", IssueType.SERVICE))
        assert "cooldown" not in str(other.error)
        assert len(scene.runner.steps) == 1


async def test_a_filesystem_cools_down_whatever_the_issue_is_called(host: FakeHost) -> None:
    places = [host.root / "one", host.root / "two"]
    for place in places:
        place.mkdir()
    host.mounts(f"{9 + n} 1 8:{3 + n} / {place} rw - ext4 /dev/sd{n} rw" for n, place in enumerate(places))
    host.write(host.roots.proc / "sys/vm/swappiness", "60")
    scene = Scene(
        host, checks=("disk",), resolver=Answering({"action": "adjust_swappiness", "parameters": {"value": 9}})
    )
    scene.engine.executor = Broken(scene.engine.executor.handler)
    one, two = ({"mount": str(place)} for place in places)
    low: dict[str, Any] = {"threshold": 0.0001, "kind": "bytes"}
    said = [
        str((await scene.engine.heal_issue(trouble(name, metrics=mount, **low))).error)
        for name, mount in (("disk", one), (f"disk:{places[0]}", one), ("disk", two), (f"disk:{places[1]}", two))
    ]
    assert ["cooldown" in text for text in said] == [False, True, False, True]
    assert ["a bug" in text for text in said] == [True, False, True, False]


# -- units, by a peer on a real bus that answers as systemd -----------------------------------------------------


@asynccontextmanager
async def failed_unit(
    host: FakeHost,
    daemon: BusDaemon,
    after: tuple[str, str] | None,
    *,
    job: int = 0,
    clear: bool = True,
    **unit: Any,
) -> AsyncIterator[Scene]:
    systemd, bus = Systemd(), Bus(daemon.address, clock=Clock())
    # Its main process went first, so nobody stopped it.
    times = {"InactiveExitTimestampMonotonic": ("t", 1 * S), "ActiveExitTimestampMonotonic": ("t", 5 * S)}
    typed = {"Result": ("s", "exit-code")} | ({"ExecMainExitTimestampMonotonic": ("t", 4 * S)} if clear else {})
    systemd.put("nginx.service", "failed", "failed", typed=typed, **times, **unit)

    def act(_: Step) -> None:
        if after is not None:
            systemd.put("nginx.service", *after, InvocationID=("ay", b"\x02" * 16), Job=("(uo)", (job, "/j")))

    async with systemd.on(daemon.address):
        yield Scene(host, act, checks=("services",), bus=bus, monitored=("nginx",))
        await bus.close()


async def test_a_failed_unit_is_healed(host: FakeHost, bus_daemon: BusDaemon) -> None:
    async with failed_unit(host, bus_daemon, ("active", "running")) as scene:
        (result,) = await scene.engine.detect_and_heal()
        assert (result.verdict, result.actions_taken) == (Verdict.HEALED, ["restart_service"])
        assert scene.clock.now >= 1000.4  # it stayed active that long
        assert await scene.engine.detect_and_heal() == []


@pytest.mark.parametrize(
    ("after", "verdict"),
    [(("failed", "failed"), Verdict.FAILED), (("activating", "start"), Verdict.NO_EFFECT), (None, Verdict.FAILED)],
)
async def test_a_unit_that_does_not_come_back(
    host: FakeHost, bus_daemon: BusDaemon, after: tuple[str, str] | None, verdict: Verdict
) -> None:
    async with failed_unit(host, bus_daemon, after) as scene:
        (result,) = await scene.engine.detect_and_heal()
        assert (result.verdict, result.success) == (verdict, False)
        assert scene.runner.steps == [UnitJob("StartUnit", "nginx.service")]


@pytest.mark.parametrize(("job", "within"), [(0, CATALOGUE["restart_service"].deadline_s),
                                             (7, CATALOGUE["restart_service"].timeout_s)])  # fmt: skip
async def test_a_unit_that_is_still_starting_has_until_the_timeout(
    host: FakeHost, bus_daemon: BusDaemon, job: int, within: float
) -> None:
    assert CATALOGUE["restart_service"].deadline_s < CATALOGUE["restart_service"].timeout_s
    async with failed_unit(host, bus_daemon, ("activating", "start"), job=job) as scene:
        (result,) = await scene.engine.detect_and_heal()
        assert result.verdict is Verdict.NO_EFFECT
        assert f"no recovery within {within:.0f} s: nginx.service is activating (start)" in str(result.error)
        assert scene.clock.now == pytest.approx(1000 + within, abs=0.5)


async def test_a_failed_unit_of_which_nobody_knows_who_ended_it_is_only_watched(
    host: FakeHost, bus_daemon: BusDaemon
) -> None:
    async with failed_unit(host, bus_daemon, ("active", "running"), clear=False) as scene:
        (result,) = await scene.engine.detect_and_heal()
        assert (result.issue.kind, result.issue.severity) == ("unclear", Severity.LOW)
        assert (result.verdict, scene.runner.steps) == (Verdict.REFUSED, [])
        assert "watched only" in str(result.error)


async def test_a_unit_that_comes_back_anew_at_every_look_is_not_healed() -> None:
    """Active at each look, and never twice in the same invocation: it restarts all the time."""
    clock, looks = Clock(), itertools.count()
    spec = CATALOGUE["restart_service"]

    class Flapping:
        async def unit(self, name: str) -> UnitState:
            return UnitState(name, active="active", sub="running", invocation=str(next(looks)))

    async def sleep(seconds: float) -> None:
        await clock.sleep(seconds)
        assert clock.now < 1000 + 2 * spec.timeout_s, "it is looked at without end"

    detector = SimpleDetector(enabled_checks=("services",), bus=no_bus())
    detector.units = Flapping()  # type: ignore[assignment]
    outcome = await verify(detector, trouble("nginx", IssueType.SERVICE), spec, clock=clock, sleep=sleep)
    assert outcome.verdict is Verdict.NO_EFFECT


async def test_a_unit_that_is_masked_meanwhile_is_left_alone(host: FakeHost, bus_daemon: BusDaemon) -> None:
    async with failed_unit(host, bus_daemon, None, LoadState=("s", "masked")) as scene:
        assert await scene.engine.detect_and_heal() == []
        result = await scene.engine.heal_issue(trouble("nginx", IssueType.SERVICE))
        assert (result.verdict, scene.runner.steps) == (Verdict.REFUSED, [])
        assert "masked" in str(result.error)


# -- the rest of the public interface --------------------------------------------------------------------------


async def test_metrics(host: FakeHost) -> None:
    scene = Scene(host, relief(host))
    metrics = scene.engine.get_metrics()
    assert metrics == {
        "issues_detected": 0, "issues_resolved": 0, "issues_failed": 0, "last_check": None, "success_rate": 1.0,
    }  # fmt: skip
    host.memory(97.0)
    await scene.cycle()
    await scene.engine.detect_and_heal()
    scene.clock.now += 4000
    host.memory(97.0)
    scene.engine.executor = Scene(host, problem=ActionFailed("no")).engine.executor
    await scene.cycle()
    await scene.engine.detect_and_heal()  # still there: not a new issue; and refused is not tried
    metrics = scene.engine.get_metrics()
    assert (metrics["issues_detected"], metrics["issues_resolved"], metrics["issues_failed"]) == (2, 1, 1)
    assert metrics["success_rate"] == 0.5
    assert metrics["last_check"] is not None


async def test_thresholds_can_be_set(host: FakeHost) -> None:
    scene = Scene(host)
    scene.engine.set_threshold("memory", 40)
    assert scene.engine.detector.thresholds["memory_percent"] == 40.0
    with pytest.raises(ConfigError):
        scene.engine.set_threshold("memroy", 40)


@pytest.mark.parametrize(("verbose", "level"), [(True, logging.INFO), (False, logging.DEBUG)])
async def test_verbose_raises_the_steps_to_info(
    host: FakeHost, caplog: pytest.LogCaptureFixture, verbose: bool, level: int
) -> None:
    scene = Scene(host)
    scene.engine.verbose = verbose
    with caplog.at_level(logging.DEBUG, logger="luminous_nix"):
        await scene.engine.detect_and_heal()
    assert [record.levelno for record in caplog.records if "looked:" in record.message] == [level]


async def test_the_loop_ends_when_told(host: FakeHost) -> None:
    scene = Scene(host)
    cycles = 0
    async for results in scene.engine.cycles(0.001):
        assert results == []
        cycles += 1
        if cycles == 3:
            scene.engine.stop()
    assert cycles == 3


@pytest.mark.parametrize("interval", [0, -1, float("nan"), float("inf"), True, "60", None])
async def test_an_interval_is_a_time(host: FakeHost, interval: Any) -> None:
    """Told at the call, not only when it is awaited."""
    scene = Scene(host)
    with pytest.raises(ValueError, match="a number of seconds above 0"):
        scene.engine.cycles(interval)
    with pytest.raises(ValueError, match="a number of seconds above 0"):
        _ = scene.engine.start_monitoring(interval)


async def test_stop_ends_every_monitor_that_was_called_for_and_none_that_comes_later(host: FakeHost) -> None:
    scene = Scene(host)
    assert not inspect.iscoroutinefunction(scene.engine.start_monitoring)
    scene.engine.stop()  # nothing runs: it is for nobody
    early = scene.engine.start_monitoring(0.001)
    assert inspect.iscoroutine(early)
    scene.engine.stop()
    await asyncio.wait_for(early, 10)
    assert scene.engine.get_metrics()["last_check"] is None  # not one cycle

    running = [asyncio.create_task(scene.engine.start_monitoring(3600)) for _ in range(2)]
    await asyncio.sleep(0.05)
    assert scene.engine.get_metrics()["last_check"] is not None
    assert not any(task.done() for task in running)
    scene.engine.stop()
    await asyncio.wait_for(asyncio.gather(*running), 10)

    cycles = 0
    async for _ in scene.engine.cycles(0.001):  # a later one runs
        cycles += 1
        if cycles == 2:
            scene.engine.stop()
    assert cycles == 2
