"""act/operations: what each action comes to on a host of files, and when it is refused."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.act.steps import EndProcess, Knob, RunProgram, UnitJob, WriteFile
from luminous_nix.self_healing.models import ActionRefused
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import FakeHost
from tests.unit.worlds import here, lock, managed, nowhere, only, plan, rooted, world

pytestmark = pytest.mark.anyio
MIB = 1 << 20
S = 1_000_000


FAILED = {"Result": ("s", "exit-code"), "ExecMainCode": ("i", 1), "ExecMainStatus": ("i", 1)}


@pytest.mark.parametrize(
    ("action", "argument", "method"),
    [("restart_service", "service", "StartUnit"), ("start_unit", "unit", "StartUnit")],
)
async def test_a_failed_unit_is_started(
    host: FakeHost, bus_daemon: BusDaemon, action: str, argument: str, method: str
) -> None:
    systemd = Systemd()
    systemd.put("nginx.service", "failed", "failed", typed=FAILED)
    async with managed(host, bus_daemon, systemd) as at:
        found = await plan(at, action, **{argument: "nginx.service"})
    assert found.steps == (UnitJob(method, "nginx.service"),)


# Times that prove that its main process went first.
BY_ITSELF: dict[str, Any] = {
    "InactiveExitTimestampMonotonic": ("t", 1 * S), "ActiveExitTimestampMonotonic": ("t", 5 * S),
    "typed": {"ExecMainExitTimestampMonotonic": ("t", 4 * S)},
}  # fmt: skip
STOPPED: dict[str, Any] = BY_ITSELF | {"typed": {"ExecMainExitTimestampMonotonic": ("t", 6 * S)}}


def prevented(code: int, status: int, statuses: list[int], signals: list[int]) -> dict[str, tuple[str, Any]]:
    """How the main process ended, and what RestartPreventExitStatus= lists."""
    return {
        "ExecMainCode": ("i", code), "ExecMainStatus": ("i", status), "Result": ("s", "exit-code"),
        "RestartPreventExitStatus": ("(aiai)", (statuses, signals)),
    }  # fmt: skip


UNITS: list[tuple[str, dict[str, Any], str]] = [
    ("running", {"active": "active", "sub": "running"}, r"is active \(running\)"),
    ("masked", {"LoadState": ("s", "masked")}, "it is masked"),
    ("masked-later", {"UnitFileState": ("s", "masked-runtime")}, "it is masked-runtime"),
    ("job-in-flight", {"Job": ("(uo)", (7, "/j"))}, "has a job in flight"),
    ("auto-restart", {"active": "activating", "sub": "auto-restart"}, "restarted by systemd itself"),
    ("refuses-by-hand", {"RefuseManualStart": ("b", True)}, "refuses to be started"),
    ("one-off", {"Transient": ("b", True)}, "one-off"),
    ("disabled", {"active": "inactive", "UnitFileState": ("s", "disabled"), **BY_ITSELF}, "is disabled"),
    ("inactive-nobody-knows-why", {"active": "inactive"}, "cannot be told: the journal is not readable"),
    ("an-alias-of-a-protected-one", {"Id": ("s", "sshd.service")}, "which is in the protected set"),
    ("with-a-protected-alias", {"Names": ("as", ["nginx.service", "sshd.service"])},
     "nginx.service is sshd.service, which is in the protected set"),
    ("prevented-by-its-status", {"typed": prevented(1, 78, [77, 78], [])}, "must not be answered by a restart"),
    ("prevented-by-its-signal", {"typed": prevented(2, 15, [], [15])}, "must not be answered by a restart"),
    ("prevented-by-its-signal-with-a-core", {"typed": prevented(3, 6, [], [6])}, "must not be answered by a restart"),
    ("stopped-on-purpose", {"active": "inactive", **STOPPED}, "stopped on purpose"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "state", "said"), UNITS, ids=[case[0] for case in UNITS])
async def test_a_unit_that_is_left_alone(
    host: FakeHost, bus_daemon: BusDaemon, name: str, state: dict[str, Any], said: str
) -> None:
    del name
    systemd = Systemd()
    systemd.put("nginx.service", **{"active": "failed", "sub": "failed", **state})
    async with managed(host, bus_daemon, systemd) as at:
        with pytest.raises(ActionRefused, match=said):
            await plan(at, "restart_service", service="nginx.service")


@pytest.mark.parametrize(
    "typed",
    [prevented(1, 1, [78], []), prevented(1, 15, [], [15]), prevented(2, 9, [9], [15]), prevented(2, 15, [15], [])],
    ids=["another-status", "status-like-a-signal", "another-signal", "signal-like-a-status"],
)
async def test_an_end_that_prevents_no_restart(
    host: FakeHost, bus_daemon: BusDaemon, typed: dict[str, tuple[str, Any]]
) -> None:
    systemd = Systemd()
    systemd.put("nginx.service", "failed", "failed", typed=typed)
    async with managed(host, bus_daemon, systemd) as at:
        found = await plan(at, "restart_service", service="nginx.service")
    assert found.steps == (UnitJob("StartUnit", "nginx.service"),)


UP, DOWN = {"active": "active", "sub": "running"}, {"active": "inactive", "sub": "dead"}
BROKEN = {"active": "failed", "sub": "failed"}
RUNS = r"starting nginx\.service would stop {other}, which runs \(Conflicts=\)"
NEEDS = r"nginx\.service needs {other}, which is {state}"
RELATIONS: list[tuple[str, str, str, dict[str, Any] | None, str]] = [
    ("conflicts-runs", "Conflicts", "other.service", UP, RUNS),
    ("conflicted-by-runs", "ConflictedBy", "other.service", UP, RUNS),
    ("conflicts-comes-up", "Conflicts", "other.service", UP | {"active": "activating"}, RUNS),
    ("conflicts-reloads", "ConflictedBy", "other.service", UP | {"active": "reloading"}, RUNS),
    ("conflicts-socket-listens", "Conflicts", "other.socket", UP, RUNS),
    ("conflicts-is-down", "Conflicts", "other.service", DOWN, ""),
    ("conflicts-failed", "ConflictedBy", "other.service", BROKEN, ""),
    ("conflicts-is-not-there", "Conflicts", "other.service", None, ""),
    ("conflicts-is-a-target", "Conflicts", "shutdown.target", UP, ""),
    ("requires-runs", "Requires", "other.service", UP, ""),
    ("requires-failed", "Requires", "other.service", BROKEN, NEEDS),
    ("binds-to-failed", "BindsTo", "other.service", BROKEN, NEEDS),
    ("requisite-failed", "Requisite", "other.service", BROKEN, NEEDS),
    ("requires-a-mount-that-failed", "Requires", "srv-data.mount", BROKEN, NEEDS),
    ("requires-ended-by-itself", "Requires", "other.service", DOWN | BY_ITSELF, ""),
    ("requires-was-stopped", "Requires", "other.service", DOWN | STOPPED, NEEDS),
    ("requires-is-masked", "BindsTo", "other.service", DOWN | BY_ITSELF | {"LoadState": ("s", "masked")}, NEEDS),
    ("requires-is-not-there", "Requires", "other.service", None, NEEDS),
    ("requires-is-protected", "Requires", "sshd.service", DOWN | BY_ITSELF, NEEDS),
    ("requires-nobody-knows-why", "Requires", "other.service", DOWN, r"what nginx\.service depends on cannot be"),
    ("requires-a-target-that-is-down", "Requires", "other.target", DOWN, ""),
]  # fmt: skip


@pytest.mark.parametrize(("action", "argument"), [("restart_service", "service"), ("start_unit", "unit")])
@pytest.mark.parametrize(("name", "kind", "other", "state", "said"), RELATIONS, ids=[case[0] for case in RELATIONS])
async def test_a_start_goes_against_no_other_unit(
    host: FakeHost, bus_daemon: BusDaemon, action: str, argument: str, name: str, kind: str, other: str,
    state: dict[str, Any] | None, said: str,
) -> None:  # fmt: skip
    del name
    systemd = Systemd()
    related: dict[str, Any] = {kind: ("as", [other])}
    systemd.put("nginx.service", "failed", "failed", **related)
    if state is not None:
        systemd.put(other, **state)
    async with managed(host, bus_daemon, systemd) as at:
        if said:
            active = (state or DOWN)["active"]
            with pytest.raises(ActionRefused, match=said.format(other=re.escape(other), state=active)):
                await plan(at, action, **{argument: "nginx.service"})
        else:
            found = await plan(at, action, **{argument: "nginx.service"})
            assert found.steps == (UnitJob("StartUnit", "nginx.service"),)
    assert systemd.jobs == []


UNIT_ACTIONS = [("restart_service", "service"), ("start_unit", "unit"), ("reload_service", "service")]


@pytest.mark.parametrize(("action", "argument"), UNIT_ACTIONS)
@pytest.mark.parametrize("held", [True, False])
async def test_no_unit_is_touched_during_a_switch(
    host: FakeHost, bus_daemon: BusDaemon, action: str, argument: str, held: bool
) -> None:
    systemd = Systemd()
    if action == "reload_service":
        systemd.put("nginx.service", "active", "running", CanReload=("b", True))
    else:
        systemd.put("nginx.service", "failed", "failed", typed=FAILED)
    lock(host, held=held)
    async with managed(host, bus_daemon, systemd) as at:
        if held:
            with pytest.raises(ActionRefused, match=r"a switch .* is in progress"):
                await plan(at, action, **{argument: "nginx.service"})
        else:
            assert (await plan(at, action, **{argument: "nginx.service"})).steps


@pytest.mark.parametrize(("action", "argument"), UNIT_ACTIONS)
async def test_whether_a_switch_runs_must_be_known(host: FakeHost, action: str, argument: str) -> None:
    host.write(host.roots.run / "nixos/switch-to-configuration.lock", "")
    with pytest.raises(ActionRefused, match=r"locks cannot be read: No such file"):
        await plan(world(host), action, **{argument: "nginx.service"})


async def test_a_unit_that_is_not_there(host: FakeHost, bus_daemon: BusDaemon) -> None:
    async with managed(host, bus_daemon, Systemd()) as at:
        with pytest.raises(ActionRefused, match="there is no such unit"):
            await plan(at, "restart_service", service="ghost.service")


@pytest.mark.parametrize(
    ("since_s", "interval_s", "held"),
    [(10, 10, True), (299, 10, True), (301, 10, False), (301, 600, True), (601, 600, False)],
)
async def test_a_crash_loop_is_held_and_then_reset_and_started_once(
    host: FakeHost, bus_daemon: BusDaemon, since_s: int, interval_s: int, held: bool
) -> None:
    systemd = Systemd()
    systemd.put(
        "nginx.service", "failed", "failed", typed={"Result": ("s", "start-limit-hit"), "NRestarts": ("u", 5)},
        InactiveEnterTimestampMonotonic=("t", (10_000 - since_s) * S), StartLimitIntervalUSec=("t", interval_s * S),
    )  # fmt: skip
    async with managed(host, bus_daemon, systemd) as at:
        if held:
            with pytest.raises(ActionRefused, match=r"crash loop and held: 5 restarts did not help") as refusal:
                await plan(at, "restart_service", service="nginx.service")
            left = max(300, interval_s) - since_s
            assert refusal.value.hint == f"mend its cause first: one clean start is tried in {left} s"
            return
        found = await plan(at, "restart_service", service="nginx.service")
    assert found.steps == (UnitJob("ResetFailedUnit", "nginx.service"), UnitJob("StartUnit", "nginx.service"))


async def test_a_start_limit_without_end_is_for_a_person(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd = Systemd()
    systemd.put(
        "nginx.service", "failed", "failed", typed={"Result": ("s", "start-limit-hit"), "NRestarts": ("u", 5)},
        InactiveEnterTimestampMonotonic=("t", 1 * S), StartLimitIntervalUSec=("t", 2**64 - 1),
    )  # fmt: skip
    async with managed(host, bus_daemon, systemd) as at:
        with pytest.raises(ActionRefused, match="in a crash loop and held") as refusal:
            await plan(at, "restart_service", service="nginx.service")
    assert refusal.value.hint == "mend its cause first: only a person starts it again"


@pytest.mark.parametrize(
    ("active", "can", "said"),
    [("active", True, ""), ("active", False, "cannot reload"), ("failed", True, "only a running unit")],
)
async def test_a_reload(host: FakeHost, bus_daemon: BusDaemon, active: str, can: bool, said: str) -> None:
    systemd = Systemd()
    systemd.put("nginx.service", active, "x", CanReload=("b", can))
    async with managed(host, bus_daemon, systemd) as at:
        if said:
            with pytest.raises(ActionRefused, match=said):
                await plan(at, "reload_service", service="nginx.service")
            return
        assert (await plan(at, "reload_service", service="nginx.service")).steps[0] == UnitJob(
            "ReloadUnit", "nginx.service"
        )


async def test_a_protected_unit_is_refused_before_anything_is_asked(host: FakeHost) -> None:
    with pytest.raises(ActionRefused, match="protected set"):
        await plan(world(host), "restart_service", service="sshd.service")
    with pytest.raises(ActionRefused, match="cannot be looked at: D-Bus"):
        await plan(world(host), "restart_service", service="nginx.service")


# -- CPU -----------------------------------------------------------------------------------------------------


async def test_a_governor_that_holds_down_is_raised_and_the_way_back_noted(
    host: FakeHost, bus_daemon: BusDaemon
) -> None:
    policy = host.cpufreq("powersave", "conservative performance schedutil powersave")
    async with managed(host, bus_daemon, Systemd()) as at:
        found = await plan(at, "set_cpu_governor")
        asked = await plan(at, "set_cpu_governor", governor="performance")
    knob = policy / "scaling_governor"
    assert found.steps == (WriteFile(knob, "schedutil"),)
    assert found.knobs == (Knob("cpufreq:policy0", "powersave", "schedutil"),)
    assert asked.steps == (WriteFile(knob, "performance"),)


@pytest.mark.parametrize(
    ("governor", "choices", "driver", "wanted", "said"),
    [
        pytest.param("schedutil", "schedutil powersave", "acpi-cpufreq", {}, "no governor holds", id="not-held"),
        pytest.param("powersave", "performance powersave", "intel_pstate", {}, "no governor holds", id="intel"),
        pytest.param("powersave", "powersave", "acpi-cpufreq", {}, "not one to raise to", id="nothing-to-raise-to"),
        pytest.param("schedutil", "schedutil powersave", "x", {"governor": "powersave"}, "not one to raise to",
                     id="powersave-is-refused"),
        pytest.param("powersave", "schedutil powersave", "x", {"governor": "turbo"}, "not one to raise", id="turbo"),
    ],
)  # fmt: skip
async def test_a_governor_that_is_left_alone(
    host: FakeHost, bus_daemon: BusDaemon, governor: str, choices: str, driver: str, wanted: dict[str, str], said: str
) -> None:
    host.cpufreq(governor, choices, driver)
    async with managed(host, bus_daemon, Systemd()) as at:
        with pytest.raises(ActionRefused, match=said):
            await plan(at, "set_cpu_governor", **wanted)


async def test_a_knob_that_another_tool_owns_is_left_alone(host: FakeHost, bus_daemon: BusDaemon) -> None:
    host.cpufreq("powersave")
    systemd = Systemd()
    systemd.put("power-profiles-daemon.service", "active", "running")
    async with managed(host, bus_daemon, systemd) as at:
        with pytest.raises(ActionRefused, match=r"power-profiles-daemon.service owns the CPU governor"):
            await plan(at, "set_cpu_governor")


async def test_who_owns_the_knob_must_be_known(host: FakeHost) -> None:
    host.cpufreq("powersave")
    with pytest.raises(ActionRefused, match="owns the governor is unknown"):
        await plan(world(host), "set_cpu_governor")


async def test_a_virtual_machine_has_no_governor(host: FakeHost) -> None:
    with pytest.raises(ActionRefused, match="no CPU frequency control"):
        await plan(world(host), "set_cpu_governor")


# -- memory --------------------------------------------------------------------------------------------------


async def test_background_services_give_back_their_idle_cache(host: FakeHost) -> None:
    small = host.service_cache("small.service", 8 * MIB)
    big = host.service_cache("big.service", 64 * MIB)
    host.service_cache("tiny.service", 1 * MIB)
    host.service_cache("sshd.service", 512 * MIB)
    found = await plan(world(host), "clear_system_cache")
    assert found.steps == (
        WriteFile(big, str(64 * MIB), partial_ok=True), WriteFile(small, str(8 * MIB), partial_ok=True),
    )  # fmt: skip
    bounded = await plan(world(host), "clear_system_cache", bytes=66 * MIB)
    assert [step.text for step in bounded.steps if isinstance(step, WriteFile)] == [str(64 * MIB), str(2 * MIB)]


async def test_cgroup_v2_beside_v1(host: FakeHost) -> None:
    root = host.roots.sys / "fs/cgroup/unified"
    host.write(root / "cgroup.controllers", "")
    host.write(root / "system.slice/a.service/memory.stat", f"inactive_file {9 * MIB}\n")
    knob = host.write(root / "system.slice/a.service/memory.reclaim", "")
    assert (await plan(world(host), "clear_system_cache")).steps == (WriteFile(knob, str(9 * MIB), partial_ok=True),)


@pytest.mark.parametrize("stat", ["", "junk", "inactive_file many\n", "a b c\n"])
async def test_a_cgroup_that_ends_while_we_look(host: FakeHost, stat: str) -> None:
    knob = host.service_cache("a.service", 0)
    (knob.parent / "memory.stat").write_text(stat, encoding="utf-8")
    with pytest.raises(ActionRefused, match="no background service holds idle file cache"):
        await plan(world(host), "clear_system_cache")


async def test_the_page_cache_is_dropped_only_on_a_word(host: FakeHost) -> None:
    with pytest.raises(ActionRefused, match=r"no memory.reclaim") as refusal:
        await plan(world(host), "clear_system_cache")
    assert "drop_caches=true" in refusal.value.hint
    found = await plan(world(host), "clear_system_cache", drop_caches=True)
    assert found.steps == (WriteFile(host.roots.proc / "sys/vm/drop_caches", "1"),)


async def test_swappiness(host: FakeHost) -> None:
    with pytest.raises(ActionRefused, match="cannot be read: No such file"):
        await plan(world(host), "adjust_swappiness", value=10)
    knob = host.write(host.roots.proc / "sys/vm/swappiness", "60\n")
    found = await plan(world(host), "adjust_swappiness", value=10)
    assert (found.steps, found.knobs) == ((WriteFile(knob, "10"),), (Knob("vm.swappiness", "60", "10"),))
    with pytest.raises(ActionRefused, match="is 60 already"):
        await plan(world(host), "adjust_swappiness", value=60)


# -- disk ----------------------------------------------------------------------------------------------------


async def test_the_store_is_collected_gently_and_without_a_generation(host: FakeHost) -> None:
    store = host.roots.nix / "store"
    store.mkdir(parents=True)
    found = await plan(world(host), "clean_nix_store", filesystem=str(store), max_freed_bytes=5 * MIB)
    assert found.steps == (
        RunProgram(
            ("/bin/nice", "-n", "19", "/bin/ionice", "-c", "3",
             "/bin/nix-store", "--gc", "--max-freed", str(5 * MIB)),
            1800.0, unprivileged=True,
        ),
    )  # fmt: skip
    bare = await plan(world(host, only("nix-store")), "clean_nix_store")
    (step,) = bare.steps
    assert isinstance(step, RunProgram)
    assert step.command[:3] == ("/bin/nix-store", "--gc", "--max-freed")
    assert 256 * MIB <= int(step.command[3]) <= 20 << 30
    assert not {"-d", "--delete-old", "--delete-older-than"} & set(step.command)


async def test_a_store_that_is_not_collected(host: FakeHost) -> None:
    for finder in (nowhere, here):
        with pytest.raises(ActionRefused, match="there is no nix store"):
            await plan(world(host, finder), "clean_nix_store")
    (host.roots.nix / "store").mkdir(parents=True)
    with pytest.raises(ActionRefused, match="nix is not installed"):
        await plan(world(host, nowhere), "clean_nix_store")
    with pytest.raises(ActionRefused, match="the nix store is not on /proc"):
        await plan(world(host), "clean_nix_store", filesystem="/proc")
    with pytest.raises(ActionRefused, match="cannot be looked at"):
        await plan(world(host), "clean_nix_store", filesystem="/nonexistent")


@pytest.mark.parametrize("held", [True, False])
async def test_no_collection_during_a_switch(host: FakeHost, held: bool) -> None:
    (host.roots.nix / "store").mkdir(parents=True)
    lock(host, held=held)
    if held:
        with pytest.raises(ActionRefused, match=r"a switch .* is in progress"):
            await plan(world(host), "clean_nix_store")
    else:
        assert (await plan(world(host), "clean_nix_store")).steps


async def test_the_journal_keeps_its_newest_half(host: FakeHost) -> None:
    place = host.roots.journal / "abc"
    place.mkdir(parents=True)
    with pytest.raises(ActionRefused, match="takes only 0 MiB"):
        await plan(world(host), "vacuum_journal")
    with (place / "system.journal").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 32 * MIB)
    (step,) = (await plan(world(host), "vacuum_journal", keep_bytes=16 * MIB)).steps
    assert step == RunProgram(("/bin/journalctl", "--rotate", f"--vacuum-size={16 * MIB}"), 60.0)
    with pytest.raises(ActionRefused, match="at least 64 MiB of it are kept"):
        await plan(world(host), "vacuum_journal")


async def test_a_journal_that_is_not_there(host: FakeHost) -> None:
    with pytest.raises(ActionRefused, match="no journal on disk"):
        await plan(world(host), "vacuum_journal")
    host.roots.journal.mkdir(parents=True)
    with pytest.raises(ActionRefused, match="the journal is not on /proc"):
        await plan(world(host), "vacuum_journal", filesystem="/proc")
    with pytest.raises(ActionRefused, match="no journal on disk"):
        await plan(world(host, nowhere), "vacuum_journal")


async def test_the_store_is_optimised_gently(host: FakeHost) -> None:
    (host.roots.nix / "store").mkdir(parents=True)
    (step,) = (await plan(world(host, only("nix-store", "nice")), "optimize_store")).steps
    assert step == RunProgram(("/bin/nice", "-n", "19", "/bin/nix-store", "--optimise"), 7200.0, unprivileged=True)


async def test_a_store_that_is_not_optimised(host: FakeHost) -> None:
    with pytest.raises(ActionRefused, match="there is no nix store"):
        await plan(world(host), "optimize_store")
    (host.roots.nix / "store").mkdir(parents=True)
    with pytest.raises(ActionRefused, match="nix is not installed"):
        await plan(world(host, nowhere), "optimize_store")
    with pytest.raises(ActionRefused, match="the nix store is not on /proc"):
        await plan(world(host), "optimize_store", filesystem="/proc")
    lock(host, held=True)
    with pytest.raises(ActionRefused, match=r"a switch .* is in progress"):
        await plan(world(host), "optimize_store")


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1000k", "test", str(place)], check=False)
    if mounted.returncode != 0:
        pytest.skip("nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts")
@pytest.mark.parametrize(("kib", "fits"), [(700, True), (900, False)])
async def test_a_disk_that_fills_up_is_not_optimised(host: FakeHost, kib: int, fits: bool) -> None:
    store = host.roots.nix / "store"
    store.mkdir(parents=True)
    with small_disk(store):
        (store / "big").write_bytes(bytes(kib << 10))
        if fits:
            assert (await plan(world(host), "optimize_store")).steps
        else:
            with pytest.raises(ActionRefused, match="filesystem is used to 90 %"):
                await plan(world(host), "optimize_store")


async def test_a_disk_is_cleaned_of_journal_and_temporary_files(host: FakeHost) -> None:
    place = rooted(host).roots.journal / "abc"
    place.mkdir(parents=True)
    host.roots.tmp.mkdir()
    clean = RunProgram(("/bin/systemd-tmpfiles", "--clean"), 120.0)
    small = await plan(world(host), "clean_disk")
    assert small.steps == (clean,)
    assert "the journal takes only 0 MiB" in small.checks[1]
    with (place / "system.journal").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 32 * MIB)
    vacuum = RunProgram(("/bin/journalctl", "--rotate", f"--vacuum-size={16 * MIB}"), 60.0)
    for arguments in ({}, {"filesystem": str(host.roots.tmp)}):
        found = await plan(world(host), "clean_disk", keep_bytes=16 * MIB, **arguments)
        assert found.steps == (vacuum, clean)
    bare = await plan(world(host, only("journalctl")), "clean_disk", keep_bytes=16 * MIB)
    assert bare.steps == (vacuum,)


async def test_a_disk_with_nothing_to_clean(host: FakeHost) -> None:
    rooted(host).roots.tmp.mkdir()
    with pytest.raises(ActionRefused, match="no journal on disk; systemd-tmpfiles is not installed"):
        await plan(world(host, nowhere), "clean_disk")
    with pytest.raises(ActionRefused, match=r"no journal on disk; .*tmp is not on /proc"):
        await plan(world(host), "clean_disk", filesystem="/proc")


# -- processes -----------------------------------------------------------------------------------------------

PID = 4_000_000  # above what this kernel hands out by default, so that it is not this test


def owned(folder: Path, uid: int = 1000) -> None:
    """The owner of a process is the owner of its folder."""
    if os.geteuid() == 0:
        os.chown(folder, uid, uid)
    elif uid == 0:
        pytest.skip("only root makes files of root")


async def test_the_diagnosed_process_is_ended(host: FakeHost) -> None:
    owned(host.process(PID))
    found = await plan(world(host), "kill_process", pid=PID, start_time=100)
    assert found.steps == (EndProcess(PID, 100),)
    assert "worker" in found.checks[0]


@pytest.mark.parametrize(
    ("shape", "uid", "start_time", "said"),
    [
        pytest.param({}, 1000, 101, "not the one that was meant", id="another-start-time"),
        pytest.param({"parent": 2}, 1000, 100, "kernel thread", id="kernel-thread"),
        pytest.param({}, 0, 100, "belongs to root", id="of-root"),
        pytest.param(
            {"cgroup": "/system.slice/sshd.service"}, 1000, 100, "sshd.service, which is protected", id="sshd"
        ),
        pytest.param({"cgroup": "/system.slice/dbus-broker.service"}, 1000, 100, "protected", id="dbus"),
        pytest.param({"start": 9_999_000}, 1000, 9_999_000, "s old", id="too-young"),
    ],
)
async def test_a_process_that_is_left_alone(
    host: FakeHost, shape: dict[str, Any], uid: int, start_time: int, said: str
) -> None:
    owned(host.process(PID, **shape), uid)
    with pytest.raises(ActionRefused, match=said):
        await plan(world(host), "kill_process", pid=PID, start_time=start_time)


async def test_a_process_of_a_session_may_be_ended(host: FakeHost) -> None:
    owned(host.process(PID, cgroup="/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope"))
    assert (await plan(world(host), "kill_process", pid=PID, start_time=100)).steps


async def test_we_do_not_end_ourselves(host: FakeHost) -> None:
    for pid in (os.getpid(), os.getppid()):
        owned(host.process(pid))
        with pytest.raises(ActionRefused, match="this program or the one that started it"):
            await plan(world(host), "kill_process", pid=pid, start_time=100)
    with pytest.raises(ActionRefused, match="not the one that was meant"):
        await plan(world(host), "kill_process", pid=PID, start_time=100)
