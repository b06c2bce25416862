"""Hours of the week against a calendar that is walked minute by minute; a policy never allows more than its mode."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from luminous_nix.self_healing.decide.actions import CATALOGUE
from luminous_nix.self_healing.decide.policy import Maintenance, Mode, Policy, Rule

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WEEK = 7 * 1440
_PARTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), max_size=3)


def _named(part: tuple[int, int, bool]) -> tuple[str, set[int]]:
    first, last, ranged = part
    if not ranged:
        return DAYS[first], {first}
    walked, day = {first}, first
    while day != last:
        day = (day + 1) % 7
        walked.add(day)
    return f"{DAYS[first]}-{DAYS[last]}", walked


@given(_PARTS, st.integers(0, 1439), st.integers(0, 1440))
def test_a_window_covers_the_minutes_that_a_calendar_says(
    parts: list[tuple[int, int, bool]], start: int, end: int
) -> None:
    if start == end:
        end = end - 1 if end else 1
    named = [_named(part) for part in parts]
    days = set().union(*(days for _, days in named)) or set(range(7))
    clock = f"{start // 60:02}:{start % 60:02}-{end // 60:02}:{end % 60:02}"
    window = Maintenance.parse(" ".join(filter(None, (",".join(name for name, _ in named), clock))))
    open_for = (end - start) % 1440 or 1440
    expected = {(1440 * day + start + minute) % WEEK for day in days for minute in range(open_for)}
    assert {at for at in range(WEEK) if window.covers(at // 1440, at % 1440)} == expected


@given(st.one_of(st.text(max_size=40), st.text("montuewdhfrisa-, :0123456789", max_size=24)))
def test_any_text_is_hours_or_no_value(text: str) -> None:
    with contextlib.suppress(ValueError):
        window = Maintenance.parse(text)
        assert window.days <= set(range(7))
        assert window.days
        assert 0 <= window.start < 1440
        assert 0 <= window.end <= 1440
        assert window.start != window.end


_GLOBS = st.sampled_from(["*", "service", "res*", "restart_service", "ng*", "nginx", "x"])
_MODES = st.sampled_from(Mode)
_RULES = st.lists(st.builds(Rule, _MODES, _GLOBS, _GLOBS, _GLOBS), max_size=4)
ORDER = [Mode.OBSERVE, Mode.CONFIRM, Mode.AUTO]


@given(_MODES, _RULES, st.sampled_from(sorted(CATALOGUE)), st.sampled_from(["nginx.service", "a.timer", ""]),
       st.booleans())  # fmt: skip
def test_the_mode_caps_whatever_the_rules_say(
    mode: Mode, rules: list[Rule], action: str, unit: str, asks: bool
) -> None:
    spec = CATALOGUE[action]
    arguments = dict.fromkeys(spec.asks_with) if asks else {}
    found, why = Policy(mode, tuple(rules)).mode_of(spec, arguments, unit)
    assert ORDER.index(found) <= ORDER.index(mode)
    free, _ = Policy(Mode.AUTO, tuple(rules)).mode_of(spec, arguments, unit)
    assert found is min(free, mode, key=ORDER.index)
    if why == "the catalogue's default":
        assert not any(rule.covers(spec, unit) for rule in rules)
