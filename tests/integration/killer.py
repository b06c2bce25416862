"""Runs inside a guest: kills the daemon at random moments and at the worst, or fills its disk, and counts.

Every demo unit notes each of its starts with the time since boot; all but the first, which the test makes and
which fails, are the healer's. They are held against the acts that the store has.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

LAB = Path("/var/tmp/killed")
CONFIG = LAB / "config.toml"
SETTINGS = """mode = "dev"
interval = 1
enabled_checks = ["services"]
[policy]
boot_grace_seconds = 0
resume_grace_seconds = 0
"""
# The first start fails; what heals it starts it again, at once or (`slow`) after a while.
UNIT = """[Service]
Type=exec
ExecStartPre=/bin/sh -c 'test ! -s {lab}/%i.starts || sleep {pause}'
ExecStart=/bin/sh -c 'read up rest </proc/uptime; echo $up $INVOCATION_ID >> {lab}/%i.starts; \
test $(wc -l < {lab}/%i.starts) -gt 1 || exit 1; exec sleep infinity'
"""
KINDS = {"quick": 0.0, "slow": 0.3}
COOLDOWN_S, HOUR_S, HOURLY, ON_TARGET = 300.0, 3600.0, 10, 3
TICKS_S = 0.02  # /proc/uptime has hundredths


class Kept(NamedTuple):
    """What a store had at one moment: acts by id, ids of records, and what the ledger's clock is ahead of boot's."""

    acts: dict[int, dict[str, Any]]
    records: set[str]
    offset: float


def run(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def snapshot(state: Path) -> Kept:
    """From a copy: to open the store itself would mend it before the daemon has to."""
    if not (state / "state.db").exists():
        return Kept({}, set(), 0.0)
    copy = LAB / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for name in ("state.db", "state.db-wal"):
        if (state / name).exists():
            shutil.copyfile(state / name, copy / name)
    db = sqlite3.connect(copy / "state.db")
    try:
        if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'acts'").fetchone():
            return Kept({}, set(), 0.0)
        names = ("id", "target", "action", "incident", "started", "ended")
        rows = db.execute(f"SELECT {', '.join(names)} FROM acts ORDER BY id").fetchall()  # noqa: S608
        clock = db.execute("SELECT value FROM meta WHERE key = 'clock'").fetchone()
        records = {str(row[0]) for row in db.execute("SELECT id FROM records")}
        acts = {row[0]: dict(zip(names, row, strict=True)) for row in rows}
        return Kept(acts, records, json.loads(clock[0])[2] if clock else 0.0)
    finally:
        db.close()


def control_groups(unit: str) -> list[str]:
    """Where systemd makes the directory of a unit that it starts, whatever the host's layout."""
    kind = unit.partition("@")[0].replace("-", "\\x2d")
    roots = ("/sys/fs/cgroup", "/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified")
    return [f"{root}/system.slice/system-{kind}.slice/{unit}" for root in roots if os.path.isdir(root)]  # noqa: PTH112


class Batch:
    """One state directory, the units that failed beside it, and everything that went wrong."""

    def __init__(self, state: Path, number: int, chance: random.Random) -> None:
        self.state, self._number, self._chance = state, number, chance
        self.units: list[str] = []
        self._ages: dict[str, int] = {}
        self.seen = Kept({}, set(), 0.0)
        self.wrong: list[str] = []
        self.cut = 0  # kills in the middle of an act
        state.mkdir(parents=True)

    def daemon(self) -> subprocess.Popen[bytes]:
        places = {"STATE_DIRECTORY": str(self.state), "RUNTIME_DIRECTORY": str(LAB)}
        log = (LAB / "daemon.log").open("ab")
        argv = ["luminous-healing", "run", "--interval", "1", "--config", str(CONFIG)]
        with log:
            return subprocess.Popen(
                argv, env={**os.environ, "LUMINOUS_DEV_MODE": "1", **places}, stderr=log, stdout=log
            )

    def prepare(self) -> None:
        """Something to heal: never more than two units that are down, and none that was there too often."""
        down = [unit for unit in self._ages if run("systemctl", "is-active", unit) == "failed"]
        self._ages = {unit: self._ages[unit] + 1 for unit in down}
        for unit in [unit for unit, age in self._ages.items() if age > 3]:
            run("systemctl", "reset-failed", unit)
            del self._ages[unit]
        if len(self._ages) < 2:
            kind = self._chance.choice(list(KINDS))
            unit = f"killed-{kind}@{self._number}-{len(self.units)}.service"
            run("systemctl", "start", unit)
            self.units.append(unit)
            self._ages[unit] = 0

    def moment(self) -> None:
        """Wait: for any moment, or, every other time, for the one at which a unit has just been started."""
        until = time.monotonic() + self._chance.uniform(0.2, 1.5)
        aimed = self._chance.random() < 0.5
        groups = [group for unit in self._ages for group in control_groups(unit)]
        while time.monotonic() < until:
            if not aimed:
                time.sleep(max(0.0, until - time.monotonic()))
            elif any(map(os.path.isdir, groups)):  # before its first process runs
                return

    def look(self) -> None:
        """What was kept once is kept: an act with all that was known of it, and every record."""
        now = snapshot(self.state)
        for number, act in self.seen.acts.items():
            later = now.acts.get(number)
            known = {name: value for name, value in act.items() if value is not None}
            if later is None or any(later[name] != value for name, value in known.items()):
                self.wrong.append(f"lost or changed: {act} is now {later}")
        if lost := self.seen.records - now.records:
            self.wrong.append(f"records lost: {sorted(lost)}")
        self.cut += sum(act["ended"] is None for act in now.acts.values())
        self.seen = now

    def starts(self, unit: str) -> list[float]:
        """When the healer started it, in seconds since boot."""
        log = LAB / f"{unit.partition('@')[2].removesuffix('.service')}.starts"
        return [float(line.split()[0]) for line in log.read_text().splitlines()][1:] if log.exists() else []

    def judge(self) -> tuple[int, int]:
        """(acts, starts) of the batch; what must not be is in `wrong`."""
        acts = sorted(self.seen.acts.values(), key=lambda act: act["started"])
        began = [act["started"] for act in acts]
        every: list[float] = []
        for unit in self.units:
            starts = self.starts(unit)
            every += starts
            mine = [act for act in acts if act["target"] == unit]
            intents = [act["started"] - self.seen.offset for act in mine]
            if len(starts) > len(intents):
                self.wrong.append(f"{unit}: {len(starts)} starts, {len(intents)} intents")
            for start, intent in zip(starts, intents, strict=False):
                if intent > start + TICKS_S:
                    self.wrong.append(f"{unit}: started at {start}, the intent is of {intent}")
            self._apart(unit, "starts", starts)
            self._apart(unit, "acts", intents)
            self._at_most(ON_TARGET, f"{unit}: acts", intents)
        self._at_most(HOURLY, "acts", began)
        self._at_most(HOURLY, "starts", every)
        return len(acts), len(every)

    def _apart(self, unit: str, what: str, times: list[float]) -> None:
        for first, then in pairwise(times):
            if then - first < COOLDOWN_S:
                self.wrong.append(f"{unit}: {what} {then - first:.1f} s apart")

    def _at_most(self, count: int, what: str, times: list[float]) -> None:
        times = sorted(times)
        for at, first in enumerate(times):
            inside = sum(first <= time < first + HOUR_S for time in times[at:])
            if inside > count:
                self.wrong.append(f"{what}: {inside} in an hour")

    def tidy(self) -> None:
        for unit in self.units:
            run("systemctl", "stop", unit)
            run("systemctl", "reset-failed", unit)


def killed(kills: int, seed: int, per_store: int) -> dict[str, Any]:
    """`kills` times: start the daemon while something is down, and kill it at a random moment."""
    chance = random.Random(seed)  # noqa: S311  moments, not secrets
    told: dict[str, Any] = dict.fromkeys(("kills", "in_an_act", "left_open", "acts", "starts", "stores"), 0)
    told["wrong"] = []
    while told["kills"] < kills:
        batch = Batch(LAB / f"state-{told['stores']}", told["stores"], chance)
        for _ in range(min(per_store, kills - told["kills"])):
            batch.prepare()
            daemon = batch.daemon()
            batch.moment()
            if daemon.poll() is not None:
                told["wrong"].append(f"the daemon ended by itself with {daemon.returncode}")
            daemon.kill()
            daemon.wait()
            told["kills"] += 1
            batch.look()
        daemon = batch.daemon()  # and one that may end as it should
        time.sleep(1.5)
        daemon.terminate()
        code = daemon.wait(60)
        before = batch.cut
        batch.look()
        if code:
            batch.wrong.append(f"the last daemon ended with {code}")
        acts, starts = batch.judge()
        batch.tidy()
        told["in_an_act"] += before
        told["left_open"] += batch.cut - before
        told["acts"] += acts
        told["starts"] += starts
        told["stores"] += 1
        told["wrong"] += batch.wrong
    return told


def filled(seconds: float, seed: int) -> dict[str, Any]:
    """The filesystem of the store fills and empties again while units fail one after another."""
    chance = random.Random(seed)  # noqa: S311
    state = LAB / "small"
    batch = Batch(state, 900, chance)
    run("mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(state))
    filler, over, full = state / "filler", threading.Event(), 0

    def fill() -> None:
        nonlocal full
        while not over.wait(chance.uniform(0.05, 0.6)):
            try:
                with filler.open("ab", buffering=0) as file:
                    for _ in range(chance.randrange(1, 64)):
                        file.write(bytes(1 << 16))
            except OSError:
                full += 1
                over.wait(chance.uniform(0.2, 1.5))
                os.truncate(filler, chance.randrange(0, 1 << 20))

    daemon = batch.daemon()
    thread = threading.Thread(target=fill)
    thread.start()
    until = time.monotonic() + seconds
    while time.monotonic() < until and daemon.poll() is None:
        batch.prepare()
        time.sleep(0.7)
    over.set()
    thread.join()
    alive = daemon.poll() is None
    filler.unlink(missing_ok=True)
    batch.look()
    batch.judge()
    before = len(batch.units)
    again = _healed_again(batch) if alive else None
    daemon.terminate()
    code = daemon.wait(60)
    daemon = batch.daemon()
    restarted = _healed_again(batch)
    daemon.terminate()
    daemon.wait(60)
    batch.look()
    acts, starts = batch.judge()
    batch.tidy()
    run("umount", str(state))
    return {"alive": alive, "code": code, "full": full, "units": before, "acts": acts, "starts": starts,
            "healed_by_the_same": again, "healed_after_a_restart": restarted, "wrong": batch.wrong,
            "log": (LAB / "daemon.log").read_text(errors="replace")[-6000:]}  # fmt: skip


def _healed_again(batch: Batch) -> bool:
    """Whether a unit that fails now is healed."""
    for unit in batch.units:
        run("systemctl", "reset-failed", unit)
    unit = f"killed-quick@{batch.state.name}-{len(batch.units)}.service"
    batch.units.append(unit)
    run("systemctl", "start", unit)
    for _ in range(80):
        time.sleep(0.1)
        if run("systemctl", "is-active", unit) == "active":
            time.sleep(1)  # let it tell
            return True
    return False


def main() -> None:
    what, amount, seed, *rest = sys.argv[1:]
    shutil.rmtree(LAB, ignore_errors=True)
    LAB.mkdir()
    CONFIG.write_text(SETTINGS)
    for kind, pause in KINDS.items():
        Path(f"/etc/systemd/system/killed-{kind}@.service").write_text(UNIT.format(lab=LAB, pause=pause))
    run("systemctl", "daemon-reload")
    told = killed(int(amount), int(seed), int(rest[0])) if what == "kill" else filled(float(amount), int(seed))
    log = (LAB / "daemon.log").read_text(errors="replace")
    print(json.dumps({**told, "tracebacks": log.count("Traceback"), "seed": int(seed)}))


if __name__ == "__main__":
    main()
