"""Every gate alone: what shuts it and no other, what it says, what just passes. The laws are in tests/property."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from luminous_nix.self_healing.decide.actions import CATALOGUE, Risk
from luminous_nix.self_healing.decide.gates import (
    ASKS,
    LADDER,
    PASSING,
    Facts,
    Gate,
    Question,
    first_refusal,
    gates,
    not_reached,
    regret,
)
from luminous_nix.self_healing.decide.incidents import Incident
from luminous_nix.self_healing.decide.limits import Act, Denial, Limits, Request
from luminous_nix.self_healing.decide.policy import Maintenance, Mode, Policy, Rule, Silence
from luminous_nix.self_healing.models import HostState, Issue, IssueType, Severity

NOW = 100_000.0
HOUR = 3600.0


def level(component: str = "memory", severity: Severity = Severity.HIGH, **more: Any) -> Issue:
    return Issue(IssueType.RESOURCE, severity, f"{component} is high", component, 97.0, 85.0, **more)


def unit(name: str = "nginx") -> Issue:
    return Issue(IssueType.SERVICE, Severity.HIGH, f"{name} failed", name, 0.0, 1.0, kind="unit_failed")


def seen(issue: Issue, looks: int = 3, *, values: tuple[float, ...] = (), flips: tuple[float, ...] = ()) -> Incident:
    incident = Incident(issue, NOW - 60.0)
    incident.seen.extend([True] * looks)
    incident.values.extend(values)
    incident.flips.extend(flips)
    return incident


def ask(
    issue: Issue | None = None, action: str = "", arguments: dict[str, Any] | None = None, **more: Any
) -> Question:
    """What every gate lets through: a level that shows for long, and its gentlest remedy; a unit and its restart."""
    issue = issue or level()
    service = issue.type is IssueType.SERVICE
    action = action or ("restart_service" if service else "clear_system_cache")
    if arguments is None:
        arguments = {"service": f"{issue.component}.service"} if service else {}
    target = str(arguments.get("service") or arguments.get("unit") or issue.component)
    request = Request(target, action, "climb", issue.subject(), more.pop("automatic", True))
    more.setdefault("incident", seen(issue))
    return Question(issue, CATALOGUE[action], arguments, request, **more)


def aimed(question: Question, target: str) -> Question:
    return replace(question, request=replace(question.request, target=target))


def facts(**more: Any) -> Facts:
    return Facts(NOW, more.pop("limits", Limits()), more.pop("policy", Policy()), **more)


def past(
    ago: float, *, target: str = "memory", cause: str = "resource/memory", took: float = 1.0, **more: Any
) -> Act:
    incident = more.pop("incident", f"before-{ago:g}")
    action = more.pop("action", "clear_system_cache")
    return Act(target, action, incident, cause, NOW - ago, NOW - ago + took, more.pop("effective", True), **more)


@dataclass(frozen=True)
class Shut:
    """One thing that is different from what passes, and what the one gate that it shuts says."""

    rule: str
    said: str
    lifts: str
    question: Callable[[], Question] = ask
    facts: dict[str, Any] = field(default_factory=dict)
    haste: bool = False  # a person's request passes


LATEST = {"acts": [past(100.0)]}  # 100 s ago, and it took a second
TOGETHER = Issue(IssueType.SYSTEM, Severity.HIGH, "3 units went down together: a, b, nginx", "system",
                 kind="shared_cause", affected_components=("a", "b", "nginx"))  # fmt: skip
MEDIUM = level(severity=Severity.MEDIUM)
COLLECT = "clean_nix_store"

SHUT: dict[str, Shut] = {
    "the store is out of order": Shut(
        "store", "writing failed", "once it can be written again",
        facts={"fault": "writing failed", "remedy": "once it can be written again"}),
    "it is paused": Shut("kill switch", "paused: x", "when that is lifted", facts={"stopped": "paused: x"}),
    "a low severity is watched only": Shut(
        "severity", "watched only: its severity is LOW", "a higher severity",
        lambda: ask(level(severity=Severity.LOW))),
    "a protected service": Shut(
        "protected set", "sshd.service is never touched by any action", "nothing: look at it yourself",
        lambda: ask(unit("sshd"))),
    "a protected unit that is the culprit of a level": Shut(
        "protected set", "dbus.service is never touched by any action", "nothing: look at it yourself",
        lambda: ask(action="limit_unit", arguments={"unit": "dbus.service"})),
    "the mode is observe": Shut(
        "policy", "the policy's mode: observe, so nothing is done", "another mode in [policy]",
        facts={"policy": Policy(Mode.OBSERVE)}),
    "a rule says observe, and a person's word does not help": Shut(
        "policy", "rule 1 of the policy: observe, so nothing is done", "another mode in [policy]",
        lambda: ask(confirmed=True), {"policy": Policy(rules=(Rule(Mode.OBSERVE, action="clear_*"),))}),
    "the catalogue asks a person": Shut(
        "policy", "it is irreversible and asks a person first (the catalogue's default)", ASKS,
        lambda: ask(level("disk"), "clean_disk")),
    "an argument asks a person": Shut(
        "policy", "it is reversible and asks a person first (the catalogue's default)", ASKS,
        lambda: ask(arguments={"drop_caches": True})),
    "the mode is confirm": Shut(
        "policy", "it is reversible and asks a person first (the policy's mode)", ASKS,
        facts={"policy": Policy(Mode.CONFIRM)}),
    "the component is silenced": Shut(
        "silence", "mem* is silenced: a test runs", "in 90 s, or `luminous-healing silence --end ab12`",
        facts={"silences": [Silence("ab12", "mem*", NOW + 90.0, "a test runs")]}),
    "the unit is silenced": Shut(
        "silence", "nginx.service is silenced", "in 90 s, or `luminous-healing silence --end ab12`",
        lambda: ask(unit()), {"silences": [Silence("ab12", "nginx.service", NOW + 90.0)]}),
    "the unit of a level's culprit is silenced": Shut(
        "silence", "leaky is silenced", "in 1 s, or `luminous-healing silence --end ab12`",
        lambda: ask(action="limit_unit", arguments={"unit": "leaky.service"}),
        {"silences": [Silence("old", "leaky", NOW), Silence("ab12", "leaky", NOW + 1.0)]}),
    "a class of components is silenced, and this is one of it": Shut(
        "silence", "disk is silenced", "in 5 s, or `luminous-healing silence --end ab12`",
        lambda: ask(level("disk:/var"), "vacuum_journal"), {"silences": [Silence("ab12", "disk", NOW + 5.0)]}),
    "the target is silenced": Shut(
        "silence", "plugin:mend is silenced", "in 5 s, or `luminous-healing silence --end ab12`",
        lambda: aimed(ask(), "plugin:mend"), {"silences": [Silence("ab12", "plugin:mend", NOW + 5.0)]}),
    "a maintenance window": Shut(
        "silence", "it is a maintenance window: Sun 02:00-04:00", "its end",
        facts={"maintenance": "Sun 02:00-04:00"}),
    "a switch is in progress": Shut(
        "update lock", "a switch is in progress", "when that is over",
        facts={"host": HostState("switching", "a switch is in progress")}),
    "systemd does not answer, and a unit is to be touched": Shut(
        "update lock", "the state of the system is not known: no bus", "once systemd answers",
        lambda: ask(unit()), {"host": HostState("unknown", unknown="no bus")}),
    "just up": Shut(
        "boot grace", "the host came up 100 s ago", "in 200 s", facts={"since_boot_s": 100.0}, haste=True),
    "up for hardly five minutes": Shut(
        "boot grace", "the host came up 300 s ago", "in 0 s", facts={"since_boot_s": 299.6}, haste=True),
    "awake for hardly two minutes": Shut(
        "resume grace", "the host woke up 120 s ago", "in 0 s", facts={"since_resume_s": 119.6}, haste=True),
    "just awake": Shut(
        "resume grace", "the host woke up 50 s ago", "in 70 s", facts={"since_resume_s": 50.0}, haste=True),
    "an old reading": Shut(
        "freshness", "the reading is 121 s old", "with the next look",
        facts={"look_age_s": 121.0, "look_limit_s": 120.0}, haste=True),
    "a level in two looks": Shut(
        "samples", "2 of the last five looks show it, 3 must", "with further looks",
        lambda: ask(incident=seen(level(), 2)), haste=True),
    "a level that nobody looked at": Shut(
        "samples", "0 of the last five looks show it, 3 must", "with further looks",
        lambda: ask(incident=None), haste=True),
    "a level that falls": Shut(
        "recovering", "it is recovering already: from 97.0 to 92.0", "when it no longer falls",
        lambda: ask(incident=seen(level(), values=(97.0, 92.0))), haste=True),
    "it comes and goes": Shut(
        "flapping", "it came and went 3 times in ten minutes", "after ten calm minutes",
        lambda: ask(incident=seen(level(), flips=(NOW - 599.0, NOW - 2.0, NOW - 1.0))), haste=True),
    "a unit flaps too": Shut(
        "flapping", "it came and went 3 times in ten minutes", "after ten calm minutes",
        lambda: ask(unit(), incident=seen(unit(), flips=(NOW, NOW, NOW))), haste=True),
    "several units with one cause": Shut(
        "blast radius", "3 units went down together: a, b, nginx: look for what they share",
        "when fewer of them are down", lambda: ask(unit()), {"issues": [unit(), TOGETHER]}, haste=True),
    "the host is very ill": Shut(
        "health", "health is 29, below 30 nothing heals by itself", "a person", facts={"health": 29}, haste=True),
    "a medium issue while all wait for memory": Shut(
        "resources", "pressure:memory:full is 21 %", "below 20 %",
        lambda: ask(MEDIUM), {"values": {"pressure:memory:full": 21.0}}, haste=True),
    "a medium issue while all wait for I/O": Shut(
        "resources", "pressure:io:full is 21 %", "below 20 %",
        lambda: ask(MEDIUM), {"values": {"pressure:io:full": 21.0}}, haste=True),
    "heavy work while all wait for I/O": Shut(
        "resources", "pressure:io:full is 21 %", "below 20 %",
        lambda: ask(level("disk"), COLLECT), {"values": {"pressure:io:full": 21.0}}, haste=True),
    "the hour is full": Shut(
        "hourly limit", "1 in the last hour, at most 1 are allowed", "in 600 s",
        facts={"limits": Limits(heals_per_hour=1), "acts": [past(3000.0, target="cpu", cause="cpu")]}),
    "the last act is young": Shut(
        "cooldown", "the last act on memory ended 99 s ago, at least 326 s must pass", "in 227 s", facts=LATEST),
    "two heals without effect": Shut(
        "breaker", "the last heals of resource/memory had no effect that lasted, or did harm", "in 2401 s",
        facts={"acts": [past(1800.0, effective=False), past(1200.0, effective=False)]}),
    "a heal that did harm": Shut(
        "breaker", "the last heals of resource/memory had no effect that lasted, or did harm", "in 2401 s",
        facts={"acts": [past(1200.0, harm=True)]}),
    "three openings in a day": Shut(
        "breaker", "three times open in 24 h for resource/memory: a person is needed", "when a person resets it",
        facts={"acts": [past(hours * HOUR, effective=False) for hours in (22, 20, 18, 16)]}),
    "three openings in a day that nobody reset, though their acts are forgotten": Shut(
        "breaker", "it was open three times in 24 h for resource/memory: a person is needed",
        "`luminous-healing resume --breakers`, once you looked at it",
        facts={"latches": frozenset({"resource/memory"})}),
    "no heal is allowed at all": Shut(
        "hourly limit", "0 in the last hour, at most 0 are allowed", "when the limit is raised",
        facts={"limits": Limits(heals_per_hour=0)}),
    "a heal that did not last": Shut(
        "breaker", "the last heals of resource/memory had no effect that lasted, or did harm", "in 2401 s",
        facts={"acts": [past(1800.0), past(1200.0, relapsed=NOW - 600.0)]}),
}  # fmt: skip


def closed(question: Question, known: Facts) -> list[Gate]:
    return [gate for gate in gates(question, known) if not gate.passed]


@pytest.mark.parametrize("case", SHUT.values(), ids=SHUT.keys())
def test_one_gate_alone_says_why_and_what_lifts_it(case: Shut) -> None:
    question, known = case.question(), facts(**case.facts)
    expected = Gate(case.rule, False, case.said, case.lifts)
    assert closed(question, known) == [expected]
    assert first_refusal(question, known) == expected
    assert expected.told == f"{case.rule}: {case.said}; lifts {case.lifts}"


@pytest.mark.parametrize("case", SHUT.values(), ids=SHUT.keys())
def test_a_person_passes_the_gates_of_haste_and_no_other(case: Shut) -> None:
    question = case.question()
    question = replace(question, request=replace(question.request, automatic=False))
    known = facts(**case.facts)
    assert bool(closed(question, known)) is not case.haste
    assert (first_refusal(question, known) is None) is case.haste
    told = {gate.rule: gate.said for gate in gates(question, known)}
    assert [rule for rule, said in told.items() if said == "passed: a person asked"] == [
        "boot grace", "resume grace", "freshness", "samples", "recovering", "flapping", "blast radius", "health",
        "resources",
    ]  # fmt: skip


SERVICE_RULE = Policy(rules=(Rule(Mode.AUTO, category="service"),))
JUST: dict[str, tuple[Callable[[], Question], dict[str, Any]]] = {
    "a medium severity": (lambda: ask(MEDIUM), {}),
    "a confirmed act that asks": (lambda: ask(level("disk"), "clean_disk", confirmed=True), {}),
    "a rule that allows what asks": (
        lambda: ask(unit(), "freeze_unit", {"unit": "nginx.service"}), {"policy": SERVICE_RULE}),
    "a silence that ends now": (ask, {"silences": [Silence("ab12", "*", NOW)]}),
    "a silence that ended long ago": (ask, {"silences": [Silence("ab12", "*", NOW - 90.0)]}),
    "a silence of what follows the colon": (
        lambda: ask(level("disk:/var"), "vacuum_journal"), {"silences": [Silence("ab12", "/var", NOW + 9.0)]}),
    "a silence of another unit": (lambda: ask(unit()), {"silences": [Silence("ab12", "apache*", NOW + 9.0)]}),
    "systemd does not answer, and no unit is to be touched": (ask, {"host": HostState("unknown", unknown="no bus")}),
    "up for five minutes": (ask, {"since_boot_s": 300.0}),
    "awake for two minutes": (ask, {"since_resume_s": 120.0}),
    "a reading as old as allowed": (ask, {"look_age_s": 120.0, "look_limit_s": 120.0}),
    "a unit in one look": (lambda: ask(unit(), incident=seen(unit(), 1)), {}),
    "a unit that nobody looked at": (lambda: ask(unit(), incident=None), {}),
    "a level that falls by a twentieth": (lambda: ask(incident=seen(level(), values=(100.0, 95.0))), {}),
    "a unit whose figure falls": (lambda: ask(unit(), incident=seen(unit(), values=(2.0, 1.0))), {}),
    "two changes": (lambda: ask(incident=seen(level(), flips=(NOW - 1.0, NOW))), {}),
    "a third change ten minutes ago": (
        lambda: ask(incident=seen(level(), flips=(NOW - 600.0, NOW - 1.0, NOW))), {}),
    "a shared cause of other units": (lambda: ask(unit("other")), {"issues": [unit("other"), TOGETHER]}),
    "a shared cause, and a level": (
        lambda: ask(level("nginx")), {"issues": [TOGETHER]}),
    "an issue of several units that is no shared cause": (
        lambda: ask(unit()), {"issues": [replace(TOGETHER, kind=kind) for kind in ("", "zone")]}),
    "nothing was counted, no change is allowed": (lambda: ask(unit(), incident=None), {"policy": Policy(flips=0)}),
    "health at the floor": (ask, {"health": 30}),
    "a medium issue, and another": (lambda: ask(MEDIUM), {"issues": [MEDIUM, level("load", Severity.MEDIUM)]}),
    "a medium issue, and a worse one": (lambda: ask(MEDIUM), {"issues": [MEDIUM, level("load", Severity.CRITICAL)]}),
    "a high issue, and a worse one": (ask, {"issues": [level(), level("load", Severity.CRITICAL)]}),
    "a medium issue at the pressure's limit": (
        lambda: ask(MEDIUM), {"values": {"pressure:io:full": 20.0, "pressure:memory:full": 20.0}}),
    "some wait, not all": (lambda: ask(MEDIUM), {"values": {"pressure:io:some": 99.0}}),
    "a high issue under pressure": (ask, {"values": {"pressure:memory:full": 90.0, "pressure:io:full": 90.0}}),
    "heavy work while all wait for memory": (
        lambda: ask(level("disk"), COLLECT), {"values": {"pressure:memory:full": 90.0}}),
    "heavy work, and something worse is open": (
        lambda: ask(level("disk"), COLLECT), {"issues": [level("load", Severity.CRITICAL)]}),
    "the hour has room for one": (
        ask, {"limits": Limits(heals_per_hour=2), "acts": [past(3000.0, target="cpu", cause="cpu")]}),
    "the act is an hour old": (
        ask, {"limits": Limits(heals_per_hour=1), "acts": [past(HOUR, target="cpu", cause="cpu")]}),
    "the cooldown is over": (ask, {"acts": [past(331.0)]}),
    "the next rung of the same climb": (
        lambda: ask(action="limit_unit", arguments={"unit": "x.service"}),
        {"acts": [past(1.0, target="x.service", incident="climb")]}),
    "one heal without effect": (ask, {"acts": [past(1200.0, effective=False)]}),
    "the breaker was reset": (
        ask, {"acts": [past(hours * HOUR, effective=False) for hours in (22, 20, 18, 16)],
              "resets": {"resource/memory": NOW - HOUR}}),
    "another breaker needs a person": (ask, {"latches": frozenset({"resource/cpu"})}),
    "own rungs without effect do not open it": (
        lambda: ask(action="limit_unit", arguments={"unit": "x.service"}),
        {"acts": [past(9.0, effective=False, incident="climb", harm=True)]}),
    "heals that lasted until it showed again": (
        ask, {"acts": [past(9000.0), past(4500.0, relapsed=NOW - 1.0)]}),
}  # fmt: skip


@pytest.mark.parametrize(("question", "known"), JUST.values(), ids=JUST.keys())
def test_what_just_passes(question: Callable[[], Question], known: dict[str, Any]) -> None:
    assert closed(question(), facts(**known)) == []
    assert first_refusal(question(), facts(**known)) is None


@pytest.mark.parametrize(
    ("wider", "case"),
    [
        (Policy(boot_grace_s=100.0), "just up"),
        (Policy(resume_grace_s=50.0), "just awake"),
        (Policy(samples=2), "a level in two looks"),
        (Policy(flips=3), "it comes and goes"),
        (Policy(health_floor=29), "the host is very ill"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_policys_figures_are_what_the_gates_hold_to(wider: Policy, case: str) -> None:
    shut = SHUT[case]
    assert closed(shut.question(), facts(**{**shut.facts, "policy": wider})) == []


VALUES: dict[str, str] = {
    "store": "acts and records can be kept",
    "kill switch": "not set",
    "severity": "high",
    "protected set": "nginx.service is not in it",
    "policy": "auto (the catalogue's default)",
    "silence": "no silence and no maintenance window covers it",
    "update lock": "no switch in progress, the system is degraded",
    "boot grace": "up for 1000 s",
    "resume grace": "awake for 500 s",
    "freshness": "the reading is 3 s old",
    "samples": "a unit's state is a fact",
    "recovering": "it is not recovering by itself",
    "flapping": "1 change in ten minutes",
    "blast radius": "no shared cause is known",
    "health": "85 of 100",
    "resources": "enough to act",
    "rate": "hourly limit: 1 of 10, 10 operations in 5 minutes: 0 of 10, 3 acts an hour on one target: 1 of 3",
    "cooldown": "over",
    "breaker": "closed",
}


def test_an_open_gate_tells_its_value() -> None:
    known = facts(host=HostState("degraded"), since_boot_s=1000.0, since_resume_s=500.0, look_age_s=3.0, health=85,
                  acts=[past(1000.0, target="nginx.service")])  # fmt: skip
    question = ask(unit(), incident=seen(unit(), flips=(NOW - 60.0,)))
    found = gates(question, known)
    assert {gate.rule: gate.said for gate in found} == VALUES
    assert all(gate.passed and not gate.lifts for gate in found)
    assert found[0].told == "store: acts and records can be kept"


@pytest.mark.parametrize(
    ("question", "rule", "said"),
    [
        (ask(incident=seen(level(), 4)), "samples", "4 of the last five looks show it"),
        (ask(unit(), incident=None), "flapping", "0 changes in ten minutes"),
        (ask(), "protected set", "no unit is touched"),
        (ask(confirmed=True), "policy", "auto (the catalogue's default), confirmed"),
        (ask(level("disk"), "clean_disk", confirmed=True), "policy", "confirm (the catalogue's default), confirmed"),
    ],
    ids=["looks", "never flipped", "no unit", "confirmed though it does not ask", "confirmed"],
)
def test_the_value_of(question: Question, rule: str, said: str) -> None:
    assert {gate.rule: gate.said for gate in gates(question, facts())}[rule] == said


def test_of_what_nobody_looked_at_no_look_shows_it() -> None:
    told = {gate.rule: gate.said for gate in gates(ask(incident=None), facts(policy=Policy(samples=0)))}
    assert told["samples"] == "0 of the last five looks show it"


def test_facts_of_which_nothing_is_told_stand_in_nobodys_way() -> None:
    told = {gate.rule: gate.said for gate in gates(ask(), facts()) if gate.passed}
    assert told.keys() == VALUES.keys()
    assert [told[rule] for rule in ("freshness", "health", "boot grace", "update lock")] == [
        "the reading is 0 s old", "100 of 100", "up for inf s", "no switch in progress, the system is running",
    ]  # fmt: skip


@pytest.mark.parametrize("automatic", [True, False])
def test_without_a_look_the_samples_gate_says_so(automatic: bool) -> None:
    question = ask(incident=None, automatic=automatic)
    (gate,) = (gate for gate in gates(question, facts()) if gate.rule == "samples")
    assert gate.passed is not automatic


def test_the_gates_are_told_in_one_order_and_all_of_them() -> None:
    known = facts(fault="gone", remedy="resume", stopped="paused", maintenance="Sun 02:00-04:00", health=0)
    found = gates(ask(level(severity=Severity.LOW)), known)
    assert list(dict.fromkeys(gate.rule for gate in found)) == list(VALUES)
    assert [gate.rule for gate in found if not gate.passed] == [
        "store",
        "kill switch",
        "severity",
        "silence",
        "health",
    ]
    refusal = first_refusal(ask(), known)
    assert refusal is not None
    assert refusal.rule == "store"


@pytest.mark.parametrize(
    ("arguments", "unit_acted_upon"),
    [
        ({"service": "a.service"}, "a.service"),
        ({"unit": "b.timer"}, "b.timer"),
        ({"service": "a.service", "unit": "b.timer"}, "a.service"),
        ({"filesystem": "/"}, ""),
    ],
    ids=["a service", "a unit", "both", "none"],
)
def test_the_unit_that_a_question_is_about(arguments: dict[str, str], unit_acted_upon: str) -> None:
    assert replace(ask(), arguments=arguments).unit == unit_acted_upon


@pytest.mark.parametrize(
    ("action", "reached", "passed"),
    [
        ("clear_system_cache", Risk.REVERSIBLE, True),
        ("limit_unit", Risk.REVERSIBLE, True),
        ("limit_unit", Risk.IRREVERSIBLE, True),
        ("restart_service", Risk.REVERSIBLE, False),
        ("restart_service", Risk.DISRUPTIVE, True),
        ("clean_nix_store", Risk.DISRUPTIVE, False),
        ("clean_nix_store", Risk.IRREVERSIBLE, True),
    ],
)
def test_what_is_more_regrettable_than_a_rung_that_is_held_back_is_not_tried(
    action: str, reached: Risk, passed: bool
) -> None:
    order = {spec.risk: regret(spec) for spec in CATALOGUE.values()}
    found = not_reached(ask(action=action, arguments={"unit": "a.service"}), order[reached])
    assert (found is None) is passed
    if found is not None:
        assert not found.passed
        assert found.told == ("ladder: a gentler rung below it is held back, and not measured yet; "
                              "lifts once that was measured")  # fmt: skip


def test_risks_are_regretted_in_their_order() -> None:
    order = [regret(spec) for risk in Risk for spec in list(CATALOGUE.values()) if spec.risk is risk]
    assert order == sorted(order)
    assert set(order) == {0, 1, 2}


def test_what_only_waits_for_looks_is_no_news() -> None:
    assert {"samples", "recovering", "freshness", "boot grace", "resume grace", LADDER} == PASSING
    assert PASSING - {LADDER} <= VALUES.keys()


@pytest.mark.parametrize("action", ["clean_nix_store", "optimize_store", "prune_generations", "rebuild_system"])
def test_heavy_work_waits_for_the_disks(action: str) -> None:
    question = ask(level("disk"), action, confirmed=True)
    assert closed(question, facts()) == []
    assert [gate.rule for gate in closed(question, facts(values={"pressure:io:full": 21.0}))] == ["resources"]


def test_a_maintenance_window_is_named_before_a_silence() -> None:
    known = facts(maintenance="Sun 02:00-04:00", silences=[Silence("ab12", "*", NOW + 9.0)])
    assert [gate.lifts for gate in closed(ask(), known)] == ["its end"]
    assert Maintenance.parse("Sun 02:00-04:00").text == known.maintenance


@pytest.mark.parametrize(
    ("value", "field_name"),
    [(facts(), "now"), (ask(), "confirmed"), (Limits(), "cooldown_s"), (Policy(), "mode"), (past(1.0), "target"),
     (ask().request, "target"), (Rule(Mode.AUTO), "mode"), (Silence("a", "b", 1.0), "until"),
     (Maintenance.parse("02:00-03:00"), "start"), (Denial("a", "b", 1.0), "rule"), (Limits().windows[0], "count")],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)  # fmt: skip
def test_nobody_changes_a_value_that_a_decision_rests_on(value: Any, field_name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(value, field_name, getattr(value, field_name))
    assert not hasattr(value, "__dict__")  # nor adds one
