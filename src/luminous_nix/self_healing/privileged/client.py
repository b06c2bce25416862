"""Asking the helper: one request, one answer, on a connection of its own."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from ..act.steps import AskHelper, Plan, SetProperties, Step, UnitJob
from ..decide.actions import protected
from ..models import ActionFailed, ActionRefused, HealingError, NeedsPrivilege
from .keys import boot_id, boot_ns, credential, load_keys
from .protocol import (
    LONGEST_FRAME,
    STATUS,
    Code,
    Denied,
    Key,
    Keys,
    Reply,
    Request,
    encode_request,
    frozen,
    parse_reply,
)
from .ways import POWERS

HELPER_SOCKET: Final = Path("luminous-healing-executor.sock")  # below Roots.run
_CONNECT_S: Final = 5.0
_TRIES: Final = 3


class HelperUnavailable(HealingError):  # noqa: N818
    """Nobody answers at the socket. `sent`: the request may have arrived."""

    def __init__(self, why: str, *, sent: bool = False) -> None:
        super().__init__(why, "systemctl status luminous-healing-executor.socket")
        self.sent = sent


class HelperClient:
    """`keys` is asked at each request: a rotation shows at once where the file can be read again."""

    def __init__(
        self, path: Path, keys: Callable[[], Keys], *, clock_ns: Callable[[], int] = boot_ns,
        boot: Callable[[], str] = boot_id,
    ) -> None:  # fmt: skip
        self.path = path
        self._keys, self._clock_ns, self._boot = keys, clock_ns, boot

    async def ask(
        self, op: str, arguments: Mapping[str, Any], *, dry_run: bool = False, reason: str = "asked",
        within: float = 60.0,
    ) -> Reply:  # fmt: skip
        """Raises HelperUnavailable, HealingError without a key, and Denied for what cannot be said in the protocol.

        A connection that ends without an answer is tried again with the very same frame: its nonce counts once,
        so that nothing is done twice.
        """
        key = self._keys().current
        reply: Reply | None = None
        for _ in range(_TRIES):
            request, frame = self._frame(op, arguments, key, dry_run=dry_run, reason=reason)
            reply = await self._sent(frame, request.nonce, key, within)
            # A helper that has just started cannot tell a first look from a repeated one.
            if not (reply.code is Code.STALE and (op == STATUS or dry_run)):
                break
        if reply is None:
            raise HelperUnavailable("no answer")
        return reply

    def _frame(
        self, op: str, arguments: Mapping[str, Any], key: Key, *, dry_run: bool, reason: str
    ) -> tuple[Request, bytes]:
        evidence = frozen(op, arguments)
        request = Request(
            self._boot(), self._clock_ns(), secrets.token_hex(16), op, dict(arguments), dry_run, reason, evidence
        )
        return request, encode_request(request, key)

    async def _sent(self, frame: bytes, nonce: str, key: Key, within: float) -> Reply:
        repeated = False
        try:
            async with asyncio.timeout(within):
                while True:
                    try:
                        reply = parse_reply(await self._exchanged(frame), key, nonce)
                    except HelperUnavailable as error:
                        if repeated or not error.sent:
                            raise
                        repeated = True
                        continue
                    if repeated and reply.code is Code.REPLAY:  # the first one arrived, and nobody told how it ended
                        return Reply(nonce, Code.UNKNOWN, {"reason": "the connection ended before the answer came"})
                    return reply
        except TimeoutError:
            raise HelperUnavailable(f"the helper did not answer within {within:.0f} s", sent=True) from None

    async def _exchanged(self, frame: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        sent = False
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as connection:
            try:
                async with asyncio.timeout(_CONNECT_S):
                    await self._connected(connection)
                    await loop.sock_sendall(connection, frame)
                sent = True
                answer = await loop.sock_recv(connection, LONGEST_FRAME)
            except TimeoutError:
                raise HelperUnavailable(f"{self.path} takes no request") from None
            except OSError as error:
                raise HelperUnavailable(f"no helper answers at {self.path}: {error.strerror}", sent=sent) from error
        if not answer:
            raise HelperUnavailable("the helper closed the connection without an answer", sent=True)
        return answer

    async def _connected(self, connection: socket.socket) -> None:
        """A full queue says EAGAIN and never becomes ready: it is asked again."""
        while True:
            try:
                return connection.connect(str(self.path))
            except BlockingIOError:
                await asyncio.sleep(0.005)


def helper_client(run: Path, environment: Mapping[str, str]) -> HelperClient:
    """For this host: the key is systemd's credential of this process, or root's own file."""
    return HelperClient(run / HELPER_SOCKET, lambda: load_keys(credential("keys", environment), boot_id()))


class HelperRunner:
    """Has a whole plan carried out by the helper, which plans it again with its own eyes."""

    def __init__(self, client: HelperClient) -> None:
        self._client = client

    async def run(self, step: Step) -> str:
        if not isinstance(step, AskHelper):
            raise NeedsPrivilege("in SERVICE mode everything privileged goes through the helper")
        try:
            reply = await self._client.ask(step.op, step.arguments, within=step.timeout_s)
        except HelperUnavailable as error:
            if error.sent:
                raise ActionFailed(error.message, error.hint) from error
            raise NeedsPrivilege(error.message, error.hint) from error
        except Denied as error:
            raise ActionRefused(f"this cannot be asked of the helper ({error.code})") from error
        except HealingError as error:
            raise NeedsPrivilege(error.message, error.hint) from error
        words, hint = (
            str(reply.result.get("reason", "")) or f"the helper says {reply.code}",
            reply.result.get("hint", ""),
        )
        match reply.code:
            case Code.DONE:
                return str(reply.result.get("said", ""))
            case Code.FAILED | Code.UNKNOWN:
                raise ActionFailed(words, str(hint))
            case Code.BUSY:
                raise ActionRefused(words, str(hint), passing=True)
        raise ActionRefused(words, str(hint))


# -- what a plan touches -------------------------------------------------------------------------------------


def touched(plan: Plan) -> list[str]:
    """The units that a plan changes, by their own names. [pure]"""
    found = [step.unit for step in plan.steps if isinstance(step, UnitJob | SetProperties)]
    for step in plan.steps:
        power = getattr(step, "power", "")
        if power and POWERS[power.partition("@")[0]].allowed:
            found.append(_instance_unit(power))
    return list(dict.fromkeys(found))


def narrowed(plan: Plan, allowed: Collection[str]) -> Plan:
    """The plan in SERVICE mode: each act unit once, and memory reclaimed from allowed units alone. Raises
    ActionRefused when it touches a unit that is not allowed, or nothing is left of it. [pure]"""
    steps: dict[Any, Step] = {}
    for step in plan.steps:
        power = getattr(step, "power", "")
        if power.startswith("reclaim@") and _instance_unit(power) not in allowed:
            continue
        steps.setdefault(power or step, step)
    if plan.steps and not steps:
        raise ActionRefused("no unit that may be touched holds idle memory", "allowed_units says which may be")
    plan = replace(plan, steps=tuple(steps.values()))
    units = touched(plan)
    if guarded := next((unit for unit in units if protected(unit)), ""):
        raise ActionRefused(f"{guarded} is in the protected set")
    if other := next((unit for unit in units if unit not in allowed), ""):
        raise ActionRefused(f"{other} is not among the units that may be touched",
                            "add it to allowed_units in /etc/luminous-healing/config.toml, then"
                            " `luminous-healing install`")  # fmt: skip
    return plan


def _instance_unit(power: str) -> str:
    """The unit at the beginning of an act unit's instance: `a.service` of `reclaim@a.service:4096`."""
    return power.partition("@")[2].partition(".service")[0] + ".service"
