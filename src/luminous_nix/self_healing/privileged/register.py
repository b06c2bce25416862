"""What the helper keeps, on disk and before it acts: nonces, acts, grants, and an audit that shows tampering.

    mac of a line = HMAC-SHA256(audit key, mac of the line before | line)

One transaction holds nonce, intent and audit line: when it is durable the act may begin. Lines are one line of
printable ASCII each. What is dropped for its age leaves a signed checkpoint, so that the rest still verifies.
"""

from __future__ import annotations

import hmac
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

from ..decide.limits import Act
from ..ledger import Ledger
from .protocol import WINDOW_NS, Code, Denied

Knobs = tuple[tuple[str, str, str], ...]

_REMEMBERED_S: Final = 8 * 86400.0  # longer than any limit looks back
_KEPT_LINES: Final = 50_000
_FIELD_BYTES: Final = 256
_START: Final = b"luminous-audit-v1\0"
_SCHEMA: Final = """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
    CREATE TABLE nonces (nonce TEXT PRIMARY KEY, boot_id TEXT NOT NULL, ns INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE INDEX nonces_ns ON nonces (ns);
    CREATE TABLE acts (
        id INTEGER PRIMARY KEY, target TEXT NOT NULL, action TEXT NOT NULL, nonce TEXT NOT NULL,
        started REAL NOT NULL, ended REAL, code TEXT NOT NULL DEFAULT '', automatic INTEGER NOT NULL,
        knobs TEXT NOT NULL, person INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE grants (request TEXT PRIMARY KEY, until REAL NOT NULL, boot_id TEXT NOT NULL, uid INTEGER NOT NULL)
        STRICT;
    CREATE TABLE audit (seq INTEGER PRIMARY KEY, line TEXT NOT NULL, mac BLOB NOT NULL) STRICT;
"""


class Row(NamedTuple):
    seq: int
    line: str
    mac: bytes


class Checkpoint(NamedTuple):
    """The last line that was dropped, signed; number 0 and the start of the chain when none was."""

    seq: int
    mac: bytes
    seal: bytes


def audit_line(fields: Mapping[str, Any]) -> str:
    """Canonical JSON of printable ASCII, one line of 4 KiB at most, whatever the values hold. [pure]"""
    return json.dumps(
        {name: _clipped(value) for name, value in fields.items()}, sort_keys=True, separators=(",", ":")
    )


def _clipped(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    text = text[:_FIELD_BYTES].replace("\x7f", "?")
    while len(json.dumps(text)) > _FIELD_BYTES + 2:  # an escape takes up to twelve characters
        text = text[: len(text) - max(1, (len(json.dumps(text)) - _FIELD_BYTES) // 12)]
    return text


def _chained(key: bytes, before: bytes, line: str) -> bytes:
    return hmac.digest(key, before + line.encode("ascii"), "sha256")


def _seal(key: bytes, seq: int, mac: bytes) -> bytes:
    return hmac.digest(key, b"luminous-audit-checkpoint-v1\0" + seq.to_bytes(8, "big") + mac, "sha256")


def verify(rows: Iterable[Row], checkpoint: Checkpoint, key: bytes, head: str = "") -> str:
    """What is wrong with an audit, in words; empty when it is whole. `head` is "SEQ:MAC" as it was told elsewhere
    (the journal, the status): with it a cut end shows, too. [pure]"""
    if checkpoint.seq and not hmac.compare_digest(_seal(key, checkpoint.seq, checkpoint.mac), checkpoint.seal):
        return "the checkpoint is not ours"
    seq, mac = checkpoint.seq, checkpoint.mac if checkpoint.seq else _START
    found = not head or head == f"{seq}:{mac.hex()}"
    for row in rows:
        if row.seq != seq + 1:
            return f"line {seq + 1} is missing"
        if not row.line.isascii() or not hmac.compare_digest(_chained(key, mac, row.line), row.mac):
            return f"line {row.seq} was changed, or one before it"
        seq, mac = row.seq, row.mac
        found = found or head == f"{seq}:{mac.hex()}"
    return "" if found else f"line {head.partition(':')[0]}, which was told of, is missing at the end"


def read_audit(path: Path) -> tuple[list[Row], Checkpoint]:
    """As it stands in the file, without changing it. Raises sqlite3.Error."""
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    try:
        rows = [Row(int(seq), str(line), bytes(mac))
                for seq, line, mac in db.execute("SELECT seq, line, mac FROM audit ORDER BY seq")]  # fmt: skip
        return rows, _checkpoint(db)
    finally:
        db.close()


def _checkpoint(db: sqlite3.Connection) -> Checkpoint:
    row = db.execute("SELECT value FROM meta WHERE key = 'checkpoint'").fetchone()
    if row is None:
        return Checkpoint(0, _START, b"")
    seq, mac, seal = json.loads(row[0])
    if not 0 <= int(seq) < 1 << 63:
        raise ValueError(f"{seq} is no line's number")
    return Checkpoint(int(seq), bytes.fromhex(mac), bytes.fromhex(seal))


class Register(Ledger):
    """`path` None keeps it in memory (tests). `audit_key` has 32 bytes."""

    migrations: ClassVar[tuple[tuple[str, str], ...]] = (
        (_SCHEMA, "DROP TABLE audit; DROP TABLE grants; DROP TABLE acts; DROP TABLE nonces; DROP TABLE meta;"),
    )

    def __init__(
        self, path: Path | None, *, clock: Callable[[], float], boot_id: str, audit_key: bytes,
        kept_lines: int = _KEPT_LINES,
    ) -> None:  # fmt: skip
        self._key, self._kept_lines = audit_key, kept_lines
        self._acts: dict[int, Act] | None = None
        self._head: tuple[int, bytes] | None = None
        super().__init__(path, clock=clock, boot_id=boot_id)

    def _forget_what_was_read(self) -> None:
        self._acts = self._head = None

    # -- acts ------------------------------------------------------------------------------------------------

    def acts(self) -> list[Act]:
        """What the limits count, oldest first. Raises StoreFault."""
        if self._acts is None:
            rows = self._read("SELECT id, target, action, nonce, started, ended, automatic FROM acts"
                              " WHERE started > ? ORDER BY id", self.now() - _REMEMBERED_S)  # fmt: skip
            self._acts = {
                int(number): Act(str(target), str(action), str(nonce), "", float(started), ended,
                                 automatic=bool(automatic))
                for number, target, action, nonce, started, ended, automatic in rows
            }  # fmt: skip
        return list(self._acts.values())

    def begin(
        self, act: Act, ns: int, knobs: Knobs, grant: str, entry: Mapping[str, Any], *, person: bool = False
    ) -> int:
        """Keep the nonce (`act.incident`), the intent and its line, and spend the grant; durable when it returns.
        `person`: root itself asked.

        Raises Denied when the nonce was there before or the grant is not, and StoreFault.
        """
        self.acts()
        try:
            with self._write() as db:
                self._keep_nonce(db, act.incident, ns)
                self._spend(db, grant)
                db.execute("DELETE FROM acts WHERE started < ?", (self.now() - _REMEMBERED_S,))
                cursor = db.execute(
                    "INSERT INTO acts (target, action, nonce, started, automatic, knobs, person)"
                    " VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (act.target, act.action, act.incident, act.started, act.automatic, json.dumps(knobs), person),
                )
                number = int(cursor.lastrowid or 0)
                head = self._append(db, {**entry, "act": number})
        except Denied:
            self._head = None
            raise
        self._head = head
        if self._acts is not None:
            self._acts[number] = act
        return number

    @staticmethod
    def _spend(db: sqlite3.Connection, grant: str) -> None:
        if grant and db.execute("DELETE FROM grants WHERE request = ?", (grant,)).rowcount != 1:
            raise Denied(Code.REFUSED)

    @staticmethod
    def _keep_nonce(db: sqlite3.Connection, nonce: str, ns: int) -> None:
        boot = json.loads(db.execute("SELECT value FROM meta WHERE key = 'clock'").fetchone()[0])[0]
        db.execute("DELETE FROM nonces WHERE ns < ? OR boot_id != ?", (ns - 2 * WINDOW_NS, boot))
        known = db.execute("SELECT 1 FROM nonces WHERE nonce = ?", (nonce,)).fetchone()
        if known is not None:
            raise Denied(Code.REPLAY)
        db.execute("INSERT INTO nonces VALUES (?, ?, ?)", (nonce, boot, ns))

    def end(self, number: int, code: Code, entry: Mapping[str, Any]) -> None:
        """Keep the result and its line. Raises StoreFault."""
        now = self.now()
        with self._write() as db:
            db.execute("UPDATE acts SET ended = ?, code = ? WHERE id = ?", (now, code.value, number))
            head = self._append(db, {**entry, "act": number})
        self._head = head
        if self._acts is not None and number in self._acts:
            self._acts[number] = replace(self._acts[number], ended=now)

    def close_unfinished(self) -> list[str]:
        """Acts whose outcome nobody wrote down: we were ended in the middle. They count, and are never repeated.
        Returns their targets. Raises StoreFault."""
        rows = self._read("SELECT id, target, action FROM acts WHERE ended IS NULL ORDER BY id")
        for number, target, action in rows:
            self.end(int(number), Code.UNKNOWN, {"event": Code.UNKNOWN.value, "op": action, "target": target})
        return [str(target) for _, target, _ in rows]

    def last_set(self) -> dict[str, tuple[tuple[str, str, str], bool]]:
        """For each knob the last act that was about to set it, in the last days: the knob (name, former value, ours),
        and whether root itself asked for that. Raises StoreFault."""
        rows = self._read("SELECT knobs, person FROM acts WHERE knobs != '[]' ORDER BY id")
        return {
            str(name): ((str(name), str(former), str(ours)), bool(person))
            for text, person in rows
            for name, former, ours in json.loads(text)
        }

    # -- grants ----------------------------------------------------------------------------------------------

    def grant(
        self, request: str, seconds: float, *, uid: int, nonce: str, ns: int, entry: Mapping[str, Any]
    ) -> None:  # fmt: skip
        """A person said yes to exactly this request, once, for a while. The nonce is that of who told us so: a word
        is not heard twice. Raises Denied, StoreFault."""
        now = self.now()
        with self._write() as db:
            self._keep_nonce(db, nonce, ns)
            db.execute("DELETE FROM grants WHERE until < ? OR boot_id != ?", (now, self.boot_id))
            db.execute("INSERT OR REPLACE INTO grants VALUES (?, ?, ?, ?)",
                       (request, now + seconds, self.boot_id, uid))  # fmt: skip
            head = self._append(db, entry)
        self._head = head

    def granted(self, request: str) -> bool:
        """Raises StoreFault."""
        return bool(self._read("SELECT 1 FROM grants WHERE request = ? AND until >= ? AND boot_id = ?",
                               request, self.now(), self.boot_id))  # fmt: skip

    # -- audit -----------------------------------------------------------------------------------------------

    def note(self, entry: Mapping[str, Any]) -> None:
        """A line that belongs to no act. Raises StoreFault."""
        with self._write() as db:
            head = self._append(db, entry)
        self._head = head

    def head(self) -> str:
        """The last line as "SEQ:MAC". Raises StoreFault."""
        if self._head is None:
            rows = self._read("SELECT seq, mac FROM audit ORDER BY seq DESC LIMIT 1")
            if rows:
                self._head = (int(rows[0][0]), bytes(rows[0][1]))
            else:
                found = self._read("SELECT value FROM meta WHERE key = 'checkpoint'")
                seq, mac = json.loads(found[0][0])[:2] if found else (0, _START.hex())
                self._head = (int(seq), bytes.fromhex(mac))
        return f"{self._head[0]}:{self._head[1].hex()}"

    def _append(self, db: sqlite3.Connection, entry: Mapping[str, Any]) -> tuple[int, bytes]:
        self.head()
        before_seq, before = self._head or (0, _START)
        seq, line = before_seq + 1, audit_line({"at": round(self.now(), 3), **entry})
        mac = _chained(self._key, before, line)
        db.execute("INSERT INTO audit VALUES (?, ?, ?)", (seq, line, mac))
        if seq % 1024 == 0:
            self._drop_old(db, seq)
        return seq, mac

    def _drop_old(self, db: sqlite3.Connection, seq: int) -> None:
        """By size: the oldest lines go, and the last of them is kept as a signed checkpoint."""
        last = db.execute("SELECT seq, mac FROM audit WHERE seq <= ? ORDER BY seq DESC LIMIT 1",
                          (seq - self._kept_lines,)).fetchone()  # fmt: skip
        if last is None:
            return
        text = json.dumps([last[0], last[1].hex(), _seal(self._key, last[0], last[1]).hex()])
        db.execute("INSERT OR REPLACE INTO meta VALUES ('checkpoint', ?)", (text,))
        db.execute("DELETE FROM audit WHERE seq <= ?", (last[0],))

    def lines(self) -> Iterator[dict[str, Any]]:
        """The audit, oldest first. Raises StoreFault."""
        for (line,) in self._read("SELECT line FROM audit ORDER BY seq"):
            yield json.loads(line)
