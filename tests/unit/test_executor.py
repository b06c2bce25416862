"""SimpleExecutor: whatever it is asked, the answer is a result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.act.executor import SimpleExecutor
from luminous_nix.self_healing.act.runners import SudoRunner
from luminous_nix.self_healing.act.steps import RunProgram, WriteFile
from luminous_nix.self_healing.models import Action, ActionFailed, ExecutionMode, NeedsPrivilege
from luminous_nix.self_healing.permission_handler import NixOSPermissionHandler
from tests.unit.host import FakeHost, Recorder, no_bus

pytestmark = pytest.mark.anyio


def executor(host: FakeHost, runner: Recorder) -> SimpleExecutor:
    host.write(host.roots.proc / "sys/vm/swappiness", "60")
    return SimpleExecutor(
        NixOSPermissionHandler(ExecutionMode.SERVICE, bus=no_bus(), roots=host.roots, runner=runner, environment={})
    )


GOOD = {"action": "adjust_swappiness", "parameters": {"value": 10}}


@pytest.mark.parametrize("action", [GOOD, Action("adjust_swappiness", {"value": 10})], ids=["mapping", "action"])
async def test_an_action_in_either_shape(host: FakeHost, action: Any) -> None:
    runner = Recorder()
    answer = await executor(host, runner).execute(action)
    assert (answer.success, answer.error, len(runner.steps)) == (True, None, 1)
    assert answer.duration_ms >= 0


async def test_a_dry_run_says_what_would_be_typed_and_does_nothing(host: FakeHost) -> None:
    runner = Recorder()
    answer = await executor(host, runner).execute(GOOD, dry_run=True)
    assert (answer.success, runner.steps) == (True, [])
    assert f"would run: echo 10 | sudo tee -- {host.roots.proc}/sys/vm/swappiness" in answer.output


async def test_a_dry_run_tells_a_precheck_that_would_refuse(host: FakeHost) -> None:
    answer = await executor(host, Recorder()).execute({"action": "rollback_generation"}, dry_run=True)
    assert answer.success
    assert "would be refused: this host has no NixOS generations" in answer.output


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(
    "action",
    [None, 5, "restart", [], {}, {"action": None}, {"action": ["x"]}, {"action": "", "parameters": {}},
     {"action": "no_such"}, {"action": "adjust_swappiness", "parameters": [1]},
     {"action": "adjust_swappiness", "parameters": {1: 2}}, {"action": "adjust_swappiness", "parameters": {None: 2}}],
    ids=repr,
)  # fmt: skip
async def test_a_bad_request_is_refused_and_nothing_is_raised(host: FakeHost, action: Any, dry_run: bool) -> None:
    runner = Recorder()
    answer = await executor(host, runner).execute(action, dry_run=dry_run)
    assert (answer.success, answer.refused, runner.steps) == (False, True, [])
    assert answer.error


# -- sudo: a real program that stands in its place ----------------------------------------------------------------


def sudo(folder: Path, script: str) -> SudoRunner:
    path = folder / "sudo"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    path.chmod(0o755)
    return SudoRunner(str(path))


FORWARD = '[ "$1 $2" = "-n --" ] || exit 99; shift 2; exec "$@"'


async def test_sudo_runs_the_same_fixed_arguments(tmp_path: Path) -> None:
    assert await sudo(tmp_path, FORWARD).run(RunProgram(("printf", "%s", "a b;$(id)"), 30)) == "a b;$(id)"


async def test_sudo_writes_a_file_by_tee(tmp_path: Path) -> None:
    knob = tmp_path / "knob"
    knob.touch()
    await sudo(tmp_path, FORWARD).run(WriteFile(knob, "10"))
    assert knob.read_bytes() == b"10"


@pytest.mark.parametrize(
    ("script", "error", "said"),
    [
        ("echo 'sudo: a password is required' >&2; exit 1", NeedsPrivilege, "sudo: a password is required"),
        ("echo broken >&2; exit 4", ActionFailed, "true ended with 4: broken"),
    ],
)
async def test_sudo_that_does_not(tmp_path: Path, script: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        await sudo(tmp_path, script).run(RunProgram(("true",), 30))
