"""`kill -9` at any moment, and a state filesystem that fills up: no act without its intent, none twice, none lost.

LUMINOUS_LONG=1 kills 500 times instead of 30; LUMINOUS_SEED=N repeats the moments of a run, as far as time lets it.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import STATE, Healer, Host, Units
from tests.lab.demo import wait_for

pytestmark = pytest.mark.container
LONG = os.environ.get("LUMINOUS_LONG") == "1"
KILLS = 500 if LONG else 30
PER_STORE = 20  # then a fresh store, because ten acts an hour are soon used up
FULL_S = 60 if LONG else 12


def torture(host: Host, what: str, *amount: int, timeout: float) -> dict[str, Any]:
    seed = int(os.environ.get("LUMINOUS_SEED", secrets.randbits(32)))
    print(f"\nLUMINOUS_SEED={seed}")
    host.guest.copy(Path(__file__).with_name("killer.py"), "/var/tmp/killer.py")
    first, *rest = map(str, amount)
    done = host.guest.run("python3", "/var/tmp/killer.py", what, first, str(seed), *rest, timeout=timeout)
    told: dict[str, Any] = json.loads(done.stdout)
    print({name: value for name, value in told.items() if name != "log"})
    return told


def test_killed_at_random_moments(host: Host) -> None:
    told = torture(host, "kill", KILLS, PER_STORE, timeout=60 + 4 * KILLS)
    assert told["wrong"] == []
    assert told["tracebacks"] == 0
    assert told["kills"] == KILLS
    assert told["left_open"] == 0  # what was cut off is looked at by the next one, even if nothing is wrong any more
    assert told["acts"] >= KILLS / 10  # it was at work, and not only starting
    assert told["starts"] >= KILLS / 20


def test_a_state_filesystem_that_fills_up(host: Host) -> None:
    told = torture(host, "fill", FULL_S, timeout=60 + 4 * FULL_S)
    assert told["wrong"] == []
    assert told["tracebacks"] == 0
    assert told["full"] > 0
    assert told["alive"], told["log"]
    assert told["code"] == 0
    assert told["healed_by_the_same"], told["log"]  # nobody has to do anything but make room
    assert told["healed_after_a_restart"], told["log"]


def test_an_engine_that_starts_on_a_full_filesystem_waits_for_room(lab: tuple[Healer, Units], host: Host) -> None:
    healer, units = lab
    state, run = STATE[0], host.guest.run
    run("mkdir", "-p", state)
    run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", state)
    try:
        run("sh", "-c", f"head -c 2000000 /dev/zero > {state}/filler", check=False)
        healer.start()
        unit = units.broken("waiting")
        wait_for(lambda: any("refused (none)" in line["MESSAGE"] for line in healer.journal()), what="refused")
        _, out, _ = host.command("status", "--check", "services")
        assert "store       database or disk is full: nothing will act" in out
        assert "--store" not in out  # a store in which all is well is not to be given up
        assert (healer.running, units.state(unit), units.starts(unit)) == (True, "failed", 1)
        run("rm", f"{state}/filler")
        units.active(unit)
        wait_for(lambda: [one for one in healer.records("waiting") if one["verdict"] == "healed"], what="kept")
        assert "corrupt" not in run("ls", state).stdout
        assert len(healer.journal()) < 30  # told, but not at every look
    finally:
        healer.stop()
        run("umount", state)
