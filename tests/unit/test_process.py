"""process.py on real programs."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from pathlib import Path

import pytest

from luminous_nix.self_healing.models import ActionFailed
from luminous_nix.self_healing.process import SEARCH_PATH, Completed, Finder, beside, find, run

pytestmark = pytest.mark.anyio


async def test_output_errors_and_status() -> None:
    done = await run(["sh", "-c", "echo out; echo err >&2; exit 3"], timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert done.last_words == "err"


async def test_output_beyond_a_mebibyte_is_dropped_and_the_program_still_ends() -> None:
    done = await run(["sh", "-c", "head -c 5000000 /dev/zero; head -c 3000000 /dev/zero >&2; exit 4"], timeout=60)
    assert (len(done.stdout), len(done.stderr), done.returncode) == (1 << 20, 1 << 20, 4)


async def test_output_that_is_no_text_is_replaced() -> None:
    assert (await run(["printf", r"a\377b"], timeout=30)).stdout == "a\ufffdb"


async def test_the_environment_is_none_of_ours() -> None:
    os.environ["LUMINOUS_HEALING_X"] = "x"
    done = await run(["env"], timeout=30)
    del os.environ["LUMINOUS_HEALING_X"]
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert names - {"PWD", "SHLVL", "_"} == {"PATH", "LANG", "LC_ALL"}


async def test_it_runs_in_the_root_folder_and_in_its_own_session() -> None:
    done = await run(["sh", "-c", 'pwd; cut -d" " -f6 /proc/$$/stat; echo $$'], timeout=30)
    place, session, pid = done.stdout.split()
    assert (place, session) == ("/", pid)


async def test_standard_input() -> None:
    assert (await run(["cat"], timeout=30, stdin=b"given")).stdout == "given"
    assert (await run(["cat"], timeout=30)).stdout == ""
    done = await run(["true"], timeout=30, stdin=b"x" * 1_000_000)  # nobody reads it
    assert done.returncode == 0


async def test_a_missing_program() -> None:
    with pytest.raises(ActionFailed, match="no-such-program is not installed") as error:
        await run(["no-such-program"], timeout=30)
    assert SEARCH_PATH in error.value.hint
    with pytest.raises(ActionFailed, match="/nonexistent/x could not be started: No such file"):
        await run(["/nonexistent/x"], timeout=30)


async def test_a_file_that_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text", encoding="utf-8")
    with pytest.raises(ActionFailed, match="Permission denied"):
        await run([str(tmp_path / "file")], timeout=30)


def test_programs_are_found_on_the_fixed_path_only() -> None:
    assert find("sh") in {f"{place}/sh" for place in SEARCH_PATH.split(":")}
    assert find("no-such-program") is None


def test_what_was_found_is_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    monkeypatch.setattr("luminous_nix.self_healing.process.SEARCH_PATH", f"{first}:{second}")
    (first / "tool").mkdir(parents=True)  # a folder is no program
    (second / "tool").parent.mkdir()
    finder = Finder()
    assert finder("tool") is None  # and that there is none is not remembered
    for place in (second, first):
        (place / "tool").rmdir() if (place / "tool").is_dir() else None
        (place / "tool").touch(mode=0o755)
    assert finder("tool") == str(first / "tool")
    (first / "tool").unlink()
    assert finder("tool") == str(second / "tool")
    (second / "tool").chmod(0o644)
    assert finder("tool") is None


def _alive(pid: int) -> bool:
    """Running; a zombie that waits for its new parent is over."""
    try:
        return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def _gone(pid: int, patience: float = 20.0) -> bool:
    end = time.monotonic() + patience
    while _alive(pid) and time.monotonic() < end:  # noqa: ASYNC110  another program's end is no event here
        await asyncio.sleep(0.01)
    return not _alive(pid)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param("sleep 600 & echo $! > {0}; wait", id="the-child-waits-for-the-grandchild"),
        pytest.param("sleep 600 & echo $! > {0}; exit 0", id="the-child-is-over-and-the-grandchild-holds-the-output"),
    ],
)
async def test_after_the_timeout_nothing_of_it_is_left(tmp_path: Path, script: str) -> None:
    note = tmp_path / "pid"
    with pytest.raises(ActionFailed, match="was not done after 1 s and was stopped"):
        await run(["sh", "-c", script.format(note)], timeout=1)
    grandchild = int(note.read_text("utf-8"))
    gone = await _gone(grandchild, 2.0)
    if not gone:
        os.kill(grandchild, signal.SIGKILL)  # ours: it was started above
        await asyncio.sleep(0.1)
    assert gone


async def test_a_program_that_ignores_term_is_stopped_too() -> None:
    with pytest.raises(ActionFailed, match="was stopped"):
        await run(["sh", "-c", "trap '' TERM INT HUP; while :; do sleep 1; done"], timeout=0.3)


def test_a_program_that_talks_without_end_is_stopped_and_its_pipes_are_closed() -> None:
    for _ in range(8):  # whether a pipe is full at the end is chance
        with pytest.raises(ActionFailed, match="was not done after"):
            asyncio.run(run(["yes"], timeout=0.1))
    gc.collect()  # a pipe that was left open complains now, and pytest makes that an error of this test


async def test_a_cancelled_run_leaves_nothing(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    task = asyncio.ensure_future(run(["sh", "-c", f"echo $$ > {note}; sleep 600"], timeout=600))
    while not note.exists() or not note.read_text("utf-8"):  # noqa: ASYNC110  another program writes it
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await _gone(int(note.read_text("utf-8")))


@pytest.mark.parametrize(
    ("stdout", "stderr", "words"),
    [("", "", ""), ("a\nb\n", "", "b"), ("a\n", "c\nd\n\n", "d"), ("a\n", "  \n", "a")],
)
def test_last_words(stdout: str, stderr: str, words: str) -> None:
    assert Completed(("x",), 1, stdout, stderr).last_words == words


async def test_who_keeps_us_company_is_ready_first_and_ended_at_the_end(tmp_path: Path) -> None:
    """It says that it is ready by closing the descriptor that it was told of."""
    script = tmp_path / "company"
    script.write_text('#!/usr/bin/env bash\neval "exec $2>&-"\necho $$ >"$0.pid"\nexec sleep 600\n', "utf-8")
    script.chmod(0o755)
    async with beside((str(script),), notify="--notify-fd"):
        pid = tmp_path / "company.pid"
        while not (pid.exists() and pid.read_text("utf-8").strip()):  # noqa: ASYNC110  another process writes it
            await asyncio.sleep(0.01)
        number = int(pid.read_text("utf-8"))
        os.kill(number, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


async def test_company_that_cannot_be_had_or_is_never_ready_is_done_without(tmp_path: Path) -> None:
    async with beside((str(tmp_path / "nobody"),), notify="--notify-fd"):
        pass
    async with beside(("/bin/sh", "-c", "exec sleep 600"), notify="--notify-fd", within=0.1):
        pass
