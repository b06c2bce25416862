"""How often acts may happen. [pure: the past and the time are arguments]

Times are seconds of the ledger's own clock (store.py), which never goes back and which no jump of the wall
clock touches. Every limit is computed from the acts themselves, so that whoever keeps the acts keeps the limits.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0
DAY_S: Final = 86400.0
WEEK_S: Final = 7 * DAY_S
_COOLDOWN_CEILING_S: Final = 6 * HOUR_S
_HEALTHY_S: Final = HOUR_S  # so long without an act on a target, and its backoff starts anew
_JITTER: Final = 0.1


@dataclass(frozen=True, slots=True)
class Act:
    """One act as the limits see it. `ended` None: it is under way, or its outcome is not known.

    `cause` is the fingerprint of the issue; `effective` whether the effect was verified, None while unknown.
    """

    target: str
    action: str
    incident: str
    cause: str
    started: float
    ended: float | None = None
    effective: bool | None = None
    automatic: bool = True


@dataclass(frozen=True, slots=True)
class Window:
    """At most `count` acts in any `seconds`: those of `action` ("" = any), `scope` all | target | automatic."""

    name: str
    count: int
    seconds: float
    action: str = ""
    scope: str = "all"

    def covers(self, act: Act, action: str, target: str, *, automatic: bool) -> bool:
        """Whether a past act counts against a new one."""
        if self.action and not (act.action == action == self.action):
            return False
        if self.scope == "automatic":
            return automatic and act.automatic
        return self.scope != "target" or act.target == target


@dataclass(frozen=True, slots=True)
class Limits:
    """Figures of the specification. Files, environment and flags can only tighten them; a constructor
    argument (tests, simulation) can raise them."""

    heals_per_hour: int = 10
    cooldown_s: float = 300.0
    breaker_s: float = HOUR_S
    others: tuple[Window, ...] = (
        Window("10 operations in 5 minutes", 10, 5 * MINUTE_S),
        Window("3 acts an hour on one target", 3, HOUR_S, scope="target"),
        Window("1 automatic rollback in 24 hours", 1, DAY_S, "rollback_generation", "automatic"),
        Window("3 rollbacks a day", 3, DAY_S, "rollback_generation"),
        Window("3 rollbacks in 7 days", 3, WEEK_S, "rollback_generation"),
        Window("1 collection in 6 hours", 1, 6 * HOUR_S, "clean_nix_store"),
        Window("3 kills an hour", 3, HOUR_S, "kill_process"),
    )

    @property
    def windows(self) -> tuple[Window, ...]:
        return (Window("hourly limit", self.heals_per_hour, HOUR_S), *self.others)

    @property
    def memory_s(self) -> float:
        """How far back an act can matter."""
        return max(WEEK_S, *(window.seconds for window in self.windows))


@dataclass(frozen=True, slots=True)
class Denial:
    """Which rule says no, why, and in how many seconds it will say yes (infinite: a person must)."""

    rule: str
    reason: str
    lifts_in_s: float

    @property
    def lifts(self) -> str:
        return "when a person resets it" if self.lifts_in_s == float("inf") else f"in {self.lifts_in_s:.0f} s"


@dataclass(frozen=True, slots=True)
class Request:
    """An act that is asked for."""

    target: str
    action: str
    incident: str
    cause: str
    automatic: bool = True


def check(acts: Sequence[Act], limits: Limits, request: Request, now: float) -> list[Denial]:
    """Every rule that forbids the act now; empty when it may start."""
    if not acts and limits.heals_per_hour and all(window.count for window in limits.others):
        return []
    found = [*_windows(acts, limits, request, now), _cooldown(acts, limits, request, now)]
    others = [act for act in acts if act.incident != request.incident]
    found.append(breaker(others, limits, request.cause, now))
    return [denial for denial in found if denial is not None]


def _windows(acts: Sequence[Act], limits: Limits, request: Request, now: float) -> Iterable[Denial]:
    for window in limits.windows:
        times = sorted(
            act.started
            for act in acts
            if now - act.started < window.seconds
            and window.covers(act, request.action, request.target, automatic=request.automatic)
        )
        applies = not window.action or window.action == request.action
        if applies and len(times) >= window.count:
            lifts = times[-window.count] + window.seconds - now if window.count else window.seconds
            yield Denial(window.name, f"{len(times)} in the last {_span(window.seconds)}, at most "
                         f"{window.count} are allowed", lifts)  # fmt: skip


def _span(seconds: float) -> str:
    for unit, name in ((DAY_S, "days"), (HOUR_S, "hours"), (MINUTE_S, "minutes")):
        if seconds >= 2 * unit or (seconds == unit and unit != MINUTE_S):
            return f"{seconds / unit:g} {name}" if seconds > unit else name[:-1]
    return f"{seconds:g} seconds"


def cooldown_after(acts: Sequence[Act], limits: Limits, target: str) -> tuple[float, float]:
    """(when the last act on the target ended, how long it rests after that).

    Doubled with every incident that came soon after the one before, at most 6 h, and up to a tenth longer,
    so that several hosts with one fault do not act in step. Source of the figures: invariant I-2.
    """
    ended, streak, last_incident, jitter = float("-inf"), 0, "", 0.0
    for act in sorted((act for act in acts if act.target == target), key=lambda act: act.started):
        if act.started - ended >= _rest(limits, streak) + _HEALTHY_S:
            streak = 0
        if act.incident != last_incident:
            streak += 1
        last_incident = act.incident
        ended = max(ended, act.started if act.ended is None else act.ended)
        jitter = (zlib.crc32(act.incident.encode()) % 1000) / 1000 * _JITTER
    return ended, _rest(limits, streak) * (1 + jitter)


def _rest(limits: Limits, streak: int) -> float:
    return min(limits.cooldown_s * 2.0 ** max(0, min(streak, 32) - 1), max(_COOLDOWN_CEILING_S, limits.cooldown_s))


def _cooldown(acts: Sequence[Act], limits: Limits, request: Request, now: float) -> Denial | None:
    """A further rung of the same incident waits for the rung below, not for the cooldown."""
    past = [act for act in acts if act.target == request.target]
    if not past or max(past, key=lambda act: act.started).incident == request.incident:
        return None
    ended, rest = cooldown_after(past, limits, request.target)
    if now - ended >= rest:
        return None
    return Denial("cooldown", f"the last act on {request.target} ended {now - ended:.0f} s ago, at least "
                  f"{rest:.0f} s must pass", ended + rest - now)  # fmt: skip


def breaker(acts: Sequence[Act], limits: Limits, cause: str, now: float) -> Denial | None:
    """Open for an hour after two incidents of one cause in a row without verified effect; after three openings
    in 24 h until a person resets it. Slow loops trip it, too: only the order counts, not the pace (I-3)."""
    opened: list[float] = []
    misses = 0
    for effective, ended in _incidents(acts, cause):
        misses = 0 if effective else misses + 1
        if misses >= 2:
            opened.append(ended)
            misses = 1  # half open: one more miss opens it again
        if effective:
            opened.clear()
    recent = [at for at in opened if now - at < DAY_S]
    if len(recent) >= 3:
        return Denial("breaker", f"{len(recent)} times open in 24 h for {cause}: a person is needed", float("inf"))
    if opened and now - opened[-1] < limits.breaker_s:
        return Denial("breaker", f"two heals of {cause} in a row had no verified effect",
                      opened[-1] + limits.breaker_s - now)  # fmt: skip
    return None


def _incidents(acts: Sequence[Act], cause: str) -> list[tuple[bool, float]]:
    """(whether any rung was verified, when the last one ended) of each incident of the cause, in order."""
    found: dict[str, tuple[bool, float]] = {}
    for act in sorted((act for act in acts if act.cause == cause), key=lambda act: act.started):
        before = found.pop(act.incident, (False, act.started))
        found[act.incident] = (before[0] or bool(act.effective), act.started if act.ended is None else act.ended)
    return list(found.values())
