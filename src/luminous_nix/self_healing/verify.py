"""Look again: has the reading that showed the trouble recovered? What cannot be seen is neither yes nor no."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from .models import Issue, IssueType, ObservationError, Status, Verdict, unit_name
from .observe.detector import SimpleDetector, measure

_SETTLE_S: Final = 0.4  # a unit that is active must stay so, in the same invocation, this long


@dataclass(frozen=True, slots=True)
class Look:
    """What the reading says now: `status`, in words, and whether waiting longer can no longer change it."""

    status: Status
    said: str
    final: bool = False
    invocation: str = ""


async def look_at(detector: SimpleDetector, issue: Issue) -> Look:
    """The issue's reading as it is now."""
    try:
        if issue.type is IssueType.SERVICE:
            return await _look_at_unit(detector, unit_name(issue.component))
    except ObservationError as error:
        return Look(Status.UNKNOWN, f"{issue.component} cannot be observed: {error.message}")
    value = measure(await detector.observe(), issue)
    if value is None:
        return Look(Status.UNKNOWN, f"{issue.component} cannot be observed")
    limit = detector.threshold_for(issue)
    said = f"{issue.component} is at {value:.1f}, the threshold is {limit:g}"
    return Look(Status.OK if value < limit else Status.ISSUE, said)


async def _look_at_unit(detector: SimpleDetector, name: str) -> Look:
    unit = await detector.units.unit(name)
    said = f"{name} is {unit.active} ({unit.sub})"
    done = unit.kind == "oneshot" and unit.active == "inactive" and unit.result == "success"
    if unit.active in {"active", "reloading"} or done:
        return Look(Status.OK, said, invocation=unit.invocation)
    over = unit.active in {"failed", "inactive"} and not unit.job
    return Look(Status.ISSUE, f"{said}: {unit.result}" if over else said, over)


async def verify(
    detector: SimpleDetector,
    issue: Issue,
    deadline_s: float,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> tuple[Verdict, str]:
    """Look until the reading recovered and stays so, or `deadline_s` have passed since the act.

    NO_EFFECT when it is still there, FAILED when a unit is down for good or nothing can be seen.
    """
    deadline = clock() + deadline_s
    settled_from, invocation, pause = 0.0, "", 0.02
    while True:
        look, now = await look_at(detector, issue), clock()
        if look.status is Status.OK:
            if not settled_from or look.invocation != invocation:
                settled_from, invocation = now, look.invocation
            if now - settled_from >= (_SETTLE_S if look.invocation else 0.0):
                return Verdict.HEALED, look.said
        else:
            settled_from = 0.0
        if look.final:
            return Verdict.FAILED, look.said
        if now >= deadline:
            verdict = Verdict.NO_EFFECT if look.status is Status.ISSUE else Verdict.FAILED
            return verdict, f"no recovery within {deadline_s:.0f} s: {look.said}"
        await sleep(pause)
        pause = min(pause * 1.5, 0.1 if issue.type is IssueType.SERVICE else 1.0)
