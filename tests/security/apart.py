"""A helper in a process of its own, to be flooded, traced and killed.

    python -m tests.security.apart FOLDER [--engine UID] [--limits ten|real] [--quota N] [--slow SECONDS]

The socket is FOLDER/helper.sock, the register FOLDER/state/register.db. Every step of the dry actuator is a line of
FOLDER/steps. It says "ready" on standard output, and ends with SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from luminous_nix.self_healing.act.steps import Step
from luminous_nix.self_healing.decide.limits import Limits
from luminous_nix.self_healing.privileged.door import Quota
from luminous_nix.self_healing.privileged.keys import boot_ns
from luminous_nix.self_healing.privileged.protocol import Key, Keys
from tests.security.helpers import LOOSE, Scene, serving
from tests.unit.host import FakeHost

ROOT = Path(__file__).parents[2]
# Not one of the other tests: whoever finds these bytes anywhere has found a leak.
SECRET = bytes.fromhex("5ec2e7" * 10 + "c0de")
APARTS_KEY = Key(SECRET)


# `ten` is what holds of any five minutes, without the rest of the figures.
LIMITS = {"loose": LOOSE, "ten": Limits(10**6, others=(Limits().others[0],)), "real": None}


class Noting:
    """What would have been done, on disk before anything is answered."""

    def __init__(self, path: Path, slow: float) -> None:
        self._path, self._slow = path, slow

    async def run(self, step: Step) -> str:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(f"{step}\n")
        await asyncio.sleep(self._slow)
        return "done"


async def serve(folder: Path, *, engine: int, limits: Limits | None, quota: Quota, slow: float) -> None:
    scene = Scene(FakeHost(folder / "host"), folder / "state/register.db", limits=limits,
                  runner=Noting(folder / "steps", slow))  # fmt: skip
    if not scene.register.fault:
        scene.register.close_unfinished()
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    at = folder / "helper.sock"
    at.unlink(missing_ok=True)
    async with serving(scene, at, keys=Keys(APARTS_KEY), engine_uid=engine, quota=quota):
        print("ready", flush=True)
        await over.wait()
    scene.register.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--engine", type=int, default=os.geteuid())
    parser.add_argument("--limits", choices=["loose", "ten", "real"], default="loose")
    parser.add_argument("--quota", type=int, default=16)
    parser.add_argument("--slow", type=float, default=0.0)
    chosen = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    asyncio.run(serve(chosen.folder, engine=chosen.engine, limits=LIMITS[chosen.limits],
                      quota=Quota(chosen.quota, max(8, chosen.quota // 2)), slow=chosen.slow))  # fmt: skip


class Apart:
    """Such a process, seen from outside."""

    def __init__(self, child: subprocess.Popen[str], folder: Path) -> None:
        self.child, self.folder, self.at, self.pid = child, folder, folder / "helper.sock", child.pid
        if below := Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text("ascii").split():
            self.pid = int(below[0])  # what runs it (strace) is not it

    @property
    def alive(self) -> bool:
        return self.child.poll() is None

    def descriptors(self) -> int:
        return len([*Path(f"/proc/{self.pid}/fd").iterdir()])

    def resident(self) -> int:
        """Bytes."""
        return int(Path(f"/proc/{self.pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def said(self) -> str:
        return (self.folder / "stderr").read_text("utf-8")

    def steps(self) -> list[str]:
        path = self.folder / "steps"
        return path.read_text("utf-8").splitlines() if path.exists() else []

    def settled(self, descriptors: int, within: float = 30.0) -> int:
        """How many descriptors are open once no more than these are, or time is up."""
        until = time.monotonic() + within
        while (now := self.descriptors()) > descriptors and time.monotonic() < until:
            time.sleep(0.02)
        return now


@contextlib.contextmanager
def apart(
    folder: Path, *arguments: str, wrapped: tuple[str, ...] = (), environment: Mapping[str, str] | None = None,
    **more: Any,
) -> Iterator[Apart]:  # fmt: skip
    """One that runs; only it is ended at the end. `wrapped`: the command that starts it (strace)."""
    env = {"PATH": os.defpath, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"} if environment is None else dict(environment)
    with (folder / "stderr").open("a", encoding="utf-8") as errors:
        child = subprocess.Popen(
            [*wrapped, sys.executable, "-m", "tests.security.apart", str(folder), *arguments],
            cwd=ROOT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True, **more,
        )  # fmt: skip
    assert child.stdout is not None
    one: Apart | None = None
    try:
        readable, _, _ = select.select([child.stdout], [], [], 120.0)
        line = child.stdout.readline() if readable else ""
        assert line == "ready\n", (folder / "stderr").read_text("utf-8")
        one = Apart(child, folder)
        yield one
    finally:
        if one is not None and child.poll() is None:
            os.kill(one.pid, signal.SIGTERM)
        try:
            child.wait(60 if one is not None else 0.1)
        except subprocess.TimeoutExpired:
            child.kill()
        child.wait()
        child.stdout.close()


def result(answer: bytes) -> dict[str, Any]:
    """What a reply says, its mac unlooked at."""
    found: dict[str, Any] = json.loads(answer[37:])
    return found


__all__ = ["APARTS_KEY", "SECRET", "Apart", "apart", "boot_ns", "result"]

if __name__ == "__main__":
    main()
