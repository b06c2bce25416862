"""report.py: as data, and as lines that a terminal may be shown."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from luminous_nix.self_healing.models import (
    HealingResult,
    Issue,
    IssueType,
    Reading,
    SensorHealth,
    Severity,
    Status,
    Verdict,
)
from luminous_nix.self_healing.report import check_data, check_lines, exit_code, heal_data, heal_lines, printable

HOSTILE = "a\x1b[2Jb\r\n\x07\x00\u202ec\x9bd\udcffe\u200b\x7f"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("plain text: äöü ✓ 漢", "plain text: äöü ✓ 漢", id="text-stays"),
        pytest.param("\x1b[31mred\x1b[0m", r"\x1b[31mred\x1b[0m", id="colours"),
        pytest.param("a\nb\tc\r", r"a\nb\tc\r", id="lines"),
        pytest.param("\x9b2J", r"\x9b2J", id="one-byte-control-sequence"),
        pytest.param("\u202egnp.exe", r"\u202egnp.exe", id="right-to-left-override"),
        pytest.param("\udcff", r"\udcff", id="not-utf-8"),
        pytest.param("", "", id="empty"),
    ],
)
def test_printable(text: str, shown: str) -> None:
    assert printable(text) == shown


def issue(text: str = "disk use at 97.0 % on /") -> Issue:
    return Issue(IssueType.RESOURCE, Severity.HIGH, text, "disk", 97.0, 90.0, kind="bytes")


READINGS = [
    Reading("cpu", 12.0, "percent", Status.OK, 80.0),
    Reading(f"disk:/{HOSTILE}", 97.0, "percent", Status.ISSUE, 90.0),
    Reading("pressure:io:some", 1.0, "percent", Status.OK),
    Reading("load", None, "load", Status.UNKNOWN),
]
SENSORS = [SensorHealth("cpu", ok=True), SensorHealth("load", ok=False, error=f"{HOSTILE}: no such file")]


def test_a_look_as_data() -> None:
    data = json.loads(json.dumps(check_data([issue()], READINGS, SENSORS)))
    assert set(data) == {"schema", "healthy", "health", "issues", "readings", "sensors", "unknown"}
    assert (data["schema"], data["healthy"], data["health"], data["unknown"]) == (1, False, 85, ["load"])
    assert data["issues"][0]["severity"] == "high"
    assert data["readings"]["load"] == {"value": None, "unit": "load", "status": "unknown", "threshold": None}
    assert data["sensors"]["load"]["ok"] is False


def safe(lines: list[tuple[str, str]]) -> bool:
    return all(text.isprintable() for _, text in lines)


def test_a_look_as_lines_is_safe_for_a_terminal() -> None:
    lines = check_lines(check_data([issue(HOSTILE)], READINGS, SENSORS))
    assert safe(lines)
    assert lines[-1][1].startswith("1 issue, health 85 of 100; not observed: load")
    assert not any("io:some" in text for _, text in lines)


def test_the_last_line_of_a_look() -> None:
    fine = check_lines(check_data([], READINGS[:1], SENSORS[:1]))
    assert fine[-1] == ("green", "no issues, health 100 of 100")
    blind = check_lines(check_data([], [], SENSORS[1:]))
    assert blind[-1][1].startswith("nothing could be observed")


@pytest.mark.parametrize(
    ("issues", "seen", "healthy"),
    [
        ([], [True], True),
        ([], [True, False], True),
        ([], [False], False),
        ([], [], False),
        ([issue()], [True], False),
    ],
)
def test_healthy_is_only_what_was_seen(issues: list[Issue], seen: list[bool], healthy: bool) -> None:
    data = check_data(issues, [], [SensorHealth(f"s{n}", ok=ok) for n, ok in enumerate(seen)])
    assert data["healthy"] is healthy


def result(verdict: Verdict, success: bool = False) -> HealingResult:
    return HealingResult(issue(HOSTILE), "clean_nix_store", success, None if success else f"first\n{HOSTILE}",
                         verdict=verdict, actions_taken=["clean_nix_store"])  # fmt: skip


@pytest.mark.parametrize("verdict", Verdict)
def test_every_verdict_can_be_told(verdict: Verdict) -> None:
    lines = heal_lines([result(verdict)], healthy=False, dry_run=False)
    assert safe(lines)
    assert any(verdict.value.replace("_", " ") in text for _, text in lines)
    assert lines[-1][1] == "issues remain"
    data = json.loads(json.dumps(heal_data([result(verdict)], healthy=False)))
    assert set(data) == {"schema", "healthy", "results"}
    assert {"issue", "action", "verdict", "error"} <= set(data["results"][0])
    assert data["results"][0]["verdict"] == verdict.value


def test_the_end_of_a_cycle() -> None:
    assert heal_lines([], healthy=True, dry_run=True) == [("green", "nothing to heal")]
    assert heal_lines([], healthy=False, dry_run=True) == [("yellow", "nothing could be observed")]
    dry = result(Verdict.DRY_RUN, success=True)
    assert heal_lines([dry], healthy=False, dry_run=True)[-1] == (
        "cyan",
        "this was a dry run: nothing was changed, and nothing would be",
    )
    assert heal_lines([dry, replace(dry, would_act=True)], healthy=False, dry_run=True)[-1] == (
        "cyan",
        "this was a dry run: nothing was changed, `luminous-healing heal --apply` acts",
    )
    assert (
        heal_lines([result(Verdict.HEALED, success=True)], healthy=True, dry_run=False)[-1][1]
        == "all issues are gone"
    )


@pytest.mark.parametrize(
    ("issues", "seen", "code"),
    [
        ([], [True], 0),
        ([], [True, False], 0),
        ([issue()], [True], 1),
        ([issue()], [False], 1),
        ([], [False], 3),
        ([], [], 3),
    ],
)
def test_the_exit_code(issues: list[Issue], seen: list[bool], code: int) -> None:
    assert exit_code(issues, [SensorHealth("x", ok=ok) for ok in seen]) == code
