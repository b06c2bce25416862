"""The values: frozen, and open for the older names."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from luminous_nix.self_healing.models import (
    Action,
    ActionRefused,
    ConfigError,
    HealingResult,
    Issue,
    IssueType,
    Severity,
    UnitState,
    nearest,
    unit_name,
)


def legacy(name: Any, **more: Any) -> Issue:
    return Issue(name, Severity.HIGH, "words", **more)


@pytest.mark.parametrize(
    ("name", "more", "kind", "component", "value"),
    [
        ("memory_high", {"metrics": {"memory_percent": 91}, "affected_components": ["system.memory"]},
         IssueType.RESOURCE, "memory", 91.0),
        ("cpu_high", {"metrics": {"cpu_percent": 99.5}}, IssueType.RESOURCE, "cpu", 99.5),
        ("disk_full", {"metric_value": 95.0}, IssueType.RESOURCE, "disk", 95.0),
        ("load_high", {"metrics": {"load_average": 12}}, IssueType.RESOURCE, "load", 12.0),
        ("service_failed", {"affected_components": ["nginx"]}, IssueType.SERVICE, "nginx", 0.0),
        ("service_failed", {"component": "sshd"}, IssueType.SERVICE, "sshd", 0.0),
        ("system_health", {"metrics": {"health": 20}}, IssueType.SYSTEM, "system", 20.0),
        ("resource", {"component": "cpu", "metric_value": 3.0}, IssueType.RESOURCE, "cpu", 3.0),
        ("aliens_landed", {}, IssueType.SYSTEM, "system", 0.0),
    ],
)  # fmt: skip
def test_older_types(name: str, more: dict[str, Any], kind: IssueType, component: str, value: float) -> None:
    issue = legacy(name, **more)
    assert (issue.type, issue.component, issue.metric_value) == (kind, component, value)


def test_an_unknown_type_is_unclassified() -> None:
    assert legacy("aliens_landed").kind == "unclassified"
    assert legacy("aliens_landed", component="roof").component == "roof"


def test_the_fingerprint_knows_no_figures_and_no_time() -> None:
    one = Issue(IssueType.RESOURCE, Severity.LOW, "a", "disk:/var", 91.0, 90.0, kind="bytes")
    two = Issue(IssueType.RESOURCE, Severity.HIGH, "b", "disk:/var", 99.0, 80.0, kind="bytes")
    assert one.fingerprint() == two.fingerprint()
    assert one.fingerprint() != legacy("resource", component="disk:/var", kind="inodes").fingerprint()
    assert one.fingerprint() != legacy("resource", component="disk", kind="bytes").fingerprint()
    assert one.fingerprint() != legacy("system", component="disk:/var", kind="bytes").fingerprint()


def test_values_are_frozen() -> None:
    issue = legacy("cpu_high", affected_components=["a", "b"])
    assert issue.affected_components == ("a", "b")
    for value, name in ((issue, "severity"), (Action("x"), "name"), (UnitState("x"), "name"),
                        (HealingResult(issue, "x", success=True), "success")):  # fmt: skip
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 1)


def test_severities_are_ordered_and_numbered() -> None:
    assert [grade.value for grade in Severity] == [1, 2, 3, 4]
    assert max(Severity) is Severity.CRITICAL


@pytest.mark.parametrize(
    ("request_", "action"),
    [
        ({"action": "free"}, Action("free")),
        ({"action": "free", "parameters": None}, Action("free")),
        ({"action": "free", "parameters": {"a": 1}, "more": 2}, Action("free", {"a": 1})),
        (Action("free", {"b": 2}), Action("free", {"b": 2})),
    ],
)
def test_an_action_is_parsed(request_: object, action: Action) -> None:
    assert Action.parse(request_) == action


@pytest.mark.parametrize("request_", [None, "free", 5, [], {}, {"action": 5}, {"action": "a", "parameters": [1]}])
def test_what_is_no_action_is_refused(request_: object) -> None:
    with pytest.raises(ActionRefused):
        Action.parse(request_)


@pytest.mark.parametrize(
    ("component", "unit"),
    [("nginx", "nginx.service"), ("nginx.service", "nginx.service"), ("a.b", "a.b.service"), ("x.timer", "x.timer"),
     ("getty@tty1", "getty@tty1.service"), ("-.mount", "-.mount")],
)  # fmt: skip
def test_unit_names(component: str, unit: str) -> None:
    assert unit_name(component) == unit


def test_hints() -> None:
    assert nearest("memroy", ("cpu", "memory")) == "did you mean 'memory'?"
    assert nearest("zzzzzz", ("cpu", "memory")) == "known: cpu, memory"
    error = ConfigError(["a: wrong", "b: wrong"], "look there")
    assert (str(error), error.hint, error.problems) == ("a: wrong; b: wrong", "look there", ["a: wrong", "b: wrong"])
