"""The eleventh operation in five minutes: after kill -9 between any two, and with the file as it was at any moment.

What holds: an intent that was acknowledged is in the file before anything acts, so that neither the end of the
process nor that of the power gives an operation back. What cannot hold: whoever is root may put an older file in its
place, and is met by the limits as they stood in that file. No program on the host can know better, but the head of
the audit, which is told to the journal at each start and end, shows what is missing.
"""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.decide.limits import Limits
from luminous_nix.self_healing.privileged.broker import Caller
from luminous_nix.self_healing.privileged.protocol import Code
from luminous_nix.self_healing.privileged.register import read_audit, verify
from tests.security.apart import APARTS_KEY, Apart, apart, result
from tests.security.crowd import public_folder
from tests.security.helpers import AUDIT_KEY, Scene, asked, dial, request
from tests.unit.host import Clock, FakeHost

pytestmark = pytest.mark.anyio
# The target's own limit (three an hour) is not what is looked at here: each of these has one of its own.
TEN = Limits(10**6, others=(Limits().others[0],))
HOURLY = Limits(10, others=())


def act(at: Path, value: int) -> dict[str, Any]:
    with dial(at) as connection:
        connection.send(request(args={"value": value}, key=APARTS_KEY))
        return result(connection.recv(1 << 16))


def killed(one: Apart) -> None:
    one.child.send_signal(signal.SIGKILL)
    one.child.wait(60)


def test_kill_9_between_any_two(tmp_path: Path) -> None:
    """Each operation is asked of another process, and each of these is killed as soon as it answered."""
    with public_folder() as folder:
        for value in range(10):
            with apart(folder, "--limits", "ten") as one:
                answer = act(one.at, value)
                killed(one)
            assert answer["code"] == "done", answer
            assert len(one.steps()) == value + 1
        for _ in range(2):
            with apart(folder, "--limits", "ten") as one:
                answer = act(one.at, 50)
                killed(one)
            assert answer["code"] == "refused"
            assert answer["result"]["reason"].startswith("10 operations in 5 minutes: 10 in the last 5 minutes")
            assert 1 < answer["result"]["lifts_in_s"] <= 301
        assert len(one.steps()) == 10
        rows, checkpoint = read_audit(folder / "state/register.db")
        assert verify(rows, checkpoint, AUDIT_KEY) == ""


def test_kill_9_in_the_middle_of_an_act(tmp_path: Path) -> None:
    """An act whose end nobody saw counts, and is not done again: neither by the next process nor by the frame."""
    with public_folder() as folder:
        frames = []
        for value in range(10):
            with apart(folder, "--limits", "ten", "--slow", "600") as one:
                frame = request(args={"value": value}, key=APARTS_KEY)
                frames.append(frame)
                with dial(one.at) as connection:
                    connection.send(frame)
                    while len(one.steps()) <= value:
                        assert one.alive
                    killed(one)
        with apart(folder, "--limits", "ten") as one:
            answers = []
            for frame in (*frames, request(args={"value": 50}, key=APARTS_KEY)):
                with dial(one.at) as connection:
                    connection.send(frame)
                    answers.append(result(connection.recv(1 << 16)))
        assert len(one.steps()) == 10
        # The limit comes first, so that nobody is told whether it was carried out before.
        assert [answer["code"] for answer in answers] == ["refused"] * 11
        assert "10 operations in 5 minutes" in answers[-1]["result"]["reason"]
        db = sqlite3.connect(folder / "state/register.db")
        assert [code for (code,) in db.execute("SELECT code FROM acts ORDER BY id")] == ["unknown"] * 10
        db.close()


# -- the file at any moment ------------------------------------------------------------------------------------

Copies = list[tuple[int, Path]]


async def ten_with_copies(host: FakeHost, tmp_path: Path, limits: Limits) -> Copies:
    """Ten acts. A copy of all files after each commit, with how many acts had begun then: at the moment of the act
    itself, when its intent has just become durable, and after its answer."""
    path = tmp_path / "state/register.db"
    copies: Copies = []

    def keep(begun: int) -> None:
        place = tmp_path / f"copy-{len(copies)}"
        shutil.copytree(path.parent, place)
        copies.append((begun, place / path.name))

    begun = 0

    def effect(_: object) -> None:
        nonlocal begun
        begun += 1
        keep(begun)

    scene = Scene(host, path, limits=limits)
    scene.runner._effect = effect
    keep(0)
    for value in range(10):
        assert (await scene.broker.answer(asked(args={"value": value}), Caller(990, 1)))[0] is Code.DONE
        keep(value + 1)
    assert (await scene.broker.answer(asked(args={"value": 50}), Caller(990, 1)))[0] is Code.REFUSED
    keep(10)
    scene.register.close()
    keep(10)
    return copies


def whole(_: Path) -> None:
    pass


def without_index(path: Path) -> None:
    path.with_name(path.name + "-shm").unlink(missing_ok=True)


def torn(path: Path) -> None:
    """What came after the last commit was on its way to the disk: half of it arrived."""
    without_index(path)
    with path.with_name(path.name + "-wal").open("ab") as wal:
        wal.write(b"\x37\x7f\x06\x82" + bytes(700))


@pytest.mark.parametrize(
    ("state", "limits"), [(whole, HOURLY), (without_index, TEN), (torn, TEN)], ids=["hour", "5 minutes", "torn"]
)
async def test_a_power_cut_gives_no_operation_back(
    host: FakeHost, tmp_path: Path, state: Callable[[Path], None], limits: Limits
) -> None:
    """From each durable moment on exactly as many are left as had not begun by then."""
    copies = await ten_with_copies(host, tmp_path, limits)
    assert [begun for begun, _ in copies] == [0, *(at for at in range(1, 11) for _ in range(2)), 10, 10]
    for begun, path in copies:
        state(path)
        scene = Scene(host, path, limits=limits)
        assert scene.register.fault == ""
        assert len(scene.register.acts()) == begun
        scene.register.close_unfinished()
        codes = [
            (await scene.broker.answer(asked(args={"value": value}), Caller(990, 1)))[0]
            for value in range(100, 112 - begun)
        ]
        assert codes == [Code.DONE] * (10 - begun) + [Code.REFUSED] * 2, begun
        _, said = await scene.broker.answer(asked(args={"value": 7}), Caller(990, 1))
        assert 1 < said["lifts_in_s"] <= 3601
        rows, checkpoint = read_audit(path)
        assert verify(rows, checkpoint, AUDIT_KEY) == ""
        scene.register.close()


async def test_an_older_file_is_shown_by_the_head_that_was_told(host: FakeHost, tmp_path: Path) -> None:
    """Root may roll the file back, which nobody can hinder. The head in the journal shows it."""
    copies = await ten_with_copies(host, tmp_path, TEN)
    last = Scene(host, copies[-1][1]).register
    head = last.head()
    last.close()
    for begun, path in copies[:-3]:
        rows, checkpoint = read_audit(path)
        assert verify(rows, checkpoint, AUDIT_KEY) == ""
        assert "is missing at the end" in verify(rows, checkpoint, AUDIT_KEY, head), begun


def emptied(path: Path) -> None:
    """A database, in order and with nothing in it."""
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("VACUUM")
    db.close()


async def test_a_file_that_is_gone_or_cut_means_no_operation_at_all(host: FakeHost, tmp_path: Path) -> None:
    """Not knowing the past is no reason to begin anew."""
    copies = await ten_with_copies(host, tmp_path, TEN)
    cuts: list[tuple[int, Callable[[Path], Any]]] = [
        (-1, lambda path: path.unlink()),
        (-2, lambda path: path.write_bytes(b"")),
        (-3, lambda path: path.write_bytes(b"not a database" * 1000)),
        (-4, lambda path: path.write_bytes(path.read_bytes()[:5000])),
        (-5, emptied),
    ]
    for at, cut in cuts:
        path = copies[at][1]
        for rest in ("-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)
        cut(path)
        scene = Scene(host, path, limits=TEN)
        code, said = await scene.broker.answer(asked(args={"value": 99}), Caller(0, 1))
        assert code is Code.REFUSED, (at, said)
        assert len(scene.runner.steps) == 0
        scene.register.close()


async def test_no_clock_gives_an_operation_back(host: FakeHost, tmp_path: Path) -> None:
    """Neither a new boot, whose clock begins anew, nor one that goes back while it runs."""
    path = tmp_path / "state/register.db"
    for boot, began in (("a", 5000.0), ("b", 3.0), ("c", 0.0)):
        clock = Clock(began)
        scene = Scene(host, path, limits=TEN, boot=boot, clock=clock)
        for value in range(10):
            code = (await scene.broker.answer(asked(args={"value": value}), Caller(990, 1)))[0]
            assert code is (Code.DONE if boot == "a" else Code.REFUSED)
            clock.now += 1.0
        clock.now -= 2.0
        assert (await scene.broker.answer(asked(args={"value": 50}), Caller(990, 1)))[0] is Code.REFUSED
        scene.register.close()


# -- each acknowledged intent is on the disk -------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_nothing_acts_before_its_intent_was_synced(tmp_path: Path) -> None:
    """By the order of the system calls: written, synced, and only then carried out and answered."""
    trace = tmp_path / "trace"
    wrapped = ("strace", "-f", "-qq", "-y", "-o", str(trace), "-e",
               "trace=pwrite64,write,fsync,fdatasync,sendto,sendmsg,recvmsg")  # fmt: skip
    if subprocess.run([*wrapped[:-2], "true"], check=False, capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    with public_folder() as folder:
        with apart(folder, wrapped=wrapped) as one:
            for value in range(5):
                assert act(one.at, value)["code"] == "done"
        lines = trace.read_text("utf-8", "replace").splitlines()
    order = []
    for line in lines:
        if "register.db-wal>" in line:
            order.append("synced" if "sync(" in line else "written")
        elif "/steps>" in line:
            order.append("acted")
        elif "sendto(" in line and '"\\1' in line:  # a frame's version
            order.append("answered")
    first = order.index("acted")
    assert "synced" in order[:first]
    for at, what in enumerate(order):
        if what in {"acted", "answered"}:
            before = [one for one in order[:at] if one in {"written", "synced"}]
            assert before[-1] == "synced", order
    assert order.count("acted") == order.count("answered") == 5
