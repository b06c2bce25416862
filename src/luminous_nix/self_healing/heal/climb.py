"""A ladder, rung by rung: gates, a look, the attempt; a question to a person where only a word is missing."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from ..decide.actions import Risk
from ..decide.gates import ASKS, LADDER, Facts, Gate, Question, first_refusal, gates, not_reached, regret
from ..decide.policy import Policy
from ..models import Action, ActionRefused, HostState, Issue, Snapshot, Status, Verdict
from ..observe.detector import SimpleDetector
from ..store import Store
from .attempt import with_hint
from .records import HealingRecord, Rung, described
from .verify import look_at, measurable

_END: Final = frozenset({Verdict.HEALED, Verdict.FAILED, Verdict.WORSE})  # what a climb ends with


@dataclass(frozen=True, slots=True)
class Ask:
    """Who wants it: the engine itself, a person, or a person who confirmed what a record asked for."""

    automatic: bool
    confirmed: Action | None = None
    record: HealingRecord | None = None


class Ground(Protocol):
    """What a climb stands on: the engine."""

    dry_run: bool
    store: Store
    policy: Policy
    detector: SimpleDetector

    def host_state(self) -> Awaitable[HostState]: ...

    async def refresh(self) -> tuple[Snapshot, list[Issue]]: ...

    def question(self, issue: Issue, rung: Action, ask: Ask, incident: str) -> Question: ...

    def facts(self, host: HostState) -> Facts: ...

    async def take(
        self, story: HealingRecord, question: Question, facts: Facts, before: str
    ) -> tuple[Rung, Verdict]: ...


async def climb(
    on: Ground, story: HealingRecord, rungs: tuple[Action, ...], ask: Ask, host: HostState
) -> HealingRecord:
    """Rung by rung, a further one only after the one below was measured to have no effect or cannot help here.
    What a gate holds back is not skipped for something more regrettable."""
    issue, taken = story.issue, len(story.taken)
    verdict = Verdict(next((rung.verdict for rung in reversed(story.rungs) if rung.taken), Verdict.REFUSED))
    reached, held = len(Risk), False
    for rung in rungs:
        if on.dry_run:  # switched on since the rung below
            story = story.with_rung(Rung(rung.name, rung.parameters, said="a dry run was asked for meanwhile"))
            break
        if len(story.taken) > taken:  # the host is another by now
            await on.refresh()
            host, taken = await on.host_state(), len(story.taken)
        try:
            question = on.question(issue, rung, ask, story.id)
        except ActionRefused as error:
            gate = Gate("catalogue", False, with_hint(error.message, error.hint))
            story = story.with_rung(Rung(rung.name, rung.parameters, gates=(gate,)))
            continue
        facts = on.facts(host)
        if shut := not_reached(question, reached) or first_refusal(question, facts):
            story = story.with_rung(described(question, _told(question, facts, shut)))
            story = story if held else _asking(on, story, question, shut)
            reached, held = min(reached, regret(question.spec)), held or shut.lifts != ASKS
            continue
        before = await look_at(on.detector, issue)
        if before.status is not Status.ISSUE:
            over = before.status is Status.OK
            verdict = Verdict.RECOVERED_BY_ITSELF if over and verdict is Verdict.REFUSED else verdict
            said = before.said if over else f"{before.said}; nothing is done on what cannot be seen"
            story = story.with_rung(replace(described(question), said=said))
            break
        done, measured = await on.take(story, question, facts, before.said)
        story = story.with_rung(done)
        verdict = measured if done.taken else verdict
        if done.held:
            reached, held = min(reached, regret(question.spec)), True
        if measured in _END:
            break
    return replace(story, verdict=verdict.value)


def _told(question: Question, facts: Facts, shut: Gate) -> tuple[Gate, ...]:
    """Every gate's answer, when another one is shut than at the look before; else the record has them already."""
    incident = question.incident
    key = f"{shut.rule} {shut.lifts == ASKS}"
    if shut.rule == LADDER or (incident is not None and incident.shut.get(question.spec.name) == key):
        return (shut,)
    if incident is not None:
        incident.shut[question.spec.name] = key
    return gates(question, facts)


def _asking(on: Ground, story: HealingRecord, question: Question, shut: Gate) -> HealingRecord:
    """The first rung that only a person's word is missing for, where its effect could be measured. A question
    that waits already is not asked again."""
    incident, now = question.incident, on.store.now()
    if shut.lifts != ASKS or story.asks is not None or not measurable(story.issue):
        return story
    until = now + on.policy.confirm_s
    if incident is not None and incident.asked is not None and now < incident.asked[1]:
        if incident.asked[0] != story.id:
            return replace(story, notes=(*story.notes, f"`luminous-healing confirm {incident.asked[0]}` waits"))
        until = incident.asked[1]
    return replace(story, asks=Action(question.spec.name, question.arguments), asks_until=until)
