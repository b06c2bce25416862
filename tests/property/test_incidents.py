"""Whatever the looks show: nothing closes on what was not seen, and opening is counted right."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from luminous_nix.self_healing.decide.incidents import Incidents
from luminous_nix.self_healing.models import Issue, IssueType, Severity, Snapshot

THRESHOLD = 80.0
THRESHOLDS = {"memory_percent": THRESHOLD, "swap_percent": THRESHOLD}
# Each look: the level of memory (None: not to be read), and whether the unit is down (None: not to be seen).
_LOOKS = st.lists(
    st.tuples(st.none() | st.floats(0.0, 100.0), st.sampled_from([True, False, None]), st.floats(0.0, 900.0)),
    max_size=30,
)  # fmt: skip


@given(_LOOKS)
def test_nothing_closes_on_what_was_not_seen(looks: list[tuple[float | None, bool | None, float]]) -> None:
    incidents, now, opened = Incidents(), 0.0, 0
    memory, unit = "resource/memory/-", "service/nginx/unit_failed"
    expected = {memory: False, unit: False}
    openings = 0
    for value, down, pause in looks:
        now += pause
        issues, broken = [], []
        if value is None:
            broken.append(("memory", "no", 1))
        elif value >= THRESHOLD:
            issues.append(Issue(IssueType.RESOURCE, Severity.HIGH, "x", "memory", value, THRESHOLD))
        if down is None:
            broken.append(("services", "no", 1))
        elif down:
            issues.append(Issue(IssueType.SERVICE, Severity.HIGH, "x", "nginx", kind="unit_failed"))
        values = {} if value is None else {"memory": value}
        opened += incidents.note(Snapshot(values, looks=tuple(broken)), issues, now, THRESHOLDS)
        was = dict(expected)
        if value is not None:
            expected[memory] = value >= THRESHOLD or (was[memory] and value >= THRESHOLD * 0.9)
        if down is not None:
            expected[unit] = down
        openings += sum(expected[name] and not was[name] for name in expected)
        assert {incident.issue.fingerprint() for incident in incidents.open} == {
            name for name, is_open in expected.items() if is_open
        }
    assert opened == openings
    assert len(incidents.fresh) == 2 * openings - sum(expected.values())
