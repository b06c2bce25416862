"""Look again: has the reading that showed the trouble recovered, and did anything else suffer? What cannot be seen is
neither yes nor no."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

from ..decide.actions import Spec
from ..decide.judge import MEASURED_KINDS, measure, sensor_of
from ..models import Issue, IssueType, ObservationError, Snapshot, Status, Verdict, unit_name
from ..observe.detector import SimpleDetector

# How long it must stay recovered: a unit in one invocation; a level over several looks, since one sample of
# the CPU says little.
_SETTLE_S: Final = {IssueType.SERVICE: 0.4, IssueType.RESOURCE: 1.5, IssueType.SYSTEM: 1.5}
_PRESSURE_RISE: Final = 20.0  # percentage points of the last minute
_HURT_EVERY_S: Final = 1.0  # while it is waited for the effect
_TELLING_S: Final = 120.0  # so long at most between two looks that tell of one act
_DOWN: Final = frozenset({"failed"})


@dataclass(frozen=True, slots=True)
class Look:
    """What the reading says now: `status`, in words, and whether waiting longer can no longer change it."""

    status: Status
    said: str
    final: bool = False
    invocation: str = ""
    starting: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was measured after an act: the verdict, why, and the reading itself."""

    verdict: Verdict
    said: str
    after: str = ""
    harm: str = ""


async def look_at(detector: SimpleDetector, issue: Issue) -> Look:
    """The issue's reading as it is now."""
    try:
        if issue.type is IssueType.SERVICE:
            return await _look_at_unit(detector, unit_name(issue.component))
    except ObservationError as error:
        return Look(Status.UNKNOWN, f"{issue.component} cannot be observed: {error.message}")
    if issue.type is IssueType.SYSTEM:
        return await _look_at_system(detector, issue)
    value = measure(await detector.observe(only=sensor_of(issue)), issue)
    if value is None:
        return Look(Status.UNKNOWN, f"{issue.component} cannot be observed")
    limit = detector.threshold_for(issue)
    said = f"{issue.component} is at {value:.1f}, the threshold is {limit:g}"
    return Look(Status.OK if value < limit else Status.ISSUE, said)


def measurable(issue: Issue) -> bool:
    """Whether a look can show that it is over. A SYSTEM issue that somebody else made has no reading."""
    return issue.type is not IssueType.SYSTEM or issue.kind in MEASURED_KINDS


async def _look_at_system(detector: SimpleDetector, issue: Issue) -> Look:
    if not measurable(issue):
        return Look(Status.UNKNOWN, f"{issue.component} cannot be observed: no reading shows this")
    found = detector.find(await detector.observe())
    shown = any(one.fingerprint() == issue.fingerprint() for one in found)
    return Look(Status.ISSUE if shown else Status.OK, issue.description if shown else f"{issue.component} is well")


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
    hurts: Callable[[], Awaitable[str]] | None = None,
) -> Outcome:
    """Look until the reading recovered and stays so, or the action's deadline has passed since the act. What
    `hurts` says of anything else ends it at once: WORSE.

    A unit that is still starting has until the action's timeout. NO_EFFECT when the trouble is still there,
    FAILED when a unit is down for good or nothing can be seen.
    """
    began = clock()
    settle = _SETTLE_S[issue.type]
    settled_from: float | None = None
    invocation, pause, asked = "", 0.02, began
    while True:
        look, now = await look_at(detector, issue), clock()
        if hurts is not None and now - asked >= _HURT_EVERY_S:
            asked = now
            if hurt := await hurts():
                return Outcome(Verdict.WORSE, f"{look.said}; {hurt}", look.said, hurt)
        if look.status is Status.OK:
            if settled_from is None or look.invocation != invocation:
                settled_from, invocation = now, look.invocation
            if now - settled_from >= settle:
                return Outcome(Verdict.HEALED, look.said, look.said)
        else:
            settled_from = None
        if look.final:
            return Outcome(Verdict.FAILED, look.said, look.said)
        deadline_s = max(spec.deadline_s, spec.timeout_s) if look.starting else spec.deadline_s
        # What just recovered may still settle; what comes and goes until then did not recover.
        if now - began >= deadline_s + (settle if look.status is Status.OK else 0.0):
            verdict = Verdict.FAILED if look.status is Status.UNKNOWN else Verdict.NO_EFFECT
            return Outcome(verdict, f"no recovery within {deadline_s:.0f} s: {look.said}", look.said)
        await sleep(pause)
        pause = min(pause * 1.5, 0.1 if issue.type is IssueType.SERVICE else 0.5)


def harm(before: Snapshot, after: Snapshot, target: str, took_s: float = 0.0) -> str:
    """What got worse between two looks, apart from the target itself; empty when nothing did. [pure]

    Other units that failed since, and pressure (all tasks waiting) that rose by 20 points of the last minute.
    What failed within minutes of a long act need not be its doing, and is not held against it.
    """
    if took_s > _TELLING_S:
        return ""
    down = {unit.name for unit in before.units if unit.active in _DOWN}
    fresh = sorted(
        unit.name for unit in after.units if unit.active in _DOWN and unit.name not in down and unit.name != target
    )
    found = [f"{', '.join(fresh)} failed since"] if fresh else []
    for name, value in after.values.items():
        if name.startswith("pressure:") and name.endswith(":full"):
            was = before.values.get(name)
            if was is not None and value - was > _PRESSURE_RISE:
                found.append(f"{name} rose from {was:.0f} to {value:.0f} %")
    return "; ".join(found)
