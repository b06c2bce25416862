"""How privilege is had, and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

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
from tests.unit.host import FakeHost, Recorder, no_bus

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
        (ExecutionMode.SERVICE, True, 1000, False, "unavailable: no helper"),
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
    asks_first = {"kill_process", "rollback_generation"}
    wanted = {name: how + ("; asks first" if name in asks_first else "") for name in CATALOGUE if name != "observe"}
    if mode is ExecutionMode.DEVELOPMENT and uid:
        wanted["kill_process"] = "own processes only; asks first"
    assert status["capabilities"] == wanted


async def test_an_act_answers_with_what_was_done(host: FakeHost) -> None:
    swappiness(host)
    runner = Recorder()
    answer = await handler(host, runner).execute_healing_action("adjust_swappiness", {"value": 10})
    assert (answer.success, answer.error, answer.output, answer.refused) == (True, None, "done", False)
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
