"""act/runners.py on real processes, files and a real bus."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from luminous_nix.self_healing.act.effects import end_process
from luminous_nix.self_healing.act.operations import read_process
from luminous_nix.self_healing.act.runners import ChainRunner, DirectRunner, ManualRunner
from luminous_nix.self_healing.act.steps import (
    UNLIMITED,
    EndProcess,
    Plan,
    ResolverJob,
    RunProgram,
    SetProperties,
    Step,
    UnitJob,
    WriteFile,
    typed,
)
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.models import ActionFailed, ActionRefused, NeedsPrivilege, Roots
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, Recorder, no_bus
from tests.unit.worlds import resolved

pytestmark = pytest.mark.anyio
HERE = Roots()


@contextlib.contextmanager
def child(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv or ("sleep", "600"), stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def started(pid: int) -> int:
    stat = read_process(HERE, pid)
    assert stat is not None
    return stat.start_time


# -- ending a process ----------------------------------------------------------------------------------------


async def test_a_process_ends_by_term() -> None:
    with child() as process:
        said = await end_process(EndProcess(process.pid, started(process.pid)), HERE)
        assert said == f"process {process.pid} ended by SIGTERM"
        assert process.wait(30) == -15


async def test_a_process_that_ignores_term_is_killed_after_the_grace() -> None:
    with child("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 1; done") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        said = await end_process(EndProcess(process.pid, started(process.pid), grace_s=0.2), HERE)
        assert said == f"process {process.pid} ended by SIGKILL"
        assert process.wait(30) == -9


@pytest.mark.parametrize("shift", [-1, 1, 10**9])
async def test_another_start_time_is_another_process(shift: int) -> None:
    with child() as process:
        with pytest.raises(ActionRefused, match="is another one by now"):
            await end_process(EndProcess(process.pid, started(process.pid) + shift), HERE)
        assert process.poll() is None


async def test_a_number_that_changed_hands_while_we_looked_is_not_touched() -> None:
    """The number is opened first and compared after: here it changes hands just before it is opened."""
    with child() as meant, child() as innocent:
        wanted = started(meant.pid)

        def opened_late(pid: int) -> int:
            assert pid == meant.pid
            meant.kill()
            meant.wait()
            return os.pidfd_open(innocent.pid)

        with pytest.raises(ActionRefused):
            await end_process(EndProcess(meant.pid, wanted), HERE, opener=opened_late)
        assert innocent.poll() is None


async def test_a_process_that_is_gone_is_refused() -> None:
    with child("true") as process:
        process.wait()
    with pytest.raises(ActionRefused, match="is gone already"):
        await end_process(EndProcess(process.pid, 1), HERE)


async def test_a_thread_is_no_process() -> None:
    """A thread's number is in /proc too, but pidfd_open(2) refuses it."""
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    number = thread.native_id or 0
    try:
        with pytest.raises((ActionRefused, ActionFailed)):
            await end_process(EndProcess(number, started(number)), HERE)
    finally:
        stop.set()
        thread.join()


# -- writing a file ------------------------------------------------------------------------------------------


def direct(*, privileged: bool = True) -> DirectRunner:
    return DirectRunner(no_bus(), HERE, privileged=privileged)


async def test_a_file_is_written(tmp_path: Path) -> None:
    knob = tmp_path / "swappiness"
    knob.write_text("60", encoding="utf-8")
    assert await direct().run(WriteFile(knob, "10")) == f"{knob} = 10"
    assert knob.read_text("utf-8") == "10"


async def test_a_missing_knob_does_not_become_a_file(tmp_path: Path) -> None:
    with pytest.raises(ActionFailed, match="No such file"):
        await direct().run(WriteFile(tmp_path / "knob", "1"))
    assert not (tmp_path / "knob").is_file()


async def test_a_folder_is_no_knob(tmp_path: Path) -> None:
    with pytest.raises(ActionFailed, match="Is a directory"):
        await direct().run(WriteFile(tmp_path, "1"))


@pytest.mark.parametrize("partial_ok", [True, False])
async def test_what_the_kernel_does_in_part(tmp_path: Path, partial_ok: bool) -> None:
    """A full pipe answers EAGAIN, as memory.reclaim does when it reclaimed less than was asked."""
    reader, writer = os.pipe2(os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 65536)
    knob = tmp_path / "knob"
    knob.symlink_to(f"/proc/{os.getpid()}/fd/{writer}")
    step = WriteFile(knob, "1", partial_ok=partial_ok, timeout_s=0.3)
    try:
        # Opening /proc/PID/fd of a pipe makes a new, blocking description: the deadline ends the wait.
        with pytest.raises(ActionFailed, match=r"took more than|Resource temporarily"):
            await direct().run(step)
    finally:
        os.close(reader)
        os.close(writer)


# -- programs ------------------------------------------------------------------------------------------------


async def test_a_program_is_run_and_its_last_words_told() -> None:
    assert await direct().run(RunProgram(("/bin/sh", "-c", "echo a; echo b"), 30)) == "b"
    with pytest.raises(ActionFailed, match="sh ended with 3: sorry"):
        await direct().run(RunProgram(("/bin/sh", "-c", "echo sorry; exit 3"), 30))


async def test_an_ordinary_user_runs_only_what_ordinary_users_may() -> None:
    with pytest.raises(NeedsPrivilege, match="true needs root"):
        await direct(privileged=False).run(RunProgram(("/bin/true",), 30))
    assert await direct(privileged=False).run(RunProgram(("/bin/true",), 30, unprivileged=True)) == ""


async def test_a_program_reads_what_it_is_fed() -> None:
    assert await direct().run(RunProgram(("/bin/cat",), 30, stdin='{"a": "é"}')) == '{"a": "é"}'
    assert await direct().run(RunProgram(("/bin/cat",), 30)) == ""


@pytest.mark.parametrize(
    ("code", "error", "said"),
    [(2, ActionFailed, "^sh refused: why$"), (1, ActionFailed, "ended with 1: why"), (3, ActionFailed, "with 3")],
)
async def test_an_exit_status_that_refuses(code: int, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        await direct().run(RunProgram(("/bin/sh", "-c", f"echo why; exit {code}"), 30, refused_exit=2))
    with pytest.raises(ActionFailed, match=f"sh ended with {code}"):
        await direct().run(RunProgram(("/bin/sh", "-c", f"exit {code}"), 30))


def below(folder: Path) -> set[str]:
    return {str(found.relative_to(folder)) for found in folder.rglob("*")}


async def test_a_file_of_our_own_is_made_and_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "mark"
    for text in ("12 11\n", "1\n"):
        await direct().run(WriteFile(file, text, ours=True))
        assert file.read_text("utf-8") == text
    with pytest.raises(ActionFailed, match="File exists"):
        await direct().run(WriteFile(file / "below", "1", ours=True))
    await direct().run(WriteFile(tmp_path / "state/mark", "1", ours=True))
    assert below(tmp_path) == {"mark", "state", "state/mark"}


# -- jobs over the bus ---------------------------------------------------------------------------------------


async def test_unit_jobs_reach_the_manager(bus_daemon: BusDaemon) -> None:
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    runner = DirectRunner(bus, HERE, privileged=True)
    async with systemd.on(bus_daemon.address):
        assert await runner.run(UnitJob("ResetFailedUnit", "a.service")) == "ResetFailedUnit a.service"
        assert await runner.run(UnitJob("StartUnit", "a.service")) == "StartUnit a.service"
        await bus.close()
    assert systemd.jobs == [("ResetFailedUnit", ("a.service",)), ("StartUnit", ("a.service", "fail"))]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("org.freedesktop.DBus.Error.AccessDenied", NeedsPrivilege),
        ("org.freedesktop.DBus.Error.InteractiveAuthorizationRequired", NeedsPrivilege),
        ("org.freedesktop.systemd1.UnitMasked", ActionFailed),
    ],
)
async def test_a_job_that_is_denied(bus_daemon: BusDaemon, name: str, error: type[Exception]) -> None:
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    systemd.denied = name
    async with systemd.on(bus_daemon.address):
        with pytest.raises(error, match=r"RestartUnit of a.service.*not today"):
            await DirectRunner(bus, HERE, privileged=True).run(UnitJob("RestartUnit", "a.service"))
        await bus.close()


async def test_a_job_without_a_bus_fails() -> None:
    with pytest.raises(ActionFailed, match="D-Bus is not available"):
        await direct().run(UnitJob("RestartUnit", "a.service"))


async def test_freezing_and_limits_reach_the_manager(bus_daemon: BusDaemon) -> None:
    systemd, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    runner = DirectRunner(bus, HERE, privileged=True)
    limits = (("MemoryHigh", "t", 1 << 24), ("CPUWeight", "t", UNLIMITED))
    async with systemd.on(bus_daemon.address):
        assert await runner.run(UnitJob("FreezeUnit", "a.service")) == "FreezeUnit a.service"
        await runner.run(UnitJob("ThawUnit", "a.service"))
        said = await runner.run(SetProperties("a.service", limits))
        await bus.close()
    assert said == f"a.service: MemoryHigh={1 << 24}, CPUWeight={UNLIMITED}"
    values = [("MemoryHigh", ("t", 1 << 24)), ("CPUWeight", ("t", UNLIMITED))]
    assert systemd.jobs == [
        ("FreezeUnit", ("a.service",)), ("ThawUnit", ("a.service",)),
        ("SetUnitProperties", ("a.service", True, values)),
    ]  # fmt: skip


async def test_the_resolver_is_asked_over_the_bus(bus_daemon: BusDaemon) -> None:
    answers, bus = Systemd(), Bus(bus_daemon.address, clock=Clock())
    runner = DirectRunner(bus, HERE, privileged=True)
    async with resolved(bus_daemon, answers):
        assert await runner.run(ResolverJob("FlushCaches")) == "FlushCaches"
        answers.denied = "org.freedesktop.DBus.Error.AccessDenied"
        with pytest.raises(NeedsPrivilege, match="ResetServerFeatures of systemd-resolved is not allowed: not today"):
            await runner.run(ResolverJob("ResetServerFeatures"))
        await bus.close()
    assert answers.jobs == [("FlushCaches", ())]


@pytest.mark.parametrize("step", [SetProperties("a.service", (("IOWeight", "t", 5),)), ResolverJob("FlushCaches")])
async def test_what_goes_over_the_bus_fails_without_one(step: Step) -> None:
    with pytest.raises(ActionFailed, match="D-Bus is not available"):
        await direct().run(step)


# -- chains --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "command"),
    [
        pytest.param(UnitJob("RestartUnit", "a.service"), "sudo systemctl restart -- a.service", id="restart"),
        pytest.param(UnitJob("ResetFailedUnit", "a.service"), "sudo systemctl reset-failed -- a.service", id="reset"),
        pytest.param(UnitJob("FreezeUnit", "a.service"), "sudo systemctl freeze -- a.service", id="freeze"),
        pytest.param(SetProperties("a.service", (("MemoryHigh", "t", 5), ("CPUQuotaPerSecUSec", "t", 250_000))),
                     "sudo systemctl set-property --runtime -- a.service MemoryHigh=5 CPUQuota=25%", id="limits"),
        pytest.param(SetProperties("a.service", (("CPUQuotaPerSecUSec", "t", 125_500),)),
                     "sudo systemctl set-property --runtime -- a.service CPUQuota=12.55%", id="part-of-a-percent"),
        pytest.param(SetProperties("a.service", tuple((name, "t", UNLIMITED) for name in
                                                      ("MemoryHigh", "CPUQuotaPerSecUSec", "IOWeight"))),
                     "sudo systemctl set-property --runtime -- a.service MemoryHigh=infinity CPUQuota= IOWeight=",
                     id="no-limits"),
        pytest.param(ResolverJob("ResetServerFeatures"), "sudo resolvectl reset-server-features", id="resolver"),
        pytest.param(RunProgram(("/p/x",), 1, stdin='{"a": 1}'), "echo '{\"a\": 1}' | sudo /p/x", id="fed"),
        pytest.param(WriteFile(Path("/proc/sys/vm/swappiness"), "10"),
                     "echo 10 | sudo tee -- /proc/sys/vm/swappiness", id="write"),
        pytest.param(WriteFile(Path("/a b/$(c)"), "x; y"), "echo 'x; y' | sudo tee -- '/a b/$(c)'", id="quoted"),
        pytest.param(RunProgram(("/bin/x", "--a", "b c"), 1), "sudo /bin/x --a 'b c'", id="program"),
        pytest.param(EndProcess(77, 5), "sudo kill -TERM 77", id="process"),
    ],
)  # fmt: skip
async def test_the_last_in_the_chain_says_what_to_type(step: Step, command: str) -> None:
    assert typed(step) == command
    with pytest.raises(NeedsPrivilege) as error:
        await ManualRunner().run(step)
    assert error.value.hint == command
    with pytest.raises(NeedsPrivilege, match="not here") as error:
        await ChainRunner(Recorder(problem=NeedsPrivilege("not here")), ManualRunner()).run(step)
    assert error.value.hint == command


async def test_a_chain_takes_the_first_that_has_the_right() -> None:
    low, high, never = Recorder(problem=NeedsPrivilege("no")), Recorder(), Recorder()
    step = EndProcess(77, 5)
    assert await ChainRunner(low, high, never).run(step) == "done"
    assert (low.steps, high.steps, never.steps) == ([step], [step], [])


@pytest.mark.parametrize("problem", [ActionFailed("broken"), ActionRefused("not the one")])
async def test_a_chain_does_not_try_again_what_failed_or_was_refused(problem: ActionFailed | ActionRefused) -> None:
    never = Recorder()
    with pytest.raises(type(problem)):
        await ChainRunner(Recorder(problem=problem), never).run(EndProcess(77, 5))
    assert never.steps == []


async def test_an_empty_chain_says_what_to_type() -> None:
    with pytest.raises(NeedsPrivilege) as error:
        await ChainRunner().run(EndProcess(77, 5))
    assert error.value.hint == "sudo kill -TERM 77"


@pytest.mark.parametrize(("root", "sudo"), [(False, "sudo "), (True, "")])
def test_a_plan_tells_its_checks_and_its_commands(root: bool, sudo: str) -> None:
    gentle = RunProgram(("/bin/nix-store", "--gc"), 1, unprivileged=True)
    steps = (UnitJob("StartUnit", "a.service"), WriteFile(Path("/k"), "10"), EndProcess(77, 5), gentle)
    assert Plan(("it is down",), steps).describe(lambda step: typed(step, root=root)).splitlines() == [
        "it is down",
        f"would run: {sudo}systemctl start -- a.service",
        f"would run: echo 10 | {sudo}tee -- /k",
        f"would run: {sudo}kill -TERM 77",
        "would run: /bin/nix-store --gc",
    ]
