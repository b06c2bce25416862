"""judge_unit on the cases of cases/units: one file, one situation that systemd reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luminous_nix.self_healing.decide.judge import judge_unit
from luminous_nix.self_healing.models import IssueType, UnitState

HERE = Path(__file__).parent
CASES = sorted((HERE.parent / "cases/units").glob("*.json"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_unit(path: Path) -> None:
    case = json.loads(path.read_text("utf-8"))
    issue = judge_unit(UnitState(**case["unit"]))
    if issue is None:
        assert case["issue"] is None, case["why"]
        return
    assert issue.type is IssueType.SERVICE
    seen = {
        "kind": issue.kind, "severity": issue.severity.name, "cause": issue.cause, "component": issue.component,
    }  # fmt: skip
    assert seen == case["issue"], case["why"]
    assert issue.description.startswith(case["unit"]["name"])


def test_there_are_cases() -> None:
    assert len(CASES) > 40
    assert len({path.stem for path in CASES}) == len(CASES)
