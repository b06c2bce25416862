"""SimpleExecutor: whatever it is asked, the answer is a result."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.act.executor import SimpleExecutor
from luminous_nix.self_healing.act.runners import SudoRunner
from luminous_nix.self_healing.act.steps import RunProgram, WriteFile
from luminous_nix.self_healing.models import Action, ActionFailed, ExecutionMode, NeedsPrivilege
from luminous_nix.self_healing.permission_handler import NixOSPermissionHandler
from luminous_nix.self_healing.process import find
from tests.unit.host import FakeHost, Recorder, no_bus
from tests.unit.worlds import rooted

pytestmark = pytest.mark.anyio


def executor(host: FakeHost, runner: Recorder, mode: ExecutionMode = ExecutionMode.SERVICE) -> SimpleExecutor:
    host.write(host.roots.proc / "sys/vm/swappiness", "60")
    return SimpleExecutor(NixOSPermissionHandler(mode, bus=no_bus(), roots=host.roots, runner=runner, environment={}))


GOOD = {"action": "adjust_swappiness", "parameters": {"value": 10}}


@pytest.mark.parametrize("action", [GOOD, Action("adjust_swappiness", {"value": 10})], ids=["mapping", "action"])
async def test_an_action_in_either_shape(host: FakeHost, action: Any) -> None:
    runner = Recorder()
    answer = await executor(host, runner).execute(action)
    assert (answer.success, answer.error, len(runner.steps)) == (True, None, 1)
    assert answer.duration_ms >= 0


@pytest.mark.parametrize(("uid", "tee"), [(0, "tee"), (1000, "sudo tee")])
async def test_a_dry_run_says_what_would_be_typed_and_does_nothing(
    host: FakeHost, monkeypatch: pytest.MonkeyPatch, uid: int, tee: str
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: uid)
    runner = Recorder()
    answer = await executor(host, runner, ExecutionMode.DEVELOPMENT).execute(GOOD, dry_run=True)
    assert (answer.success, answer.refused, answer.mode, runner.steps) == (True, False, "dev", [])
    assert f"would run: echo 10 | {tee} -- {host.roots.proc}/sys/vm/swappiness" in answer.output.splitlines()
    assert "would be refused" not in answer.output


async def test_a_dry_run_tells_that_the_helper_is_missing(host: FakeHost) -> None:
    runner = Recorder()
    answer = await executor(host, runner).execute(GOOD, dry_run=True)
    assert (answer.success, answer.refused, runner.steps) == (True, True, [])
    *_, run, refused = answer.output.splitlines()
    assert run.startswith("would run: echo 10 | ")
    assert refused.startswith("would be refused: SERVICE mode needs the helper, and there is none on this host")


@pytest.mark.parametrize("mode", ExecutionMode)
async def test_a_dry_run_tells_a_precheck_that_would_refuse(host: FakeHost, mode: ExecutionMode) -> None:
    answer = await executor(host, Recorder(), mode).execute({"action": "rollback_generation"}, dry_run=True)
    assert (answer.success, answer.refused) == (True, True)
    assert answer.output == "would be refused: this host has no NixOS generations (rolling back is for NixOS)"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of root")
async def test_a_plugin_by_its_own_name(host: FakeHost) -> None:
    file = rooted(host).write(host.root / "plugins/mend", "#!/bin/sh\n")
    file.chmod(0o755)
    file.parent.chmod(0o755)
    runner = Recorder()
    at = executor(host, runner, ExecutionMode.DEVELOPMENT)
    request = {"action": "mend", "parameters": {"a": 1}}
    told = await at.execute(request, dry_run=True)
    assert (told.success, told.refused, runner.steps) == (True, False, [])
    assert f"| {file}" in told.output
    assert (await at.execute(request)).success
    (step,) = runner.steps
    assert isinstance(step, RunProgram)
    assert step.command == (str(file),)
    (answer, bad) = (
        await at.execute({"action": "mended"}),
        await at.execute({"action": "mend", "parameters": {"a": {1}}}),
    )
    assert (answer.refused, bad.refused) == (True, True)
    assert "parameters must be a mapping of plain values" in str(bad.error)


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


# Each line of its log is what it was asked for: `-n -l -- COMMAND` only asks, `-n -- COMMAND` runs it.
LOG = 'printf "%s\\n" "$*" >>"$(dirname "$0")/log"; '
ASKED = 'if [ "$1 $2 $3" = "-n -l --" ]; then exit 0; fi; '
FORWARD = LOG + ASKED + '[ "$1 $2" = "-n --" ] || exit 99; shift 2; exec "$@"'


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text("utf-8").splitlines()


async def test_sudo_runs_the_same_fixed_arguments(tmp_path: Path) -> None:
    assert await sudo(tmp_path, FORWARD).run(RunProgram(("printf", "%s", "a b;$(id)"), 30)) == "a b;$(id)"
    command = f"{find('printf')} %s a b;$(id)"
    assert log(tmp_path) == [f"-n -l -- {command}", f"-n -- {command}"]


async def test_sudo_writes_a_file_by_tee(tmp_path: Path) -> None:
    knob = tmp_path / "knob"
    knob.touch()
    await sudo(tmp_path, FORWARD).run(WriteFile(knob, "10"))
    assert knob.read_bytes() == b"10"
    command = f"{find('tee')} -- {knob}"
    assert log(tmp_path) == [f"-n -l -- {command}", f"-n -- {command}"]


async def test_sudo_hands_on_what_a_program_reads_and_knows_a_refusal(tmp_path: Path) -> None:
    assert await sudo(tmp_path, FORWARD).run(RunProgram(("cat",), 30, stdin="fed")) == "fed"
    with pytest.raises(ActionFailed, match=r"^sh refused: not mine$"):
        await sudo(tmp_path, FORWARD).run(RunProgram(("sh", "-c", "echo not mine; exit 2"), 30, refused_exit=2))


@pytest.mark.parametrize(
    ("script", "error", "said", "calls"),
    [
        pytest.param("echo 'sudo: a password is required' >&2; exit 1", NeedsPrivilege,
                     "^sudo: a password is required$", 1, id="password"),
        pytest.param("exit 1", NeedsPrivilege, "^sudo: not allowed$", 1, id="without-a-word"),
        pytest.param(ASKED + "echo broken >&2; exit 4", ActionFailed, "^true ended with 4: broken$", 2, id="broken"),
        pytest.param(ASKED + "echo 'sudo: no' >&2; exit 1", ActionFailed, "^true ended with 1: sudo: no$", 2,
                     id="the-programs-own-words"),
    ],
)  # fmt: skip
async def test_sudo_that_does_not(tmp_path: Path, script: str, error: type[Exception], said: str, calls: int) -> None:
    with pytest.raises(error, match=said):
        await sudo(tmp_path, LOG + script).run(RunProgram(("true",), 30))
    assert len(log(tmp_path)) == calls
    assert log(tmp_path)[0] == f"-n -l -- {find('true')}"
