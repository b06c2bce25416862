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

from luminous_nix.self_healing import store as store_module
from luminous_nix.self_healing.decide.incidents import Flip
from luminous_nix.self_healing.decide.limits import Act, Limits, Request, breaker, check
from luminous_nix.self_healing.decide.policy import Silence
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


def _hollow(path: Path) -> None:
    """A NULL where none can be: what only the check at the start sees."""
    strict, lax = "value TEXT NOT NULL", "value TEXT"
    for statement, words in (
        ("UPDATE sqlite_master SET sql = replace(sql, ?, ?)", (strict, lax)),
        ("INSERT INTO meta VALUES ('x', ?)", (None,)),
        ("UPDATE sqlite_master SET sql = replace(sql, ?, ?)", (lax, strict)),
    ):
        db = sqlite3.connect(path)
        db.execute("PRAGMA writable_schema = ON")
        db.execute(statement, words)
        db.commit()
        db.close()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "truncated": _truncate, "zeroed": _zero, "flipped": _flip, "text": _text, "of a newer version": _newer,
    "hollow": _hollow, "gone": Path.unlink, "a folder": _folder, "a link": _link,
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
        assert [(found.ended, found.effective) for found in two.acts()] == [(None, None)]
        ((number, unfinished),) = two.unfinished()
        assert unfinished == act(1.0)
        two.end(number, ended=0.0, effective=None)
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


# -- versions --------------------------------------------------------------------------------------------------


def moved(path: Path, *versions: int) -> None:
    """As another version of this program would leave the file."""
    db = sqlite3.connect(path, isolation_level=None)
    for version in versions:
        migrate(db, version)
    db.close()


def denials(store: Store, now: float) -> list[tuple[str, float]]:
    request = Request("a.service", "restart_service", "new", "service/a/unit_failed")
    return [(denial.rule, denial.lifts_in_s) for denial in check(store.acts(), Limits(), request, now)]


def test_down_and_up_again_keeps_every_row_and_loosens_no_limit(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = opened(path)
    for at, effective in ((0.0, True), (100.0, False), (200.0, None)):
        number = store.begin(act(at, incident=f"i{at:g}"), document(int(at) + 1))
        store.end(number, ended=at + 1.0, effective=effective)
    store.begin(act(300.0, incident="under way"))
    before, records, limits = store.acts(), store.records(), denials(store, 400.0)
    assert [rule for rule, _ in limits] == ["3 acts an hour on one target", "cooldown", "breaker"]
    store.close()
    for versions in ((1, 2), (1, 2, 1, 2), (1,)):  # the last one is moved up by opening it
        moved(path, *versions)
        store = opened(path)
        assert store.fault == ""
        assert (store.acts(), store.records()) == (before, records)
        assert denials(store, 400.0) == limits
        assert [found.incident for _, found in store.unfinished()] == ["under way"]
        store.close()


def test_an_act_that_did_harm_goes_down_as_one_without_effect(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = opened(path)
    store.end(store.begin(act(0.0)), ended=1.0, effective=True, harm=True)
    store.end(store.begin(act(10.0, incident="i2")), ended=11.0, effective=True)
    assert [(found.effective, found.harm) for found in store.acts()] == [(True, True), (True, False)]
    store.close()
    moved(path, 1, 2)
    store = opened(path)
    assert [(found.effective, found.harm) for found in store.acts()] == [(False, False), (True, False)]
    miss = store.begin(act(20.0, incident="i3"))
    store.end(miss, ended=21.0, effective=False)
    assert breaker(store.acts(), Limits(), "service/a/unit_failed", 30.0) is not None


def test_the_first_version_knows_no_orders_and_going_up_makes_room_for_them(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    moved(path, 1)
    db = sqlite3.connect(path)
    db.execute("INSERT INTO acts VALUES (7, 't', 'a', 'i', 'c', 5.0, 6.0, 1, 0)")
    db.execute("INSERT INTO meta VALUES ('clock', '[\"boot-1\", 90.0, -10.0]')")
    db.commit()
    db.close()
    store = opened(path)
    assert store.fault == ""
    assert store.acts() == [Act("t", "a", "i", "c", 5.0, 6.0, True, automatic=False, harm=False, relapsed=None)]
    assert store.now() == 90.0
    store.pause("x")
    store.silence(Silence("ab12", "*", 1e9))
    assert (store.paused, len(store.silences()), store.resets) == ("x", 1, {})


def test_a_step_between_versions_that_fails_leaves_the_version_before(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    moved(path, 1)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("CREATE TABLE resets (somebody TEXT)")  # in the way
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        migrate(db, VERSION)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    columns = {row[1] for row in db.execute("PRAGMA table_info(acts)")}
    assert "harm" not in columns
    db.close()
    store = opened(path)
    assert "already exists" in store.fault
    assert path.exists()  # neither corrupt nor put aside
    assert list(tmp_path.glob("*.corrupt-*")) == []


# -- what people ordered ---------------------------------------------------------------------------------------


def test_what_people_ordered_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = opened(path)
    store.silence(Silence("ab12", "nginx*", 500.0, "a test"))
    store.silence(Silence("cd34", "disk", 400.0))
    store.reset("service/a")
    store.latch("service/b")
    store.pause("a person asked for it")
    store.keep_flips([Flip("service/a", 3.0, opened=True), Flip("service/b", 5.0, opened=False)], since=0.0)
    store.close()
    again = opened(path, now=200.0)
    assert again.silences() == [Silence("cd34", "disk", 400.0), Silence("ab12", "nginx*", 500.0, "a test")]
    assert again.resets == {"service/a": 0.0}
    assert again.latches == {"service/b"}
    assert again.paused == "a person asked for it"
    assert again.flips(0.0) == [Flip("service/a", 3.0, opened=True), Flip("service/b", 5.0, opened=False)]
    again.pause("another reason")
    assert again.paused == "another reason"
    again.pause("")
    assert again.paused == ""
    again.close()
    assert opened(path).paused == ""


def test_a_silence_ends_by_its_time_its_id_or_its_pattern(tmp_path: Path) -> None:
    clock = [100.0]
    store = Store(tmp_path / "state.db", clock=lambda: clock[0], boot_id="b")
    for name, pattern, until in (("a1", "x", 10.0), ("b2", "y", 20.0), ("c3", "y", 30.0), ("d4", "z", 40.0)):
        store.silence(Silence(name, pattern, until))
    clock[0] += 10.0
    assert [one.id for one in store.silences()] == ["b2", "c3", "d4"]
    assert store.end_silence("y") == 2
    assert store.end_silence("d4") == 1
    assert store.end_silence("nobody") == 0
    assert store.silences() == []
    store.silence(Silence("e5", "x", 90.0))  # and what has ended is dropped from the file
    store.close()
    db = sqlite3.connect(tmp_path / "state.db")
    assert db.execute("SELECT id FROM silences").fetchall() == [("e5",)]
    db.close()


def test_a_reset_lifts_the_latch_and_is_dated(tmp_path: Path) -> None:
    clock = [100.0]
    store = Store(tmp_path / "state.db", clock=lambda: clock[0], boot_id="b")
    store.latch("service/a")
    store.latch("service/b")
    assert store.latches == {"service/a", "service/b"}
    clock[0] += 7.0
    store.reset("service/a")
    assert store.latches == {"service/b"}
    assert store.resets == {"service/a": 7.0}
    clock[0] += 1.0
    store.reset("service/a")
    assert store.resets == {"service/a": 8.0}


def test_when_a_cause_was_seen_again_is_noted_once_with_the_acts_that_ended(tmp_path: Path) -> None:
    clock = [100.0]
    store = Store(tmp_path / "state.db", clock=lambda: clock[0], boot_id="b")
    store.end(store.begin(act(0.0, incident="done")), ended=1.0, effective=True)
    store.begin(act(2.0, incident="under way"))
    for at, causes in (
        (5.0, ["another"]),
        (7.0, ["service/a/unit_failed", "another"]),
        (9.0, ["service/a/unit_failed"]),
    ):
        clock[0] = 100.0 + at
        store.relapsed(causes)
    assert {found.incident: found.relapsed for found in store.acts()} == {"done": 7.0, "under way": None}
    store.close()
    again = Store(tmp_path / "state.db", clock=lambda: clock[0], boot_id="b")
    assert [found.relapsed for found in again.acts()] == [7.0, None]


def test_when_the_host_woke_is_kept_for_this_boot_only(tmp_path: Path) -> None:
    store = opened(tmp_path / "state.db")
    assert store.slept() is None
    store.keep_slept(30.0, 7.0)
    store.keep_slept(60.0, 9.0)
    store.close()
    again = opened(tmp_path / "state.db")
    assert again.slept() == (60.0, 9.0)
    again.close()
    assert opened(tmp_path / "state.db", boot="boot-2").slept() is None


def test_by_size_the_records_stay_where_it_is_not_they_that_take_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path / "state.db")
    monkeypatch.setattr(store_module, "_CAP_BYTES", 1 << 17)
    store.keep_flips([Flip("x" * 1000, float(number), opened=True) for number in range(500)], since=-1.0)
    for number in range(5):
        store.keep(document(number))
    assert len(store.records()) == 5


def test_flips_before_a_time_are_forgotten(tmp_path: Path) -> None:
    store = opened(tmp_path / "state.db")
    store.keep_flips([Flip("a", 1.0, opened=True), Flip("a", 2.0, opened=False)], since=0.0)
    store.keep_flips([Flip("b", 3.0, opened=True)], since=1.0)
    assert store.flips(0.0) == [Flip("a", 2.0, opened=False), Flip("b", 3.0, opened=True)]
    assert store.flips(2.0) == [Flip("b", 3.0, opened=True)]


def test_another_process_sees_an_order_at_its_next_act(tmp_path: Path) -> None:
    daemon, command = opened(tmp_path / "state.db"), opened(tmp_path / "state.db")
    assert (daemon.paused, daemon.acts()) == ("", [])
    command.pause("x")
    command.end(command.begin(act(1.0)), ended=2.0, effective=True)
    with daemon.exclusive():
        assert daemon.paused == "x"
        assert len(daemon.acts()) == 1


# -- what is taken back, and what is found again ------------------------------------------------------------------


def test_an_effect_that_did_not_last_is_taken_back_with_its_record(tmp_path: Path) -> None:
    store = opened(tmp_path / "state.db")
    for incident in ("one", "one", "two"):
        store.end(store.begin(act(1.0, incident=incident)), ended=2.0, effective=True)
    store.take_back("one", {**document(5), "verdict": "no_effect"})
    assert [(found.incident, found.effective) for found in store.acts()] == [
        ("one", False), ("one", False), ("two", True)
    ]  # fmt: skip
    assert [found["verdict"] for found in store.records()] == ["no_effect"]


def test_a_record_is_found_by_what_it_is_about(tmp_path: Path) -> None:
    store = opened(tmp_path / "state.db")
    for number, (component, cause) in enumerate((("a", "x"), ("b", "x"), ("a", "y"))):
        store.keep({**document(number), "component": component, "cause": cause})

    def found(**by: Any) -> list[float]:
        return [one["opened"] for one in store.records(**by)]

    assert found() == [2.0, 1.0, 0.0]
    assert found(component="a") == [2.0, 0.0]
    assert found(cause="x") == [1.0, 0.0]
    assert found(component="a", cause="x") == [0.0]
    assert found(component="nobody") == []
    assert found(number=1) == [2.0]
    assert store.record("0000") is None  # three begin so
    assert store.record("000000000002") == store.records(number=1)[0]
    assert store.record("ffff") is None


def test_a_record_is_kept_once_under_its_id(tmp_path: Path) -> None:
    store = opened(tmp_path / "state.db")
    store.keep(document(1))
    number = store.begin(act(1.0), {**document(1), "verdict": "open"})
    assert [found["verdict"] for found in store.records()] == ["open"]
    store.end(number, ended=2.0, effective=True, document={**document(1), "verdict": "healed"})
    assert [found["verdict"] for found in store.records()] == ["healed"]


def test_only_acts_that_a_limit_may_ask_about_are_read(tmp_path: Path) -> None:
    clock = [100.0]
    store = Store(tmp_path / "state.db", clock=lambda: clock[0], boot_id="b")
    store.end(store.begin(act(store.now())), ended=1.0, effective=True)
    assert Limits().memory_s < 8 * 86400.0
    clock[0] += 8 * 86400.0 - 1.0
    store.keep(document(1))
    assert store.acts()
    store.close()
    clock[0] += 1.0
    assert Store(tmp_path / "state.db", clock=lambda: clock[0], boot_id="b").acts() == []


def test_by_size_the_oldest_records_go_and_no_act_that_a_limit_asks_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    store = Store(tmp_path / "state.db", clock=lambda: clock[0], boot_id="b")
    for incident in ("old", "old and open"):
        number = store.begin(act(store.now(), incident=incident))
        if incident == "old":
            store.end(number, ended=1.0, effective=True)
    clock[0] += 9 * 86400.0
    for number in range(5):
        store.end(store.begin(act(store.now(), incident=f"new-{number}")), ended=store.now(), effective=True)
    monkeypatch.setattr(store_module, "_CAP_BYTES", 1 << 18)  # a day's worth instead of years
    size = 1 << 12
    for number in range(400):
        store.keep({**document(number), "told": ["x" * size]})
    kept = [found["opened"] for found in store.records(number=1000)]
    assert 10 < len(kept) < 100
    assert kept == [float(number) for number in range(399, 399 - len(kept), -1)]
    assert [found.incident for found in store.acts()] == [f"new-{number}" for number in range(5)]
    assert [found.incident for _, found in store.unfinished()] == ["old and open"]
    store.close()
    db = sqlite3.connect(tmp_path / "state.db")
    assert db.execute("SELECT count(*) FROM acts WHERE incident = 'old'").fetchone() == (0,)
    db.close()


# -- a store that cannot keep --------------------------------------------------------------------------------------


def spent(store: Store) -> None:
    """No page more fits, and a write shows it."""
    assert store._db is not None
    store._db.execute(f"PRAGMA max_page_count = {int(store._db.execute('PRAGMA page_count').fetchone()[0])}")
    with pytest.raises(StoreFault, match="full"):
        fill(store)


def test_a_full_disk_passes_and_the_past_is_not_given_up_for_it(tmp_path: Path) -> None:
    store = opened(tmp_path / "state.db")
    store.end(store.begin(act(0.0)), ended=1.0, effective=True)
    assert (tmp_path / "reserve").stat().st_size > 0
    spent(store)
    assert (store.passing, store.remedy) == (True, "once it can be written again")
    assert not (tmp_path / "reserve").exists()  # given up, so that what frees space can be written down
    with pytest.raises(StoreFault, match="this is over once it can be written again"):
        store.start_anew()
    store.retry()
    assert store.fault == ""
    assert [found.effective for found in store.acts()] == [True]
    store.keep_time()
    assert (tmp_path / "reserve").exists()
    store.close()


def test_what_passes_may_not_have_passed_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path / "state.db")
    spent(store)

    def cannot(*_: object, **__: object) -> None:
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error

    with monkeypatch.context() as world:
        world.setattr(sqlite3, "connect", cannot)
        store.retry()
        assert (store.fault, store.passing) == ("unable to open database file", True)
    store.retry()
    assert store.fault == ""
    store.retry()  # nothing to do
    assert store.acts() == []


def test_what_does_not_pass_is_not_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    opened(path).close()
    path.write_text("no store" * 999)
    store = opened(path)
    why = store.fault
    assert not store.passing
    assert store.remedy.startswith("`luminous-healing resume --store`")
    path.unlink(missing_ok=True)
    (tmp_path / "initialized").unlink()
    store.retry()
    assert store.fault == why


def test_a_disk_without_room_for_a_reserve_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    store = opened(tmp_path / "state.db")
    assert store.fault == ""
    assert not (tmp_path / "reserve").exists()
    store.end(store.begin(act(1.0)), ended=2.0, effective=True)


def test_somebody_elses_lock_is_no_fault(tmp_path: Path) -> None:
    store = opened(tmp_path / "state.db")
    assert store._db is not None
    store._db.execute("PRAGMA busy_timeout = 1")
    other = sqlite3.connect(tmp_path / "state.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreFault, match="cannot be written: database is locked"):
        store.begin(act(1.0))
    assert store.fault == ""
    other.execute("ROLLBACK")
    other.close()
    assert store.begin(act(1.0)) == 1


def test_what_was_done_is_for_our_eyes_only(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o755)
    (tmp_path / "state").chmod(0o755)
    opened(tmp_path / "state/state.db").close()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_store_in_memory_needs_no_file_and_no_lock() -> None:
    store = Store(None, clock=lambda: 5.0, boot_id="b")
    with store.exclusive():
        store.end(store.begin(act(1.0)), ended=2.0, effective=True)
    assert (len(store.acts()), store.fault, store.now()) == (1, "", 0.0)
    with pytest.raises(StoreFault, match="the store is in order"):
        store.start_anew()


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_person_begins_anew_and_what_was_there_is_put_aside(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    path = tmp_path / "state.db"
    store = opened(path)
    with pytest.raises(StoreFault, match="the store is in order"):
        store.start_anew()
    for number in range(50):
        store.keep(document(number))
    store.close()
    damage(path)
    store = opened(path)
    assert store.fault
    store.start_anew()
    assert (store.fault, store.acts(), store.records(), store.silences()) == ("", [], [], [])
    store.end(store.begin(act(store.now())), ended=1.0, effective=True)
    store.close()
    assert len(opened(path).acts()) == 1
    aside = list(tmp_path.glob("state.db.corrupt-*"))
    assert (damage is Path.unlink) is (aside == [])


def test_what_is_put_aside_twice_is_kept_twice(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    for content in ("first", "second"):
        opened(path).close()
        path.write_text(content * 999)
        assert "kept as" in opened(path).fault
        store = opened(path)  # it is gone now, and the mark of the past says so
        assert "is gone" in store.fault
        store.start_anew()
        store.close()
    assert (tmp_path / "state.db.corrupt-1").read_text().startswith("first")
    assert (tmp_path / "state.db.corrupt-2").read_text().startswith("second")


def test_a_new_store_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.db"
    opened(path).close()
    _newer(path)
    store = opened(path)
    assert f"of version {VERSION + 1}, this program knows {VERSION}" in store.fault

    def full(*_: object, **__: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as host:
        host.setattr(sqlite3, "connect", full)
        with pytest.raises(StoreFault, match="a new store cannot be made: database or disk is full"):
            store.start_anew()
    assert store.fault == "database or disk is full"
    assert (tmp_path / "state.db.corrupt-1").exists()
    store.start_anew()
    assert store.fault == ""


def test_a_file_of_another_user_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.db"
    opened(path).close()
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    assert opened(path).fault == f"{path} belongs to another user"


def test_a_folder_that_cannot_be_had_is_a_fault_and_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = opened(tmp_path / "file/state.db")
    assert "Not a directory" in store.fault or "File exists" in store.fault
    with pytest.raises(StoreFault), store.exclusive():
        raise AssertionError("entered")


def test_a_link_where_the_lock_should_be_stops_every_act(tmp_path: Path) -> None:
    store = opened(tmp_path / "state.db")
    (tmp_path / "acting.lock").symlink_to("elsewhere")
    with pytest.raises(StoreFault, match="the lock beside"), store.exclusive():
        raise AssertionError("entered")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    "clock", ["[]", "{}", '["boot-0", "x", 1.0]', '["boot-1", 1.0, "x"]', '["boot-1", 1.0]', "no json"], ids=str
)  # fmt: skip
def test_a_clock_that_cannot_be_read_is_a_fault(tmp_path: Path, clock: str) -> None:
    path = tmp_path / "state.db"
    opened(path).close()
    db = sqlite3.connect(path)
    db.execute("UPDATE meta SET value = ? WHERE key = 'clock'", (clock,))
    db.commit()
    db.close()
    assert opened(path).fault


def test_a_read_that_fails_stops_every_act(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = opened(path)
    other = sqlite3.connect(path)
    other.execute("DROP TABLE latches")
    other.commit()
    other.close()
    with pytest.raises(StoreFault, match="the store cannot be read: no such table"):
        _ = store.latches
    assert "reading failed" in store.fault
    with pytest.raises(StoreFault, match="out of order"):
        store.begin(act(1.0))


def test_a_transaction_that_is_broken_off_leaves_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path / "state.db")
    with pytest.raises(KeyError):
        store.begin(act(1.0), {"id": "half a record"})
    assert (store.fault, store.acts(), store.records()) == ("", [], [])


def test_a_closed_store_keeps_nothing_and_closes_again(tmp_path: Path) -> None:
    store = opened(tmp_path / "state.db")
    store.close()
    store.close()
    with pytest.raises(StoreFault):
        store.acts()
    with pytest.raises(StoreFault):
        store.pause("x")


def test_a_file_that_cannot_be_written_stops_every_act(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    store = opened(path)
    assert store._db is not None
    store._db.execute("PRAGMA query_only = ON")  # what a read-only filesystem comes to, for root, too
    with pytest.raises(StoreFault, match="cannot be written: attempt to write a readonly database") as problem:
        store.begin(act(1.0))
    assert not problem.value.acted
    assert "writing failed" in store.fault
    store.close()
