"""The record of a heal: what is kept is what is read again, and what people are shown of it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from luminous_nix.self_healing.decide.actions import CATALOGUE
from luminous_nix.self_healing.decide.gates import Gate, Question
from luminous_nix.self_healing.decide.limits import Request
from luminous_nix.self_healing.heal.records import (
    OPEN,
    HealingRecord,
    Rung,
    described,
    explain_lines,
    history_lines,
    opened,
)
from luminous_nix.self_healing.models import Action, Issue, IssueType, Severity

ISSUE = Issue(IssueType.RESOURCE, Severity.HIGH, "memory use at 97.0 %", "memory", 97.0, 85.0,
              metrics={"unit": "leaky.service", "unit_bytes": 5}, cause="leaky.service holds 5 MiB",
              affected_components=("a", "b"))  # fmt: skip
PASSED, SHUT = Gate("rate", True, "0 of 10"), Gate("cooldown", False, "99 s ago", "in 205 s")
HELD = Rung("clear_system_cache", {}, "reversible", "memory falls", 5.0, (PASSED, SHUT))
TAKEN = Rung(
    "limit_unit", {"unit": "leaky.service"}, "reversible", "the unit takes no more", 30.0, (PASSED,), taken=True,
    said="no recovery within 30 s; x failed since", verdict="worse", before="memory is at 97.0",
    after="memory is at 96.0", harm="x failed since", knobs=(("unit:leaky.service:MemoryHigh", "infinity", "5"),),
    undone="undone: the former values are back",
)  # fmt: skip
STORY = HealingRecord("ab12cd34ef56", 100.0, "2026-01-02T03:04:05+00:00", ISSUE, "worse", (HELD, TAKEN),
                      notes=("a person asked: undone",))  # fmt: skip


def text(lines: list[tuple[str, str]]) -> list[str]:
    return [line for _, line in lines]


def shown(document: dict[str, Any], now: float | None = None) -> str:
    return "\n".join(text(explain_lines(document, now)))


def test_a_record_is_read_again_as_it_was_kept() -> None:
    waiting = replace(STORY, asks=Action("restart_service", {"service": "leaky.service"}), asks_until=3700.0)
    for story in (STORY, waiting, replace(STORY, rungs=(), notes=(), automatic=False)):
        kept = json.loads(json.dumps(story.document()))
        again = HealingRecord.parse(kept)
        assert again.document() == kept == story.document()
        assert replace(again, issue=ISSUE) == story
        assert again.issue.fingerprint() == ISSUE.fingerprint()


def test_the_heads_of_a_record_are_what_the_store_looks_for() -> None:
    document = STORY.document()
    assert (document["component"], document["cause"], document["verdict"]) == ("memory", "resource/memory/-", "worse")
    assert document["actions"] == ["limit_unit"]
    assert document["told"] == [
        "clear_system_cache: cooldown: 99 s ago; lifts in 205 s",
        "limit_unit: no recovery within 30 s; x failed since; undone: the former values are back",
        "a person asked: undone",
    ]


def test_a_record_of_before_notes_were_kept_apart_is_read_with_what_it_told() -> None:
    document = {key: value for key, value in STORY.document().items() if key not in {"notes", "automatic", "asks"}}
    again = HealingRecord.parse(document)
    assert (again.notes, again.automatic, again.asks) == (tuple(STORY.told), True, None)


SPOILED: dict[str, dict[str, Any]] = {
    "no id": {"id": ...}, "no issue": {"issue": ...}, "an issue that is text": {"issue": "memory"},
    "an unknown type": {"issue": {**STORY.document()["issue"], "type": "alien"}},
    "an unknown severity": {"issue": {**STORY.document()["issue"], "severity": "dire"}},
    "a level that is no number": {"issue": {**STORY.document()["issue"], "metric_value": "high"}},
    "a rung that is text": {"rungs": ["restart"]},
    "a rung with an odd field": {"rungs": [{"gates": [], "knobs": [], "x": 1}]},
    "a gate with an odd field": {"rungs": [{"gates": [{"x": 1}], "knobs": []}]},
    "a knob of two": {"rungs": [{"gates": [], "knobs": [["a", "b"]]}]},
    "it asks for nothing in particular": {"asks": {"until": 1.0}}, "a time that is none": {"opened": None},
}  # fmt: skip


@pytest.mark.parametrize("spoiled", SPOILED.values(), ids=SPOILED.keys())
def test_what_is_no_record_is_told_by_one_of_three_errors(spoiled: dict[str, Any]) -> None:
    document = {key: value for key, value in (STORY.document() | spoiled).items() if value is not ...}
    with pytest.raises((KeyError, TypeError, ValueError)):
        HealingRecord.parse(document)


def test_a_record_begins_open_and_dated_by_peoples_clocks() -> None:
    story = opened("x" * 12, ISSUE, 5.0, datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), automatic=False)
    assert (story.verdict, story.automatic, story.opened, story.taken, story.told) == (OPEN, False, 5.0, [], [])
    assert datetime.fromisoformat(story.wall) == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def test_a_rung_is_described_by_the_catalogue() -> None:
    spec = CATALOGUE["restart_service"]
    request = Request("a.service", spec.name, "i", "c")
    rung = described(Question(ISSUE, spec, {"service": "a.service"}, request), (PASSED,))
    assert (rung.action, rung.risk, rung.effect, rung.deadline_s) == (
        "restart_service", "disruptive", spec.effect, spec.deadline_s
    )  # fmt: skip
    assert (rung.arguments, rung.gates, rung.taken, rung.shut) == ({"service": "a.service"}, (PASSED,), False, ())


def test_the_story_of_a_heal_is_told_in_full() -> None:
    assert text(explain_lines(STORY.document())) == [
        "memory use at 97.0 % (high)",
        "  verdict   worse: something else suffered",
        "  seen      2026-01-02T03:04:05+00:00",
        "  cause     leaky.service holds 5 MiB",
        "  evidence  unit = leaky.service",
        "  evidence  unit_bytes = 5",
        "  affects   a, b",
        "  rung 1    clear_system_cache(): not taken",
        "            risk      reversible; predicted: memory falls, to show within 5 s",
        "            gate ✗    cooldown: 99 s ago; lifts in 205 s",
        "            gate ✓    rate: 0 of 10",
        "  rung 2    limit_unit(unit=leaky.service): taken",
        "            risk      reversible; predicted: the unit takes no more, to show within 30 s",
        "            gate ✓    rate: 0 of 10",
        "            before    memory is at 97.0",
        "            said      no recovery within 30 s; x failed since",
        "            after     memory is at 96.0",
        "            harm      x failed since",
        "            measured  worse",
        "            undone    undone: the former values are back",
        "  told      a person asked: undone",
    ]


def test_what_is_empty_is_left_out() -> None:
    bare = HealingRecord("ab", 1.0, "then", Issue(IssueType.SYSTEM, Severity.LOW, "odd", "system"), "healed",
                         (Rung("observe", {}),))  # fmt: skip
    assert text(explain_lines(bare.document())) == [
        "odd (low)", "  verdict   healed", "  seen      then", "  rung 1    observe(): not taken",
    ]  # fmt: skip
    no_deadline = replace(bare, rungs=(Rung("observe", {}, "reversible", "none"),))
    assert "            risk      reversible; predicted: none" in text(explain_lines(no_deadline.document()))


@pytest.mark.parametrize(
    ("verdict", "style", "words"),
    [
        ("healed", "green", "healed"),
        ("recovered_by_itself", "green", "recovered_by_itself: nothing had to be done"),
        ("refused", "yellow", "refused: nothing was done"),
        (OPEN, "yellow", "open: it is under way, or the program ended in the middle"),
        ("worse", "bold red", "worse: something else suffered"),
        ("no_effect", "bold red", "no_effect: it was measured not to help"),
        ("failed", "bold red", "failed"),
    ],
)
def test_a_verdict_in_words(verdict: str, style: str, words: str) -> None:
    document = replace(STORY, verdict=verdict).document()
    assert (style, f"  verdict   {words}") in explain_lines(document)
    ((kept, line),) = history_lines([document])
    assert kept == style
    assert line == f"2026-01-02T03:04:05+00:00  ab12cd34ef56  {verdict:<19} memory  limit_unit"


def test_a_history_of_what_was_not_done() -> None:
    ((_, line),) = history_lines([replace(STORY, rungs=(HELD,), verdict="refused").document()])
    assert line.endswith("refused             memory  - (cooldown)")
    assert history_lines([]) == []


def test_what_waits_for_a_person_says_how_long_it_still_does() -> None:
    waiting = replace(STORY, asks=Action("restart_service"), asks_until=3700.0).document()
    assert "`luminous-healing confirm ab12cd34ef56` takes restart_service" in shown(waiting)
    assert "`luminous-healing confirm ab12cd34ef56` within 59 minutes takes restart_service" in shown(waiting, 160.0)
    assert "confirm" not in shown(waiting, 3700.0)
    assert "confirm" not in shown(STORY.document(), 0.0)


def test_nothing_that_a_terminal_obeys_is_shown() -> None:
    evil = "a\x1b[2Jb\nc"
    rung = replace(TAKEN, arguments={"unit": evil}, said=evil, gates=(Gate("x", False, evil, "later"),))
    issue = replace(
        ISSUE, description=evil, component=evil, cause=evil, metrics={evil: evil}, affected_components=(evil,)
    )
    story = replace(STORY, issue=issue, rungs=(rung,), notes=(evil,))
    for line in text(explain_lines(story.document())) + text(history_lines([story.document()])):
        assert "\x1b" not in line
        assert "\n" not in line
