"""`install` and `uninstall`: the files of the trust boundary, put on a host or below a root, and taken away again.

What was written is kept with its digest: what somebody changed since is never overwritten or removed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .. import __version__, process
from ..config import load, parsed
from ..decide.actions import protected, valid_unit
from ..models import ActionRefused, ConfigError, HealingError
from .host import check_code, check_host, places
from .polkit import polkit_files
from .tree import Tree
from .units import ENGINE, EXECUTOR, KEYS, NIX_USER, File, Site, fragments, unit_files

CONFIG: Final = "/etc/luminous-healing/config.toml"
MANIFEST: Final = "/var/lib/luminous-healing-install/manifest.json"
STAYS: Final = (
    f"/etc/{ENGINE} (configuration)", f"/var/lib/{ENGINE} and /var/lib/{EXECUTOR} (what was done)",
    f"{KEYS} (keys)", f"the users {ENGINE}, {EXECUTOR}, {NIX_USER}",
)  # fmt: skip
_OURS: Final = (ENGINE, f"10-{ENGINE}", "org.luminous.healing")  # how each name of ours begins
_IDLE: Final = (f"{EXECUTOR}.socket", f"{ENGINE}-rotate.timer")  # started at once: they only wait
_RUNNING: Final = (f"{EXECUTOR}.service", f"{ENGINE}.service")
_PATIENCE_S: Final = 120.0
_EXAMPLE: Final = """\
# Luminous healing. `luminous-healing config show` tells every key with its value.
#
# The units that may be restarted, reloaded, limited or frozen, by their exact names. Others are only proposed.
# Run `luminous-healing install` again after a change: systemd and polkit are told from here.
# allowed_units = ["nginx.service"]
"""


@dataclass(frozen=True, slots=True)
class Done:
    """What was, or in a dry run would be, done."""

    data: dict[str, Any]
    lines: list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Changes:
    """Paths: to write, as they already are, to remove, and to leave because somebody changed them."""

    write: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()
    edited: tuple[str, ...] = ()


def install(root: Path | None, *, dry_run: bool, now: bool) -> Done:
    """Without `root` on this host, which is then told; with `now` the engine starts, too."""
    tree = Tree(root or Path("/"))
    _directory(root)
    if root is not None and now:
        raise HealingError(
            "--now starts the engine of this host, and --root tells no running system", "leave one out"
        )
    if root is None:
        check_host()
    found = places(isolated=root is None)
    if root is None:
        check_code(found)
    site = Site(sys.executable, allowed_units(tree, strict=root is None))
    wanted = {**unit_files(site), **fragments(site), **polkit_files(site)}
    known = _manifest(tree)
    changes = _changes(tree, wanted, known)
    if blocked := [path for path in changes.edited if path in wanted]:
        raise ActionRefused(
            f"not made by this program, or changed since: {', '.join(blocked)}; nothing was written",
            "keep the change as a drop-in (`systemctl edit UNIT`), move the file away, and install again",
        )
    example = tree.read(CONFIG) is None
    if not dry_run:
        _write(tree, wanted, known, changes)
        if example:
            tree.write(CONFIG, _EXAMPLE.encode(), 0o644)
    steps = _live_install(site, now=now, changed=bool(changes.write or changes.remove)) if root is None else []
    if not dry_run:
        asyncio.run(_run(steps))
    return _installed(site, changes, steps, example=example, dry_run=dry_run, now=now, root=root)


def uninstall(root: Path | None, *, dry_run: bool) -> Done:
    """Take away what was installed and nobody changed."""
    tree = Tree(root or Path("/"))
    _directory(root)
    if root is None:
        check_host(polkit=False)
    known = _manifest(tree)
    changes = _changes(tree, {}, known)
    live = root is None and bool(known)
    before = [["systemctl", "disable", "--now", *_IDLE, *_RUNNING]] if live else []
    after = [["systemctl", "daemon-reload"]] if live else []
    complaints: list[str] = []
    if not dry_run and known:
        complaints = asyncio.run(_run(before, strict=False))  # a unit that is gone already cannot be stopped
        for path in changes.remove:
            tree.remove(path)
        tree.remove(MANIFEST)
        tree.remove_empty(MANIFEST.rpartition("/")[0])
        asyncio.run(_run(after))
    would = "would be " if dry_run else ""
    lines = [("", f"{would}run       {' '.join(step)}") for step in before]
    lines += [("yellow", complaint) for complaint in complaints]
    lines += [("", f"{would}removed   {path}") for path in changes.remove]
    lines += [("", f"{would}run       {' '.join(step)}") for step in after]
    lines += [("yellow", f"stays     {path} (changed since it was installed)") for path in changes.edited]
    lines += [("", f"stays     {what}") for what in STAYS] if known else [("", "nothing is installed here")]
    data = {"dry_run": dry_run, "removed": list(changes.remove), "edited": list(changes.edited), "stays": list(STAYS)}
    return Done({**data, "steps": [*before, *after], "complaints": complaints}, lines)


def allowed_units(tree: Tree, *, strict: bool) -> tuple[str, ...]:
    """The allow-list of the configuration. `strict`: nobody but root may have written it. Raises ConfigError."""
    folder = CONFIG.rpartition("/")[0] + "/conf.d"
    names: list[Any] = []
    for path in (CONFIG, *(f"{folder}/{name}" for name in tree.names(folder) if name.endswith(".toml"))):
        found = tree.look(path)
        if found is None:
            continue
        data, status = found
        if strict and (status.st_uid != 0 or status.st_mode & 0o022):
            raise ConfigError([f"{path}: others than root may write it"], f"chown root {path}; chmod 644 {path}")
        try:
            names = parsed(data.decode("utf-8-sig")).get("allowed_units", names)
        except (ValueError, RecursionError) as error:
            raise ConfigError([f"{path}: not TOML: {error}"]) from error
        if not isinstance(names, list):
            raise ConfigError([f"{path}: allowed_units: must be a list of unit names"], 'such as ["nginx.service"]')
    if problems := [problem for name in names if (problem := _wrong(name))]:
        raise ConfigError(problems, "an allowed unit is one unit by its full name, and none that is protected")
    if strict:
        load(None, {})  # with a mistake anywhere in it the helper would refuse everything
    return tuple(dict.fromkeys(names))


def _wrong(name: Any) -> str:
    try:
        unit = valid_unit(name)
    except ValueError as error:
        return f"allowed_units: {name!r:.120} is not {error}"
    if unit != name:
        return f"allowed_units: {name!r:.120} is no full name: {unit}"
    return f"allowed_units: {unit} is protected: nothing may touch it" if protected(unit) else ""


# -- files ---------------------------------------------------------------------------------------------------


def _directory(root: Path | None) -> None:
    if root is not None and not root.is_dir():
        raise HealingError(f"{root} is no directory", "--root names the tree to install into")


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _manifest(tree: Tree) -> dict[str, list[str]]:
    """Path → the digests of what we wrote there. Raises HealingError."""
    data = tree.read(MANIFEST)
    if data is None:
        return {}
    try:
        files = json.loads(data)["files"]
        known = {str(path): [str(digest) for digest in digests] for path, digests in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise HealingError(f"{MANIFEST} cannot be understood", "it says what was installed: restore it") from None
    folders = {path.rpartition("/")[0] for path in _every_path()}
    for path in known:  # it only ever names files of ours, whoever wrote it
        folder, _, name = path.rpartition("/")
        if folder not in folders or not name.startswith(_OURS):
            raise HealingError(f"{MANIFEST} names {path!r:.120}, which is no file of ours", "restore it")
    return known


def _every_path() -> Iterable[str]:
    site = Site()
    return (*unit_files(site), *fragments(site), *polkit_files(site))


def _changes(tree: Tree, wanted: Mapping[str, File], known: Mapping[str, list[str]]) -> _Changes:
    kinds: dict[str, list[str]] = {"write": [], "same": [], "remove": [], "edited": []}
    for path in sorted({*wanted, *known}):
        if kind := _kind(tree, path, wanted.get(path), known.get(path, [])):
            kinds[kind].append(path)
    return _Changes(**{kind: tuple(paths) for kind, paths in kinds.items()})


def _kind(tree: Tree, path: str, wanted: File | None, ours: list[str]) -> str:
    try:
        found = tree.look(path)
    except HealingError:
        return "edited"  # a link, a directory, or behind one
    if found is None:
        return "write" if wanted else ""
    data, status = found
    if wanted and data == wanted.text.encode():
        kept = status.st_mode & 0o7777 == wanted.mode and status.st_uid == os.geteuid()
        return "same" if kept else "write"
    if _digest(data) not in ours:
        return "edited"
    return "write" if wanted else "remove"


def _write(tree: Tree, wanted: Mapping[str, File], known: Mapping[str, list[str]], changes: _Changes) -> None:
    """First what will be ours: an end in the middle must not make our own files look like somebody else's."""
    digests = {path: _digest(file.text.encode()) for path, file in wanted.items()}
    final = {path: [digest] for path, digest in digests.items()}
    if changes.write or changes.remove or known != final:
        _keep(tree, {path: [*known.get(path, ()), *final.get(path, ())] for path in {*known, *final}})
        for path in changes.write:
            tree.write(path, wanted[path].text.encode(), wanted[path].mode)
        for path in changes.remove:
            tree.remove(path)
        _keep(tree, final)


def _keep(tree: Tree, files: Mapping[str, list[str]]) -> None:
    text = json.dumps({"schema": 1, "version": __version__, "files": files}, indent=1, sort_keys=True) + "\n"
    tree.write(MANIFEST, text.encode(), 0o600, folders=0o755)


# -- the host ------------------------------------------------------------------------------------------------


def _live_install(site: Site, *, now: bool, changed: bool) -> list[list[str]]:
    users, directories = fragments(site)
    steps = [
        ["systemd-sysusers", users],
        ["systemd-tmpfiles", "--create", directories],
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "--now", *_IDLE],
    ]
    if changed:  # what runs takes the new walls and the new allow-list
        steps.append(["systemctl", "try-restart", *_RUNNING])
    if now:
        steps.append(["systemctl", "enable", "--now", f"{ENGINE}.service"])
    return steps


async def _run(steps: Iterable[list[str]], *, strict: bool = True) -> list[str]:
    """What went wrong; when `strict` that is raised."""
    complaints = []
    for step in steps:
        done = await process.run(step, timeout=_PATIENCE_S)
        if done.returncode:
            complaints.append(f"`{' '.join(step)}` ended with {done.returncode}: {done.last_words}")
            if strict:
                raise HealingError(complaints[0], "the files are in place; the same command goes on from here")
    return complaints


def _installed(
    site: Site, changes: _Changes, steps: list[list[str]], *, example: bool, dry_run: bool, now: bool,
    root: Path | None,
) -> Done:  # fmt: skip
    would = "would be " if dry_run else ""
    written = [*changes.write, *([CONFIG] if example else [])]
    lines = [("", f"{would}written   {path}") for path in written]
    lines += [("", f"{would}removed   {path} (of an earlier version)") for path in changes.remove]
    lines += [("yellow", f"stays     {path} (of an earlier version, but changed)") for path in changes.edited]
    if not written and not changes.remove:
        lines.append(("green", "every file is as it should be: nothing to write"))
    lines += [("", f"{would}run       {' '.join(step)}") for step in steps]
    lines.append(("", f"may touch {', '.join(site.allowed_units) or 'no unit (allowed_units is empty)'}"))
    if root is not None:
        units = " ".join((*_IDLE, f"{ENGINE}.service"))
        lines.append(("dim", f"enable it there: systemctl --root={root} enable {units}"))
    elif not now:
        lines.append(("dim", f"start the engine: systemctl enable --now {ENGINE}"))
    data = {
        "dry_run": dry_run, "written": written, "same": list(changes.same), "removed": list(changes.remove),
        "edited": list(changes.edited), "allowed_units": list(site.allowed_units), "steps": steps,
    }  # fmt: skip
    return Done(data, lines)
