"""The command, as a process of its own on this host; and the same through main()."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.cli import SHELLS, _load, build_parser, main
from tests.unit.host import NO_BUS

SRC = Path(__file__).parents[2] / "src"
COMMAND = (sys.executable, "-m", "luminous_nix.self_healing.cli")
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "PYTHONPATH": str(SRC),
    "DBUS_SYSTEM_BUS_ADDRESS": NO_BUS,
    "HOME": "/nonexistent",
}


def cli(*arguments: str | bytes, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], env=ENVIRONMENT | env, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered here is nobody else's past."""
    for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY"):
        monkeypatch.setitem(ENVIRONMENT, name, str(tmp_path / name.lower()))
        monkeypatch.setenv(name, str(tmp_path / name.lower()))


@pytest.fixture
def empty(tmp_path: Path) -> str:
    """A configuration that sets nothing, in place of this host's own."""
    path = tmp_path / "empty.toml"
    path.write_text("", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("arguments", [("history",), ("status", "--check", "memory"), ("explain", "nginx")])
def test_a_mistake_in_the_configuration_keeps_nobody_from_steering(
    tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("oops", encoding="utf-8")
    told = cli(*arguments, "--config", str(bad))
    assert "goes by the defaults" in told.stderr
    assert ("nothing was done yet" in told.stdout) is (arguments[0] == "history")
    assert ("health" in told.stdout) is (arguments[0] == "status")


CALM = ("--check", "memory", "--threshold", "memory=100")
TROUBLED = ("--check", "memory", "--threshold", "memory=0")
BLIND = ("--check", "services")  # there is no bus in ENVIRONMENT


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        pytest.param(("check", *CALM), 0, id="check-fine"),
        pytest.param(("check", *TROUBLED), 1, id="check-issues"),
        pytest.param(("check", *BLIND), 3, id="check-nothing-seen"),
        pytest.param(("check", *BLIND, *CALM), 0, id="check-one-sensor-unknown"),
        pytest.param(("heal", *CALM), 0, id="heal-fine"),
        pytest.param(("heal", *TROUBLED), 1, id="heal-dry-run-with-issues"),
        pytest.param(("heal", "--apply", *TROUBLED), 1, id="heal-refused-without-helper"),
        pytest.param(("heal", *BLIND), 3, id="heal-nothing-seen"),
        pytest.param(("status", *CALM), 0, id="status-fine"),
        pytest.param(("status", *TROUBLED), 1, id="status-issues"),
        pytest.param(("config", "check"), 0, id="config-check"),
        pytest.param(("config", "show"), 0, id="config-show"),
        pytest.param(("permissions",), 0, id="permissions"),
    ],
)
def test_exit_codes(empty: str, arguments: tuple[str, ...], code: int) -> None:
    plain = cli(*arguments, "--config", empty)
    assert (plain.returncode, plain.stderr) == (code, "")
    assert plain.stdout.strip()
    shown = cli(*arguments, "--json", "--config", empty)
    assert (shown.returncode, shown.stderr) == (code, "")
    assert json.loads(shown.stdout)["schema"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(("check", "--threshold", "cpu"), "--threshold cpu: no value", id="threshold-without-value"),
        pytest.param(("check", "--threshold", "cpu=much"), "not a number", id="threshold-word"),
        pytest.param(("check", "--threshold", "cpu=150"), "from 0 to 100", id="threshold-150"),
        pytest.param(("check", "--threshold", "cpu=nan"), "from 0 to 100", id="threshold-nan"),
        pytest.param(("check", "--threshold", "memroy=50"), "thresholds.memory_percent", id="name"),
        pytest.param(("check", "--threshold", "=50"), "unknown key", id="threshold-no-name"),
        pytest.param(("check", "--unit", "../x"), "is not the name of a service", id="unit-path"),
        pytest.param(("check", "--unit", "a\nb"), r"a\nb", id="unit-newline"),
        pytest.param(("check", "--unit", b"\xff"), "is not the name of a service", id="unit-not-utf-8"),
        pytest.param(("check", "--unit", "\x1b[2J"), r"\x1b[2J", id="unit-escape-sequence"),
        pytest.param(("run", "--interval", "0"), "interval", id="interval-0"),
        pytest.param(("run", "--interval", "nan"), "interval", id="interval-nan"),
        pytest.param(("check", "--config", "/nonexistent/c.toml"), "No such file", id="config-absent"),
        pytest.param(("check", "--config", "/"), "Is a directory", id="config-folder"),
        pytest.param(("config", "check", "--config", "/dev/zero"), "not a regular file", id="config-endless"),
        pytest.param(("check", "--config", b"/nonexistent/\xff"), "No such file", id="config-name-not-utf-8"),
    ],
)  # fmt: skip
def test_bad_input_is_told_and_exits_with_2(empty: str, arguments: tuple[str | bytes, ...], said: str) -> None:
    more = () if "--config" in arguments else ("--config", empty)
    plain = cli(*arguments, *more)
    assert (plain.returncode, plain.stdout) == (2, "")
    assert plain.stderr.startswith("luminous-healing: ")
    assert said in plain.stderr
    assert "Traceback" not in plain.stderr
    assert all(line.isprintable() for line in plain.stderr.splitlines())
    if arguments[0] != "run":
        shown = cli(*arguments, *more, "--json")
        assert shown.returncode == 2
        assert set(json.loads(shown.stdout)) == {"schema", "error", "hint"}


@pytest.mark.parametrize(
    "arguments",
    [(), ("chek",), ("check", "--chek"), ("check", "--check", "cpuu"), ("heal", "extra"), ("config",),
     ("completion", "csh"), ("run", "--interval", "soon")],
)  # fmt: skip
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: luminous-healing" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"\xff", b"interval = ", b"x = " + b"1" * 5000, b"[thresholds]\ncpu=150\nx=1"])
def test_a_bad_file_is_told_without_a_traceback(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    done = cli("config", "check", "--config", str(path))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("luminous-healing: ") == (2 if b"x=1" in content else 1)
    assert "Traceback" not in done.stderr


def test_the_environment_is_read(empty: str) -> None:
    done = cli("config", "show", "--json", "--config", empty, LUMINOUS_HEALING_INTERVAL="7", LUMINOUS_DEV_MODE="1")
    settings = json.loads(done.stdout)["settings"]
    assert settings["interval"] == {"value": 7.0, "source": "environment LUMINOUS_HEALING_INTERVAL"}
    assert settings["mode"]["value"] == "dev"
    assert cli("check", *CALM, LUMINOUS_HEALING_INTERVALL="7").returncode == 2


def test_the_shape_of_check(empty: str) -> None:
    data = json.loads(cli("check", "--json", "--config", empty, *TROUBLED, *BLIND).stdout)
    assert (data["healthy"], data["unknown"]) == (False, ["services"])
    (issue,) = data["issues"]
    assert (issue["type"], issue["component"], issue["threshold"]) == ("resource", "memory", 0.0)
    assert data["readings"]["memory"]["status"] == "issue"
    assert data["sensors"]["services"]["error"]


def test_what_nobody_saw_is_not_healthy(empty: str) -> None:
    done = cli("check", "--json", "--config", empty, *BLIND)
    data = json.loads(done.stdout)
    assert (done.returncode, data["healthy"], data["issues"]) == (3, False, [])


def test_units_of_the_command_line_add_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text('monitored_units = ["nginx"]\n', encoding="utf-8")
    arguments = build_parser().parse_args(["check", "--config", str(path), "--unit", "a", "--unit", "b"])
    assert _load(arguments).settings.monitored_units == ("nginx", "a", "b")


def test_the_shape_of_heal(empty: str) -> None:
    data = json.loads(cli("heal", "--json", "--config", empty, *TROUBLED).stdout)
    assert data["healthy"] is False
    (result,) = data["results"]
    assert (result["action"], result["verdict"]) == ("[DRY RUN] clear_system_cache", "dry_run")
    assert result["issue"]["component"] == "memory"


def test_steps_are_told_on_standard_error(empty: str) -> None:
    done = cli("check", "--verbose", "--json", "--config", empty, *CALM)
    assert "INFO looked: 0 issues" in done.stderr
    assert json.loads(done.stdout)


@pytest.mark.parametrize("shell", SHELLS)
def test_completion(shell: str) -> None:
    done = cli("completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert "luminous-healing" in done.stdout


def test_version_and_help() -> None:
    assert cli("--version").stdout == "luminous-healing 2.0.0\n"
    for command in ("check", "heal", "run", "status", "config", "permissions", "completion"):
        assert cli(command, "--help").returncode == 0


def on_terminal(*arguments: str, **env: str) -> str:
    """What a terminal is sent."""
    ours, theirs = os.openpty()
    with subprocess.Popen([*COMMAND, *arguments], env=ENVIRONMENT | {"TERM": "xterm-256color"} | env, stdout=theirs,
                          stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL):  # fmt: skip
        os.close(theirs)
        parts = []
        try:
            while part := os.read(ours, 65536):
                parts.append(part)
        except OSError:  # EIO: the other end was closed
            pass
    os.close(ours)
    return b"".join(parts).decode()


def colours(text: str) -> list[int]:
    """The codes in ECMA-48's SGR sequences that set a colour; there are no other sequences."""
    assert re.sub(r"\x1b\[[0-9;]*m", "", text).count("\x1b") == 0
    codes = [int(code or 0) for found in re.findall(r"\x1b\[([0-9;]*)m", text) for code in found.split(";")]
    return [code for code in codes if 30 <= code <= 49 or 90 <= code <= 107]


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}], ids=["colours", "no-colours"])
def test_a_terminal_is_sent_no_line_that_is_wider(empty: str, env: dict[str, str]) -> None:
    sent = on_terminal("heal", "--config", empty, *TROUBLED, COLUMNS="40", **env)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", sent).splitlines()
    assert max(map(len, lines)) <= 40
    assert len(lines) > len(cli("heal", "--config", empty, *TROUBLED).stdout.splitlines())


def test_colours_on_a_terminal_unless_unwanted(empty: str) -> None:
    assert colours(on_terminal("heal", "--config", empty, *TROUBLED))
    assert not colours(on_terminal("heal", "--config", empty, *TROUBLED, NO_COLOR="1"))
    assert "\x1b" not in on_terminal("check", "--json", "--config", empty, *TROUBLED)


def test_a_reader_that_goes_away_is_no_error(empty: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([*COMMAND, "config", "show", "--config", empty], env=ENVIRONMENT, stdout=writer,
                          stderr=subprocess.PIPE, text=True) as child:  # fmt: skip
        os.close(writer)
        _, said = child.communicate(timeout=60)
    assert said == ""


UNWRITTEN = "luminous-healing: the report could not be written: "


@pytest.mark.parametrize("more", [(), ("--json",)], ids=["lines", "json"])
@pytest.mark.parametrize("command", ["check", "heal", "config"])
@pytest.mark.parametrize(("redirect", "why"), [(">/dev/full", "No space left on device"), (">&-", "")])
def test_a_report_that_cannot_be_written(
    empty: str, command: str, more: tuple[str, ...], redirect: str, why: str
) -> None:
    arguments = ("config", "show") if command == "config" else (command, *CALM)
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirect}', "sh", *COMMAND, *arguments, *more, "--config", empty],
        env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(UNWRITTEN + why if why else "luminous-healing: ")


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["lines", "json"])
@pytest.mark.parametrize("source", ["file", "environment"])
def test_apply_does_not_override_a_configured_dry_run(tmp_path: Path, source: str, flags: tuple[str, ...]) -> None:
    path = tmp_path / "c.toml"
    path.write_text("dry_run = true\n" if source == "file" else "", encoding="utf-8")
    env = {} if source == "file" else {"LUMINOUS_HEALING_DRY_RUN": "yes"}
    done = cli("heal", "--apply", *TROUBLED, "--config", str(path), *flags, **env)
    where = path if source == "file" else "environment LUMINOUS_HEALING_DRY_RUN"
    said = f"dry_run is set by {where}: --apply does not override it"
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == f"luminous-healing: {said}"
    if flags:
        assert json.loads(done.stdout)["error"] == [said]
    else:
        assert done.stdout == ""
    assert cli("heal", *TROUBLED, "--config", str(path), **env).returncode == 1


def test_of_dry_run_and_apply_dry_run_wins(empty: str) -> None:
    done = cli("heal", "--apply", "--dry-run", "--json", "--config", empty, *TROUBLED)
    assert json.loads(done.stdout)["results"][0]["verdict"] == "dry_run"


@pytest.mark.parametrize(
    "arguments",
    [("heal", "--appl"), ("heal", "--dry"), ("check", "--thresh", "cpu=5"), ("config", "show", "--js"), ("--vers",),
     ("check", "--conf", "/x"), ("permissions", "--verb")],
)  # fmt: skip
def test_half_a_word_is_no_option(arguments: tuple[str, ...]) -> None:
    done = cli(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: luminous-healing" in done.stderr


def test_a_terminal_without_unicode(empty: str) -> None:
    done = cli("check", "--config", empty, *TROUBLED, PYTHONIOENCODING="latin-1")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr


# -- through main() ------------------------------------------------------------------------------------------


@pytest.fixture
def quiet_logger() -> Iterator[None]:
    """main() sets this process's logging up; put it back."""
    import logging

    logger = logging.getLogger("luminous_nix")
    handlers, level = logger.handlers[:], logger.level
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)


@pytest.mark.usefixtures("quiet_logger")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [(["check", *CALM], 0), (["check", *TROUBLED], 1), (["heal", *TROUBLED], 1), (["config", "check"], 0),
     (["config", "show"], 0), (["permissions"], 0), (["check", "--threshold", "cpu=150"], 2)],
)  # fmt: skip
def test_main_returns_the_code(
    empty: str, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    assert main([*arguments, "--json", "--config", empty]) == code
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert data["schema"] == 1


def test_main_leaves_through_argparse_on_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["chek"])
    assert left.value.code == 2
    assert capsys.readouterr().out == ""
