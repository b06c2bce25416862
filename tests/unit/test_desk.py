"""What people may ask: each verb with an engine on a host of files and a store on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from luminous_nix.self_healing.act.steps import Step, WriteFile
from luminous_nix.self_healing.control import Peer, Rights
from luminous_nix.self_healing.decide.limits import Limits
from luminous_nix.self_healing.decide.policy import Mode, Policy, Rule
from luminous_nix.self_healing.desk import Desk, seconds
from luminous_nix.self_healing.heal.records import HealingRecord
from luminous_nix.self_healing.models import ActionFailed, ActionRefused, HealingError, Verdict
from luminous_nix.self_healing.store import Store, StoreFault
from tests.unit.host import Clock, FakeHost
from tests.unit.test_engine import Answering, Scene, relief, trouble

pytestmark = pytest.mark.anyio
SWAPPINESS = {"action": "adjust_swappiness", "parameters": {"value": 10}}
ASKS = Policy(rules=(Rule(Mode.CONFIRM, action="adjust_swappiness"),))
HOUR = 3600.0


class Counter:
    """An engine at a desk; `knob` is the host's swappiness."""

    def __init__(self, host: FakeHost, effect: Callable[[Step], None] | None = None, **more: Any) -> None:
        host.memory(97.0)
        self.host = host
        self.knob = host.write(host.roots.proc / "sys/vm/swappiness", "60")
        self.clock = Clock()
        self.store = Store(host.root / "state/state.db", clock=self.clock, boot_id="boot-1")
        self.scene = Scene(host, effect or self._write, clock=self.clock, sleep=self.clock.sleep, store=self.store,
                           **{"resolver": Answering(SWAPPINESS), **more})  # fmt: skip
        self.scene.clock = self.clock
        self.engine = self.scene.engine
        self.desk = Desk(self.engine)

    def _write(self, step: Step) -> None:
        if isinstance(step, WriteFile):
            self.host.write(step.path, step.text)
        if step == self.scene.runner.steps[0]:
            self.host.memory(40.0)

    async def ask(self, verb: str, **arguments: Any) -> dict[str, Any]:
        found = await self.desk.ask(verb, arguments)
        assert json.loads(json.dumps(found)) == found  # it goes over a socket
        return found

    async def refused(self, verb: str, **arguments: Any) -> str:
        with pytest.raises(HealingError) as problem:
            await self.desk.ask(verb, arguments)
        return problem.value.message


@pytest.fixture
def counter(host: FakeHost) -> Counter:
    return Counter(host)


# -- what may be asked ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "span"),
    [("1s", 1.0), ("90s", 90.0), ("30m", 1800.0), (" 2h ", 7200.0), ("1d", 86400.0), ("30d", 30 * 86400.0)],
)
def test_a_span_of_time(text: str, span: float) -> None:
    assert seconds(text) == span


@pytest.mark.parametrize(
    "text",
    ["", "0s", "31d", "721h", "1w", "1", "h", "-1h", "1.5h", "1h30m", "1 h", "9999999s", "\u0661h", "1h\n\n1h"],
)
def test_what_is_no_span_of_time(text: str) -> None:
    with pytest.raises(ValueError, match="a time such as 30m, 2h or 1d, at most 30d"):
        seconds(text)


def test_who_may_ask_what(counter: Counter) -> None:
    rights = {name: verb.rights for name, verb in counter.desk.verbs().items()}
    assert {name for name, right in rights.items() if right is Rights.READ} == {"status", "history", "explain"}
    assert {name for name, right in rights.items() if right is Rights.CALM} == {"silence", "pause", "confirm_as"}
    assert {name for name, right in rights.items() if right is Rights.ACT} == {
        "confirm", "undo", "unsilence", "resume"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "arguments", "said"),
    [
        ("explain", {}, "the argument 'what' is missing"),
        ("explain", {"what": "x" * 201}, "at most 200 characters"),
        ("explain", {"what": 5}, "at most 200 characters"),
        ("history", {"number": 0}, "a whole number from 1 to 1000"),
        ("history", {"number": 1001}, "a whole number from 1 to 1000"),
        ("history", {"number": True}, "a whole number from 1 to 1000"),
        ("history", {"component": None}, "at most 200 characters"),
        ("history", {"colour": "red"}, "unknown argument 'colour'"),
        ("confirm", {"id": "abc"}, "a record's id"),
        ("confirm", {"id": "../x"}, "a record's id"),
        ("undo", {"id": 1234}, "a record's id"),
        ("silence", {"pattern": "", "seconds": 5.0}, "a unit or component"),
        ("silence", {"pattern": "a b", "seconds": 5.0}, "a unit or component"),
        ("silence", {"pattern": "a\n", "seconds": 5.0}, "a unit or component"),
        ("silence", {"pattern": "x" * 201, "seconds": 5.0}, "a unit or component"),
        ("silence", {"pattern": "a", "seconds": "5"}, "seconds must be float"),
        ("silence", {"pattern": "a", "seconds": 0.0}, "a silence lasts from 1 second to 30 days"),
        ("silence", {"pattern": "a", "seconds": -1.0}, "a silence lasts from 1 second to 30 days"),
        ("silence", {"pattern": "a", "seconds": 30 * 86400.0 + 1}, "a silence lasts from 1 second to 30 days"),
        ("pause", {"reason": "x" * 201}, "at most 200 characters"),
        ("resume", {"breakers": 1}, "breakers must be bool"),
    ],
)
async def test_what_is_asked_in_the_wrong_way_is_told(
    counter: Counter, verb: str, arguments: dict[str, Any], said: str
) -> None:
    assert said in await counter.refused(verb, **arguments)


async def test_a_verb_of_the_socket_is_the_same_verb(counter: Counter) -> None:
    peer = Peer(1, 0, frozenset())
    found = await counter.desk.verbs()["pause"].run({"reason": "x"}, peer)
    assert found == {"stopped": "paused: x (`luminous-healing resume` ends it)"}


# -- status -----------------------------------------------------------------------------------------------------


async def test_the_status_of_a_quiet_host(counter: Counter) -> None:
    assert await counter.ask("status") == {
        "running": True, "stopped": None, "powerless": None, "store": None, "store_lifts": None, "dry_run": False,
        "mode": "auto", "maintenance": None,
        "silences": [], "breakers": [], "heals_last_hour": 0, "heals_per_hour": 10, "waiting": [], "open": [],
    }  # fmt: skip
    assert (await Desk(counter.engine, running=False).ask("status", {}))["running"] is False


async def test_the_status_tells_what_is_open_silenced_and_used(counter: Counter) -> None:
    counter.engine.limits = Limits(heals_per_hour=4)
    assert (await counter.engine.heal_issue(trouble())).verdict is Verdict.HEALED
    counter.clock.now += 60.0
    counter.host.memory(97.0)
    await counter.engine.look()
    counter.clock.now += 5.0
    await counter.ask("silence", pattern="nginx*", seconds=90, reason="a test")
    counter.clock.now += 30.0
    found = await counter.ask("status")
    assert (found["heals_last_hour"], found["heals_per_hour"]) == (1, 4)
    ((identity, silence),) = ((one.pop("id"), one) for one in found["silences"])
    assert len(identity) == 6
    assert silence == {"pattern": "nginx*", "ends_in_s": 60, "reason": "a test"}
    (incident,) = found["open"]
    assert (incident["component"], incident["open_for_s"]) == ("memory", 35)
    counter.clock.now += HOUR
    assert (await counter.ask("status"))["heals_last_hour"] == 0


async def test_the_status_names_the_breakers_that_are_open(host: FakeHost) -> None:
    counter = Counter(host, lambda _: None, resolver=None)
    for _ in range(4):
        assert (await counter.engine.heal_issue(trouble())).verdict is Verdict.NO_EFFECT
        (told,) = (await counter.ask("status"))["breakers"] or [None]
        counter.clock.now += 2 * HOUR
    assert told is not None
    assert (told["cause"], told["lifts"]) == ("resource/memory", "when a person resets it")
    counter.clock.now += 30 * 86400.0
    (told,) = (await counter.ask("status"))["breakers"]
    assert told["reason"] == "three times open in 24 h for resource/memory: a person is needed"
    await counter.ask("resume", breakers=True)
    assert (await counter.ask("status"))["breakers"] == []


async def test_the_status_of_a_store_that_is_out_of_order(counter: Counter) -> None:
    assert counter.store.path is not None
    counter.store.close()
    counter.store.path.write_text("no store" * 999)
    counter.engine.store = counter.store = Store(counter.store.path, clock=counter.clock, boot_id="boot-1")
    counter.desk = Desk(counter.engine)
    found = await counter.ask("status")
    assert "corrupt" in found["store"]
    assert "resume --store" in found["store_lifts"]
    assert (found["breakers"], found["silences"], found["waiting"], found["heals_last_hour"]) == ([], [], [], 0)
    with pytest.raises(StoreFault):
        await counter.ask("history")
    assert await counter.ask("resume", store=True) == {"stopped": None}
    assert (await counter.ask("status"))["store"] is None
    with pytest.raises(StoreFault, match="the store is in order"):
        await counter.ask("resume", store=True)


# -- history and explain -------------------------------------------------------------------------------------------


async def healed(counter: Counter) -> str:
    result = await counter.engine.heal_issue(trouble())
    assert result.verdict is Verdict.HEALED
    return result.record


async def test_what_was_done_is_told_newest_first(counter: Counter) -> None:
    first = await healed(counter)
    counter.clock.now += HOUR
    counter.host.memory(97.0)
    second = (await counter.engine.heal_issue(trouble())).record
    records = (await counter.ask("history"))["records"]
    assert [record["id"] for record in records] == [second, first]
    assert (await counter.ask("history", number=1))["records"] == records[:1]
    assert (await counter.ask("history", component="memory.service"))["records"] == records
    assert (await counter.ask("history", component="nginx"))["records"] == []


@pytest.mark.parametrize("by", ["id", "beginning", "component", "fingerprint"])
async def test_a_heal_is_explained_by(counter: Counter, by: str) -> None:
    identity = await healed(counter)
    names = {"id": identity, "beginning": identity[:4], "component": "memory", "fingerprint": "resource/memory/-"}
    found = await counter.ask("explain", what=names[by])
    assert (found["record"]["id"], found["now"]) == (identity, counter.store.now())


async def test_what_there_is_no_record_of_is_told(counter: Counter) -> None:
    await healed(counter)
    assert "there is no record of 'nginx'" in await counter.refused("explain", what="nginx")
    assert len(await counter.refused("explain", what="x" * 200)) < 150


async def test_a_component_that_reads_like_an_id_is_found_too(counter: Counter) -> None:
    counter.store.keep({**HealingRecord("f" * 12, 1.0, "", trouble("cafe")).document()})
    assert (await counter.ask("explain", what="cafe"))["record"]["component"] == "cafe"


# -- confirm ---------------------------------------------------------------------------------------------------------


async def test_what_waits_for_a_word_is_done_when_it_comes(host: FakeHost) -> None:
    counter = Counter(host, policy=ASKS)
    (result,) = await counter.scene.cycle()
    assert (result.verdict, counter.knob.read_text()) == (Verdict.REFUSED, "60")
    (waiting,) = (await counter.ask("status"))["waiting"]
    assert (waiting["component"], waiting["action"], waiting["ends_in_s"]) == ("memory", "adjust_swappiness", 3600)
    found = await counter.ask("confirm", id=waiting["id"][:6])
    assert (found["id"], found["result"]["verdict"]) == (waiting["id"], "healed")
    assert counter.knob.read_text() == "10"
    assert (await counter.ask("status"))["waiting"] == []
    assert "waits for no word: it is healed" in await counter.refused("confirm", id=waiting["id"])


async def test_a_word_that_comes_too_late_does_nothing(host: FakeHost) -> None:
    counter = Counter(host, policy=ASKS)
    await counter.scene.cycle()
    (waiting,) = (await counter.ask("status"))["waiting"]
    counter.clock.now += HOUR
    assert (await counter.ask("status"))["waiting"] == []
    assert "has expired" in await counter.refused("confirm", id=waiting["id"])
    assert counter.scene.runner.steps == []


async def test_a_record_that_asks_for_nothing(counter: Counter) -> None:
    identity = await healed(counter)
    assert "waits for no word: it is healed" in await counter.refused("confirm", id=identity)
    counter.store.keep(HealingRecord("e" * 12, 1.0, "", trouble()).document())
    assert "waits for no word: it asks for nothing" in await counter.refused("confirm", id="e" * 12)
    assert "there is no record 'abcd'" in await counter.refused("confirm", id="abcd")


async def test_a_word_opens_no_other_gate(host: FakeHost) -> None:
    counter = Counter(host, policy=ASKS)
    await counter.scene.cycle()
    (waiting,) = (await counter.ask("status"))["waiting"]
    await counter.ask("pause")
    found = await counter.ask("confirm", id=waiting["id"])
    assert (found["result"]["verdict"], counter.knob.read_text()) == ("refused", "60")
    assert "paused: a person asked for it" in found["result"]["error"]


# -- undo ------------------------------------------------------------------------------------------------------------


async def test_what_a_heal_set_is_set_back_once(counter: Counter) -> None:
    identity = await healed(counter)
    assert counter.knob.read_text() == "10"
    assert await counter.ask("undo", id=identity) == {
        "id": identity, "told": ["a person asked: undone: the former values are back"]
    }  # fmt: skip
    assert counter.knob.read_text() == "60"
    record = HealingRecord.parse((await counter.ask("explain", what=identity))["record"])
    assert (record.verdict, record.rungs[0].undone) == ("healed", "undone: the former values are back")
    act = counter.store.acts()[-1]
    assert (act.action, act.cause, act.automatic, act.effective) == ("undo", f"undo/{identity}", False, True)
    assert "is undone already" in await counter.refused("undo", id=identity)


async def test_what_somebody_changed_since_is_left_and_costs_nothing(counter: Counter) -> None:
    identity = await healed(counter)
    counter.knob.write_text("33")
    with pytest.raises(ActionRefused, match=r"vm.swappiness was changed since \(it is 33, we left 10\)"):
        await counter.ask("undo", id=identity)
    assert counter.knob.read_text() == "33"
    assert [act.action for act in counter.store.acts()] == ["adjust_swappiness"]
    assert counter.store.unfinished() == []


async def test_an_undo_that_fails_is_told_kept_and_may_be_asked_again(counter: Counter) -> None:
    identity = await healed(counter)
    counter.scene.runner._problem = ActionFailed("the knob is stuck", "look at it")
    with pytest.raises(HealingError, match="not undone: the knob is stuck") as problem:
        await counter.ask("undo", id=identity)
    assert problem.value.hint == "look at it"
    act = counter.store.acts()[-1]
    assert (act.action, act.effective) == ("undo", False)
    counter.scene.runner._problem = None
    assert (await counter.ask("undo", id=identity))["told"][-1].startswith("a person asked: undone")
    assert counter.knob.read_text() == "60"


async def test_nothing_is_set_back_while_nothing_may_act(counter: Counter) -> None:
    identity = await healed(counter)
    await counter.ask("pause", reason="no")
    with pytest.raises(ActionRefused, match="nothing may act now: paused: no"):
        await counter.ask("undo", id=identity)
    assert counter.knob.read_text() == "10"


async def test_what_left_nothing_behind_has_no_way_back(host: FakeHost) -> None:
    counter = Counter(host, relief(host), resolver=None)
    identity = await healed(counter)
    assert "left nothing to set back" in await counter.refused("undo", id=identity)


async def test_while_another_process_acts_nothing_is_set_back(counter: Counter) -> None:
    identity = await healed(counter)
    other = Store(counter.store.path, clock=counter.clock, boot_id="boot-1")
    with other.exclusive(), pytest.raises(StoreFault, match="another heal is in progress"):
        await counter.ask("undo", id=identity)
    assert counter.knob.read_text() == "10"


# -- silences and the pause ------------------------------------------------------------------------------------------


async def test_a_silence_is_for_what_its_pattern_covers_and_ends(counter: Counter) -> None:
    found = await counter.ask("silence", pattern="mem*", seconds=60.0)
    assert (found["pattern"], found["ends_in_s"]) == ("mem*", 60)
    assert "mem* is silenced" in str((await counter.engine.heal_issue(trouble())).error)
    counter.clock.now += 60.0
    assert (await counter.engine.heal_issue(trouble())).verdict is Verdict.HEALED


@pytest.mark.parametrize("by", ["id", "pattern"])
async def test_a_silence_is_ended_by(counter: Counter, by: str) -> None:
    found = await counter.ask("silence", pattern="mem*", seconds=60.0)
    assert await counter.ask("unsilence", id=found[by]) == {"ended": 1}
    assert "there is no silence" in await counter.refused("unsilence", id=found[by])
    assert (await counter.engine.heal_issue(trouble())).verdict is Verdict.HEALED


async def test_a_pause_holds_until_it_is_ended(counter: Counter) -> None:
    assert (await counter.ask("pause"))["stopped"].startswith("paused: a person asked for it")
    assert (await counter.ask("pause", reason="holidays"))["stopped"].startswith("paused: holidays")
    assert "kill switch: paused: holidays" in str((await counter.engine.heal_issue(trouble())).error)
    assert await counter.ask("resume") == {"stopped": None}
    assert (await counter.engine.heal_issue(trouble())).verdict is Verdict.HEALED


async def test_a_kill_switch_outlasts_the_end_of_a_pause(host: FakeHost) -> None:
    counter = Counter(host, switch=lambda: "the file is there")
    await counter.ask("pause")
    assert await counter.ask("resume") == {"stopped": "the file is there"}


async def test_nobodys_heal_is_not_explained_by_anybodys(counter: Counter) -> None:
    await healed(counter)
    for what in ("", ".service"):
        assert "whose heal?" in await counter.refused("explain", what=what)


async def test_a_dry_run_sets_nothing_back(counter: Counter) -> None:
    identity = await healed(counter)
    counter.engine.dry_run = True
    with pytest.raises(ActionRefused, match="nothing is set back in a dry run"):
        await counter.ask("undo", id=identity)
    assert counter.knob.read_text() == "10"


async def test_there_are_so_many_silences_and_no_more(counter: Counter) -> None:
    said = ""
    for number in range(2000):
        try:
            await counter.desk.ask("silence", {"pattern": f"u{number}", "seconds": 60.0})
        except HealingError as error:
            said = error.message
            break
    assert said == f"there are {number} silences already"
    counter.clock.now += 60.0
    await counter.ask("silence", pattern="x", seconds=60.0)


async def test_of_two_words_for_one_question_one_is_taken(host: FakeHost) -> None:
    counter = Counter(host, policy=ASKS)
    await counter.scene.cycle()
    question = HealingRecord.parse(counter.store.records()[0])
    assert (await counter.engine.confirm(question)).verdict is Verdict.HEALED
    counter.host.memory(97.0)
    counter.clock.now += HOUR
    again = await counter.engine.confirm(question)
    assert again.verdict is Verdict.REFUSED
    assert "waits for no word any more" in str(again.error)


async def test_a_question_of_before_a_reboot_is_not_answered(host: FakeHost) -> None:
    counter = Counter(host, policy=ASKS)
    await counter.scene.cycle()
    counter.store.close()
    store = Store(counter.store.path, clock=counter.clock, boot_id="boot-2")
    scene = Scene(host, clock=counter.clock, sleep=counter.clock.sleep, store=store, policy=ASKS)
    result = await scene.engine.confirm(HealingRecord.parse(store.records()[0]))
    assert result.verdict is Verdict.REFUSED
    assert "has expired" in str(result.error)
    assert scene.runner.steps == []
    store.close()
