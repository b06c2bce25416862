"""How often acts may happen: cooldown per target and a sliding hour. [pure: time is an argument]

Times are seconds of one clock that never goes back (CLOCK_BOOTTIME), so that a jump of the wall clock
changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Figures of the specification. Files, environment and flags can only tighten them."""

    heals_per_hour: int = 10
    cooldown_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Denial:
    """Which rule says no, why, and in how many seconds it will say yes."""

    rule: str
    reason: str
    lifts_in_s: float


@dataclass(frozen=True, slots=True)
class Ledger:
    """When acts happened: start times within the last hour, and the end of the last act on each target."""

    started: tuple[float, ...] = ()
    ended: Mapping[str, float] = field(default_factory=dict)

    def begin(self, now: float) -> Ledger:
        """The ledger with an act starting now. Written before the act, so that a crash cannot lose it."""
        return replace(self, started=(*(at for at in self.started if now - at < HOUR_S), now))

    def end(self, target: str, now: float, limits: Limits) -> Ledger:
        """The ledger with the act on `target` ended now; targets long out of cooldown are forgotten."""
        kept = {name: at for name, at in self.ended.items() if now - at < max(HOUR_S, limits.cooldown_s)}
        return replace(self, ended={**kept, target: now})


def check(ledger: Ledger, limits: Limits, target: str, now: float, *, climbing: bool = False) -> Denial | None:
    """None when an act on `target` may start now, else the rule that lifts last.

    `climbing`: a further rung of the same incident waits for the rung below, not for the cooldown.
    """
    denials = []
    recent = sorted(at for at in ledger.started if now - at < HOUR_S)
    if len(recent) >= limits.heals_per_hour:
        lifts = recent[-limits.heals_per_hour] + HOUR_S - now if limits.heals_per_hour else HOUR_S
        denials.append(Denial("hourly limit", f"{len(recent)} heals in the last hour, at most "
                              f"{limits.heals_per_hour} are allowed", lifts))  # fmt: skip
    since = now - ledger.ended.get(target, float("-inf"))
    if since < limits.cooldown_s and not climbing:
        denials.append(Denial("cooldown", f"the last act on {target} ended {since:.0f} s ago, at least "
                              f"{limits.cooldown_s:.0f} s must pass", limits.cooldown_s - since))  # fmt: skip
    return max(denials, key=lambda denial: denial.lifts_in_s, default=None)
