"""Which unit holds the memory: a tree of cgroups as files, and what the detector makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from luminous_nix.self_healing.models import Issue, IssueType, Severity
from luminous_nix.self_healing.observe.detector import SimpleDetector
from luminous_nix.self_healing.observe.diagnosis import Cgroups, Culprit, cgroup_root, memory_culprit, memory_total
from tests.unit.host import FakeHost, no_bus

TOTAL = 1000 << 20
MIB = 1 << 20


def tree(host: FakeHost, place: str = "", /, **anon: int | str) -> Path:
    """A cgroup v2 tree with so many MiB of each service; a text stands as it is."""
    root = host.roots.sys / "fs/cgroup" / place
    host.write(root / "cgroup.controllers", "memory\n")
    (root / "system.slice").mkdir(parents=True)
    for name, size in anon.items():
        text = f"anon {size * MIB}\nfile 1\n" if isinstance(size, int) else size
        host.write(root / "system.slice" / f"{name.replace('_', '-')}.service" / "memory.stat", text)
    return root


@pytest.mark.parametrize(
    ("anon", "unit"),
    [
        pytest.param({"leaky": 400, "other": 200}, "leaky", id="twice what the next one holds"),
        pytest.param({"leaky": 399, "other": 200}, None, id="hardly more than the next one"),
        pytest.param({"leaky": 200}, "leaky", id="a fifth of the memory, alone"),
        pytest.param({"leaky": 199}, None, id="less than a fifth"),
        pytest.param({"other": 200, "leaky": 500, "third": 100}, "leaky", id="in whatever order they are found"),
        pytest.param({"dbus": 500, "other": 10}, None, id="a protected one is never named"),
        pytest.param({"systemd_journald": 500, "leaky": 220}, None, id="nor is the next one in its place"),
        pytest.param({}, None, id="no service"),
        pytest.param({"leaky": 400, "other": ""}, "leaky", id="an empty file"),
        pytest.param({"leaky": 400, "other": "anon\n"}, "leaky", id="half a line"),
        pytest.param({"leaky": 400, "other": "anon -5\n"}, "leaky", id="no figure"),
        pytest.param({"leaky": 400, "other": "file 999999999999\n"}, "leaky", id="another first line"),
        pytest.param({"leaky": "anon 400 MiB\n"}, None, id="a unit of measure"),
    ],
)
def test_the_service_that_holds_the_memory(host: FakeHost, anon: dict[str, int | str], unit: str | None) -> None:
    tree(host, "", **anon)
    found = memory_culprit(host.roots, TOTAL)
    assert (found and found.unit) == (unit and f"{unit}.service")


def test_its_figure_is_told_in_bytes(host: FakeHost) -> None:
    tree(host, leaky=400)
    assert memory_culprit(host.roots, TOTAL) == Culprit("leaky.service", 400 * MIB)


def test_what_is_no_service_is_not_looked_at(host: FakeHost) -> None:
    root = tree(host, leaky=300)
    host.write(root / "system.slice/big.scope/memory.stat", f"anon {900 * MIB}\n")
    host.write(root / "user.slice/big.service/memory.stat", f"anon {900 * MIB}\n")
    (root / "system.slice/ended.service").mkdir()  # without a memory controller
    found = memory_culprit(host.roots, TOTAL)
    assert found is not None
    assert found.unit == "leaky.service"


@pytest.mark.parametrize("place", ["", "unified"], ids=["alone", "beside"])
def test_the_tree_is_found_alone_or_beside_the_older_one(host: FakeHost, place: str) -> None:
    assert cgroup_root(host.roots) is None
    assert memory_culprit(host.roots, TOTAL) is None
    root = tree(host, place, leaky=400)
    assert cgroup_root(host.roots) == root
    assert memory_culprit(host.roots, TOTAL) is not None


def test_the_tree_is_remembered_once_it_is_there(host: FakeHost) -> None:
    cgroups = Cgroups(host.roots)
    assert cgroups.root() is None
    root = tree(host)
    assert cgroups.root() == root
    (root / "cgroup.controllers").unlink()
    assert cgroups.root() == root


def test_a_slice_that_is_not_there_names_nobody(host: FakeHost) -> None:
    root = tree(host)
    (root / "system.slice").rmdir()
    assert memory_culprit(host.roots, TOTAL) is None


def test_so_many_services_are_looked_at_and_no_more(host: FakeHost) -> None:
    tree(host, "", **{f"s{number}": 1 for number in range(600)})
    read: list[str] = []

    class Counting(type(host.root)):  # type: ignore[misc]
        def read_text(self, *arguments: str) -> str:
            read.append(str(self))
            return str(super().read_text(*arguments))

    memory_culprit(replace(host.roots, sys=Counting(host.roots.sys)), TOTAL)
    assert len(read) == 512


# -- as the detector tells it -----------------------------------------------------------------------------------


def issue(component: str = "memory", **metrics: object) -> Issue:
    return Issue(IssueType.RESOURCE, Severity.HIGH, "x", component, 97.0, 85.0, metrics=metrics, cause="before")


@pytest.fixture
def detector(host: FakeHost) -> SimpleDetector:
    tree(host, leaky=400)  # of a host with 977 MiB
    return SimpleDetector(roots=host.roots, bus=no_bus())


@pytest.mark.parametrize("component", ["memory", "swap"])
def test_an_issue_of_memory_names_the_service_with_its_figure(detector: SimpleDetector, component: str) -> None:
    found = detector.diagnose(issue(component, seen=1))
    assert found.metrics == {"seen": 1, "unit": "leaky.service", "unit_bytes": 400 * MIB, "running": True}
    assert found.cause == "leaky.service holds 400 MiB of memory"
    assert found.fingerprint() == issue(component).fingerprint()


@pytest.mark.parametrize("component", ["cpu", "disk", "load", "nginx"])
def test_another_issue_is_left_as_it_is(detector: SimpleDetector, component: str) -> None:
    before = issue(component)
    assert detector.diagnose(before) is before


def test_a_diagnosis_is_not_made_twice(detector: SimpleDetector) -> None:
    before = issue(unit="other.service")
    assert detector.diagnose(before) is before


def test_where_nobody_stands_out_the_issue_stays_as_it_is(host: FakeHost) -> None:
    tree(host, a=300, b=300)
    before = issue()
    assert SimpleDetector(roots=host.roots, bus=no_bus()).diagnose(before) is before


@pytest.mark.parametrize("text", [None, "", "MemTotal:\n", "MemTotal: much kB\n", "\x80\n"])
def test_without_the_hosts_memory_nobody_has_a_share_of_it(host: FakeHost, text: str | None) -> None:
    tree(host, leaky=400)
    meminfo = host.roots.proc / "meminfo"
    meminfo.unlink() if text is None else meminfo.write_text(text, "latin-1")
    assert memory_total(host.roots) == 1 << 80
    before = issue()
    assert SimpleDetector(roots=host.roots, bus=no_bus()).diagnose(before) is before


def test_the_hosts_memory_in_bytes(host: FakeHost) -> None:
    assert memory_total(host.roots) == 1_000_000 << 10
