"""The store on real files: what was acknowledged survives, and what cannot be kept stops every act."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.decide.limits import Act, Limits, Request, check
from luminous_nix.self_healing.store import VERSION, Store, StoreFault, migrate

SRC = Path(__file__).parents[2] / "src"


def act(at: float, *, target: str = "a.service", incident: str = "i1", action: str = "restart_service") -> Act:
    return Act(target, action, incident, "service/a/unit_failed", at)


def opened(path: Path, now: float = 100.0, boot: str = "boot-1") -> Store:
    return Store(path, clock=lambda: now, boot_id=boot)


def document(number: int) -> dict[str, Any]:
    head = {
        "id": f"{number:012d}",
        "opened": float(number),
        "wall": "",
        "component": "a",
        "cause": "c",
        "verdict": "healed",
    }
    return {**head, "told": ["x" * 100]}


def test_acts_and_records_are_there_again(tmp_path: Path) -> None:
    store = opened(tmp_path / "state/state.db")
    number = store.begin(act(store.now()))
    store.end(number, ended=store.now() + 1, effective=True)
    store.keep(document(7))
    store.close()
    again = opened(tmp_path / "state/state.db")
    assert again.fault == ""
    assert again.acts() == [Act("a.service", "restart_service", "i1", "service/a/unit_failed", 0.0, 1.0, True)]
    assert again.records() == [document(7)]
    assert again.record("00000000000") == document(7)
    assert again.record("") is None
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_what_was_refused_is_forgotten(tmp_path: Path) -> None:
    store = opened(tmp_path / "state.db")
    store.forget(store.begin(act(store.now())))
    assert store.acts() == []


def test_time_goes_on_over_a_reboot_and_never_back(tmp_path: Path) -> None:
    """The ledger starts at 0 and counts time that the host is up. The boot clock starts anew; the ledger goes on
    where it last wrote. The wall clock is not asked."""
    boot_clock = [9000.0]
    first = Store(tmp_path / "state.db", clock=lambda: boot_clock[0], boot_id="boot-1")
    boot_clock[0] += 5000.0
    assert first.now() == 5000.0
    first.end(first.begin(act(first.now())), ended=first.now() + 1.0, effective=False)
    first.close()
    second = opened(tmp_path / "state.db", now=3.0, boot="boot-2")
    assert second.now() == 5000.0
    request = Request("a.service", "restart_service", "i2", "other")
    (denial,) = check(second.acts(), Limits(), request, second.now())
    assert denial.rule == "cooldown"
    second.close()
    third = opened(tmp_path / "state.db", now=403.0, boot="boot-2")
    assert third.now() == 5400.0
    assert check(third.acts(), Limits(), request, third.now()) == []


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def _zero(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(100, len(data), 97):
        data[at] ^= 0xFF
    path.write_bytes(data)


def _text(path: Path) -> None:
    path.write_bytes(b"hello" * 999)


def _newer(path: Path) -> None:
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {VERSION + 1}")
    db.close()


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate, "zeroed": _zero, "flipped": _flip, "text": _text, "of a newer version": _newer,
    "gone": Path.unlink, "a folder": _folder, "a link": _link,
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_store_stops_every_act_and_keeps_the_old_file(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    path = tmp_path / "state.db"
    store = opened(path)
    for number in range(50):
        store.keep(document(number))
        store.end(store.begin(act(store.now())), ended=101.0, effective=True)
    store.close()
    damage(path)
    for _ in range(2):  # the second start finds no fresh, empty store either
        store = opened(path)
        assert store.fault
        with pytest.raises(StoreFault):
            store.acts()
        with pytest.raises(StoreFault):
            store.begin(act(1.0))
        with pytest.raises(StoreFault):
            store.keep(document(1))
        store.close()
    kept = list(tmp_path.glob("state.db*")) + list(tmp_path.glob("elsewhere"))
    assert damage is Path.unlink or kept


def fill(store: Store) -> None:
    for number in range(1000):
        store.keep(document(number))


def test_a_full_disk_stops_every_act(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = opened(path)
    store.keep(document(0))
    assert store._db is not None
    store._db.execute(f"PRAGMA max_page_count = {int(store._db.execute('PRAGMA page_count').fetchone()[0])}")
    with pytest.raises(StoreFault, match="full"):
        fill(store)
    with pytest.raises(StoreFault):
        store.begin(act(1.0))
    store.close()
    assert opened(path).fault == ""


def test_versions_go_both_ways() -> None:
    db = sqlite3.connect(":memory:", isolation_level=None)
    for wanted in (VERSION, 0, VERSION):
        migrate(db, wanted)
        tables = {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert ("acts" in tables) is (wanted > 0)
    db.close()


def test_one_act_at_a_time_whoever_acts(tmp_path: Path) -> None:
    one, two = opened(tmp_path / "state.db"), opened(tmp_path / "state.db")
    with one.exclusive():
        with pytest.raises(StoreFault, match="another heal is in progress"), two.exclusive():
            raise AssertionError("entered")
        one.begin(act(1.0))
    with two.exclusive():  # its outcome is unknown by now, and it counts against the limits
        assert [(found.ended, found.effective) for found in two.acts()] == [(0.0, None)]
        assert two.unfinished() == []


WRITER = """
import sys
from pathlib import Path
from luminous_nix.self_healing.decide.limits import Act
from luminous_nix.self_healing.store import Store
store = Store(Path(sys.argv[1]), clock=lambda: 1.0, boot_id="b")
for number in range(100_000):
    key = store.begin(Act("t", "restart_service", f"{sys.argv[2]}-{number}", "c", float(number)))
    print(f"{sys.argv[2]}-{number}", flush=True)
    store.end(key, ended=number + 0.5, effective=True)
"""


def test_no_acknowledged_intent_is_lost_by_kill_9(tmp_path: Path) -> None:
    path, acknowledged = tmp_path / "state.db", set[str]()
    for run in range(15):
        argv = [sys.executable, "-c", WRITER, str(path), str(run)]
        with subprocess.Popen(
            argv, env={**os.environ, "PYTHONPATH": str(SRC)}, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for _ in range(20 + 13 * run):
                acknowledged.add(child.stdout.readline().strip())
            child.send_signal(signal.SIGKILL)
            acknowledged |= {line.strip() for line in child.stdout if line.endswith("\n")}
    store = opened(path)
    assert store.fault == ""
    assert acknowledged <= {found.incident for found in store.acts()}
    assert len(store.unfinished()) <= 15
