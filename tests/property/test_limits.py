"""Whatever is asked and whenever: what `check` lets through keeps every limit."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from luminous_nix.self_healing.decide.limits import (
    Act,
    Limits,
    Request,
    Window,
    breaker,
    check,
    cooldown,
    windows,
)

NOW = 1_000_000.0

_LIMITS = st.builds(Limits, st.integers(0, 10), st.sampled_from([0.0, 1.0, 300.0, 5000.0]))
_ACTIONS = ("restart_service", "clean_nix_store", "kill_process", "rollback_generation")
# Each attempt: pause before it, how long it takes, target, action, whether it climbs, whether it worked.
_ATTEMPTS = st.lists(
    st.tuples(st.floats(0.0, 4000.0), st.floats(0.0, 120.0), st.sampled_from("abc"), st.sampled_from(_ACTIONS),
              st.booleans(), st.booleans()), max_size=60,
)  # fmt: skip


def _history(limits: Limits, attempts: list[tuple[float, float, str, str, bool, bool]]) -> list[Act]:
    """The acts that were let through."""
    acts: list[Act] = []
    now = 1000.0
    for number, (pause, took, target, action, climbs, worked) in enumerate(attempts):
        now += pause
        incident = acts[-1].incident if climbs and acts and acts[-1].target == target else f"i{number}"
        if check(acts, limits, Request(target, action, incident, f"cause/{target}"), now):
            continue
        acts.append(Act(target, action, incident, f"cause/{target}", now, now + took, worked))
        now += took
    return acts


@given(_LIMITS, _ATTEMPTS)
def test_every_window_holds_over_any_sequence(
    limits: Limits, attempts: list[tuple[float, float, str, str, bool, bool]]
) -> None:
    acts = _history(limits, attempts)
    for window in limits.windows:
        for act in acts:
            inside = [
                other.started for other in acts
                if 0 <= act.started - other.started < window.seconds
                and window.covers(other, act.action, act.target, automatic=True)
            ]  # fmt: skip
            if not window.action or window.action == act.action:
                assert len(inside) <= window.count, window


@given(_LIMITS, _ATTEMPTS)
def test_another_incident_waits_for_the_cooldown(
    limits: Limits, attempts: list[tuple[float, float, str, str, bool, bool]]
) -> None:
    acts = _history(limits, attempts)
    for before, after in pairwise(acts):
        same = [act for act in acts if act.target == after.target and act.started < after.started]
        if same and same[-1].incident != after.incident and same[-1].ended is not None:
            assert after.started - same[-1].ended >= limits.cooldown_s
        assert before.started <= after.started


@given(_LIMITS, _ATTEMPTS, st.sampled_from("abc"), st.sampled_from(_ACTIONS))
def test_a_denial_tells_when_it_lifts(
    limits: Limits, attempts: list[tuple[float, float, str, str, bool, bool]], target: str, action: str
) -> None:
    acts = _history(replace(limits, heals_per_hour=max(1, limits.heals_per_hour)), attempts)
    limits = replace(limits, heals_per_hour=max(1, limits.heals_per_hour))
    now = acts[-1].ended or 0.0 if acts else 1000.0
    request = Request(target, action, "new", f"cause/{target}")
    denials = check(acts, limits, request, now)
    assert all(denial.lifts_in_s > 0 for denial in denials)
    last = max((denial.lifts_in_s for denial in denials), default=0.0)
    if last < float("inf"):
        assert not check(acts, limits, request, now + last + 1e-3)


_PAST = st.builds(
    lambda ago, took, target, incident, worked, harm, back: Act(
        target, "restart_service", incident, f"cause/{target}", NOW - ago, NOW - ago + took, worked, harm=harm,
        relapsed=None if back is None else min(NOW, NOW - ago + took + back)),
    st.floats(130.0, 100_000.0), st.floats(0.0, 120.0), st.sampled_from("ab"), st.sampled_from("ijkl"),
    st.sampled_from([True, False, None]), st.booleans(), st.none() | st.floats(0.0, 9000.0),
)  # fmt: skip
_PASTS = st.lists(_PAST, max_size=5)


def _denied(acts: list[Act], now: float = NOW, target: str = "a") -> dict[str, float]:
    request = Request(target, "restart_service", "new", f"cause/{target}")
    return {denial.rule: denial.lifts_in_s for denial in check(acts, Limits(heals_per_hour=3), request, now)}


@given(_PASTS, _PAST)
def test_one_more_act_without_effect_in_the_past_allows_nothing(acts: list[Act], more: Act) -> None:
    acts = [replace(act, incident=f"i{number}") for number, act in enumerate(acts)]
    more = replace(more, incident="one more", effective=False)
    assert _denied(acts).keys() <= _denied([*acts, more]).keys()


@given(_PASTS, _PAST)
def test_one_more_act_whatever_came_of_it_makes_no_window_wider(acts: list[Act], more: Act) -> None:
    before, after = _denied(acts), _denied([*acts, more])
    for rule, lifts in before.items():
        if rule not in {"cooldown", "breaker"}:
            assert after[rule] >= lifts


@given(_PASTS, st.floats(0.0, 1.0))
def test_a_limit_lifts_when_it_says_and_not_before(acts: list[Act], share: float) -> None:
    request = Request("a", "restart_service", "new", "cause/a")
    limits = Limits(heals_per_hour=3)
    for rule in (partial(windows, acts, limits, request), partial(cooldown, acts, limits, request),
                 partial(breaker, acts, limits, "cause/a")):  # fmt: skip
        if (denial := rule(NOW)) is None or denial.lifts_in_s == float("inf"):
            continue
        assert rule(NOW + denial.lifts_in_s * share * 0.999) is not None
        after = rule(NOW + denial.lifts_in_s + 1e-3)
        assert after is None


@given(_PASTS)
def test_the_breaker_opens_at_harm_and_at_a_miss_after_a_miss_or_harm(acts: list[Act]) -> None:
    """Told in another way: each incident is a letter, and a pair of letters says whether it opened the breaker."""
    incidents: dict[str, list[Act]] = {}
    for act in sorted((act for act in acts if act.target == "a"), key=lambda act: act.started):
        incidents.setdefault(act.incident, []).append(act)
    climbs = list(incidents.values())
    ends = [max(act.ended or act.started for act in climb) for climb in climbs]
    began = [climb[0].started for climb in climbs[1:]] + [NOW]
    back = [[act.relapsed for act in climb if act.relapsed is not None] for climb in climbs]
    again = [min(seen, default=later) for seen, later in zip(back, began, strict=False)]
    letters = [
        "H" if any(act.harm for act in climb)
        else "g" if any(act.effective for act in climb) and later - end > 3600.0 else "m"
        for climb, end, later in zip(climbs, ends, again, strict=False)
    ]  # fmt: skip
    openings = [
        end for end, letter, before in zip(ends, letters, ["g", *letters], strict=False)
        if letter == "H" or (letter == "m" and before in "mH")
    ]  # fmt: skip
    bad = len(letters) - next((at for at, letter in enumerate(reversed(letters)) if letter == "g"), len(letters))
    since = [
        end for end, letter, before in list(zip(ends, letters, ["g", *letters], strict=False))[bad:]
        if letter == "H" or (letter == "m" and before in "mH")
    ]  # fmt: skip
    until = max(since) + 3600.0 if since else NOW
    denial = breaker(acts, Limits(), "cause/a", NOW)
    if denial is None:
        assert until <= NOW
    elif denial.lifts_in_s == float("inf"):
        assert len(openings) >= 3
    else:
        assert denial.lifts_in_s == until - NOW


def test_what_a_limit_may_ask_about_is_remembered_long_enough() -> None:
    assert Limits().memory_s == 7 * 86400.0
    longer = Limits(others=(*Limits().others, Window("rare", 1, 30 * 86400.0)))
    assert longer.memory_s == 30 * 86400.0
    assert Limits(others=()).memory_s == 7 * 86400.0
