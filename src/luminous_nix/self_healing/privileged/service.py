"""The helper on this host: systemd's socket, the keys, root's configuration, polkit.

    python -I -m luminous_nix.self_healing.privileged.service

It is not root. It starts on demand, and ends when nobody asked for five minutes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import resource
import signal
import socket
import stat
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..bus import Bus, BusRefused, BusUnavailable, target
from ..config import files_to_read, load
from ..decide.actions import CATALOGUE
from ..home import kill_switch
from ..journal import JournalHandler, connected_to_journal, notify
from ..models import Action, ActionRefused, ConfigError, ExecutionMode, HealingError, Roots
from ..observe.host import boot_clock
from ..permission_handler import NixOSPermissionHandler
from .broker import Broker, Rules, printable_word
from .door import Helper
from .keys import boot_id, credential, load_keys, load_secret
from .register import Register
from .runner import ServiceRunner

log = logging.getLogger("luminous_nix.self_healing.privileged.service")  # __name__ is __main__: nobody's handler

ENGINE_USER: Final = "luminous-healing"
ENGINE_UNIT: Final = "luminous-healing.service"
_TURNING_AWAY_S: Final = 30.0
_FIRST_FD: Final = 3  # sd_listen_fds(3)
_POLKIT: Final = target(
    "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority", "org.freedesktop.PolicyKit1"
)
_DBUS: Final = target("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
_ACTION_IDS: Final[Mapping[str, str]] = {  # what is not here: act
    "restart_service": "restart", "reload_service": "restart", "start_unit": "restart", "rerun_timer": "restart",
    "kill_process": "kill", "rollback_generation": "rollback", "rebuild_system": "rollback",
    "prune_generations": "rollback", "clean_nix_store": "collect", "optimize_store": "collect",
    "clean_disk": "collect", "vacuum_journal": "collect",
}  # fmt: skip
_ASKING_S: Final = 120.0


class Polkit:
    """Asks the person: the bus name is the subject, never a process number."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus

    async def __call__(self, subject: str, action: Action) -> None:
        """Raises ActionRefused for everything but a clear yes to a person who is not root."""
        spec = CATALOGUE[action.name]
        action_id = f"org.luminous.healing.{_ACTION_IDS.get(spec.name, 'act')}"
        what = ", ".join(f"{name}={value}" for name, value in sorted(action.parameters.items()))
        asked_for = f"{spec.name}({printable_word(what)})"
        details = {"operation": spec.name, "polkit.message": f"Luminous healing asks for {asked_for}: {spec.effect}"}
        try:
            (uid,) = await self._bus.call(_DBUS, "GetConnectionUnixUser", "s", (subject,))
            if uid == 0:  # polkit says yes to root without asking anybody: the engine could name any of its processes
                raise ActionRefused("root gives its word directly")
            body = (("system-bus-name", {"name": ("s", subject)}), action_id, details, 1, "")
            ((yes, _challenge, _more),) = await self._bus.call(
                _POLKIT, "CheckAuthorization", "(sa{sv})sa{ss}us", body, within=_ASKING_S
            )
        except (BusUnavailable, BusRefused) as error:
            raise ActionRefused(
                f"polkit cannot be asked: {error.message}", "root may give its word directly"
            ) from error
        if yes is not True:
            raise ActionRefused("the person said no, or could not be asked", f"polkit: {action_id}")


def host_rules() -> Rules:
    """What root's configuration says now. Anything odd about it means that nothing may act. Raises nothing."""
    try:
        for path in files_to_read(None, {}):
            at = path.stat()
            if at.st_uid != 0 or at.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return Rules(stopped=f"{path} can be changed by others than root")
        settings = load(None, {}).settings
    except (ConfigError, OSError) as error:
        return Rules(stopped=f"the configuration cannot be read: {error}")
    why = "healing_enabled = false" if not settings.healing_enabled else "dry_run = true" if settings.dry_run else ""
    return Rules(frozenset(settings.allowed_units), settings.policy, settings.limits, why)


def _listener() -> socket.socket:
    """From systemd. Raises HealingError: nobody else makes this socket."""
    if os.environ.get("LISTEN_FDS") != "1" or os.environ.get("LISTEN_PID") != str(os.getpid()):
        raise HealingError(
            "the helper gets its socket from systemd", "systemctl start luminous-healing-executor.socket"
        )
    listener = socket.socket(fileno=_FIRST_FD)
    if listener.type != socket.SOCK_SEQPACKET or listener.family != socket.AF_UNIX:
        raise HealingError("the socket from systemd is not a sequential-packet Unix socket")
    os.set_inheritable(_FIRST_FD, False)
    return listener


async def serve() -> None:
    """Raises HealingError when something is missing that it must not do without."""
    if os.geteuid() == 0:
        raise HealingError("the helper does not run as root", "root on the bus is root, whatever its sandbox")
    listener, boot = _listener(), boot_id()
    environment = dict(os.environ)
    keys = load_keys(credential("keys", environment), boot)
    audit_key = load_secret(credential("audit", environment))
    state = Path(environment.get("STATE_DIRECTORY", "").partition(":")[0] or "/nonexistent")
    register = Register(state / "register.db", clock=boot_clock, boot_id=boot, audit_key=audit_key)
    bus, roots = Bus(clock=time.monotonic), Roots()
    runner = ServiceRunner(bus, roots)
    handler = NixOSPermissionHandler(
        ExecutionMode.DEVELOPMENT, bus=bus, roots=roots, runner=runner, environment={},
        switch=kill_switch, rooted=True,
    )  # fmt: skip
    broker = Broker(register, handler, rules=host_rules, confirmed=Polkit(bus), switch=kill_switch,
                    running=runner.running)  # fmt: skip
    if not register.fault:
        for what in register.close_unfinished():
            log.warning("%s was under way when we ended: how it ended is not known, and it is not repeated", what)
        log.info("audit head %s", register.head())
    helper = Helper(listener, keys, broker, engine_uid=pwd.getpwnam(ENGINE_USER).pw_uid, engine_unit=ENGINE_UNIT,
                    boot=boot, note=register.note)  # fmt: skip
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, helper.stop)
    notify("READY=1")
    try:
        await helper.run()
    finally:
        notify("STOPPING=1")
        if not register.fault:
            log.info("audit head %s", register.head())
        register.close()
        await bus.close()


def main() -> int:
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the key must never lie in a core
    root = logging.getLogger("luminous_nix")
    root.handlers[:] = [JournalHandler() if connected_to_journal() else logging.StreamHandler()]
    root.setLevel(logging.INFO)
    try:
        asyncio.run(serve())
    except (HealingError, KeyError) as error:
        log.critical("the helper cannot run: %s", getattr(error, "message", f"there is no user {error}"))
        _turn_away(_TURNING_AWAY_S)
        return 1
    return 0


def _turn_away(seconds: float) -> None:
    """A connection that waits would start us again at once, for ever: each is ended, and so we are started twice a
    minute at most."""
    try:
        listener = _listener()
    except HealingError:
        return
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            listener.accept()[0].close()
        except OSError:
            time.sleep(min(0.1, max(left, 0.0)))


if __name__ == "__main__":
    sys.exit(main())
