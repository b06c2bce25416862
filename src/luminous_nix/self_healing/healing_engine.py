"""The loop: observe, decide, act, look again. Nothing else lives here.

An act counts as a success only when the reading that showed the trouble recovered within the action's
deadline; what the act itself answered is not a verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from .act.executor import SimpleExecutor
from .decide.actions import PLUGIN, specify, target_of
from .decide.gates import (
    Facts,
    Question,
    first_refusal,
)
from .decide.incidents import FLIPS_S, Incidents
from .decide.judge import health_score
from .decide.limits import Limits, Request
from .decide.policy import Policy
from .decide.resolver import SimpleResolver
from .heal.attempt import Bench, attempt, with_hint
from .heal.book import WATCHED, Book
from .heal.climb import Ask, climb
from .heal.reconcile import reconcile
from .heal.records import HealingRecord, Rung
from .home import kill_switch, open_store
from .models import (
    Action,
    ActionRefused,
    HealingResult,
    HostState,
    Issue,
    IssueType,
    Severity,
    Snapshot,
    Verdict,
)
from .observe.detector import SimpleDetector
from .observe.host import boot_clock, read_host, time_asleep
from .report import issue_data
from .store import Store, StoreFault

__all__ = ["Issue", "IssueType", "SelfHealingEngine", "Severity", "SimplifiedHealingEngine"]
__all__ += ["create_self_healing_engine", "quick_heal"]

log = logging.getLogger(__name__)

DRY: Final = "[DRY RUN] "


_GOOD: Final = frozenset({Verdict.HEALED, Verdict.RECOVERED_BY_ITSELF})
_MISSED: Final = frozenset({Verdict.FAILED, Verdict.NO_EFFECT, Verdict.WORSE})


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
        policy: Policy | None = None,
        store: Store | None = None,
        switch: Callable[[], str] = kill_switch,
        host: Callable[[], Awaitable[HostState]] | None = None,
        clock: Callable[[], float] = boot_clock,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        suspended: Callable[[], float] = time_asleep,
        wall: Callable[[], datetime] = datetime.now,
        ids: Callable[[], str] = lambda: secrets.token_hex(6),
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
        self.policy = policy or Policy()
        self._switch = switch
        self.executor.handler.switch = self.stopped
        world = self.executor.handler.world
        self.host_state = host or (lambda: read_host(world.bus, world.roots))
        self._suspended, self._asleep = suspended, suspended()
        self._wall = wall
        self._book = Book(self.store, ids, wall)
        self._resumed_at = self._book.woke(self._asleep)
        self._acting = asyncio.Lock()
        self.incidents = Incidents() if self.store.fault else Incidents(self.store.flips(self.store.now() - FLIPS_S))
        self.issues: list[Issue] = []  # of the newest look, which was at:
        self._health = 100
        self._looked_at = self.store.now()
        self._stops: list[asyncio.Event] = []
        self._rehearsed: tuple[Ask, Facts] | None = None  # who asked for a dry run last, and what held then
        self.last = Snapshot({})  # the newest look
        self._counts = {"detected": 0, "resolved": 0, "failed": 0}
        self._last_check: datetime | None = None

    async def detect_and_heal(self) -> list[HealingResult]:
        """One cycle: look, and heal what may be healed by itself. Returns a result for every issue."""
        _, issues = await self.look()
        if not self.dry_run:
            self._book.note_flips(self.incidents, self._looked_at)
            self._book.note_sleep(self._asleep, self._resumed_at)
            self._book.withdraw(self.incidents)
        results, ask = [], Ask(automatic=True)
        for issue in issues:
            results.append(await self._healed(issue, ask))
            if results[-1].actions_taken and not self.dry_run:
                await self.refresh()  # the next one is decided on what the host is like now
        return results

    async def look(self) -> tuple[Snapshot, list[Issue]]:
        """Read the host once and take note of what is new."""
        snapshot, issues = await self.refresh()
        now = self._looked_at
        if (asleep := self._suspended()) > self._asleep + 1.0:
            self._resumed_at = now
        self._asleep = asleep
        self._counts["detected"] += self.incidents.note(snapshot, issues, now, self.detector.thresholds)
        self._book.settle(self.incidents, self.limits)
        self._last_check = self._wall()  # shown to people, decides nothing
        self._tell("looked: %d issues, health %d", len(issues), self._health)
        return snapshot, issues

    async def refresh(self) -> tuple[Snapshot, list[Issue]]:
        self.store.retry()
        snapshot = self.last = await self.detector.observe()
        self.issues = self.detector.find(snapshot)
        self._health = health_score(self.issues)
        self._looked_at = self.store.now()
        return snapshot, self.issues

    async def heal_issue(self, issue: Issue) -> HealingResult:
        """Heal one issue now, within the limits; a person's or a program's request. It raises nothing."""
        return await self._healed(issue, Ask(automatic=False))

    async def confirm(self, record: HealingRecord) -> HealingResult:
        """Take the rung that a record asks for, with a person's word. It raises nothing."""
        return await self._healed(record.issue, Ask(automatic=False, confirmed=record.asks, record=record))

    async def _healed(self, issue: Issue, ask: Ask) -> HealingResult:
        started = time.perf_counter()
        async with self._acting:
            try:
                result = await self._heal(issue, ask)
            except Exception as error:  # one heal must never end the loop
                log.exception("healing %s went wrong", issue.description)
                said = f"an error of this program: {error!r:.300}"
                result = HealingResult(issue, "none", False, said, verdict=Verdict.FAILED, detail=said)
        self._counts["resolved"] += result.verdict is Verdict.HEALED
        self._counts["failed"] += result.verdict in _MISSED
        took = (time.perf_counter() - started) * 1e3
        self._tell("%s: %s %s %s", issue.description, result.verdict.value, result.action_taken, result.error or "")
        return replace(result, duration_ms=took)

    async def heal_issues_batch(self, issues: Iterable[Issue]) -> list[HealingResult]:
        """Heal several, worst first, one after the other; results in that order."""
        ask = Ask(automatic=False)
        return [await self._healed(issue, ask) for issue in sorted(issues, key=lambda issue: -issue.severity)]

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

    async def settle_the_past(self) -> None:
        """What was under way when an earlier run ended is looked at and written down."""
        try:
            if not self.dry_run and not self.store.fault and self.store.unfinished():
                with self.store.exclusive():
                    await reconcile(self.store, self.detector, self.executor)
        except StoreFault as error:
            log.warning("what was under way before cannot be settled yet: %s", error.message)

    async def _turn(self, stop: asyncio.Event) -> AsyncIterator[list[HealingResult]]:
        await self.settle_the_past()
        try:
            while not stop.is_set():
                async with self._looking_on():
                    results = await self.detect_and_heal()
                yield results
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(self.interval, max(1.0, self._book.due()))):
                        await stop.wait()
        finally:
            self._stops = [event for event in self._stops if event is not stop]

    @contextlib.asynccontextmanager
    async def _looking_on(self) -> AsyncIterator[None]:
        """An act may take half an hour: what else happens is noticed meanwhile, and answered after it."""

        async def look() -> None:
            while True:
                await asyncio.sleep(self.interval)
                await self.look()

        task = asyncio.create_task(look(), name="looking on")
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

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

    async def _heal(self, issue: Issue, ask: Ask) -> HealingResult:
        issue = self.detector.diagnose(issue)
        try:
            rungs = (ask.confirmed,) if ask.confirmed else self.resolver.climb(issue)
        except Exception as error:
            log.warning("the resolver failed on %s", issue.description, exc_info=True)
            return self._refused(issue, f"the resolver failed: {error}")
        if not rungs:
            if not self.dry_run:
                self._book.watched(issue, self.incidents.get(issue.fingerprint()))
            return self._refused(issue, WATCHED)
        if self.dry_run:
            return await self._rehearse(issue, rungs, ask)
        host = await self.host_state()
        try:
            with self.store.exclusive():
                await reconcile(self.store, self.detector, self.executor)
                story = await self._recorded(issue, rungs, ask, host)
        except ActionRefused as error:
            return self._refused(issue, with_hint(error.message, error.hint))
        except StoreFault as error:
            said, verdict = with_hint(error.message, error.hint), Verdict.FAILED if error.acted else Verdict.REFUSED
            return HealingResult(issue, "none", False, said, verdict=verdict, detail=said)
        verdict = Verdict(story.verdict)
        good = verdict in _GOOD
        said = "\n".join(story.told)
        return HealingResult(issue, ", ".join(story.taken) or "none", good, None if good else said, verdict=verdict,
                             actions_taken=story.taken, detail=said, record=story.id)  # fmt: skip

    async def _recorded(self, issue: Issue, rungs: tuple[Action, ...], ask: Ask, host: HostState) -> HealingRecord:
        """Climb, and keep the record. Raises ActionRefused for a word that came too late, StoreFault."""
        incident = self.incidents.get(issue.fingerprint())
        asked = ask.record
        start = self._book.confirmed(asked.id) if asked else self._book.open(issue, incident, automatic=ask.automatic)
        if asked and not self._same_cause(issue):
            raise ActionRefused("the cause is another by now", "a fresh look asks anew")
        story = await climb(self, start, rungs, ask, host)
        if asked and story.verdict == Verdict.REFUSED and len(story.taken) == len(start.taken):  # it stays open
            story = replace(story, asks=asked.asks, asks_until=asked.asks_until)
        try:
            self._book.keep(story, incident, self.incidents)
        except StoreFault as error:
            error.acted = bool(story.taken)
            raise
        return story

    def _same_cause(self, issue: Issue) -> bool:
        """Whether the unit that a record blames is still the one that stands out."""
        blamed = issue.metrics.get("unit")
        plain = replace(issue, metrics={key: value for key, value in issue.metrics.items() if key != "unit"})
        return blamed is None or self.detector.diagnose(plain).metrics.get("unit") == blamed

    async def _rehearse(self, issue: Issue, rungs: tuple[Action, ...], ask: Ask) -> HealingResult:
        """Say what would be done; nothing is spent and nothing is touched."""
        answers = [(rung, await self.executor.execute(rung, dry_run=True)) for rung in rungs]
        action, first = answers[0]
        if not first.success:
            return self._refused(issue, f"{action.name}: {with_hint(first.error, first.suggestion)}")
        told, would_act = [], False
        if self._rehearsed is None or self._rehearsed[0] is not ask:  # nothing is touched: one look serves them all
            self._rehearsed = ask, self.facts(await self.host_state())
        facts = self._rehearsed[1]
        for rung, answer in answers:
            told.append(f"{rung.name}: {answer.output or answer.error}")
            if not answer.success:  # not in the catalogue, or with wrong arguments
                continue
            if denied := first_refusal(self.question(issue, rung, ask, ""), facts):
                told.append(f"{rung.name}: now refused: {denied.told}")
            would_act |= not answer.refused and denied is None
        return HealingResult(
            issue, DRY + action.name, True, verdict=Verdict.DRY_RUN, actions_taken=[action.name],
            detail="\n".join(told), would_act=would_act,
        )  # fmt: skip

    async def take(self, story: HealingRecord, question: Question, facts: Facts, before: str) -> tuple[Rung, Verdict]:
        bench = Bench(self.store, self.detector, self.executor, self._clock, self._sleep)
        try:
            return await attempt(bench, story, question, facts, before)
        except StoreFault as error:
            error.acted = error.acted or bool(story.taken)
            raise

    def question(self, issue: Issue, rung: Action, ask: Ask, incident: str) -> Question:
        """Raises ActionRefused when the rung is not in the catalogue, or its arguments are wrong."""
        spec, arguments = specify(self.executor.handler.known(rung))
        if spec.name == PLUGIN:
            arguments.setdefault("issue", issue_data(issue))
        request = Request(target_of(issue, arguments), spec.name, incident, issue.subject(), ask.automatic)
        known = self.incidents.get(issue.fingerprint())
        return Question(issue, spec, arguments, request, known, ask.confirmed is not None)

    def facts(self, host: HostState) -> Facts:
        store, now = self.store, self.store.now()
        fault = store.fault
        return Facts(
            now, self.limits, self.policy, [] if fault else store.acts(), {} if fault else store.resets,
            frozenset() if fault else store.latches, fault, store.remedy,
            self.stopped(), host, self._clock(), now - self._resumed_at, now - self._looked_at, 2 * self.interval,
            self.last.values, self.issues, self._health, () if fault else store.silences(),
            self.maintenance(),
        )  # fmt: skip

    def maintenance(self) -> str:
        if not self.policy.maintenance:
            return ""
        now = self._wall()
        return self.policy.maintained(now.weekday(), 60 * now.hour + now.minute)

    def stopped(self) -> str:
        """Why nothing may act now: the kill switch, a pause, healing switched off; else empty."""
        if not self.healing_enabled:
            return "healing is switched off (healing_enabled)"
        if why := self._switch():
            return why
        paused = "" if self.store.fault else self.store.paused
        return f"paused: {paused} (`luminous-healing resume` ends it)" if paused else ""

    def _refused(self, issue: Issue, why: str) -> HealingResult:
        return HealingResult(issue, "none", success=False, error=why, verdict=Verdict.REFUSED)

    def _tell(self, text: str, *values: object) -> None:
        log.log(logging.INFO if self.verbose else logging.DEBUG, text, *values)


SelfHealingEngine = SimplifiedHealingEngine


def create_self_healing_engine(dry_run: bool = False, verbose: bool = False) -> SimplifiedHealingEngine:
    """An engine for this host with the defaults of the specification: its limits and its lock are the host's (or
    this user's), as are the acts that it remembers. A dry run opens no store."""
    store = None if dry_run else open_store(os.environ)
    return SimplifiedHealingEngine(dry_run=dry_run, verbose=verbose, store=store)


async def quick_heal(dry_run: bool = True) -> list[HealingResult]:
    """One cycle on this host; in a dry run unless told otherwise."""
    return await create_self_healing_engine(dry_run=dry_run).detect_and_heal()
