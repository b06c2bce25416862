"""`luminous-healing`: the only module that prints and exits.

Exit 0 fine, 1 issues remain or a heal was refused, 2 usage or configuration, 3 nothing could be observed.
Data goes to standard output, messages to standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import logging
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from . import __version__, steer
from .bus import Bus, BusRefused, BusUnavailable
from .config import Loaded, Settings, load
from .daemon import Daemon, build_engine
from .deploy import keeping
from .deploy.install import install, uninstall
from .desk import seconds
from .healing_engine import SimplifiedHealingEngine
from .home import kill_switch, open_store, state_file
from .journal import JournalHandler, connected_to_journal
from .models import CHECKS, ActionRefused, ConfigError, HealingError, Issue, SensorHealth, Verdict
from .observe.systemd import read_unit
from .permission_handler import NixOSPermissionHandler
from .report import SCHEMA, Lines, check_data, check_lines, exit_code, heal_data, heal_lines, printable, summary
from .store import Store

SHELLS = ("bash", "zsh", "fish", "tcsh")
_UNIT = "luminous-healing.service"
Command = Callable[[argparse.Namespace], int]


def build_parser() -> argparse.ArgumentParser:
    """The command line; also read when the shell completions are generated."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="one JSON object on standard output")
    common.add_argument("--config", type=Path, metavar="PATH", help="read this configuration file alone")
    common.add_argument("--verbose", action="store_true", default=None, help="tell each step on standard error")
    look = argparse.ArgumentParser(add_help=False)
    look.add_argument("--threshold", action="append", default=[], metavar="NAME=VALUE", help="cpu=75; repeatable")
    look.add_argument("--unit", action="append", metavar="NAME", help="watch this unit too; repeatable")
    look.add_argument("--check", action="append", choices=CHECKS, help="look only at this; repeatable")

    parser = argparse.ArgumentParser(
        prog="luminous-healing",
        allow_abbrev=False,  # half a word must not act
        description="Notices trouble on this host, repairs it within strict limits, and measures whether it helped.",
    )
    parser.add_argument("--version", action="version", version=f"luminous-healing {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, run: Command, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text, parents=[common, *parents], allow_abbrev=False
        )
        command.set_defaults(run=run)
        return command

    add("check", _check, "look once and report; changes nothing", look)
    heal = add("heal", _heal, "run one healing cycle; a dry run unless --apply", look)
    heal.add_argument("--dry-run", action="store_true", help="the default: tell, and change nothing")
    heal.add_argument("--apply", action="store_true", help="act, instead of telling what would be done")
    run = add("run", _run, "watch and heal until stopped (the daemon)", look)
    run.add_argument("--interval", type=float, metavar="SECONDS", help="pause between two looks (default 60)")
    run.add_argument("--dry-run", action="store_true", default=None, help="tell what would be done, change nothing")
    add("status", _status, "the daemon's state and the host's health in a few lines", look)
    history = add("history", _history, "what was done, newest first")
    history.add_argument("component", nargs="?", default="", metavar="UNIT|COMPONENT", help="only what concerns it")
    history.add_argument("--number", type=int, default=20, metavar="N", help="at most so many (default 20)")
    explain = add("explain", _explain, "one heal from evidence to verdict")
    explain.add_argument(
        "what", metavar="ID|UNIT|COMPONENT", help="a record's id or its beginning; else the newest heal"
    )
    _add_steering(add)
    config = commands.add_parser("config", help="check or show the configuration")
    which = config.add_subparsers(dest="config_command", required=True, metavar="check|show")
    for name, function, text in (
        ("check", _config_check, "say whether the configuration is right"),
        ("show", _config_show, "every key with its value and where that came from"),
    ):
        which.add_parser(name, help=text, description=text, parents=[common], allow_abbrev=False).set_defaults(
            run=function
        )
    add("permissions", _permissions, "what may be done here, and how")
    _add_deploying(add)
    completion = commands.add_parser("completion", help="print the completion script of a shell")
    completion.add_argument("shell", choices=SHELLS)
    completion.set_defaults(run=_completion, json=False, verbose=None)
    return parser


def _add_steering(add: Callable[..., argparse.ArgumentParser]) -> None:
    """The words with which a person steers the engine."""
    for name, function, text in (
        ("confirm", _confirm, "take the action that a heal asks a person about"),
        ("undo", _undo, "set back what a heal set"),
    ):
        add(name, function, text).add_argument("id", metavar="ID", help="of the heal, or its beginning")
    silence = add("silence", _silence, "do nothing about a unit or component for a while")
    silence.add_argument("what", metavar="UNIT|COMPONENT", help="a glob such as 'nginx*'; with --end an id, too")
    silence.add_argument("time", nargs="?", default="1h", metavar="TIME", help="30m, 2h, 1d (default 1h)")
    silence.add_argument("--reason", default="", metavar="TEXT", help="shown where it holds something back")
    silence.add_argument("--end", action="store_true", help="end it now")
    pause = add("pause", _pause, "the kill switch: nothing acts until `resume`")
    pause.add_argument("--reason", default="", metavar="TEXT", help="shown where it holds something back")
    resume = add("resume", _resume, "lift the kill switch")
    resume.add_argument("--breakers", action="store_true", help="close the breakers, too")
    resume.add_argument("--store", action="store_true", help="begin a new store in place of a lost or damaged one")


def _add_deploying(add: Callable[..., argparse.ArgumentParser]) -> None:
    """The words that put the service on a host, or take it away."""
    parsers = (
        add("install", _install, "set up the service: units, users, polkit's rules"),
        add("uninstall", _uninstall, "take away what `install` set up; state, keys and configuration stay"),
    )
    for parser in parsers:
        parser.add_argument(
            "--root", type=Path, metavar="DIR", help="below this directory, and tell no running system"
        )
        parser.add_argument("--dry-run", action="store_true", help="tell, and change nothing")
    audit = add("audit", _audit, "what was asked of the helper: verify that it is whole, or show it")
    audit.add_argument("what", choices=("verify", "show", "renew"), help="renew: put an unusable register aside")
    audit.add_argument("--head", default="", metavar="SEQ:MAC", help="verify: the end as the journal told it")
    audit.add_argument("--number", type=int, default=20, metavar="N", help="show: so many lines (default 20)")
    add("rotate-key", _rotate_key, "give engine and helper a new key")
    parsers[0].add_argument("--now", action="store_true", help="enable and start the engine, too")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = build_parser().parse_args(argv)
    _set_up_logging(verbose=bool(arguments.verbose))
    run: Command = arguments.run
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a sign shows another
    if sys.stdout is None:  # before anything is done
        print("luminous-healing: the report could not be written: standard output is closed", file=sys.stderr)
        return 2
    try:
        code = run(arguments)
        sys.stdout.flush()
        return code
    except ConfigError as error:
        return _fail(error, error.problems, as_json=arguments.json)
    except HealingError as error:
        return _fail(error, [error.message], as_json=arguments.json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads on; no second complaint at exit
        return 1
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"luminous-healing: the report could not be written: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 2


def _fail(error: HealingError, problems: list[str], *, as_json: bool) -> int:
    for problem in problems:
        print(f"luminous-healing: {printable(problem)}", file=sys.stderr)
    if error.hint:
        print(f"  hint: {printable(error.hint)}", file=sys.stderr)
    if as_json:
        print(json.dumps({"schema": SCHEMA, "error": problems, "hint": error.hint or None}))
    return 1 if isinstance(error, ActionRefused) else 2


def _set_up_logging(*, verbose: bool) -> None:
    root = logging.getLogger("luminous_nix")
    handler: logging.Handler = JournalHandler() if connected_to_journal() else logging.StreamHandler()
    if not isinstance(handler, JournalHandler):
        handler.setFormatter(_Printable("%(levelname)s %(message)s"))
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO if verbose else logging.WARNING)


class _Printable(logging.Formatter):
    """Names come from the host: what a terminal could act on is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(printable(line) for line in super().format(record).split("\n"))


# -- commands ------------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> int:
    engine = build_engine(_load(arguments).settings)
    data, issues, sensors = asyncio.run(_look(engine))
    _show(arguments, data, check_lines(data))
    return exit_code(issues, sensors)


def _heal(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments)
    engine = build_engine(loaded.settings, store=_store(arguments.apply))
    if arguments.apply and loaded.settings.dry_run:
        where = loaded.sources.get("dry_run", "")
        raise ConfigError([f"dry_run is set by {where}: --apply does not override it"], "take it out there to act")
    engine.dry_run = not arguments.apply or arguments.dry_run
    return asyncio.run(_heal_once(engine, arguments))


def _store(acting: bool) -> Store | None:
    """The kept acts. A dry run reads them where there are some, and makes no file."""
    return open_store(os.environ) if acting or state_file(os.environ).exists() else None


async def _heal_once(engine: SimplifiedHealingEngine, arguments: argparse.Namespace) -> int:
    try:
        snapshot, issues = await engine.look()
        results = await engine.heal_issues_batch(issues)
        if any(result.actions_taken for result in results) and not engine.dry_run:
            snapshot, issues = await engine.look()
    finally:
        await engine.executor.handler.world.bus.close()
    seen = any(sensor.ok for sensor in snapshot.sensors)
    healthy = not issues and seen
    _show(
        arguments, heal_data(results, healthy=healthy), heal_lines(results, healthy=healthy, dry_run=engine.dry_run)
    )
    missed = any(result.verdict in {Verdict.FAILED, Verdict.NO_EFFECT} for result in results)
    return exit_code(issues, snapshot.sensors) or int(missed)


def _run(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments)
    logging.getLogger("luminous_nix").setLevel(logging.INFO)
    asyncio.run(Daemon(loaded, lambda: _load(arguments)).run())
    return 0


def _status(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    engine = build_engine(settings)
    daemon = asyncio.run(_daemon_state(engine.executor.handler.world.bus))
    data, issues, sensors = asyncio.run(_look(engine))
    desk = steer.status(settings) if _remembers() else steer.NO_PAST
    daemon = "running (it answers)" if desk.get("running") and not daemon.startswith("active") else daemon
    status = {
        "schema": SCHEMA, "daemon": daemon, "steering": desk, "healthy": data["healthy"], "health": data["health"],
        "issues": data["issues"], "unknown": data["unknown"], "mode": engine.executor.handler.mode.value,
    }  # fmt: skip
    lines: Lines = [("", f"daemon      {daemon}"), ("", f"mode        {status['mode']}")]
    lines += steer.status_lines(desk)
    lines += [("bold red", f"issue       {printable(issue['description'])}") for issue in data["issues"]]
    _show(arguments, status, [*lines, summary(data)])
    return exit_code(issues, sensors)


def _remembers() -> bool:
    """Whether an engine runs or ran here; a status makes no files."""
    return steer.HOST_SOCKET.exists() or state_file(os.environ).parent.exists() or kill_switch() != ""


async def _daemon_state(bus: Bus) -> str:
    try:
        unit = await read_unit(bus, _UNIT)
    except (BusUnavailable, BusRefused) as error:
        return f"unknown ({error.message})"
    finally:
        await bus.close()
    return "not installed" if unit.load == "not-found" else f"{unit.active} ({unit.sub})"


async def _look(engine: SimplifiedHealingEngine) -> tuple[dict[str, Any], list[Issue], tuple[SensorHealth, ...]]:
    try:
        snapshot, issues = await engine.look()
    finally:
        await engine.executor.handler.world.bus.close()
    return check_data(issues, engine.detector.readings(snapshot), snapshot.sensors), issues, snapshot.sensors


def _history(arguments: argparse.Namespace) -> int:
    component = arguments.component.removesuffix(".service")
    return _tell(arguments, steer.history(_settings(arguments), component, arguments.number))


def _explain(arguments: argparse.Namespace) -> int:
    return _tell(arguments, steer.explain(_settings(arguments), arguments.what))


def _confirm(arguments: argparse.Namespace) -> int:
    return _tell(arguments, steer.confirm(_settings(arguments), arguments.id))


def _undo(arguments: argparse.Namespace) -> int:
    return _tell(arguments, steer.undo(_settings(arguments), arguments.id))


def _silence(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    if arguments.end:
        return _tell(arguments, steer.unsilence(settings, arguments.what))
    try:
        span = seconds(arguments.time)
    except ValueError as error:
        raise HealingError(f"{arguments.time!r:.40} is not {error}") from None
    return _tell(arguments, steer.silence(settings, arguments.what.removesuffix(".service"), span, arguments.reason))


def _pause(arguments: argparse.Namespace) -> int:
    return _tell(arguments, steer.pause(_settings(arguments), arguments.reason))


def _resume(arguments: argparse.Namespace) -> int:
    settings = _settings(arguments)
    return _tell(arguments, steer.resume(settings, breakers=arguments.breakers, store=arguments.store))


def _tell(arguments: argparse.Namespace, answer: steer.Answer) -> int:
    _show(arguments, answer.data, answer.lines)
    return answer.code


def _config_check(arguments: argparse.Namespace) -> int:
    loaded = _load(arguments)
    count = len(loaded.sources)
    text = f"the configuration is right ({count} key{'' if count == 1 else 's'} set, the rest are defaults)"
    _show(arguments, {"schema": SCHEMA, "valid": True, "set": count}, [("green", text)])
    return 0


def _config_show(arguments: argparse.Namespace) -> int:
    rows = _load(arguments).rows()
    data = {"schema": SCHEMA, "settings": {key: {"value": value, "source": source} for key, value, source in rows}}
    lines: Lines = [("", f"{key:<30} {json.dumps(value):<28} {printable(source)}") for key, value, source in rows]
    _show(arguments, data, lines)
    return 0


def _permissions(arguments: argparse.Namespace) -> int:
    status = NixOSPermissionHandler(_load(arguments).settings.mode).get_permission_status()
    lines: Lines = [("", f"mode  {status['mode']}")]
    lines += [("", f"  {name:<22} {how}") for name, how in status["capabilities"].items()]
    _show(arguments, {"schema": SCHEMA, **status}, lines)
    return 0


def _install(arguments: argparse.Namespace) -> int:
    done = install(arguments.root, dry_run=arguments.dry_run, now=arguments.now)
    _show(arguments, {"schema": SCHEMA, **done.data}, done.lines)
    return 0


def _audit(arguments: argparse.Namespace) -> int:
    if arguments.what == "verify":
        kept = keeping.verify_audit(arguments.head)
    elif arguments.what == "show":
        kept = keeping.show_audit(arguments.number)
    else:
        kept = asyncio.run(keeping.renew())
    _show(arguments, kept.data, kept.lines)
    return kept.code


def _rotate_key(arguments: argparse.Namespace) -> int:
    kept = asyncio.run(keeping.rotate_key())
    _show(arguments, kept.data, kept.lines)
    return kept.code


def _uninstall(arguments: argparse.Namespace) -> int:
    done = uninstall(arguments.root, dry_run=arguments.dry_run)
    _show(arguments, {"schema": SCHEMA, **done.data}, done.lines)
    return 0


def _completion(arguments: argparse.Namespace) -> int:
    print(resources.files(__package__).joinpath("completions", arguments.shell).read_text("utf-8"), end="")
    return 0


# -- input and output ----------------------------------------------------------------------------------------


def _settings(arguments: argparse.Namespace) -> Settings:
    """For what steers an engine: a mistake in a file must not keep anybody from stopping it."""
    try:
        return _load(arguments).settings
    except ConfigError as error:
        for problem in error.problems:
            print(f"luminous-healing: {printable(problem)}", file=sys.stderr)
        print("  the configuration is wrong, so this goes by the defaults", file=sys.stderr)
        return Settings()


def _load(arguments: argparse.Namespace) -> Loaded:
    """The configuration with this call's flags on top. Raises ConfigError."""
    flags: dict[str, Any] = {}
    for text in getattr(arguments, "threshold", []):
        name, equals, value = text.partition("=")
        try:
            flags[f"thresholds.{name}"] = float(value)
        except ValueError:
            shape = "NAME=NUMBER, for example --threshold cpu=75"
            raise ConfigError([f"--threshold {text}: {'not a number' if equals else 'no value'}"], shape) from None
    for key, name in (("monitored_units", "unit"), ("enabled_checks", "check"), ("interval", "interval"),
                      ("verbose", "verbose")):  # fmt: skip
        if (value := getattr(arguments, name, None)) is not None:
            flags[key] = value
    if arguments.command == "run" and arguments.dry_run:
        flags["dry_run"] = True
    return load(arguments.config, flags=flags)


def _show(arguments: argparse.Namespace, data: dict[str, Any], lines: Lines) -> None:
    if arguments.json:
        print(json.dumps(data))
    elif sys.stdout.isatty():
        from rich.console import Console  # noqa: PLC0415  loaded only for a terminal
        from rich.text import Text  # noqa: PLC0415

        console = Console(highlight=False, no_color=bool(os.environ.get("NO_COLOR")))
        for style, text in lines:
            for number, line in enumerate(_wrapped(text, console.width)):
                console.print(Text(line, style=style if number == 0 else "dim"), soft_wrap=True)
    else:
        print("\n".join(text for _, text in lines))


def _wrapped(text: str, width: int) -> list[str]:
    """A long line on several, the further ones indented below the first word."""
    indent = " " * (len(text) - len(text.lstrip()) + 2)
    return textwrap.wrap(text, width, subsequent_indent=indent, drop_whitespace=True) or [""]


if __name__ == "__main__":
    sys.exit(main())
