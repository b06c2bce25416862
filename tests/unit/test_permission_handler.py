"""How privilege is had, and what is said where there is none."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from luminous_nix.self_healing.act.runners import DirectRunner
from luminous_nix.self_healing.act.steps import AskHelper
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.decide.actions import CATALOGUE
from luminous_nix.self_healing.models import (
    Action,
    ActionFailed,
    ActionRefused,
    ExecutionMode,
    HealingError,
    NeedsPrivilege,
)
from luminous_nix.self_healing.permission_handler import NixOSPermissionHandler, development_wanted
from luminous_nix.self_healing.privileged.ways import WAYS
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, FakeHost, Recorder, no_bus
from tests.unit.worlds import rooted

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("word", ["1", "true", "TRUE", "yes", "On", " 1 "])
def test_words_that_choose_development(word: str) -> None:
    assert development_wanted({"LUMINOUS_DEV_MODE": word})
    handler = NixOSPermissionHandler(environment={"LUMINOUS_DEV_MODE": word}, bus=no_bus())
    assert handler.mode is ExecutionMode.DEVELOPMENT


@pytest.mark.parametrize("word", ["0", "", "false", "no", "off", "2", "dev", "true;", "yes please"])
def test_words_that_do_not(word: str) -> None:
    handler = NixOSPermissionHandler(environment={"LUMINOUS_DEV_MODE": word}, bus=no_bus())
    assert handler.mode is ExecutionMode.SERVICE


def test_an_explicit_mode_wins() -> None:
    handler = NixOSPermissionHandler(ExecutionMode.SERVICE, environment={"LUMINOUS_DEV_MODE": "1"}, bus=no_bus())
    assert handler.mode is ExecutionMode.SERVICE
    assert NixOSPermissionHandler(environment={}, bus=no_bus()).mode is ExecutionMode.SERVICE


def handler(
    host: FakeHost, runner: Recorder | None, mode: ExecutionMode = ExecutionMode.SERVICE
) -> NixOSPermissionHandler:
    return NixOSPermissionHandler(mode, bus=no_bus(), roots=host.roots, runner=runner, environment={})


def swappiness(host: FakeHost) -> Path:
    return host.write(host.roots.proc / "sys/vm/swappiness", "60\n")


async def test_service_mode_without_the_helper_says_so_and_how_to_go_on(host: FakeHost) -> None:
    knob = swappiness(host)
    answer = await handler(host, None).execute_healing_action("adjust_swappiness", {"value": 10})
    assert (answer.success, answer.refused, answer.mode) == (False, True, "service")
    assert f"there is none on this host ({host.roots.run}/luminous-healing-executor.sock is missing)" in str(
        answer.error
    )
    assert "LUMINOUS_DEV_MODE=1" in str(answer.suggestion)
    assert knob.read_text("utf-8") == "60\n"


@pytest.mark.parametrize(
    ("mode", "helper", "uid", "sudo", "how"),
    [
        (ExecutionMode.SERVICE, False, 0, True, "unavailable: no helper"),
        (ExecutionMode.SERVICE, False, 1000, True, "unavailable: no helper"),
        (ExecutionMode.SERVICE, True, 1000, False, "helper"),
        (ExecutionMode.DEVELOPMENT, False, 0, True, "direct"),
        (ExecutionMode.DEVELOPMENT, False, 1000, True, "sudo, where it needs no password"),
        (ExecutionMode.DEVELOPMENT, True, 1000, False, "command to type"),
    ],
)
def test_the_status(
    host: FakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: ExecutionMode, helper: bool, uid: int,
    sudo: bool, how: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("os.geteuid", lambda: uid)
    monkeypatch.setattr("luminous_nix.self_healing.process.SEARCH_PATH", str(tmp_path))
    if sudo:
        host.write(tmp_path / "sudo", "").chmod(0o755)
    if helper:
        host.write(host.roots.run / "luminous-healing-executor.sock", "")
    status = handler(host, None, mode).get_permission_status()
    assert set(status) == {"mode", "is_production", "capabilities"}
    assert (status["mode"], status["is_production"]) == (mode.value, mode is ExecutionMode.SERVICE)
    asks_first = {
        "kill_process", "rollback_generation", "freeze_unit", "free_memory", "optimize_store", "clean_disk",
        "restart_network", "rebuild_system", "prune_generations", "run_plugin",
    }  # fmt: skip
    way = {name: f"helper: {WAYS[name]}" if how == "helper" else how for name in CATALOGUE if name != "observe"}
    wanted = {name: said + ("; asks first" if name in asks_first else "") for name, said in way.items()}
    if mode is ExecutionMode.DEVELOPMENT and uid:
        wanted["kill_process"] = "own processes only; asks first"
    assert status["capabilities"] == wanted


async def test_an_act_answers_with_what_was_done(host: FakeHost) -> None:
    swappiness(host)
    runner = Recorder()
    answer = await handler(host, runner).execute_healing_action("adjust_swappiness", {"value": 10})
    assert (answer.success, answer.error, answer.output, answer.refused) == (True, None, "done", False)
    assert answer.knobs == (("vm.swappiness", "60", "10"),)
    assert len(runner.steps) == 1


@pytest.mark.parametrize(
    ("problem", "refused"),
    [
        (ActionFailed("it broke", "look there"), False),
        (ActionRefused("not now", "look there"), True),
        (NeedsPrivilege("not allowed", "look there"), True),
    ],
)
async def test_what_goes_wrong_is_in_the_answer(host: FakeHost, problem: HealingError, refused: bool) -> None:
    swappiness(host)
    answer = await handler(host, Recorder(problem=problem)).execute_healing_action("adjust_swappiness", {"value": 10})
    assert (answer.success, answer.refused) == (False, refused)
    assert (answer.error, answer.suggestion) == (problem.message, "look there")
    assert bool(answer.knobs) is not refused  # a step that failed may have set it all the same


@pytest.mark.parametrize(
    ("action", "parameters", "said"),
    [
        ("adjust_swapiness", {}, "there is no action"),
        ("adjust_swappiness", {"value": 900}, "from 0 to 200"),
        ("adjust_swappiness", None, "needs value"),
        ("adjust_swappiness", {"value": 10}, "cannot be read"),
        ("restart_service", {"service": "sshd"}, "protected set"),
        ("rollback_generation", {}, "no NixOS generations"),
    ],
)
async def test_a_refusal_touches_nothing(
    host: FakeHost, action: str, parameters: dict[str, object] | None, said: str
) -> None:
    runner = Recorder()
    answer = await handler(host, runner).execute_healing_action(action, parameters)
    assert (answer.success, answer.refused, runner.steps) == (False, True, [])
    assert said in str(answer.error)


async def test_a_knob_with_rubbish_in_it_is_a_refusal(host: FakeHost) -> None:
    swappiness(host).write_bytes(b"\xff\xfe")
    with pytest.raises(ActionRefused, match="the precheck could not look"):
        await handler(host, Recorder()).prepare(Action("adjust_swappiness", {"value": 10}))


async def test_a_profile_that_links_elsewhere_is_a_refusal(host: FakeHost) -> None:
    profiles = host.roots.nix / "var/nix/profiles"
    profiles.mkdir(parents=True)
    (profiles / "system-1-link").symlink_to("/nix/store/x")
    (profiles / "system").symlink_to("elsewhere")
    answer = await handler(host, Recorder()).execute_healing_action("rollback_generation", {})
    assert answer.refused


# -- the way back --------------------------------------------------------------------------------------------


def dev(host: FakeHost, switch: Callable[[], str] = lambda: "") -> NixOSPermissionHandler:
    """Acts for real, on the host of files."""
    runner = DirectRunner(no_bus(), host.roots, privileged=True)
    return NixOSPermissionHandler(
        ExecutionMode.DEVELOPMENT, bus=no_bus(), roots=host.roots, runner=runner, environment={}, switch=switch
    )


async def test_what_was_set_is_set_back(host: FakeHost) -> None:
    knob = swappiness(host)
    answer = await dev(host).execute_healing_action("adjust_swappiness", {"value": 10})
    assert knob.read_text("utf-8").strip() == "10"
    knob.write_text("10", encoding="utf-8")  # the kernel's file holds one value; a plain file keeps the rest
    restored = await dev(host).restore(answer.knobs)
    assert (restored.success, restored.error, restored.refused, restored.knobs) == (True, None, False, ())
    assert knob.read_text("utf-8") == "60"


async def test_what_somebody_changed_since_is_left(host: FakeHost) -> None:
    knob = host.write(host.roots.proc / "sys/vm/swappiness", "30")
    policy = host.cpufreq("schedutil")
    knobs = [("vm.swappiness", "10", "60"), ("cpufreq:policy0", "powersave", "schedutil")]
    answer = await dev(host).restore(knobs)
    assert (answer.success, answer.refused) == (False, True)
    assert answer.error == "vm.swappiness was changed since (it is 30, we left 60)"
    assert "whoever changed it decides" in str(answer.suggestion)
    assert (knob.read_text("utf-8"), (policy / "scaling_governor").read_text("utf-8")) == ("30", "schedutil\n")


async def test_a_way_back_that_cannot_be_looked_at_is_refused(host: FakeHost) -> None:
    swappiness(host).write_bytes(b"\xff")
    answer = await dev(host).restore([("vm.swappiness", "10", "60")])
    assert (answer.refused, answer.error) == (True, answer.error)
    assert "could not be looked at" in str(answer.error)


async def test_a_protected_unit_is_never_set_back(host: FakeHost) -> None:
    answer = await dev(host).restore([("frozen:sshd.service", "1", "0")])
    assert (answer.refused, answer.error) == (True, "sshd.service is in the protected set")


# -- the kill switch -----------------------------------------------------------------------------------------


async def test_the_kill_switch_stops_before_anything_is_touched(host: FakeHost) -> None:
    knob, runner = swappiness(host), Recorder()
    at = handler(host, runner)
    at.switch = lambda: "an administrator said so"
    answer = await at.execute_healing_action("adjust_swappiness", {"value": 10})
    assert (answer.success, answer.refused, answer.knobs, runner.steps) == (False, True, (), [])
    assert answer.error == "stopped by the kill switch: an administrator said so"
    restored = await dev(host, lambda: "no").restore([("vm.swappiness", "10", "60")])
    assert (restored.refused, restored.error) == (True, "stopped by the kill switch: no")
    assert knob.read_text("utf-8") == "60\n"


async def test_the_kill_switch_stops_between_two_steps(host: FakeHost) -> None:
    said: list[str] = []
    for name in ("a.service", "b.service"):
        host.service_cache(name, 8 << 20)
    runner = Recorder(effect=lambda _: said.append("enough"))
    at = handler(host, runner)
    at.switch = lambda: said[0] if said else ""
    answer = await at.execute_healing_action("clear_system_cache", {})
    assert (answer.success, answer.refused, len(runner.steps)) == (False, False, 1)
    assert answer.error == "stopped by the kill switch: enough"


async def test_a_switch_that_cannot_be_asked_stops(host: FakeHost) -> None:
    def broken() -> str:
        raise PermissionError(13, "Permission denied")

    swappiness(host)
    answer = await dev(host, broken).execute_healing_action("adjust_swappiness", {"value": 10})
    assert (answer.refused, "stopped by the kill switch: it cannot be asked" in str(answer.error)) == (True, True)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of root")


def plugin(host: FakeHost, script: str, name: str = "mend") -> FakeHost:
    file = rooted(host).write(host.root / "plugins" / name, f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    file.parent.chmod(0o755)
    return host


@needs_root
async def test_the_kill_switch_ends_a_program_at_once(host: FakeHost, tmp_path: Path) -> None:
    """And what the program started; one that ignores TERM, too."""
    pid = tmp_path / "pid"
    plugin(host, f"trap '' TERM; sleep 600 & echo $! >{pid}; echo $$ >>{pid}; wait; wait")
    disabled = tmp_path / "disabled"
    at = dev(host, lambda: "it was switched off" if disabled.exists() else "")
    acting = asyncio.ensure_future(at.execute_healing_action("run_plugin", {"name": "mend"}))
    await until(lambda: pid.exists() and len(pid.read_text("utf-8").split()) == 2)
    disabled.touch()
    started = time.monotonic()
    answer = await acting
    assert time.monotonic() - started < 30.0  # and not the 60 s of its timeout
    assert (answer.success, answer.refused) == (False, False)
    assert answer.error == "stopped by the kill switch: it was switched off"
    assert "in the middle of" in str(answer.suggestion)
    for number in pid.read_text("utf-8").split():
        await gone(int(number))


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110  another process makes it true
        await asyncio.sleep(0.02)


async def gone(pid: int) -> None:
    """The kernel may take its time between the signal and the end."""
    await asyncio.wait_for(until(lambda: not alive(pid)), 30.0)


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@needs_root
async def test_an_act_that_is_broken_off_ends_its_program(host: FakeHost, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    plugin(host, f"echo $$ >{pid}; exec sleep 600")
    acting = asyncio.ensure_future(dev(host).execute_healing_action("run_plugin", {"name": "mend"}))
    await until(lambda: pid.exists() and pid.read_text("utf-8") != "")
    acting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await acting
    await gone(int(pid.read_text("utf-8")))


# -- plugins -------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize(
    ("script", "success", "refused", "said"),
    [
        ("cat", True, False, None),
        ("echo no luck >&2; exit 1", False, False, "mend ended with 1: no luck"),
        ("echo not mine; exit 2", False, False, "mend refused: not mine"),
        ("exit 7", False, False, "mend ended with 7"),
        ("kill -9 $$", False, False, "mend ended with -9"),
    ],
)
async def test_what_a_plugin_answers(
    host: FakeHost, script: str, success: bool, refused: bool, said: str | None
) -> None:
    at = dev(plugin(host, script))
    answer = await at.execute_healing_action("run_plugin", {"name": "mend", "issue": {"component": "x"}})
    assert (answer.success, answer.refused, answer.error) == (success, refused, said)
    if success:
        assert answer.output == '{"schema": 1, "issue": {"component": "x"}, "dry_run": false}'


@needs_root
async def test_an_action_that_the_catalogue_lacks_may_be_a_plugin(host: FakeHost) -> None:
    at = dev(plugin(host, "cat"))
    answer = await at.execute_healing_action("mend", {"where": "there", "n": 2})
    assert answer.output == '{"schema": 1, "issue": {}, "dry_run": false, "parameters": {"where": "there", "n": 2}}'
    for name in ("mendd", "../mend", ""):
        refusal = await at.execute_healing_action(name, {})
        assert (refusal.refused, "there is no action" in str(refusal.error)) == (True, True)


@needs_root
async def test_a_plugin_never_takes_the_place_of_an_action(host: FakeHost) -> None:
    knob = swappiness(plugin(host, "echo mine", name="adjust_swappiness"))
    answer = await dev(host).execute_healing_action("adjust_swappiness", {"value": 10})
    assert (answer.output, knob.read_text("utf-8")[:2]) == (f"{knob} = 10", "10")


async def test_a_loader_that_cannot_be_read_is_a_refusal(host: FakeHost) -> None:
    profiles = rooted(host).roots.nix / "var/nix/profiles"
    profiles.mkdir(parents=True)
    (profiles / "system-1-link").symlink_to(host.roots.nix / "store/x")
    (profiles / "system").symlink_to("system-1-link")
    (host.roots.boot / "loader/loader.conf").mkdir(parents=True)
    answer = await handler(host, Recorder()).execute_healing_action("prune_generations", {})
    assert (answer.refused, "the precheck could not look" in str(answer.error)) == (True, True)


async def test_what_the_helper_would_refuse_for_its_unit_is_refused_without_starting_it(
    host: FakeHost, bus_daemon: BusDaemon
) -> None:
    """An unlisted unit that stays failed must not wake the helper at every look."""
    systemd = Systemd()
    failed = {"Result": ("s", "exit-code"), "ExecMainCode": ("i", 1), "ExecMainStatus": ("i", 1)}
    for name in ("listed.service", "other.service"):
        systemd.put(name, "failed", "failed", typed=failed)
    bus = Bus(bus_daemon.address, clock=Clock())
    host.write(host.roots.run / "luminous-healing-executor.sock", "")
    async with systemd.on(bus_daemon.address):
        at = NixOSPermissionHandler(
            ExecutionMode.SERVICE, bus=bus, roots=host.roots, environment={}, allowed=["listed.service"]
        )
        plan = await at.prepare(Action("restart_service", {"service": "listed.service"}))
        with pytest.raises(ActionRefused, match=r"other\.service is not among the units that may be touched"):
            await at.prepare(Action("restart_service", {"service": "other.service"}))
        await bus.close()
    assert plan.steps == (AskHelper("restart_service", {"service": "listed.service"}, 150.0),)
