"""What the detector reads, with all that can go wrong on the way, and what was truly shown (for the checker)."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Container, Iterable

from luminous_nix.self_healing.models import ObservationError, UnitState

from .faults import UNITS
from .host import LIMIT, POOL_OF, Host

_EXIT = 0.9
_LIARS = ("cpu", "memory", "swap", "disk:/nix", "disk:/var", "disk:/home", "inodes:/nix")


class Shown:
    """What the first reading of each cycle showed, by target: the truth that invariants I-5 to I-8 are about.

    `looks` counts cycles; `levels` has, of each reading, the looks in which it was at its limit or above.
    `flips` are the times at which a reading or a unit was seen to come or go.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self.looks = 0
        self.levels: dict[str, deque[int]] = defaultdict(lambda: deque(maxlen=5))
        self.flips: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=16))
        self.open: set[str] = set()
        self.units_down: set[str] = set()
        self.values: dict[str, float] = {}  # of the newest look, where it was out of the ordinary
        self.bus_ok = True

    def level(self, reading: str, value: float) -> None:
        self.values[reading] = value
        if value >= LIMIT[reading]:
            self.levels[reading].append(self.looks)
            self._flip(self.open, reading, there=True)
        elif value < LIMIT[reading] * _EXIT:
            self._flip(self.open, reading, there=False)

    def units(self, down: Iterable[str], undecided: Container[str]) -> None:
        """`undecided`: not to be seen, or on the way up, which is neither."""
        now = set(down)
        for name in now ^ self.units_down:
            if name not in undecided:
                self._flip(self.units_down, name, there=name in now)

    def _flip(self, known: set[str], name: str, *, there: bool) -> None:
        if there != (name in known):
            known.symmetric_difference_update({name})
            self.flips[name].append(self.host.now)

    def confirming(self, reading: str) -> int:
        return sum(look > self.looks - 5 for look in self.levels[reading])

    def recent_flips(self, name: str) -> int:
        return sum(self.host.now - at < 600.0 for at in self.flips[name])


class Trouble:
    """How looking is hindered now."""

    def __init__(self) -> None:
        self.failing: set[str] = set()
        self.flaky = ""
        self.lies: dict[str, float] = {}
        self.bus_down = False
        self.unclear = ""

    @property
    def any(self) -> bool:
        return bool(self.failing or self.flaky or self.lies)

    @staticmethod
    def liar(pick: float) -> str:
        return _LIARS[int(pick * len(_LIARS))]


class SimSensor:
    """One sensor of the detector."""

    def __init__(self, name: str, host: Host, shown: Shown, trouble: Trouble) -> None:
        self.name, self.host, self.shown, self.trouble = name, host, shown, trouble
        self.ok = True  # at the newest read
        self._look, self._reads = -1, 0
        self._limits = {reading: limit * _EXIT for reading, limit in LIMIT.items() if reading in host.levels[name]}
        self._open = False

    def read(self, values: dict[str, float]) -> None:
        truth = self.host.levels[self.name]
        if not self._open and not self.trouble.any and self._well(truth):
            self.ok = True
            values.update(truth)
            return
        self._read_closely(values, truth)

    def _well(self, truth: dict[str, float]) -> bool:
        limits = self._limits
        for reading, value in truth.items():  # noqa: SIM110  the quickest way, on each of a million ticks
            if value >= limits[reading]:
                return False
        return True

    def _read_closely(self, values: dict[str, float], truth: dict[str, float]) -> None:
        first = self._look != self.shown.looks
        self._look = self.shown.looks
        self._reads += 1
        trouble = self.trouble
        self.ok = not (self.name in trouble.failing or (self.name == trouble.flaky and self._reads % 2))
        self._open = True
        if not self.ok:
            raise OSError(5, "Input/output error", f"/proc/{self.name}")
        for reading, value in truth.items():
            values[reading] = told = trouble.lies.get(reading, value)
            if first:
                self.shown.level(reading, told)
        self._open = any(reading in self.shown.open for reading in truth)


class SimUnits:
    """systemd as the detector sees it."""

    def __init__(self, host: Host, shown: Shown, trouble: Trouble) -> None:
        self.host, self.shown, self.trouble = host, shown, trouble
        self._look = -1

    async def read(self, watched: Iterable[str]) -> tuple[tuple[UnitState, ...], str, dict[str, str]]:
        del watched  # the same throughout
        if self.trouble.bus_down:
            return (), "the bus is out of reach", {}
        first = self._look != self.shown.looks
        self._look = self.shown.looks
        if not self.host.down and not self.shown.units_down:
            return (), "", {}
        unclear = self.trouble.unclear
        seen = {name: state for name, state in self.host.down.items() if name != unclear and _listed(name, state)}
        if first:
            rising = {name for name, state in seen.items() if state.active == "activating"}
            self.shown.units((name for name, state in seen.items() if is_trouble(state)), rising | {unclear})
        hidden = {f"{unclear}.service": "it cannot be looked at"} if unclear else {}
        return tuple(seen.values()), "", hidden

    async def unit(self, name: str) -> UnitState:
        short = name.removesuffix(".service")
        if self.trouble.bus_down or short == self.trouble.unclear:
            raise ObservationError(f"{name} cannot be looked at")
        self.host.refresh(short)
        return self.host.down.get(short) or self.host.running(short)


def _listed(name: str, state: UnitState) -> bool:
    """systemd lists what failed; of what merely does not run only what is watched is asked for."""
    return state.active == "failed" or POOL_OF[name] == "watched"


def is_trouble(state: UnitState) -> bool:
    """A unit that should run and does not, by itself: neither masked, stopped on purpose nor in a job."""
    return state.active in {"failed", "inactive"} and state.load == "loaded" and state.ended_by != "stop"


WATCHED = tuple(f"{name}.service" for name in UNITS["watched"])
