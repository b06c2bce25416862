"""Whom the attacks come from: processes of other users, a folder that all of them can enter."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

PEER = Path(__file__).with_name("peer.py")
# Real numbers that no account has; only `nobody` is somebody everywhere.
ROOT, ENGINE, HELPER, GATEWAY, MALLORY, NOBODY = 0, 61_001, 61_002, 61_003, 61_004, 65_534
WHO = {"root": ROOT, "engine": ENGINE, "helper": HELPER, "gateway": GATEWAY, "mallory": MALLORY, "nobody": NOBODY}
IS_ROOT = os.geteuid() == 0


class Peer:
    """One process of one user, with a connection for each order."""

    def __init__(self, uid: int, path: Path) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(PEER), str(uid), str(path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={},
        )  # fmt: skip
        self.pid, self.uid = json.loads(self._line())
        assert self.uid == uid

    def _line(self) -> str:
        assert self._child.stdout is not None
        return self._child.stdout.readline()

    def talk(self, *frames: bytes, at: Path | None = None, bound: str = "") -> list[bytes]:
        """Send them on one connection. Blocking."""
        assert self._child.stdin is not None
        order = {"frames": [frame.hex() for frame in frames], "from": bound, "to": str(at or "")}
        self._child.stdin.write(json.dumps(order) + "\n")
        self._child.stdin.flush()
        answers: Sequence[str] = json.loads(self._line())
        if answers and answers[0].startswith("not connected"):
            raise ConnectionError(answers[0])
        return [bytes.fromhex(answer) for answer in answers]

    def close(self) -> None:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.close()
        self._child.wait(60)
        self._child.stdout.close()


@contextlib.contextmanager
def peer(uid: int, path: Path) -> Iterator[Peer]:
    one = Peer(uid, path)
    try:
        yield one
    finally:
        one.close()


@contextlib.contextmanager
def public_folder() -> Iterator[Path]:
    """Everybody may enter it: a test's own folder is closed to other users."""
    with tempfile.TemporaryDirectory(prefix="healing-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)
