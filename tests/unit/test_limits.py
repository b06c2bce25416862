"""Limits on single cases; the laws are in tests/property."""

from __future__ import annotations

from itertools import pairwise

import pytest

from luminous_nix.self_healing.decide.limits import Act, Denial, Limits, Request, check

HOUR = 3600.0


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
    assert ask([act(1000.0, incident="same")], 1100.0, incident="same") == {}


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
    assert "breaker" not in ask([*acts, act(21.1 * HOUR)], 21.2 * HOUR)  # a verified effect closes it
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
