"""Limits, freezing, timers, the resolver, and the knobs by which all that is set back."""

from __future__ import annotations

from typing import Any

import pytest

from luminous_nix.self_healing.act.operations import read_knob, set_knob, way_back
from luminous_nix.self_healing.act.steps import (
    UNLIMITED,
    Knob,
    ResolverJob,
    SetProperties,
    Step,
    UnitJob,
    WriteFile,
)
from luminous_nix.self_healing.models import ActionRefused
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import FakeHost
from tests.unit.worlds import lock, managed, plan, world

pytestmark = pytest.mark.anyio
MIB = 1 << 20
UNIT = "web.service"


def bounds(**values: int) -> dict[str, tuple[str, Any]]:
    names = ("MemoryHigh", "CPUWeight", "CPUQuotaPerSecUSec", "IOWeight", "MemoryCurrent")
    return {name: ("t", values.get(name, UNLIMITED)) for name in names}


def running(**values: int) -> Systemd:
    systemd = Systemd()
    systemd.put(UNIT, "active", "running", typed=bounds(**values), FreezerState=("s", "running"))
    return systemd


def frozen(state: str) -> Systemd:
    systemd = running()
    systemd.unit[UNIT]["FreezerState"] = ("s", state)
    return systemd


# -- limit_unit ----------------------------------------------------------------------------------------------


async def test_each_limit_is_a_property_and_a_knob(host: FakeHost, bus_daemon: BusDaemon) -> None:
    async with managed(host, bus_daemon, running(CPUWeight=100)) as at:
        found = await plan(at, "limit_unit", unit=UNIT, memory_high_bytes=64 * MIB, cpu_weight=20,
                           cpu_quota_percent=150, io_weight=10)  # fmt: skip
    assert found.steps == (
        SetProperties(UNIT, (("MemoryHigh", "t", 64 * MIB), ("CPUWeight", "t", 20),
                             ("CPUQuotaPerSecUSec", "t", 1_500_000), ("IOWeight", "t", 10))),
    )  # fmt: skip
    assert found.knobs == (
        Knob("unit:web.service:MemoryHigh", "infinity", str(64 * MIB)),
        Knob("unit:web.service:CPUWeight", "100", "20"),
        Knob("unit:web.service:CPUQuotaPerSecUSec", "infinity", "1500000"),
        Knob("unit:web.service:IOWeight", "infinity", "10"),
    )


@pytest.mark.parametrize(
    ("current", "high"),
    [(100 * MIB, 90 * MIB), (100 * MIB + 4095, 90 * MIB), (1, 16 * MIB), (17 * MIB, 16 * MIB), (0, 16 * MIB)],
)
async def test_without_a_word_memory_is_held_to_nine_tenths(
    host: FakeHost, bus_daemon: BusDaemon, current: int, high: int
) -> None:
    async with managed(host, bus_daemon, running(MemoryCurrent=current)) as at:
        found = await plan(at, "limit_unit", unit=UNIT)
    (step,) = found.steps
    assert step == SetProperties(UNIT, (("MemoryHigh", "t", high),))
    assert found.settled == {"memory_high_bytes": high}
    assert high % 4096 == 0


@pytest.mark.parametrize("action", ["limit_unit", "free_memory"])
async def test_what_was_settled_stays_when_the_unit_grows_meanwhile(
    host: FakeHost, bus_daemon: BusDaemon, action: str
) -> None:
    """The record's knobs are those of the first plan; what is done must be the same."""
    async with managed(host, bus_daemon, running(MemoryCurrent=100 * MIB)) as at:
        recorded = await plan(at, action, unit=UNIT)
    async with managed(host, bus_daemon, running(MemoryCurrent=120 * MIB)) as at:
        done = await plan(at, action, unit=UNIT, **recorded.settled)
    assert (done.knobs, done.steps) == (recorded.knobs, recorded.steps)


@pytest.mark.parametrize(
    ("present", "arguments", "said"),
    [
        ({}, {}, "how much memory web.service takes is unknown"),
        (
            {"MemoryHigh": 32 * MIB},
            {"memory_high_bytes": 33 * MIB},
            "MemoryHigh=33554432 already: .* would loosen it",
        ),
        ({"MemoryHigh": 32 * MIB, "MemoryCurrent": 64 * MIB}, {}, "web.service has a limit already"),
        ({"CPUQuotaPerSecUSec": 500_000}, {"cpu_quota_percent": 51}, "would loosen it"),
        ({"CPUWeight": 7}, {"cpu_weight": 7}, "is limited to that already"),
        ({"MemoryHigh": 32 * MIB}, {"memory_high_bytes": 32 * MIB}, "is limited to that already"),
    ],
)
async def test_a_limit_that_is_refused(
    host: FakeHost, bus_daemon: BusDaemon, present: dict[str, int], arguments: dict[str, int], said: str
) -> None:
    systemd = running(**present)
    async with managed(host, bus_daemon, systemd) as at:
        with pytest.raises(ActionRefused, match=said):
            await plan(at, "limit_unit", unit=UNIT, **arguments)
    assert systemd.jobs == []


async def test_what_stands_already_is_not_set_again(host: FakeHost, bus_daemon: BusDaemon) -> None:
    async with managed(host, bus_daemon, running(CPUWeight=7)) as at:
        found = await plan(at, "limit_unit", unit=UNIT, cpu_weight=7, io_weight=9)
    assert [knob.name for knob in found.knobs] == ["unit:web.service:IOWeight"]


async def test_a_property_that_this_systemd_lacks(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd = running()
    del systemd.typed[UNIT]["IOWeight"]
    async with managed(host, bus_daemon, systemd) as at:
        with pytest.raises(ActionRefused, match=r"systemd does not tell IOWeight of web.service"):
            await plan(at, "limit_unit", unit=UNIT, io_weight=5)


BOUND = ["limit_unit", "freeze_unit", "thaw_unit"]


@pytest.mark.parametrize("action", BOUND)
async def test_what_is_not_a_running_service_of_others_is_left_alone(
    host: FakeHost, bus_daemon: BusDaemon, action: str
) -> None:
    systemd = running()
    systemd.put("x.socket", "active", "listening")
    systemd.put("down.service", "failed", "failed")
    systemd.put("coming.service", "activating", "start")
    systemd.put("busy.service", "active", "running", Job=("(uo)", (4, "/j")))
    systemd.put("alias.service", "active", "running", Names=("as", ["alias.service", "sshd.service"]))
    systemd.put("masked.service", "active", "running", LoadState=("s", "masked"))
    refused = {
        "sshd.service": "in the protected set", "alias.service": "is sshd.service, which is in the protected set",
        "x.socket": "is no service", "down.service": r"is not running \(it is failed\)",
        "coming.service": r"is not running \(it is activating\)", "busy.service": "has a job in flight",
        "masked.service": "it is masked", "ghost.service": "there is no such unit",
    }  # fmt: skip
    async with managed(host, bus_daemon, systemd) as at:
        for name, said in refused.items():
            with pytest.raises(ActionRefused, match=said):
                await plan(at, action, unit=name)
        lock(host, held=True)
        with pytest.raises(ActionRefused, match=r"a switch .* is in progress"):
            await plan(at, action, unit=UNIT)
    lock(host, held=False)
    with pytest.raises(ActionRefused, match="cannot be looked at"):
        await plan(world(host), action, unit=UNIT)


# -- freeze and thaw -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "state", "method", "knob"),
    [("freeze_unit", "running", "FreezeUnit", ("0", "1")), ("thaw_unit", "frozen", "ThawUnit", ("1", "0")),
     ("thaw_unit", "freezing", "ThawUnit", ("1", "0"))],
)  # fmt: skip
async def test_a_service_is_frozen_and_thawed(
    host: FakeHost, bus_daemon: BusDaemon, action: str, state: str, method: str, knob: tuple[str, str]
) -> None:
    async with managed(host, bus_daemon, frozen(state)) as at:
        found = await plan(at, action, unit=UNIT)
    assert found.steps == (UnitJob(method, UNIT),)
    assert found.knobs == (Knob("frozen:web.service", *knob),)


@pytest.mark.parametrize(
    ("action", "state", "said"),
    [("freeze_unit", "frozen", "is frozen already"), ("thaw_unit", "running", "is not frozen"),
     ("thaw_unit", "odd", r"whether web.service is frozen cannot be told \(it is odd\)"),
     ("freeze_unit", "frozen-by-parent", "cannot be told")],
)  # fmt: skip
async def test_a_state_that_does_not_fit(
    host: FakeHost, bus_daemon: BusDaemon, action: str, state: str, said: str
) -> None:
    async with managed(host, bus_daemon, frozen(state)) as at:
        with pytest.raises(ActionRefused, match=said):
            await plan(at, action, unit=UNIT)


async def test_where_nothing_can_be_frozen(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd = running()
    systemd.unit[UNIT]["CanFreeze"] = ("b", False)
    async with managed(host, bus_daemon, systemd) as at:
        with pytest.raises(ActionRefused, match="cannot be frozen here") as refusal:
            await plan(at, "freeze_unit", unit=UNIT)
    assert refusal.value.hint == "that needs cgroup v2"


# -- free_memory ---------------------------------------------------------------------------------------------


async def test_memory_is_reclaimed_first_and_only_then_a_unit_limited(host: FakeHost, bus_daemon: BusDaemon) -> None:
    async with managed(host, bus_daemon, running(MemoryCurrent=100 * MIB)) as at:
        limited = await plan(at, "free_memory", unit=UNIT)
        with pytest.raises(ActionRefused, match=r"no memory\.reclaim"):
            await plan(at, "free_memory")
        knob = host.service_cache("a.service", 8 * MIB)
        reclaimed = await plan(at, "free_memory", unit=UNIT, bytes=4 * MIB)
    assert limited.steps == (SetProperties(UNIT, (("MemoryHigh", "t", 90 * MIB),)),)
    assert limited.checks[0].startswith("this kernel has no memory.reclaim")
    assert limited.knobs == (Knob("unit:web.service:MemoryHigh", "infinity", str(90 * MIB)),)
    assert reclaimed.steps == (WriteFile(knob, str(4 * MIB), partial_ok=True),)
    assert reclaimed.knobs == ()


# -- rerun_timer ---------------------------------------------------------------------------------------------


def timed(timer: str = "active", job: str = "failed", **more: Any) -> Systemd:
    systemd = Systemd()
    systemd.put("backup.timer", timer, "waiting", typed={"Unit": ("s", "backup.service")})
    systemd.put("backup.service", job, job, TriggeredBy=("as", ["x.path", "backup.timer"]),
                UnitFileState=("s", "static"), **more)  # fmt: skip
    return systemd


@pytest.mark.parametrize("name", ["backup.timer", "backup.service"])
async def test_a_failed_job_of_a_timer_runs_once_more(host: FakeHost, bus_daemon: BusDaemon, name: str) -> None:
    async with managed(host, bus_daemon, timed()) as at:
        found = await plan(at, "rerun_timer", unit=name)
    assert found.steps == (UnitJob("StartUnit", "backup.service"),)


MASKED: dict[str, Any] = {"LoadState": ("s", "masked")}


@pytest.mark.parametrize(
    ("systemd", "name", "said"),
    [
        pytest.param(timed(job="active"), "backup.timer", r"did not fail \(it is active\)", id="running"),
        pytest.param(timed(job="activating"), "backup.timer", r"did not fail \(it is activating\)", id="starting"),
        pytest.param(timed(**MASKED), "backup.timer", "backup.service: it is masked", id="masked"),
        pytest.param(timed(timer="failed"), "backup.timer", "its jobs are switched off", id="timer-failed"),
        pytest.param(timed(timer="deactivating"), "backup.service", "backup.timer is deactivating", id="stopping"),
        pytest.param(running(), UNIT, "web.service has no timer", id="no-timer"),
        pytest.param(running(), "ghost.timer", "there is no timer ghost.timer", id="not-there"),
        pytest.param(
            timed(Conflicts=("as", ["backup.timer"])), "backup.timer", "would stop backup.timer", id="rival"
        ),
    ],
)
async def test_a_job_that_is_not_run_again(
    host: FakeHost, bus_daemon: BusDaemon, systemd: Systemd, name: str, said: str
) -> None:
    async with managed(host, bus_daemon, systemd) as at:
        with pytest.raises(ActionRefused, match=said):
            await plan(at, "rerun_timer", unit=name)
    assert systemd.jobs == []


async def test_a_timer_that_was_stopped_keeps_its_jobs_off(host: FakeHost, bus_daemon: BusDaemon) -> None:
    """Why a timer is down may be unknown here; that it is down is enough."""
    async with managed(host, bus_daemon, timed(timer="inactive")) as at:
        with pytest.raises(ActionRefused, match=r"backup.timer (is inactive|cannot be looked at)"):
            await plan(at, "rerun_timer", unit="backup.service")


async def test_a_timer_of_a_protected_job_is_left_alone(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd = Systemd()
    systemd.put("my.timer", "active", "waiting", typed={"Unit": ("s", "systemd-tmpfiles-clean.service")})
    async with managed(host, bus_daemon, systemd) as at:
        with pytest.raises(ActionRefused, match="in the protected set"):
            await plan(at, "rerun_timer", unit="my.timer")


# -- restart_network -----------------------------------------------------------------------------------------


async def test_the_resolver_forgets_and_no_interface_is_touched(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd = Systemd()
    systemd.put("systemd-resolved.service", "active", "running")
    async with managed(host, bus_daemon, systemd) as at:
        found = await plan(at, "restart_network")
        lock(host, held=True)
        with pytest.raises(ActionRefused, match=r"a switch .* is in progress"):
            await plan(at, "restart_network")
    assert found.steps == (ResolverJob("FlushCaches"), ResolverJob("ResetServerFeatures"))


async def test_without_a_resolver_there_is_nothing_to_mend(host: FakeHost, bus_daemon: BusDaemon) -> None:
    async with managed(host, bus_daemon, Systemd()) as at:
        with pytest.raises(ActionRefused, match=r"there is no resolver to mend: systemd-resolved.service is"):
            await plan(at, "restart_network")
    with pytest.raises(ActionRefused, match="cannot be looked at"):
        await plan(world(host), "restart_network")


# -- knobs ---------------------------------------------------------------------------------------------------

HOSTILE = [
    "", "vm.swappiness\n", "vm.swappiness/../../x", "vm.overcommit_memory", "VM.SWAPPINESS", "/etc/passwd",
    "cpufreq:", "cpufreq:policy", "cpufreq:policy0/../../../x", "cpufreq:policy0\n", "cpufreq:policy٣",
    "cpufreq:policy99999", "cpufreq:..",
    "unit:web.service:ExecStart", "unit:web.service:MemoryHigh\n", "unit:web.service", "unit::MemoryHigh",
    "unit:../web.service:MemoryHigh", "unit:web.socket:MemoryHigh", "unit:web:MemoryHigh",
    "unit:sshd.service:MemoryHigh", "unit:a b.service:CPUWeight", "unit:x@.service:CPUWeight",
    "unit:\n.service:IOWeight",
    "frozen:", "frozen:init.scope", "frozen:systemd-logind.service", "frozen:web", "frozen:web.service\n",
    "frozen:" + "a" * 300 + ".service",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
async def test_a_name_out_of_the_grammar_reaches_nothing(host: FakeHost, name: str) -> None:
    host.cpufreq("powersave")
    with pytest.raises(ActionRefused):
        await read_knob(world(host), name)
    for value in ("1", "60", "schedutil"):
        with pytest.raises(ActionRefused):
            set_knob(world(host), name, value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("vm.swappiness", value) for value in ("", "201", "-1", "1e2", "60\n", " 60", "٣", "1000", "00", "07", "007")]
    + [("cpufreq:policy0", value) for value in ("", "../x", "a b", "A", "schedutil\n", "x" * 33)]
    + [("unit:web.service:MemoryHigh", value) for value in ("", "-1", "1K", "max", "1" * 20, "infinity\n")]
    + [("frozen:web.service", value) for value in ("", "2", "true", "01")],
)
def test_a_value_out_of_the_grammar_is_refused(host: FakeHost, name: str, value: str) -> None:
    with pytest.raises(ActionRefused, match="is no value for"):
        set_knob(world(host), name, value)


async def test_each_kind_of_knob_is_read_and_set(host: FakeHost, bus_daemon: BusDaemon) -> None:
    swappiness = host.write(host.roots.proc / "sys/vm/swappiness", "60\n")
    policy = host.cpufreq("powersave")
    cases: list[tuple[str, str, str, Step]] = [
        ("vm.swappiness", "60", "200", WriteFile(swappiness, "200")),
        ("cpufreq:policy0", "powersave", "schedutil", WriteFile(policy / "scaling_governor", "schedutil")),
        ("unit:web.service:CPUWeight", "7", "infinity", SetProperties(UNIT, (("CPUWeight", "t", UNLIMITED),))),
        ("unit:web.service:MemoryHigh", "infinity", "9", SetProperties(UNIT, (("MemoryHigh", "t", 9),))),
        ("frozen:web.service", "0", "1", UnitJob("FreezeUnit", UNIT)),
        ("frozen:web.service", "0", "0", UnitJob("ThawUnit", UNIT)),
    ]
    async with managed(host, bus_daemon, running(CPUWeight=7)) as at:
        for name, present, value, step in cases:
            assert (await read_knob(at, name), set_knob(at, name, value)) == (present, step)


async def test_a_knob_that_cannot_be_read(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd = running()
    systemd.put("alias.service", "active", "running", typed=bounds(), Id=("s", "sshd.service"))
    for name, said in (
        ("vm.swappiness", "cannot be read: No such file"), ("cpufreq:policy3", "cannot be read: No such file"),
        ("unit:web.service:MemoryHigh", "cannot be looked at: D-Bus is not"),
    ):  # fmt: skip
        with pytest.raises(ActionRefused, match=said):
            await read_knob(world(host), name)
    async with managed(host, bus_daemon, systemd) as at:
        for name, said in (
            ("unit:alias.service:MemoryHigh", "is sshd.service, which is in the protected set"),
            ("unit:ghost.service:MemoryHigh", "systemd does not tell MemoryHigh"),
            ("frozen:ghost.service", r"cannot be told \(it is unknown\)"),
        ):
            with pytest.raises(ActionRefused, match=said):
                await read_knob(at, name)


async def test_the_way_back_is_the_reverse_and_leaves_what_stands(host: FakeHost) -> None:
    swappiness = host.write(host.roots.proc / "sys/vm/swappiness", "10")
    policy = host.cpufreq("schedutil")
    knobs = [("vm.swappiness", "60", "10"), ("cpufreq:policy0", "powersave", "schedutil")]
    found = await way_back(world(host), knobs)
    assert found.steps == (WriteFile(policy / "scaling_governor", "powersave"), WriteFile(swappiness, "60"))
    swappiness.write_text("60", encoding="utf-8")
    half = await way_back(world(host), knobs)
    assert half.steps == (WriteFile(policy / "scaling_governor", "powersave"),)
    assert "vm.swappiness is 60 already" in half.checks


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ([], "nothing to set back$"),
        ([("vm.swappiness", "30", "60")], "nothing to set back: vm.swappiness is 30 already"),
        ([("vm.swappiness", "10", "60")], r"vm.swappiness was changed since \(it is 30, we left 60\)"),
        ([("vm.swappiness", "900", "30")], "'900' is no value for vm.swappiness"),
        ([("vm.swappiness", "10")], "not a knob"),
        (["abc"], "not a knob"),
        ([("vm.swappiness", 10, 30)], "not a knob"),
        ([("/etc/passwd", "10", "30")], "there is no knob '/etc/passwd'"),
        ([("vm.swappiness", "10", "30"), ("cpufreq:policy0", "powersave", "performance")],
         "cpufreq:policy0 was changed"),
        ([("unit:sshd.service:MemoryHigh", "infinity", "5")], "sshd.service is in the protected set"),
    ],
)  # fmt: skip
async def test_a_way_back_that_is_not_gone(host: FakeHost, knobs: list[Any], said: str) -> None:
    host.write(host.roots.proc / "sys/vm/swappiness", "30")
    host.cpufreq("schedutil")
    with pytest.raises(ActionRefused, match=said):
        await way_back(world(host), knobs)


async def test_no_way_back_during_a_switch(host: FakeHost) -> None:
    host.write(host.roots.proc / "sys/vm/swappiness", "30")
    lock(host, held=True)
    with pytest.raises(ActionRefused, match=r"a switch .* is in progress"):
        await way_back(world(host), [("vm.swappiness", "10", "30")])
