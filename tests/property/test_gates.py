"""Whatever is asked of whatever is known: the two ways to ask the gates agree, and a limit says the truth."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from luminous_nix.self_healing.decide.actions import CATALOGUE
from luminous_nix.self_healing.decide.gates import Facts, Gate, Question, first_refusal, gates
from luminous_nix.self_healing.decide.incidents import Incident
from luminous_nix.self_healing.decide.limits import Act, Limits, Request
from luminous_nix.self_healing.decide.policy import Mode, Policy, Rule, Silence
from luminous_nix.self_healing.models import HostState, Issue, IssueType, Severity

NOW = 1_000_000.0
_TIMES = st.floats(0.0, 1000.0)
_COMPONENTS = st.sampled_from(["memory", "disk", "nginx", "sshd", "system"])
_ISSUES = st.builds(
    Issue, st.sampled_from(IssueType), st.sampled_from(Severity), st.just("trouble"), _COMPONENTS,
    kind=st.sampled_from(["", "shared_cause"]), affected_components=st.sampled_from([(), ("nginx", "sshd")]),
)  # fmt: skip


@st.composite
def incidents(draw: st.DrawFn, issue: Issue) -> Incident | None:
    if draw(st.booleans()):
        return None
    incident = Incident(issue, NOW - draw(_TIMES))
    incident.seen.extend(draw(st.lists(st.sampled_from([True, False, None]), max_size=5)))
    incident.values.extend(draw(st.lists(st.floats(0.0, 100.0), max_size=2)))
    incident.flips.extend(NOW - ago for ago in draw(st.lists(_TIMES, max_size=4)))
    return incident


_ARGUMENTS: list[dict[str, Any]] = [{}, {"service": "nginx.service"}, {"unit": "sshd.service"}, {"running": True}]


@st.composite
def questions(draw: st.DrawFn) -> Question:
    issue, spec = draw(_ISSUES), CATALOGUE[draw(st.sampled_from(sorted(CATALOGUE)))]
    arguments = draw(st.sampled_from(_ARGUMENTS))
    request = Request("memory", spec.name, "climb", issue.subject(), draw(st.booleans()))
    return Question(issue, spec, arguments, request, draw(incidents(issue)), draw(st.booleans()))


_ACTS = st.builds(
    lambda ago, took, target, action, incident, effective, harm: Act(
        target, action, incident, "resource/memory", NOW - ago, NOW - ago + took, effective, harm=harm),
    st.floats(0.0, 90_000.0), st.floats(0.0, 60.0), st.sampled_from(["memory", "disk"]),
    st.sampled_from(["clear_system_cache", "clean_nix_store"]), st.sampled_from(["a", "b", "c", "climb"]),
    st.sampled_from([True, False, None]), st.booleans(),
)  # fmt: skip
_FACTS = st.builds(
    Facts, st.just(NOW), st.builds(Limits, st.integers(1, 10)),
    st.builds(Policy, st.sampled_from(Mode), st.lists(st.builds(Rule, st.sampled_from(Mode)), max_size=1).map(tuple)),
    acts=st.lists(_ACTS, max_size=6), latches=st.sampled_from([frozenset(), frozenset({"resource/memory"})]),
    fault=st.sampled_from(["", "", "", "gone"]), remedy=st.just("a person"),
    stopped=st.sampled_from(["", "", "", "paused"]),
    host=st.sampled_from([HostState(), HostState("x", "busy"), HostState("x", unknown="no bus")]),
    since_boot_s=_TIMES, since_resume_s=_TIMES, look_age_s=_TIMES, look_limit_s=_TIMES,
    values=st.dictionaries(st.sampled_from(["pressure:io:full", "pressure:memory:full"]), st.floats(0.0, 100.0)),
    issues=st.lists(_ISSUES, max_size=3), health=st.integers(0, 100),
    silences=st.lists(st.builds(Silence, st.just("ab12"), st.sampled_from(["*", "nginx", "x"]),
                                st.floats(NOW - 9.0, NOW + 9.0)), max_size=1),
    maintenance=st.sampled_from(["", "", "sun 02:00-04:00"]),
)  # fmt: skip


@given(questions(), _FACTS)
def test_both_ways_to_ask_the_gates_give_one_answer(question: Question, facts: Facts) -> None:
    shut = [gate for gate in gates(question, facts) if not gate.passed]
    assert first_refusal(question, facts) == (shut[0] if shut else None)
    assert all(gate.said and gate.lifts for gate in shut)


@given(questions(), _FACTS)
def test_a_person_is_never_refused_what_the_engine_may(question: Question, facts: Facts) -> None:
    asked = replace(question, request=replace(question.request, automatic=False))
    by_itself = replace(question, request=replace(question.request, automatic=True))
    shut = {gate.rule for gate in gates(by_itself, facts) if not gate.passed}
    assert {gate.rule for gate in gates(asked, facts) if not gate.passed} <= shut


def _shut(question: Question, facts: Facts) -> dict[str, Gate]:
    return {gate.rule: gate for gate in gates(question, facts) if not gate.passed}


@given(questions(), _FACTS)
def test_a_persons_word_opens_the_policy_and_no_other_gate(question: Question, facts: Facts) -> None:
    with_it = _shut(replace(question, confirmed=True), facts)
    without = _shut(replace(question, confirmed=False), facts)
    assert without == with_it | ({"policy": without["policy"]} if "policy" in without else {})
