"""decide: the catalogue's grammar, the ladders, the protected set."""

from __future__ import annotations

from typing import Any

import pytest

from luminous_nix.self_healing.act.operations import OPERATIONS
from luminous_nix.self_healing.decide.actions import CATALOGUE, Risk, protected, specify, target_of, valid_unit
from luminous_nix.self_healing.decide.resolver import LADDERS, SimpleResolver
from luminous_nix.self_healing.models import Action, ActionRefused, Issue, IssueType, Severity

HOSTILE_UNITS = {
    "empty": "", "newline": "nginx.service\n", "newline-inside": "ngi\nnx", "slash": "../nginx", "dots": "..",
    "unicode": "ngínx", "fullwidth": "\uff4eginx", "blank": "ngi nx", "option": "--now", "300-characters": "a" * 300,
    "nul": "nginx\0", "target": "reboot.target", "slice": "system.slice", "scope": "init.scope", "glob": "*",
    "semicolon": "a;b", "dollar": "$(id)", "percent": "%n", "only-a-type": ".service",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_UNITS.values(), ids=HOSTILE_UNITS.keys())
def test_a_hostile_unit_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError):
        valid_unit(name)
    with pytest.raises(ActionRefused, match="restart_service: service must be"):
        specify(Action("restart_service", {"service": name}))


@pytest.mark.parametrize("value", [None, 5, b"nginx", ["nginx"], {"a": 1}], ids=repr)
def test_a_unit_name_is_text(value: object) -> None:
    with pytest.raises(ValueError):
        valid_unit(value)


@pytest.mark.parametrize(
    ("name", "unit"),
    [("nginx", "nginx.service"), ("pg@15-main", "pg@15-main.service"), ("x.timer", "x.timer"),
     (r"srv-my\x20disk.mount", r"srv-my\x20disk.mount"), ("dbus-org.x", "dbus-org.x.service")],
)  # fmt: skip
def test_a_good_unit_name(name: str, unit: str) -> None:
    assert valid_unit(name) == unit


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        pytest.param("adjust_swappiness", {"value": 201}, "from 0 to 200", id="above"),
        pytest.param("adjust_swappiness", {"value": -1}, "from 0 to 200", id="below"),
        pytest.param("adjust_swappiness", {"value": True}, "whole number", id="bool-is-no-number"),
        pytest.param("adjust_swappiness", {"value": 10.0}, "whole number", id="float"),
        pytest.param("adjust_swappiness", {"value": "10"}, "whole number", id="text"),
        pytest.param("adjust_swappiness", {}, "needs value", id="missing"),
        pytest.param("restart_service", {}, "needs service", id="no-service"),
        pytest.param("restart_service", {"service": "a", "force": True}, "takes no 'force'", id="unknown-argument"),
        pytest.param("set_cpu_governor", {"governor": "a/b"}, "short word", id="path-as-governor"),
        pytest.param("set_cpu_governor", {"governor": "schedutil\n"}, "short word", id="newline-in-governor"),
        pytest.param("clear_system_cache", {"drop_caches": 1}, "true or false", id="one-is-no-truth"),
        pytest.param("clean_nix_store", {"filesystem": "nix"}, "absolute path", id="relative-path"),
        pytest.param("clean_nix_store", {"filesystem": "/a\0b"}, "absolute path", id="nul-in-path"),
        pytest.param("clean_nix_store", {"max_freed_bytes": 0}, "whole number", id="no-bytes"),
        pytest.param("kill_process", {"pid": 1, "start_time": 5}, "from 2", id="pid-1"),
        pytest.param("kill_process", {"pid": 0, "start_time": 5}, "from 2", id="pid-0"),
        pytest.param("kill_process", {"pid": -5, "start_time": 5}, "from 2", id="process-group"),
        pytest.param("kill_process", {"pid": 77}, "needs start_time", id="no-identity"),
        pytest.param("rollback_generation", {"generation": 0}, "from 1", id="generation-0"),
        pytest.param("limit_unit", {}, "needs unit", id="no-unit"),
        pytest.param("limit_unit", {"unit": "a", "memory_high_bytes": 1}, "from 1048576", id="memory-of-a-byte"),
        pytest.param("limit_unit", {"unit": "a", "cpu_weight": 0}, "from 1 to 10000", id="weight-0"),
        pytest.param("limit_unit", {"unit": "a", "cpu_quota_percent": 12.5}, "whole number", id="part-of-a-percent"),
        pytest.param("limit_unit", {"unit": "a", "io_weight": 10_001}, "from 1 to 10000", id="weight-above"),
        pytest.param("freeze_unit", {"unit": "a\n"}, "name of a service", id="newline-in-unit"),
        pytest.param("free_memory", {"unit": "../a"}, "name of a service", id="slash-in-unit"),
        pytest.param("prune_generations", {"keep": 2}, "from 3 to 100", id="keep-2"),
        pytest.param("rebuild_system", {"flake": "."}, "takes no 'flake'", id="nothing-is-evaluated"),
        pytest.param("run_plugin", {}, "needs name", id="no-plugin"),
        pytest.param("run_plugin", {"name": "../x"}, "short word", id="path-as-plugin"),
        pytest.param("run_plugin", {"name": "x", "issue": [1]}, "mapping of plain values", id="issue-is-a-list"),
        pytest.param("run_plugin", {"name": "x", "issue": {"a": {1}}}, "mapping of plain", id="issue-with-a-set"),
        pytest.param("run_plugin", {"name": "x", "issue": {"a": float("nan")}}, "mapping of plain", id="nan"),
        pytest.param("run_plugin", {"name": "x", "issue": {"a": "x" * 70_000}}, "64 KiB at most", id="flood"),
        pytest.param("run_plugin", {"name": "x", "parameters": {(1, 2): 3}}, "mapping of plain", id="odd-key"),
    ],
)
def test_arguments_out_of_grammar_are_refused(name: str, parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(ActionRefused, match=said):
        specify(Action(name, parameters))


@pytest.mark.parametrize(
    ("action", "hint"),
    [
        (Action("restart_servce"), "'restart_service'"),
        (Action("clean_nix_stor"), "'clean_nix_store'"),
        (Action("xyzzy"), "known: adjust_swappiness"),
        (Action("kill_process", {"pdi": 5}), "'pid'"),
        (Action(""), "known:"),
    ],
)
def test_an_unknown_name_is_told_the_nearest(action: Action, hint: str) -> None:
    with pytest.raises(ActionRefused) as refusal:
        specify(action)
    assert hint in refusal.value.hint


def test_a_long_name_does_not_flood_the_message() -> None:
    with pytest.raises(ActionRefused) as refusal:
        specify(Action("x" * 100_000))
    assert len(refusal.value.message) < 200


def test_arguments_come_back_checked() -> None:
    spec, arguments = specify(Action("restart_service", {"service": "nginx"}))
    assert (spec.name, arguments) == ("restart_service", {"service": "nginx.service"})


def test_every_row_has_an_operation_and_every_operation_a_row() -> None:
    assert set(CATALOGUE) == set(OPERATIONS)


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_row_is_complete(name: str) -> None:
    spec = CATALOGUE[name]
    assert spec.effect
    assert spec.precheck
    assert spec.undo
    assert spec.asks_with <= set(spec.arguments)
    assert 0 <= spec.deadline_s <= 600
    assert spec.timeout_s > 0
    assert not (spec.auto and spec.risk is Risk.IRREVERSIBLE) or name in {"clean_nix_store", "vacuum_journal"}


AUTO = {
    "observe", "limit_unit", "thaw_unit", "adjust_swappiness", "set_cpu_governor", "clear_system_cache",
    "reload_service", "start_unit", "restart_service", "rerun_timer", "vacuum_journal", "clean_nix_store",
}  # fmt: skip


def test_what_may_happen_unasked() -> None:
    assert {name for name, spec in CATALOGUE.items() if spec.auto} == AUTO
    assert {name: set(spec.asks_with) for name, spec in CATALOGUE.items() if spec.asks_with} == {
        "clear_system_cache": {"drop_caches"},
        "restart_service": {"running", "again"},
    }


def test_a_mapping_is_copied_when_it_is_checked() -> None:
    inner = {"b": [1, (2,)]}
    _, arguments = specify(Action("run_plugin", {"name": "x", "issue": {"a": inner}}))
    inner["b"].append(3)
    assert arguments["issue"] == {"a": {"b": [1, [2]]}}


@pytest.mark.parametrize(
    ("name", "parameters", "target"),
    [
        ("limit_unit", {"unit": "a"}, "a.service"),
        ("rerun_timer", {"unit": "a.timer"}, "a.timer"),
        ("free_memory", {"unit": "a"}, "a.service"),
        ("free_memory", {}, "memory"),
        ("run_plugin", {"name": "mend", "unit": "a"}, "a.service"),
        ("run_plugin", {"name": "mend"}, "plugin:mend"),
        ("clean_disk", {"filesystem": "/var"}, "disk:/var"),
        ("rebuild_system", {}, "memory"),
    ],
)
def test_what_an_act_works_on(name: str, parameters: dict[str, Any], target: str) -> None:
    _, arguments = specify(Action(name, parameters))
    assert target_of(Issue(IssueType.RESOURCE, Severity.HIGH, "x", "memory"), arguments) == target


ORDER = [Risk.REVERSIBLE, Risk.DISRUPTIVE, Risk.IRREVERSIBLE]


@pytest.mark.parametrize("key", LADDERS, ids=str)
def test_every_rung_is_in_the_catalogue_and_ladders_climb(key: tuple[IssueType, str, str]) -> None:
    rungs = LADDERS[key]
    risks = [ORDER.index(CATALOGUE[rung.name].risk) for rung in rungs]
    assert risks == sorted(risks)
    for name, arguments, _ in rungs:
        assert set(arguments) <= set(CATALOGUE[name].arguments)


@pytest.mark.parametrize(
    "unit",
    ["sshd.service", "ssh.service", "sshd@1.service", "dbus.service", "dbus-broker.service", "systemd-logind.service",
     "polkit.service", "NetworkManager.service", "init.scope", "user@1000.service", "getty@tty1.service",
     "luminous-healing.service", "luminous-healing-executor.service", "display-manager.service", "-.mount"],
)  # fmt: skip
def test_the_protected_set(unit: str) -> None:
    assert protected(unit)


@pytest.mark.parametrize("unit", ["nginx.service", "postgresql.service", "sshguard.service", "my-dbus.service"])
def test_what_is_not_protected(unit: str) -> None:
    assert not protected(unit)


# -- the resolver --------------------------------------------------------------------------------------------


def issue(kind: IssueType, component: str, sort: str = "", **metrics: Any) -> Issue:
    return Issue(kind, Severity.HIGH, "x", component, kind=sort, metrics=metrics)


SERVICE, RESOURCE, SYSTEM = IssueType.SERVICE, IssueType.RESOURCE, IssueType.SYSTEM


@pytest.mark.parametrize(
    ("trouble", "action", "parameters"),
    [
        (issue(SERVICE, "nginx", "unit_failed"), "restart_service", {"service": "nginx"}),
        (issue(SERVICE, "nginx", "unit_inactive"), "restart_service", {"service": "nginx"}),
        (issue(SERVICE, "nginx"), "restart_service", {"service": "nginx"}),
        (issue(RESOURCE, "cpu"), "set_cpu_governor", {}),
        (issue(RESOURCE, "memory"), "clear_system_cache", {}),
        (issue(RESOURCE, "disk"), "clean_nix_store", {}),
        (issue(RESOURCE, "disk:/nix", "bytes", mount="/nix"), "clean_nix_store", {"filesystem": "/nix"}),
        (issue(SYSTEM, "system"), "rollback_generation", {}),
        (issue(RESOURCE, "swap"), "observe", {}),
        (issue(RESOURCE, "load"), "observe", {}),
        (issue(SYSTEM, "system", "pressure"), "observe", {}),
        (issue(SYSTEM, "system", "unclassified"), "observe", {}),
        (issue(SERVICE, "run-u1", "one_off"), "observe", {}),
    ],
)  # fmt: skip
def test_the_first_remedy(trouble: Issue, action: str, parameters: dict[str, Any]) -> None:
    assert SimpleResolver().get_action(trouble) == {"action": action, "parameters": parameters}


@pytest.mark.parametrize(
    ("trouble", "names"),
    [
        (issue(SERVICE, "nginx", "unit_failed"), ["restart_service"]),
        (issue(SERVICE, "nginx", "unit_inactive"), ["start_unit", "restart_service"]),
        (issue(SERVICE, "run-u1", "one_off"), []),
        (issue(RESOURCE, "disk", "bytes", mount="/"), ["clean_nix_store", "vacuum_journal", "clean_disk"]),
        (issue(RESOURCE, "disk:/var", "inodes", mount="/var"), ["clean_nix_store", "clean_disk"]),
        (issue(SERVICE, "backup", "job_failed"), ["rerun_timer"]),
        (issue(RESOURCE, "memory"), ["clear_system_cache"]),
        (
            issue(RESOURCE, "memory", unit="leaky.service", running=True),
            ["clear_system_cache", "limit_unit", "restart_service"],
        ),
        (issue(SYSTEM, "system", "shared_cause"), []),
        (issue(RESOURCE, "swap"), []),
        (issue(SYSTEM, "system", "pressure"), []),
        (Issue("aliens_landed", Severity.HIGH, "x"), []),  # type: ignore[arg-type]
    ],
)
def test_the_ladder(trouble: Issue, names: list[str]) -> None:
    ladder = SimpleResolver().get_ladder(trouble)
    assert [rung.name for rung in ladder] == names
    assert SimpleResolver().climb(trouble) == ladder
    for rung in ladder:
        specify(rung)


class Custom(SimpleResolver):
    def get_action(self, issue: Issue) -> dict[str, Any]:
        if issue.component == "swap":
            return {"action": "adjust_swappiness", "parameters": {"value": 10}}
        return {"action": "observe"} if issue.component == "load" else super().get_action(issue)


@pytest.mark.parametrize(
    ("component", "rungs"),
    [
        ("swap", (Action("adjust_swappiness", {"value": 10}),)),
        ("load", ()),
        ("disk", (Action("clean_nix_store"),)),
    ],
)
def test_an_overridden_get_action_is_the_only_rung(component: str, rungs: tuple[Action, ...]) -> None:
    assert Custom().climb(issue(RESOURCE, component)) == rungs
