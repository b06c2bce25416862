"""What the helper says to an engine that is somebody else's, and to one that is only mistaken."""

from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.act.operations.nixos import deletable
from luminous_nix.self_healing.act.steps import SetProperties, Step, UnitJob, WriteFile
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.decide.policy import Maintenance, Mode, Policy, Rule
from luminous_nix.self_healing.ledger import StoreFault
from luminous_nix.self_healing.models import ActionRefused
from luminous_nix.self_healing.privileged.broker import Caller, Rules
from luminous_nix.self_healing.privileged.protocol import Code
from luminous_nix.self_healing.privileged.register import read_audit, verify
from luminous_nix.self_healing.privileged.runner import ServiceRunner
from tests.security.helpers import AUDIT_KEY, Dry, Scene, asked
from tests.security.test_runner import Acting
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, FakeHost
from tests.unit.test_operations_cgroups import bounds
from tests.unit.test_operations_nixos import nixos
from tests.unit.worlds import NOW, rooted, world

pytestmark = pytest.mark.anyio
ENGINE, ROOT = Caller(990, 4321), Caller(0, 1)
MIB = 1 << 20
WEB = "web.service"
ANYTHING = Rule(Mode.AUTO)


def rules(*some: Rule, allowed: frozenset[str] = frozenset({WEB}), **more: Any) -> Rules:
    """Everything by itself but what `some` say, at once after the boot."""
    return Rules(allowed, Policy(rules=(*some, ANYTHING), **{"boot_grace_s": 0.0, **more}))


async def answer(scene: Scene, caller: Caller, op: str, /, *, at: int | None = None, **args: Any) -> Code:
    return (await told(scene, caller, op, at=at, **args))[0]


async def told(scene: Scene, caller: Caller, op: str, /, *, at: int | None = None, **args: Any) -> tuple[Code, str]:
    changes = {} if at is None else {"ts_boot_ns": at}
    code, result = await scene.broker.answer(asked(op, args=args, **changes), caller)
    return code, str(result.get("reason", ""))


async def word(scene: Scene, op: str, /, **args: Any) -> Code:
    """Root's, for exactly this."""
    return await answer(scene, ROOT, "grant", op=op, args=args)


def restored(*knob: str) -> dict[str, Any]:
    return {"knobs": [list(knob)]}


def tunable(host: FakeHost, **more: Any) -> Scene:
    """A scene in which writing the swappiness sets it."""

    def write(step: Step) -> None:
        if isinstance(step, WriteFile):
            host.write(step.path, step.text)

    return Scene(host, runner=Dry(write), **{"rules": rules(), **more})


@asynccontextmanager
async def managed(
    host: FakeHost, daemon: BusDaemon, systemd: Systemd, effect: Callable[[Step], None] = lambda _: None, **more: Any
) -> AsyncIterator[Scene]:
    """A scene with systemd at the bus."""
    bus = Bus(daemon.address, clock=Clock())
    async with systemd.on(daemon.address):
        yield Scene(host, bus=bus, **{"rules": rules(), "runner": Dry(effect), **more})
        await bus.close()


def running(state: str = "running", **values: int) -> Systemd:
    systemd = Systemd()
    systemd.put(WEB, "active", "running", typed=bounds(**values), FreezerState=("s", state))
    return systemd


# -- the way back --------------------------------------------------------------------------------------------


async def test_only_the_last_act_on_a_knob_is_set_back(host: FakeHost) -> None:
    """An older one would be a way to set any value that it ever had."""
    scene = tunable(host)
    for value in (10, 20):
        assert await answer(scene, ENGINE, "adjust_swappiness", value=value) is Code.DONE
    for knob in (("vm.swappiness", "60", "10"), ("vm.swappiness", "60", "20"), ("vm.swappiness", "20", "10")):
        for caller in (ENGINE, ROOT):
            code, why = await told(scene, caller, "restore", **restored(*knob))
            assert (code, "was not set by us last" in why) == (Code.REFUSED, True)
    assert await answer(scene, ENGINE, "restore", **restored("vm.swappiness", "10", "20")) is Code.DONE
    assert (host.roots.proc / "sys/vm/swappiness").read_text("ascii") == "10"


async def test_one_that_is_not_ours_spoils_all_of_them(host: FakeHost) -> None:
    scene = tunable(host)
    assert await answer(scene, ENGINE, "adjust_swappiness", value=10) is Code.DONE
    knobs = [["vm.swappiness", "60", "10"], ["cpufreq:policy0", "powersave", "performance"]]
    assert await answer(scene, ENGINE, "restore", knobs=knobs) is Code.REFUSED
    assert (host.roots.proc / "sys/vm/swappiness").read_text("ascii") == "10"


async def test_what_root_set_only_root_sets_back(host: FakeHost, tmp_path: Path) -> None:
    """Also after the helper started anew."""
    path = tmp_path / "state/register.db"
    scene = tunable(host, path=path)
    assert await answer(scene, ENGINE, "adjust_swappiness", value=20) is Code.DONE
    assert await answer(scene, ROOT, "adjust_swappiness", value=10) is Code.DONE
    scene.register.close()
    scene.again(path)
    code, why = await told(scene, ENGINE, "restore", **restored("vm.swappiness", "20", "10"))
    assert (code, why) == (Code.REFUSED, "'vm.swappiness' was set by root")
    assert await answer(scene, ROOT, "restore", **restored("vm.swappiness", "20", "10")) is Code.DONE
    scene.register.close()


async def test_the_engine_thaws_and_never_freezes_again(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd = running("frozen")

    def effect(step: Step) -> None:
        if isinstance(step, UnitJob):
            systemd.unit[WEB]["FreezerState"] = ("s", "running" if step.method == "ThawUnit" else "frozen")

    async with managed(host, bus_daemon, systemd, effect) as scene:
        assert await answer(scene, ENGINE, "thaw_unit", unit=WEB) is Code.DONE
        back = restored(f"frozen:{WEB}", "1", "0")
        code, why = await told(scene, ENGINE, "restore", **back)
        assert (code, why) == (Code.REFUSED, "to freeze a unit again is for a person")
        assert await answer(scene, ROOT, "restore", **back) is Code.DONE
    assert scene.runner.steps == [UnitJob("ThawUnit", WEB), UnitJob("FreezeUnit", WEB)]


async def test_nothing_is_set_back_where_nothing_may_be_done(host: FakeHost, bus_daemon: BusDaemon) -> None:
    systemd = running(CPUWeight=100)

    def effect(step: Step) -> None:
        if isinstance(step, SetProperties):
            systemd.typed[WEB] |= {name: (kind, value) for name, kind, value in step.properties}

    async with managed(host, bus_daemon, systemd, effect) as scene:
        assert await answer(scene, ENGINE, "limit_unit", unit=WEB, cpu_weight=50) is Code.DONE
        back = restored(f"unit:{WEB}:CPUWeight", "100", "50")
        for forbidding in (
            rules(mode=Mode.OBSERVE), rules(Rule(Mode.OBSERVE, unit="web")), rules(allowed=frozenset()),
            rules()._replace(stopped="dry_run = true"),
        ):  # fmt: skip
            scene.rules = forbidding
            for caller in (ENGINE, ROOT):
                assert await answer(scene, caller, "restore", **back) is Code.REFUSED
        scene.rules = rules(mode=Mode.CONFIRM)  # only back to what was: nobody is asked
        assert await answer(scene, ENGINE, "restore", **back) is Code.DONE
    assert len(scene.runner.steps) == 2


# -- generations ---------------------------------------------------------------------------------------------


def spoil_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def spoil_mode(path: Path) -> None:
    path.chmod(stat.S_IMODE(path.stat().st_mode) | stat.S_IWOTH)


def spoil_bytes(path: Path) -> None:
    path.write_bytes(b"\xff" * 20)


def spoil_length(path: Path) -> None:
    path.write_text("x" * (1 << 20), "ascii")


def spoil_line(path: Path) -> None:
    path.write_text(path.read_text("ascii") + "/nix/sto", "ascii")


def spoil_number(path: Path) -> None:
    path.write_text(path.read_text("ascii") * 200, "ascii")


SPOILERS = [spoil_link, spoil_mode, spoil_bytes, spoil_length, spoil_line, spoil_number]


@pytest.mark.parametrize("spoil", SPOILERS)
async def test_while_the_good_ones_are_not_known_none_is_deleted(
    host: FakeHost, spoil: Callable[[Path], None]
) -> None:
    """By the helper, nor by the act unit, which looks again: 1 was seen healthy, and its mark is spoilt."""
    nixos(host, *range(1, 10), current=9, good=[1])
    scene = Scene(host, rules=rules())
    marks = next(path for path in (host.root / "state").iterdir() if "good" in path.name)
    assert deletable(world(host), [2, 3]) == [2, 3]
    with pytest.raises(ActionRefused, match="generation 1 is kept"):
        deletable(world(host), [1, 2])
    spoil(marks)
    code, why = await told(scene, ROOT, "prune_generations")
    assert (code, "known to be good cannot be told" in why) == (Code.REFUSED, True)
    with pytest.raises(ActionRefused, match="known to be good cannot be told"):
        deletable(world(host), [2])
    assert scene.runner.steps == []


async def test_a_rollback_is_one_act_unit(host: FakeHost, bus_daemon: BusDaemon) -> None:
    """Its four steps are what the act unit does; four starts would go back four times."""
    nixos(host, 7, 8, 9, current=9, good=[8], age=NOW - (time.time() - 3600))
    systemd = Acting()
    bus = Bus(bus_daemon.address, clock=Clock())
    async with systemd.on(bus_daemon.address):
        runner = ServiceRunner(bus, host.roots, sleep=Clock().sleep)
        scene = Scene(host, bus=bus, runner=runner, rules=rules())
        assert await told(scene, ROOT, "rollback_generation") == (Code.DONE, "")
        await bus.close()
    assert systemd.jobs == [("StartUnit", ("luminous-healing-act-rollback@8.service", "fail"))]


# -- only what is allowed ------------------------------------------------------------------------------------


async def test_memory_is_reclaimed_from_allowed_units_alone(host: FakeHost) -> None:
    for unit, size in ((WEB, 64), ("other.service", 128)):
        host.service_cache(unit, size * MIB)
    scene = Scene(host, rules=rules())
    assert await answer(scene, ENGINE, "clear_system_cache") is Code.DONE
    assert [getattr(step, "power", "") for step in scene.runner.steps] == [f"reclaim@{WEB}:{64 * MIB}"]
    scene.rules = rules(allowed=frozenset({"third.service"}))
    for caller in (ENGINE, ROOT):
        code, why = await told(scene, caller, "clear_system_cache")
        assert (code, why) == (Code.REFUSED, "no unit that may be touched holds idle memory")
    assert len(scene.runner.steps) == 1


@pytest.mark.parametrize("more", [{"unit": WEB}, {"issue": {}}, {"parameters": {"x": 1}}])
async def test_a_plugin_is_run_without_a_word_from_the_asker(host: FakeHost, more: dict[str, Any]) -> None:
    """A unit beside it would only choose which rule of the policy covers it."""
    plugin = rooted(host).write(host.root / "plugins/mend", "#!/bin/sh\n")
    for path in (plugin, plugin.parent):
        path.chmod(0o755)
    scene = Scene(host, rules=rules())
    for caller in (ENGINE, ROOT):
        assert await answer(scene, caller, "run_plugin", name="mend", **more) is Code.ARGUMENTS
    assert await word(scene, "run_plugin", name="mend", **more) is Code.ARGUMENTS
    assert scene.runner.steps == []


# -- the policy ----------------------------------------------------------------------------------------------

STARTS: dict[str, dict[str, Any]] = {
    "restart_service": {"service": WEB}, "start_unit": {"unit": WEB}, "rerun_timer": {"unit": "web.timer"},
}  # fmt: skip


def down() -> Systemd:
    """The unit is a job of a timer, and its last run failed."""
    systemd = Systemd()
    systemd.put(WEB, "failed", "failed", typed={"Result": ("s", "exit-code"), "Type": ("s", "oneshot")},
                TriggeredBy=("as", ["web.timer"]))  # fmt: skip
    systemd.put("web.timer", "active", "waiting", typed={"Unit": ("s", WEB)})
    return systemd


@pytest.mark.parametrize("named", STARTS)
@pytest.mark.parametrize("op", STARTS)
async def test_a_rule_covers_the_same_deed_by_another_name(
    host: FakeHost, bus_daemon: BusDaemon, op: str, named: str
) -> None:
    async with managed(host, bus_daemon, down()) as scene:
        assert await answer(scene, ENGINE, op, **STARTS[op]) is Code.DONE
        scene.rules = rules(Rule(Mode.OBSERVE, action=named, unit="web"))
        code, why = await told(scene, ENGINE, op, **STARTS[op])
        assert (code, "observe, so nothing is done" in why) == (Code.REFUSED, True)
        scene.rules = rules(Rule(Mode.CONFIRM, action=named, unit=WEB))
        code, why = await told(scene, ENGINE, op, **STARTS[op])
        assert (code, "a person is asked first" in why) == (Code.REFUSED, True)
        scene.rules = rules(Rule(Mode.OBSERVE, action=named, unit="another"))
        assert await answer(scene, ENGINE, op, **STARTS[op]) is Code.DONE


ALWAYS = (Maintenance.parse("00:00-12:00"), Maintenance.parse("12:00-24:00"))
FLOORS = {"memory_high_bytes": 63 * MIB, "cpu_quota_percent": 9, "cpu_weight": 9, "io_weight": 9}


async def test_people_may_act_in_a_maintenance_window(host: FakeHost) -> None:
    scene = tunable(host, rules=rules(maintenance=ALWAYS))
    code, why = await told(scene, ENGINE, "adjust_swappiness", value=10)
    assert (code, why.startswith("maintenance: ")) == (Code.REFUSED, True)
    assert await answer(scene, ROOT, "adjust_swappiness", value=20) is Code.DONE
    scene.rules = rules(Rule(Mode.CONFIRM), maintenance=ALWAYS)
    assert await word(scene, "adjust_swappiness", value=10) is Code.DONE
    assert await answer(scene, ENGINE, "adjust_swappiness", value=10) is Code.DONE


async def test_people_may_act_right_after_the_boot(host: FakeHost) -> None:
    now = 100 * 10**9
    scene = tunable(host, rules=rules(boot_grace_s=300.0))
    code, why = await told(scene, ENGINE, "adjust_swappiness", at=now, value=10)
    assert (code, why) == (Code.REFUSED, "boot grace: up for 100 s")
    assert await answer(scene, ROOT, "adjust_swappiness", at=now, value=20) is Code.DONE
    assert await answer(scene, ENGINE, "adjust_swappiness", at=301 * 10**9, value=10) is Code.DONE
    back = restored("vm.swappiness", "20", "10")
    assert await answer(scene, ENGINE, "restore", at=now, **back) is Code.DONE  # it does no harm at any time


@pytest.mark.parametrize(("name", "figure"), FLOORS.items())
async def test_how_far_is_for_a_person_to_say(host: FakeHost, bus_daemon: BusDaemon, name: str, figure: int) -> None:
    async with managed(host, bus_daemon, running(CPUWeight=100, IOWeight=100)) as scene:
        code, why = await told(scene, ENGINE, "limit_unit", unit=WEB, **{name: figure})
        assert (code, f"{name} below" in why) == (Code.REFUSED, True)
        enough = {name: figure + (MIB if figure > MIB else 1)}
        assert await answer(scene, ENGINE, "limit_unit", unit=WEB, **enough) is Code.DONE
        assert await answer(scene, ROOT, "limit_unit", unit=WEB, **{name: figure}) is Code.DONE
        scene.rules = rules(Rule(Mode.CONFIRM))
        assert await word(scene, "limit_unit", unit=WEB, **{name: figure}) is Code.DONE
        assert await answer(scene, ENGINE, "limit_unit", unit=WEB, **{name: figure}) is Code.DONE


# -- a person's word -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("caller", [ROOT, ENGINE])
async def test_under_the_kill_switch_no_word_is_taken(host: FakeHost, caller: Caller) -> None:
    switch = ["/etc/luminous-healing/disabled is there"]
    scene = tunable(host, rules=rules(Rule(Mode.CONFIRM)), switch=lambda: "".join(switch))
    args: dict[str, Any] = {"op": "adjust_swappiness", "args": {"value": 10}, "subject": ":1.42"}
    code, why = await told(scene, caller, "grant", **args)
    assert (code, why) == (Code.REFUSED, f"nothing may act: {switch[0]}")
    assert list(scene.register.lines()) == []
    switch.clear()
    assert await answer(scene, ENGINE, "adjust_swappiness", value=10) is Code.REFUSED


async def test_a_word_before_the_figure_was_known_covers_that_figure_and_nothing_else(
    host: FakeHost, bus_daemon: BusDaemon
) -> None:
    systemd = running(CPUWeight=100)
    systemd.put("other.service", "active", "running", typed=bounds(), FreezerState=("s", "running"))
    both = rules(Rule(Mode.CONFIRM), allowed=frozenset({WEB, "other.service"}))
    async with managed(host, bus_daemon, systemd, rules=both) as scene:
        assert await word(scene, "limit_unit", unit=WEB) is Code.DONE
        others: tuple[tuple[str, dict[str, Any]], ...] = (
            ("limit_unit", {"unit": WEB, "cpu_weight": 50}),
            ("limit_unit", {"unit": WEB, "cpu_weight": 50, "memory_high_bytes": 64 * MIB}),
            ("limit_unit", {"unit": "other.service", "memory_high_bytes": 64 * MIB}),
            ("freeze_unit", {"unit": WEB}),
            ("free_memory", {"unit": WEB, "memory_high_bytes": 64 * MIB}),
        )
        for op, args in others:
            assert await answer(scene, ENGINE, op, **args) is Code.REFUSED
        assert scene.runner.steps == []
        high: dict[str, Any] = {"unit": WEB, "memory_high_bytes": 90 * MIB}
        assert await answer(scene, ENGINE, "limit_unit", **high) is Code.DONE
        assert await answer(scene, ENGINE, "limit_unit", **high) is Code.REFUSED  # it was for once
        assert await word(scene, "limit_unit", **high) is Code.DONE
        assert await answer(scene, ENGINE, "limit_unit", unit=WEB, memory_high_bytes=80 * MIB) is Code.REFUSED
        assert await answer(scene, ENGINE, "limit_unit", unit=WEB) is Code.REFUSED


async def test_a_figure_that_the_person_did_not_name_is_not_the_engines_to_choose(
    host: FakeHost, bus_daemon: BusDaemon
) -> None:
    """A yes to a limit is no yes to one under which the unit cannot live."""
    async with managed(host, bus_daemon, running(), rules=rules(Rule(Mode.CONFIRM))) as scene:
        assert await word(scene, "limit_unit", unit=WEB) is Code.DONE
        code, why = await told(scene, ENGINE, "limit_unit", unit=WEB, memory_high_bytes=MIB)
        assert (code, "memory_high_bytes below" in why) == (Code.REFUSED, True)
        assert await answer(scene, ENGINE, "limit_unit", unit=WEB, memory_high_bytes=64 * MIB) is Code.DONE


async def test_a_dry_run_leaves_the_word(host: FakeHost) -> None:
    scene = tunable(host, rules=rules(Rule(Mode.CONFIRM)))
    assert await word(scene, "adjust_swappiness", value=10) is Code.DONE
    look = asked("adjust_swappiness", args={"value": 10}, dry_run=True)
    assert (await scene.broker.answer(look, ENGINE))[0] is Code.DONE
    assert await answer(scene, ENGINE, "adjust_swappiness", value=10) is Code.DONE


# -- one at a time, and a register that is full --------------------------------------------------------------


async def test_while_an_act_unit_runs_nobody_else_acts(host: FakeHost) -> None:
    scene, under_way = tunable(host), ["luminous-healing-act-gc@1048576.service"]

    async def running() -> str:
        return "".join(under_way)

    scene.broker._running = running
    for caller in (ENGINE, ROOT):
        code, why = await told(scene, caller, "adjust_swappiness", value=10)
        assert (code, why) == (Code.BUSY, f"{under_way[0]} is not done yet")
    assert await answer(scene, ENGINE, "status") is Code.DONE
    assert await word(scene, "adjust_swappiness", value=10) is Code.DONE  # a word is no act
    assert (scene.runner.steps, scene.broker.acting) == ([], False)
    under_way.clear()
    assert await answer(scene, ENGINE, "adjust_swappiness", value=10) is Code.DONE


def fill(scene: Scene) -> None:
    for number in range(1000):
        scene.register.note({"event": "denied", "number": number})


async def test_a_register_that_was_full_is_tried_again(host: FakeHost, tmp_path: Path) -> None:
    path = tmp_path / "state/register.db"
    scene = tunable(host, path=path)
    assert await answer(scene, ENGINE, "adjust_swappiness", value=10) is Code.DONE
    db = scene.register._db
    assert isinstance(db, sqlite3.Connection)
    (pages,) = db.execute("PRAGMA page_count").fetchone()
    db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreFault, match="full"):
        fill(scene)
    assert "full" in scene.broker.status()["store"]
    assert await answer(scene, ENGINE, "status") is Code.DONE  # a look mends nothing
    assert scene.register.fault
    assert await answer(scene, ENGINE, "adjust_swappiness", value=20) is Code.DONE
    assert (scene.register.fault, scene.broker.status()["store"]) == ("", "")
    rows, checkpoint = read_audit(path)
    assert verify(rows, checkpoint, AUDIT_KEY, scene.register.head()) == ""
    assert [getattr(step, "text", "") for step in scene.runner.steps] == ["10", "20"]
    scene.register.close()


@pytest.mark.parametrize(
    ("cgroup", "some", "caller", "code", "said"),
    [
        ("/system.slice/web.service", (), ENGINE, Code.DONE, ""),
        ("/system.slice/other.service", (), ENGINE, Code.REFUSED, "of no unit that may be touched"),
        ("/user.slice/x.scope", (), ENGINE, Code.REFUSED, "of no unit that may be touched"),
        ("/user.slice/x.scope", (), ROOT, Code.DONE, ""),
        ("/system.slice/web.service", (Rule(Mode.OBSERVE, unit="web*"),), ENGINE, Code.REFUSED, "observe"),
        ("/system.slice/web.service", (Rule(Mode.CONFIRM, unit="web*"),), ENGINE, Code.REFUSED, "a person is asked"),
    ],
)
async def test_a_process_is_ended_by_itself_only_where_its_unit_may_be_touched(
    host: FakeHost, cgroup: str, some: tuple[Rule, ...], caller: Caller, code: Code, said: str
) -> None:
    if os.geteuid() != 0:
        pytest.skip("the process must be somebody else's than root's: root only")
    os.chown(host.process(4321, cgroup=cgroup), 1000, -1)
    scene = Scene(host, rules=rules(*some))
    answered, why = await told(scene, caller, "kill_process", pid=4321, start_time=100)
    assert (answered, said in why, len(scene.runner.steps)) == (code, True, int(code is Code.DONE))
