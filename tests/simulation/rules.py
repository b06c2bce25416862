"""The invariants of security.md 3.3, of each request and act, from what was truly executed and what was truly so.

Nothing here asks the engine, its gates or its limits: figures and rules are written down a second time.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from typing import Any

from .handler import STARTS, Deed, Watch, target_of
from .host import LIMIT, POOL_OF, Host
from .ledger import Ledger
from .sensors import Shown, SimSensor, Trouble, is_trouble

_MINUTE, HOUR, _WEEK = 60.0, 3600.0, 7 * 86400.0
# (at most, in seconds, of which action or "" for all, on one target)
_WINDOWS = (
    (10, HOUR, "", False), (10, 5 * _MINUTE, "", False), (3, HOUR, "", True),
    (1, 6 * HOUR, "clean_nix_store", False), (1, 24 * HOUR, "rerun_timer", True),
)  # fmt: skip
_ALLOWED = frozenset({
    "restart_service", "start_unit", "clear_system_cache", "set_cpu_governor", "clean_nix_store", "vacuum_journal",
    "rerun_timer", "limit_unit",
})  # fmt: skip


class Rules(Watch):
    """What holds of every request and of every act. `problems` are violations: (tick, invariant, what)."""

    def __init__(
        self, host: Host, shown: Shown, trouble: Trouble, sensors: Mapping[str, SimSensor], ledger: Ledger,
        stopped: Callable[[], str],
    ) -> None:  # fmt: skip
        self.host, self.shown, self.trouble, self.sensors, self.ledger = host, shown, trouble, sensors, ledger
        self.stopped = stopped
        self.deeds: list[Deed] = []
        self.recent: deque[Deed] = deque()  # of the last day
        self.cycle: list[Deed] = []  # of this cycle
        self.misses: dict[str, list[tuple[float, int]]] = defaultdict(list)  # cause → heals in a row without effect
        self.problems: list[tuple[int, str, str]] = []
        self.count: Counter[str] = Counter()
        self.silenced = ("", 0.0)  # a unit, until when
        self.acting = False
        self.broken = False  # we were ended in the middle of this cycle
        self.dead = False
        self.program_began = 0.0
        self._refused: set[tuple[str, str]] = set()
        self._state_at_look: dict[str, str] = {}

    def wrong(self, invariant: str, what: str) -> None:
        self.problems.append((self.host.at, invariant, what))
        self.count[invariant] += 1

    def forget(self) -> None:
        """A person accepted that the past is not known."""
        self.recent.clear()
        self.misses.clear()

    def reset(self, cause: str) -> None:
        """A person looked at it, and closed its breaker."""
        name = cause.partition("/")[2]
        for known in [known for known in self.misses if name in {known, "disk"}]:
            self.misses[known].clear()

    # -- what the handler tells ------------------------------------------------------------------------------

    def asked(self, action: str, parameters: Mapping[str, Any]) -> None:
        target = target_of(action, parameters)
        self.count["asked"] += 1
        for invariant, what, is_wrong in (
            ("I-4", "a second act at once", self.acting),
            ("I-9", f"{action} is nothing that may be asked for by itself", action not in _ALLOWED),
            ("I-17", f"{action} while nothing may act: {self.stopped()}", bool(self.stopped())),
            ("I-13", f"{action} while {self.host.busy}", bool(self.host.busy)),
            ("I-14", f"{action} in the grace after boot", self.host.boot_clock() < 300.0),
            ("I-14", f"{action} in the grace after resume", self.host.now - self.host.resumed_at < 120.0),
            ("I-18", f"{action} with a store out of order: {self.ledger.fault}", bool(self.ledger.fault)),
            ("I-18", f"{action} by a program that has ended", self.dead),
            (
                "I-17",
                f"{action} on {target}, which is silenced",
                self._is_silenced(target),
            ),
        ):
            if is_wrong:
                self.wrong(invariant, what)
        if action in STARTS:
            self._asked_of_unit(action, target)
        else:
            self._asked_of_level(action, target)

    def _is_silenced(self, target: str) -> bool:
        name, until = self.silenced
        return target == name and self.host.now < until

    def _asked_of_unit(self, action: str, name: str) -> None:
        if name not in POOL_OF:
            self.wrong("I-9", f"{action} on {name!r}, which is no unit of this host")
        elif POOL_OF[name] == "protected":
            self.wrong("I-25" if name == "luminous-healing" else "I-10", f"{action} on {name}")
        if self.trouble.bus_down or self.trouble.unclear == name:
            self.wrong("I-6", f"{action} on {name}, which cannot be looked at")
        self._flapping(action, name)
        together = self._together(name)
        if together >= 3:
            self.wrong("I-8", f"{action} on {name}: {together} units went down together")

    def _asked_of_level(self, action: str, target: str) -> None:
        if action == "limit_unit":
            if POOL_OF.get(target, "protected") == "protected":
                self.wrong("I-10", f"{action} on {target}")
            target = "memory"
        readings = (
            ("disk:/nix", "inodes:/nix") if action == "clean_nix_store" and target == "disk:/nix" else (target,)
        )
        reading = max(readings, key=lambda one: self.shown.confirming(one) if one in LIMIT else -1)
        if reading not in LIMIT:
            self.wrong("I-9", f"{action} on {target!r}, which this host has not")
            return
        confirming = self.shown.confirming(reading)
        if confirming < 3:
            self.wrong("I-5", f"{action}: {confirming} of the last five looks showed {reading} at its limit")
        sensor = next(sensor for sensor in self.sensors.values() if reading in self.host.levels[sensor.name])
        value = self.trouble.lies.get(reading, 0.0)
        if not sensor.ok or value != value:  # noqa: PLR0124  not a number
            self.wrong("I-6", f"{action} on {reading}, whose sensor fails")
        self._flapping(action, reading)
        if action == "clean_nix_store" and self.shown.values.get("pressure:io:full", 0.0) > 20.0:
            io = self.host.levels["pressure"]["pressure:io:full"]
            if io > 20.0 and self.sensors["pressure"].ok:
                self.wrong("I-22", f"{action} while disks are {io:.0f} % stalled")

    def _flapping(self, action: str, name: str) -> None:
        flips = self.shown.recent_flips(name)
        if flips > 2:
            self.wrong("I-7", f"{action} on {name}, which came and went {flips} times in ten minutes")

    def _together(self, name: str) -> int:
        """Units that are down and went down within five minutes of each other, this one among them."""
        times = sorted(self.host.down_since[other] for other, state in self.host.down.items() if is_trouble(state))
        own = self.host.down_since.get(name)
        if own is None:
            return 0
        starts = [first for first in times if own - 300.0 <= first <= own]
        groups = [sum(first <= at <= first + 300.0 for at in times) for first in starts]
        return max(groups, default=0)

    def refused(self, action: str, parameters: Mapping[str, Any]) -> None:
        self._refused.add((action, target_of(action, parameters)))

    def begun(self, action: str, parameters: Mapping[str, Any]) -> Deed:
        target = target_of(action, parameters)
        deed = Deed(self.host.at, self.shown.looks, action, target, self.host.now, self._cause(action, target))
        self._limits(deed)
        self._target(deed)
        self._ladder(deed)
        if not self.ledger.intent(action, target):
            self.wrong("I-23", f"{action} on {target} without a durable intent")
        for known in (self.deeds, self.recent, self.cycle):
            known.append(deed)
        self.acting = True
        return deed

    def ended(self, deed: Deed) -> None:
        deed.ended = self.host.now
        self.acting = False

    def restored(self, knobs: tuple[tuple[str, str, str], ...]) -> None:
        for deed in self.cycle:
            deed.restored |= bool(knobs) and deed.knobs

    # -- rules -----------------------------------------------------------------------------------------------

    @staticmethod
    def _cause(action: str, target: str) -> str:
        """What the trouble is about: the unit, the memory, the filesystem, the processor."""
        return "memory" if action == "limit_unit" else target

    def _limits(self, deed: Deed) -> None:
        while self.recent and deed.started - self.recent[0].started > 24 * HOUR:
            self.recent.popleft()
        for most, seconds, action, same in _WINDOWS:
            if action not in {"", deed.action}:
                continue
            inside = sum(
                deed.started - past.started < seconds
                for past in self.recent
                if action in {"", past.action} and (not same or past.target == deed.target)
            )
            if inside >= most:
                self.wrong("I-1", f"{deed.action} on {deed.target}: {inside} in {seconds:.0f} s, {most} are allowed")
        for past in self.recent:
            rested = deed.started - (past.started if past.ended is None else past.ended)
            if past.target == deed.target and past.look != deed.look and rested < 300.0:
                rule = "I-2" if past.ended is not None else "I-18"
                self.wrong(rule, f"{deed.action} on {deed.target} {rested:.0f} s after {past.action}")
        missed = [at for at, look in self.misses[deed.cause] if look != deed.look and deed.started - at < _WEEK]
        if len(missed) >= 2 and deed.started - missed[-1] < HOUR:
            self.wrong("I-3", f"{deed.action} for {deed.cause}, {len(missed)} heals in a row without effect")

    def _target(self, deed: Deed) -> None:
        name = deed.target
        if name in self.host.on_purpose or name in self.host.masked:
            self.wrong("I-16", f"{deed.action} on {name}, which a person stopped or masked")
        faulty = self._still(deed)
        if not faulty:
            self.wrong("healthy", f"{deed.action} on {name}, which is well")

    def _still(self, deed: Deed) -> bool:
        """Whether the trouble that the act is about is truly there."""
        if deed.action == "limit_unit":
            return self.host.levels["memory"]["memory"] >= LIMIT["memory"]
        return bool(self.host.faults_of(deed.target)) if deed.target in POOL_OF else self._is_bad(deed)

    def _is_bad(self, deed: Deed) -> bool:
        readings = ("disk:/nix", "inodes:/nix") if deed.target == "disk:/nix" else (deed.target,)
        return any(
            value >= LIMIT[reading] for values in self.host.levels.values() for reading, value in values.items()
            if reading in readings
        )  # fmt: skip

    def _ladder(self, deed: Deed) -> None:
        """The ladder whose rungs differ in risk: a unit that ended by itself is started before it is restarted."""
        if deed.action != "restart_service" or self._state_at_look.get(deed.target) != "inactive":
            return
        lower = [past for past in self.cycle if past.target == deed.target and past.action == "start_unit"]
        tried = any(past.effect != "mends" for past in lower) or ("start_unit", deed.target) in self._refused
        if not tried:
            self.wrong("I-12", f"{deed.action} on {deed.target} before start_unit was tried")
