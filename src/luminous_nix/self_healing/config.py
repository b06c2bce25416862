"""TOML, environment and flags → frozen Settings; every error at once, each with its key and where it stands.

Precedence: defaults < files < environment < flags. Limits can only be tightened here.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from .decide.actions import valid_unit
from .decide.limits import Limits
from .decide.thresholds import Thresholds
from .models import CHECKS, ConfigError, ExecutionMode, nearest

DEFAULT_FILE: Final = Path("/etc/luminous-healing/config.toml")
_PREFIX: Final = "LUMINOUS_HEALING_"
_SIZE_LIMIT: Final = 1 << 20
_Names = tuple[str, ...]

# Flat key → its type with its bounds. A key `table.key` stands in the TOML table [table].
_TYPES: Final[Mapping[str, Any]] = {
    "interval": Annotated[float, Meta(ge=1, le=86400)],
    "dry_run": bool,
    "healing_enabled": bool,
    "verbose": bool,
    "mode": Literal["service", "dev"],
    "monitored_units": _Names,
    "enabled_checks": _Names,
    "include_tmpfs": bool,
    "ignore_mounts": _Names,
    "limits.heals_per_hour": Annotated[int, Meta(ge=0, le=10)],
    "limits.cooldown_seconds": Annotated[float, Meta(ge=300, le=86400)],
}
_TABLES: Final = frozenset({"thresholds", "limits"})
_THRESHOLDS: Final = tuple(f"thresholds.{name}" for name in Thresholds())
KEYS: Final = (*_TYPES, *_THRESHOLDS)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, checked. `thresholds` holds only what was set."""

    interval: float = 60.0
    dry_run: bool = False
    healing_enabled: bool = True
    verbose: bool = False
    mode: ExecutionMode = ExecutionMode.SERVICE
    monitored_units: tuple[str, ...] = ()
    enabled_checks: tuple[str, ...] = CHECKS
    include_tmpfs: bool = False
    ignore_mounts: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The settings, and for each flat key where its value came from."""

    settings: Settings
    sources: Mapping[str, str]

    def rows(self) -> list[tuple[str, Any, str]]:
        """(key, value, source) of every key, for people. The load threshold's default depends on the host."""
        defaults = Thresholds(self.settings.thresholds)
        rows: list[tuple[str, Any, str]] = []
        for key in KEYS:
            table, _, name = key.rpartition(".")
            if table == "thresholds":
                value: Any = defaults[name]
                if name == "load_average" and key not in self.sources:
                    value = "2 per CPU"
            elif key == "limits.cooldown_seconds":
                value = self.settings.limits.cooldown_s
            else:
                value = getattr(self.settings.limits if table else self.settings, name)
            shown = value.value if isinstance(value, ExecutionMode) else value
            rows.append((key, list(shown) if isinstance(shown, tuple) else shown, self.sources.get(key, "default")))
        return rows


def files_to_read(explicit: Path | None, environment: Mapping[str, str]) -> list[Path]:
    """The explicit file alone, else the host's file, its conf.d in order, and the user's own; those that exist."""
    if explicit is not None:
        return [explicit]
    home = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '/nonexistent')}/.config"
    own = [Path(home) / "luminous-healing/config.toml"] if os.geteuid() != 0 else []
    host = [DEFAULT_FILE, *sorted(DEFAULT_FILE.parent.glob("conf.d/*.toml"))]
    return [path for path in (*host, *own) if path.exists()]


def load(
    explicit: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Loaded:
    """Read all sources. Raises ConfigError that lists every problem."""
    env = os.environ if environment is None else environment
    problems: list[str] = []
    found: dict[str, tuple[Any, str]] = {}
    for path in files_to_read(explicit, env):
        found |= _flatten(_read_toml(path), str(path), problems)
    found |= _from_environment(env)
    found |= {_canonical(key): (value, "flag") for key, value in (flags or {}).items()}
    values = {key: value for key, (raw, source) in found.items()
              if (value := _check(key, raw, source, problems)) is not None}  # fmt: skip
    if problems:
        raise ConfigError(problems, "`luminous-healing config show` lists every key with its value")
    return Loaded(_settings(values), {key: source for key, (_, source) in found.items()})


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError([f"{path}: not a regular file"])
            data = file.read(_SIZE_LIMIT + 1)
        if len(data) > _SIZE_LIMIT:
            raise ConfigError([f"{path}: larger than 1 MiB"])
        return tomllib.loads(data.decode("utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"], "is the path right, and may this user read it?") from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text (byte {error.start})"], "TOML files are UTF-8") from error
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, or a number of 5,000 digits
        raise ConfigError([f"{path}: not TOML: {error}"]) from error


def _flatten(tree: Mapping[str, Any], source: str, problems: list[str]) -> dict[str, tuple[Any, str]]:
    flat: dict[str, tuple[Any, str]] = {}
    for name, value in tree.items():
        if name in _TABLES and isinstance(value, Mapping):
            flat |= {_canonical(f"{name}.{key}"): (inner, source) for key, inner in value.items()}
        elif name in _TABLES:
            problems.append(f"{source}: {name}: must be a table, [{name}]")
        else:
            flat[name] = (value, source)
    return flat


def _canonical(key: str) -> str:
    """`thresholds.cpu` stands for `thresholds.cpu_percent`."""
    table, _, name = key.partition(".")
    return f"{table}.{Thresholds.canonical(name)}" if table == "thresholds" else key


def _from_environment(env: Mapping[str, str]) -> dict[str, tuple[Any, str]]:
    found: dict[str, tuple[Any, str]] = {}
    if env.get("LUMINOUS_DEV_MODE", "").strip().lower() in {"1", "true", "yes", "on"}:
        found["mode"] = ("dev", "environment LUMINOUS_DEV_MODE")
    for name, text in env.items():
        if not name.startswith(_PREFIX):
            continue
        key = _canonical(name.removeprefix(_PREFIX).lower().replace("__", "."))
        found[key] = (_literal(text, listed=_TYPES.get(key) == _Names), f"environment {name}")
    return found


def _literal(text: str, *, listed: bool) -> Any:
    """A TOML value where the text is one (`75`, `true`), else the text; a list is separated by commas."""
    if listed:
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, KeyError, RecursionError):
        return text


def _check(key: str, raw: Any, source: str, problems: list[str]) -> Any:
    """The value in its type, or None after adding to `problems`."""
    if key not in KEYS:
        problems.append(f"{source}: {key}: unknown key, {nearest(key, KEYS)}")
        return None
    try:
        if key.startswith("thresholds."):
            Thresholds({key.partition(".")[2]: raw})
            return float(raw)
        value = msgspec.convert(raw, type=_TYPES[key])
        return _checked_names(key, value) if _TYPES[key] == _Names else value
    except ConfigError as error:
        problems.append(f"{source}: thresholds.{error.message}")
    except (msgspec.ValidationError, ValueError) as error:
        problems.append(f"{source}: {key}: {error}")
    return None


def _checked_names(key: str, names: Iterable[str]) -> tuple[str, ...]:
    for name in names:
        if key == "enabled_checks" and name not in CHECKS:
            raise ValueError(f"there is no check {name!r}, {nearest(name, CHECKS)}")
        if key == "monitored_units":
            try:
                valid_unit(name)
            except ValueError as error:
                raise ValueError(f"{name!r} is not {error}") from None
    return tuple(names)


def _settings(values: Mapping[str, Any]) -> Settings:
    limits = Limits()
    plain = {name.name: values[name.name] for name in fields(Settings) if name.name in values}
    if "mode" in plain:
        plain["mode"] = ExecutionMode(plain["mode"])
    return Settings(
        **plain,
        thresholds={key.partition(".")[2]: value for key, value in values.items() if key.startswith("thresholds.")},
        limits=Limits(
            values.get("limits.heals_per_hour", limits.heals_per_hour),
            values.get("limits.cooldown_seconds", limits.cooldown_s),
        ),
    )
