"""A helper on a socket of the test's own, over a fake host and a dry actuator."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from luminous_nix.self_healing.act.steps import Step
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.decide.actions import CATALOGUE
from luminous_nix.self_healing.decide.limits import Limits, Window
from luminous_nix.self_healing.decide.policy import Mode, Policy, Rule
from luminous_nix.self_healing.models import Action, ActionRefused, ExecutionMode
from luminous_nix.self_healing.permission_handler import NixOSPermissionHandler
from luminous_nix.self_healing.privileged.broker import Broker, Rules
from luminous_nix.self_healing.privileged.client import HelperClient
from luminous_nix.self_healing.privileged.door import Helper, Quota
from luminous_nix.self_healing.privileged.keys import boot_id, boot_ns
from luminous_nix.self_healing.privileged.protocol import Key, Keys, Request, encode_request, frozen
from luminous_nix.self_healing.privileged.register import Register
from tests.unit.host import FakeHost, no_bus

AUDIT_KEY = b"\7" * 32
KEY = Key(b"\1" * 32)
LOOSE = Limits(10**9, others=(Window("many", 10**9, 300.0),))  # what a constructor may raise
FREE = Rules(frozenset({"web.service"}), Policy(rules=(Rule(Mode.AUTO, "*", "*", "*"),)))


class Dry:
    """An actuator that only notes what it was to do."""

    def __init__(self, effect: Callable[[Step], None] = lambda _: None) -> None:
        self.steps: list[Step] = []
        self._effect = effect

    async def run(self, step: Step) -> str:
        self.steps.append(step)
        self._effect(step)
        return "done"


async def nobody(subject: str, action: Action) -> None:
    raise ActionRefused(f"no polkit here for {subject} and {action.name}")


class Scene:
    """A broker with everything that it stands on."""

    def __init__(
        self, host: FakeHost, path: Path | None = None, *, rules: Rules = FREE, runner: Any = None,
        confirmed: Callable[[str, Action], Any] = nobody, limits: Limits | None = LOOSE, bus: Bus | None = None,
        switch: Callable[[], str] = lambda: "", clock: Callable[[], float] | None = None, boot: str = "",
    ) -> None:  # fmt: skip
        host.write(host.roots.proc / "sys/vm/swappiness", "60\n")
        self.host, self.rules, self.runner = host, rules, runner or Dry()
        self.boot = boot or boot_id()
        self._clock = clock or (lambda: boot_ns() / 1e9)
        self._confirmed, self._switch, self._limits = confirmed, switch, limits
        self._handler = NixOSPermissionHandler(
            ExecutionMode.DEVELOPMENT, bus=bus or no_bus(), roots=host.roots, runner=self.runner, environment={},
            switch=switch, rooted=True,
        )  # fmt: skip
        self.again(path)

    def again(self, path: Path | None) -> None:
        """As after a start of the helper: only what is on disk is known."""
        self.register = Register(path, clock=self._clock, boot_id=self.boot, audit_key=AUDIT_KEY)
        self.broker = Broker(
            self.register, self._handler, rules=lambda: self.rules, confirmed=self._confirmed, switch=self._switch,
            limits=self._limits,
        )  # fmt: skip


@contextlib.asynccontextmanager
async def serving(
    scene: Scene, path: Path, *, keys: Keys | None = None, engine_uid: int | None = None, quota: Quota | None = None,
    **more: Any,
) -> AsyncIterator[Helper]:  # fmt: skip
    """The helper at `path`, for the test's own user; ended in any case."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    path.chmod(0o777)
    listener.listen(512)
    uid = os.geteuid() if engine_uid is None else engine_uid
    helper = Helper(listener, keys or Keys(KEY), scene.broker, engine_uid=uid, quota=quota, boot=scene.boot,
                    note=scene.register.note, **more)  # fmt: skip
    running = asyncio.create_task(helper.run())
    try:
        yield helper
    finally:
        helper.stop()
        await running
        listener.close()
        path.unlink()


def client(path: Path, key: Key = KEY) -> HelperClient:
    return HelperClient(path, lambda: Keys(key))


def request(op: str = "adjust_swappiness", /, *, key: Key = KEY, **changes: Any) -> bytes:
    """A frame that is good unless the changes make it another."""
    return encode_request(asked(op, **changes), key)


def asked(op: str = "adjust_swappiness", /, **changes: Any) -> Request:
    args: Mapping[str, Any] = changes.pop("args", {"value": 10} if op == "adjust_swappiness" else {})
    made = Request(boot_id(), boot_ns(), secrets.token_hex(16), op, args, False, "test", frozen(op, args))
    return replace(made, **changes)


def dial(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(20.0)
    connection.connect(str(path))
    return connection


async def exchanged(path: Path, *frames: bytes) -> list[bytes]:
    """Send each frame on one connection and take one packet for each; b"" when the connection ended."""

    def talk() -> list[bytes]:
        with dial(path) as connection:
            answers = []
            for frame in frames:
                try:
                    connection.send(frame)
                    answers.append(connection.recv(1 << 16))
                except (BrokenPipeError, ConnectionResetError):
                    answers.append(b"")
            return answers

    return await asyncio.to_thread(talk)


EVERY_OP = (*CATALOGUE, "status", "restore", "grant")
