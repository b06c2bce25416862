"""Limits on single cases; the laws are in tests/property."""

from __future__ import annotations

import zlib
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from luminous_nix.self_healing.decide.limits import (
    Act,
    Denial,
    Limits,
    Request,
    Window,
    breaker,
    check,
    cooldown,
    cooldown_after,
    used,
    windows,
)

HOUR = 3600.0
# Names whose jitter is known.
NO_JITTER = next(
    name for name in (f"n{number}" for number in range(100_000)) if zlib.crc32(name.encode()) % 1000 == 0
)
MOST_JITTER = next(name for name in (f"n{n}" for n in range(100_000)) if zlib.crc32(name.encode()) % 1000 == 999)


def act(
    at: float, target: str = "x", *, action: str = "restart_service", incident: str = "", worked: bool | None = True,
    automatic: bool = True,
) -> Act:  # fmt: skip
    return Act(target, action, incident or f"i{at:g}", f"cause/{target}", at, at + 1.0, worked, automatic)


def ask(
    acts: list[Act], now: float, target: str = "x", *, action: str = "restart_service", incident: str = "new",
    limits: Limits | None = None,
) -> dict[str, Denial]:  # fmt: skip
    request = Request(target, action, incident, f"cause/{target}")
    return {denial.rule: denial for denial in check(acts, limits or Limits(), request, now)}


def test_the_cooldown_is_counted_from_the_end_and_per_target_and_not_while_climbing() -> None:
    denial = ask([act(1000.0)], 1100.0)["cooldown"]
    assert 201.0 <= denial.lifts_in_s <= 231.0  # 300 s and up to a tenth more
    assert ask([act(1000.0)], 1101.0 + denial.lifts_in_s) == {}
    assert ask([act(1000.0)], 1100.0, "other") == {}
    climbed = [act(1000.0, incident="same")]
    assert ask(climbed, 1100.0, incident="same", action="reload_service") == {}
    assert "cooldown" in ask(climbed, 1100.0, incident="same")  # no rung is taken twice


def test_the_cooldown_doubles_with_each_incident_up_to_six_hours_and_starts_anew_after_a_healthy_hour() -> None:
    acts: list[Act] = []
    rests, now = [], 0.0
    for _ in range(9):
        acts.append(act(now))
        denial = ask(acts, now + 1.0)["cooldown"]
        rests.append(denial.lifts_in_s)
        now += 1.0 + denial.lifts_in_s
    for before, after in pairwise(rests[:7]):
        assert 1.8 <= after / before <= 2.2
    assert max(rests) <= 6.6 * HOUR
    later = acts[-1].started + 8 * HOUR
    assert ask([*acts, act(later)], later + 1.0)["cooldown"].lifts_in_s <= 330.0


def test_the_eleventh_heal_of_an_hour_waits_for_the_first_to_age() -> None:
    acts = [act(1000.0 + 310 * number, f"t{number}") for number in range(10)]
    denial = ask(acts, 4000.0)["hourly limit"]
    assert denial.lifts_in_s == pytest.approx(600.0)
    assert "hourly limit" in ask(acts, 4599.0)
    assert ask(acts, 4601.0) == {}
    assert "hourly limit" in ask([], 0.0, limits=Limits(heals_per_hour=0))


def test_ten_operations_in_five_minutes() -> None:
    acts = [act(1000.0 + number, f"t{number}") for number in range(10)]
    assert "10 operations in 5 minutes" in ask(acts, 1100.0, limits=Limits(heals_per_hour=100))


def test_three_acts_an_hour_on_one_target() -> None:
    acts = [act(0.0, incident="a"), act(10.0, incident="a"), act(20.0, incident="a")]
    assert "3 acts an hour on one target" in ask(acts, 30.0, incident="a")


@pytest.mark.parametrize(
    ("action", "at", "now", "rule"),
    [
        ("rollback_generation", [0.0], 23 * HOUR, "1 automatic rollback in 24 hours"),
        ("rollback_generation", [0.0, 48 * HOUR, 96 * HOUR], 150 * HOUR, "3 rollbacks in 7 days"),
        ("clean_nix_store", [0.0], 5.9 * HOUR, "1 collection in 6 hours"),
        ("kill_process", [0.0, 60.0, 120.0], 3000.0, "3 kills an hour"),
    ],
)
def test_rare_actions(action: str, at: list[float], now: float, rule: str) -> None:
    acts = [act(time, f"t{time}", action=action) for time in at]
    assert rule in ask(acts, now, action=action)
    assert rule not in ask(acts, now)  # another action is not concerned
    assert rule not in ask(acts, now + 200 * HOUR, action=action)


def test_a_persons_rollback_is_not_counted_as_automatic() -> None:
    acts = [act(0.0, action="rollback_generation", automatic=False)]
    assert "1 automatic rollback in 24 hours" not in ask(acts, HOUR, "y", action="rollback_generation")


def test_two_incidents_without_effect_open_the_breaker_however_slow() -> None:
    acts = [act(0.0, worked=False), act(20 * HOUR, worked=False)]
    denial = ask(acts, 20.5 * HOUR)["breaker"]
    assert denial.lifts_in_s == pytest.approx(0.5 * HOUR + 1.0)
    assert "breaker" not in ask(acts, 21.1 * HOUR)
    mended = [*acts, act(21.1 * HOUR)]
    assert "breaker" in ask(mended, 21.2 * HOUR)  # it did not last
    assert "breaker" not in ask(mended, 22.2 * HOUR)  # a verified effect that lasted closes it
    assert "breaker" not in ask(acts, 20.5 * HOUR, "other")


def test_rungs_of_one_incident_count_once() -> None:
    acts = [act(0.0, incident="a", worked=False), act(10.0, incident="a", worked=False)]
    assert "breaker" not in ask(acts, HOUR)
    assert "breaker" not in ask([*acts, act(20.0, incident="b", worked=False)], 30.0, incident="b")


def test_three_openings_in_a_day_need_a_person() -> None:
    acts = [act(hour * 2 * HOUR, worked=False) for hour in range(4)]
    denial = ask(acts, 23 * HOUR)["breaker"]
    assert denial.lifts == "when a person resets it"
    assert "a person is needed" in denial.reason


def test_an_act_of_unknown_outcome_counts_as_without_effect() -> None:
    acts = [act(0.0, worked=None), act(9 * HOUR, worked=None)]
    assert "breaker" in ask(acts, 9.5 * HOUR)


def test_what_is_mended_again_and_again_trips_the_breaker_too() -> None:
    """Each heal is verified, and each time the trouble is back within the hour."""
    acts = [act(0.0), act(1200.0)]
    assert "breaker" not in ask(acts[:1], 1200.0)
    denial = ask(acts, 2400.0)["breaker"]
    assert denial.lifts_in_s == pytest.approx(HOUR - 1199.0)
    for _ in range(2):  # it shows again twenty minutes after each heal, and is mended once the breaker lets it
        acts[-1] = replace(acts[-1], relapsed=acts[-1].started + 1200.0)
        acts.append(act(acts[-1].started + 2.0 + HOUR))
    assert ask(acts, acts[-1].started + 1200.0)["breaker"].lifts_in_s == float("inf")
    calm = breaker(acts, Limits(), acts[0].cause, acts[-1].started + 1200.0, present=False)
    assert calm is None or calm.lifts_in_s < float("inf")  # the last one is not known to have failed


def test_harm_opens_the_breaker_at_once() -> None:
    harmful = replace(act(0.0), harm=True)
    assert "breaker" in ask([harmful], 1800.0)
    assert "breaker" not in ask([harmful], 1801.0 + HOUR)


def test_a_person_resets_the_breaker() -> None:
    acts = [act(hour * 2 * HOUR, worked=False) for hour in range(4)]
    request = Request("x", "restart_service", "new", "cause/x")
    now = acts[-1].started + HOUR
    assert breaker(acts, Limits(), request.cause, now) is not None
    assert breaker(acts, Limits(), request.cause, now, reset=now - 1.0) is None
    assert "breaker" not in {denial.rule for denial in check(acts, Limits(), request, now, now - 1.0)}


def test_how_much_of_each_window_is_used_is_told_in_words() -> None:
    acts = [act(0.0), act(10.0, "y")]
    told = used(acts, Limits(), Request("x", "restart_service", "new", "cause/x"), 20.0)
    assert told == "hourly limit: 2 of 10, 10 operations in 5 minutes: 2 of 10, 3 acts an hour on one target: 1 of 3"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (150.0, "2.5 minutes"),
        (1.0, "1 seconds"), (60.0, "60 seconds"), (90.0, "90 seconds"), (120.0, "2 minutes"), (300.0, "5 minutes"),
        (3600.0, "hour"), (5400.0, "90 minutes"), (7200.0, "2 hours"), (6 * HOUR, "6 hours"), (24 * HOUR, "day"),
        (36 * HOUR, "36 hours"), (48 * HOUR, "2 days"), (168 * HOUR, "7 days"),
    ],
)  # fmt: skip
def test_a_full_window_tells_its_span_in_words(seconds: float, words: str) -> None:
    limits = Limits(cooldown_s=0.0, others=(Window("the rule", 1, seconds),))
    denial = ask([act(1000.0, "y")], 1000.5, limits=limits)["the rule"]
    assert denial.reason == f"1 in the last {words}, at most 1 are allowed"


@pytest.mark.parametrize(
    ("window", "past", "counts"),
    [
        pytest.param(Window("w", 1, 60.0), act(1000.0, "y", action="kill_process"), True, id="any act"),
        pytest.param(Window("w", 1, 60.0, "restart_service"), act(1000.0, "y"), True, id="the same action"),
        pytest.param(Window("w", 1, 60.0, "restart_service"), act(1000.0, "x", action="kill_process"), False,
                     id="another action"),
        pytest.param(Window("w", 1, 60.0, "restart_service"), act(1000.0, action="start_unit"), False,
                     id="another action that sorts behind"),
        pytest.param(Window("w", 1, 60.0, "kill_process"), act(1000.0, "x", action="kill_process"), False,
                     id="an action that is not asked for"),
        pytest.param(Window("w", 1, 60.0, scope="target"), act(1000.0), True, id="the same target"),
        pytest.param(Window("w", 1, 60.0, scope="target"), act(1000.0, "y"), False, id="another target"),
        pytest.param(Window("w", 1, 60.0, "restart_service", "target"), act(1000.0, "y"), False,
                     id="the same action, another target"),
        pytest.param(Window("w", 1, 60.0, scope="automatic"), act(1000.0, "y"), True, id="by itself, too"),
        pytest.param(Window("w", 1, 60.0, scope="automatic"), act(1000.0, automatic=False), False, id="a person's"),
        pytest.param(Window("w", 2, 60.0), act(1000.0, "y"), False, id="room for one"),
        pytest.param(Window("w", 1, 30.0), act(1000.0, "y"), False, id="as old as the window is long"),
        pytest.param(Window("w", 1, 30.1), act(1000.0, "y"), True, id="a little younger"),
    ],
)  # fmt: skip
def test_which_past_acts_a_window_counts(window: Window, past: Act, counts: bool) -> None:
    limits = Limits(cooldown_s=0.0, others=(window,))
    assert ("w" in ask([past], 1030.0, limits=limits)) is counts


def test_of_two_full_windows_the_one_that_takes_longest_is_named() -> None:
    limits = Limits(
        cooldown_s=0.0, others=(Window("short", 1, 60.0), Window("long", 1, 90.0), Window("mid", 1, 70.0))
    )
    request = Request("x", "restart_service", "new", "cause/x")
    denial = windows([act(1000.0, "y")], limits, request, 1010.0)
    assert denial is not None
    assert (denial.rule, denial.lifts_in_s, denial.lifts) == ("long", 80.0, "in 80 s")
    assert windows([], limits, request, 1010.0) is None


def test_a_window_lifts_when_enough_acts_have_aged_and_not_only_the_first() -> None:
    limits = Limits(cooldown_s=0.0, others=(Window("w", 2, 100.0),))
    acts = [act(1000.0, "a"), act(1040.0, "b"), act(1070.0, "c")]  # one more than allowed
    assert ask(acts, 1080.0, limits=limits)["w"].lifts_in_s == 60.0
    assert ask(list(reversed(acts)), 1080.0, limits=limits)["w"].lifts_in_s == 60.0


def test_of_a_persons_request_the_automatic_window_is_not_asked() -> None:
    request = Request("x", "rollback_generation", "new", "c", automatic=False)
    acts = [act(0.0, "y", action="rollback_generation")]
    assert windows(acts, Limits(), request, HOUR) is None
    automatic = windows(acts, Limits(), replace(request, automatic=True), HOUR)
    assert automatic is not None
    assert automatic.rule == "1 automatic rollback in 24 hours"


@pytest.mark.parametrize(
    ("action", "count", "seconds", "rule"),
    [
        ("restart_service", 10, HOUR, "hourly limit"),
        ("restart_service", 10, 300.0, "10 operations in 5 minutes"),
        ("restart_service", 3, HOUR, "3 acts an hour on one target"),
        ("rollback_generation", 1, 24 * HOUR, "1 automatic rollback in 24 hours"),
        ("rollback_generation", 3, 24 * HOUR, "3 rollbacks a day"),
        ("rollback_generation", 3, 168 * HOUR, "3 rollbacks in 7 days"),
        ("clean_nix_store", 1, 6 * HOUR, "1 collection in 6 hours"),
        ("kill_process", 3, HOUR, "3 kills an hour"),
        ("rerun_timer", 1, 24 * HOUR, "1 rerun of a job in 24 hours"),
    ],
)
def test_the_figures_of_the_specification(action: str, count: int, seconds: float, rule: str) -> None:
    """So many within that span, and not one fewer; just as long ago is no longer."""
    acts = [act(number * 0.001, action=action, incident="one") for number in range(count)]
    at = acts[0].started + seconds
    assert rule in ask(acts, at - 0.1, action=action)
    assert rule not in ask(acts[1:], at - 0.1, action=action)
    assert rule not in ask(acts, at, action=action)


def test_a_rerun_of_another_job_is_not_counted() -> None:
    acts = [act(0.0, "a.timer", action="rerun_timer")]
    assert ask(acts, HOUR, "b.timer", action="rerun_timer") == {}


@pytest.mark.parametrize(
    ("cooldown_s", "streak", "rest"),
    [
        (300.0, 1, 300.0), (300.0, 2, 600.0), (300.0, 3, 1200.0), (300.0, 7, 19_200.0), (300.0, 8, 21_600.0),
        (300.0, 40, 21_600.0), (30_000.0, 1, 30_000.0), (30_000.0, 2, 30_000.0), (0.0, 5, 0.0),
    ],
)  # fmt: skip
def test_how_long_a_target_rests(cooldown_s: float, streak: int, rest: float) -> None:
    """Doubled at each incident that came soon, up to 6 h, and never below what is configured."""
    limits = Limits(cooldown_s=cooldown_s)
    acts = [
        act(10.0 * number, incident=NO_JITTER if number + 1 == streak else f"i{number}") for number in range(streak)
    ]
    assert cooldown_after(acts, limits, "x") == (acts[-1].started + 1.0, rest)


def test_hosts_do_not_act_in_step() -> None:
    """The same incident always rests as long; another one up to a tenth longer."""
    rests = {cooldown_after([act(0.0, incident=f"heal-{number}")], Limits(), "x")[1] for number in range(200)}
    assert len(rests) > 150
    assert 300.0 <= min(rests) < 303.0
    assert 327.0 < max(rests) < 330.0
    assert cooldown_after([act(0.0, incident=MOST_JITTER)], Limits(), "x")[1] == pytest.approx(329.97)


@pytest.mark.parametrize(
    ("pause", "rest"), [(300.0 + HOUR - 0.1, 600.0), (300.0 + HOUR, 300.0)], ids=["just before", "an hour of health"]
)
def test_after_the_rest_and_a_healthy_hour_the_backoff_starts_anew(pause: float, rest: float) -> None:
    first = act(0.0, incident="first")  # it ends at 1 s
    second = act(1.0 + pause, incident=NO_JITTER)
    assert cooldown_after([second, first], Limits(), "x")[1] == rest


def test_rungs_of_one_climb_double_nothing_and_the_last_end_counts() -> None:
    long = replace(act(0.0, incident=NO_JITTER), ended=90.0)
    short = replace(act(5.0, incident=NO_JITTER), ended=6.0)
    assert cooldown_after([long, short, act(50.0, "y"), act(95.0, "a")], Limits(), "x") == (90.0, 300.0)
    assert cooldown_after([replace(short, ended=None)], Limits(), "x") == (5.0, 300.0)
    assert cooldown_after([], Limits(), "x") == (float("-inf"), 300.0)


@pytest.mark.parametrize(
    ("now", "denied"), [(301.0 - 0.001, True), (301.0, False)], ids=["a moment before", "when the rest is over"]
)
def test_the_cooldown_ends_exactly(now: float, denied: bool) -> None:
    found = cooldown([act(0.0, incident=NO_JITTER)], Limits(), Request("x", "a", "new", "c"), now)
    assert (found is not None) is denied
    if found is not None:
        assert found.lifts_in_s == pytest.approx(0.001)
        assert found.reason == "the last act on x ended 300 s ago, at least 300 s must pass"


@pytest.mark.parametrize(
    ("acts", "action", "denied"),
    [
        pytest.param([act(0.0, incident="climb")], "stop", False, id="the next rung"),
        pytest.param([act(0.0, incident="climb")], "restart_service", True, id="the same rung again"),
        pytest.param([act(0.0, incident="climb", action="stop"), act(5.0, incident="climb")], "stop", True,
                     id="a rung of before again"),
        pytest.param([act(0.0, incident="climb"), act(5.0, incident="other")], "stop", True,
                     id="another act came in between"),
        pytest.param([act(5.0, incident="climb"), act(0.0, incident="other")], "stop", False,
                     id="another act came before, in whatever order they are told"),
        pytest.param([act(0.0, "y", incident="climb")], "restart_service", False, id="another target"),
        pytest.param([act(0.0, incident="other"), act(5.0, "y", incident="climb")], "stop", True,
                     id="a rung of the same climb on another target"),
        pytest.param([act(0.0, incident="other"), act(5.0, "a", incident="climb")], "stop", True,
                     id="a rung of the same climb on a target that sorts before"),
        pytest.param([act(0.0, incident="a", action="stop"), act(5.0, incident="climb")], "stop", False,
                     id="what another climb did is no rung of this one"),
        pytest.param([act(0.0, incident="z", action="stop"), act(5.0, incident="climb")], "stop", False,
                     id="nor what a climb that sorts behind did"),
    ],
)  # fmt: skip
def test_a_further_rung_of_the_same_climb_need_not_wait(acts: list[Act], action: str, denied: bool) -> None:
    found = cooldown(acts, Limits(), Request("x", action, "climb", "c"), 10.0)
    assert (found is not None) is denied


def missed(at: float, **more: Any) -> Act:
    return replace(act(at, worked=False), **more)


@pytest.mark.parametrize(
    ("acts", "now", "open_for"),
    [
        pytest.param([], 0.0, None, id="nothing was done"),
        pytest.param([missed(0.0)], 1.0, None, id="one miss"),
        pytest.param([missed(0.0), missed(10.0)], 11.0, HOUR, id="two misses"),
        pytest.param([missed(0.0), missed(10.0)], 11.0 + HOUR, None, id="an hour later"),
        pytest.param([missed(10.0), missed(0.0)], 11.0, HOUR, id="in whatever order they are told"),
        pytest.param([missed(0.0), act(10.0), missed(9000.0)], 9001.0, None, id="a heal that lasted in between"),
        pytest.param([act(0.0), missed(9000.0), missed(9010.0)], 9011.0, HOUR, id="two misses after it lasted"),
        pytest.param([act(0.0), missed(3000.0, incident="i"), missed(9000.0, incident="i")], 9001.0, HOUR,
                     id="it was back at the first rung of the next climb"),
        pytest.param([missed(0.0), act(10.0), missed(11.0 + HOUR)], 12.0 + HOUR, HOUR,
                     id="it lasted an hour, and no longer"),
        pytest.param([missed(0.0), act(10.0), missed(11.1 + HOUR)], 12.1 + HOUR, None, id="it lasted a little more"),
        pytest.param([replace(act(0.0), relapsed=100.0), missed(9000.0)], 9001.0, HOUR, id="it was soon back"),
        pytest.param([missed(0.0), replace(act(10.0), relapsed=11.0 + HOUR)], 3 * HOUR, None, id="it was back later"),
        pytest.param([missed(0.0), replace(act(10.0), relapsed=500.0)], 900.0, HOUR - 889.0, id="it is back"),
        pytest.param([missed(0.0), missed(10.0, effective=None)], 11.0, HOUR, id="an unknown outcome is a miss"),
        pytest.param([missed(0.0), missed(10.0, ended=None)], 10.0, HOUR, id="an act that is under way counts"),
        pytest.param([missed(0.0), missed(10.0), missed(11.0 + HOUR)], 12.0 + HOUR, HOUR,
                     id="half open: one more miss opens it again"),
        pytest.param([missed(0.0), missed(10.0), act(11.0 + HOUR), missed(9 * HOUR)], 9 * HOUR + 1.0, None,
                     id="half open: a heal that lasted closes it"),
        pytest.param([act(0.0, worked=True), replace(act(10.0), harm=True)], 11.0, HOUR, id="harm"),
        pytest.param([replace(act(0.0), harm=True), missed(9 * HOUR)], 9 * HOUR + 1.0, HOUR, id="a miss after harm"),
        pytest.param([missed(0.0, cause="other"), missed(10.0)], 11.0, None, id="another cause"),
        pytest.param([missed(0.0, incident="i"), missed(10.0, incident="i")], 11.0, None, id="two rungs of one"),
        pytest.param([missed(0.0), missed(10.0, incident="i"), act(20.0, incident="i")], 21.1 + HOUR, None,
                     id="a further rung healed it"),
    ],
)  # fmt: skip
def test_when_the_breaker_is_open(acts: list[Act], now: float, open_for: float | None) -> None:
    denial = breaker(acts, Limits(), "cause/x", now)
    assert (denial and denial.lifts_in_s) == (open_for and pytest.approx(open_for))


@pytest.mark.parametrize(
    ("gaps", "a_person"),
    [
        pytest.param([100.0, 100.0], True, id="three at once"),
        pytest.param([100.0], False, id="two"),
        pytest.param([12 * HOUR, 12 * HOUR - 0.1], True, id="within a day"),
        pytest.param([12 * HOUR, 12 * HOUR], False, id="over a day"),
        pytest.param([20 * HOUR, 20 * HOUR], False, id="over two days"),
        pytest.param([20 * HOUR, 20 * HOUR, 1 * HOUR, 1 * HOUR], True, id="the last three within a day"),
        pytest.param([1 * HOUR, 1 * HOUR, 20 * HOUR, 20 * HOUR], True, id="three within a day, long ago"),
    ],
)
def test_three_openings_within_a_day_need_a_person(gaps: list[float], a_person: bool) -> None:
    acts = [missed(0.0), missed(10.0)]
    for gap in gaps:
        acts.append(missed(acts[-1].started + gap))
    for later in (1.1 * HOUR, 9 * HOUR, 72 * HOUR):  # no time lifts it
        denial = breaker(acts, Limits(), "cause/x", acts[-1].started + later)
        assert (denial is not None) is a_person
        if denial is not None:
            assert denial.reason == "three times open in 24 h for cause/x: a person is needed"
            assert (denial.lifts_in_s, denial.lifts) == (float("inf"), "when a person resets it")


def test_a_limit_of_none_is_lifted_by_nothing_but_a_higher_one() -> None:
    denial = ask([act(0.0, "y")], 10.0, limits=Limits(heals_per_hour=0))["hourly limit"]
    assert (denial.lifts_in_s, denial.lifts) == (float("inf"), "when the limit is raised")


def test_what_was_before_a_reset_is_forgotten_and_what_ended_after_it_is_not() -> None:
    acts = [missed(0.0), missed(10.0)]  # they end at 1 s and at 11 s
    assert breaker(acts, Limits(), "cause/x", 20.0, reset=11.0) is None
    assert breaker(acts, Limits(), "cause/x", 20.0, reset=0.5) is not None
    harmful = [replace(act(0.0), harm=True)]
    assert breaker(harmful, Limits(), "cause/x", 20.0, reset=1.0) is None
    assert breaker(harmful, Limits(), "cause/x", 20.0, reset=0.9) is not None
    assert breaker([*acts, missed(30.0)], Limits(), "cause/x", 40.0, reset=10.9) is not None


@pytest.mark.parametrize(("breaker_s", "lasting_s", "denied"), [(60.0, HOUR, False), (HOUR, 100.0, False),
                                                                (HOUR, HOUR, True)])  # fmt: skip
def test_the_breakers_own_figures(breaker_s: float, lasting_s: float, denied: bool) -> None:
    limits = Limits(breaker_s=breaker_s, lasting_s=lasting_s)
    acts = [act(0.0), act(1000.0)]
    assert (breaker(acts, limits, "cause/x", 1200.0) is not None) is denied


def test_every_rule_that_forbids_is_told() -> None:
    acts = [missed(0.0), missed(10.0), missed(20.0)]
    request = Request("x", "restart_service", "new", "cause/x")
    told = [denial.rule for denial in check(acts, Limits(heals_per_hour=3), request, 30.0)]
    assert told == ["hourly limit", "3 acts an hour on one target", "cooldown", "breaker"]
    own = [replace(one, incident="new") for one in acts]
    assert "breaker" not in [denial.rule for denial in check(own, Limits(), request, 30.0)]
    reset = [denial.rule for denial in check(acts, Limits(), request, 30.0, reset=25.0)]
    assert reset == ["3 acts an hour on one target", "cooldown"]


def test_the_defaults_are_the_tightest_of_the_specification() -> None:
    limits = Limits()
    assert (limits.heals_per_hour, limits.cooldown_s, limits.breaker_s, limits.lasting_s) == (10, 300.0, HOUR, HOUR)
    assert limits.windows[0] == Window("hourly limit", 10, HOUR)
    request = Request("x", "a", "new", "c")
    assert request.automatic
    new = Act("x", "a", "new", "c", 0.0)
    assert (new.ended, new.effective, new.automatic, new.harm, new.relapsed) == (None, None, True, False, None)


def test_a_heal_that_lasted_closes_it_before_its_time() -> None:
    limits = Limits(lasting_s=100.0)
    acts = [missed(0.0), missed(10.0)]
    assert breaker(acts, limits, "cause/x", 200.0) is not None
    acts.append(act(20.0))  # a person's
    assert breaker(acts, limits, "cause/x", 121.0) is not None
    assert breaker(acts, limits, "cause/x", 121.1) is None
