"""Look again: has the reading that showed the trouble recovered? What cannot be seen is neither yes nor no."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from .decide.actions import Spec
from .models import Issue, IssueType, ObservationError, Status, Verdict, unit_name
from .observe.detector import SimpleDetector, measure

# How long it must stay recovered: a unit in one invocation; a level over several looks, since one sample of
# the CPU says little.
_SETTLE_S: Final = {IssueType.SERVICE: 0.4, IssueType.RESOURCE: 1.5, IssueType.SYSTEM: 1.5}


@dataclass(frozen=True, slots=True)
class Look:
    """What the reading says now: `status`, in words, and whether waiting longer can no longer change it."""

    status: Status
    said: str
    final: bool = False
    invocation: str = ""
    starting: bool = False


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
    said = f"{said}: {unit.result}" if over else said
    return Look(Status.ISSUE, said, over, starting=unit.active == "activating" and bool(unit.job))


async def verify(
    detector: SimpleDetector,
    issue: Issue,
    spec: Spec,
    *,
    clock: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> tuple[Verdict, str]:
    """Look until the reading recovered and stays so, or the action's deadline has passed since the act.

    A unit that is still starting has until the action's timeout. NO_EFFECT when the trouble is still there,
    FAILED when a unit is down for good or nothing can be seen.
    """
    began = clock()
    settle = _SETTLE_S[issue.type]
    settled_from: float | None = None
    invocation, pause = "", 0.02
    while True:
        look, now = await look_at(detector, issue), clock()
        if look.status is Status.OK:
            if settled_from is None or look.invocation != invocation:
                settled_from, invocation = now, look.invocation
            if now - settled_from >= settle:
                return Verdict.HEALED, look.said
        else:
            settled_from = None
        if look.final:
            return Verdict.FAILED, look.said
        deadline_s = max(spec.deadline_s, spec.timeout_s) if look.starting else spec.deadline_s
        # What just recovered may still settle; what comes and goes until then did not recover.
        if now - began >= deadline_s + (settle if look.status is Status.OK else 0.0):
            verdict = Verdict.FAILED if look.status is Status.UNKNOWN else Verdict.NO_EFFECT
            return verdict, f"no recovery within {deadline_s:.0f} s: {look.said}"
        await sleep(pause)
        pause = min(pause * 1.5, 0.1 if issue.type is IssueType.SERVICE else 0.5)
