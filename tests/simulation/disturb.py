"""Disturbances: nothing is broken, but looking or acting is harder, the program is ended, or a person speaks."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from luminous_nix.self_healing.decide.policy import Silence
from luminous_nix.self_healing.store import Store, StoreFault

from .faults import UNITS, Moment
from .host import BASE, TICK_S

if TYPE_CHECKING:
    from .run import Run

_YEAR = timedelta(days=365)
_BUSY = {"update_lock": "a switch is in progress", "stopping": "it is stopping", "reboot": "it is starting"}


class Disturber:
    """Brings about what faults.toml calls a disturbance, and ends it. Those of the host itself are in host.py."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def lasts(self, name: str) -> bool:
        return any(moment.name == name for moment in self.run.host.moments)

    def begin(self, moment: Moment) -> None:
        name, trouble = moment.name, self.run.trouble
        if name in {"cancelled_in_an_act", "killed_in_an_act", "kill_switch_in_an_act"}:
            self.run.armed = (name, 1 + int(moment.pick * 12))
        elif name in {"spike", "not_a_number"}:
            trouble.lies[trouble.liar(moment.pick)] = 99.0 if name == "spike" else float("nan")
        elif name == "sensor_fails":
            trouble.failing.add(list(BASE)[int(moment.pick * len(BASE))])
        elif name == "sensor_flaky":
            trouble.flaky = list(BASE)[int(moment.pick * len(BASE))]
        elif name == "unit_unclear":
            trouble.unclear = _watched(moment)
        elif name == "kill_switch":
            self.run.switch_until = max(self.run.switch_until, moment.end)
        elif name == "wall_jump" and self.run.options.jumps:
            self.run.host.jump += _YEAR if moment.pick < 0.5 else -_YEAR
        elif name in {"restart", "reboot"}:
            self.run.boots += name == "reboot"
            self.run.build()
        else:
            self._begin_of_store(moment)
        self._follow()

    def end(self, moment: Moment) -> None:
        name, trouble = moment.name, self.run.trouble
        if name in {"spike", "not_a_number"}:
            trouble.lies.clear()
        elif name == "sensor_fails":
            trouble.failing.clear()
        elif name == "sensor_flaky":
            trouble.flaky = ""
        elif name == "unit_unclear":
            trouble.unclear = ""
        else:
            self._end_of_store(moment)
        self._follow()

    def _follow(self) -> None:
        self.run.trouble.bus_down = self.lasts("bus_down")
        self.run.host.busy = next((said for name, said in _BUSY.items() if self.lasts(name)), "")

    def _begin_of_store(self, moment: Moment) -> None:
        store = self.run.engine.store
        with contextlib.suppress(StoreFault):
            if moment.name == "pause":
                store.pause("a person works here")
                self.run.paused = True
            elif moment.name == "silence":
                span = TICK_S * (moment.end - moment.start)
                store.silence(Silence("s", _watched(moment), store.now() + span, "a person knows"))
                self.run.checker.silenced = (_watched(moment), self.run.host.now + span)
        if self.run.options.path is None:
            return
        if moment.name == "state_disk_full":
            self.fill(store)
        elif moment.name == "state_corrupt":
            store.close()
            _spoil(self.run.options.path, moment.pick)
            self.run.build()

    def _end_of_store(self, moment: Moment) -> None:
        with contextlib.suppress(StoreFault):
            if moment.name == "pause":
                self.run.engine.store.pause("")
                self.run.paused = False
            elif moment.name == "silence":
                self.run.engine.store.end_silence("s")
        if self.run.options.path is None:
            return
        if moment.name == "state_disk_full":
            self.run.build()
            self._repeat_orders()
        elif moment.name == "state_corrupt" and self.run.engine.store.fault:
            self.run.engine.store.start_anew()
            self.run.checker.forget()
            self.run.paused = False

    def visit(self) -> None:
        """A person reads the status, and closes the breakers that only a person may close."""
        store = self.run.engine.store
        with contextlib.suppress(StoreFault):
            for cause in sorted(store.latches):
                store.reset(cause)
                self.run.checker.reset(cause)

    def _repeat_orders(self) -> None:
        """What a person could not say while the store was out of order."""
        with contextlib.suppress(StoreFault):
            if self.run.paused and not self.lasts("pause"):
                self.run.engine.store.pause("")
                self.run.paused = False
            if not self.lasts("silence"):
                self.run.engine.store.end_silence("s")

    @staticmethod
    def fill(store: Store) -> None:
        """SQLite's own limit stands for a disk without room: what needs another page fails with SQLITE_FULL."""
        if store._db is not None:
            store._db.execute("PRAGMA max_page_count = 1")


def _watched(moment: Moment) -> str:
    return UNITS["watched"][int(moment.pick * len(UNITS["watched"]))]


def _spoil(path: Path, pick: float) -> None:
    """Garbage at the head of the file, or over a page in its middle."""
    with path.open("r+b") as file:
        file.seek(0 if pick < 0.5 else 4096)
        file.write(b"\xff" * (100 if pick < 0.5 else 4096))
