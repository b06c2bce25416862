"""TOML, environment and flags → frozen Settings; every error at once, each with its key and where it stands.

Precedence: defaults < files < environment < flags. Limits can only be tightened here.
"""

from __future__ import annotations

import logging
import os
import stat
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from .decide.actions import CATALOGUE, Category, protected, valid_unit
from .decide.limits import Limits
from .decide.policy import Maintenance, Mode, Policy, Rule
from .decide.thresholds import Thresholds
from .models import CHECKS, ConfigError, ExecutionMode, nearest

log = logging.getLogger(__name__)

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
    "allowed_units": _Names,
    "enabled_checks": _Names,
    "include_tmpfs": bool,
    "ignore_mounts": _Names,
    "limits.heals_per_hour": Annotated[int, Meta(ge=0, le=10)],
    "limits.cooldown_seconds": Annotated[float, Meta(ge=300, le=86400)],
    "policy.mode": Literal["observe", "confirm", "auto"],
    "policy.rules": list[dict[str, str]],
    "policy.maintenance": _Names,
    "policy.confirm_seconds": Annotated[float, Meta(ge=60, le=7 * 86400)],
    "policy.boot_grace_seconds": Annotated[float, Meta(ge=0, le=86400)],
    "policy.resume_grace_seconds": Annotated[float, Meta(ge=0, le=86400)],
    "control_group": str,
}
# What each key wants, for people.
_WANTED: Final[Mapping[str, str]] = {
    "interval": "a number of seconds from 1 to 86400",
    "mode": '"service" or "dev"',
    "monitored_units": 'a list of unit names, such as ["nginx"]',
    "allowed_units": 'a list of full unit names, such as ["nginx.service"]',
    "enabled_checks": f"a list of {', '.join(CHECKS)}",
    "ignore_mounts": 'a list of paths, such as ["/mnt/backup*"]',
    "limits.heals_per_hour": "a whole number from 0 to 10 (limits can only be made tighter)",
    "limits.cooldown_seconds": "a number from 300 to 86400 (limits can only be made tighter)",
    "policy.mode": '"observe", "confirm" or "auto"',
    "policy.rules": 'a list of tables such as [[policy.rules]] with mode = "confirm" and unit = "postgresql*"',
    "policy.maintenance": "a list of times such as ['Sat,Sun 02:00-04:00']",
    "policy.confirm_seconds": "a number of seconds from 60 to 604800",
    "policy.boot_grace_seconds": "a number of seconds from 0 to 86400",
    "policy.resume_grace_seconds": "a number of seconds from 0 to 86400",
    "control_group": 'the name of a group, such as "luminous-healing", or ""',
}
# Of several sources the tightest holds.
_TIGHTEST: Final[Mapping[str, Callable[..., Any]]] = {
    "limits.heals_per_hour": min, "limits.cooldown_seconds": max, "dry_run": max, "healing_enabled": min,
    "policy.mode": lambda *modes: min(modes, key=["observe", "confirm", "auto"].index),
}  # fmt: skip
_BOOLEANS: Final = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_TABLES: Final = frozenset({"thresholds", "limits", "policy"})
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
    allowed_units: tuple[str, ...] = ()
    enabled_checks: tuple[str, ...] = CHECKS
    include_tmpfs: bool = False
    ignore_mounts: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    policy: Policy = field(default_factory=Policy)
    control_group: str = "luminous-healing"


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
            else:
                part = getattr(self.settings, table) if table else self.settings
                value = getattr(part, name.replace("_seconds", "_s"))
            shown = _shown(value)
            rows.append((key, shown, self.sources.get(key, "default")))
        return rows


def _shown(value: Any) -> Any:
    """A setting as TOML would have it."""
    if isinstance(value, Maintenance):
        return value.text
    if isinstance(value, Rule):
        return {name: str(getattr(value, name)) for name in _RULE if getattr(value, name) != "*"}
    if isinstance(value, tuple):
        return [_shown(part) for part in value]
    return value.value if isinstance(value, Enum) else value


def files_to_read(explicit: Path | None, environment: Mapping[str, str]) -> list[Path]:
    """The explicit file alone, else the host's file, its conf.d in order, and the user's own; those that exist."""
    if explicit is not None:
        return [explicit]
    home = environment.get("XDG_CONFIG_HOME") or f"{environment.get('HOME', '/nonexistent')}/.config"
    own = [Path(home) / "luminous-healing/config.toml"] if os.geteuid() != 0 else []
    host = [DEFAULT_FILE, *sorted(DEFAULT_FILE.parent.glob("conf.d/*.toml"))]
    return [path for path in (*host, *own) if _reachable(path)]


def _reachable(path: Path) -> bool:
    """False also where a folder above may not be entered, as with another user's home."""
    try:
        return path.exists()
    except OSError as error:
        log.warning("%s is left out: %s", path, error.strerror)
        return False


def load(
    explicit: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, Any] | None = None,
) -> Loaded:
    """Read all sources. Raises ConfigError that lists every problem."""
    env = os.environ if environment is None else environment
    problems: list[str] = []
    entries: list[tuple[str, Any, str]] = []  # (key, value, source), the weakest first
    for path in files_to_read(explicit, env):
        try:
            entries += _flatten(_read_toml(path), str(path), problems)
        except ConfigError as error:
            problems += error.problems
    entries += _from_environment(env)
    entries += [(_canonical(key), value, "flag") for key, value in (flags or {}).items()]
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for key, raw, source in entries:
        value = _check(key, raw, source, problems)
        if key == "monitored_units" and source == "flag":
            value = (*values.get(key, ()), *(value or ()))
        if key in _TIGHTEST and None not in {value, values.get(key)} and _TIGHTEST[key](values[key], value) != value:
            continue  # an earlier source is tighter, and stays
        values[key], sources[key] = value, source
    if problems:
        raise ConfigError(problems, "`luminous-healing config check` says when it is right")
    return Loaded(_settings(values), sources)


def parsed(text: str) -> dict[str, Any]:
    """TOML. Raises ValueError, RecursionError; also for a hexadecimal number too long for any message to tell."""
    tree = tomllib.loads(text)
    repr(tree)
    return tree


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError([f"{path}: not a regular file"])
            data = file.read(_SIZE_LIMIT + 1)
        if len(data) > _SIZE_LIMIT:
            raise ConfigError([f"{path}: larger than 1 MiB"])
        return parsed(data.decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"], "is the path right, and may this user read it?") from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: not UTF-8 text (byte {error.start})"], "TOML files are UTF-8") from error
    except (ValueError, RecursionError) as error:  # a TOMLDecodeError, or a number of 5,000 digits
        raise ConfigError([f"{path}: not TOML: {error}"]) from error


def _flatten(tree: Mapping[str, Any], source: str, problems: list[str]) -> list[tuple[str, Any, str]]:
    flat: list[tuple[str, Any, str]] = []
    for name, value in tree.items():
        if name in _TABLES and isinstance(value, Mapping):
            flat += [(_canonical(f"{name}.{key}"), inner, source) for key, inner in value.items()]
        elif name in _TABLES:
            problems.append(f"{source}: {name}: must be a table, [{name}]")
        elif isinstance(value, Mapping):
            problems.append(f"{source}: [{name}]: unknown table, {nearest(name, _TABLES)}")
        else:
            flat.append((name, value, source))
    return flat


def _canonical(key: str) -> str:
    """`thresholds.cpu` stands for `thresholds.cpu_percent`."""
    table, _, name = key.partition(".")
    return f"{table}.{Thresholds.canonical(name)}" if table == "thresholds" else key


def _from_environment(env: Mapping[str, str]) -> list[tuple[str, Any, str]]:
    found: list[tuple[str, Any, str]] = []
    if _BOOLEANS.get(env.get("LUMINOUS_DEV_MODE", "").strip().lower()):
        found.append(("mode", "dev", "environment LUMINOUS_DEV_MODE"))
    for name, text in env.items():
        if name.startswith(_PREFIX):
            key = _canonical(name.removeprefix(_PREFIX).lower().replace("__", "."))
            found.append((key, _literal(text, _TYPES.get(key)), f"environment {name}"))
    return found


def _literal(text: str, wanted: Any) -> Any:
    """A TOML value where the text is one (`75`, `true`), else the text; a list is separated by commas."""
    if wanted == _Names:
        return [part.strip() for part in text.split(",") if part.strip()]
    if wanted is bool:
        return _BOOLEANS.get(text.strip().lower(), text)
    try:
        return parsed(f"value = {text}")["value"]
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
    except ConfigError as error:
        problems.append(f"{source}: thresholds.{error.message}")
        return None
    except (msgspec.ValidationError, ValueError):
        problems.append(f"{source}: {key}: must be {_WANTED.get(key, 'true or false')}, not {raw!r:.80}")
        return None
    wrong = list(_wrong_names(key, value)) if isinstance(value, list | tuple) else []
    problems += [f"{source}: {key}: {what}" for what in wrong]
    return None if wrong else value


def _wrong_names(key: str, names: Iterable[Any]) -> Iterable[str]:
    for name in names:
        if key == "policy.rules":
            yield from _wrong_rule(name)
        if key == "policy.maintenance":
            try:
                Maintenance.parse(name)
            except ValueError as error:
                yield f"{name!r:.120} is not {error}"
        if key == "enabled_checks" and name not in CHECKS:
            yield f"there is no check {name!r}, {nearest(name, CHECKS)}"
        if key in {"monitored_units", "allowed_units"}:
            try:
                full = valid_unit(name)
            except ValueError as error:
                yield f"{name!r:.120} is not {error}"
                continue
            if key == "allowed_units" and full != name:
                yield f"{name!r:.120} must be said in full: {full}"
            if key == "allowed_units" and protected(full):
                yield f"{name!r:.120} is in the protected set, which is never touched"


_RULE: Final = tuple(part.name for part in fields(Rule))
_MODES: Final = tuple(mode.value for mode in Mode)


def _wrong_rule(rule: Mapping[str, str]) -> Iterable[str]:
    """A rule that can never match is a mistake, too."""
    for name in rule.keys() - set(_RULE):
        yield f"a rule has no {name!r:.80}, {nearest(name, _RULE)}"
    if rule.get("mode") not in _MODES:
        yield f"a rule needs a mode, {nearest(str(rule.get('mode', '')), _MODES)}"
    for name, known in (("action", tuple(CATALOGUE)), ("category", tuple(str(one.value) for one in Category))):
        if not any(fnmatchcase(one, rule.get(name, "*")) for one in known):
            yield f"no {name} is covered by {rule[name]!r:.80}, {nearest(rule[name], known)}"


def _policy(values: Mapping[str, Any]) -> Policy:
    given = {key.partition(".")[2]: value for key, value in values.items() if key.startswith("policy.")}
    plain = {name.replace("_seconds", "_s"): value for name, value in given.items()}
    if "mode" in plain:
        plain["mode"] = Mode(plain["mode"])
    if "rules" in plain:
        plain["rules"] = tuple(Rule(**{**rule, "mode": Mode(rule["mode"])}) for rule in plain["rules"])
    if "maintenance" in plain:
        plain["maintenance"] = tuple(Maintenance.parse(text) for text in plain["maintenance"])
    return Policy(**plain)


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
        policy=_policy(values),
    )
