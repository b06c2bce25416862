"""What the store holds, as the checker reads it: of a file, through a connection of its own."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from luminous_nix.self_healing.store import Store

_OPEN = "SELECT action, target FROM acts WHERE ended IS NULL"


class Ledger:
    """`store` is replaced at every restart."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.store: Store | None = None

    @property
    def fault(self) -> str:
        return self.store.fault if self.store else "no store"

    def _rows(self) -> list[tuple[str, str]]:
        """Intents whose outcome is not written."""
        if self.path is None:
            return [(act.action, act.target) for _, act in self._store.unfinished()]
        db = sqlite3.connect(self.path)
        try:
            return [(str(action), str(target)) for action, target in db.execute(_OPEN)]
        finally:
            db.close()

    @property
    def _store(self) -> Store:
        assert self.store is not None
        return self.store

    def intent(self, action: str, target: str) -> bool:
        """Whether the intent of this act is there to be seen by others."""
        return any(kept == action and _same(named, target) for kept, named in self._rows())

    def incomplete(self, number: int) -> list[str]:
        """What lacks an outcome among the newest acts: a row without an end, a record without a verdict."""
        store = self._store
        found = [f"{action} on {target} has no outcome" for action, target in self._rows()]
        for act in store.acts()[-number:]:
            record = store.record(act.incident)
            if record is None:
                found.append(f"{act.action} on {act.target} has no record")
            elif record["verdict"] == "open" or not any(
                rung["taken"] and rung["action"] == act.action and rung["verdict"] for rung in record["rungs"]
            ):
                found.append(f"the record of {act.action} on {act.target} has no verdict")
        return found


def _same(named: str, target: str) -> bool:
    return named.removesuffix(".service") == target
