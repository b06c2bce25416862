"""The loop: observe, decide, act, look again. Nothing else lives here.

An act counts as a success only when the reading that showed the trouble recovered within the action's
deadline; what the act itself answered is not a verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from .act.executor import SimpleExecutor
from .decide.actions import specify, target_of
from .decide.limits import Act, Limits, Request, check
from .decide.policy import postponed
from .decide.resolver import SimpleResolver
from .models import (
    Action,
    ActionRefused,
    HealingResult,
    Issue,
    IssueType,
    Severity,
    Snapshot,
    Status,
    Verdict,
)
from .observe.detector import SimpleDetector, health_score
from .records import record
from .store import Store, StoreFault
from .verify import look_at, verify

__all__ = ["Issue", "IssueType", "SelfHealingEngine", "Severity", "SimplifiedHealingEngine"]
__all__ += ["create_self_healing_engine", "quick_heal"]

log = logging.getLogger(__name__)

DRY: Final = "[DRY RUN] "


def boot_clock() -> float:
    """Seconds since boot, suspend included; no wall-clock jump touches it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class SimplifiedHealingEngine:
    """Detects, decides, acts and looks again. Every part and every limit is a constructor argument.

    `healing_enabled`, `dry_run` and `verbose` are read at each act.
    """

    def __init__(
        self,
        *,
        detector: SimpleDetector | None = None,
        resolver: SimpleResolver | None = None,
        executor: SimpleExecutor | None = None,
        healing_enabled: bool = True,
        dry_run: bool = False,
        verbose: bool = False,
        limits: Limits | None = None,
        store: Store | None = None,
        clock: Callable[[], float] = boot_clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.executor = executor or SimpleExecutor()
        self.detector = detector or SimpleDetector(bus=self.executor.handler.world.bus)
        self.resolver = resolver or SimpleResolver()
        self.healing_enabled = healing_enabled
        self.dry_run = dry_run
        self.verbose = verbose
        self.limits = limits or Limits()
        self.interval = 60.0
        self._clock = clock
        self._sleep = sleep
        self.store = store or Store(None, clock=clock, boot_id="")
        self._acting = asyncio.Lock()
        self._incident = ""  # under way now
        self._stops: list[asyncio.Event] = []
        self.last = Snapshot({})  # the newest look
        self._open: frozenset[str] = frozenset()
        self._counts = {"detected": 0, "resolved": 0, "failed": 0}
        self._last_check: datetime | None = None

    async def detect_and_heal(self) -> list[HealingResult]:
        """One cycle: look, and heal what may be healed by itself. Returns a result for every issue."""
        snapshot, issues = await self.look()
        health = health_score(issues)
        return [
            self._refused(issue, why)
            if not self.dry_run and (why := postponed(issue, issues, snapshot.values, health))
            else await self.heal_issue(issue)
            for issue in issues
        ]

    async def look(self) -> tuple[Snapshot, list[Issue]]:
        """Read the host once and count what is new."""
        snapshot = self.last = await self.detector.observe()
        issues = self.detector.find(snapshot)
        found = frozenset(issue.fingerprint() for issue in issues)
        self._counts["detected"] += len(found - self._open)
        self._open = found
        self._last_check = datetime.now()  # noqa: DTZ005  shown to people, decides nothing
        self._tell("looked: %d issues, health %d", len(issues), health_score(issues))
        return snapshot, issues

    async def heal_issue(self, issue: Issue) -> HealingResult:
        """Heal one issue now, within the limits; a person's or a program's request. It raises nothing."""
        started = time.perf_counter()
        async with self._acting:
            try:
                result = await self._heal(issue)
            except Exception as error:  # one heal must never end the loop
                log.exception("healing %s went wrong", issue.description)
                result = self._result(issue, [], Verdict.FAILED, f"an error of this program: {error!r:.300}")
        self._counts["resolved"] += result.verdict is Verdict.HEALED
        self._counts["failed"] += result.verdict in {Verdict.FAILED, Verdict.NO_EFFECT}
        took = (time.perf_counter() - started) * 1e3
        self._tell("%s: %s %s %s", issue.description, result.verdict.value, result.action_taken, result.error or "")
        return replace(result, duration_ms=took)

    async def heal_issues_batch(self, issues: Iterable[Issue]) -> list[HealingResult]:
        """Heal several, worst first, one after the other; results in that order."""
        return [await self.heal_issue(issue) for issue in sorted(issues, key=lambda issue: -issue.severity)]

    def start_monitoring(self, interval: float = 60) -> Coroutine[Any, Any, None]:
        """Await it: a cycle every `interval` seconds until cancelled or `stop()`. Raises ValueError."""
        return self._monitor(self.cycles(interval))

    async def _monitor(self, cycles: AsyncIterator[list[HealingResult]]) -> None:
        async for _ in cycles:
            pass

    def cycles(self, interval: float = 60) -> AsyncIterator[list[HealingResult]]:
        """The same, a list of results per cycle. `self.interval` is read anew before each pause."""
        if type(interval) not in {int, float} or not 0 < interval < float("inf"):
            raise ValueError("the interval must be a number of seconds above 0")
        self.interval = float(interval)
        stop = asyncio.Event()
        self._stops.append(stop)
        return self._turn(stop)

    async def _turn(self, stop: asyncio.Event) -> AsyncIterator[list[HealingResult]]:
        try:
            while not stop.is_set():
                yield await self.detect_and_heal()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self.interval):
                        await stop.wait()
        finally:
            self._stops = [event for event in self._stops if event is not stop]

    def stop(self) -> None:
        """End what `start_monitoring` was called for, after the cycle that runs now."""
        while self._stops:
            self._stops.pop().set()

    def get_metrics(self) -> dict[str, Any]:
        """Counts since the start; `success_rate` is a fraction, 1.0 when nothing was tried."""
        tried = self._counts["resolved"] + self._counts["failed"]
        return {
            "issues_detected": self._counts["detected"],
            "issues_resolved": self._counts["resolved"],
            "issues_failed": self._counts["failed"],
            "last_check": self._last_check,
            "success_rate": self._counts["resolved"] / tried if tried else 1.0,
        }

    def set_threshold(self, metric: str, value: float) -> None:
        """Raises ConfigError for an unknown metric or a value out of range."""
        self.detector.thresholds[metric] = value

    async def _heal(self, issue: Issue) -> HealingResult:
        self._incident = secrets.token_hex(6)
        try:
            rungs = self.resolver.climb(issue)
        except Exception as error:
            log.warning("the resolver failed on %s", issue.description, exc_info=True)
            return self._refused(issue, f"the resolver failed: {error}")
        if not rungs:
            return self._refused(issue, "watched only: nothing is known to help against it safely")
        if self.dry_run:
            return await self._rehearse(issue, rungs)
        try:
            with self.store.exclusive():
                return self._kept(await self._climb(issue, rungs))
        except StoreFault as error:
            return self._refused(issue, _with_hint(error.message, error.hint))

    def _kept(self, result: HealingResult) -> HealingResult:
        """Write the record. An incident that nothing was done about leaves none."""
        if result.actions_taken or result.verdict is Verdict.RECOVERED_BY_ITSELF:
            self.store.keep(record(result, self._incident, self.store.now()))
        return result

    async def _rehearse(self, issue: Issue, rungs: tuple[Action, ...]) -> HealingResult:
        """Say what would be done; nothing is spent and nothing is touched."""
        answers = [(rung, await self.executor.execute(rung, dry_run=True)) for rung in rungs]
        action, first = answers[0]
        if not first.success:
            return self._refused(issue, f"{action.name}: {_with_hint(first.error, first.suggestion)}")
        told, would_act = [], False
        for rung, answer in answers:
            told.append(f"{rung.name}: {answer.output or answer.error}")
            if denied := self._denied(issue, rung):
                told.append(f"{rung.name}: now refused: {denied}")
            would_act |= not answer.refused and not denied
        return HealingResult(
            issue, DRY + action.name, True, verdict=Verdict.DRY_RUN, actions_taken=[action.name],
            detail="\n".join(told), would_act=would_act,
        )  # fmt: skip

    async def _climb(self, issue: Issue, rungs: tuple[Action, ...]) -> HealingResult:
        """Rung by rung, a further one only after the one below was refused or measured to have no effect."""
        taken: list[str] = []
        reasons: list[str] = []
        verdict = Verdict.REFUSED
        for rung in rungs:
            if self.dry_run:  # switched on since the rung below
                reasons.append(f"{rung.name}: a dry run was asked for meanwhile")
                break
            if denied := self._denied(issue, rung):
                reasons.append(f"{rung.name}: {denied}")
                continue
            before = await look_at(self.detector, issue)
            if before.status is not Status.ISSUE:
                if before.status is Status.OK:
                    return self._result(issue, taken, Verdict.RECOVERED_BY_ITSELF, before.said)
                reasons.append(f"{rung.name}: {before.said}; nothing is done on what cannot be seen")
                break
            attempt, said = await self._act(issue, rung)
            reasons.append(f"{rung.name}: {said}")
            if attempt is not Verdict.REFUSED:
                taken.append(rung.name)
                verdict = attempt
            if attempt in {Verdict.HEALED, Verdict.FAILED}:
                break
        return self._result(issue, taken, verdict, "\n".join(reasons))

    def _denied(self, issue: Issue, rung: Action) -> str:
        try:
            spec, arguments = specify(rung)
        except ActionRefused as error:
            return _with_hint(error.message, error.hint)
        if not self.healing_enabled:
            return "healing is switched off (healing_enabled)"
        if issue.severity is Severity.LOW:
            return "watched only: its severity is LOW"
        if not spec.auto:
            return f"it is {spec.risk.value} and asks a person first"
        request = Request(target_of(issue, arguments), rung.name, self._incident, issue.fingerprint())
        try:
            denials = check(self.store.acts(), self.limits, request, self.store.now())
        except StoreFault as error:
            return _with_hint(error.message, error.hint)
        return "; ".join(f"{denial.rule}: {denial.reason}; lifts {denial.lifts}" for denial in denials)

    async def _act(self, issue: Issue, rung: Action) -> tuple[Verdict, str]:
        """Keep the intent, act, measure, keep the outcome. Only a refusal gives the budget back: nothing was
        touched. Raises StoreFault when the intent cannot be kept: no record, no act."""
        spec, arguments = specify(rung)
        act = Act(target_of(issue, arguments), rung.name, self._incident, issue.fingerprint(), self.store.now())
        number = self.store.begin(act)
        verdict, said = Verdict.FAILED, "it was broken off"
        try:
            answer = await self.executor.execute(rung)
            if answer.success:
                verdict, said = await verify(self.detector, issue, spec, clock=self._clock, sleep=self._sleep)
            else:
                verdict = Verdict.REFUSED if answer.refused else Verdict.FAILED
                said = _with_hint(answer.error, answer.suggestion)
        finally:
            if verdict is Verdict.REFUSED:
                self.store.forget(number)
            else:
                self.store.end(number, ended=self.store.now(), effective=verdict is Verdict.HEALED)
        return verdict, said

    def _refused(self, issue: Issue, why: str) -> HealingResult:
        return HealingResult(issue, "none", success=False, error=why, verdict=Verdict.REFUSED)

    def _result(self, issue: Issue, taken: list[str], verdict: Verdict, said: str) -> HealingResult:
        good = verdict in {Verdict.HEALED, Verdict.RECOVERED_BY_ITSELF}
        return HealingResult(
            issue, ", ".join(taken) or "none", good, None if good else said,
            verdict=verdict, actions_taken=taken, detail=said,
        )  # fmt: skip

    def _tell(self, text: str, *values: object) -> None:
        log.log(logging.INFO if self.verbose else logging.DEBUG, text, *values)


def _with_hint(message: str | None, hint: str | None) -> str:
    return f"{message} ({hint})" if hint else f"{message}"


SelfHealingEngine = SimplifiedHealingEngine


def create_self_healing_engine(dry_run: bool = False, verbose: bool = False) -> SimplifiedHealingEngine:
    """An engine for this host with the defaults of the specification."""
    return SimplifiedHealingEngine(dry_run=dry_run, verbose=verbose)


async def quick_heal(dry_run: bool = True) -> list[HealingResult]:
    """One cycle on this host; in a dry run unless told otherwise."""
    return await create_self_healing_engine(dry_run=dry_run).detect_and_heal()
