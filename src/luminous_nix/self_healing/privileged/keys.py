"""The shared keys: made by root, handed on by systemd's LoadCredential=, rotated with a grace for the former one.

    python -I -m luminous_nix.self_healing.privileged.keys make|rotate

`keys` is one line of JSON: {"current": HEX, "previous": HEX or "", "boot_id": …, "until_ns": …}. Nobody but root
reads the files; engine and helper see copies that systemd made for them alone. `audit` is for the helper only.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..bus import Bus, BusRefused, BusUnavailable
from ..models import HealingError
from ..observe.systemd import MANAGER
from .protocol import GRACE_NS, Key, Keys

KEY_DIRECTORY: Final = Path("/var/lib/luminous-healing-keys")
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_HELPER: Final = "luminous-healing-executor.service"
_ENGINE: Final = "luminous-healing.service"
_LONGEST: Final = 4096


def boot_id(environment: Mapping[str, str] | None = None) -> str:
    """This boot, as systemd knows it: behind its walls a process in a container would read the host's. Its units hand
    it on as LUMINOUS_BOOT_ID (%b)."""
    given = (os.environ if environment is None else environment).get("LUMINOUS_BOOT_ID", "")
    if re.fullmatch("[0-9a-f]{32}", given):
        return "-".join((given[:8], given[8:12], given[12:16], given[16:20], given[20:]))
    return _BOOT_ID.read_text("ascii").strip()


def boot_ns() -> int:
    """CLOCK_BOOTTIME: no jump of the wall clock touches it, and sleep counts."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def credential(name: str, environment: Mapping[str, str]) -> Path:
    """Where the key lies for this process: systemd's credentials, else root's own folder."""
    given = environment.get("CREDENTIALS_DIRECTORY", "")
    return (Path(given) if given else KEY_DIRECTORY) / name


def load_keys(path: Path, boot: str) -> Keys:
    """Raises HealingError. A former key of another boot has no grace: its clock is gone."""
    try:
        found = json.loads(_read(path))
        current, previous = Key(bytes.fromhex(found["current"])), found["previous"]
        until = int(found["until_ns"]) if found["boot_id"] == boot else 0
        return Keys(current, Key(bytes.fromhex(previous)) if previous else None, until)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise HealingError(f"{path} is no key file", "root makes a new one: `luminous-healing rotate-key`") from None


def load_secret(path: Path) -> bytes:
    """32 bytes. Raises HealingError."""
    try:
        return Key(bytes.fromhex(_read(path).strip())).secret
    except ValueError:
        raise HealingError(f"{path} is no key file") from None


def _read(path: Path) -> str:
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW)) as file:
            return file.read(_LONGEST).decode("ascii")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise HealingError(
            f"the key {path} cannot be read: {why}",
            "only root and the services have it; `systemctl restart luminous-healing-keys` makes a missing one",
        ) from None


def make(directory: Path = KEY_DIRECTORY) -> list[str]:
    """Make what is missing; returns the names of what was made. Raises OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    made = []
    for name, text in (("keys", _text(secrets.token_hex(32), "", "", 0)), ("audit", secrets.token_hex(32) + "\n")):
        if not (directory / name).exists():
            _write(directory / name, text)
            made.append(name)
    return made


def rotate(directory: Path = KEY_DIRECTORY, *, boot: str, now_ns: int) -> None:
    """A new key in force; the one so far verifies for ten minutes more. Raises HealingError, OSError."""
    try:
        so_far = load_keys(directory / "keys", boot).current.secret.hex()
    except HealingError:
        so_far = ""  # nobody has it, so nobody misses it
    _write(directory / "keys", _text(secrets.token_hex(32), so_far, boot, now_ns + GRACE_NS))


def _text(current: str, previous: str, boot: str, until_ns: int) -> str:
    words = {"current": current, "previous": previous, "boot_id": boot, "until_ns": until_ns}
    return json.dumps(words) + "\n"


def _write(path: Path, text: str) -> None:
    """As a whole or not at all, and durable before anybody uses it."""
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o400)
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


async def hand_on(bus: Bus) -> None:
    """Let both ends load the keys as they are now: the helper first, which then takes both, and starts again when it
    is next asked. Raises HealingError."""
    for method, unit in (("StopUnit", _HELPER), ("TryRestartUnit", _ENGINE)):
        try:
            await bus.call(MANAGER, method, "ss", (unit, "replace"))
        except (BusUnavailable, BusRefused) as error:
            if not (isinstance(error, BusRefused) and error.name.endswith(".NoSuchUnit")):
                raise HealingError(f"{unit} did not get the new key: {error.message}",
                                   f"systemctl try-restart {unit}, within ten minutes") from error  # fmt: skip
    await bus.close()


def main(argv: list[str]) -> int:
    os.umask(0o077)
    try:
        if argv == ["make"]:
            make()
        elif argv == ["rotate"]:
            make()
            rotate(boot=boot_id(), now_ns=boot_ns())
            asyncio.run(hand_on(Bus(clock=time.monotonic)))
        else:
            sys.stderr.write("usage: keys make|rotate\n")
            return 2
    except (HealingError, OSError) as error:
        sys.stderr.write(f"keys: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
