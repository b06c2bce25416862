"""Whatever a record holds: through JSON and back, nothing is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from luminous_nix.self_healing.decide.gates import Gate
from luminous_nix.self_healing.heal.records import HealingRecord, Rung, explain_lines, history_lines
from luminous_nix.self_healing.models import Action, Issue, IssueType, Severity

_WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_FIGURES = st.floats(allow_nan=False, allow_infinity=False)
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _FIGURES | _WORDS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_WORDS, inner, max_size=2), max_leaves=4,
)  # fmt: skip
_ARGUMENTS: st.SearchStrategy[dict[str, Any]] = st.dictionaries(_WORDS, _VALUES, max_size=3)
_GATES = st.lists(st.builds(Gate, _WORDS, st.booleans(), _WORDS, _WORDS), max_size=3).map(tuple)
_KNOBS = st.lists(st.tuples(_WORDS, _WORDS, _WORDS), max_size=2).map(tuple)
_RUNGS = st.builds(
    Rung, _WORDS, _ARGUMENTS, _WORDS, _WORDS, _FIGURES, _GATES, st.booleans(), _WORDS, _WORDS, _WORDS, _WORDS, _WORDS,
    _KNOBS, _WORDS,
)  # fmt: skip
_ISSUES = st.builds(
    Issue, st.sampled_from(IssueType), st.sampled_from(Severity), _WORDS, _WORDS, _FIGURES, _FIGURES,
    metrics=_ARGUMENTS, kind=_WORDS, cause=_WORDS, affected_components=st.lists(_WORDS, max_size=3).map(tuple),
)  # fmt: skip
_RECORDS = st.builds(
    HealingRecord, _WORDS, _FIGURES, _WORDS, _ISSUES, st.sampled_from(["open", "healed", "worse"]),
    st.lists(_RUNGS, max_size=3).map(tuple), st.booleans(), st.builds(Action, _WORDS, _ARGUMENTS), _FIGURES,
    st.lists(_WORDS, max_size=2).map(tuple),
)  # fmt: skip


@given(_RECORDS, st.booleans())
def test_a_record_goes_through_json_and_back(record: HealingRecord, asks: bool) -> None:
    record = record if asks else replace(record, asks=None, asks_until=0.0)
    kept = json.loads(json.dumps(record.document()))
    again = HealingRecord.parse(kept)
    issue = replace(again.issue, timestamp=record.issue.timestamp)
    assert replace(again, issue=issue) == record
    assert again.document() == kept
    assert again.issue.fingerprint() == record.issue.fingerprint()


@given(_RECORDS, st.none() | _FIGURES)
def test_any_record_can_be_shown(record: HealingRecord, now: float | None) -> None:
    document = json.loads(json.dumps(record.document()))
    for style, line in [*explain_lines(document, now), *history_lines([document])]:
        assert style in {"", "bold", "dim", "green", "yellow", "bold red"}
        assert line.rstrip()
