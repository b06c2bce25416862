"""Which record tells of an incident: one for each climb that acted, one for as long as the same gates refuse."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

from ..decide.gates import PASSING
from ..decide.incidents import FLIPS_S, Incident, Incidents
from ..decide.limits import Limits
from ..models import ActionRefused, Issue, Severity, Verdict
from ..store import Store, StoreFault
from .attempt import Lasting
from .records import HealingRecord, Rung, opened

log = logging.getLogger(__name__)

WATCHED: Final = "watched only: nothing is known to help against it safely"


def _reasons(rung: Rung) -> tuple[str, ...]:
    """Why a rung was not taken, without figures: its gates' rules, or what its precheck said."""
    if rung.taken:
        return ()
    return tuple(gate.rule for gate in rung.shut[:1]) or (f"{rung.action}: {re.sub('[0-9]+', '#', rung.said)}",)


class Book:
    """Opens and keeps records in a store."""

    def __init__(self, store: Store, ids: Callable[[], str], wall: Callable[[], datetime]) -> None:
        self._store = store
        self._ids = ids
        self._wall = wall
        self._lasting: list[Lasting] = []  # heals whose deadline has not passed

    def open(self, issue: Issue, incident: Incident | None, *, automatic: bool) -> HealingRecord:
        """A fresh record, or the one that told of refusals so far."""
        identity = (incident.heal if incident else "") or self._ids()
        at, boot = self._store.now(), self._store.boot_id
        return replace(opened(identity, issue, at, self._wall(), automatic=automatic), boot=boot)

    def confirmed(self, identity: str) -> HealingRecord:
        """The record that a person confirmed, as it is now; it no longer asks. Whoever calls holds the lock.

        Raises ActionRefused when it was answered already, or too late, or by a host that restarted since.
        """
        document = self._store.record(identity)
        record = HealingRecord.parse(document) if document else None
        if record is None or record.asks is None:
            raise ActionRefused(f"record {identity} waits for no word any more", "it was answered already")
        if self._store.now() >= record.asks_until or record.boot != self._store.boot_id:
            raise ActionRefused(f"what record {identity} asked for has expired", "a fresh look asks anew")
        record = replace(record, asks=None, notes=(*record.notes, "a person confirmed it"))
        self._store.keep(record.document())
        return record

    def keep(self, story: HealingRecord, incident: Incident | None, incidents: Incidents) -> None:
        """Write it, once for as long as the same gates refuse; what only waits for looks leaves none.

        Raises StoreFault.
        """
        acted = bool(story.taken) or story.verdict == Verdict.RECOVERED_BY_ITSELF
        shut = tuple(why for rung in story.rungs for why in _reasons(rung))
        asked = (story.id, story.asks_until) if story.asks is not None else None
        news = incident is None or incident.told != shut or (asked is not None and incident.asked != asked)
        if acted or (set(shut) - PASSING and news):
            self._store.keep(story.document())
        if story.verdict == Verdict.HEALED:
            self._lasting.append(Lasting(story, self._store.now()))
            if incident is not None:
                incidents.close(incident, self._store.now())
        if incident is not None:
            incident.heal, incident.told = ("", ()) if acted else (story.id, shut)
            if asked is not None:
                incident.asked = asked
            if story.taken:
                incident.acted()
                incident.shut.clear()

    def watched(self, issue: Issue, incident: Incident | None) -> None:
        """Nothing is known to help: the record says so once, for those who ask why nothing is done."""
        if self._store.fault or incident is None or incident.told or issue.severity is Severity.LOW:
            return
        story = replace(self.open(issue, incident, automatic=True), verdict=Verdict.REFUSED.value, notes=(WATCHED,))
        incident.heal, incident.told = story.id, (WATCHED,)
        try:
            self._store.keep(story.document())
        except StoreFault as error:
            log.warning("%s could not be recorded: %s", issue.description, error.message)

    def woke(self, asleep: float) -> float:
        """When the host woke last, as far as an earlier run or we know it. `asleep` is in seconds since boot."""
        kept = None if self._store.fault else self._store.slept()
        if kept is not None and asleep <= kept[0] + 1.0:
            return kept[1]
        return self._store.now() if asleep > 1.0 else float("-inf")

    def note_sleep(self, asleep: float, woke: float) -> None:
        """Remember it over a restart."""
        if self._store.fault or woke == float("-inf") or self._store.slept() == (asleep, woke):
            return
        try:
            self._store.keep_slept(asleep, woke)
        except StoreFault as error:
            log.warning("that the host woke could not be kept: %s", error.message)

    def note_flips(self, incidents: Incidents, looked_at: float) -> None:
        """What came and went is remembered over a restart, and so is what came back after an act."""
        if self._store.fault or not incidents.fresh:
            return
        now = self._store.now()
        try:
            self._store.keep_flips(incidents.fresh, now - FLIPS_S)
            self._store.relapsed(one.issue.subject() for one in incidents.open if one.opened == looked_at)
        except StoreFault as error:
            log.warning("what came and went could not be kept: %s", error.message)
        incidents.fresh.clear()

    def withdraw(self, incidents: Incidents) -> None:
        """Questions about what is over are asked no more."""
        for incident in incidents.closed:
            if incident.asked is None or self._store.fault:
                continue
            document = self._store.record(incident.asked[0])
            incident.asked = None
            record = HealingRecord.parse(document) if document else None
            if record is not None and record.asks is not None:
                notes = (*record.notes, "it was over before anybody answered")
                self._store.keep(replace(record, asks=None, notes=notes).document())

    def due(self) -> float:
        """In how many seconds a verdict waits to become final; infinite when none does."""
        return min((one.until for one in self._lasting), default=float("inf")) - self._store.now()

    def settle(self, incidents: Incidents, limits: Limits) -> None:
        """After a look: verdicts whose deadline has passed are final, and a relapse before that takes one back."""
        self._lasting = [one for one in self._lasting if not one.over(self._store, incidents, limits)]
