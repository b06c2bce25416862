"""What is open, since when, and how sure we are. [pure: looks and times are arguments]

An incident is one fingerprint for as long as it stays open. It opens when a look shows it, and closes when a
look shows that it is gone: a level only below its exit (a tenth under the threshold, invariant I-7), and
nothing closes while it cannot be seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ..models import Issue, IssueType, Snapshot
from .judge import SHARED, measure, sensor_of, threshold_of

EXIT: Final = 0.9  # of the threshold
LOOKS: Final = 5
FLIPS_S: Final = 600.0
_FLIPS: Final = 16  # remembered
_SUBJECTS: Final = 256  # whose flips are remembered before the old ones are dropped
_FALLING: Final = 0.05  # of the value, from one look to the next


class Flip(NamedTuple):
    """Something about a subject opened, or closed."""

    subject: str
    at: float
    opened: bool


@dataclass(slots=True)
class Incident:
    """`seen` holds the last looks: shown, not shown, not to be seen. `flips` are the times at which anything about
    its subject opened or closed: what fails now in this manner and now in that one flaps, too."""

    issue: Issue
    opened: float
    open: bool = True
    seen: deque[bool | None] = field(default_factory=lambda: deque(maxlen=LOOKS))
    values: deque[float] = field(default_factory=lambda: deque(maxlen=2))
    flips: deque[float] = field(default_factory=lambda: deque(maxlen=_FLIPS))
    heal: str = ""  # id of the record that tells what is refused
    told: tuple[str, ...] = ()  # what that record says
    shut: dict[str, str] = field(default_factory=dict)  # rung → the gate that held it back last
    asked: tuple[str, float] | None = None  # a confirmation that is waited for: record id, until when

    def recent_flips(self, now: float) -> int:
        return sum(now - at < FLIPS_S for at in self.flips)

    def acted(self) -> None:
        """Samples from before an act say nothing about what is after it."""
        self.seen.clear()
        self.values.clear()

    @property
    def confirming(self) -> int:
        return sum(look is True for look in self.seen)

    @property
    def recovering(self) -> bool:
        """A level that fell by more than a twentieth since the look before: wait, and see."""
        return len(self.values) == 2 and self.values[1] < self.values[0] * (1 - _FALLING)


class Incidents:
    """The incidents of this run of the program. A restart counts samples anew, which only waits longer; when
    something came and went is kept."""

    def __init__(self, flips: Iterable[Flip] = ()) -> None:
        """`flips` are those that an earlier run kept."""
        self._known: dict[str, Incident] = {}
        self._flips: dict[str, deque[float]] = {}  # of a subject
        self.fresh: list[Flip] = []  # not kept yet
        self._looked = False
        self._before: dict[str, bool] = {}  # whether the earlier run saw it last as open
        for subject, at, opened in flips:
            self._of(subject).append(at)
            self._before[subject] = opened

    def __getitem__(self, fingerprint: str) -> Incident:
        return self._known[fingerprint]

    def get(self, fingerprint: str) -> Incident | None:
        return self._known.get(fingerprint)

    @property
    def closed(self) -> list[Incident]:
        """Those that are over, as long as they are remembered."""
        return [incident for incident in self._known.values() if not incident.open]

    @property
    def open(self) -> list[Incident]:
        return [incident for incident in self._known.values() if incident.open]

    def note(self, snapshot: Snapshot, issues: Iterable[Issue], now: float, thresholds: Mapping[str, float]) -> int:
        """Take a look in; returns how many incidents it opened."""
        shown = {issue.fingerprint(): issue for issue in issues}
        self.fresh = self.fresh[-_SUBJECTS:]
        opened = 0
        for fingerprint, issue in shown.items():
            incident = self._known.get(fingerprint)
            if incident is None or not incident.open:
                self._known[fingerprint] = incident = self._opened(issue, now)
                opened += 1
            incident.issue = issue
            incident.seen.append(True)
            incident.values.append(issue.metric_value)
        if not self._looked:
            self._go_on({issue.subject() for issue in shown.values()}, now)
        if len(self._known) > len(shown):
            self._look_at_the_rest(shown, snapshot, now, thresholds)
        return opened

    def _look_at_the_rest(
        self, shown: dict[str, Issue], snapshot: Snapshot, now: float, thresholds: Mapping[str, float]
    ) -> None:
        blind = {name for name, error, _ in snapshot.looks if error}
        for fingerprint, incident in list(self._known.items()):
            if fingerprint in shown:
                continue
            if incident.open:
                gone, value = _gone(incident.issue, snapshot, blind, thresholds)
                incident.seen.append(gone if gone is None else False)
                if value is not None:
                    incident.values.append(value)
                if gone:
                    self.close(incident, now)
            elif not incident.recent_flips(now):
                del self._known[fingerprint]

    def close(self, incident: Incident, now: float) -> None:
        """It was measured to be over."""
        if incident.open:
            incident.open = False
            self._flip(incident.issue.subject(), now, opened=False)

    def _opened(self, issue: Issue, now: float) -> Incident:
        subject = issue.subject()
        if self._before.get(subject) and not self._looked:  # it was there before we started: that is no change
            return Incident(issue, now, flips=self._of(subject))
        return Incident(issue, now, flips=self._flip(subject, now, opened=True))

    def _go_on(self, shown: set[str], now: float) -> None:
        """The first look of a run: what was open and is not shown went meanwhile."""
        for subject, opened in self._before.items():
            if opened and subject not in shown:
                self._flip(subject, now, opened=False)
        self._looked = True

    def _flip(self, subject: str, now: float, *, opened: bool) -> deque[float]:
        self.fresh.append(Flip(subject, now, opened))
        if len(self._flips) > _SUBJECTS:
            self._flips = {name: at for name, at in self._flips.items() if at and now - at[-1] < FLIPS_S}
        flips = self._of(subject)
        flips.append(now)
        return flips

    def _of(self, subject: str) -> deque[float]:
        return self._flips.setdefault(subject, deque(maxlen=_FLIPS))


# Which sensors a SYSTEM issue comes from, by its kind: only while these see may it be called over.
_SOURCES: Final[Mapping[str, frozenset[str]]] = {"pressure": frozenset({"pressure"}), SHARED: frozenset({"services"})}


def _gone(
    issue: Issue, snapshot: Snapshot, blind: set[str], thresholds: Mapping[str, float]
) -> tuple[bool | None, float | None]:
    """Whether it is over (None: not to be seen), and the level now. What is no longer there, such as a filesystem
    that was unmounted or a check that was switched off, is over."""
    if issue.type is IssueType.SERVICE:
        name = issue.component
        return (None if blind & {"services", f"unit:{name}", f"unit:{name}.service"} else True), None
    if issue.type is IssueType.SYSTEM:
        return (None if blind & _SOURCES.get(issue.kind, frozenset()) else True), None
    value = measure(snapshot, issue)
    if value is None:
        return (None if sensor_of(issue) in blind else True), None
    key = threshold_of(issue.component)
    return value < (thresholds[key] if key else issue.threshold) * EXIT, value
