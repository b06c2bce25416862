"""The helper in a process of its own, with a dry actuator: how fast it answers, and whom it answers in a crowd.

status    requests that only look, from 64 connections at once
durable   operations, one after the other: nonce, intent, result and audit lines on disk (synchronous=FULL), their
          limits raised by a constructor argument
crowd     1,000 clients of the engine's user press in without end, while root asks: the longest that root waited for
          its answer, connection included, and whether the helper is the same process at the end

Needs root, for the clients' user. Clients run in a process of their own on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hmac
import json
import os
import secrets
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from luminous_nix.self_healing.privileged.keys import boot_id, boot_ns
from luminous_nix.self_healing.privileged.protocol import Code, Key, frozen, parse_reply
from tests.security.apart import APARTS_KEY
from tests.security.helpers import client

ENGINE = 64_990  # a user that exists nowhere else
ROOT = Path(__file__).parent.parent
CLIENTS = 64
CROWD = 1000


def framer(key: Key, op: str) -> Callable[[int], tuple[str, bytes]]:
    """Makes signed frames as encode_request does, without its checks: the client must not be what is measured."""

    def make(number: int) -> tuple[str, bytes]:
        args = {"value": 61 + number % 100} if op == "adjust_swappiness" else {}
        nonce = secrets.token_hex(16)
        words = {
            "v": 1, "boot_id": boot, "ts_boot_ns": f"{boot_ns():016x}", "nonce": nonce, "op": op, "args": args,
            "dry_run": False, "reason_code": "bench", "evidence_hash": evidence,
        }  # fmt: skip
        body = encode(words).encode()
        signed = b"luminous-req-v1\0" + key.id + len(body).to_bytes(4, "big") + body
        return nonce, b"\1" + key.id + hmac.digest(key.secret, signed, "sha256") + body

    boot, evidence = boot_id(), frozen(op, {})
    encode = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
    return make


def load(path: str, op: str, clients: int, seconds: float) -> dict[str, float]:
    """As the engine's user: each connection asks again as soon as it was answered."""
    make, took, number = framer(APARTS_KEY, op), [], 0
    poll = select.epoll()
    waiting: dict[int, list[Any]] = {}
    for _ in range(clients):
        one = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        one.connect(path)
        poll.register(one, select.EPOLLIN)
        waiting[one.fileno()] = [one, "", 0.0]

    def ask(entry: list[Any]) -> None:
        nonlocal number
        number += 1
        entry[1], frame = make(number)
        entry[2] = time.perf_counter()
        entry[0].send(frame)

    for entry in waiting.values():
        ask(entry)
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for descriptor, _ in poll.poll(1.0):
            entry = waiting[descriptor]
            answer = entry[0].recv(1 << 14)
            took.append(time.perf_counter() - entry[2])
            if len(took) % 100 == 0:
                assert parse_reply(answer, APARTS_KEY, entry[1]).code is Code.DONE
            assert b'"code":"done"' in answer, answer
            ask(entry)
    lasted = time.perf_counter() - began
    return {"per_s": round(len(took) / lasted), "p99_ms": round(1e3 * statistics.quantiles(took, n=100)[98], 3)}


@contextlib.contextmanager
def helper() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        argv = [sys.executable, "-m", "tests.security.apart", name, "--engine", str(ENGINE), "--quota", str(CLIENTS)]
        with subprocess.Popen(
            argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                yield process, folder / "helper.sock"
            finally:
                process.terminate()


def apart(path: Path, op: str, clients: int, seconds: float) -> dict[str, float]:
    argv = [sys.executable, __file__, "--load", str(path), op, str(clients), str(seconds)]
    env = {**os.environ, "LUMINOUS_BOOT_ID": boot_id().replace("-", "")}  # not every user may read it everywhere
    done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True, env=env)
    told: dict[str, float] = json.loads(done.stdout)
    return told


async def crowd(path: Path, process: subprocess.Popen[str], seconds: float) -> dict[str, Any]:
    argv = [sys.executable, "-I", "-S", str(ROOT / "tests/security/mob.py"), str(ENGINE), str(path), str(CROWD)]
    before, waits = listens(path), []
    with subprocess.Popen(  # noqa: ASYNC220  nothing else waits meanwhile
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as mob:
        assert mob.stdout is not None
        assert mob.stdout.readline() == "here\n"
        until = time.perf_counter() + seconds
        while time.perf_counter() < until:
            began = time.perf_counter()
            reply = await client(path, APARTS_KEY).ask("status", {})
            waits.append(time.perf_counter() - began)
            assert reply.ok
            await asyncio.sleep(0.02)
        mob.communicate()
    same = process.poll() is None and listens(path) == before == process.pid
    return {
        "clients": CROWD, "root_slot_ms": round(1e3 * max(waits), 3),
        "root_median_ms": round(1e3 * statistics.median(waits), 3), "root_asked": len(waits), "same_pid": same,
    }  # fmt: skip


def listens(path: Path) -> int:
    """The process that made the socket at which we arrive."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as one:
        one.connect(str(path))
        return int(struct.unpack("3i", one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each part (default 5)")
    parser.add_argument("--load", nargs=4, metavar=("PATH", "OP", "CLIENTS", "SECONDS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if os.geteuid() != 0 and not given.load:
        parser.error("it needs root: clients of another user are part of it")
    if given.load:
        path, op, clients, seconds = given.load
        os.setgroups([])
        os.setresgid(ENGINE, ENGINE, ENGINE)
        os.setresuid(ENGINE, ENGINE, ENGINE)
        print(json.dumps(load(path, op, int(clients), float(seconds))))
        return 0
    with helper() as (_, path):
        result: dict[str, Any] = {"status": {**apart(path, "status", CLIENTS, given.seconds), "clients": CLIENTS}}
    with helper() as (_, path):
        result["durable"] = apart(path, "adjust_swappiness", 1, given.seconds)
    with helper() as (process, path):
        result["crowd"] = asyncio.run(crowd(path, process, given.seconds))
    print(json.dumps(result, indent=None if given.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
