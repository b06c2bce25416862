"""What must survive: acts, and the record of every heal. SQLite, WAL, synchronous=FULL.

An intent is durable before the act, its outcome after it. A store that is corrupt, lost, full, read-only or of
a newer version has a `fault`: nothing may act then, and the old file is kept. Times are seconds of the ledger's
clock: the boot clock, carried on from boot to boot by the last time that was written, so that it never goes
back and the wall clock plays no part (time switched off does not count, which only makes limits last longer).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from .decide.limits import Act
from .models import HealingError

log = logging.getLogger(__name__)

VERSION: Final = 1
_CAP_BYTES: Final = 64 << 20
_MARK: Final = "initialized"

# (up, down) from one version to the next; the first makes an empty file a store.
_MIGRATIONS: Final[tuple[tuple[str, str], ...]] = (
    (
        """
        CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
        CREATE TABLE acts (
            id INTEGER PRIMARY KEY, target TEXT NOT NULL, action TEXT NOT NULL, incident TEXT NOT NULL,
            cause TEXT NOT NULL, started REAL NOT NULL, ended REAL, effective INTEGER, automatic INTEGER NOT NULL
        ) STRICT;
        CREATE INDEX acts_started ON acts (started);
        CREATE TABLE records (
            id TEXT PRIMARY KEY, opened REAL NOT NULL, wall TEXT NOT NULL, component TEXT NOT NULL,
            cause TEXT NOT NULL, verdict TEXT NOT NULL, document TEXT NOT NULL
        ) STRICT;
        CREATE INDEX records_opened ON records (opened);
        """,
        "DROP TABLE records; DROP TABLE acts; DROP TABLE meta;",
    ),
)


class StoreFault(HealingError):  # noqa: N818  a state, not a slip
    """The store cannot keep what must be kept: nothing may act."""


class Store:
    """`path` None keeps everything in memory (tests, one-shot API use): limits then end with the process."""

    def __init__(self, path: Path | None, *, clock: Callable[[], float], boot_id: str) -> None:
        self.path = path
        self.fault = ""
        self._clock = clock
        self._boot_id = boot_id
        self._offset = 0.0
        self._acts: list[Act] | None = None
        self._db: sqlite3.Connection | None = None
        try:
            self._db = self._open()
        except (sqlite3.Error, OSError, StoreFault, ValueError) as error:
            self._fail(str(error))

    # -- opening ---------------------------------------------------------------------------------------------

    def _open(self) -> sqlite3.Connection:
        if self.path is not None:
            self._refuse_what_is_no_store(self.path)
        db = sqlite3.connect(":memory:" if self.path is None else self.path, isolation_level=None, timeout=5.0)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            self._prepare(db)
        except sqlite3.DatabaseError as error:
            db.close()
            # 11 SQLITE_CORRUPT, 26 SQLITE_NOTADB; what is full or read-only stays where it is.
            if self.path is not None and getattr(error, "sqlite_errorcode", 0) & 0xFF in {11, 26}:
                raise StoreFault(f"the store is corrupt ({error}); it is kept as {_keep_aside(self.path)}") from error
            raise
        except StoreFault:
            db.close()
            raise
        if self.path is not None:
            (self.path.parent / _MARK).touch()
        return db

    def _refuse_what_is_no_store(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        mark = path.parent / _MARK
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise StoreFault(f"{path} is not a regular file")
        if path.exists() and path.stat().st_uid != os.geteuid():
            raise StoreFault(f"{path} belongs to another user")
        if mark.exists() and not path.exists():
            raise StoreFault(f"{path} is gone: what was done in the last days is not known")

    def _prepare(self, db: sqlite3.Connection) -> None:
        if db.execute("PRAGMA quick_check").fetchone() != ("ok",):
            raise StoreFault("the store is damaged (quick_check); it is left as it is")
        version = int(db.execute("PRAGMA user_version").fetchone()[0])
        if version > VERSION:
            raise StoreFault(f"the store is of version {version}, this program knows {VERSION}; it is left as it is")
        migrate(db, VERSION)
        row = db.execute("SELECT value FROM meta WHERE key = 'clock'").fetchone()
        boot_id, last, offset = json.loads(row[0]) if row else ("", 0.0, 0.0)
        same = boot_id == self._boot_id
        self._offset = float(offset) if same else float(last) - self._clock()
        with _transaction(db):
            self._note_time(db)

    def _fail(self, why: str) -> None:
        self.fault = why
        log.error("the store is out of order, so nothing will act: %s", why)

    # -- time ------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """The ledger's time, in seconds."""
        return self._clock() + self._offset

    def _note_time(self, db: sqlite3.Connection) -> None:
        value = json.dumps([self._boot_id, self.now(), self._offset])
        db.execute("INSERT OR REPLACE INTO meta VALUES ('clock', ?)", (value,))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One act at a time on this host, whoever acts: the daemon, or a command. Raises StoreFault.

        Whoever gets the lock finds out about acts whose outcome was never written; they are not repeated.
        """
        if self.path is None:
            yield
            return
        try:
            lock = os.open(
                self.path.with_name("acting.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise StoreFault(f"the lock beside {self.path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._acts = None  # another process may have written
            self._reconcile()
            yield
        except BlockingIOError:
            raise StoreFault(
                "another heal is in progress on this host", "one act at a time: try again later"
            ) from None
        finally:
            os.close(lock)

    def _reconcile(self) -> None:
        for number, act in self.unfinished():
            log.warning(
                "%s on %s was under way when the program ended; its outcome is not known", act.action, act.target
            )
            self.end(number, ended=self.now(), effective=None)

    # -- acts ------------------------------------------------------------------------------------------------

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """A durable transaction. Raises StoreFault; after an error nothing more is believed (fsync errors
        leave pages that look clean)."""
        if self._db is None or self.fault:
            raise StoreFault(f"the store is out of order: {self.fault}", "see `luminous-healing status`")
        try:
            with _transaction(self._db):
                self._note_time(self._db)
                yield self._db
        except sqlite3.Error as error:
            self._fail(f"writing failed: {error}")
            raise StoreFault(f"the store cannot be written: {error}") from error

    def begin(self, act: Act) -> int:
        """Keep the intent; when this returns it is durable. Raises StoreFault."""
        with self._write() as db:
            row = (act.target, act.action, act.incident, act.cause, act.started, act.automatic)
            cursor = db.execute(
                "INSERT INTO acts (target, action, incident, cause, started, automatic) VALUES (?, ?, ?, ?, ?, ?)",
                row,
            )
            self._acts = None
            return int(cursor.lastrowid or 0)

    def end(self, number: int, *, ended: float, effective: bool | None) -> None:
        """Keep the outcome. Raises StoreFault."""
        with self._write() as db:
            db.execute("UPDATE acts SET ended = ?, effective = ? WHERE id = ?", (ended, effective, number))
            self._acts = None

    def forget(self, number: int) -> None:
        """An intent whose act was refused before anything was touched. Raises StoreFault."""
        with self._write() as db:
            db.execute("DELETE FROM acts WHERE id = ?", (number,))
            self._acts = None

    def acts(self) -> list[Act]:
        """All acts that are kept, oldest first. Raises StoreFault."""
        if self._acts is None:
            rows = self._read("SELECT target, action, incident, cause, started, ended, effective, automatic"
                              " FROM acts ORDER BY started, id")  # fmt: skip
            self._acts = [
                Act(
                    target, action, incident, cause, started, ended, None if ok is None else bool(ok), bool(automatic)
                )
                for target, action, incident, cause, started, ended, ok, automatic in rows
            ]
        return self._acts

    def unfinished(self) -> list[tuple[int, Act]]:
        """Acts whose outcome was never written: the program ended in the middle. Raises StoreFault."""
        rows = self._read("SELECT id, target, action, incident, cause, started FROM acts WHERE ended IS NULL")
        return [(int(number), _act(first, None, None, 1)) for number, *first in rows]

    # -- records ---------------------------------------------------------------------------------------------

    def keep(self, document: Mapping[str, Any]) -> None:
        """Insert or replace a record; its keys `id`, `opened`, `wall`, `component`, `cause`, `verdict` are
        columns, too. Raises StoreFault."""
        columns = tuple(document[key] for key in ("id", "opened", "wall", "component", "cause", "verdict"))
        with self._write() as db:
            db.execute(
                "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?)", (*columns, json.dumps(document))
            )
            self._trim(db)

    def records(self, *, component: str = "", number: int = 50) -> list[dict[str, Any]]:
        """The newest records first. Raises StoreFault."""
        rows = self._read("SELECT document FROM records WHERE ? IN ('', component)"
                          " ORDER BY opened DESC, id DESC LIMIT ?", component, number)  # fmt: skip
        return [json.loads(row[0]) for row in rows]

    def record(self, prefix: str) -> dict[str, Any] | None:
        """The record whose id begins so, when it is the only one. Raises StoreFault."""
        rows = self._read("SELECT document FROM records WHERE substr(id, 1, ?) = ? LIMIT 2", len(prefix), prefix)
        return json.loads(rows[0][0]) if len(rows) == 1 and prefix else None

    def _read(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        if self._db is None or self.fault:
            raise StoreFault(f"the store is out of order: {self.fault}")
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            self._fail(f"reading failed: {error}")
            raise StoreFault(f"the store cannot be read: {error}") from error

    def _trim(self, db: sqlite3.Connection) -> None:
        """By size: the oldest tenth of the records goes, never an act that a limit may still ask about."""
        pages, size = (int(db.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "page_size"))
        free = int(db.execute("PRAGMA freelist_count").fetchone()[0])
        if (pages - free) * size > _CAP_BYTES:
            db.execute("DELETE FROM records WHERE id IN (SELECT id FROM records ORDER BY opened LIMIT"
                       " (SELECT count(*) / 10 + 1 FROM records))")  # fmt: skip
            db.execute("DELETE FROM acts WHERE ended IS NOT NULL AND started < ?", (self.now() - 8 * 86400,))

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None


def _act(first: list[Any], ended: float | None, effective: int | None, automatic: int) -> Act:
    target, action, incident, cause, started = first
    known = None if effective is None else bool(effective)
    return Act(target, action, incident, cause, started, ended, known, bool(automatic))


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def migrate(db: sqlite3.Connection, wanted: int) -> None:
    """Step by step to another version, up or down, each step in one transaction. Raises sqlite3.Error."""
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    while version != wanted:
        up = version < wanted
        script = _MIGRATIONS[version][0] if up else _MIGRATIONS[version - 1][1]
        version += 1 if up else -1
        with _transaction(db):
            for statement in filter(str.strip, script.split(";")):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {version:d}")


def _keep_aside(path: Path) -> Path:
    """Rename the file and what belongs to it, so that nobody writes into it again."""
    number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.corrupt-{n}").exists())
    kept = path.with_name(f"{path.name}.corrupt-{number}")
    for suffix in ("", "-wal", "-shm"):
        if (part := path.with_name(path.name + suffix)).exists():
            part.rename(kept.with_name(kept.name + suffix))
    return kept
