"""Whatever is asked and whenever: what `check` lets through keeps every limit."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from luminous_nix.self_healing.decide.limits import Act, Limits, Request, check

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
