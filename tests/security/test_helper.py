"""The helper over a real socket: who may speak, what it does with what it hears, what it keeps."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.act.steps import Step, WriteFile
from luminous_nix.self_healing.decide.limits import Limits
from luminous_nix.self_healing.decide.policy import Mode, Policy
from luminous_nix.self_healing.models import Action, ActionRefused
from luminous_nix.self_healing.privileged.broker import Caller, Rules
from luminous_nix.self_healing.privileged.client import HelperUnavailable
from luminous_nix.self_healing.privileged.door import Quota
from luminous_nix.self_healing.privileged.keys import boot_ns
from luminous_nix.self_healing.privileged.protocol import Code, Key, Keys, parse_reply
from luminous_nix.self_healing.privileged.register import read_audit, verify
from tests.security.helpers import AUDIT_KEY, KEY, Dry, Scene, asked, client, dial, exchanged, request, serving
from tests.unit.host import FakeHost

pytestmark = pytest.mark.anyio
ENGINE = Caller(990, 4321)


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return tmp_path / "helper.sock"


def events(scene: Scene) -> list[str]:
    return [line["event"] for line in scene.register.lines()]


# -- an honest pair ------------------------------------------------------------------------------------------


async def test_a_status_and_an_act(host: FakeHost, at: Path) -> None:
    scene = Scene(host)
    async with serving(scene, at):
        first = await client(at).ask("status", {})
        done = await client(at).ask("adjust_swappiness", {"value": 10})
    assert (first.ok, first.result["acting"], first.result["store"]) == (True, False, "")
    assert (done.code, done.result) == (Code.DONE, {"said": "done"})
    assert scene.runner.steps == [WriteFile(host.roots.proc / "sys/vm/swappiness", "10")]
    assert [(line["event"], line["op"], line["uid"]) for line in scene.register.lines()] == [
        ("intent", "adjust_swappiness", os.geteuid()), ("done", "adjust_swappiness", os.geteuid()),
    ]  # fmt: skip


async def test_a_dry_run_does_nothing_and_keeps_nothing(host: FakeHost, at: Path) -> None:
    scene = Scene(host)
    async with serving(scene, at):
        reply = await client(at).ask("adjust_swappiness", {"value": 10}, dry_run=True)
    assert (reply.code, reply.result) == (Code.DONE, {"would": "vm.swappiness is 60"})
    assert (scene.runner.steps, events(scene)) == ([], [])


async def test_what_we_set_can_be_set_back_and_nothing_else(host: FakeHost, at: Path) -> None:
    knob = host.roots.proc / "sys/vm/swappiness"

    def write(step: Step) -> None:
        if isinstance(step, WriteFile):
            host.write(knob, step.text)

    scene = Scene(host, runner=Dry(write))
    async with serving(scene, at):
        ask = client(at).ask
        assert (await ask("adjust_swappiness", {"value": 10})).ok
        for other in (["vm.swappiness", "99", "10"], ["vm.swappiness", "60", "11"], ["cpufreq:policy0", "a", "b"]):
            refused = await ask("restore", {"knobs": [other]})
            assert refused.code is Code.REFUSED
            assert "was not set by us" in refused.result["reason"]
        assert (await ask("restore", {"knobs": [["vm.swappiness", "60", "10"]]})).ok
    assert knob.read_text("utf-8") == "60"


# -- the gates, asked again ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        (Rules(policy=Policy(Mode.OBSERVE)), "observe, so nothing is done"),
        (Rules(policy=Policy(Mode.CONFIRM)), "a person is asked first"),
        (Rules(stopped="dry_run = true"), "nothing may act: dry_run = true"),
    ],
)
async def test_the_roots_configuration_rules(host: FakeHost, rules: Rules, said: str) -> None:
    scene = Scene(host, rules=rules)
    code, told = await scene.broker.answer(asked(), ENGINE)
    assert code is Code.REFUSED
    assert said in told["reason"]
    assert (scene.runner.steps, events(scene)) == ([], [])


async def test_the_kill_switch_stops_the_helper_without_the_engine(host: FakeHost) -> None:
    scene = Scene(host, switch=lambda: "/etc/luminous-healing/disabled is there")
    code, told = await scene.broker.answer(asked(), Caller(0, 1))
    assert (code, told["reason"]) == (Code.REFUSED, "nothing may act: /etc/luminous-healing/disabled is there")


async def test_what_asks_needs_a_persons_word_for_exactly_that_and_once(host: FakeHost) -> None:
    scene = Scene(host, rules=Rules(policy=Policy(Mode.CONFIRM)))
    answer = scene.broker.answer
    assert (await answer(asked(), ENGINE))[0] is Code.REFUSED
    word = {"op": "adjust_swappiness", "args": {"value": 10}}
    assert (await answer(asked("grant", args=word), ENGINE))[1]["reason"] == "whose word this is was not said"
    assert (await answer(asked("grant", args=word), Caller(0, 1)))[0] is Code.DONE
    other = asked(args={"value": 11})
    assert (await answer(other, ENGINE))[0] is Code.REFUSED
    assert (await answer(asked(), ENGINE))[0] is Code.DONE
    assert (await answer(asked(), ENGINE))[0] is Code.REFUSED  # it was for once
    assert events(scene) == ["grant", "intent", "done"]


async def test_polkit_is_asked_about_the_person_and_a_no_is_a_no(host: FakeHost) -> None:
    heard: list[Any] = []

    async def person(subject: str, action: Action) -> None:
        heard.append((subject, action))
        if len(heard) == 1:
            raise ActionRefused("the person said no")

    scene = Scene(host, rules=Rules(policy=Policy(Mode.CONFIRM)), confirmed=person)
    word = {"op": "adjust_swappiness", "args": {"value": 10}, "subject": ":1.42"}
    assert (await scene.broker.answer(asked("grant", args=word), ENGINE))[0] is Code.REFUSED
    assert (await scene.broker.answer(asked(), ENGINE))[0] is Code.REFUSED
    assert (await scene.broker.answer(asked("grant", args=word), ENGINE))[0] is Code.DONE
    assert (await scene.broker.answer(asked(), ENGINE))[0] is Code.DONE
    assert heard == [(":1.42", Action("adjust_swappiness", {"value": 10}))] * 2


async def test_the_eleventh_operation_is_refused_with_the_time(host: FakeHost, tmp_path: Path) -> None:
    """Over a restart of the helper, too: the limits are what is on disk."""
    path = tmp_path / "state/register.db"
    values = iter(range(20, 60))

    async def act(scene: Scene) -> tuple[Code, dict[str, Any]]:
        return await scene.broker.answer(asked(args={"value": next(values)}), ENGINE)

    per_target = replace(Limits(), others=tuple(one for one in Limits().others if one.scope != "target"))
    scene = Scene(host, path, limits=per_target)
    assert [(await act(scene))[0] for _ in range(10)] == [Code.DONE] * 10
    for _ in range(2):
        code, told = await act(scene)
        assert code is Code.REFUSED
        assert "hourly limit: 10 in the last hour" in told["reason"]
        assert 3000 < told["lifts_in_s"] <= 3601
        scene.register.close()
        scene = Scene(host, path, limits=per_target)
    assert len(scene.register.acts()) == 10
    scene.register.close()


async def test_ten_in_five_minutes_holds_by_itself(host: FakeHost) -> None:
    scene = Scene(host, limits=Limits(10**6, others=(Limits().others[0],)))
    for value in range(10):
        assert (await scene.broker.answer(asked(args={"value": value}), ENGINE))[0] is Code.DONE
    code, told = await scene.broker.answer(asked(args={"value": 11}), ENGINE)
    assert code is Code.REFUSED
    assert told["reason"].startswith("10 operations in 5 minutes: 10 in the last 5 minutes")
    assert 200 < told["lifts_in_s"] <= 301


async def test_without_a_durable_intent_there_is_no_act(host: FakeHost, tmp_path: Path) -> None:
    path = tmp_path / "state/register.db"
    scene = Scene(host, path)
    scene.register._db.execute("PRAGMA query_only = 1")  # type: ignore[union-attr]
    code, told = await scene.broker.answer(asked(), ENGINE)
    assert code is Code.REFUSED
    assert "cannot be written" in told["reason"]
    assert scene.runner.steps == []


async def test_one_at_a_time_and_no_queue(host: FakeHost, at: Path) -> None:
    going = asyncio.Event()

    class Slow(Dry):
        async def run(self, step: Any) -> str:
            going.set()
            await asyncio.sleep(0.5)
            return await super().run(step)

    scene = Scene(host, runner=Slow())
    async with serving(scene, at):
        first = asyncio.create_task(client(at).ask("adjust_swappiness", {"value": 10}))
        await going.wait()
        assert (await client(at).ask("adjust_swappiness", {"value": 11})).code is Code.BUSY
        assert (await client(at).ask("status", {})).result["acting"] is True
        assert (await first).ok
    assert len(scene.runner.steps) == 1


async def test_who_goes_away_in_the_middle_stops_the_act_and_it_is_written_down(host: FakeHost, at: Path) -> None:
    going = asyncio.Event()

    class Endless(Dry):
        async def run(self, step: Any) -> str:
            self.steps.append(step)
            going.set()
            await asyncio.sleep(600)
            return ""

    scene = Scene(host, runner=Endless())
    async with serving(scene, at):
        connection = await asyncio.to_thread(dial, at)
        connection.send(request())
        await going.wait()
        connection.close()
        while scene.broker.acting:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert events(scene) == ["intent", "unknown"]


# -- frames and connections ----------------------------------------------------------------------------------


async def test_a_request_counts_once(host: FakeHost, at: Path, tmp_path: Path) -> None:
    path = tmp_path / "state/register.db"
    frame, look = request(), request("status")
    scene = Scene(host, path)
    async with serving(scene, at):
        await client(at).ask("status", {})  # so that the helper is older than the frame below
        look = request("status")
        answers = await exchanged(at, frame, frame, look, look)
        codes = told(answers, frame, frame, look, look)
    assert codes == [Code.DONE, Code.REPLAY, Code.DONE, Code.REPLAY]
    scene.register.close()
    scene = Scene(host, path)  # a new process: what changed something is known from disk, a look is too old
    async with serving(scene, at):
        answers = await exchanged(at, frame, look)
        codes = told(answers, frame, look)
    assert codes == [Code.REPLAY, Code.STALE]
    assert len(scene.register.acts()) == 1


def told(answers: list[bytes], *frames: bytes) -> list[Code]:
    nonces = [frame[frame.index(b'"nonce":"') + 9 :][:32].decode() for frame in frames]
    return [parse_reply(answer, KEY, nonce).code for answer, nonce in zip(answers, nonces, strict=True)]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"boot_id": "0b4cc36e-8e0c-4a2a-9d5f-6a1f0d8f6d11"}, Code.BOOT),
        ({"ts_boot_ns": 5}, Code.STALE),
        ({"ts_boot_ns": boot_ns() + 3600 * 10**9}, Code.STALE),
    ],
)
async def test_what_is_not_of_now_is_told_so(host: FakeHost, at: Path, changes: dict[str, Any], code: Code) -> None:
    scene = Scene(host)
    made = asked(**changes)
    async with serving(scene, at):
        (answer,) = await exchanged(at, request(**{"nonce": made.nonce, **changes}))
    assert parse_reply(answer, KEY, made.nonce).code is code
    assert scene.runner.steps == []


@pytest.mark.parametrize(
    "frame", [b"", b"\1", b"{}", b"\0" * 200, b"\1" * (20 << 10), os.urandom(300), request(key=Key(b"\2" * 32))],
    ids=["empty", "short", "json", "zeros", "oversize", "noise", "strange key"],
)  # fmt: skip
async def test_what_is_no_frame_ends_the_connection_without_a_word(host: FakeHost, at: Path, frame: bytes) -> None:
    scene = Scene(host)
    async with serving(scene, at):
        assert await exchanged(at, frame) == [b""]
        assert (await client(at).ask("adjust_swappiness", {"value": 10})).ok  # and the next one is served
    assert set(events(scene)) <= {"denied", "intent", "done"}


async def test_descriptors_that_are_passed_stay_outside(host: FakeHost, at: Path) -> None:
    scene = Scene(host)
    reader, writer = os.pipe()

    def talk() -> bytes:
        with dial(at) as connection:
            many = struct.pack("8i", *[writer] * 8)
            connection.sendmsg([request()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])
            try:
                return connection.recv(1 << 16)
            except ConnectionResetError:
                return b""

    async with serving(scene, at):
        before = len([*Path("/proc/self/fd").iterdir()])
        assert await asyncio.to_thread(talk) == b""
        assert len([*Path("/proc/self/fd").iterdir()]) == before
    os.close(writer)
    assert os.read(reader, 1) == b""  # nobody else holds the other end
    os.close(reader)
    assert scene.runner.steps == []


async def test_a_second_frame_before_the_answer_ends_it(host: FakeHost, at: Path) -> None:
    """Authorise one, carry out another: there is no such moment."""
    going = asyncio.Event()

    class Slow(Dry):
        async def run(self, step: Any) -> str:
            self.steps.append(step)
            going.set()
            await asyncio.sleep(600)
            return ""

    scene = Scene(host, runner=Slow())
    async with serving(scene, at):
        connection = await asyncio.to_thread(dial, at)
        connection.send(request())
        await going.wait()
        connection.send(request(args={"value": 99}))
        assert await asyncio.to_thread(connection.recv, 1 << 16) == b""
        connection.close()
    assert [step.text for step in scene.runner.steps if isinstance(step, WriteFile)] == ["10"]
    assert events(scene) == ["intent", "denied", "unknown"]


async def test_an_idle_connection_ends_and_so_does_an_idle_helper(host: FakeHost, at: Path) -> None:
    scene = Scene(host)
    async with serving(scene, at, quota=Quota(idle_s=0.1), idle_s=1.0) as helper:
        connection = await asyncio.to_thread(dial, at)
        assert await asyncio.to_thread(connection.recv, 10) == b""
        connection.close()
        await asyncio.wait_for(helper._over.wait(), 20)


async def test_a_quota_for_each_and_others_not_at_all(host: FakeHost, at: Path) -> None:
    scene = Scene(host)
    own = os.geteuid()
    async with serving(scene, at, quota=Quota(engine=3, root=3)):
        held = [await asyncio.to_thread(dial, at) for _ in range(3)]
        with pytest.raises(HelperUnavailable):
            await client(at).ask("status", {})
        held.pop().close()
        await asyncio.sleep(0.05)
        assert (await client(at).ask("status", {})).ok
        for one in held:
            one.close()
    scene.broker.counts.clear()
    if own != 0:
        async with serving(scene, at, engine_uid=own + 1):
            with pytest.raises(HelperUnavailable):
                await client(at).ask("status", {})


async def test_the_former_key_counts_for_its_grace(host: FakeHost, at: Path) -> None:
    new = Key(b"\5" * 32)
    scene = Scene(host)
    async with serving(scene, at, keys=Keys(new, KEY, boot_ns() + 60 * 10**9)):
        assert (await client(at).ask("adjust_swappiness", {"value": 10})).ok
        assert (await client(at, new).ask("adjust_swappiness", {"value": 10})).ok
    async with serving(scene, at, keys=Keys(new, KEY, boot_ns())):
        with pytest.raises(HelperUnavailable, match="without an answer"):
            await client(at).ask("adjust_swappiness", {"value": 10})


async def test_refusals_are_counted_and_not_all_written(host: FakeHost, at: Path) -> None:
    scene = Scene(host)
    async with serving(scene, at):
        for _ in range(40):
            await exchanged(at, b"\1" * 100)
        told = (await client(at).ask("status", {})).result
    assert told["refused"] >= 40
    assert events(scene).count("denied") == 10


async def test_the_audit_verifies_and_shows_what_was_changed(host: FakeHost, at: Path, tmp_path: Path) -> None:
    path = tmp_path / "state/register.db"
    scene = Scene(host, path)
    async with serving(scene, at):
        for value in range(5):
            assert (await client(at).ask("adjust_swappiness", {"value": value})).ok
    head = scene.register.head()
    rows, checkpoint = read_audit(path)
    assert len(rows) == 10
    assert verify(rows, checkpoint, AUDIT_KEY, head) == ""
    assert verify(rows[:-1], checkpoint, AUDIT_KEY, head) == "line 10, which was told of, is missing at the end"
    assert verify([*rows[:3], *rows[4:]], checkpoint, AUDIT_KEY) == "line 4 is missing"
    forged = rows[4]._replace(line=rows[4].line.replace("swappiness", "swappinesz"))
    assert verify([*rows[:4], forged, *rows[5:]], checkpoint, AUDIT_KEY) == "line 5 was changed, or one before it"
    assert verify(rows, checkpoint, b"\6" * 32) == "line 1 was changed, or one before it"
    scene.register.close()
