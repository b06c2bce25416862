"""Who decided that something may happen: modes and rules, hours of maintenance, what a glob covers."""

from __future__ import annotations

import pytest

from luminous_nix.self_healing.decide.actions import CATALOGUE
from luminous_nix.self_healing.decide.policy import Maintenance, Mode, Policy, Rule, covers

AUTO, CONFIRM, OBSERVE = Mode.AUTO, Mode.CONFIRM, Mode.OBSERVE
MON, TUE, WED, THU, FRI, SAT, SUN = range(7)
ASKS_FIRST_UNITS = ["nixos-upgrade.service", "nix-gc.service", "apt-daily.service", "fwupd.service", "srv.mount"]
DEFAULT, CAP = "the catalogue's default", "the policy's mode"


@pytest.mark.parametrize(
    ("action", "arguments", "policy", "mode", "why"),
    [
        pytest.param("restart_service", {}, Policy(), AUTO, DEFAULT, id="the catalogue's auto"),
        pytest.param("freeze_unit", {}, Policy(), CONFIRM, DEFAULT, id="the catalogue's asks"),
        pytest.param("restart_service", {"running": True}, Policy(), CONFIRM, DEFAULT, id="an argument that asks"),
        pytest.param("restart_service", {"service": "a"}, Policy(), AUTO, DEFAULT, id="an argument that does not"),
        pytest.param("restart_service", {}, Policy(CONFIRM), CONFIRM, CAP, id="confirm caps auto"),
        pytest.param("restart_service", {}, Policy(OBSERVE), OBSERVE, CAP, id="observe caps auto"),
        pytest.param("freeze_unit", {}, Policy(OBSERVE), OBSERVE, CAP, id="observe caps confirm"),
        pytest.param("freeze_unit", {}, Policy(CONFIRM), CONFIRM, DEFAULT, id="confirm does not cap confirm"),
        pytest.param("freeze_unit", {}, Policy(AUTO), CONFIRM, DEFAULT, id="a cap never allows more"),
        pytest.param("freeze_unit", {}, Policy(rules=(Rule(AUTO),)), AUTO, "rule 1 of the policy", id="a rule may"),
        pytest.param("freeze_unit", {}, Policy(CONFIRM, (Rule(AUTO),)), CONFIRM, CAP, id="the cap is above a rule"),
        pytest.param("restart_service", {}, Policy(CONFIRM, (Rule(OBSERVE),)), OBSERVE, "rule 1 of the policy",
                     id="a rule below the cap"),
        pytest.param("restart_service", {}, Policy(rules=(Rule(CONFIRM), Rule(AUTO))), CONFIRM,
                     "rule 1 of the policy", id="the first rule decides"),
        pytest.param("restart_service", {}, Policy(rules=(Rule(CONFIRM, action="x"), Rule(OBSERVE))), OBSERVE,
                     "rule 2 of the policy", id="the first that covers it"),
        pytest.param("restart_service", {}, Policy(rules=(Rule(OBSERVE, action="x"),)), AUTO, DEFAULT,
                     id="no rule covers it"),
    ],
)  # fmt: skip
def test_the_mode_of_an_act_and_where_it_comes_from(
    action: str, arguments: dict[str, object], policy: Policy, mode: Mode, why: str
) -> None:
    assert policy.mode_of(CATALOGUE[action], arguments, "nginx.service") == (mode, why)


@pytest.mark.parametrize("unit", ASKS_FIRST_UNITS)
def test_of_some_units_a_person_is_asked_first(unit: str) -> None:
    spec = CATALOGUE["restart_service"]
    assert Policy().mode_of(spec, {}, unit) == (CONFIRM, DEFAULT)
    assert Policy(rules=(Rule(AUTO, unit=unit),)).mode_of(spec, {}, unit) == (AUTO, "rule 1 of the policy")
    assert Policy().mode_of(spec, {}, "") == (AUTO, DEFAULT)


@pytest.mark.parametrize(
    ("rule", "action", "unit", "covered"),
    [
        pytest.param(Rule(AUTO), "restart_service", "nginx.service", True, id="whatever it is"),
        pytest.param(Rule(AUTO), "clean_disk", "", True, id="an act without a unit"),
        pytest.param(Rule(AUTO, category="service"), "restart_service", "a.service", True, id="its category"),
        pytest.param(Rule(AUTO, category="service"), "clean_disk", "", False, id="another category"),
        pytest.param(Rule(AUTO, category="s*"), "rebuild_system", "", True, id="a glob of categories"),
        pytest.param(Rule(AUTO, action="restart_service"), "restart_service", "a.service", True, id="its action"),
        pytest.param(Rule(AUTO, action="*_service"), "start_unit", "a.service", False, id="another action"),
        pytest.param(Rule(AUTO, unit="nginx.service"), "restart_service", "nginx.service", True, id="the unit"),
        pytest.param(Rule(AUTO, unit="nginx"), "restart_service", "nginx.service", True, id="without its type"),
        pytest.param(Rule(AUTO, unit="nginx"), "restart_service", "nginx.socket", False, id="its socket is another"),
        pytest.param(Rule(AUTO, unit="ng*"), "restart_service", "nginx.service", True, id="a glob of units"),
        pytest.param(Rule(AUTO, unit="ng*"), "clean_disk", "", False, id="a unit is wanted, and there is none"),
        pytest.param(Rule(AUTO, "service", "restart_service", "ng*"), "restart_service", "a.service", False,
                     id="all three must cover it"),
        pytest.param(Rule(AUTO, "resource", "restart_service", "ng*"), "restart_service", "nginx.service", False,
                     id="the category among them"),
        pytest.param(Rule(AUTO, "service", "restart_service", "ng*"), "restart_service", "nginx.service", True,
                     id="and all three do"),
    ],
)  # fmt: skip
def test_what_a_rule_covers(rule: Rule, action: str, unit: str, covered: bool) -> None:
    assert rule.covers(CATALOGUE[action], unit) is covered


@pytest.mark.parametrize(
    ("pattern", "name", "covered"),
    [
        ("nginx", "nginx", True),
        ("nginx", "nginx.service", True),
        ("nginx.service", "nginx.service", True),
        ("nginx.service", "nginx", False),
        ("disk:/*", "disk:/var", True),
        ("[ab]", "b.service", True),
        ("[!ab]", "b.service", False),
        ("Nginx", "nginx", False),
        ("*", "", True),
    ],
)
def test_a_glob_matches_with_and_without_service(pattern: str, name: str, covered: bool) -> None:
    assert covers(pattern, name) is covered


EVERY = frozenset(range(7))


@pytest.mark.parametrize(
    ("text", "days", "start", "end"),
    [
        pytest.param("03:00-03:30", EVERY, 180, 210, id="every day"),
        pytest.param("Sat,Sun 02:00-04:00", {SAT, SUN}, 120, 240, id="a list of days"),
        pytest.param("sat, sun 02:00-04:00", {SAT, SUN}, 120, 240, id="a list with blanks"),
        pytest.param("mon-fri 22:00-06:00", {MON, TUE, WED, THU, FRI}, 1320, 360, id="over midnight"),
        pytest.param("fri-mon 00:00-24:00", {FRI, SAT, SUN, MON}, 0, 1440, id="over the week's end, whole days"),
        pytest.param("Saturday-SUNDAY 23:59-24:00", {SAT, SUN}, 1439, 1440, id="long names"),
        pytest.param("wed-wed 00:00-00:01", {WED}, 0, 1, id="from a day to itself"),
        pytest.param("mon-wed,fri 09:05-19:55", {MON, TUE, WED, FRI}, 545, 1195, id="a range and a day"),
        pytest.param(" thu 10:00-11:00 ", {THU}, 600, 660, id="blanks around"),
        pytest.param("sun-mon 01:00-02:00", {SUN, MON}, 60, 120, id="the last day to the first"),
        pytest.param("tue-mon 01:00-02:00", EVERY, 60, 120, id="all the way around"),
    ],
)  # fmt: skip
def test_hours_of_the_week(text: str, days: set[int], start: int, end: int) -> None:
    found = Maintenance.parse(text)
    assert (found.text, found.days, found.start, found.end) == (text, frozenset(days), start, end)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *((text, "a time of the week such as 'Sat,Sun 02:00-04:00'") for text in (
            "", "always", "02:00", "2:00-4:00", "02:00-25:00", "02:60-04:00", "24:00-04:00", "02:00-04:60",
            "sat 02:00 - 04:00", "sat02:00-04:00", "02:00-04:00 sat", "sat 02:00-04:00,06:00-07:00",
            "\u0661\u0662:00-14:00", "02:00-04:00\nmon 02:00-04:00", "sat;sun 02:00-04:00", "sat 02.00-04.00",
        )),
        *((text, "a span of time, from 00:00 to 24:00") for text in (
            "02:00-02:00", "00:00-00:00", "00:00-24:01", "mon 10:00-24:59",
        )),
        *((text, "made of days such as mon, sat or mon-fri") for text in (
            "xyz 02:00-04:00", "mon-xyz 02:00-04:00", "xyz-mon 02:00-04:00", "mon- 02:00-04:00", "-mon 02:00-04:00",
            "mon,,tue 02:00-04:00", ", 02:00-04:00", "mon, 02:00-04:00", "- 02:00-04:00", "mon--tue 02:00-04:00",
            "mo 02:00-04:00", "mo-fr 02:00-04:00", "monkey 02:00-04:00", "satan-sunk 02:00-04:00",
        )),
    ],
)  # fmt: skip
def test_what_is_no_time_of_the_week_is_told(text: str, said: str) -> None:
    with pytest.raises(ValueError) as problem:
        Maintenance.parse(text)
    assert str(problem.value) == said


@pytest.mark.parametrize(
    ("text", "day", "at", "inside"),
    [
        pytest.param("sat 02:00-04:00", SAT, 119, False, id="a minute before"),
        pytest.param("sat 02:00-04:00", SAT, 120, True, id="its first minute"),
        pytest.param("sat 02:00-04:00", SAT, 239, True, id="its last minute"),
        pytest.param("sat 02:00-04:00", SAT, 240, False, id="its end"),
        pytest.param("sat 02:00-04:00", SUN, 180, False, id="another day"),
        pytest.param("sun 22:00-06:00", SUN, 1319, False, id="the evening before it begins"),
        pytest.param("sun 22:00-06:00", SUN, 1320, True, id="the evening"),
        pytest.param("sun 22:00-06:00", MON, 359, True, id="the next morning, over the week's end"),
        pytest.param("sun 22:00-06:00", MON, 360, False, id="the end, the next morning"),
        pytest.param("sun 22:00-06:00", SUN, 180, False, id="the morning of the day itself"),
        pytest.param("sun 22:00-06:00", MON, 1320, False, id="the next evening"),
        pytest.param("sun 00:00-24:00", SUN, 1439, True, id="the last minute of a whole day"),
        pytest.param("sun 00:00-24:00", MON, 0, False, id="the first minute after a whole day"),
    ],
)
def test_when_a_window_is_open(text: str, day: int, at: int, inside: bool) -> None:
    assert Maintenance.parse(text).covers(day, at) is inside


def test_the_window_of_now_is_named() -> None:
    windows = tuple(map(Maintenance.parse, ("sat 02:00-04:00", "03:00-05:00")))
    policy = Policy(maintenance=windows)
    assert policy.maintained(SAT, 200) == "sat 02:00-04:00"
    assert policy.maintained(FRI, 200) == "03:00-05:00"
    assert policy.maintained(SAT, 300) == ""
    assert Policy().maintained(SAT, 200) == ""


def test_the_figures_of_the_design() -> None:
    policy = Policy()
    assert (policy.boot_grace_s, policy.resume_grace_s, policy.confirm_s) == (300.0, 120.0, 3600.0)
    assert (policy.samples, policy.flips, policy.health_floor) == (3, 2, 30)
    assert policy.mode is AUTO
    assert [mode.value for mode in Mode] == ["observe", "confirm", "auto"]
