"""Every example runs as it stands, and the table in the examples' README names each with how it ends."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luminous_nix.self_healing.models import Roots
from luminous_nix.self_healing.privileged.client import HELPER_SOCKET

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "self_healing"
SCRIPTS = sorted(EXAMPLES.glob("*.py"))
ROW = re.compile(
    r"^\| \[(?P<name>[a-z_]+\.py)\]\((?P<target>\S+)\) \| (?P<shows>.+) \| (?P<ends>.+) \|$", re.MULTILINE
)
TABLE = {row["name"]: row for row in ROW.finditer((EXAMPLES / "README.md").read_text(encoding="utf-8"))}
ENDLESS = [script for script in SCRIPTS if script.name in TABLE and TABLE[script.name]["ends"] == "with Ctrl-C"]
FINITE = [script for script in SCRIPTS if script not in ENDLESS]
PATIENCE_S = 120.0

needs_no_helper = pytest.mark.skipif(
    (Roots().run / HELPER_SOCKET).exists(), reason="this host has a helper: the examples would act on it"
)


def start(script: Path) -> subprocess.Popen[str]:
    """The script in SERVICE mode, where without a helper nothing on this host can be changed."""
    environment = {name: value for name, value in os.environ.items() if name != "LUMINOUS_DEV_MODE"}
    # A runner in the background of a shell ignores SIGINT, and so would its children; a handler of ours
    # becomes the default again in the child.
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            [sys.executable, script],
            env={
                **environment,
                "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")])),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONIOENCODING": "utf-8",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )
    finally:
        signal.signal(signal.SIGINT, former)


def has_event_loop(pid: int) -> bool:
    """Whether the process holds an epoll handle: its imports are done and its loop is there."""
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if "eventpoll" in str(link.readlink()):
                return True
        except FileNotFoundError:
            continue
    return False


@needs_no_helper
@pytest.mark.parametrize("script", FINITE, ids=lambda script: script.stem)
def test_it_runs_to_its_end(script: Path) -> None:
    with start(script) as process:
        try:
            _, stderr = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == 0, stderr
    assert "Traceback" not in stderr
    assert "Warning" not in stderr


@needs_no_helper
@pytest.mark.parametrize("script", ENDLESS, ids=lambda script: script.stem)
def test_it_runs_until_ctrl_c(script: Path) -> None:
    with start(script) as process:
        try:
            give_up = time.monotonic() + PATIENCE_S
            while process.poll() is None and not has_event_loop(process.pid) and time.monotonic() < give_up:
                time.sleep(0.05)
            time.sleep(1.5)
            assert process.poll() is None, process.communicate()[1]
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGINT, stderr
    assert stderr.splitlines()[-1] == "KeyboardInterrupt", stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_it_says_what_it_shows_and_stands_in_the_table(script: Path) -> None:
    text = script.read_text(encoding="utf-8")
    ast.parse(text, filename=str(script))
    assert text.startswith("# ")
    assert script.name in TABLE
    assert TABLE[script.name]["target"] == script.name
    assert TABLE[script.name]["ends"] in {"by itself", "with Ctrl-C"}


def test_the_table_names_nothing_else() -> None:
    assert set(TABLE) == {script.name for script in SCRIPTS}
    assert ENDLESS
    assert FINITE


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_none_acts_in_development_mode(script: Path) -> None:
    """There an engine needs no helper: an example that sets the mode must not heal anything for real."""
    text = script.read_text(encoding="utf-8")
    if "LUMINOUS_DEV_MODE" in text:
        assert "await" not in text or "dry_run = True" in text
