"""Frames that were forged, torn, mixed and repeated: at the helper's ear, over its socket, over its restart."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.privileged.broker import Caller
from luminous_nix.self_healing.privileged.keys import boot_ns
from luminous_nix.self_healing.privileged.protocol import (
    _REPLY,
    _REQUEST,
    GRACE_NS,
    LONGEST_BODY,
    WINDOW_NS,
    Code,
    Key,
    Keys,
    Reply,
    _seal,
    encode_reply,
    frozen,
)
from tests.security.crowd import IS_ROOT
from tests.security.forge import FORGERIES, FORMER, STRANGER, Ear, forge, right
from tests.security.helpers import EVERY_OP, KEY, Scene, asked, dial, exchanged, request, serving
from tests.security.test_matrix import ARGUMENTS, POSSIBLE, scenery
from tests.unit.buses import BusDaemon
from tests.unit.host import FakeHost

pytestmark = pytest.mark.anyio
AN_ACT = ("adjust_swappiness", "restore", "grant", "restart_service", "kill_process")


@pytest.fixture
def at(tmp_path: Path) -> Path:
    return tmp_path / "helper.sock"


@pytest.fixture
async def ear(host: FakeHost) -> Ear:
    return Ear(Scene(host), Keys(KEY, FORMER, boot_ns() + GRACE_NS))


async def test_thirty_thousand_and_none_is_believed(tmp_path: Path) -> None:
    """A million: `python -m tests.security.forge`."""
    result = forge(30_000, seed=int(os.environ.get("FORGE_SEED", "1")), folder=tmp_path)
    assert right(result), json.dumps(result)
    assert len(result["kinds"]) == len(FORGERIES)
    assert (result["acts"], result["audit_lines"]) == (0, 10)


@pytest.mark.parametrize("op", AN_ACT)
async def test_each_bit_of_each_byte_counts(ear: Ear, op: str) -> None:
    frame = request(op, args=ARGUMENTS[op])
    heard = [
        ear.hear(frame[:at] + bytes([frame[at] ^ 1 << bit]) + frame[at + 1 :])
        for at in range(len(frame))
        for bit in range(8)
    ]
    assert heard == [None] * 8 * len(frame)
    assert ear.ends == len(heard) == sum(ear._broker.counts.values())
    assert ear.peer.work is None  # nothing was begun
    assert ear.hear(request("status")) is Code.DONE
    ear.close()


@pytest.mark.parametrize("op", AN_ACT)
async def test_each_length_but_its_own_is_wrong(ear: Ear, op: str) -> None:
    frame = request(op, args=ARGUMENTS[op])
    longer = [frame + secrets.token_bytes(size) for size in (1, 2, 31, 32, 33, 64, LONGEST_BODY, LONGEST_BODY * 3)]
    assert {ear.hear(frame[:size]) for size in range(len(frame))} == {None}
    assert {ear.hear(one) for one in (*longer, b"\0" + frame, frame + frame, frame[37:], frame[1:])} == {None}
    assert ear.peer.work is None
    ear.close()


async def test_parts_of_two_honest_frames_make_no_third(ear: Ear) -> None:
    """The mac, the key's name, the length and each field belong to one frame."""
    one, two = (request("adjust_swappiness", args={"value": value}) for value in (10, 20))
    for left in range(1, len(one)):
        if (mixed := one[:left] + two[left:]) not in {one, two}:
            assert ear.hear(mixed) is None
    fields, others = json.loads(one[37:]), json.loads(two[37:])
    for name in fields:
        mixed = json.dumps(fields | {name: others[name]}, sort_keys=True, separators=(",", ":")).encode()
        if mixed != one[37:]:
            assert ear.hear(one[:37] + mixed) is None
    assert ear.peer.work is None
    ear.close()


async def test_nothing_but_a_request_is_a_request(ear: Ear) -> None:
    """Not a reply, nor a request's words sealed as a reply, nor what another key than ours has signed."""
    body = request("adjust_swappiness")[37:]
    for frame in (
        encode_reply(Reply(secrets.token_hex(16), Code.DONE), KEY),
        _seal(_REPLY, KEY, body), _seal(b"", KEY, body), _seal(_REQUEST[:-1], KEY, body),
        _seal(b"luminous-req-v2\0", KEY, body), _seal(_REQUEST, STRANGER, body),
        KEY.id.join((b"\1", _seal(_REQUEST, STRANGER, body)[5:])),
        KEY.id.join((b"\1", _seal(_REQUEST, FORMER, body)[5:])),
        FORMER.id.join((b"\1", _seal(_REQUEST, KEY, body)[5:])),
        _seal(_REQUEST, Key(bytes(32)), body), _seal(_REQUEST, Key(KEY.id * 8), body),
    ):  # fmt: skip
        assert ear.hear(frame) is None
    assert ear.peer.work is None
    ear.close()


async def test_over_the_socket_too(host: FakeHost, at: Path) -> None:
    """Two thousand, each on a connection of its own; honest ones between them, of which each is answered."""
    dice, scene = random.Random(3), Scene(host)  # noqa: S311  not to be secret
    kinds = [kind for kind in FORGERIES if kind != "repeated"]
    async with serving(scene, at, keys=Keys(KEY, FORMER, boot_ns() + GRACE_NS)):

        def talk() -> tuple[int, int]:
            with dial(at) as connection:  # the helper is older than the frames
                connection.send(b"\1")
            answered = believed = 0
            for number in range(2000):
                frame, other = request("status"), request("status")
                sent = frame if number % 10 == 0 else FORGERIES[dice.choice(kinds)](dice, frame, other)
                with dial(at) as connection:
                    connection.send(sent)
                    try:
                        answer = connection.recv(1 << 16)
                    except ConnectionResetError:
                        answer = b""
                done = b'"code":"done"' in answer
                answered += done and number % 10 == 0
                believed += done and number % 10 != 0
            return answered, believed

        assert await asyncio.to_thread(talk) == (200, 0)
    assert scene.runner.steps == []


# -- over restarts ---------------------------------------------------------------------------------------------


def codes(answers: list[bytes]) -> list[str]:
    return [json.loads(answer[37:])["code"] for answer in answers]


def frames(op: str) -> Iterator[bytes]:
    """One that acts, and a dry run where there is such a thing."""
    yield request(op, args=ARGUMENTS.get(op, {}))
    if op not in {"status", "grant"}:
        yield request(op, args=ARGUMENTS.get(op, {}), dry_run=True)


async def test_what_was_answered_is_not_answered_again_by_the_next_process(
    host: FakeHost, bus_daemon: BusDaemon, at: Path, tmp_path: Path
) -> None:
    """Whatever was done is known from disk; what only looked is older than the process."""
    path = tmp_path / "state/register.db"
    sent: dict[str, list[bytes]] = {}
    done: set[str] = set()
    async with scenery(host, bus_daemon, path) as scene:
        async with serving(scene, at):
            await exchanged(at, request("status"))
            for op in EVERY_OP:
                sent[op] = list(frames(op))
                answers = codes(await exchanged(at, *sent[op]))
                assert codes(await exchanged(at, *sent[op])) == ["replay"] * len(sent[op])
                if "done" in answers:
                    done.add(op)
                else:
                    del sent[op]
        acts, lines = len(scene.register.acts()), len(list(scene.register.lines()))
        assert done >= POSSIBLE | ({"grant"} if IS_ROOT else set())
        scene.register.close()
        scene.again(path)
        async with serving(scene, at):
            for op, them in sent.items():
                assert set(codes(await exchanged(at, *them))) <= {"replay", "stale"}, op
        assert len(scene.register.acts()) == acts
        assert len(list(scene.register.lines())) <= lines + 10  # refusals
        assert not any(line["event"] in {"intent", "grant"} for line in list(scene.register.lines())[lines:])
        scene.register.close()


async def test_nothing_is_carried_over_into_another_boot(host: FakeHost, at: Path, tmp_path: Path) -> None:
    """Neither a frame nor a person's word. The clock of a boot begins anew, so a time may come a second time."""
    path = tmp_path / "state/register.db"
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    now = 500 * 10**9
    sent = [request(op, args=ARGUMENTS.get(op, {}), boot_id=first, ts_boot_ns=now) for op in EVERY_OP]
    for boot, awaited in ((first, {"done", "refused"}), (second, {"boot"})):
        scene = Scene(host, path, boot=boot, clock=lambda: now / 1e9)
        async with serving(scene, at, clock_ns=lambda: now):
            answers = [answer for frame in sent for answer in await exchanged(at, frame)]
        assert set(codes(answers)) == awaited
        scene.register.close()
    own = request("adjust_swappiness", args={"value": 77}, boot_id=second, ts_boot_ns=now + WINDOW_NS)
    scene = Scene(host, path, boot=second, clock=lambda: now / 1e9)
    async with serving(scene, at, clock_ns=lambda: now):
        assert codes(await exchanged(at, own)) == ["done"]
    word = frozen("adjust_swappiness", {"value": 11})  # given in the first boot
    assert not scene.register.granted(word)
    scene.register.close()


async def test_a_dry_run_of_a_word_is_no_word(host: FakeHost) -> None:
    scene = Scene(host)
    word: dict[str, Any] = {"op": "kill_process", "args": {"pid": 4321, "start_time": 100}}
    code, _ = await scene.broker.answer(asked("grant", args=word, dry_run=True), Caller(0, 1))
    assert code is Code.ARGUMENTS
    assert not scene.register.granted(frozen(word["op"], word["args"]))
