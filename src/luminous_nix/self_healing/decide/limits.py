"""How often acts may happen. [pure: the past and the time are arguments]

Times are seconds of the ledger's own clock (store.py), which never goes back and which no jump of the wall
clock touches. Every limit is computed from the acts themselves, so that whoever keeps the acts keeps the limits.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
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

    `incident` is one climb of a ladder; `cause` the fingerprint of the issue; `effective` whether the effect was
    verified, None while unknown.
    """

    target: str
    action: str
    incident: str
    cause: str
    started: float
    ended: float | None = None
    effective: bool | None = None
    automatic: bool = True
    harm: bool = False  # something else got worse
    relapsed: float | None = None  # when its cause was first seen again after it


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
    lasting_s: float = HOUR_S  # an effect that held so long has lasted
    others: tuple[Window, ...] = (
        Window("10 operations in 5 minutes", 10, 5 * MINUTE_S),
        Window("3 acts an hour on one target", 3, HOUR_S, scope="target"),
        Window("1 automatic rollback in 24 hours", 1, DAY_S, "rollback_generation", "automatic"),
        Window("3 rollbacks a day", 3, DAY_S, "rollback_generation"),
        Window("3 rollbacks in 7 days", 3, WEEK_S, "rollback_generation"),
        Window("1 collection in 6 hours", 1, 6 * HOUR_S, "clean_nix_store"),
        Window("3 kills an hour", 3, HOUR_S, "kill_process"),
        Window("1 rerun of a job in 24 hours", 1, DAY_S, "rerun_timer", "target"),
    )

    windows: tuple[Window, ...] = field(init=False, repr=False, compare=False)  # all of them

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", (Window("hourly limit", self.heals_per_hour, HOUR_S), *self.others))

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
    lifted_by: str = "when a person resets it"  # where no time lifts it

    @property
    def name_and_reason(self) -> str:
        return f"{self.rule}: {self.reason}"

    @property
    def lifts(self) -> str:
        return self.lifted_by if self.lifts_in_s == float("inf") else f"in {self.lifts_in_s:.0f} s"


@dataclass(frozen=True, slots=True)
class Request:
    """An act that is asked for."""

    target: str
    action: str
    incident: str
    cause: str
    automatic: bool = True


def check(
    acts: Sequence[Act], limits: Limits, request: Request, now: float, reset: float = float("-inf")
) -> list[Denial]:
    """Every rule that forbids the act now; empty when it may start."""
    others = [act for act in acts if act.incident != request.incident]
    found = (*_windows(acts, limits, request, now), cooldown(acts, limits, request, now),
             breaker(others, limits, request.cause, now, reset))  # fmt: skip
    return [denial for denial in found if denial is not None]


def windows(acts: Sequence[Act], limits: Limits, request: Request, now: float) -> Denial | None:
    """The sliding window that is full and takes longest to let something through."""
    return max(_windows(acts, limits, request, now), key=lambda denial: denial.lifts_in_s, default=None)


def _windows(acts: Sequence[Act], limits: Limits, request: Request, now: float) -> Iterable[Denial]:
    for window in limits.windows:
        if window.action and window.action != request.action:
            continue
        times = _inside(acts, window, request, now) if acts else []
        if len(times) >= window.count:
            lifts = times[-window.count] + window.seconds - now if window.count else float("inf")
            yield Denial(window.name, f"{len(times)} in the last {_span(window.seconds)}, at most "
                         f"{window.count} are allowed", lifts, "when the limit is raised")  # fmt: skip


def _inside(acts: Sequence[Act], window: Window, request: Request, now: float) -> list[float]:
    """When the acts started that count in the window against this one."""
    return sorted(
        act.started
        for act in acts
        if now - act.started < window.seconds
        and window.covers(act, request.action, request.target, automatic=request.automatic)
    )


def used(acts: Sequence[Act], limits: Limits, request: Request, now: float) -> str:
    """How much of each window that applies is used, in words."""
    return ", ".join(
        f"{window.name}: {len(_inside(acts, window, request, now))} of {window.count}"
        for window in limits.windows
        if window.action in {"", request.action}
    )


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


def cooldown(acts: Sequence[Act], limits: Limits, request: Request, now: float) -> Denial | None:
    """Rest after an act on the same target. A further rung of the same climb need not wait: the one below was
    measured, and the same one is not taken twice."""
    past = [act for act in acts if act.target == request.target]
    if not past:
        return None
    climbed = [act.action for act in past if act.incident == request.incident]
    latest = max(past, key=lambda act: act.started)
    if latest.incident == request.incident and request.action not in climbed:
        return None
    ended, rest = cooldown_after(past, limits, request.target)
    if now - ended >= rest:
        return None
    return Denial("cooldown", f"the last act on {request.target} ended {now - ended:.0f} s ago, at least "
                  f"{rest:.0f} s must pass", ended + rest - now)  # fmt: skip


def breaker(
    acts: Sequence[Act], limits: Limits, cause: str, now: float, reset: float = float("-inf"), *,
    present: bool = True,
) -> Denial | None:  # fmt: skip
    """Open for an hour after two incidents of one cause in a row without a verified effect that lasted, or after
    one that did harm; once three openings fell within 24 h, until a person resets it (I-3).

    An effect lasted when the cause was not seen again within an hour: so a slow loop, which mends the same thing
    again and again, trips it too. `reset` is when a person reset it last; `present` whether the cause is there
    now.
    """
    if not acts:
        return None
    opened: list[float] = []
    misses, open_at = 0, float("-inf")
    for good, harm, ended in _outcomes(acts, limits, cause, now if present else float("inf"), reset):
        misses = 0 if good else misses + 1
        open_at = float("-inf") if good else open_at
        if misses >= 2 or harm:
            opened.append(ended)
            misses, open_at = 1, max(open_at, ended)  # half open: one more miss opens it again
    if any(third - first < DAY_S for first, third in zip(opened, opened[2:], strict=False)):
        return Denial("breaker", f"three times open in 24 h for {cause}: a person is needed", float("inf"))
    if now - open_at < limits.breaker_s:
        return Denial("breaker", f"the last heals of {cause} had no effect that lasted, or did harm",
                      open_at + limits.breaker_s - now)  # fmt: skip
    return None


def _outcomes(
    acts: Sequence[Act], limits: Limits, cause: str, now: float, reset: float
) -> Iterable[tuple[bool, bool, float]]:
    """(whether the effect was verified and lasted, whether it did harm, when it ended) of each incident, in order.

    One lasted until its cause was seen again; where nobody noted that, until the next one began, or `now`.
    """
    found: dict[str, list[Act]] = {}
    for act in sorted((act for act in acts if act.cause == cause), key=lambda act: act.started):
        found.setdefault(act.incident, []).append(act)
    incidents = list(found.values())
    for at, rungs in enumerate(incidents, 1):
        ended = max(act.started if act.ended is None else act.ended for act in rungs)
        if ended <= reset:
            continue
        seen = [act.relapsed for act in rungs if act.relapsed is not None]
        again = min(seen) if seen else incidents[at][0].started if at < len(incidents) else now
        good = any(act.effective for act in rungs) and again - ended > limits.lasting_s
        yield good, any(act.harm for act in rungs), ended
