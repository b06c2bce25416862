"""Whatever is asked in whatever order, with ends of the program and of the host in between: store and limits together
keep every window, cooldown and breaker. The model is written down a second time, in the time of the world.

`LUMINOUS_STATE_MACHINE_EXAMPLES` makes it long (security.md: 20 000 in the long run).
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from luminous_nix.self_healing.decide.limits import Act, Limits, Request, check
from luminous_nix.self_healing.store import Store

EXAMPLES = int(os.environ.get("LUMINOUS_STATE_MACHINE_EXAMPLES", "60"))
STEPS = 50 if EXAMPLES <= 500 else 100
HOUR = 3600.0
TARGETS = st.sampled_from(["a.service", "b.service", "disk:/nix"])
ACTIONS = st.sampled_from(["restart_service", "start_unit", "clean_nix_store", "kill_process", "rollback_generation"])
# (at most, in seconds, action or "" for all, on one target), of automatic acts
WINDOWS = (
    (10, HOUR, "", False), (10, 300.0, "", False), (3, HOUR, "", True), (1, 6 * HOUR, "clean_nix_store", False),
    (3, HOUR, "kill_process", False), (1, 24 * HOUR, "rollback_generation", False),
    (3, 168 * HOUR, "rollback_generation", False),
)  # fmt: skip
_FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class Done:
    """An act as the world saw it. `look` tells the climb that it belongs to."""

    def __init__(self, target: str, action: str, climb: int, started: float) -> None:
        self.target, self.action, self.climb, self.started = target, action, climb, started
        self.ended: float | None = None
        self.good = False


class StoreAndLimits(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        logging.disable(logging.CRITICAL)
        self.folder = Path(tempfile.mkdtemp(prefix="state-machine-", dir=_FAST))
        self.now, self.booted, self.boots, self.climb = 10_000.0, 0.0, 0, 0
        self.done: list[Done] = []
        self.under_way: tuple[int, Done] | None = None
        self.resets: dict[str, float] = {}
        self.store: Store | None = None

    @initialize()
    def start(self) -> None:
        booted = self.booted  # what the store writes when it is closed is of the boot that it was opened in
        self.store = Store(self.folder / "state.db", clock=lambda: self.now - booted, boot_id=str(self.boots))
        assert not self.store.fault

    def _open(self) -> Store:
        assert self.store is not None
        return self.store

    # -- the world -------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 30.0, 290.0, 301.0, 900.0, HOUR, 6 * HOUR, 25 * HOUR]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def the_program_is_killed(self) -> None:
        """What was under way has no outcome; after the start it is closed as such, as reconcile.py does."""
        self._open().close()
        self.start()
        for number, _ in self._open().unfinished():
            self._open().end(number, ended=self._open().now(), effective=None)
        self.under_way = None

    @rule()
    def the_host_boots(self) -> None:
        self.now += 40.0
        self.booted, self.boots = self.now, self.boots + 1
        self.the_program_is_killed()

    @rule(name=TARGETS)
    def a_person_closes_the_breaker(self, name: str) -> None:
        self.now += 1.0
        self._open().reset(name)
        self.resets[name] = self.now
        self.now += 1.0

    # -- acts ------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.under_way is None)
    @rule(name=TARGETS, action=ACTIONS, climbs=st.booleans())
    def an_act_is_asked_for(self, name: str, action: str, climbs: bool) -> None:
        store = self._open()
        self.climb += not climbs
        request = Request(name, action, f"i{self.climb}", name)
        if check(store.acts(), Limits(), request, store.now(), store.resets.get(name, float("-inf"))):
            return
        done = Done(name, action, self.climb, self.now)
        self._may(done)
        number = store.begin(Act(name, action, request.incident, name, store.now()))
        self.done.append(done)
        self.under_way = (number, done)
        self.now += 2.0

    @precondition(lambda self: self.under_way is not None)
    @rule(took=st.sampled_from([0.0, 3.0, 120.0, 2000.0]), good=st.booleans())
    def it_ends(self, took: float, good: bool) -> None:
        assert self.under_way is not None
        self.now += took
        number, done = self.under_way
        self._open().end(number, ended=self._open().now(), effective=good)
        done.ended, done.good = self.now, good
        self.under_way = None

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def it_is_refused_by_its_precheck(self) -> None:
        assert self.under_way is not None
        number, done = self.under_way
        self._open().forget(number)
        self.done.remove(done)
        self.under_way = None

    # -- what must hold --------------------------------------------------------------------------------------

    def _may(self, new: Done) -> None:
        """I-1, I-2, I-3 and I-4 of an act that was let through."""
        assert self.under_way is None
        for most, seconds, action, same in WINDOWS:
            inside = [
                past for past in self.done
                if new.started - past.started < seconds and action in {"", past.action}
                and (not same or past.target == new.target)
            ]  # fmt: skip
            assert action not in {"", new.action} or len(inside) < most, (most, seconds, action)
        for past in self.done:
            if past.target == new.target and past.climb != new.climb:
                assert new.started - (past.started if past.ended is None else past.ended) >= 300.0
        earlier = [past for past in self.done if past.target == new.target]
        if any(past.climb == new.climb and past.action == new.action for past in earlier):
            assert (
                new.started - (earlier[-1].ended or earlier[-1].started) >= 300.0
            )  # no rung is taken twice in a climb
        self._breaker_lets(new)

    def _breaker_lets(self, new: Done) -> None:
        climbs: dict[int, list[Done]] = {}
        for past in self.done:
            if past.target == new.target and past.climb != new.climb and new.started - past.started < 168 * HOUR:
                climbs.setdefault(past.climb, []).append(past)
        ended = [max(one.started if one.ended is None else one.ended for one in acts) for acts in climbs.values()]
        good = [any(one.good for one in acts) for acts in climbs.values()]
        if len(good) < 2 or good[-1] or good[-2] or new.started - ended[-1] >= HOUR:
            return
        assert self.resets.get(new.target, 0.0) >= ended[-2]

    @invariant()
    def everything_is_kept(self) -> None:
        """Restarts and boots lose no act; one at most is without an outcome."""
        if self.store is None:
            return
        recent = [past for past in self.done if self.now - past.started < 168 * HOUR]
        kept = [(act.target, act.action) for act in self.store.acts()]
        assert [(past.target, past.action) for past in recent] == kept[len(kept) - len(recent) :]
        assert len(self.store.unfinished()) == (self.under_way is not None)

    @invariant()
    def the_ledger_never_runs_ahead(self) -> None:
        """Less time has passed in the ledger than in the world, or as much: limits last longer, never shorter."""
        if self.store is not None and self.done:
            kept = self.store.acts()
            if kept:
                assert self.store.now() - kept[-1].started <= self.now - self.done[-1].started + 1e-6

    def teardown(self) -> None:
        if self.store is not None:
            self.store.close()
        shutil.rmtree(self.folder)
        logging.disable(logging.NOTSET)


TestStoreAndLimits = StoreAndLimits.TestCase
TestStoreAndLimits.settings = settings(
    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, derandomize=EXAMPLES <= 500,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
