"""SimpleDetector on a host of files; find_issues and its companions on values."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.decide.judge import find_issues, health_score, measure, severity
from luminous_nix.self_healing.decide.thresholds import Thresholds
from luminous_nix.self_healing.models import (
    CHECKS,
    ConfigError,
    Issue,
    IssueType,
    Severity,
    Snapshot,
    Status,
    UnitState,
)
from luminous_nix.self_healing.observe.detector import SimpleDetector, cpu_count
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, FakeHost, no_bus

pytestmark = pytest.mark.anyio
FILES = ("cpu", "memory", "load", "pressure", "disk")  # the sensors that read files


def detector(host: FakeHost, checks: tuple[str, ...] = ("memory", "load"), **more: Any) -> SimpleDetector:
    return SimpleDetector(enabled_checks=checks, roots=host.roots, bus=no_bus(), clock_ns=Clock().ns, **more)


# -- the detector on files -----------------------------------------------------------------------------------


async def test_a_calm_host_has_no_issues(host: FakeHost) -> None:
    assert await detector(host).detect_issues() == []


async def test_trouble_is_seen_and_seen_to_end(host: FakeHost) -> None:
    watch = detector(host)
    host.memory(96.0)
    (issue,) = await watch.detect_issues()
    assert (issue.type, issue.component, issue.severity) == (IssueType.RESOURCE, "memory", Severity.HIGH)
    assert issue.metric_value == pytest.approx(96.0)
    assert issue.threshold == 85.0
    assert "96.0 %" in issue.description
    host.memory(84.0)
    assert await watch.detect_issues() == []


@pytest.mark.parametrize(
    ("sensor", "file"),
    [("cpu", "stat"), ("memory", "meminfo"), ("load", "loadavg"), ("pressure", "pressure/memory"),
     ("disk", "self/mountinfo")],
)  # fmt: skip
@pytest.mark.parametrize("broken", ["missing", "binary", "directory"])
async def test_a_sensor_fails_alone(host: FakeHost, sensor: str, file: str, broken: str) -> None:
    path = host.roots.proc / file
    path.unlink()
    if broken == "binary":
        path.write_bytes(b"\x00\xff" * 100)
    if broken == "directory":
        path.mkdir()
    others = FILES[1:] if sensor != "cpu" else FILES  # the counters of this host stand still
    watch = SimpleDetector(enabled_checks=others, roots=host.roots, bus=no_bus())
    snapshot = await watch.observe()
    wrong = {health.name: health.error for health in snapshot.sensors if not health.ok}
    if sensor == "disk" and broken == "binary":
        assert wrong == {}  # a mount table without a filesystem that is known
        return
    assert list(wrong) == [sensor]
    assert wrong[sensor]
    assert not any(name.partition(":")[0] == sensor for name in snapshot.values) or sensor == "pressure"
    assert all(issue.component != sensor for issue in watch.find(snapshot))


async def test_an_unreadable_file_is_named(host: FakeHost) -> None:
    (host.roots.proc / "meminfo").unlink()
    snapshot = await detector(host).observe()
    assert snapshot.sensors[0].error == f"{host.roots.proc}/meminfo: No such file or directory"


async def test_what_cannot_be_read_is_unknown_not_healthy(host: FakeHost) -> None:
    (host.roots.proc / "loadavg").unlink()
    watch = detector(host)
    readings = {reading.name: reading for reading in watch.readings(await watch.observe())}
    assert (readings["load"].value, readings["load"].status) == (None, Status.UNKNOWN)
    assert readings["memory"].status is Status.OK
    host.load(100.0)
    host.memory(99.0)
    readings = {reading.name: reading for reading in watch.readings(await watch.observe())}
    assert (readings["load"].status, readings["load"].unit) == (Status.ISSUE, "load")
    assert (readings["memory"].status, readings["memory"].unit) == (Status.ISSUE, "percent")


async def test_services_without_a_bus_are_unknown(host: FakeHost) -> None:
    watch = detector(host, ("services",))
    (health,) = (await watch.observe()).sensors
    assert (health.name, health.ok) == ("services", False)
    assert "D-Bus" in health.error
    assert await watch.detect_issues() == []


async def test_the_first_look_has_a_cpu_figure(host: FakeHost) -> None:
    watch = SimpleDetector(roots=host.roots, bus=no_bus(), enabled_checks=("cpu",))
    snapshot = await watch.observe()  # the counters stand still: no figure, and it is told
    assert snapshot.values == {}
    assert not snapshot.sensors[0].ok
    real = SimpleDetector(bus=no_bus(), enabled_checks=("cpu",))
    assert 0.0 <= (await real.observe()).values["cpu"] <= 100.0


@pytest.mark.parametrize(
    ("checks", "names"),
    [
        pytest.param(("memory",), {"memory"}, id="memory-alone"),
        pytest.param(("swap",), {"swap"}, id="swap-alone"),
        pytest.param(("memory", "swap"), {"memory", "swap"}, id="both"),
        pytest.param(("load",), {"load"}, id="load"),
        pytest.param((), set(), id="nothing"),
    ],
)
async def test_enabled_checks_select(host: FakeHost, checks: tuple[str, ...], names: set[str]) -> None:
    assert set((await detector(host, checks).observe()).values) == names


async def test_enabled_checks_can_be_changed_between_two_looks(host: FakeHost) -> None:
    watch = detector(host)
    watch.enabled_checks = ["load"]
    assert watch.enabled_checks == ("load",)
    assert set((await watch.observe()).values) == {"load"}
    watch.enabled_checks = "memory"
    assert set((await watch.observe()).values) == {"memory"}


async def test_an_unknown_check_names_the_nearest(host: FakeHost) -> None:
    watch = detector(host)
    with pytest.raises(ConfigError, match="no check 'memroy'") as error:
        watch.enabled_checks = ("memroy",)
    assert "'memory'" in error.value.hint
    assert watch.enabled_checks == ("memory", "load")


async def test_every_check_of_the_specification_exists(host: FakeHost) -> None:
    assert detector(host, CHECKS).enabled_checks == (
        "cpu", "memory", "swap", "load", "disk", "pressure", "services"
    )  # fmt: skip


async def test_disk_readings_and_the_option_tmpfs(host: FakeHost) -> None:
    place = host.root / "tmp"
    place.mkdir()
    host.mounts([f"9 1 0:9 / {place} rw - tmpfs tmpfs rw"])
    assert (await detector(host, ("disk",)).observe()).values == {}
    assert f"disk:{place}" in (await detector(host, ("disk",), include_tmpfs=True).observe()).values
    ignoring = detector(host, ("disk",), include_tmpfs=True, ignore_mounts=["*/tmp"])
    assert (await ignoring.observe()).values == {}


async def test_readings_are_told_at_debug(host: FakeHost, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="luminous_nix"):
        await detector(host).observe()
    assert "'memory': 50.0" in caplog.text


@pytest.mark.parametrize(
    ("text", "count"),
    [("0-3\n", 4), ("0\n", 1), ("0-3,8\n", 5), ("0,2,4-5\n", 4), ("", 1), ("junk", 1), (None, 1)],
)
def test_cpu_count(host: FakeHost, text: str | None, count: int) -> None:
    path = host.roots.sys / "devices/system/cpu/online"
    if text is None:
        path.unlink()
    else:
        path.write_text(text, encoding="utf-8")
    assert cpu_count(host.roots) == count


# -- thresholds ----------------------------------------------------------------------------------------------


async def test_a_partial_mapping_keeps_the_other_defaults(host: FakeHost) -> None:
    watch = detector(host)
    watch.thresholds = {"cpu_percent": 50}
    assert dict(watch.thresholds) == {
        "cpu_percent": 50.0, "memory_percent": 85.0, "disk_percent": 90.0, "load_average": 8.0,
        "swap_percent": 80.0, "pressure_percent": 60.0,
    }  # fmt: skip
    assert isinstance(watch.thresholds, Thresholds)


@pytest.mark.parametrize(
    ("short", "long"),
    [("cpu", "cpu_percent"), ("memory", "memory_percent"), ("disk", "disk_percent"), ("load", "load_average"),
     ("swap", "swap_percent"), ("pressure", "pressure_percent")],
)  # fmt: skip
def test_short_names_stand_for_the_long_ones(short: str, long: str) -> None:
    thresholds = Thresholds()
    thresholds[short] = 33
    assert thresholds[long] == thresholds[short] == 33.0


async def test_an_assignment_holds_from_the_next_look_on(host: FakeHost) -> None:
    watch = detector(host)
    assert await watch.detect_issues() == []
    watch.thresholds["memory"] = 40
    assert [issue.component for issue in await watch.detect_issues()] == ["memory"]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("memroy", 50, "no threshold 'memroy'"),
        ("cpu", 100.1, "from 0 to 100"),
        ("cpu", -1, "from 0 to 100"),
        ("load", 1e7, "from 0 to 1e"),
        ("cpu", float("nan"), "from 0 to 100"),
        ("cpu", float("inf"), "from 0 to 100"),
        ("cpu", True, "from 0 to 100"),
        ("cpu", "80", "from 0 to 100"),
        ("cpu", None, "from 0 to 100"),
        ("cpu", 10**400, "from 0 to 100"),
    ],
)
def test_a_wrong_threshold_is_refused(key: str, value: Any, said: str) -> None:
    thresholds = Thresholds()
    with pytest.raises(ConfigError, match=said):
        thresholds[key] = value
    assert dict(thresholds) == dict(Thresholds())


def test_an_unknown_threshold_names_the_nearest_and_none_can_be_removed() -> None:
    with pytest.raises(ConfigError) as error:
        Thresholds({"memory_precent": 5})
    assert "'memory_percent'" in error.value.hint
    with pytest.raises(ConfigError, match="cannot be removed"):
        del Thresholds()["cpu"]
    with pytest.raises(KeyError):
        Thresholds()["bogus"]


# -- find_issues ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "threshold", "unbounded", "grade"),
    [
        (85.0, 85.0, False, Severity.MEDIUM),
        (92.4, 85.0, False, Severity.MEDIUM),
        (92.5, 85.0, False, Severity.HIGH),
        (98.5, 85.0, False, Severity.CRITICAL),
        (100.0, 100.0, False, Severity.CRITICAL),
        (8.0, 8.0, True, Severity.MEDIUM),
        (12.0, 8.0, True, Severity.HIGH),
        (16.0, 8.0, True, Severity.CRITICAL),
        (900.0, 0.0, True, Severity.CRITICAL),
    ],
)
def test_severity_by_the_way_to_the_end(value: float, threshold: float, unbounded: bool, grade: Severity) -> None:
    assert severity(value, threshold, unbounded=unbounded) is grade


def test_at_the_threshold_is_an_issue_and_below_is_none() -> None:
    assert find_issues(Snapshot({"cpu": 80.0}), Thresholds())[0].component == "cpu"
    assert find_issues(Snapshot({"cpu": 79.99}), Thresholds()) == []
    assert find_issues(Snapshot({}), Thresholds()) == []


def test_the_fullest_filesystem_is_disk_and_others_say_their_place() -> None:
    values = {"disk:/": 91.0, "disk:/var": 97.0, "inodes:/": 95.0, "inodes:/var": 1.0, "disk:/ok": 5.0}
    issues = find_issues(Snapshot(values), Thresholds())
    assert {(issue.component, issue.kind, issue.metrics["mount"]) for issue in issues} == {
        ("disk", "bytes", "/var"),
        ("disk:/", "inodes", "/"),
    }


def test_bytes_and_inodes_of_one_filesystem_are_one_issue_of_the_fuller() -> None:
    for disk, inodes, kind in ((99.0, 95.0, "bytes"), (95.0, 99.0, "inodes"), (97.0, 97.0, "bytes")):
        (issue,) = find_issues(Snapshot({"disk:/": disk, "inodes:/": inodes}), Thresholds())
        assert (issue.component, issue.kind, issue.metric_value) == ("disk", kind, max(disk, inodes))


def test_inodes_of_a_host_whose_bytes_are_unknown() -> None:
    (issue,) = find_issues(Snapshot({"inodes:/var": 99.0}), Thresholds())
    assert (issue.component, issue.kind) == ("disk", "inodes") or issue.component == "disk:/var"


def test_sustained_pressure_is_a_system_issue_that_is_only_watched() -> None:
    values = {"pressure:io:some": 99.0, "pressure:io:full": 70.0}
    (issue,) = find_issues(Snapshot(values), Thresholds())
    assert (issue.type, issue.severity, issue.component) == (IssueType.SYSTEM, Severity.LOW, "system")
    assert "io" in issue.description


def test_the_worst_comes_first() -> None:
    unit = UnitState("nginx.service", active="failed", result="exit-code")
    issues = find_issues(Snapshot({"cpu": 80.0, "memory": 100.0}, (unit,)), Thresholds())
    assert [issue.component for issue in issues] == ["memory", "nginx", "cpu"]


def issue(component: str, grade: Severity, kind: str = "") -> Issue:
    return Issue(IssueType.RESOURCE, grade, "x", component, kind=kind)


@pytest.mark.parametrize(
    ("issues", "score"),
    [
        pytest.param([], 100, id="none"),
        pytest.param([issue("a", Severity.LOW)], 98, id="low"),
        pytest.param([issue("a", Severity.MEDIUM)], 95, id="medium"),
        pytest.param([issue("a", Severity.HIGH)], 85, id="high"),
        pytest.param([issue("a", Severity.CRITICAL)], 70, id="critical"),
        pytest.param([issue("a", Severity.HIGH), issue("b", Severity.LOW)], 83, id="two-causes"),
        pytest.param([issue("a", Severity.HIGH), issue("a", Severity.CRITICAL)], 70, id="one-cause-counts-once"),
        pytest.param([issue(name, Severity.CRITICAL) for name in "abcd"], 0, id="never-below-zero"),
    ],
)
def test_health(issues: list[Issue], score: int) -> None:
    assert health_score(issues) == score


@pytest.mark.parametrize(
    ("component", "kind", "metrics", "value"),
    [
        ("cpu", "", {}, 1.0),
        ("disk", "bytes", {"mount": "/var"}, 3.0),
        ("disk", "", {}, 3.0),
        ("disk:/", "bytes", {}, 2.0),
        ("disk:/", "inodes", {}, 4.0),
        ("disk:/gone", "bytes", {}, None),
        ("swap", "", {}, None),
    ],
)
def test_measure(component: str, kind: str, metrics: dict[str, str], value: float | None) -> None:
    snapshot = Snapshot({"cpu": 1.0, "disk:/": 2.0, "disk:/var": 3.0, "inodes:/": 4.0})
    asked = Issue(IssueType.RESOURCE, Severity.HIGH, "x", component, kind=kind, metrics=metrics)
    assert measure(snapshot, asked) == value


def test_measure_has_no_figure_for_a_unit() -> None:
    assert measure(Snapshot({"cpu": 1.0}), Issue(IssueType.SERVICE, Severity.HIGH, "x", "cpu")) is None


async def test_a_watched_unit_that_cannot_be_told_is_a_look_of_its_own(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    systemd.put("down.service", "inactive", "dead")
    systemd.put("fine.service", "active", "running")
    watch = SimpleDetector(
        enabled_checks=("services",), roots=host.roots, bus=bus, monitored_units=("ghost", "down", "fine")
    )
    async with systemd.on(bus_daemon.address):
        snapshot = await watch.observe()
        await bus.close()
    (services, *single) = snapshot.looks
    assert services[:2] == ("services", "")
    assert single == [
        ("unit:ghost.service", "there is no such unit", 0),
        ("unit:down.service",
         "why down.service is not running cannot be told: the journal is not readable", 0),
    ]  # fmt: skip
    assert [(sensor.name, sensor.ok) for sensor in snapshot.sensors] == [
        ("services", True), ("unit:ghost.service", False), ("unit:down.service", False),
    ]  # fmt: skip
    assert watch.find(snapshot) == []
    assert watch.readings(snapshot) == []
