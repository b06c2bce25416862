"""The file under the store: SQLite, WAL, FULL; opened with suspicion, one writer at a time, a clock of its own.

A file that is corrupt, lost, full, read-only or of a newer version has a `fault`: nothing may act then, and the old
file is kept. Times are seconds of the ledger's clock: the boot clock, carried on from boot to boot by the last time
that was written, so that it never goes back and the wall clock plays no part (time switched off does not count, which
only makes limits last longer).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Final

from .models import HealingError

log = logging.getLogger(__name__)

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
    (
        """
        ALTER TABLE acts ADD COLUMN harm INTEGER NOT NULL DEFAULT 0;
        ALTER TABLE acts ADD COLUMN relapsed REAL;
        UPDATE acts SET cause = substr(cause, 1, length(rtrim(cause, replace(cause, '/', ''))) - 1)
            WHERE cause LIKE '%/%/%';
        CREATE TABLE silences (
            id TEXT PRIMARY KEY, pattern TEXT NOT NULL, until REAL NOT NULL, reason TEXT NOT NULL
        ) STRICT;
        CREATE TABLE resets (cause TEXT PRIMARY KEY, at REAL NOT NULL) STRICT;
        CREATE TABLE latches (cause TEXT PRIMARY KEY, at REAL NOT NULL) STRICT;
        CREATE TABLE flips (subject TEXT NOT NULL, at REAL NOT NULL, opened INTEGER NOT NULL) STRICT;
        """,
        # What did harm, or did not last, goes on to count as without effect.
        """
        UPDATE acts SET effective = 0 WHERE harm OR relapsed - ended <= 3600;
        ALTER TABLE acts DROP COLUMN harm;
        ALTER TABLE acts DROP COLUMN relapsed;
        UPDATE acts SET cause = cause || '/-';
        DROP TABLE silences;
        DROP TABLE resets;
        DROP TABLE latches;
        DROP TABLE flips;
        """,
    ),
)


VERSION: Final = len(_MIGRATIONS)

_BUSY: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_PASSING: Final = _BUSY | {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOMEM,
}  # fmt: skip
_RESERVE_BYTES: Final = 512 << 10


class StoreFault(HealingError):  # noqa: N818  a state, not a slip
    """The store cannot keep what must be kept: nothing may act. `acted`: it showed after an act."""

    acted = False


class Ledger:
    """`path` None keeps everything in memory (tests, one-shot API use): limits then end with the process."""

    migrations: ClassVar[tuple[tuple[str, str], ...]] = _MIGRATIONS  # a subclass may keep something else

    def __init__(self, path: Path | None, *, clock: Callable[[], float], boot_id: str) -> None:
        self.path = path
        self.fault = ""
        self._clock = clock
        self.boot_id = boot_id
        self._offset = 0.0
        self._db: sqlite3.Connection | None = None
        self.passing = False  # whether the fault may be over by itself
        try:
            self._db = self._open()
            self._keep_reserve()
        except (sqlite3.Error, OSError, StoreFault, ValueError) as error:
            self._fail(str(error), error)

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
            # What is full or read-only stays where it is.
            if self.path is not None and _code(error) in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                raise StoreFault(f"the store is corrupt ({error}); it is kept as {keep_aside(self.path)}") from error
            raise
        except StoreFault:
            db.close()
            raise
        if self.path is not None:
            (self.path.parent / _MARK).touch()
        return db

    def _refuse_what_is_no_store(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.parent.stat().st_uid == os.geteuid() and path.parent.stat().st_mode & 0o077:
            path.parent.chmod(0o700)  # a reader could hold a lock, and read what was done
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
        known = len(self.migrations)
        if (version := _version(db)) > known:
            raise StoreFault(f"the store is of version {version}, this program knows {known}; it is left as it is")
        if version == 0 and self.path is not None and (self.path.parent / _MARK).exists():
            raise StoreFault(f"{self.path} is empty: what was done in the last days is not known")
        if version < known:
            migrate(db, known, self.migrations)
        row = db.execute("SELECT value FROM meta WHERE key = 'clock'").fetchone()
        boot_id, last, offset = _clock_row(row[0]) if row else ("", 0.0, 0.0)
        self._offset = offset if boot_id == self.boot_id else last - self._clock()
        with _transaction(db):
            self._note_time(db)

    def start_anew(self) -> Path | None:
        """A person accepts that the past is not known: what is there is put aside, and a new store begins.
        Returns where the old one is kept, if there was one. Raises StoreFault."""
        if self.path is None or not self.fault:
            raise StoreFault("the store is in order: there is nothing to begin anew")
        if self.passing:
            raise StoreFault(f"{self.fault}: this is over once it can be written again", "the past is not lost")
        offset, kept = self._offset, None
        self.close()
        self._forget_what_was_read()
        try:
            if os.path.lexists(self.path):
                kept = keep_aside(self.path)
            (self.path.parent / _MARK).unlink(missing_ok=True)
            self.fault = ""
            self._db = self._open()
        except (sqlite3.Error, OSError, StoreFault, ValueError) as error:
            self._fail(str(error), error)
            raise StoreFault(f"a new store cannot be made: {error}") from error
        self._offset = offset  # what runs on has times of the clock so far
        self.keep_time()
        return kept

    def retry(self) -> None:
        """Open it again after what may pass: no room, somebody else's lock, a filesystem that was read-only.
        Nothing that was kept in memory is believed."""
        if not (self.fault and self.passing):
            return
        if self._db is not None:
            self._db.close()
        self._db, why, self.fault = None, self.fault, ""
        self._forget_what_was_read()
        try:
            self._db = self._open()
        except (sqlite3.Error, OSError, StoreFault, ValueError) as error:
            self.fault, self.passing = str(error), _may_pass(error)
            return
        log.warning("the store is in order again, after: %s", why)

    def _fail(self, why: str, error: Exception) -> None:
        self.fault, self.passing = why, _may_pass(error)
        log.error("the store is out of order, so nothing will act: %s", why)
        if _code(error) == sqlite3.SQLITE_FULL and self.path is not None:
            _reserve(self.path).unlink(missing_ok=True)  # so that what frees space can be written down

    @property
    def remedy(self) -> str:
        """What lifts the fault."""
        return (
            "once it can be written again"
            if self.passing
            else "`luminous-healing resume --store`, after a look at it"
        )

    def _keep_reserve(self) -> None:
        """A little space that is given up when there is no other, or freeing some could not be written down."""
        if self.path is None or self.fault or _reserve(self.path).exists():
            return
        try:
            with _reserve(self.path).open("xb") as file:
                os.posix_fallocate(file.fileno(), 0, _RESERVE_BYTES)
        except OSError as error:
            log.debug("no reserve for the store: %s", error)
            _reserve(self.path).unlink(missing_ok=True)

    def _forget_what_was_read(self) -> None:
        """For what a subclass keeps in memory of the file."""

    # -- time ------------------------------------------------------------------------------------------------

    def now(self) -> float:
        """The ledger's time, in seconds."""
        return self._clock() + self._offset

    def _note_time(self, db: sqlite3.Connection) -> None:
        value = json.dumps([self.boot_id, self.now(), self._offset])
        db.execute("INSERT OR REPLACE INTO meta VALUES ('clock', ?)", (value,))

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """One act at a time on this host, whoever acts: the daemon, or a command. Raises StoreFault."""
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
            _take(lock)
            self._forget_what_was_read()  # another process may have written
            yield
        finally:
            os.close(lock)

    # -- reading and writing -------------------------------------------------------------------------------------

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
            if _code(error) not in _BUSY:
                self._fail(f"writing failed: {error}", error)
            raise StoreFault(f"the store cannot be written: {error}") from error

    def _read(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        if self._db is None or self.fault:
            raise StoreFault(f"the store is out of order: {self.fault}")
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            self._fail(f"reading failed: {error}", error)
            raise StoreFault(f"the store cannot be read: {error}") from error

    def keep_time(self) -> None:
        """Write down how late it is: what is not written is lost at a reboot. Raises StoreFault."""
        with self._write():
            self._keep_reserve()

    def close(self) -> None:
        if self._db is not None and not self.fault:
            with contextlib.suppress(StoreFault):  # told by the write itself
                self.keep_time()
        if self._db is not None:
            self._db.close()
            self._db = None


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


def migrate(db: sqlite3.Connection, wanted: int, migrations: tuple[tuple[str, str], ...] = _MIGRATIONS) -> None:
    """Step by step to another version, up or down, in one transaction, so that of two programs that start at once
    one migrates and the other finds it done. Raises sqlite3.Error."""
    with _transaction(db):
        version = _version(db)
        while version != wanted:
            up = version < wanted
            script = migrations[version][0] if up else migrations[version - 1][1]
            version += 1 if up else -1
            for statement in filter(str.strip, script.split(";")):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {version:d}")


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def _code(error: Exception) -> int:
    """SQLite's primary result code, 0 for another error."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _may_pass(error: Exception) -> bool:
    return _code(error) in _PASSING or (isinstance(error, OSError) and not isinstance(error, FileExistsError))


def _reserve(path: Path) -> Path:
    return path.with_name("reserve")


def _take(lock: int) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise StoreFault("another heal is in progress on this host", "one act at a time: try again later") from None


def _clock_row(text: str) -> tuple[str, float, float]:
    """(boot, time of the last write, offset of the ledger's clock). Raises ValueError for what is no such row: a
    time that is no number would open every window."""
    found = json.loads(text)
    if not isinstance(found, list) or len(found) != 3 or not isinstance(found[0], str):
        raise ValueError("the store's clock cannot be read")
    last, offset = (float(part) if type(part) in {int, float} else math.nan for part in found[1:])
    if not (math.isfinite(last) and math.isfinite(offset)):
        raise ValueError("the store's clock is no time")
    return found[0], last, offset


def keep_aside(path: Path) -> Path:
    """Rename the file and what belongs to it, so that nobody writes into it again."""
    number = next(n for n in range(1, 10_000) if not path.with_name(f"{path.name}.corrupt-{n}").exists())
    kept = path.with_name(f"{path.name}.corrupt-{number}")
    for suffix in ("", "-wal", "-shm"):
        if (part := path.with_name(path.name + suffix)).exists():
            part.rename(kept.with_name(kept.name + suffix))
    return kept
