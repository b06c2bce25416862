"""The public interface end to end on the host that runs the tests: its real /proc, filesystems and bus.

Nothing is replaced. Nothing is changed either: every heal here is a dry run, is about trouble that is already
gone, or goes to a helper that is not there. So it makes no difference who runs it, whether there is a D-Bus,
and how busy the machine is.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing import (
    ExecutionMode,
    HealingResult,
    Issue,
    IssueType,
    NixOSPermissionHandler,
    SelfHealingEngine,
    Severity,
    SimpleDetector,
    SimpleExecutor,
    SimpleResolver,
    SimplifiedHealingEngine,
    Verdict,
    create_self_healing_engine,
    quick_heal,
)
from luminous_nix.self_healing.decide.limits import Limits
from luminous_nix.self_healing.models import CHECKS, ConfigError, Roots

ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
RESOURCES = ("cpu", "memory", "load", "disk")


def touchy(engine: SimplifiedHealingEngine, *checks: str) -> SimplifiedHealingEngine:
    """The engine with thresholds at 0, so that whatever the host's state is shows up as an issue."""
    engine.detector.enabled_checks = checks or RESOURCES
    for check in ("cpu", "memory", "swap", "disk", "load", "pressure"):
        engine.set_threshold(check, 0)
    return engine


def without_helper(run: Path, mode: ExecutionMode = ExecutionMode.SERVICE) -> SimpleExecutor:
    """An executor whose /run is an empty directory: there is certainly no helper."""
    return SimpleExecutor(NixOSPermissionHandler(mode, roots=Roots(run=run)))


def gone(component: str = "memory", severity: Severity = Severity.HIGH) -> Issue:
    """An issue that the host does not have: its reading is below 100 % of everything."""
    return Issue(IssueType.RESOURCE, severity, f"{component} was full a minute ago", component, 100.0, 100.0)


def meminfo_percent() -> float:
    """Memory in use, from /proc/meminfo by hand."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    figures = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
    return 100.0 * (1 - figures["MemAvailable"] / figures["MemTotal"])


def df_percent(mount: str) -> float:
    """What `df` shows as Use%, before it rounds."""
    at = os.statvfs(mount)
    used = at.f_blocks - at.f_bfree
    return 100.0 * used / (used + at.f_bavail)


def assert_between(value: float, one: float, other: float) -> None:
    """`value` was read between two readings by hand: it is within a point of what lies between them."""
    assert min(one, other) - 1.0 <= value <= max(one, other) + 1.0


class TestSelfHealingIntegration:
    def test_thresholds_at_zero_show_the_real_host(self) -> None:
        engine = touchy(create_self_healing_engine(dry_run=True))
        issues = asyncio.run(engine.detector.detect_issues())
        found = {issue.component: issue for issue in issues}
        assert set(RESOURCES) <= set(found)
        assert {issue.type for issue in issues if issue.kind != "health"} == {IssueType.RESOURCE}
        assert 0.0 <= found["cpu"].metric_value <= 100.0
        assert found["load"].metric_value >= 0.0
        assert [issue.severity for issue in issues] == sorted((issue.severity for issue in issues), reverse=True)

    def test_a_dry_run_names_the_action(self) -> None:
        results = asyncio.run(touchy(create_self_healing_engine(dry_run=True)).detect_and_heal())
        taken = {result.issue.component: result for result in results if result.issue.kind != "inodes"}
        assert taken["disk"].action_taken == "[DRY RUN] clean_nix_store"
        assert taken["memory"].action_taken == "[DRY RUN] clear_system_cache"
        assert taken["cpu"].action_taken == "[DRY RUN] set_cpu_governor"
        for component in ("disk", "memory", "cpu"):
            assert taken[component].success
            assert taken[component].verdict is Verdict.DRY_RUN
            assert taken[component].error is None
            assert taken[component].detail
        assert taken["disk"].actions_taken == ["clean_nix_store"]

    def test_a_dry_run_spends_no_budget(self) -> None:
        engine = SimplifiedHealingEngine(dry_run=True, limits=Limits(heals_per_hour=1))

        async def rehearse_then_heal() -> tuple[list[HealingResult], HealingResult]:
            rehearsed = [await engine.heal_issue(gone()) for _ in range(3)]
            engine.dry_run = False
            return rehearsed, await engine.heal_issue(gone())

        rehearsed, healed = asyncio.run(rehearse_then_heal())
        assert {result.verdict for result in rehearsed} == {Verdict.DRY_RUN}
        assert healed.verdict is Verdict.RECOVERED_BY_ITSELF  # an hourly limit would have spoken first
        assert engine.get_metrics()["issues_resolved"] == 0
        assert engine.get_metrics()["issues_failed"] == 0

    def test_an_exhausted_budget_names_its_rule(self) -> None:
        engine = SimplifiedHealingEngine(limits=Limits(heals_per_hour=0))
        result = asyncio.run(engine.heal_issue(gone()))
        assert not result.success
        assert result.verdict is Verdict.REFUSED
        assert "hourly limit" in str(result.error)
        assert "lifts when the limit is raised" in str(result.error)

    def test_set_threshold_is_live(self) -> None:
        engine = create_self_healing_engine(dry_run=True)
        engine.detector.enabled_checks = ["memory"]

        async def look_at_both() -> tuple[list[Issue], list[Issue]]:
            engine.set_threshold("memory_percent", 100)
            before = await engine.detector.detect_issues()
            engine.set_threshold("memory", 0)
            return before, await engine.detector.detect_issues()

        before, after = asyncio.run(look_at_both())
        assert before == []
        assert [issue.component for issue in after] == ["memory"]

    def test_what_is_already_gone_recovered_by_itself(self) -> None:
        engine = create_self_healing_engine()
        result = asyncio.run(engine.heal_issue(gone()))
        assert result.success
        assert result.error is None
        assert result.verdict is Verdict.RECOVERED_BY_ITSELF
        assert result.action_taken == "none"
        assert result.actions_taken == []
        assert result.duration_ms > 0.0

    def test_healing_switched_off(self) -> None:
        engine = create_self_healing_engine()
        engine.healing_enabled = False
        result = asyncio.run(engine.heal_issue(gone()))
        assert not result.success
        assert result.verdict is Verdict.REFUSED
        assert "healing_enabled" in str(result.error)

    def test_low_is_watched_only(self) -> None:
        result = asyncio.run(create_self_healing_engine().heal_issue(gone(severity=Severity.LOW)))
        assert result.verdict is Verdict.REFUSED
        assert "LOW" in str(result.error)

    def test_a_batch_goes_worst_first(self) -> None:
        engine = create_self_healing_engine(dry_run=True)
        given = [
            gone("memory", Severity.MEDIUM),
            gone("disk", Severity.CRITICAL),
            gone("cpu", Severity.LOW),
            Issue(IssueType.SERVICE, Severity.HIGH, "it is down", "no-such-unit-anywhere"),
        ]
        results = asyncio.run(engine.heal_issues_batch(given))
        assert [result.issue for result in results] == [given[1], given[3], given[0], given[2]]
        assert results[1].action_taken == "[DRY RUN] restart_service"

    def test_the_older_form_of_an_issue(self) -> None:
        older: dict[str, Any] = {
            "type": "memory_high",
            "metrics": {"memory_percent": 88},
            "affected_components": ["system.memory"],
        }
        issue = Issue(id="mem_001", severity=Severity.HIGH, description="Memory at 88%", **older)
        assert (issue.type, issue.component, issue.metric_value) == (IssueType.RESOURCE, "memory", 88.0)
        result = asyncio.run(SelfHealingEngine(dry_run=True).heal_issue(issue))
        assert result.actions_taken == ["clear_system_cache"]


class TestDetectorIntegration:
    def test_memory_is_what_the_kernel_says(self) -> None:
        detector = SimpleDetector({"memory": 0}, enabled_checks=["memory"])
        before = meminfo_percent()
        (issue,) = asyncio.run(detector.detect_issues())
        assert_between(issue.metric_value, before, meminfo_percent())

    def test_every_disk_is_what_df_says(self) -> None:
        detector = SimpleDetector({"disk": 0}, enabled_checks=["disk"])
        issues = [issue for issue in asyncio.run(detector.detect_issues()) if issue.kind == "bytes"]
        assert "disk" in {issue.component for issue in issues}
        for issue in issues:
            now = df_percent(issue.metrics["mount"])
            assert_between(issue.metric_value, now, now)
        fullest = max(issues, key=lambda issue: issue.metric_value)
        assert fullest.component == "disk"

    def test_each_sensor_stands_alone(self) -> None:
        """Whether or not there is a bus to ask about units, the rest is read; what is not there says why."""
        snapshot = asyncio.run(SimpleDetector(enabled_checks=CHECKS).observe())
        assert {"cpu", "memory", "load"} <= set(snapshot.values)
        sensors = {sensor.name: sensor for sensor in snapshot.sensors}
        assert {"cpu", "memory", "load", "pressure", "disk", "services"} == set(sensors)
        assert all(sensor.ok or sensor.error for sensor in snapshot.sensors)

    def test_only_the_enabled_checks_are_read(self) -> None:
        engine = touchy(create_self_healing_engine(), "cpu", "disk")
        engine.detector.enabled_checks = ["memory", "load"]
        found = {issue.component for issue in asyncio.run(engine.detector.detect_issues())}
        assert found == {"memory", "load"}

    def test_a_partial_mapping_keeps_the_other_defaults(self) -> None:
        detector = SimpleDetector()
        assert detector.thresholds["load_average"] >= 2.0
        detector.thresholds = {"cpu_percent": 75.0, "load": 3.0}
        assert dict(detector.thresholds) == {
            "cpu_percent": 75.0,
            "memory_percent": 85.0,
            "disk_percent": 90.0,
            "load_average": 3.0,
            "swap_percent": 80.0,
            "pressure_percent": 60.0,
        }
        detector.thresholds["disk"] = 95
        assert detector.thresholds["disk_percent"] == 95.0

    def test_a_wrong_name_or_figure_is_refused_with_the_nearest(self) -> None:
        detector = SimpleDetector()
        with pytest.raises(ConfigError) as wrong_name:
            detector.thresholds["memroy_percent"] = 80
        assert "memory_percent" in wrong_name.value.hint
        with pytest.raises(ConfigError, match="from 0 to 100"):
            detector.thresholds["cpu"] = 101
        with pytest.raises(ConfigError, match="netwrk"):
            detector.enabled_checks = ["netwrk"]
        assert detector.thresholds["cpu"] == 80.0


class PlainDictResolver(SimpleResolver):
    def __init__(self, action: dict[str, Any]) -> None:
        self.action = action

    def get_action(self, issue: Issue) -> dict[str, Any]:
        return self.action if issue.component == "disk" else dict(super().get_action(issue))


class TestResolverIntegration:
    @pytest.mark.parametrize(
        ("issue", "action"),
        [
            (gone("cpu"), "set_cpu_governor"),
            (gone("memory"), "clear_system_cache"),
            (gone("disk"), "clean_nix_store"),
            (gone("disk:/var"), "clean_nix_store"),
            (Issue(IssueType.SERVICE, Severity.HIGH, "down", "nginx"), "restart_service"),
            (Issue(IssueType.SYSTEM, Severity.CRITICAL, "broken", "system"), "rollback_generation"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_each_kind_of_trouble_has_its_action(self, issue: Issue, action: str) -> None:
        resolver = SimpleResolver()
        decided = resolver.get_action(issue)
        assert decided["action"] == action
        assert isinstance(decided["parameters"], Mapping)
        assert action in {rung.name for rung in resolver.get_ladder(issue)}

    def test_what_was_detected_can_be_decided_and_rehearsed(self) -> None:
        engine = touchy(SimplifiedHealingEngine(), "cpu", "memory", "disk")

        async def by_hand() -> int:
            rehearsed = 0
            for issue in await engine.detector.detect_issues():
                result = await engine.executor.execute(engine.resolver.get_action(issue), dry_run=True)
                assert result.success, result.error
                assert result.output
                rehearsed += 1
            return rehearsed

        assert asyncio.run(by_hand()) >= 3

    def test_a_plain_dict_of_an_own_resolver_is_the_only_rung(self) -> None:
        engine = create_self_healing_engine(dry_run=True)
        engine.resolver = PlainDictResolver({"action": "vacuum_journal", "parameters": {"keep_bytes": 1 << 30}})
        result = asyncio.run(engine.heal_issue(gone("disk")))
        assert result.success
        assert result.action_taken == "[DRY RUN] vacuum_journal"
        assert "then:" not in result.detail
        default = asyncio.run(engine.heal_issue(gone("memory")))
        assert default.action_taken == "[DRY RUN] clear_system_cache"

    def test_an_action_that_nobody_knows_is_refused_with_the_nearest(self) -> None:
        executor = SimpleExecutor()
        action = {"action": "restart_servise", "parameters": {"service": "nginx"}}
        for dry_run in (True, False):
            result = asyncio.run(executor.execute(action, dry_run=dry_run))
            assert not result.success
            assert result.refused
            assert "restart_servise" in str(result.error)
            assert "restart_service" in str(result.suggestion)

    @pytest.mark.parametrize("dry_run", [True, False])
    def test_an_own_action_that_nobody_knows_heals_nothing(self, tmp_path: Path, *, dry_run: bool) -> None:
        engine = SimplifiedHealingEngine(executor=without_helper(tmp_path), dry_run=dry_run)
        engine.resolver = PlainDictResolver({"action": "custom_restart", "parameters": {"wait_time": 10}})
        full = Issue(IssueType.RESOURCE, Severity.HIGH, "it is full", "disk", 1.0, 1e-9)
        result = asyncio.run(engine.heal_issue(full))
        assert not result.success
        assert result.verdict is Verdict.REFUSED
        assert "custom_restart" in str(result.error)

    def test_a_resolver_that_fails_fails_alone(self) -> None:
        class Broken(SimpleResolver):
            def get_action(self, issue: Issue) -> dict[str, Any]:
                raise LookupError(f"no idea about {issue.component}")

        engine = SimplifiedHealingEngine(resolver=Broken(), dry_run=True)
        result = asyncio.run(engine.heal_issue(gone()))
        assert result.verdict is Verdict.REFUSED
        assert "no idea about memory" in str(result.error)


class TestPermissionIntegration:
    def test_service_mode_without_a_helper_says_so_and_how_to_go_on(self, tmp_path: Path) -> None:
        knob = Path("/proc/sys/vm/swappiness")
        former = int(knob.read_text(encoding="ascii"))
        handler = without_helper(tmp_path).handler
        other = 60 if former != 60 else 61
        result = asyncio.run(handler.execute_healing_action("adjust_swappiness", {"value": other}))
        assert not result.success
        assert result.refused
        assert result.mode == "service"
        assert "SERVICE mode needs the helper" in str(result.error)
        assert str(tmp_path) in str(result.error)
        assert "LUMINOUS_DEV_MODE=1" in str(result.suggestion)
        assert int(knob.read_text(encoding="ascii")) == former

    def test_the_status_tells_how_each_action_would_be_had(self, tmp_path: Path) -> None:
        status = without_helper(tmp_path).handler.get_permission_status()
        assert status["mode"] == "service"
        assert status["is_production"] is True
        assert status["capabilities"]["restart_service"] == "unavailable: no helper"
        status = without_helper(tmp_path, ExecutionMode.DEVELOPMENT).handler.get_permission_status()
        assert status["mode"] == "dev"
        assert status["is_production"] is False
        assert ("direct" in status["capabilities"].values()) == (os.geteuid() == 0)

    @pytest.mark.parametrize(
        ("value", "mode"),
        [
            ("1", "dev"),
            ("true", "dev"),
            ("Yes", "dev"),
            ("on", "dev"),
            ("0", "service"),
            ("", "service"),
            (None, "service"),
        ],
    )
    def test_the_variable_chooses_the_mode_of_a_handler_made_now(self, value: str | None, mode: str) -> None:
        environment = {} if value is None else {"LUMINOUS_DEV_MODE": value}
        assert NixOSPermissionHandler(environment=environment).mode is ExecutionMode(mode)

    @pytest.mark.parametrize(("value", "mode"), [("1", "dev"), (None, "service")])
    def test_the_variable_of_a_real_process(self, value: str | None, mode: str) -> None:
        environment = {name: text for name, text in os.environ.items() if name != "LUMINOUS_DEV_MODE"}
        path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
        environment |= {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
        environment |= {} if value is None else {"LUMINOUS_DEV_MODE": value}
        program = (
            "from luminous_nix.self_healing import create_self_healing_engine as create\n"
            "print(create(dry_run=True).executor.handler.get_permission_status()['mode'])"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
        )
        assert done.stdout.strip() == mode

    @pytest.mark.parametrize("mode", ExecutionMode)
    def test_a_unit_that_is_not_there_is_refused_in_both_modes(self, tmp_path: Path, mode: ExecutionMode) -> None:
        """With systemd because there is no such unit, without because it cannot be looked at."""
        handler = without_helper(tmp_path, mode).handler
        result = asyncio.run(handler.execute_healing_action("restart_service", {"service": "no-such-unit-anywhere"}))
        assert not result.success
        assert result.refused
        assert "no-such-unit-anywhere.service" in str(result.error)
        assert result.mode == mode.value

    @pytest.mark.parametrize(
        ("action", "parameters", "said"),
        [
            ("restart_service", {}, "needs service"),
            ("restart_service", {"service": "nginx; reboot"}, "service must be"),
            ("adjust_swappiness", {"value": 1000}, "from 0 to 200"),
            ("adjust_swappiness", {"vlaue": 10}, "vlaue"),
        ],
    )
    def test_arguments_are_checked_before_anything_else(
        self, tmp_path: Path, action: str, parameters: dict[str, Any], said: str
    ) -> None:
        handler = without_helper(tmp_path).handler
        result = asyncio.run(handler.execute_healing_action(action, parameters))
        assert result.refused
        assert said in str(result.error)


class TestQuickHeal:
    def test_it_is_a_dry_run_unless_told_otherwise(self) -> None:
        results = asyncio.run(quick_heal())
        assert isinstance(results, list)
        for result in results:
            assert result.verdict in {Verdict.DRY_RUN, Verdict.REFUSED}
            assert result.action_taken.startswith("[DRY RUN] ") or result.action_taken == "none"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110  the engine has no event to wait for here
            await asyncio.sleep(0.01)


class TestEngineLifecycle:
    def test_the_defaults(self) -> None:
        engine = create_self_healing_engine()
        assert isinstance(engine, SimplifiedHealingEngine)
        assert SelfHealingEngine is SimplifiedHealingEngine
        assert (engine.healing_enabled, engine.dry_run, engine.verbose) == (True, False, False)
        engine = create_self_healing_engine(dry_run=True, verbose=True)
        assert (engine.dry_run, engine.verbose) == (True, True)
        assert engine.get_metrics() == {
            "issues_detected": 0,
            "issues_resolved": 0,
            "issues_failed": 0,
            "last_check": None,
            "success_rate": 1.0,
        }

    def test_monitoring_ends_by_stop(self) -> None:
        engine = create_self_healing_engine(dry_run=True)

        async def watch_and_stop() -> None:
            watch = asyncio.create_task(engine.start_monitoring(interval=86400))
            await until(lambda: engine.get_metrics()["last_check"])
            engine.stop()
            async with asyncio.timeout(PATIENCE_S):
                await watch

        asyncio.run(watch_and_stop())

    def test_monitoring_ends_by_cancellation(self) -> None:
        engine = create_self_healing_engine(dry_run=True)

        async def watch_and_cancel() -> None:
            watch = asyncio.create_task(engine.start_monitoring(interval=86400))
            await until(lambda: engine.get_metrics()["last_check"])
            watch.cancel()
            async with asyncio.timeout(PATIENCE_S):
                with pytest.raises(asyncio.CancelledError):
                    await watch

        asyncio.run(watch_and_cancel())

    def test_monitoring_goes_on_and_can_begin_again(self) -> None:
        engine = create_self_healing_engine(dry_run=True)

        async def watch_twice() -> None:
            for _ in range(2):
                seen = engine.get_metrics()["last_check"]
                watch = asyncio.create_task(engine.start_monitoring(interval=0.01))
                for _ in range(3):
                    await until(lambda: engine.get_metrics()["last_check"] != seen)  # noqa: B023
                    seen = engine.get_metrics()["last_check"]
                engine.stop()
                async with asyncio.timeout(PATIENCE_S):
                    await watch

        asyncio.run(watch_twice())

    def test_an_interval_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="above 0"):
            asyncio.run(create_self_healing_engine(dry_run=True).start_monitoring(interval=0))

    def test_metrics_count_an_issue_once_as_long_as_it_stays(self) -> None:
        engine = touchy(create_self_healing_engine(dry_run=True), "memory", "load")

        async def look_twice() -> tuple[dict[str, Any], dict[str, Any]]:
            await engine.detect_and_heal()
            first = engine.get_metrics()
            await engine.detect_and_heal()
            return first, engine.get_metrics()

        first, second = asyncio.run(look_twice())
        assert first["issues_detected"] == second["issues_detected"] == 2
        assert second["last_check"] >= first["last_check"]
        assert second["issues_resolved"] == second["issues_failed"] == 0
        assert second["success_rate"] == 1.0

    def test_an_engine_lives_through_several_event_loops(self) -> None:
        engine = touchy(create_self_healing_engine(dry_run=True))
        counts = [len(asyncio.run(engine.detect_and_heal())) for _ in range(3)]
        assert all(counts)


class TestCompleteFlow:
    def test_from_detection_to_metrics_without_a_helper(self, tmp_path: Path) -> None:
        """The whole loop, not dry, where nothing can be changed: every heal is refused, with the reason, and a
        refusal costs nothing."""
        executor, limits = without_helper(tmp_path), Limits(heals_per_hour=1)
        engine = touchy(SimplifiedHealingEngine(executor=executor, limits=limits, verbose=True), "memory", "disk")

        async def flow() -> None:
            issues = await engine.detector.detect_issues()
            assert {"memory", "disk"} <= {issue.component for issue in issues}
            assert all(engine.resolver.get_ladder(issue) for issue in issues)
            engine.dry_run = True
            rehearsed = await engine.detect_and_heal()
            assert {result.verdict for result in rehearsed} == {Verdict.DRY_RUN}
            engine.dry_run = False
            refused = await engine.detect_and_heal()
            refused += await engine.heal_issues_batch(issues)
            assert {result.verdict for result in refused} == {Verdict.REFUSED}
            assert all(result.error and not result.success and result.action_taken == "none" for result in refused)
            for rule in ("cooldown", "hourly limit"):
                assert not any(rule in str(result.error) for result in refused)
            recovered = await engine.heal_issue(gone())
            assert recovered.verdict is Verdict.RECOVERED_BY_ITSELF

        asyncio.run(flow())
        metrics = engine.get_metrics()
        assert metrics["issues_detected"] >= 2
        assert metrics["issues_resolved"] == metrics["issues_failed"] == 0
        assert metrics["success_rate"] == 1.0
        assert metrics["last_check"] is not None

    def test_a_healthy_host_needs_nothing(self) -> None:
        """With thresholds at the end of the scale there is nothing to do, and the flow says so."""
        engine = create_self_healing_engine()
        engine.detector.enabled_checks = ["memory", "load"]
        engine.set_threshold("memory", 100)
        engine.set_threshold("load", 1e6)
        assert asyncio.run(engine.detect_and_heal()) == []
        assert engine.get_metrics()["issues_detected"] == 0
