"""Numbers of processes that change hands: `python -m tests.security.pidreuse --rounds 10000 --seed 1`.

In a pid namespace of its own, where the next number can be chosen, each process that is to be ended makes place for
an innocent one of the same number: before the request, after the precheck, after pidfd_open(2), before the signal.
Everything goes through the broker to real processes. Root only. Prints JSON; ends with 1 when an innocent was hit.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from luminous_nix.self_healing.act.effects import end_process
from luminous_nix.self_healing.act.operations import read_process
from luminous_nix.self_healing.act.steps import EndProcess, Step
from luminous_nix.self_healing.models import Roots
from luminous_nix.self_healing.privileged.broker import Caller
from luminous_nix.self_healing.privileged.protocol import Code
from tests.security.crowd import MALLORY
from tests.security.helpers import Scene, asked
from tests.unit.host import FakeHost

ROOT = Path(__file__).parents[2]
_LAST: Final = Path("/proc/sys/kernel/ns_last_pid")
_INSIDE: Final = "--inside"
MOMENTS: Final = ("never", "before the request", "after the precheck", "once it was opened", "before the signal")
_BATCH: Final = 50
_FIRST: Final = 2000  # of the numbers that are used


def born(pid: int, uid: int) -> None:
    """A process of this number and user, which waits for its end."""
    ready, told = os.pipe()
    _LAST.write_text(str(pid - 1), "ascii")
    child = os.fork()
    if child == 0:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.setresuid(uid, uid, uid)
            os.close(ready)
            os.write(told, b"1")
            os.close(told)
            while True:
                signal.pause()
        finally:
            os._exit(0)
    os.close(told)
    os.read(ready, 1)
    os.close(ready)
    assert child == pid, (child, pid)


def lives(pid: int) -> bool:
    return os.waitpid(pid, os.WNOHANG) == (0, 0)


def buried(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


class Hands:
    """An actuator that really ends processes, and in which a number changes hands at the chosen moment."""

    def __init__(self, roots: Roots, *, naive: bool) -> None:
        self._roots, self._naive = roots, naive
        self.moment = "never"
        self.change: Callable[[], object] = dict

    async def run(self, step: Step) -> str:
        assert isinstance(step, EndProcess)
        self.at("after the precheck")
        if self._naive:
            self.at(self.moment)  # whenever it was to be: a number alone does not notice
            handle = os.pidfd_open(step.pid)
            os.kill(step.pid, signal.SIGKILL)
            select.select([handle], [], [])
            os.close(handle)
            return "done"
        with self._before_the_signal():
            return await end_process(step, self._roots, opener=self._opened)

    def at(self, moment: str) -> None:
        if moment == self.moment != "never":
            self.moment = "never"
            self.change()

    def _opened(self, pid: int) -> int:
        handle = os.pidfd_open(pid)
        self.at("once it was opened")
        return handle

    @contextlib.contextmanager
    def _before_the_signal(self) -> Iterator[None]:
        real: Callable[..., None] = signal.pidfd_send_signal

        def send(*arguments: Any) -> None:
            self.at("before the signal")
            real(*arguments)

        signal.pidfd_send_signal = send
        try:
            yield
        finally:
            signal.pidfd_send_signal = real


async def batch(scene: Scene, hands: Hands, dice: random.Random, count: int, tally: Counter[str]) -> None:
    numbers = range(_FIRST, _FIRST + count)
    for pid in numbers:
        born(pid, MALLORY)
    meant = {pid: stat.start_time for pid in numbers if (stat := read_process(scene.host.roots, pid))}
    # Who is ended is a minute old (the precheck's word), so that who comes after it began in another tick.
    await asyncio.sleep(2 / os.sysconf("SC_CLK_TCK"))
    for pid in numbers:
        moment = dice.choice(MOMENTS)

        def change(pid: int = pid) -> None:
            buried(pid)
            born(pid, dice.choice([MALLORY, MALLORY + 1, 0]))

        hands.moment, hands.change = moment, change
        hands.at("before the request")
        asking = asked("kill_process", args={"pid": pid, "start_time": meant[pid]})
        code, _ = await scene.broker.answer(asking, Caller(0, 1))  # the children here are of no unit
        tally[moment] += 1
        if moment == "never":
            tally["ended"] += not lives(pid) and code is Code.DONE
            continue
        tally["changed hands"] += 1
        tally["told as done"] += code is Code.DONE  # it was gone when the signal came, which is what was wanted
        if lives(pid):
            tally["innocents alive"] += 1
            buried(pid)


async def inside(rounds: int, seed: int, *, naive: bool) -> dict[str, Any]:
    dice, tally = random.Random(seed), Counter[str]()  # noqa: S311  to be repeated by its seed
    began, done = time.perf_counter(), 0
    while done < rounds:
        with tempfile.TemporaryDirectory() as folder:
            host = FakeHost(Path(folder))
            hands = Hands(host.roots, naive=naive)
            scene = Scene(host, runner=hands)
            # The real /proc but for its clock: what is born here counts as an hour old.
            for pid in range(_FIRST, _FIRST + _BATCH):
                (host.roots.proc / str(pid)).symlink_to(f"/proc/{pid}")
            now = float(Path("/proc/uptime").read_text("ascii").split()[0])
            host.write(host.roots.proc / "uptime", f"{now + 3600:.2f} 0.00\n")
            count = min(_BATCH, rounds - done)
            await batch(scene, hands, dice, count, tally)
            done += count
    wrong = tally["changed hands"] - tally["innocents alive"]
    return {"rounds": rounds, "wrong_kills": wrong, "right_kills": tally["ended"], **dict(sorted(tally.items())),
            "seconds": round(time.perf_counter() - began, 1)}  # fmt: skip


def right(result: dict[str, Any]) -> bool:
    return bool(result["wrong_kills"] == 0 and result["right_kills"] == result["never"])


def command(*arguments: str) -> list[str]:
    """This program in a namespace of its own, as its first process."""
    unshare = shutil.which("unshare") or "unshare"
    return [unshare, "--pid", "--fork", "--kill-child", "--mount-proc",
            sys.executable, "-m", "tests.security.pidreuse", _INSIDE, *arguments]  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--naive", action="store_true", help="by the bare number: how many are hit then?")
    parser.add_argument(_INSIDE, action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if not chosen.inside:
        again = command("--rounds", str(chosen.rounds), "--seed", str(chosen.seed), *["--naive"] * chosen.naive)
        return subprocess.run(again, check=False, cwd=ROOT).returncode
    assert os.getpid() == 1, "not in a namespace of its own"
    result = asyncio.run(inside(chosen.rounds, chosen.seed, naive=chosen.naive))
    print(json.dumps(result, indent=1))
    return 0 if right(result) else 1


if __name__ == "__main__":
    sys.exit(main())
