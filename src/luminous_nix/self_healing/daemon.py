"""`luminous-healing run`: the loop under a service manager, with reload, watchdog and a quick end."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import logging
import os
import re
import signal
import time
from collections.abc import Callable
from typing import Final

from .act.executor import SimpleExecutor
from .bus import Bus
from .config import Loaded, Settings
from .control import ControlServer, socket_path
from .decide.actions import CATALOGUE
from .desk import Desk
from .healing_engine import SimplifiedHealingEngine
from .home import kill_switch, open_store
from .journal import notify, watchdog_seconds
from .models import ConfigError, HealingError, HealingResult, Severity, Verdict
from .observe.detector import SimpleDetector
from .observe.host import boot_clock
from .observe.nixos import known_good, mark_known_good, running_system
from .permission_handler import NixOSPermissionHandler
from .report import printable
from .store import Store, StoreFault

log = logging.getLogger(__name__)

_QUIET_S: Final = 3600.0
_STUCK_S: Final = 600.0 + max(spec.timeout_s + spec.deadline_s for spec in CATALOGUE.values())  # no act takes longer


def build_engine(settings: Settings, bus: Bus | None = None, store: Store | None = None) -> SimplifiedHealingEngine:
    """An engine for this host with these settings; without a store it keeps its acts in memory."""
    handler = NixOSPermissionHandler(settings.mode, bus=bus, allowed=settings.allowed_units)
    executor = SimpleExecutor(handler)
    detector = SimpleDetector(
        settings.thresholds,
        monitored_units=settings.monitored_units,
        enabled_checks=settings.enabled_checks,
        include_tmpfs=settings.include_tmpfs,
        ignore_mounts=settings.ignore_mounts,
        bus=executor.handler.world.bus,
    )
    return SimplifiedHealingEngine(
        detector=detector,
        executor=executor,
        healing_enabled=settings.healing_enabled,
        dry_run=settings.dry_run,
        verbose=settings.verbose,
        limits=settings.limits,
        policy=settings.policy,
        store=store,
        switch=kill_switch,
    )


def _group(name: str) -> int | None:
    """The id of the group that may ask, None when there is none of that name."""
    try:
        return grp.getgrnam(name).gr_gid if name else None
    except KeyError:
        return None


class Daemon:
    """One engine, run until told to stop. `reread` loads the configuration anew (SIGHUP)."""

    def __init__(self, loaded: Loaded, reread: Callable[[], Loaded]) -> None:
        self.settings = loaded.settings
        self._bus = Bus(clock=time.monotonic)
        self._store = open_store(os.environ)
        self.engine = build_engine(loaded.settings, self._bus, self._store)
        self._control = ControlServer(
            socket_path(os.environ), Desk(self.engine).verbs(), group=_group(loaded.settings.control_group)
        )
        self._reread = reread
        self._turned_at = 0.0
        self._told: set[str] = set()
        self._calm_since = self._time_kept = boot_clock()
        self._running = ""  # the system whose calm is counted

    async def run(self) -> None:
        """Cycle until SIGTERM or SIGINT."""
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        self._turned_at = loop.time()
        handlers: dict[signal.Signals, Callable[[], object]] = {signal.SIGHUP: self.reload}
        if task is not None:
            handlers |= {signal.SIGTERM: task.cancel, signal.SIGINT: task.cancel}
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        watchdog = loop.create_task(self._watchdog(), name="watchdog")
        log.info("watching this host every %g s, %s mode%s", self.settings.interval, self.settings.mode.value,
                 ", in a dry run" if self.settings.dry_run else "")  # fmt: skip
        await self._listen()
        notify("READY=1\nSTATUS=first look")
        try:
            async for results in self.engine.cycles(self.settings.interval):
                self._turned_at = loop.time()
                self._tell(results)
                self._mark_known_good()
                self._keep_time()
        except asyncio.CancelledError:
            log.info("stopping")
        finally:
            notify("STOPPING=1")
            watchdog.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watchdog
            for number in handlers:
                loop.remove_signal_handler(number)
            await self._control.stop()
            await self._bus.close()
            self._store.close()

    async def _listen(self) -> None:
        """Without a control socket the loop still heals."""
        try:
            await self._control.start()
        except (HealingError, OSError) as error:
            log.warning("no control socket: %s", error)

    def reload(self) -> None:
        """Take the configuration as it is now; a bad one is told, and the old one stays."""
        try:
            settings = self._reread().settings
        except ConfigError as error:
            for problem in error.problems:
                log.warning("the configuration stays as it was: %s", problem)
            first = printable(error.problems[0])
            notify(f"STATUS=bad configuration, the old one stays: {first}")
            return
        fresh, old = build_engine(settings, self._bus, self._store), self.engine
        # The running loop keeps its engine, and with it the record of past acts; its parts are exchanged.
        old.detector, old.executor = fresh.detector, fresh.executor
        old.healing_enabled, old.dry_run, old.verbose = fresh.healing_enabled, fresh.dry_run, fresh.verbose
        old.limits, old.policy, old.interval = fresh.limits, fresh.policy, settings.interval
        old.executor.handler.switch = old.stopped
        self.settings = settings
        log.info("the configuration was read again")
        notify("STATUS=configuration read again")

    def _tell(self, results: list[HealingResult]) -> None:
        """Log what is new: a result that was told in the last cycle, with the same words but for figures, is
        not told again; nor is a sensor that has been out of order since."""
        told: set[str] = set()
        for result in results:
            said = (result.error or result.detail).replace("\n", "; ")
            key = re.sub(r"[0-9]+", "#", f"{result.issue.fingerprint()} {result.verdict} {said}")
            told.add(key)
            quiet = result.verdict in {Verdict.REFUSED, Verdict.DRY_RUN}
            if quiet and key in self._told:
                continue
            level = logging.INFO if result.success else logging.WARNING
            fields = {
                "issue": result.issue.fingerprint(),
                "action": result.action_taken,
                "verdict": result.verdict.value,
                "duration_ms": f"{result.duration_ms:.1f}",
            }
            words = (result.issue.description, result.verdict.value, result.action_taken, said)
            log.log(level, "%s: %s (%s) %s", *words, extra={"fields": fields})
        blind = {f"{sensor.name}: {sensor.error}" for sensor in self.engine.last.sensors if not sensor.ok}
        for sensor in sorted(blind - self._told):
            log.warning("not observed: %s", sensor)
        self._told = told | blind
        remaining = sum(not result.success or result.verdict is Verdict.DRY_RUN for result in results)
        status = [f"open issues: {remaining}"] if remaining else []
        status += [f"not observed: {len(blind)}"] if blind else []
        notify(f"STATUS={', '.join(status) or 'all is well'}")

    def _keep_time(self) -> None:
        """Once an hour, so that quiet time counts over a reboot, too."""
        if boot_clock() - self._time_kept < _QUIET_S or self._store.fault:
            return
        self._time_kept = boot_clock()
        with contextlib.suppress(StoreFault):  # told by the store
            self._store.keep_time()

    def _mark_known_good(self) -> None:
        """A generation that ran for a quiet hour is one to go back to."""
        now, engine = boot_clock(), self.engine
        seen = any(sensor.name == "services" and sensor.ok for sensor in engine.last.sensors)
        roots = engine.executor.handler.world.roots
        try:
            running = running_system(roots)
            trouble = any(issue.severity > Severity.LOW for issue in engine.issues)
            if running != self._running or trouble or not seen:
                self._calm_since, self._running = now, running
            if running and now - self._calm_since >= _QUIET_S:
                self._calm_since = now
                if running not in known_good(roots):
                    mark_known_good(roots, running)
                    log.info("%s ran for a quiet hour: it is known to be good", running)
        except (OSError, ValueError) as error:
            log.warning("the generation could not be marked as good: %s", error)

    async def _watchdog(self) -> None:
        """A sign of life at half the wanted interval, as long as the loop really turns."""
        every = watchdog_seconds()
        loop = asyncio.get_running_loop()
        while every is not None:
            if loop.time() - self._turned_at < self.engine.interval + _STUCK_S:
                notify("WATCHDOG=1")
            await asyncio.sleep(every / 2)
