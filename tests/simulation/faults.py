"""What goes wrong and when: drawn from a seed and faults.toml alone, never from what the engine does."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

UNITS: Mapping[str, tuple[str, ...]] = {
    "watched": ("app", "db", "queue", "worker", "web", "mail", "git", "dash", "metrics", "dns", "vpn", "wiki"),
    "plain": ("print", "scan", "avahi", "cups", "paper", "colord", "pcscd", "ntfs"),
    "protected": ("sshd", "systemd-journald", "systemd-resolved", "dbus", "NetworkManager", "luminous-healing"),
    "job": ("backup", "renew", "rotate", "nix-gc"),
}
REQUIRES: Mapping[str, str] = {"app": "db", "worker": "queue", "git": "db", "dash": "metrics"}
MOUNTS = ("/nix", "/var", "/home", "/boot")


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of faults.toml; its words are explained there."""

    name: str
    row: int
    rate: float
    natural: tuple[int, int]
    ends_by: str
    healable: bool = False
    units: str = ""
    pool: str = ""
    count: tuple[int, int] = (1, 1)
    levels: Mapping[str, float] = field(default_factory=dict)
    grow: int = 0
    culprit: bool = False
    mends: Mapping[str, float] = field(default_factory=dict)
    harms: float = 0.0
    fails: str = "fails"
    flap: int = 0
    reboot: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Disturbance:
    name: str
    rate: float
    lasts: tuple[int, int]


@dataclass(slots=True)
class Fault:
    """One fault: `unit` for a fault of a unit, `levels` for one of readings (or both)."""

    number: str
    kind: Kind
    start: int
    end: int
    unit: str = ""
    levels: Mapping[str, float] = field(default_factory=dict)
    culprit: str = ""  # the running unit that causes it
    ended: int | None = None
    mended: bool = False
    hidden: bool = False  # of one that comes and goes
    calm_looks: int = 0  # how long it could have been healed and was not (I-24)
    tried: bool = False
    tried_to_limit: bool = False
    _random: Random | None = None

    def draw(self) -> float:
        """Chance of this fault's own: other faults and other acts do not shift it."""
        self._random = self._random or seeded(self.number)
        return self._random.random()


@dataclass(frozen=True, slots=True)
class Moment:
    """A disturbance that begins at a tick: `pick` is a chance to choose its target by."""

    name: str
    start: int
    end: int
    pick: float


def seeded(name: str) -> Random:
    """A stream of chances of its own: what happens elsewhere does not shift it."""
    return Random(name)  # noqa: S311  chances, not secrets


@cache
def catalogue() -> tuple[tuple[Kind, ...], tuple[Disturbance, ...]]:
    data = tomllib.loads(Path(__file__).with_name("faults.toml").read_text(encoding="utf-8"))

    def row(table: dict[str, Any]) -> dict[str, Any]:
        return {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}

    kinds = tuple(Kind(**row(table)) for table in data["fault"])
    return kinds, tuple(Disturbance(**row(table)) for table in data["disturbance"])


def kind(name: str) -> Kind:
    return next(kind for kind in catalogue()[0] if kind.name == name)


def arrivals(random: Random, rate: float, ticks: int) -> list[int]:
    """Ticks of a Poisson process with `rate` arrivals per 1000."""
    found, at = [], 0.0
    while rate > 0 and (at := at + random.expovariate(rate / 1000.0)) < ticks:
        found.append(int(at))
    return found


def schedule(seed: int | str, ticks: int) -> list[Fault]:
    """Every fault of a run, in the order of its start."""
    found: list[Fault] = []
    for one in catalogue()[0]:
        random = seeded(f"{seed}/fault/{one.name}")
        for number, at in enumerate(arrivals(random, one.rate, ticks)):
            name = f"{seed}/{one.name}/{number}"
            found += make(one, at, seeded(f"{name}/made"), name)
    return sorted(found, key=lambda fault: (fault.start, fault.number))


def make(one: Kind, at: int, random: Random, number: str, without: str = "") -> list[Fault]:
    """The fault, or several when it hits several units; each has a natural end of its own."""
    names = _targets(one, random, without) or ("",)
    levels = {name: min(99.9, value + random.uniform(-2, 2)) for name, value in one.levels.items()}
    culprit = random.choice(UNITS["watched"]) if one.culprit else ""
    ends = [at + random.randint(*one.natural) for _ in names]
    return [Fault(f"{number}.{part}", one, at, ends[part], unit, levels, culprit) for part, unit in enumerate(names)]


def _targets(one: Kind, random: Random, without: str) -> tuple[str, ...]:
    if not one.units:
        return ()
    if one.pool == "dependency":
        name = random.choice(sorted(REQUIRES))
        return (name, REQUIRES[name])
    pool = [name for name in UNITS[one.pool] if name != without]
    return tuple(random.sample(pool, random.randint(*one.count)))


def moments(seed: int | str, ticks: int) -> list[Moment]:
    """Every disturbance of a run, in order; two of one name never overlap."""
    found: list[Moment] = []
    for one in catalogue()[1]:
        random, free = seeded(f"{seed}/disturbance/{one.name}"), 0
        for number, at in enumerate(arrivals(random, one.rate, ticks)):
            random = seeded(f"{seed}/disturbance/{one.name}/{number}")
            end, pick = at + random.randint(*one.lasts), random.random()
            if at > free:
                found.append(Moment(one.name, at, end, pick))
                free = end
    return sorted(found, key=lambda moment: (moment.start, moment.name))
