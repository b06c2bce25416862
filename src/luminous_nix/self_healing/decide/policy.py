"""Who decided that this may happen: modes, rules, silences, maintenance windows. [pure]"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, Final

from .actions import Spec, asks_first


class Mode(StrEnum):
    OBSERVE = "observe"  # record what would be done
    CONFIRM = "confirm"  # ask a person first
    AUTO = "auto"


_ORDER: Final = {Mode.OBSERVE: 0, Mode.CONFIRM: 1, Mode.AUTO: 2}


@dataclass(frozen=True, slots=True)
class Rule:
    """The mode of what its globs cover. `unit` matches with and without `.service`."""

    mode: Mode
    category: str = "*"
    action: str = "*"
    unit: str = "*"

    def covers(self, spec: Spec, unit: str) -> bool:
        return (
            fnmatchcase(spec.category.value, self.category)
            and fnmatchcase(spec.name, self.action)
            and covers(self.unit, unit)
        )


@dataclass(frozen=True, slots=True)
class Silence:
    """Nothing is done about what `pattern` covers until `until` (seconds of the ledger's clock)."""

    id: str
    pattern: str
    until: float
    reason: str = ""


_DAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_WINDOW: Final = re.compile(r"(?:([a-z, -]+) )?([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Maintenance:
    """Hours of the week in which people are at work and nothing else acts. Minutes of the local day; a window
    that ends before it starts goes on into the next day."""

    text: str
    days: frozenset[int]
    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Maintenance:
        """`Sat,Sun 02:00-04:00`, `mon-fri 22:00-06:00` or `03:00-03:30`. Raises ValueError."""
        found = _WINDOW.fullmatch(text.strip().lower())
        if found is None:
            raise ValueError("a time of the week such as 'Sat,Sun 02:00-04:00'")
        days, *clock = found.groups()
        hour, minute, to_hour, to_minute = map(int, clock)
        start, end = 60 * hour + minute, 60 * to_hour + to_minute
        if start == end or end > 1440:
            raise ValueError("a span of time, from 00:00 to 24:00")
        return cls(text, _days(days) if days else frozenset(range(7)), start, end)

    def covers(self, day: int, at: int) -> bool:
        """`day` counts from Monday, 0; `at` is the minute of the day."""
        if self.start < self.end:
            return day in self.days and self.start <= at < self.end
        return (day in self.days and at >= self.start) or ((day - 1) % 7 in self.days and at < self.end)


def _day(word: str) -> int:
    for number, name in enumerate(_DAYS):
        if word in {name, name[:3]}:
            return number
    raise ValueError("made of days such as mon, sat or mon-fri")


def _days(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        at, end = _day(first), _day(last if dash else first)
        found.update(day % 7 for day in range(at, end + 1 + (7 if end < at else 0)))
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class Policy:
    """`mode` caps every rule; the first rule that covers an act decides, else the catalogue's default."""

    mode: Mode = Mode.AUTO
    rules: tuple[Rule, ...] = ()
    maintenance: tuple[Maintenance, ...] = ()
    boot_grace_s: float = 300.0
    resume_grace_s: float = 120.0
    confirm_s: float = 3600.0
    samples: int = 3  # of the last five looks
    flips: int = 2  # in ten minutes
    health_floor: int = 30

    def mode_of(self, spec: Spec, arguments: Mapping[str, Any], unit: str) -> tuple[Mode, str]:
        """The mode, and where it comes from."""
        asks = not spec.auto or bool(spec.asks_with & arguments.keys()) or (unit != "" and asks_first(unit))
        mode, why = (Mode.CONFIRM if asks else Mode.AUTO), "the catalogue's default"
        for number, rule in enumerate(self.rules, 1):
            if rule.covers(spec, unit):
                mode, why = rule.mode, f"rule {number} of the policy"
                break
        if self.mode is Mode.AUTO or _ORDER[mode] <= _ORDER[self.mode]:
            return mode, why
        return self.mode, "the policy's mode"

    def maintained(self, day: int, at: int) -> str:
        """The maintenance window of now, or empty. By nature it follows the wall clock; it only forbids."""
        return next((window.text for window in self.maintenance if window.covers(day, at)), "")


def covers(pattern: str, name: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.removesuffix(".service"), pattern)
