"""What is open, and how sure: samples, hysteresis, what cannot be seen, what comes and goes."""

from __future__ import annotations

from typing import Any

import pytest

from luminous_nix.self_healing.decide.incidents import FLIPS_S, LOOKS, Flip, Incident, Incidents
from luminous_nix.self_healing.models import Issue, IssueType, Severity, Snapshot

HIGH = Severity.HIGH
THRESHOLDS = {
    "cpu_percent": 80.0, "memory_percent": 80.0, "swap_percent": 80.0, "load_average": 10.0, "disk_percent": 80.0,
    "pressure_percent": 50.0,
}  # fmt: skip


def level(value: float = 90.0, component: str = "memory", **more: Any) -> Issue:
    return Issue(IssueType.RESOURCE, HIGH, f"{component} is high", component, value, 80.0, **more)


def unit(name: str = "nginx", kind: str = "unit_failed") -> Issue:
    return Issue(IssueType.SERVICE, HIGH, f"{name} failed", name, 0.0, 1.0, kind=kind)


def system(kind: str) -> Issue:
    return Issue(IssueType.SYSTEM, HIGH, "the host", "system", kind=kind)


def saw(values: dict[str, float] | None = None, *blind: str) -> Snapshot:
    looks = [(name, "", 1) for name in ("memory", "services", "pressure", "disk") if name not in blind]
    return Snapshot(values or {}, looks=(*looks, *((name, "it cannot be read", 1) for name in blind)))


class Watch:
    """Looks at given times, one after the other."""

    def __init__(self, **parts: Any) -> None:
        self.incidents = Incidents(**parts)
        self.now = 1000.0

    def look(self, *issues: Issue, values: dict[str, float] | None = None, blind: tuple[str, ...] = ()) -> int:
        self.now += 10.0
        return self.incidents.note(saw(values, *blind), issues, self.now, THRESHOLDS)

    def one(self, issue: Issue) -> Incident:
        return self.incidents[issue.fingerprint()]


def test_an_incident_opens_once_and_keeps_the_newest_look() -> None:
    watch = Watch()
    assert watch.look(level(90.0)) == 1
    assert watch.look(level(91.0), unit()) == 1
    incident = watch.one(level())
    assert (incident.opened, incident.issue.metric_value, incident.confirming) == (1010.0, 91.0, 2)
    assert [one.issue.component for one in watch.incidents.open] == ["memory", "nginx"]
    assert watch.incidents.get("resource/cpu/-") is None
    assert watch.incidents.get(unit().fingerprint()) is watch.one(unit())


CLOSES: dict[str, tuple[Issue, dict[str, float], tuple[str, ...], bool | None]] = {
    "a level below its exit": (level(), {"memory": 71.9}, (), True),
    "a level just at its exit": (level(), {"memory": 72.0}, (), False),
    "a level below the threshold only": (level(), {"memory": 79.0}, (), False),
    "a level that cannot be read": (level(), {}, ("memory",), None),
    "swap, whose sensor is that of memory, is not read": (level(component="swap"), {}, ("memory",), None),
    "a level whose check was switched off": (level(component="cpu"), {}, (), True),
    "a filesystem that was unmounted": (level(component="disk:/mnt", metrics={"mount": "/mnt"}), {}, (), True),
    "a filesystem, and no disk can be read": (
        level(component="disk:/mnt", metrics={"mount": "/mnt"}), {}, ("disk",), None),
    "a filesystem that has room again": (
        level(component="disk:/mnt", metrics={"mount": "/mnt"}), {"disk:/mnt": 10.0, "disk:/": 95.0}, (), True),
    "inodes are no bytes": (
        level(component="disk", kind="inodes", metrics={"mount": "/"}), {"disk:/": 9.0, "inodes:/": 79.0}, (), False),
    "another sensor is blind": (level(), {"memory": 10.0}, ("disk", "services"), True),
    "a unit that is no longer told": (unit(), {}, (), True),
    "no unit can be seen": (unit(), {}, ("services",), None),
    "this unit cannot be seen": (unit(), {}, ("unit:nginx.service",), None),
    "this socket cannot be seen": (unit("x.socket"), {}, ("unit:x.socket",), None),
    "another unit cannot be seen": (unit(), {}, ("unit:apache.service",), True),
    "pressure is over": (system("pressure"), {}, (), True),
    "pressure cannot be read": (system("pressure"), {}, ("pressure",), None),
    "pressure is read and others are not": (system("pressure"), {}, ("disk", "services"), True),
    "a shared cause, and no unit can be seen": (system("shared_cause"), {}, ("services",), None),
    "a shared cause is over": (system("shared_cause"), {}, ("pressure",), True),
    "the host is well again": (system("health"), {}, (), True),
}  # fmt: skip


@pytest.mark.parametrize(("issue", "values", "blind", "over"), CLOSES.values(), ids=CLOSES.keys())
def test_what_closes_an_incident(
    issue: Issue, values: dict[str, float], blind: tuple[str, ...], over: bool | None
) -> None:
    """None: it cannot be told, and so it stays open, and the look says neither yes nor no."""
    watch = Watch()
    watch.look(issue)
    assert watch.look(values=values, blind=blind) == 0
    incident = watch.one(issue)
    assert incident.open is not bool(over)
    assert incident.seen[-1] is (None if over is None else False)
    assert len(incident.flips) == (2 if over else 1)


def test_the_exit_is_of_the_threshold_of_now() -> None:
    watch = Watch()
    watch.look(level(90.0))
    watch.incidents.note(saw({"memory": 85.0}), (), 1020.0, {**THRESHOLDS, "memory_percent": 99.0})
    assert not watch.one(level()).open


def test_what_opens_again_is_new_and_remembers_how_often_it_came_and_went() -> None:
    watch = Watch()
    watch.look(level())
    watch.look(values={"memory": 10.0})
    watch.one(level()).heal = "the record of then"
    assert watch.look(level(95.0)) == 1
    again = watch.one(level())
    assert (again.opened, again.confirming, again.heal) == (1030.0, 1, "")
    assert again.recent_flips(1030.0) == 3
    assert again.recent_flips(1010.0 + FLIPS_S - 0.1) == 3
    assert again.recent_flips(1010.0 + FLIPS_S) == 2


def test_flapping_is_of_the_subject_whatever_the_kind_of_trouble() -> None:
    watch = Watch()
    watch.look(unit(kind="unit_failed"))
    watch.look(unit(kind="crash_loop"))
    watch.look(unit(kind="unit_failed"))
    assert watch.one(unit(kind="unit_failed")).recent_flips(watch.now) == 5
    assert [(flip.subject, flip.at) for flip in watch.incidents.fresh] == [
        ("service/nginx", at) for at in (1010.0, 1020.0, 1020.0, 1030.0, 1030.0)
    ]


def test_what_an_earlier_run_saw_come_and_go_counts_on() -> None:
    watch = Watch(flips=[Flip("resource/memory", 900.0, opened=False), Flip("resource/memory", 950.0, opened=True)])
    watch.look(level())  # it was there before this run began: that is no change
    assert watch.one(level()).recent_flips(watch.now) == 2
    assert watch.incidents.fresh == []


def test_what_went_or_came_between_two_runs_is_a_change() -> None:
    came = Watch(flips=[Flip("resource/memory", 950.0, opened=False)])
    came.look(level())
    assert came.one(level()).recent_flips(came.now) == 2
    went = Watch(flips=[Flip("resource/memory", 950.0, opened=True)])
    went.look()
    went.look(level())
    assert went.one(level()).recent_flips(went.now) == 3


def test_a_closed_incident_is_forgotten_after_ten_calm_minutes_and_not_before() -> None:
    watch = Watch()
    watch.look(level())
    watch.look(values={"memory": 10.0})
    closed = watch.now
    for at, known in ((closed + FLIPS_S - 1.0, True), (closed + FLIPS_S, False)):
        watch.incidents.note(saw(), (), at, THRESHOLDS)
        assert (watch.incidents.get(level().fingerprint()) is not None) is known
    assert watch.incidents.open == []


@pytest.mark.parametrize(
    ("looks", "confirming"),
    [("yyy", 3), ("yny", 2), ("y?y?y", 3), ("yyyyyyy", LOOKS), ("ynnnnn", 0), ("?" * 3, 0), ("yyynnnyy", 2)],
)
def test_how_many_of_the_last_looks_show_it(looks: str, confirming: int) -> None:
    incident = Incident(level(), 0.0)
    incident.seen.extend({"y": True, "n": False, "?": None}[look] for look in looks)
    assert incident.confirming == confirming


@pytest.mark.parametrize(
    ("values", "falls"),
    [([], False), ([90.0], False), ([90.0, 85.0], True), ([100.0, 95.0], False), ([100.0, 94.9], True),
     ([50.0, 90.0, 89.0], False), ([100.0, 60.0, 60.0], False), ([85.0, 90.0], False), ([0.0, 0.0], False)],
    ids=str,
)  # fmt: skip
def test_a_level_recovers_when_it_fell_by_more_than_a_twentieth_since_the_look_before(
    values: list[float], falls: bool
) -> None:
    incident = Incident(level(), 0.0)
    incident.values.extend(values)
    assert incident.recovering is falls


def test_a_level_that_is_open_and_no_issue_is_measured_on() -> None:
    watch = Watch()
    watch.look(level(100.0))
    watch.look(values={"memory": 78.0})
    assert watch.one(level()).open
    assert watch.one(level()).recovering
    watch.look(blind=("memory",))
    assert list(watch.one(level()).values) == [100.0, 78.0]


def test_samples_from_before_an_act_say_nothing_about_what_is_after_it() -> None:
    watch = Watch()
    for value in (99.0, 90.0):
        watch.look(level(value))
    incident = watch.one(level())
    incident.acted()
    assert (incident.confirming, incident.recovering, incident.open) == (0, False, True)
    watch.look(level(98.0))
    assert incident.confirming == 1


def test_what_was_there_before_we_started_did_not_come_just_now() -> None:
    watch = Watch(flips=[Flip("resource/memory", 900.0, opened=False), Flip("resource/memory", 950.0, opened=True)])
    watch.look(level(), unit())
    assert watch.one(level()).recent_flips(watch.now) == 2
    assert watch.incidents.fresh == [Flip("service/nginx", 1010.0, opened=True)]  # of which no earlier run knew


def test_the_subjects_that_are_remembered_are_bounded() -> None:
    watch = Watch()
    for number in range(400):
        watch.now += FLIPS_S  # each is long over when the next comes
        watch.look(unit(f"u{number}"))
    assert len(watch.incidents._flips) <= 258
    assert len(watch.incidents.fresh) <= 258
    assert watch.one(unit("u399")).recent_flips(watch.now) == 1
