"""What the book keeps beside acts: questions that are withdrawn or asked anew, and when the host woke."""

from __future__ import annotations

from pathlib import Path

import pytest

from luminous_nix.self_healing.decide.policy import Mode, Policy
from luminous_nix.self_healing.models import Verdict
from luminous_nix.self_healing.store import Store
from tests.unit.host import Clock, FakeHost
from tests.unit.test_engine import Scene, relief

pytestmark = pytest.mark.anyio
ASKING = Policy(mode=Mode.CONFIRM, confirm_s=600.0)


def asks(scene: Scene) -> list[bool]:
    return [document["asks"] is not None for document in scene.engine.store.records()]


async def test_a_question_about_what_is_over_is_withdrawn(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, policy=ASKING)
    await scene.cycle()
    assert asks(scene) == [True]
    host.memory(40.0)
    await scene.engine.detect_and_heal()
    assert asks(scene) == [False]
    assert scene.engine.store.records()[0]["notes"][-1] == "it was over before anybody answered"


async def test_a_question_that_expired_is_asked_anew_and_one_that_waits_is_not_prolonged(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, policy=ASKING)
    await scene.cycle()
    first = scene.engine.store.records()[0]["asks"]["until"]
    scene.clock.now += 300.0
    await scene.engine.detect_and_heal()
    assert scene.engine.store.records()[0]["asks"]["until"] == first
    scene.clock.now += 301.0
    await scene.engine.detect_and_heal()
    (document,) = scene.engine.store.records()
    assert document["asks"]["until"] > first


async def test_a_question_comes_when_the_policy_begins_to_ask(host: FakeHost) -> None:
    host.memory(97.0)
    scene = Scene(host, policy=Policy(mode=Mode.OBSERVE))
    await scene.cycle()
    assert asks(scene) == [False]
    scene.engine.policy = ASKING
    await scene.engine.detect_and_heal()
    assert asks(scene) == [True]


async def test_the_grace_after_a_sleep_holds_over_a_restart_of_the_program(host: FakeHost, tmp_path: Path) -> None:
    host.memory(97.0)
    clock, slept = Clock(), [0.0]

    def begin(boot: str = "one") -> Scene:
        store = Store(tmp_path / "state/state.db", clock=clock, boot_id=boot)
        return Scene(host, relief(host), store=store, clock=clock, sleep=clock.sleep, suspended=lambda: slept[0])

    before = begin()
    await before.engine.look()
    clock.now, slept[0] = clock.now + 3600.0, 3500.0
    (told,) = await before.cycle()
    assert "resume grace: the host woke up 0 s ago" in str(told.error)
    before.engine.store.close()
    clock.now += 60.0
    after = begin()
    (told,) = await after.cycle()
    assert "resume grace: the host woke up 60 s ago" in str(told.error)
    clock.now += 61.0
    assert (await after.engine.detect_and_heal())[0].verdict is Verdict.HEALED
    after.engine.store.close()
    fresh = begin("two")  # of another boot nothing is taken over: it may have woken just now
    host.memory(97.0)
    assert "resume grace" in str((await fresh.cycle())[0].error)
