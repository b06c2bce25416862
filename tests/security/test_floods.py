"""Too much of everything: connections, descriptors, bytes, silence. The helper goes on, as the same process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.decide.policy import Mode, Policy
from luminous_nix.self_healing.models import Action
from luminous_nix.self_healing.privileged.broker import Caller, Rules
from luminous_nix.self_healing.privileged.door import Quota, _Seen
from luminous_nix.self_healing.privileged.keys import boot_ns
from luminous_nix.self_healing.privileged.protocol import Code, Denied, Keys
from tests.security.apart import APARTS_KEY, Apart, apart, result
from tests.security.crowd import ENGINE, IS_ROOT, public_folder
from tests.security.forge import Ear
from tests.security.helpers import KEY, Dry, Scene, asked, request, serving
from tests.unit.host import FakeHost

pytestmark = pytest.mark.anyio
MOB = Path(__file__).with_name("mob.py")
MIB = 1 << 20
DEVNULL = Path(os.devnull)
GONE = (BrokenPipeError, ConnectionResetError)


def status() -> bytes:
    return request("status", key=APARTS_KEY)


def dial(at: Path) -> socket.socket:
    """Unlike the other one it waits where the queue at the door is full."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 60, 0))
    connection.connect(str(at))
    connection.settimeout(60.0)
    return connection


def exchange(at: Path, frame: bytes) -> bytes:
    """A packet for a packet; b"" when the connection ended instead."""
    with dial(at) as connection:
        connection.settimeout(120.0)
        try:
            connection.send(frame)
            return connection.recv(1 << 16)
        except GONE:
            return b""


def answered(at: Path) -> bool:
    answer = exchange(at, status())
    return bool(answer) and result(answer)["code"] == "done"


def answers(at: Path, within: float = 60.0) -> bool:
    """Once what pressed in before has been let go: until then the places may be taken."""
    until = time.monotonic() + within
    while not answered(at):
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture
def helper() -> Iterator[Apart]:
    with public_folder() as folder, apart(folder, *(("--engine", str(ENGINE)) if IS_ROOT else ())) as one:
        assert answers(one.at)
        yield one
        assert one.alive
        assert answers(one.at)
        for word in ("Traceback", "error of this program", "Exception in callback", "never retrieved"):
            assert word not in one.said()


# -- what comes in ---------------------------------------------------------------------------------------------


def silent(at: Path) -> None:
    dial(at).close()


def half_open(at: Path) -> None:
    with dial(at) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(10) == b""


def deaf(at: Path) -> None:
    with dial(at) as connection:
        connection.shutdown(socket.SHUT_RD)
        with contextlib.suppress(*GONE):
            connection.send(status())


def empty(at: Path) -> None:
    assert exchange(at, b"") == b""


def oversize(at: Path) -> None:
    assert exchange(at, b"\1" * (100 << 10)) == b""


def just_too_long(at: Path) -> None:
    assert exchange(at, b"\1" * ((16 << 10) + 1)) == b""


def descriptors(at: Path) -> None:
    with dial(at) as connection, DEVNULL.open("rb") as file:
        many = struct.pack("253i", *[file.fileno()] * 253)  # as many as a message may have
        try:
            connection.sendmsg([status()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])
            assert connection.recv(1 << 16) == b""
        except GONE:
            pass


def descriptors_and_nothing_else(at: Path) -> None:
    with dial(at) as connection, DEVNULL.open("rb") as file, contextlib.suppress(*GONE):
        for _ in range(10):
            many = struct.pack("8i", *[file.fileno()] * 8)
            connection.sendmsg([b"\1"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, many)])


def honest(at: Path) -> None:
    assert answered(at)


@pytest.mark.parametrize(
    ("attack", "times"),
    [(silent, 20_000), (half_open, 2000), (deaf, 2000), (empty, 2000), (oversize, 1000), (just_too_long, 1000),
     (descriptors, 1000), (descriptors_and_nothing_else, 500), (honest, 4000)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)  # fmt: skip
def test_a_flood_leaves_nothing_behind(helper: Apart, attack: Callable[[Path], None], times: int) -> None:
    """No descriptor, and no memory after a tenth of it warmed everything up. What was honest is remembered for a
    minute, which takes a hundred bytes each."""
    for _ in range(times // 10):
        attack(helper.at)
    open_before = helper.settled(0, within=0.5)
    resident_before = helper.resident()
    for _ in range(times):
        attack(helper.at)
    assert helper.settled(open_before) <= open_before
    assert helper.resident() - resident_before < (1 if attack is not honest else 3) * MIB


def test_who_does_not_listen_is_let_go(helper: Apart) -> None:
    """A thousand questions, and no answer is ever taken: the queue is the kernel's, and it has an end."""
    sent = 0
    with dial(helper.at) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        with contextlib.suppress(*GONE):
            for sent in range(20_000):  # noqa: B007
                connection.send(status())
        assert answered(helper.at)
    assert sent < 19_999


def test_forged_packets_in_a_row(helper: Apart) -> None:
    """Each ends its connection: nobody gets to try twice on one."""
    with dial(helper.at) as connection:
        sent = 0
        with contextlib.suppress(*GONE):
            while sent < 10_000:
                connection.send(os.urandom(200))
                sent += 1
    assert sent < 10_000
    before = result(exchange(helper.at, status()))["result"]["refused"]
    for _ in range(500):
        assert exchange(helper.at, os.urandom(200)) == b""
    assert result(exchange(helper.at, status()))["result"]["refused"] == before + 500
    assert len(helper.said().splitlines()) < 100  # who is refused fills no log


# -- a thousand of the engine ----------------------------------------------------------------------------------


@contextlib.contextmanager
def mob(uid: int, at: Path, count: int) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", str(MOB), str(uid), str(at), str(count)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={},
    )  # fmt: skip
    assert child.stdout is not None
    try:
        assert select.select([child.stdout], [], [], 120.0)[0]
        assert child.stdout.readline() == "here\n"
        yield child
    finally:
        child.communicate(timeout=120)


@pytest.mark.skipif(not IS_ROOT, reason="another user is needed: root only")
def test_root_is_served_while_a_thousand_of_the_engine_press_in(helper: Apart) -> None:
    """The bar is 100 ms on an idle host; here only that root is served each time, and how long it took is told."""
    before = helper.settled(0, within=0.2)
    took = []
    with mob(ENGINE, helper.at, 1000):
        for _ in range(50):
            began = time.monotonic()
            while not answered(helper.at):  # the queue was full: as root's own tools do, it comes again
                assert time.monotonic() - began < 60
            took.append(time.monotonic() - began)
        assert helper.descriptors() <= before + 16 + 8
    assert helper.settled(before) <= before
    took.sort()
    print(f"root was answered after {took[25] * 1e3:.1f} ms (median), {took[-1] * 1e3:.1f} ms (at most)")
    assert took[25] < 30


@pytest.mark.parametrize("clients", [200])
def test_out_of_descriptors(clients: int) -> None:
    """64 for all, and room for 200 clients by quota: the kernel says no first. It is survived, and over with it."""

    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    with public_folder() as folder, apart(folder, "--quota", "400", preexec_fn=few) as one:
        answered(one.at)
        for _ in range(3):
            held = []
            for _ in range(clients):
                connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                connection.settimeout(30.0)
                connection.connect(str(one.at))
                held.append(connection)
            time.sleep(0.3)
            assert one.alive
            assert one.descriptors() <= 64
            for connection in held:
                connection.close()
            until = time.monotonic() + 60
            while not answered(one.at):
                assert time.monotonic() < until
        acted = exchange(one.at, request("adjust_swappiness", key=APARTS_KEY))
        assert result(acted)["code"] == "done"
        assert one.alive
        assert "Traceback" not in one.said()


async def test_the_spare_descriptor_is_had_again(host: FakeHost) -> None:
    """Where even that cannot be opened once more, the next turn tries again instead of ending in an error."""
    ear = Ear(Scene(host), Keys(KEY))
    ear._listener.setblocking(False)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
        for _ in range(3):
            assert not ear._turn_one_away()
            assert ear._spare == -1
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not ear._turn_one_away()
    assert ear._spare >= 0
    ear._give_up_the_spare()
    ear.close()


# -- what is remembered ----------------------------------------------------------------------------------------


async def test_the_engine_cannot_fill_roots_memory(host: FakeHost) -> None:
    """Nonces of looks are kept for a minute: who looks too often is told to wait, and nobody else is."""
    ear = Ear(Scene(host), Keys(KEY))
    ear._seen._most = 50
    assert [ear.hear(request("status")) for _ in range(60)] == [Code.DONE] * 50 + [Code.BUSY] * 10
    old = request("status")
    ear.peer.caller = Caller(0, 1)
    assert [ear.hear(request("status")) for _ in range(50)] == [Code.DONE] * 50
    ear.peer.caller = Caller(990, 1)
    assert ear.hear(old) is Code.BUSY
    ear.close()


def test_what_is_remembered_has_room_in_the_units_memory() -> None:
    """64 MiB for the process, of which the interpreter takes half."""
    seen, now = _Seen(0, Quota().remembered), boot_ns()
    for number in range(Quota().remembered):
        seen.add(f"{number * 40503 % (1 << 60):015x}" + "0" * 17, now, now + number * 10_000, person=False)
    with pytest.raises(Denied):
        seen.add("f" * 32, now, now + 10**9, person=False)
    seen.add("f" * 32, now, now + 10**9, person=True)
    known = seen._slices[False]
    assert sum(sys.getsizeof(one) + sum(map(sys.getsizeof, one)) for one in known.values()) < 20 * MIB
    began = time.process_time()
    seen.add("e" * 32, now + 61 * 10**9, now + 80 * 10**9, person=False)  # a minute later they are gone
    assert time.process_time() - began < 1.0  # one by one, that was a standstill of 15 s
    assert sum(map(len, known.values())) == 1


async def test_two_do_not_share_one_nonce(host: FakeHost) -> None:
    """What root has said, the engine cannot say once more, nor the reverse."""
    ear = Ear(Scene(host), Keys(KEY))
    for first, second in ((0, 990), (990, 0)):
        frame = request("status")
        ear.peer.caller = Caller(first, 1)
        assert ear.hear(frame) is Code.DONE
        ear.peer.caller = Caller(second, 1)
        assert ear.hear(frame) is Code.REPLAY
    ear.close()


# -- the broker ------------------------------------------------------------------------------------------------


async def test_a_person_who_is_asked_keeps_nobody_waiting(host: FakeHost) -> None:
    """The engine names somebody who never answers. Root acts, and gives its word, meanwhile; a second question of
    the engine's is told to wait."""
    asking, never = asyncio.Event(), asyncio.Event()

    async def person(subject: str, action: Action) -> None:
        asking.set()
        await never.wait()

    scene = Scene(host, rules=Rules(policy=Policy(Mode.CONFIRM)), confirmed=person)
    engine, root, answer = Caller(990, 1), Caller(0, 2), scene.broker.answer
    word: dict[str, Any] = {"op": "adjust_swappiness", "args": {"value": 10}}
    waits = asyncio.create_task(answer(asked("grant", args={**word, "subject": ":1.7"}), engine))
    await asking.wait()
    assert (await answer(asked("grant", args={**word, "subject": ":1.8"}), engine))[0] is Code.BUSY
    assert (await answer(asked("grant", args=word), root))[0] is Code.DONE
    assert (await answer(asked(args={"value": 11}), root))[0] is Code.DONE
    assert (await answer(asked(), engine))[0] is Code.DONE  # by root's word
    assert scene.broker.status()["acting"] is False
    waits.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await waits
    assert (await answer(asked("grant", args=word), engine))[0] is Code.REFUSED  # and not: another is under way


async def test_who_is_turned_away_is_counted(host: FakeHost, tmp_path: Path) -> None:
    """Over the quota, and for a second packet before the first one's answer."""
    going = asyncio.Event()

    class Slow(Dry):
        async def run(self, step: Any) -> str:
            going.set()
            await asyncio.sleep(600)
            return await super().run(step)

    scene, at = Scene(host, runner=Slow()), tmp_path / "helper.sock"
    async with serving(scene, at, quota=Quota(engine=2, root=2)):
        held = [await asyncio.to_thread(dial, at) for _ in range(2)]
        assert await asyncio.to_thread(exchange, at, request()) == b""
        assert scene.broker.counts == {"busy": 1}
        held[0].send(request())
        await going.wait()
        held[0].send(request(args={"value": 99}))
        assert await asyncio.to_thread(held[0].recv, 10) == b""
        assert scene.broker.counts == {"busy": 2}
        for one in held:
            one.close()
