"""One rung, with a store that is a file: the intent before the act, the outcome after it, and what is done when the
program ends in between."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from luminous_nix.self_healing.act.executor import SimpleExecutor
from luminous_nix.self_healing.act.steps import Plan, Step, WriteFile
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.decide.limits import Act, breaker
from luminous_nix.self_healing.heal.reconcile import reconcile
from luminous_nix.self_healing.heal.records import HealingRecord, Rung
from luminous_nix.self_healing.heal.verify import harm
from luminous_nix.self_healing.models import (
    Action,
    ActionFailed,
    ExecutionMode,
    Issue,
    IssueType,
    Severity,
    Snapshot,
    UnitState,
    Verdict,
)
from luminous_nix.self_healing.permission_handler import NixOSPermissionHandler
from luminous_nix.self_healing.store import Store
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, FakeHost, no_bus
from tests.unit.test_engine import Answering, Broken, Scene, relief, trouble

pytestmark = pytest.mark.anyio
SWAPPINESS = {"action": "adjust_swappiness", "parameters": {"value": 10}}


def kept(host: FakeHost, clock: Clock) -> Store:
    return Store(host.root / "state/state.db", clock=clock, boot_id="boot-1")


def staged(host: FakeHost, effect: Callable[[Step], None] | None = None, **more: Any) -> Scene:
    """Memory at 97 %, and a store on disk; the scene's clock is also the store's."""
    host.memory(97.0)
    clock = Clock()
    scene = Scene(host, effect, clock=clock, sleep=clock.sleep, store=kept(host, clock), **more)
    scene.clock = clock
    return scene


def written(host: FakeHost, then: Callable[[], None] = lambda: None) -> Callable[[Step], None]:
    """Writes what a step writes, as the kernel would."""

    def act(step: Step) -> None:
        if isinstance(step, WriteFile):
            host.write(step.path, step.text)
        then()

    return act


def last(scene: Scene) -> HealingRecord:
    return HealingRecord.parse(scene.engine.store.records(number=1)[0])


async def test_the_intent_and_its_record_are_on_disk_before_anything_is_touched(host: FakeHost) -> None:
    found: list[Any] = []

    def look(_: Step) -> None:
        other = kept(host, Clock())
        found.extend([other.unfinished(), other.records()])
        other.close()
        host.memory(40.0)

    scene = staged(host, look)
    assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.HEALED
    ((_, act),), (document,) = found
    assert (act.target, act.action, act.cause, act.ended, act.effective, act.automatic) == (
        "memory", "clear_system_cache", "resource/memory", None, None, False
    )  # fmt: skip
    assert act.incident == document["id"]
    record = HealingRecord.parse(document)
    assert (record.verdict, record.taken) == ("open", ["clear_system_cache"])
    assert record.rungs[0].before == "memory is at 97.0, the threshold is 85"
    assert {gate.rule for gate in record.rungs[0].gates} >= {"store", "policy", "rate", "breaker"}


class Settling(NixOSPermissionHandler):
    """Its precheck leaves nothing open: as that of limit_unit, which reads how much the unit takes."""

    async def prepare(self, action: Action) -> Plan:
        self.asked = [*getattr(self, "asked", []), dict(action.parameters)]
        return replace(await super().prepare(action), settled={"bytes": 8 << 20})


async def test_what_is_done_is_what_was_settled_for_the_record(host: FakeHost) -> None:
    scene = staged(host, relief(host))
    handler = Settling(ExecutionMode.DEVELOPMENT, bus=no_bus(), roots=host.roots, runner=scene.runner, environment={})
    scene.engine.executor = SimpleExecutor(handler)
    await scene.engine.heal_issue(trouble())
    assert handler.asked == [{}, {"bytes": 8 << 20}]


async def test_the_outcome_is_kept_with_what_was_measured(host: FakeHost) -> None:
    scene = staged(host, relief(host))
    result = await scene.engine.heal_issue(trouble())
    (act,) = scene.engine.store.acts()
    assert (act.effective, act.harm) == (True, False)
    assert act.ended is not None
    assert act.ended >= act.started + 1.5
    record = last(scene)
    assert (record.id, record.verdict) == (result.record, "healed")
    (rung,) = record.rungs
    assert (rung.taken, rung.verdict, rung.harm, rung.undone) == (True, "healed", "", "")
    assert rung.after == "memory is at 40.0, the threshold is 85"


async def test_when_the_trouble_was_seen_again_is_kept_with_the_act(host: FakeHost) -> None:
    scene = staged(host, relief(host))
    await scene.cycle()
    assert [act.automatic for act in scene.engine.store.acts()] == [True]
    await scene.engine.detect_and_heal()
    scene.clock.now += 500.0
    host.memory(97.0)
    await scene.engine.detect_and_heal()
    back = scene.engine.store.now()
    scene.clock.now += 60.0
    await scene.engine.detect_and_heal()
    with scene.engine.store.exclusive():  # as it is on disk
        assert [act.relapsed for act in scene.engine.store.acts()] == [back]


async def test_a_refusal_of_the_precheck_gives_the_budget_back_and_says_so(host: FakeHost) -> None:
    scene = staged(host)
    host.service_cache("idle.service", 0)
    result = await scene.engine.heal_issue(trouble())
    for record in scene.engine.store.records():
        assert (record["verdict"], record["actions"]) == ("refused", [])
    assert (result.verdict, scene.engine.store.acts(), scene.engine.store.unfinished()) == (Verdict.REFUSED, [], [])


async def test_without_a_record_there_is_no_act(host: FakeHost) -> None:
    scene = staged(host)
    assert scene.engine.store._db is not None
    scene.engine.store._db.execute("PRAGMA query_only = ON")
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, result.action_taken, scene.runner.steps) == (Verdict.REFUSED, "none", [])
    assert "the store cannot be written" in str(result.error)
    result = await scene.engine.heal_issue(trouble())
    assert "the store" in str(result.error)
    assert scene.runner.steps == []


async def test_a_store_that_fails_after_the_act_is_no_refusal(host: FakeHost) -> None:
    """Something was done: the result must not say that nothing was."""

    def act(_: Step) -> None:
        db = scene.engine.store._db
        assert db is not None
        db.execute("PRAGMA query_only = ON")
        host.memory(40.0)

    scene = staged(host, act)
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, len(scene.runner.steps)) == (Verdict.FAILED, 1)
    assert "the store cannot be written" in str(result.error)


async def test_an_error_of_our_own_in_the_middle_is_kept_as_an_act(host: FakeHost) -> None:
    scene = staged(host)
    scene.engine.executor = Broken(scene.engine.executor.handler)
    assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.FAILED
    (act,) = scene.engine.store.acts()
    assert (act.effective, act.ended is None) == (False, False)
    (rung,) = last(scene).rungs
    assert (rung.taken, rung.said, rung.verdict) == (True, "it was broken off", "failed")


async def test_a_cancellation_in_the_middle_is_kept_as_an_act(host: FakeHost) -> None:
    scene = staged(host)
    started = asyncio.Event()

    async def run(step: Step) -> str:
        scene.runner.steps.append(step)
        started.set()
        await asyncio.sleep(3600)
        return "never"

    scene.runner.run = run  # type: ignore[method-assign]
    task = asyncio.create_task(scene.engine.heal_issue(trouble()))
    await asyncio.wait_for(started.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.engine.store.unfinished() == []
    assert [act.effective for act in scene.engine.store.acts()] == [False]


# -- what did not help is not left behind --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("then", "verdict"),
    [
        pytest.param(lambda _: None, Verdict.NO_EFFECT, id="no effect"),
        pytest.param(lambda host: host.pressure("io", 60.0, 60.0), Verdict.WORSE, id="it did harm"),
        pytest.param(lambda host: (host.memory(40.0), host.pressure("io", 60.0, 60.0)), Verdict.WORSE,
                     id="it helped and did harm"),
    ],
)  # fmt: skip
async def test_what_did_not_help_is_set_back(
    host: FakeHost, then: Callable[[FakeHost], None], verdict: Verdict
) -> None:
    knob = host.write(host.roots.proc / "sys/vm/swappiness", "60")
    scene = staged(host, checks=("memory", "pressure"), resolver=Answering(SWAPPINESS))
    calls: list[str] = []

    def act(step: Step) -> None:
        if isinstance(step, WriteFile):
            host.write(step.path, step.text)
            calls.append(step.text)
        if len(calls) == 1:
            then(host)

    scene.runner._effect = act
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, calls, knob.read_text()) == (verdict, ["10", "60"], "60")
    (rung,) = last(scene).rungs
    assert rung.knobs == (("vm.swappiness", "60", "10"),)
    assert rung.undone == "undone: the former values are back"
    (kept_act,) = scene.engine.store.acts()
    assert (kept_act.effective, kept_act.harm) == (False, verdict is Verdict.WORSE)
    if verdict is Verdict.WORSE:
        assert rung.harm == "pressure:io:full rose from 0 to 60 %"
        assert breaker([kept_act], scene.engine.limits, kept_act.cause, scene.engine.store.now()) is not None


async def test_what_helped_stays(host: FakeHost) -> None:
    knob = host.write(host.roots.proc / "sys/vm/swappiness", "60")
    scene = staged(host, written(host, lambda: host.memory(40.0)), resolver=Answering(SWAPPINESS))
    assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.HEALED
    assert knob.read_text() == "10"
    assert last(scene).rungs[0].undone == ""


async def test_what_somebody_changed_meanwhile_is_left_and_told(host: FakeHost) -> None:
    knob = host.write(host.roots.proc / "sys/vm/swappiness", "60")

    def somebody(_: Step) -> None:
        knob.write_text("33")

    scene = staged(host, somebody, resolver=Answering(SWAPPINESS))
    assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.NO_EFFECT
    assert knob.read_text() == "33"
    assert (
        last(scene).rungs[0].undone.startswith("not undone: vm.swappiness was changed since (it is 33, we left 10)")
    )


async def test_an_act_that_failed_may_have_set_something_and_it_is_set_back(host: FakeHost) -> None:
    knob = host.write(host.roots.proc / "sys/vm/swappiness", "60")
    scene = staged(host, resolver=Answering(SWAPPINESS))

    async def run(step: Step) -> str:
        written(host)(step)
        scene.runner.steps.append(step)
        if len(scene.runner.steps) == 1:
            raise ActionFailed("it hung", "look at it")
        return "done"

    scene.runner.run = run  # type: ignore[method-assign]
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, knob.read_text()) == (Verdict.FAILED, "60")
    assert last(scene).rungs[0].said.startswith("it hung (look at it); no recovery within")


# -- harm ----------------------------------------------------------------------------------------------------------


def units(**states: str) -> tuple[UnitState, ...]:
    return tuple(UnitState(f"{name}.service", active=active) for name, active in states.items())


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        pytest.param(Snapshot({}), Snapshot({}), "", id="nothing to see"),
        pytest.param(Snapshot({}), Snapshot({}, units(b="failed", a="failed")), "a.service, b.service failed since",
                     id="units that failed since"),
        pytest.param(Snapshot({}, units(a="failed")), Snapshot({}, units(a="failed")), "", id="it had failed before"),
        pytest.param(Snapshot({}), Snapshot({}, units(target="failed")), "", id="the target itself"),
        pytest.param(Snapshot({}), Snapshot({}, units(a="inactive")), "", id="one that ended"),
        pytest.param(Snapshot({"pressure:io:full": 10.0}), Snapshot({"pressure:io:full": 30.0}), "",
                     id="pressure that rose by 20 points"),
        pytest.param(Snapshot({"pressure:io:full": 10.0}), Snapshot({"pressure:io:full": 30.1}),
                     "pressure:io:full rose from 10 to 30 %", id="pressure that rose by more"),
        pytest.param(Snapshot({}), Snapshot({"pressure:io:full": 99.0}), "", id="pressure that was not seen before"),
        pytest.param(Snapshot({"pressure:io:some": 1.0}), Snapshot({"pressure:io:some": 99.0}), "",
                     id="some wait, not all"),
        pytest.param(Snapshot({"cpu": 1.0}), Snapshot({"cpu": 99.0}), "", id="another level"),
        pytest.param(Snapshot({"pressure:cpu:full": 0.0}), Snapshot({"pressure:cpu:full": 50.0}, units(a="failed")),
                     "a.service failed since; pressure:cpu:full rose from 0 to 50 %", id="both"),
    ],
)  # fmt: skip
def test_what_got_worse(before: Snapshot, after: Snapshot, said: str) -> None:
    assert harm(before, after, "target.service") == said


# -- a verdict is final when its deadline has passed ---------------------------------------------------------


async def test_a_relapse_before_the_deadline_takes_the_verdict_back(host: FakeHost) -> None:
    scene = staged(host, relief(host))
    (result,) = await scene.cycle()
    assert result.verdict is Verdict.HEALED
    await scene.engine.look()
    scene.clock.now += 2.0  # of the 5 s within which the effect was to show
    host.memory(97.0)
    await scene.engine.look()
    assert [act.effective for act in scene.engine.store.acts()] == [False]
    record = last(scene)
    assert (record.id, record.verdict) == (result.record, "no_effect")
    assert record.notes[-1].startswith("it did not last: it was there again 2 s later")


async def test_a_relapse_after_the_deadline_does_not(host: FakeHost) -> None:
    scene = staged(host, relief(host))
    await scene.cycle()
    await scene.engine.look()
    scene.clock.now += 5.0
    await scene.engine.look()
    host.memory(97.0)
    await scene.engine.look()
    assert [act.effective for act in scene.engine.store.acts()] == [True]
    assert last(scene).verdict == "healed"


async def test_a_verdict_that_cannot_be_taken_back_ends_no_look(
    host: FakeHost, caplog: pytest.LogCaptureFixture
) -> None:
    scene = staged(host, relief(host))
    await scene.cycle()
    await scene.engine.look()
    assert scene.engine.store._db is not None
    scene.engine.store._db.execute("PRAGMA query_only = ON")
    scene.clock.now += 1.0
    host.memory(97.0)
    await scene.engine.look()
    assert scene.engine.store.fault
    assert "could not be" in caplog.text


async def test_the_third_opening_of_a_day_is_latched(host: FakeHost) -> None:
    scene = staged(host)
    for _ in range(4):
        assert (await scene.engine.heal_issue(trouble())).verdict is Verdict.NO_EFFECT
        scene.clock.now += 2 * 3600.0
    assert scene.engine.store.latches == {"resource/memory"}
    scene.clock.now += 30 * 86400.0  # long after the acts themselves are forgotten
    assert "a person is needed" in str((await scene.engine.heal_issue(trouble())).error)
    assert scene.engine.store.acts() == []


# -- after an end in the middle of an act --------------------------------------------------------------------


def begun(scene: Scene, issue: Issue, action: str = "clear_system_cache", identity: str = "ab" * 6) -> HealingRecord:
    """What a program leaves behind that ended in the middle."""
    record = HealingRecord(identity, scene.engine.store.now(), "then", issue)
    act = Act(issue.component, action, identity, issue.subject(), scene.engine.store.now())
    scene.engine.store.begin(act, record.document())
    return record


@pytest.mark.parametrize(
    ("used", "said"),
    [
        (97.0, "the host shows: memory is at 97.0, the threshold is 85"),
        (40.0, "the host shows: memory is at 40.0, the threshold is 85"),
        (None, "the host shows: memory cannot be observed"),
    ],
    ids=["still there", "over", "not to be seen"],
)
async def test_what_was_under_way_is_looked_at_written_down_and_not_repeated(
    host: FakeHost, used: float | None, said: str
) -> None:
    scene = staged(host)
    begun(scene, trouble())
    if used is None:
        (host.roots.proc / "meminfo").unlink()
    else:
        host.memory(used)
    scene.clock.now += 60.0
    assert await reconcile(scene.engine.store, scene.detector, scene.engine.executor) == 1
    assert await reconcile(scene.engine.store, scene.detector, scene.engine.executor) == 0
    (act,) = scene.engine.store.acts()
    assert (act.ended, act.effective) == (60.0, None)
    record = last(scene)
    assert record.verdict == "failed"  # whatever the host shows: nobody knows whose doing that is
    begins = "the program ended while clear_system_cache was under way: whether it was done is not known, and it is"
    assert record.notes == (f"{begins} not repeated; {said}",)
    assert scene.runner.steps == []


async def test_a_unit_that_was_under_way_is_looked_at_too(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    systemd.put("nginx.service", "active", "running")
    async with systemd.on(bus_daemon.address):
        scene = staged(host, checks=("services",), bus=bus)
        begun(scene, Issue(IssueType.SERVICE, Severity.HIGH, "x", "nginx", kind="unit_failed"), "restart_service")
        await reconcile(scene.engine.store, scene.detector, scene.engine.executor)
        assert "nginx.service is active (running)" in last(scene).notes[-1]
        await bus.close()


async def test_the_next_heal_reconciles_first_and_the_limits_count_it(host: FakeHost) -> None:
    scene = staged(host)
    begun(scene, trouble())
    scene.clock.now += 100.0
    result = await scene.engine.heal_issue(trouble())
    assert result.verdict is Verdict.REFUSED
    assert "cooldown: the last act on memory ended 0 s ago" in str(result.error)
    assert scene.engine.store.unfinished() == []


@pytest.mark.parametrize("document", [None, {"issue": "no issue"}], ids=["no record", "a record that is none"])
async def test_an_act_whose_record_is_lost_is_closed_all_the_same(
    host: FakeHost, document: dict[str, Any] | None, caplog: pytest.LogCaptureFixture
) -> None:
    scene = staged(host)
    head = {"id": "ab", "opened": 1.0, "wall": "", "component": "x", "cause": "y", "verdict": "open"}
    act = Act("memory", "clear_system_cache", "ab", "resource/memory", 0.0)
    scene.engine.store.begin(act, document and {**head, **document})
    with caplog.at_level(logging.WARNING):
        assert await reconcile(scene.engine.store, scene.detector, scene.engine.executor) == 1
    assert scene.engine.store.unfinished() == []
    assert "its outcome is not known" in caplog.text
    assert ("what became of clear_system_cache on memory cannot be told" in caplog.text) is (document is not None)


async def test_two_acts_under_way_are_both_closed(host: FakeHost) -> None:
    scene = staged(host, checks=("memory", "load"))
    begun(scene, trouble(), identity="aa" * 6)
    begun(scene, replace(trouble(), component="load", threshold=10.0), identity="bb" * 6)
    assert await reconcile(scene.engine.store, scene.detector, scene.engine.executor) == 2
    assert [record["verdict"] for record in scene.engine.store.records()] == ["failed", "failed"]


@pytest.mark.parametrize(
    "present", ["10", "60", "33"], ids=["as it was about to be set", "as it was", "changed since"]
)
async def test_a_knob_that_was_about_to_be_set_is_set_back_unless_somebody_changed_it(
    host: FakeHost, present: str
) -> None:
    knob = host.write(host.roots.proc / "sys/vm/swappiness", present)
    scene = staged(host, written(host))
    record = begun(scene, trouble(), "adjust_swappiness")
    rung = Rung("adjust_swappiness", {"value": 10}, taken=True, knobs=(("vm.swappiness", "60", "10"),))
    scene.engine.store.keep(record.with_rung(rung).document())
    await reconcile(scene.engine.store, scene.detector, scene.engine.executor)
    assert knob.read_text() == ("33" if present == "33" else "60")
    assert last(scene).rungs[0].undone.startswith("not undone" if present == "33" else "undone")


async def test_a_cancellation_sets_back_what_was_set(host: FakeHost) -> None:
    knob = host.write(host.roots.proc / "sys/vm/swappiness", "60")
    scene = staged(host, written(host), resolver=Answering(SWAPPINESS))
    measuring = asyncio.Event()

    async def sleep(seconds: float) -> None:
        measuring.set()
        await asyncio.sleep(3600)

    scene.engine._sleep = sleep
    task = asyncio.create_task(scene.engine.heal_issue(trouble()))
    await asyncio.wait_for(measuring.wait(), 10)
    assert knob.read_text() == "10"
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert knob.read_text() == "60"
    assert (last(scene).verdict, last(scene).rungs[0].undone) == ("failed", "undone: the former values are back")


async def test_a_kill_switch_between_the_intent_and_the_first_step_gives_the_budget_back(host: FakeHost) -> None:
    scene = staged(host)
    scene.engine.executor.handler.switch = lambda: "the file is there"
    result = await scene.engine.heal_issue(trouble())
    assert (result.verdict, scene.runner.steps, scene.engine.store.acts()) == (Verdict.REFUSED, [], [])
    assert "stopped by the kill switch: the file is there" in str(result.error)
    record = last(scene)
    assert (record.verdict, record.taken) == ("refused", [])


async def test_who_cannot_act_at_all_begins_nothing(host: FakeHost) -> None:
    scene = staged(host)
    handler = NixOSPermissionHandler(ExecutionMode.SERVICE, bus=no_bus(), roots=host.roots, environment={})
    scene.engine.executor = SimpleExecutor(handler)
    result = await scene.engine.heal_issue(trouble())
    assert result.verdict is Verdict.REFUSED
    assert "SERVICE mode needs the helper" in str(result.error)
    assert (scene.engine.store.acts(), scene.engine.store.unfinished()) == ([], [])


async def test_the_grace_after_waking_holds_over_a_restart_of_ours(host: FakeHost) -> None:
    asleep = [0.0]
    scene = staged(host, relief(host), suspended=lambda: asleep[0])
    await scene.engine.look()
    asleep[0] = 500.0
    (result,) = await scene.cycle()
    assert "resume grace: the host woke up 0 s ago" in str(result.error)
    scene.engine.store.close()
    again = Scene(host, relief(host), clock=scene.clock, sleep=scene.clock.sleep, store=kept(host, scene.clock),
                  suspended=lambda: asleep[0])  # fmt: skip
    scene.clock.now += 60.0
    (result,) = await again.cycle()
    assert "resume grace: the host woke up 60 s ago" in str(result.error)
    scene.clock.now += 60.0
    (result,) = await again.cycle()
    assert result.verdict is Verdict.HEALED
    again.engine.store.close()
