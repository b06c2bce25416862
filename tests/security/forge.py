"""Forged and repeated frames, by the million: `python -m tests.security.forge --number 1000000 --seed 1`.

They go through the helper's own way from a packet to its answer. Between them come valid ones: all of these must be
answered, and none of the others. Prints JSON; ends with 1 when one was believed that must not be, or the reverse.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import secrets
import socket
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from luminous_nix.self_healing.privileged.broker import Caller
from luminous_nix.self_healing.privileged.door import Helper, _Connection
from luminous_nix.self_healing.privileged.keys import boot_ns
from luminous_nix.self_healing.privileged.protocol import (
    _REPLY,
    _REQUEST,
    GRACE_NS,
    WINDOW_NS,
    Code,
    Key,
    Keys,
    Reply,
    _seal,
    encode_reply,
)
from tests.security.helpers import KEY, Scene, request
from tests.unit.host import FakeHost

FORMER, STRANGER = Key(b"\2" * 32), Key(b"\3" * 32)
EVERY = 20  # of so many frames one is valid


class Ear(Helper):
    """The helper, with an ear at its mouth: what it would say is counted and not sent."""

    def __init__(self, scene: Scene, keys: Keys) -> None:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(listener, keys, scene.broker, engine_uid=990, boot=scene.boot, note=scene.register.note)
        self.said: Code | None = None
        self.ends = 0
        self.peer = _Connection(listener, Caller(990, 4321), 0.0)

    def _end(self, connection: _Connection) -> None:  # noqa: ARG002
        self.ends += 1

    def _reply(self, connection: _Connection, reply: Reply, key: Key) -> None:  # noqa: ARG002
        self.said = reply.code

    def hear(self, frame: bytes) -> Code | None:
        """The code of the answer; None when the connection ended instead."""
        self.said = None
        self._serve(self.peer, frame)
        return self.said

    def close(self) -> None:
        self.peer.socket.close()


Forgery = Callable[[random.Random, bytes, bytes], bytes]


def flipped(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    forged = bytearray(frame)
    forged[dice.randrange(len(frame))] ^= 1 << dice.randrange(8)
    return bytes(forged)


def several_flipped(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    forged = bytearray(frame)
    for at in dice.sample(range(len(frame)), dice.randrange(2, 9)):
        forged[at] ^= dice.randrange(1, 256)
    return bytes(forged)


def cut(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    return frame[: dice.randrange(len(frame))]


def extended(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    return frame + dice.randbytes(dice.randrange(1, 64))


def swapped_mac(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    return frame[:5] + other[5:37] + frame[37:]


def swapped_half(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    at = dice.randrange(38, min(len(frame), len(other)))
    forged = frame[:at] + other[at:]
    return forged if forged not in {frame, other} else frame + b"x"


def relabelled(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    """Signed by a stranger, under our key's name."""
    return frame[:5] + _seal(_REQUEST, STRANGER, frame[37:])[5:]


def strange(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    return _seal(_REQUEST, STRANGER, frame[37:])


def other_key_id(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    """Our mac, under the name of another key that is valid, too."""
    return frame[:1] + FORMER.id + frame[5:]


def other_version(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    return bytes([dice.choice([0, *range(2, 256)])]) + frame[1:]


def other_domain(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    """A request's words, signed with our key as a reply is."""
    return _seal(_REPLY, KEY, frame[37:])


def a_reply(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    return encode_reply(Reply(secrets.token_hex(16), Code.DONE, {"head": "1:aa"}), KEY)


def reordered(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    """The same fields in another order, signed with our key: there is one way only to say a thing."""
    fields = list(json.loads(frame[37:]).items())
    dice.shuffle(fields)
    body = json.dumps(dict(fields), separators=(",", ":")).encode()
    return _seal(_REQUEST, KEY, body if body != frame[37:] else body + b" ")


def doubled(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    """A name that is there twice."""
    return _seal(_REQUEST, KEY, b'{"args":{},' + frame[38:])


def noise(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    return dice.randbytes(dice.randrange(400))


def renewed(**changes: Callable[[], Any]) -> Forgery:
    def forge(dice: random.Random, frame: bytes, other: bytes) -> bytes:
        return request("status", **{name: make() for name, make in changes.items()})

    return forge


def repeated(dice: random.Random, frame: bytes, other: bytes) -> bytes:
    return other  # which was heard before


FORGERIES: Mapping[str, Forgery] = {
    one.__name__: one
    for one in (flipped, several_flipped, cut, extended, swapped_mac, swapped_half, relabelled, strange,
                other_key_id, other_version, other_domain, a_reply, reordered, doubled, noise, repeated)
} | {
    "stale": renewed(ts_boot_ns=lambda: max(0, boot_ns() - WINDOW_NS - 10**9)),
    "future": renewed(ts_boot_ns=lambda: boot_ns() + WINDOW_NS + 600 * 10**9),
    "other_boot": renewed(boot_id=lambda: str(uuid.uuid4())),
}  # fmt: skip
# The costly ones come more seldom, so that a million take minutes.
WEIGHTS = {"a_reply": 1, "stale": 1, "future": 1, "other_boot": 1, "reordered": 2}


def forge(number: int, seed: int, folder: Path) -> dict[str, Any]:
    """So many frames that must not be believed, and the valid ones between them. The result tells how many were."""
    dice = random.Random(seed)  # noqa: S311  to be repeated by its seed
    scene = Scene(FakeHost(folder))
    ear = Ear(scene, Keys(KEY, FORMER, boot_ns() + GRACE_NS))
    kinds = list(FORGERIES)
    weights = [WEIGHTS.get(kind, 6) for kind in kinds]
    tried: Counter[str] = Counter()
    believed: Counter[str] = Counter()
    valid = answered = 0
    frame = other = b""
    began = time.perf_counter()
    for at in range(number):
        if at % EVERY == 0:
            other, frame = frame, request("status", key=KEY if at % (2 * EVERY) else FORMER)
            answered += ear.hear(frame) is Code.DONE
            valid += 1
            other = other or frame
        kind = dice.choices(kinds, weights)[0]
        # What a forgery is made of is newer than what was heard: only its forging is wrong with it.
        basis = other if kind == "repeated" else request("status") if kind in {"flipped", "cut"} else frame
        said = ear.hear(FORGERIES[kind](dice, basis, other))
        tried[kind] += 1
        believed[kind] += said is Code.DONE
    took = time.perf_counter() - began
    ear.close()
    counted = sum(scene.broker.counts.values())
    return {
        "forged": number, "believed": sum(believed.values()), "valid": valid, "answered": answered,
        "counted": counted, "acts": len(scene.register.acts()), "audit_lines": len(list(scene.register.lines())),
        "seconds": round(took, 1), "kinds": dict(sorted(tried.items())),
    }  # fmt: skip


def right(result: Mapping[str, Any]) -> bool:
    return bool(
        result["believed"] == 0 and result["answered"] == result["valid"] and result["counted"] == result["forged"]
    )


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--number", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        result = forge(chosen.number, chosen.seed, Path(folder))
    print(json.dumps(result, indent=1))
    return 0 if right(result) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
