"""After an end in the middle of an act: look at what the host shows, write it down, and never act again blindly."""

from __future__ import annotations

import logging
from dataclasses import replace

from ..act.executor import SimpleExecutor
from ..decide.limits import Act
from ..models import Verdict
from ..observe.detector import SimpleDetector
from ..store import Store
from .attempt import set_back
from .records import HealingRecord
from .verify import look_at

log = logging.getLogger(__name__)


async def reconcile(store: Store, detector: SimpleDetector, executor: SimpleExecutor) -> int:
    """Close every act whose outcome was never written; whoever calls holds the store's lock. Returns how many.

    They count against the limits as acts without a verified effect: whether they happened is not known. A knob
    that still stands as it was about to be set is set back, because nobody measured whether it helped.
    Raises StoreFault.
    """
    unfinished = store.unfinished()
    for number, act in unfinished:
        try:
            record = await _told(store, detector, executor, act)
        except Exception:  # whatever its record is like: the act is closed, and others are healed
            log.exception("what became of %s on %s cannot be told", act.action, act.target)
            record = None
        log.warning("%s on %s was under way when the program ended; its outcome is not known", act.action, act.target)
        document = record.document() if record else None
        store.end(number, ended=store.now(), effective=None, document=document)
    return len(unfinished)


async def _told(store: Store, detector: SimpleDetector, executor: SimpleExecutor, act: Act) -> HealingRecord | None:
    """The record of the act, with what can be seen now; None when there is none (it may have been trimmed)."""
    document = store.record(act.incident)
    if document is None:
        return None
    record = HealingRecord.parse(document)
    rungs = record.rungs
    if rungs and rungs[-1].knobs and not rungs[-1].undone:
        rungs = (*rungs[:-1], replace(rungs[-1], undone=await set_back(executor, rungs[-1].knobs)))
    look = await look_at(detector, record.issue)
    note = (
        f"the program ended while {act.action} was under way: whether it was done is not known, "
        f"and it is not repeated; the host shows: {look.said}"
    )
    return replace(record, rungs=rungs, verdict=Verdict.FAILED.value, notes=(*record.notes, note))
