"""Whatever is asked and whenever: what `check` lets through keeps the limits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luminous_nix.self_healing.decide.limits import HOUR_S, Ledger, Limits, check

_LIMITS = st.builds(Limits, st.integers(0, 10), st.floats(0.0, 5000.0))
# Each attempt: how long after the one before, how long the act takes, on what, and whether it climbs.
_ATTEMPTS = st.lists(
    st.tuples(st.floats(0.0, 900.0), st.floats(0.0, 120.0), st.sampled_from("abc"), st.booleans()), max_size=60
)


@given(_LIMITS, _ATTEMPTS)
def test_no_sequence_of_allowed_acts_breaks_a_limit(
    limits: Limits, attempts: list[tuple[float, float, str, bool]]
) -> None:
    ledger, now = Ledger(), 1000.0
    starts: list[float] = []
    ended: dict[str, float] = {}
    for pause, duration, target, climbing in attempts:
        now += pause
        if check(ledger, limits, target, now, climbing=climbing) is not None:
            continue
        starts.append(now)
        assert climbing or now - ended.get(target, float("-inf")) >= limits.cooldown_s
        assert sum(now - at < HOUR_S for at in starts) <= limits.heals_per_hour
        ledger = ledger.begin(now)
        now += duration
        ended[target] = now
        ledger = ledger.end(target, now, limits)


@given(_LIMITS, _ATTEMPTS, st.sampled_from("abc"))
def test_a_denial_tells_when_it_lifts(
    limits: Limits, attempts: list[tuple[float, float, str, bool]], target: str
) -> None:
    ledger, now = Ledger(), 1000.0
    for pause, duration, name, _ in attempts:
        now += pause
        ledger = ledger.begin(now).end(name, now + duration, limits)
        now += duration
    denial = check(ledger, limits, target, now)
    if denial is None:
        return
    assert denial.lifts_in_s > 0
    if limits.heals_per_hour:
        assert check(ledger, limits, target, now + denial.lifts_in_s + 1e-6) is None


@given(_ATTEMPTS)
def test_the_ledger_forgets_what_no_limit_asks_about(attempts: list[tuple[float, float, str, bool]]) -> None:
    ledger, now, limits = Ledger(), 1000.0, Limits()
    for pause, _, name, _ in attempts:
        now += pause
        ledger = ledger.begin(now).end(name, now, limits)
        assert all(now - at < HOUR_S for at in ledger.started)
        assert set(ledger.ended) <= set("abc")
