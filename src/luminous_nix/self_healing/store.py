"""What must survive: acts, the record of every heal, and what people ordered.

An intent is durable before the act, its outcome after it (ledger.py).
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from .decide.incidents import Flip
from .decide.limits import Act
from .decide.policy import Silence
from .ledger import VERSION, Ledger, StoreFault, migrate

__all__ = ["VERSION", "Store", "StoreFault", "migrate"]

_CAP_BYTES: Final = 64 << 20
_REMEMBERED_S: Final = 8 * 86400.0  # longer than any limit looks back


class Store(Ledger):
    """`path` None keeps everything in memory (tests, one-shot API use): limits then end with the process."""

    def __init__(self, path: Path | None, *, clock: Callable[[], float], boot_id: str) -> None:
        self._acts: list[Act] | None = None
        self._orders: _Orders | None = None
        super().__init__(path, clock=clock, boot_id=boot_id)

    def _forget_what_was_read(self) -> None:
        self._acts = self._orders = None

    # -- acts ------------------------------------------------------------------------------------------------

    def begin(self, act: Act, document: Mapping[str, Any] | None = None) -> int:
        """Keep the intent, and the record as it stands; when this returns both are durable. Raises StoreFault."""
        with self._write() as db:
            row = (act.target, act.action, act.incident, act.cause, act.started, act.automatic)
            cursor = db.execute(
                "INSERT INTO acts (target, action, incident, cause, started, automatic) VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
            self._keep(db, document)
            self._acts = None
            return int(cursor.lastrowid or 0)

    def end(
        self, number: int, *, ended: float, effective: bool | None, harm: bool = False,
        document: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Keep the outcome, and the record with it. Raises StoreFault."""
        with self._write() as db:
            db.execute("UPDATE acts SET ended = ?, effective = ?, harm = ? WHERE id = ?",
                       (ended, effective, harm, number))  # fmt: skip
            self._keep(db, document)
            self._acts = None

    def take_back(self, incident: str, document: Mapping[str, Any]) -> None:
        """An effect that did not last until its deadline was none. Raises StoreFault."""
        with self._write() as db:
            db.execute("UPDATE acts SET effective = 0 WHERE incident = ?", (incident,))
            self._keep(db, document)
            self._acts = None

    def relapsed(self, causes: Iterable[str]) -> None:
        """These causes are seen (again) now: their last acts lasted until now, where nobody saw them before.
        Raises StoreFault."""
        ended = {act.cause for act in self.acts() if act.ended is not None and act.relapsed is None}
        seen = ended.intersection(causes)
        if not seen:
            return
        with self._write() as db:
            for cause in seen:
                db.execute("UPDATE acts SET relapsed = ? WHERE cause = ? AND ended IS NOT NULL AND relapsed IS NULL",
                           (self.now(), cause))  # fmt: skip
            self._acts = None

    def forget(self, number: int, document: Mapping[str, Any] | None = None) -> None:
        """An intent whose act was refused before anything was touched; the record says so. Raises StoreFault."""
        with self._write() as db:
            db.execute("DELETE FROM acts WHERE id = ?", (number,))
            self._keep(db, document)
            self._acts = None

    def acts(self) -> list[Act]:
        """The acts that a limit may still ask about, oldest first. Raises StoreFault."""
        if self._acts is None:
            rows = self._read("SELECT target, action, incident, cause, started, ended, effective, automatic, harm,"
                              " relapsed FROM acts WHERE started > ? ORDER BY started, id",
                              self.now() - _REMEMBERED_S)  # fmt: skip
            self._acts = [_act(row) for row in rows]
        return self._acts

    def unfinished(self) -> list[tuple[int, Act]]:
        """Acts whose outcome was never written: the program ended in the middle. Raises StoreFault."""
        rows = self._read("SELECT id, target, action, incident, cause, started, ended, effective, automatic, harm,"
                          " relapsed FROM acts WHERE ended IS NULL ORDER BY id")  # fmt: skip
        return [(int(number), _act(row)) for number, *row in rows]

    def flips(self, since: float) -> list[Flip]:
        """When something came or went, oldest first. Raises StoreFault."""
        rows = self._read("SELECT subject, at, opened FROM flips WHERE at > ? ORDER BY at, rowid", since)
        return [Flip(str(subject), float(at), bool(opened)) for subject, at, opened in rows]

    def keep_flips(self, flips: Iterable[Flip], since: float) -> None:
        """Add these, and forget those before `since`. Raises StoreFault."""
        with self._write() as db:
            db.execute("DELETE FROM flips WHERE at <= ?", (since,))
            db.executemany("INSERT INTO flips VALUES (?, ?, ?)", list(flips))

    def slept(self) -> tuple[float, float] | None:
        """(seconds asleep in this boot, when it woke last) as they were kept. Raises StoreFault."""
        rows = self._read("SELECT value FROM meta WHERE key = 'slept'")
        boot, asleep, woke = json.loads(rows[0][0]) if rows else ("", 0.0, 0.0)
        return (float(asleep), float(woke)) if rows and boot == self.boot_id else None

    def keep_slept(self, asleep: float, woke: float) -> None:
        """Remember when the host woke: a restart of ours is no end of the grace. Raises StoreFault."""
        with self._write() as db:
            value = json.dumps([self.boot_id, asleep, woke])
            db.execute("INSERT OR REPLACE INTO meta VALUES ('slept', ?)", (value,))

    # -- what people ordered ---------------------------------------------------------------------------------

    def _ordered(self) -> _Orders:
        """Silences, resets and the pause, read once and again after a change. Raises StoreFault."""
        if self._orders is None:
            silences = [Silence(*row) for row in self._read("SELECT id, pattern, until, reason FROM silences"
                                                            " ORDER BY until")]  # fmt: skip
            resets = {str(cause): float(at) for cause, at in self._read("SELECT cause, at FROM resets")}
            paused = self._read("SELECT value FROM meta WHERE key = 'paused'")
            latches = frozenset(str(cause) for (cause,) in self._read("SELECT cause FROM latches"))
            self._orders = _Orders(silences, resets, latches, str(paused[0][0]) if paused else "")
        return self._orders

    def silences(self) -> list[Silence]:
        """Those that have not ended. Raises StoreFault."""
        now = self.now()
        return [silence for silence in self._ordered().silences if silence.until > now]

    def silence(self, silence: Silence) -> None:
        """Add one; those that ended are dropped. Raises StoreFault."""
        with self._order() as db:
            db.execute("DELETE FROM silences WHERE until <= ?", (self.now(),))
            db.execute("INSERT OR REPLACE INTO silences VALUES (?, ?, ?, ?)",
                       (silence.id, silence.pattern, silence.until, silence.reason))  # fmt: skip

    def end_silence(self, name: str) -> int:
        """End those with this id or pattern; returns how many. Raises StoreFault."""
        with self._order() as db:
            return db.execute("DELETE FROM silences WHERE ? IN (id, pattern)", (name,)).rowcount

    @property
    def resets(self) -> Mapping[str, float]:
        """When a person reset the breaker of a cause. Raises StoreFault."""
        return self._ordered().resets

    def reset(self, cause: str) -> None:
        """Close the breaker of a cause. Raises StoreFault."""
        with self._order() as db:
            db.execute("DELETE FROM latches WHERE cause = ?", (cause,))
            db.execute("INSERT OR REPLACE INTO resets VALUES (?, ?)", (cause, self.now()))

    @property
    def latches(self) -> frozenset[str]:
        """Causes whose breaker only a person closes. Raises StoreFault."""
        return self._ordered().latches

    def latch(self, cause: str) -> None:
        """Keep that only a person closes this breaker, for longer than acts are remembered. Raises StoreFault."""
        with self._order() as db:
            db.execute("INSERT OR REPLACE INTO latches VALUES (?, ?)", (cause, self.now()))

    @property
    def paused(self) -> str:
        """Why healing is paused, or empty. Raises StoreFault."""
        return self._ordered().paused

    def pause(self, reason: str) -> None:
        """Survives restarts and upgrades until `pause("")`. Raises StoreFault."""
        with self._order() as db:
            if reason:
                db.execute("INSERT OR REPLACE INTO meta VALUES ('paused', ?)", (reason,))
            else:
                db.execute("DELETE FROM meta WHERE key = 'paused'")

    @contextmanager
    def _order(self) -> Iterator[sqlite3.Connection]:
        with self._write() as db:
            yield db
            self._orders = None

    # -- records ---------------------------------------------------------------------------------------------

    def keep(self, document: Mapping[str, Any]) -> None:
        """Insert or replace a record; its keys `id`, `opened`, `wall`, `component`, `cause`, `verdict` are
        columns, too. Raises StoreFault."""
        with self._write() as db:
            self._keep(db, document)

    def _keep(self, db: sqlite3.Connection, document: Mapping[str, Any] | None) -> None:
        if document is None:
            return
        columns = tuple(document[key] for key in ("id", "opened", "wall", "component", "cause", "verdict"))
        db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", (*columns, json.dumps(document)))
        self._trim(db)

    def records(self, *, component: str = "", cause: str = "", number: int = 50) -> list[dict[str, Any]]:
        """The newest records first. Raises StoreFault."""
        rows = self._read("SELECT document FROM records WHERE ? IN ('', component) AND ? IN ('', cause)"
                          " ORDER BY opened DESC, id DESC LIMIT ?", component, cause, number)  # fmt: skip
        return [json.loads(row[0]) for row in rows]

    def record(self, prefix: str) -> dict[str, Any] | None:
        """The record whose id begins so, when it is the only one. Raises StoreFault."""
        rows = self._read("SELECT document FROM records WHERE substr(id, 1, ?) = ? LIMIT 2", len(prefix), prefix)
        return json.loads(rows[0][0]) if len(rows) == 1 and prefix else None

    def _trim(self, db: sqlite3.Connection) -> None:
        """By size: the oldest tenth of the records goes, never an act that a limit may still ask about."""
        pages, size = (int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "page_size"))
        free = int(db.execute("PRAGMA freelist_count").fetchone()[0])
        if (pages - free) * size <= _CAP_BYTES:
            return
        held = int(db.execute("SELECT coalesce(sum(length(document)), 0) FROM records").fetchone()[0])
        if held > _CAP_BYTES // 2:  # it is the records that take the room
            db.execute("DELETE FROM records WHERE id IN (SELECT id FROM records ORDER BY opened LIMIT"
                       " (SELECT count(*) / 10 + 1 FROM records))")  # fmt: skip
            db.execute("DELETE FROM acts WHERE ended IS NOT NULL AND started < ?", (self.now() - _REMEMBERED_S,))


class _Orders(NamedTuple):
    silences: list[Silence]
    resets: dict[str, float]
    latches: frozenset[str]
    paused: str


def _act(row: Sequence[Any]) -> Act:
    target, action, incident, cause, started, ended, ok, automatic, harm, relapsed = row
    effective = None if ok is None else bool(ok)
    return Act(target, action, incident, cause, started, ended, effective, bool(automatic), bool(harm), relapsed)
