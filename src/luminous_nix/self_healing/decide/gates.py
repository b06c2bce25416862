"""May this happen, now? A table of gates over frozen facts; each says its value, or why not and what lifts it. [pure]

A person's request passes the gates of haste (samples, graces, damping) and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ..models import HostState, Issue, IssueType, Severity
from .actions import Category, Risk, Spec, protected
from .incidents import Incident
from .judge import SHARED
from .limits import Act, Denial, Limits, Request, breaker, cooldown, used, windows
from .policy import Mode, Policy, Silence, covers


@dataclass(frozen=True, slots=True)
class Facts:
    """All that the gates know. Times are seconds of the ledger's clock."""

    now: float
    limits: Limits
    policy: Policy
    acts: Sequence[Act] = ()
    resets: Mapping[str, float] = field(default_factory=dict)
    latches: frozenset[str] = frozenset()
    fault: str = ""  # of the store
    remedy: str = ""  # what lifts it
    stopped: str = ""  # why nothing may act: kill switch, pause, healing switched off
    host: HostState = field(default_factory=HostState)
    since_boot_s: float = float("inf")
    since_resume_s: float = float("inf")
    look_age_s: float = 0.0
    look_limit_s: float = float("inf")
    values: Mapping[str, float] = field(default_factory=dict)
    issues: Sequence[Issue] = ()
    health: int = 100
    silences: Sequence[Silence] = ()
    maintenance: str = ""


@dataclass(frozen=True, slots=True)
class Question:
    """An act that is asked for: by the engine itself, by a person, or with a person's word."""

    issue: Issue
    spec: Spec
    arguments: Mapping[str, Any]
    request: Request
    incident: Incident | None = None
    confirmed: bool = False

    @property
    def unit(self) -> str:
        """The unit that is acted upon, or empty."""
        named = self.arguments.get("service") or self.arguments.get("unit")
        return str(named or "")


class Gate(NamedTuple):
    """One gate's answer: `said` is its value, or why not; `lifts` what would open it."""

    rule: str
    passed: bool
    said: str
    lifts: str = ""

    @property
    def told(self) -> str:
        return f"{self.rule}: {self.said}" + (f"; lifts {self.lifts}" if self.lifts else "")


class _No(NamedTuple):
    said: str
    lifts: str
    rule: str = ""


_Check = Callable[[Question, Facts], "_No | None"]
_Value = Callable[[Question, Facts], str]


class _Row(NamedTuple):
    rule: str
    check: _Check
    value: _Value
    haste: bool = False  # a person's request passes


def _store(_: Question, facts: Facts) -> _No | None:
    return _No(facts.fault, facts.remedy) if facts.fault else None


def _switch(_: Question, facts: Facts) -> _No | None:
    return _No(facts.stopped, "when that is lifted") if facts.stopped else None


def _severity(question: Question, _: Facts) -> _No | None:
    if question.issue.severity is Severity.LOW:
        return _No("watched only: its severity is LOW", "a higher severity")
    return None


def _protected(question: Question, _: Facts) -> _No | None:
    if question.unit and protected(question.unit):
        return _No(f"{question.unit} is never touched by any action", "nothing: look at it yourself")
    return None


def _mode(question: Question, facts: Facts) -> _No | None:
    mode, why = facts.policy.mode_of(question.spec, question.arguments, question.unit)
    if mode is Mode.AUTO or (mode is Mode.CONFIRM and question.confirmed):
        return None
    if mode is Mode.OBSERVE:
        return _No(f"{why}: observe, so nothing is done", "another mode in [policy]")
    return _No(f"it is {question.spec.risk.value} and asks a person first ({why})", ASKS)


def _mode_value(question: Question, facts: Facts) -> str:
    mode, why = facts.policy.mode_of(question.spec, question.arguments, question.unit)
    return f"{mode.value} ({why})" + (", confirmed" if question.confirmed else "")


def _silence(question: Question, facts: Facts) -> _No | None:
    if facts.maintenance:
        return _No(f"it is a maintenance window: {facts.maintenance}", "its end")
    if not facts.silences:
        return None
    component = question.issue.component
    names = {component, component.partition(":")[0], question.unit, question.request.target}
    for silence in facts.silences:
        left = silence.until - facts.now
        if left > 0 and any(covers(silence.pattern, name) for name in names):
            said = f"{silence.pattern} is silenced" + (f": {silence.reason}" if silence.reason else "")
            return _No(said, f"in {left:.0f} s, or `luminous-healing silence --end {silence.id}`")
    return None


def _host(question: Question, facts: Facts) -> _No | None:
    if facts.host.busy:
        return _No(facts.host.busy, "when that is over")
    if facts.host.unknown and question.spec.category is not Category.RESOURCE:
        return _No(f"the state of the system is not known: {facts.host.unknown}", "once systemd answers")
    return None


def _boot(_: Question, facts: Facts) -> _No | None:
    left = facts.policy.boot_grace_s - facts.since_boot_s
    return _No(f"the host came up {facts.since_boot_s:.0f} s ago", f"in {left:.0f} s") if left > 0 else None


def _resume(_: Question, facts: Facts) -> _No | None:
    left = facts.policy.resume_grace_s - facts.since_resume_s
    return _No(f"the host woke up {facts.since_resume_s:.0f} s ago", f"in {left:.0f} s") if left > 0 else None


def _resume_value(_: Question, facts: Facts) -> str:
    return "it did not sleep" if facts.since_resume_s == float("inf") else f"awake for {facts.since_resume_s:.0f} s"


def _fresh(_: Question, facts: Facts) -> _No | None:
    if facts.look_age_s > facts.look_limit_s:
        return _No(f"the reading is {facts.look_age_s:.0f} s old", "with the next look")
    return None


def _samples(question: Question, facts: Facts) -> _No | None:
    """A unit's state is a fact; a level must show in several looks (I-5)."""
    if question.issue.type is IssueType.SERVICE:
        return None
    seen = question.incident.confirming if question.incident else 0
    if seen < facts.policy.samples:
        return _No(f"{seen} of the last five looks show it, {facts.policy.samples} must", "with further looks")
    return None


def _samples_value(question: Question, _: Facts) -> str:
    if question.issue.type is IssueType.SERVICE:
        return "a unit's state is a fact"
    return f"{question.incident.confirming if question.incident else 0} of the last five looks show it"


def _recovering(question: Question, _: Facts) -> _No | None:
    incident = question.incident
    if question.issue.type is IssueType.RESOURCE and incident is not None and incident.recovering:
        before, now = incident.values
        return _No(f"it is recovering already: from {before:.1f} to {now:.1f}", "when it no longer falls")
    return None


def _flapping(question: Question, facts: Facts) -> _No | None:
    flips = question.incident.recent_flips(facts.now) if question.incident else 0
    if flips > facts.policy.flips:
        return _No(f"it came and went {flips} times in ten minutes", "after ten calm minutes")
    return None


def _flapping_value(question: Question, facts: Facts) -> str:
    flips = question.incident.recent_flips(facts.now) if question.incident else 0
    return f"{flips} change{'' if flips == 1 else 's'} in ten minutes"


def _blast(question: Question, facts: Facts) -> _No | None:
    if question.issue.type is not IssueType.SERVICE:
        return None
    for issue in facts.issues:
        if issue.kind == SHARED and question.issue.component in issue.affected_components:
            return _No(issue.description + ": look for what they share", "when fewer of them are down")
    return None


def _health(_: Question, facts: Facts) -> _No | None:
    floor = facts.policy.health_floor
    if facts.health < floor:
        return _No(f"health is {facts.health}, below {floor} nothing heals by itself", "a person")
    return None


_BUSY: Final = 20.0  # % of the last minute in which all tasks waited (I-22)
_HEAVY: Final = frozenset({"clean_nix_store", "optimize_store", "prune_generations", "rebuild_system"})


def _resources(question: Question, facts: Facts) -> _No | None:
    """What is MEDIUM, or heavy work, waits for pressure to ease. Worse issues go first by their order in a cycle;
    one without a remedy holds nothing back."""
    medium = question.issue.severity is Severity.MEDIUM
    if not (medium or question.spec.name in _HEAVY):
        return None
    for name in ("pressure:memory:full", "pressure:io:full") if medium else ("pressure:io:full",):
        if (stalled := facts.values.get(name, 0.0)) > _BUSY:
            return _No(f"{name} is {stalled:.0f} %", f"below {_BUSY:.0f} %")
    return None


def _from_limits(rule: Callable[[Question, Facts], Denial | None]) -> _Check:
    def check(question: Question, facts: Facts) -> _No | None:
        denial = rule(question, facts)
        return None if denial is None else _No(denial.reason, denial.lifts, denial.rule)

    return check


def _breaker(question: Question, facts: Facts) -> _No | None:
    cause = question.request.cause
    if cause in facts.latches:
        said = f"it was open three times in 24 h for {cause}: a person is needed"
        return _No(said, "`luminous-healing resume --breakers`, once you looked at it")
    others = [act for act in facts.acts if act.incident != question.request.incident]
    denial = breaker(others, facts.limits, cause, facts.now, facts.resets.get(cause, _NEVER))
    return None if denial is None else _No(denial.reason, denial.lifts, denial.rule)


def _words(text: str) -> _Value:
    return lambda _question, _facts: text


LADDER: Final = "ladder"
# What a further look may lift by itself: a refusal by these leaves no record.
PASSING: Final = frozenset({"samples", "recovering", "freshness", "boot grace", "resume grace", LADDER})
_NEVER: Final = float("-inf")
BY_REQUEST: Final = "passed: a person asked"
ASKS: Final = "`luminous-healing confirm ID`"

_GATES: Final[tuple[_Row, ...]] = (
    _Row("store", _store, _words("acts and records can be kept")),
    _Row("kill switch", _switch, _words("not set")),
    _Row("severity", _severity, lambda question, _: question.issue.severity.name.lower()),
    _Row("protected set", _protected,
         lambda question, _: f"{question.unit} is not in it" if question.unit else "no unit is touched"),
    _Row("policy", _mode, _mode_value),
    _Row("silence", _silence, _words("no silence and no maintenance window covers it")),
    _Row("update lock", _host, lambda _, facts: f"no switch in progress, the system is {facts.host.state}"),
    _Row("boot grace", _boot, lambda _, facts: f"up for {facts.since_boot_s:.0f} s", haste=True),
    _Row("resume grace", _resume, _resume_value, haste=True),
    _Row("freshness", _fresh, lambda _, facts: f"the reading is {facts.look_age_s:.0f} s old", haste=True),
    _Row("samples", _samples, _samples_value, haste=True),
    _Row("recovering", _recovering, _words("it is not recovering by itself"), haste=True),
    _Row("flapping", _flapping, _flapping_value, haste=True),
    _Row("blast radius", _blast, _words("no shared cause is known"), haste=True),
    _Row("health", _health, lambda _, facts: f"{facts.health} of 100", haste=True),
    _Row("resources", _resources, _words("enough to act"), haste=True),
    _Row("rate", _from_limits(lambda question, facts: windows(facts.acts, facts.limits, question.request, facts.now)),
         lambda question, facts: used(facts.acts, facts.limits, question.request, facts.now)),
    _Row("cooldown",
         _from_limits(lambda question, facts: cooldown(facts.acts, facts.limits, question.request, facts.now)),
         _words("over")),
    _Row("breaker", _breaker, _words("closed")),
)  # fmt: skip


_NOT_HASTE: Final = tuple(row for row in _GATES if not row.haste)


def gates(question: Question, facts: Facts) -> tuple[Gate, ...]:
    """Every gate with its value: the record's proof that it was asked."""
    found = []
    for row in _GATES:
        skipped = row.haste and not question.request.automatic
        no = None if skipped else row.check(question, facts)
        if no is not None:
            found.append(Gate(no.rule or row.rule, False, no.said, no.lifts))
        else:
            said = BY_REQUEST if skipped else row.value(question, facts)
            found.append(Gate(row.rule, True, said))
    return tuple(found)


def first_refusal(question: Question, facts: Facts) -> Gate | None:
    """The first gate that is shut; the same answer as in `gates`, without putting the open ones into words."""
    for row in _GATES if question.request.automatic else _NOT_HASTE:
        no = row.check(question, facts)
        if no is not None:
            return Gate(no.rule or row.rule, False, no.said, no.lifts)
    return None


_REGRET: Final = {Risk.REVERSIBLE: 0, Risk.DISRUPTIVE: 1, Risk.IRREVERSIBLE: 2}


def regret(spec: Spec) -> int:
    """The place of an action's risk in the ladder's order."""
    return _REGRET[spec.risk]


def not_reached(question: Question, reached: int) -> Gate | None:
    """What is more regrettable than a rung that a gate holds back is not tried in its place (I-12). `reached` is
    the order of the least regrettable rung that was held back."""
    if regret(question.spec) <= reached:
        return None
    return Gate(LADDER, False, "a gentler rung below it is held back, and not measured yet", "once that was measured")
