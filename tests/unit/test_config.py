"""config.py: where each value comes from, and every way to get it wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.config import KEYS, Loaded, load
from luminous_nix.self_healing.models import ConfigError, ExecutionMode


def toml(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def read(tmp_path: Path, text: str | bytes, env: dict[str, str] | None = None, **flags: Any) -> Loaded:
    return load(toml(tmp_path, text), env or {}, flags)


def test_the_defaults(tmp_path: Path) -> None:
    loaded = read(tmp_path, "")
    settings = loaded.settings
    assert (settings.healing_enabled, settings.dry_run, settings.verbose) == (True, False, False)
    assert (settings.interval, settings.mode) == (60.0, ExecutionMode.SERVICE)
    assert (settings.limits.heals_per_hour, settings.limits.cooldown_s) == (10, 300.0)
    assert loaded.sources == {}
    assert {source for _, _, source in loaded.rows()} == {"default"}
    assert [key for key, _, _ in loaded.rows()] == list(KEYS)


ALL = """
interval = 30
dry_run = true
healing_enabled = false
verbose = true
mode = "dev"
monitored_units = ["nginx", "backup.timer"]
enabled_checks = ["cpu", "disk"]
include_tmpfs = true
ignore_mounts = ["/mnt/*"]
[thresholds]
cpu = 70
memory_percent = 71.5
load = 12
[limits]
heals_per_hour = 3
cooldown_seconds = 900
"""


def test_every_key_from_a_file(tmp_path: Path) -> None:
    loaded = read(tmp_path, ALL)
    settings = loaded.settings
    assert (settings.interval, settings.dry_run, settings.healing_enabled, settings.verbose) == (
        30,
        True,
        False,
        True,
    )
    assert settings.mode is ExecutionMode.DEVELOPMENT
    assert settings.monitored_units == ("nginx", "backup.timer")
    assert (settings.enabled_checks, settings.ignore_mounts) == (("cpu", "disk"), ("/mnt/*",))
    assert dict(settings.thresholds) == {"cpu_percent": 70.0, "memory_percent": 71.5, "load_average": 12.0}
    assert (settings.limits.heals_per_hour, settings.limits.cooldown_s) == (3, 900.0)
    assert set(loaded.sources.values()) == {str(tmp_path / "config.toml")}
    rows = {key: value for key, value, _ in loaded.rows()}
    assert (rows["limits.cooldown_seconds"], rows["mode"]) == (900.0, "dev")
    assert (rows["thresholds.cpu_percent"], rows["thresholds.disk_percent"]) == (70.0, 90.0)


def test_precedence(tmp_path: Path) -> None:
    text = "interval = 10\nverbose = true\n[thresholds]\ncpu = 10\nmemory = 10\ndisk = 10\n"
    env = {
        "LUMINOUS_HEALING_THRESHOLDS__MEMORY": "20", "LUMINOUS_HEALING_THRESHOLDS__DISK_PERCENT": "20",
        "LUMINOUS_HEALING_INTERVAL": "20", "UNRELATED": "x",
    }  # fmt: skip
    loaded = read(tmp_path, text, env, **{"thresholds.disk": 30, "interval": 30})
    assert dict(loaded.settings.thresholds) == {"cpu_percent": 10, "memory_percent": 20, "disk_percent": 30}
    assert loaded.settings.interval == 30
    file = str(tmp_path / "config.toml")
    assert loaded.sources == {
        "interval": "flag", "verbose": file, "thresholds.cpu_percent": file,
        "thresholds.memory_percent": "environment LUMINOUS_HEALING_THRESHOLDS__MEMORY",
        "thresholds.disk_percent": "flag",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        *(("DRY_RUN", word, "dry_run", True) for word in ("true", "True", "1", "yes", "YES", "on", " on ")),
        *(("HEALING_ENABLED", word, "healing_enabled", False) for word in ("false", "0", "no", "Off", " FALSE")),
        ("MONITORED_UNITS", "nginx, sshd.service,", "monitored_units", ("nginx", "sshd.service")),
        ("ENABLED_CHECKS", "cpu", "enabled_checks", ("cpu",)),
        ("INTERVAL", "7.5", "interval", 7.5),
        ("MODE", "dev", "mode", ExecutionMode.DEVELOPMENT),
        ("IGNORE_MOUNTS", "/mnt/*,/srv", "ignore_mounts", ("/mnt/*", "/srv")),
    ],
)
def test_the_environment(tmp_path: Path, name: str, text: str, key: str, value: object) -> None:
    assert getattr(read(tmp_path, "", {f"LUMINOUS_HEALING_{name}": text}).settings, key) == value


@pytest.mark.parametrize("word", ["1", "true", "YES", " on "])
def test_dev_mode_by_its_own_name(tmp_path: Path, word: str) -> None:
    loaded = read(tmp_path, 'mode = "service"', {"LUMINOUS_DEV_MODE": word})
    assert loaded.settings.mode is ExecutionMode.DEVELOPMENT
    assert loaded.sources["mode"] == "environment LUMINOUS_DEV_MODE"


@pytest.mark.parametrize("word", ["0", "false", "no", "off", "", "2", "maybe"])
def test_other_words_choose_no_dev_mode(tmp_path: Path, word: str) -> None:
    assert read(tmp_path, "", {"LUMINOUS_DEV_MODE": word}).settings.mode is ExecutionMode.SERVICE


TIGHTER = "(limits can only be made tighter),"
INTERVAL = "interval: must be a number of seconds from 1 to 86400,"
HOURLY = f"limits.heals_per_hour: must be a whole number from 0 to 10 {TIGHTER}"
COOLDOWN = f"limits.cooldown_seconds: must be a number from 300 to 86400 {TIGHTER}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("interval = ", "not TOML", id="broken-toml"),
        pytest.param("interval = 1\ninterval = 2", "not TOML", id="key-twice"),
        pytest.param("x = " + "[" * 5000, "not TOML", id="nested-too-deep"),
        pytest.param("interval = " + "1" * 5000, "config.toml", id="a-number-of-5000-digits"),
        pytest.param("interval = 0x" + "f" * 4000, "not TOML", id="4000-hexadecimal-digits"),
        pytest.param("monitored_units = [0x" + "f" * 4000 + "]", "not TOML", id="4000-of-them-in-a-list"),
        pytest.param("interval = 1" + "0" * 400, "interval", id="a-number-beyond-any-float"),
        pytest.param(b"interval = 1\n# caf\xe9", "not UTF-8 text (byte 18)", id="latin-1"),
        pytest.param(b"\xff\xfe" + "interval = 1".encode("utf-16-le"), "not UTF-8", id="utf-16"),
        pytest.param(b"#" * (2 << 20), "larger than 1 MiB", id="2-mebibytes"),
        pytest.param(b"\x00" * 50, "not TOML", id="binary"),
        pytest.param("intervall = 5", "intervall: unknown key, did you mean 'interval'", id="unknown-key"),
        pytest.param("[thresholds]\ncpu_precent = 5", "did you mean 'thresholds.cpu_percent'", id="threshold"),
        pytest.param("[treshold]\na = 1", "[treshold]: unknown table, did you mean 'thresholds'",
                     id="table-misspelt"),
        pytest.param("[nonsense]\na = 1", "config.toml: [nonsense]: unknown table, known: limits, policy, thresholds",
                     id="unknown-table"),
        pytest.param("[thresholds]\ncpu = 150", "must be a number from 0 to 100, not 150", id="threshold-150"),
        pytest.param("[thresholds]\ncpu = nan", "must be a number from 0 to 100, not nan", id="threshold-nan"),
        pytest.param("[thresholds]\ncpu = true", "must be a number", id="threshold-bool"),
        pytest.param('[thresholds]\ncpu = "80"', "must be a number", id="threshold-text"),
        pytest.param("[thresholds.cpu]\na = 1", "must be a number", id="threshold-table"),
        pytest.param("thresholds = 5", "thresholds: must be a table, [thresholds]", id="table-expected"),
        pytest.param("limits = []", "limits: must be a table, [limits]", id="limits-table-expected"),
        pytest.param("[limits]\nheals_per_hour = 11", f"{HOURLY} not 11", id="looser-hour"),
        pytest.param("[limits]\nheals_per_hour = -1", f"{HOURLY} not -1", id="negative-hour"),
        pytest.param("[limits]\ncooldown_seconds = 299.9", f"{COOLDOWN} not 299.9", id="cooldown"),
        pytest.param("interval = 0", f"{INTERVAL} not 0", id="interval-0"),
        pytest.param("interval = nan", f"{INTERVAL} not nan", id="interval-nan"),
        pytest.param("interval = inf", f"{INTERVAL} not inf", id="interval-inf"),
        pytest.param('interval = "fast"', f"{INTERVAL} not 'fast'", id="interval-text"),
        pytest.param("interval = true", f"{INTERVAL} not True", id="interval-bool"),
        pytest.param("interval = 2020-01-01", "interval", id="interval-date"),
        pytest.param("dry_run = 1", "dry_run: must be true or false, not 1", id="bool-as-number"),
        pytest.param('mode = "god"', "mode: must be \"service\" or \"dev\", not 'god'", id="unknown-mode"),
        pytest.param('monitored_units = "nginx"',
                     "monitored_units: must be a list of unit names, such as [\"nginx\"], not 'nginx'",
                     id="list-expected"),
        pytest.param("monitored_units = [5]", "monitored_units: must be a list of unit names",
                     id="list-of-text-expected"),
        pytest.param('monitored_units = ["../x"]', "'../x' is not the name of a service", id="hostile-unit"),
        pytest.param('enabled_checks = ["cpuu"]', "no check 'cpuu', did you mean 'cpu'", id="unknown-check"),
    ],
)  # fmt: skip
def test_a_wrong_file(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert said in str(error.value)
    assert str(tmp_path / "config.toml") in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load(tmp_path, {})
    with pytest.raises(ConfigError, match="No such file") as error:
        load(tmp_path / "absent.toml", {})
    assert error.value.hint


@pytest.mark.parametrize(
    ("name", "text"),
    [
        pytest.param("INTERVAL", "soon", id="word"),
        pytest.param("INTERVAL", "", id="empty"),
        pytest.param("INTERVAL", "1" * 5000, id="5000-digits"),
        pytest.param("INTERVAL", "0x" + "f" * 4000, id="4000-hexadecimal-digits"),
        pytest.param("INTERVAL", "[" * 5000, id="nested-too-deep"),
        pytest.param("INTERVAL", "\udcff", id="surrogate"),
        pytest.param("DRY_RUN", "2", id="number-for-a-boolean"),
        pytest.param("DRY_RUN", "", id="empty-boolean"),
        pytest.param("DRY_RUN", "maybe", id="word-for-a-boolean"),
        pytest.param("INTERVALL", "5", id="unknown-key"),
        pytest.param("LIMITS__HEALS_PER_HOUR", "100", id="looser-limit"),
        pytest.param("THRESHOLDS__CPU", "150", id="threshold-150"),
        pytest.param("THRESHOLDS__", "15", id="threshold-without-name"),
        pytest.param("", "15", id="no-name"),
    ],
)
def test_a_wrong_environment(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match="environment LUMINOUS_HEALING_"):
        read(tmp_path, "", {f"LUMINOUS_HEALING_{name}": text})


def test_the_environment_cannot_smuggle_in_other_keys(tmp_path: Path) -> None:
    text = "5\ndry_run = true"
    try:
        settings = read(tmp_path, "", {"LUMINOUS_HEALING_INTERVAL": text}).settings
    except ConfigError:
        return
    assert not settings.dry_run


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, "intervall = 5\nmode = 7\n[thresholds]\ncpu = 150\n", {"LUMINOUS_HEALING_VERBOSE": "perhaps"})
    assert len(error.value.problems) == 4
    assert sum("environment LUMINOUS_HEALING_VERBOSE" in problem for problem in error.value.problems) == 1


def test_a_limit_may_be_tightened_to_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "[limits]\nheals_per_hour = 0\n").settings.limits.heals_per_hour == 0


# -- several sources ------------------------------------------------------------------------------------------


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a file of the host's configuration, and of nobody's own."""
    monkeypatch.setattr("luminous_nix.self_healing.config.DEFAULT_FILE", tmp_path / "etc/config.toml")
    monkeypatch.setattr("os.geteuid", lambda: 0)

    def write(name: str, text: str | bytes) -> Path:
        path = tmp_path / "etc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


LIMITS = "[limits]\nheals_per_hour = {}\ncooldown_seconds = {}\n"


def test_of_several_limits_the_tightest_counts(etc: Callable[..., Path]) -> None:
    etc("config.toml", LIMITS.format(5, 600))
    first = etc("conf.d/10-a.toml", LIMITS.format(2, 400))
    second = etc("conf.d/20-b.toml", LIMITS.format(7, 900))
    env = {"LUMINOUS_HEALING_LIMITS__HEALS_PER_HOUR": "9", "LUMINOUS_HEALING_LIMITS__COOLDOWN_SECONDS": "300"}
    loaded = load(None, env, {"limits.heals_per_hour": 10})
    assert (loaded.settings.limits.heals_per_hour, loaded.settings.limits.cooldown_s) == (2, 900.0)
    assert loaded.sources == {"limits.heals_per_hour": str(first), "limits.cooldown_seconds": str(second)}
    tighter = {
        "LUMINOUS_HEALING_LIMITS__HEALS_PER_HOUR": "1",
        "LUMINOUS_HEALING_LIMITS__COOLDOWN_SECONDS": "901",
    }
    loaded = load(None, tighter, {"limits.heals_per_hour": 0})
    assert (loaded.settings.limits.heals_per_hour, loaded.settings.limits.cooldown_s) == (0, 901.0)
    assert loaded.sources == {
        "limits.heals_per_hour": "flag",
        "limits.cooldown_seconds": "environment LUMINOUS_HEALING_LIMITS__COOLDOWN_SECONDS",
    }


def test_of_all_else_the_last_counts(etc: Callable[..., Path]) -> None:
    etc("config.toml", 'interval = 10\nmonitored_units = ["a"]\n[thresholds]\ncpu = 10\n')
    last = etc("conf.d/20-b.toml", 'interval = 20\nmonitored_units = ["b"]\n[thresholds]\ncpu = 90\n')
    loaded = load(None, {})
    assert (loaded.settings.interval, loaded.settings.monitored_units) == (20, ("b",))
    assert dict(loaded.settings.thresholds) == {"cpu_percent": 90.0}
    assert set(loaded.sources.values()) == {str(last)}


def test_the_problems_of_all_sources_are_told_at_once(etc: Callable[..., Path]) -> None:
    one = etc("config.toml", "interval = 0\n[nonsense]\na = 1\n")
    two = etc("conf.d/10-a.toml", "interval = \n")
    three = etc("conf.d/20-b.toml", "interval = 5\ndry_run = 1\n")
    four = etc("conf.d/30-c.toml", b"\xff")
    with pytest.raises(ConfigError) as error:
        load(None, {"LUMINOUS_HEALING_VERBOSE": "perhaps"}, {"monitored_units": ["../x", "../y"]})
    problems = sorted(error.value.problems)
    wanted = sorted([
        f"{one}: [nonsense]: unknown table, known: limits, policy, thresholds",
        f"{one}: {INTERVAL} not 0",
        f"{two}: not TOML: ",
        f"{three}: dry_run: must be true or false, not 1",
        f"{four}: not UTF-8 text (byte 0)",
        "environment LUMINOUS_HEALING_VERBOSE: verbose: must be true or false, not 'perhaps'",
        "flag: monitored_units: '../x' is not the name of a service, socket, timer or mount unit",
        "flag: monitored_units: '../y' is not the name of a service, socket, timer or mount unit",
    ])  # fmt: skip
    assert len(problems) == len(wanted)
    assert all(problem.startswith(start) for problem, start in zip(problems, wanted, strict=True))


def test_a_wrong_value_is_told_even_where_a_later_source_is_right(etc: Callable[..., Path]) -> None:
    path = etc("config.toml", "interval = 0\n[limits]\nheals_per_hour = 11\n")
    with pytest.raises(ConfigError) as error:
        load(None, {"LUMINOUS_HEALING_INTERVAL": "5"}, {"limits.heals_per_hour": 1})
    assert [problem.startswith(f"{path}: ") for problem in error.value.problems] == [True, True]


def test_units_of_a_flag_are_watched_too(tmp_path: Path) -> None:
    loaded = read(tmp_path, 'monitored_units = ["nginx"]', monitored_units=["backup.timer"])
    assert loaded.settings.monitored_units == ("nginx", "backup.timer")
    loaded = read(tmp_path, "", {"LUMINOUS_HEALING_MONITORED_UNITS": "a"}, monitored_units=["b", "c"])
    assert loaded.settings.monitored_units == ("a", "b", "c")
    assert read(tmp_path, "", monitored_units=["b"]).settings.monitored_units == ("b",)


def test_a_byte_order_mark_is_no_error(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfinterval = 7\n").settings.interval == 7


def test_a_file_that_cannot_be_reached_is_left_out(
    etc: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As another user's home, which may not be entered; a name that is too long is refused to root too."""
    etc("config.toml", "interval = 7\n")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    home = "/" + "x" * 300
    assert load(None, {"XDG_CONFIG_HOME": home}).settings.interval == 7
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (
        "WARNING", f"{home}/luminous-healing/config.toml is left out: File name too long",
    )  # fmt: skip
