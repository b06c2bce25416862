"""One rung: keep the intent, act, measure, set back what did not help, keep the outcome."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final

from ..act.executor import SimpleExecutor
from ..decide.gates import Facts, Question, gates
from ..decide.incidents import Incidents
from ..decide.limits import Act, Limits, breaker
from ..models import Action, ActionRefused, ExecutionResult, Snapshot, Verdict
from ..observe.detector import SimpleDetector
from ..store import Store, StoreFault
from .records import HealingRecord, Rung, described
from .verify import Outcome, harm, verify

log = logging.getLogger(__name__)

_SET_BACK: Final = frozenset({Verdict.NO_EFFECT, Verdict.WORSE, Verdict.FAILED})


@dataclass(frozen=True, slots=True)
class Bench:
    """What an attempt works with."""

    store: Store
    detector: SimpleDetector
    executor: SimpleExecutor
    clock: Callable[[], float]
    sleep: Callable[[float], Awaitable[None]]


async def attempt(
    bench: Bench, story: HealingRecord, question: Question, facts: Facts, before: str
) -> tuple[Rung, Verdict]:
    """Take the rung; returns what to tell of it, and the verdict.

    The intent is kept when the precheck has passed, with the knobs that are about to be set: whatever ends us
    after that, the way back is known. Raises StoreFault when it cannot be kept: no record, no act.
    """
    under_way = _UnderWay(bench.store, story, question, facts, before)
    surroundings, began = await bench.detector.observe(), bench.clock()
    action = Action(question.request.action, question.arguments)
    if why := bench.executor.handler.powerless:
        return under_way.refused(why, ""), Verdict.REFUSED
    try:
        plan = await bench.executor.handler.prepare(action)
    except ActionRefused as error:
        return under_way.refused(error.message, error.hint, held=error.passing), Verdict.REFUSED
    under_way.begin(tuple((knob.name, knob.former, knob.ours) for knob in plan.knobs))
    try:
        answer = await bench.executor.execute(Action(action.name, {**action.parameters, **plan.settled}))
        under_way.rung = await _measured(bench, question, under_way.rung, answer, (surroundings, began))
    except asyncio.CancelledError:
        if under_way.rung.knobs:  # nobody will measure it any more, so it is not left behind
            under_way.rung = await _set_back(bench, under_way.rung)
        raise
    finally:
        under_way.end()
    latch(bench.store, facts.limits, question.request.cause)
    return under_way.rung, Verdict(under_way.rung.verdict)


class _UnderWay:
    """An act between its intent and its outcome."""

    def __init__(self, store: Store, story: HealingRecord, question: Question, facts: Facts, before: str) -> None:
        self._store = store
        self._story = story
        self._question = question
        self._facts = facts
        self._number: int | None = None
        described_ = described(question, gates(question, facts))
        self.rung = replace(described_, before=before, said="it was broken off", verdict=Verdict.FAILED.value)

    def refused(self, message: str, hint: str, *, held: bool = False) -> Rung:
        """By the precheck: nothing was touched, and nothing is written."""
        return replace(self.rung, said=with_hint(message, hint), verdict=Verdict.REFUSED.value, held=held)

    def begin(self, knobs: tuple[tuple[str, str, str], ...]) -> None:
        """Raises StoreFault."""
        request = self._question.request
        self.rung = replace(self.rung, taken=True, knobs=knobs)
        if self._question.incident is not None:
            self._question.incident.heal = ""  # this record is of an act: what comes after it has another
        act = Act(
            request.target,
            request.action,
            request.incident,
            request.cause,
            self._store.now(),
            automatic=request.automatic,
        )
        self._number = self._store.begin(act, self._story.with_rung(self.rung).document())

    def end(self) -> None:
        """Every document that is kept with an outcome has a verdict. Only a refusal gives the budget back."""
        if self._number is None:
            return
        verdict = Verdict(self.rung.verdict)
        document = replace(self._story.with_rung(self.rung), verdict=verdict.value).document()
        try:
            if verdict is Verdict.REFUSED:
                self._store.forget(self._number, document)
            else:
                self._store.end(self._number, ended=self._store.now(), effective=verdict is Verdict.HEALED,
                                harm=bool(self.rung.harm), document=document)  # fmt: skip
        except StoreFault as error:
            error.acted = True
            raise


def latch(store: Store, limits: Limits, cause: str) -> None:
    """Keep that a breaker needs a person, once it does. Raises StoreFault."""
    reset = store.resets.get(cause, float("-inf"))
    denial = breaker(store.acts(), limits, cause, store.now(), reset, present=False)
    if denial is not None and denial.lifts_in_s == float("inf") and cause not in store.latches:
        log.error("%s", denial.reason)
        store.latch(cause)


@dataclass(frozen=True, slots=True)
class Lasting:
    """A heal that was measured to have worked, until its deadline has passed: then the verdict is final."""

    story: HealingRecord
    ended: float

    @property
    def until(self) -> float:
        return self.ended + max(rung.deadline_s for rung in self.story.rungs if rung.taken)

    def over(self, store: Store, incidents: Incidents, limits: Limits) -> bool:
        """Whether a look has come after the deadline. A relapse that this look or one before it shows takes the
        verdict back. Raises nothing: a store that cannot be written is told elsewhere."""
        incident = incidents.get(self.story.issue.fingerprint())
        if store.fault or incident is None or not incident.open or incident.opened < self.ended:
            return store.now() >= self.until
        said = f"it did not last: it was there again {incident.opened - self.ended:.0f} s later"
        try:
            story = HealingRecord.parse(store.record(self.story.id) or self.story.document())
            story = replace(story, verdict=Verdict.NO_EFFECT.value, notes=(*story.notes, said))
            store.take_back(story.id, story.document())
            latch(store, limits, self.story.issue.subject())
        except StoreFault as error:
            log.warning("the verdict of %s could not be taken back: %s", self.story.id, error.message)
        return True


async def _measured(
    bench: Bench, question: Question, rung: Rung, answer: ExecutionResult, before: tuple[Snapshot, float]
) -> Rung:
    """What the readings say of the act, and of everything else; what did not help is not left behind. A call that
    failed may have worked all the same (no answer in time): the reading decides that, too."""
    said = with_hint(answer.error, answer.suggestion)
    surroundings, began = before
    target, detector = question.request.target, bench.detector

    async def hurts() -> str:
        return harm(surroundings, await detector.observe(), target, bench.clock() - began)

    if answer.refused:
        outcome = Outcome(Verdict.REFUSED, said)
    else:
        outcome = await verify(
            detector, question.issue, question.spec, clock=bench.clock, sleep=bench.sleep, hurts=hurts
        )
    if not (answer.success or answer.refused):
        healed = outcome.verdict is Verdict.HEALED
        outcome = replace(
            outcome, verdict=Verdict.HEALED if healed else Verdict.FAILED, said=f"{said}; {outcome.said}"
        )
    taken = outcome.verdict is not Verdict.REFUSED
    hurt = outcome.harm or (await hurts() if taken else "")
    verdict = Verdict.WORSE if hurt else outcome.verdict
    said = f"{outcome.said}; {hurt}" if hurt and not outcome.harm else outcome.said
    rung = replace(rung, taken=taken, said=said, after=outcome.after, harm=hurt, verdict=verdict.value,
                   knobs=rung.knobs if taken else ())  # fmt: skip
    return await _set_back(bench, rung) if rung.knobs and verdict in _SET_BACK else rung


def with_hint(message: str | None, hint: str | None) -> str:
    return f"{message} ({hint})" if hint else f"{message}"


async def _set_back(bench: Bench, rung: Rung) -> Rung:
    return replace(rung, undone=await set_back(bench.executor, rung.knobs))


async def set_back(executor: SimpleExecutor, knobs: tuple[tuple[str, str, str], ...]) -> str:
    """Set knobs back to their former values; says how that went."""
    answer = await executor.handler.restore(knobs)
    if answer.success or "nothing to set back" in str(answer.error):
        return "undone: the former values are back"
    return f"not undone: {answer.error}"
