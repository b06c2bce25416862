"""observe/nixos.py on real links and files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from luminous_nix.self_healing.models import Roots
from luminous_nix.self_healing.observe.nixos import (
    Generation,
    default_boot,
    default_in,
    interface_version,
    known_good,
    mark_known_good,
    read_generations,
    replace_text,
    rollback_mark,
    rolled_back,
    running_system,
)
from tests.unit.host import FakeHost
from tests.unit.worlds import rooted


@pytest.fixture
def roots(host: FakeHost) -> Roots:
    return rooted(host).roots


def store(roots: Roots, name: str) -> str:
    return str(roots.nix / "store" / name)


def profiles(roots: Roots, links: dict[str, str], system: str = "") -> Path:
    folder = roots.nix / "var/nix/profiles"
    folder.mkdir(parents=True)
    for name, where in links.items():
        (folder / name).symlink_to(where)
    if system:
        (folder / "system").symlink_to(system)
    return folder


def test_a_host_that_is_no_nixos(roots: Roots) -> None:
    assert read_generations(roots) == ()
    assert (running_system(roots), default_boot(roots), known_good(roots)) == ("", 0, ())
    profiles(roots, {})
    assert read_generations(roots) == ()


def test_generations_oldest_first_with_what_they_are(roots: Roots) -> None:
    folder = profiles(roots, {f"system-{n}-link": store(roots, f"x-{n}") for n in (9, 10, 11)}, "system-11-link")
    os.utime(folder / "system-10-link", (5.0, 1234.5), follow_symlinks=False)
    (roots.run / "booted-system").parent.mkdir(parents=True, exist_ok=True)
    (roots.run / "booted-system").symlink_to(store(roots, "x-9"))
    (roots.run / "current-system").symlink_to(store(roots, "x-11"))
    mark_known_good(roots, store(roots, "x-10"))
    nine, ten, eleven = read_generations(roots)
    assert ten == Generation(10, store(roots, "x-10"), 1234.5, current=False, booted=False, known_good=True)
    assert (nine.number, nine.current, nine.booted, nine.known_good) == (9, False, True, False)
    assert (eleven.number, eleven.current, eleven.booted) == (11, True, False)
    assert running_system(roots) == store(roots, "x-11")


def test_what_is_no_generation_is_passed_over(roots: Roots) -> None:
    folder = profiles(
        roots,
        {
            "system-1-link": "/etc/passwd", "system-2-link": "relative", "system-x-link": store(roots, "a"),
            "system-3-link": store(roots, "../../etc"), "system--4-link": store(roots, "b"),
            "system-٣-link": store(roots, "c"), "system-5-link": store(roots, "a/b"),
            "system-6-link": store(roots, ".x"),
            "system-8-link": store(roots, "good"), "system-1234567890-link": store(roots, "d"),
        },
        "elsewhere",
    )  # fmt: skip
    (folder / "system-7-link").mkdir()
    assert [(one.number, one.current) for one in read_generations(roots)] == [(8, False)]


@pytest.mark.parametrize(
    ("lines", "number"),
    [
        (["timeout 3", "default nixos-generation-42.conf", "editor no"], 42),
        (["default nixos-generation-42-specialisation-safe.conf"], 42),
        (["default\tnixos-generation-7"], 7),
        ([], 0),
        (["default @saved"], 0),
        (["default nixos-*"], 0),
        (["#default nixos-generation-1.conf"], 0),
        (["default windows.conf"], 0),
    ],
)
def test_what_the_loader_starts_by_default(lines: list[str], number: int) -> None:
    assert default_in(lines) == number


@pytest.mark.parametrize("place", ["loader/loader.conf", "efi/loader/loader.conf"])
def test_the_file_of_the_loader(host: FakeHost, roots: Roots, place: str) -> None:
    host.write(roots.boot / place, "timeout 1\ndefault nixos-generation-12.conf\n")
    assert default_boot(roots) == 12


def test_the_version_of_the_init(host: FakeHost, roots: Roots) -> None:
    assert interface_version(store(roots, "x")) == ""
    file = host.write(roots.nix / "store/x/init-interface-version", "2\n")
    assert interface_version(store(roots, "x")) == "2"
    file.write_bytes(b"\xff")
    assert interface_version(store(roots, "x")) == ""


# -- what was good -------------------------------------------------------------------------------------------


def test_marks_are_kept_once_and_the_oldest_go(roots: Roots) -> None:
    for number in (*range(120), 50):
        mark_known_good(roots, store(roots, f"x-{number}"))
    found = known_good(roots)
    assert len(found) == 100
    assert (found[0], found[-1]) == (store(roots, "x-20"), store(roots, "x-50"))
    assert found.count(store(roots, "x-50")) == 1
    assert [file.name for file in roots.state.iterdir()] == ["known-good"]
    assert (roots.state / "known-good").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("path", ["", "/etc/passwd", "x", "/nix/store/x\n/nix/store/y", "../x"])
def test_only_a_store_path_is_marked(roots: Roots, path: str) -> None:
    with pytest.raises(ValueError, match="is not in the store"):
        mark_known_good(roots, path)
    with pytest.raises(ValueError):
        mark_known_good(roots, store(roots, "a\n"))
    assert not roots.state.exists()


def good_file(roots: Roots, text: str) -> Path:
    roots.state.mkdir(exist_ok=True)
    file = roots.state / "known-good"
    file.write_text(text.replace("STORE", str(roots.nix / "store")), encoding="utf-8")
    file.chmod(0o600)
    return file


@pytest.mark.parametrize(
    "text",
    ["STORE/a\nrubbish\n", "STORE/a\n\n", "STORE/a b\n", "STORE/é\n", "STORE/../x\n", "STORE/a\nSTORE/\n",
     "STORE/a\n" * 101, "STORE/" + "a" * 70_000, "\0", "STORE/a\r\n/b\n"],
    ids=["line", "blank", "space", "unicode", "up", "no-name", "too-many", "too-long", "nul", "elsewhere"],
)  # fmt: skip
def test_of_a_malformed_file_nothing_is_good(roots: Roots, text: str) -> None:
    good_file(roots, text)
    assert known_good(roots) == ()


def test_a_good_file(roots: Roots) -> None:
    good_file(roots, "STORE/a\nSTORE/b-1.2?x=y+z_\n")
    assert known_good(roots) == (store(roots, "a"), store(roots, "b-1.2?x=y+z_"))


def test_a_file_that_others_could_have_written_says_nothing(roots: Roots) -> None:
    file = good_file(roots, "STORE/a\n")
    assert known_good(roots)
    for mode in (0o620, 0o602, 0o666):
        file.chmod(mode)
        assert known_good(roots) == ()
    file.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(file, 1000, 1000)
        assert known_good(roots) == ()


def test_a_link_or_a_pipe_says_nothing(roots: Roots) -> None:
    file = good_file(roots, "STORE/a\n")
    other = file.rename(file.with_name("other"))
    file.symlink_to(other)
    assert known_good(roots) == ()
    file.unlink()
    os.mkfifo(file)
    assert known_good(roots) == ()


def test_a_mark_replaces_a_link_and_does_not_follow_it(roots: Roots, tmp_path: Path) -> None:
    roots.state.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("mine", encoding="utf-8")
    (roots.state / "known-good").symlink_to(victim)
    mark_known_good(roots, store(roots, "a"))
    assert victim.read_text("utf-8") == "mine"
    assert known_good(roots) == (store(roots, "a"),)


def test_what_cannot_be_replaced_stays(tmp_path: Path) -> None:
    place = tmp_path / "folder"
    place.mkdir()
    (place / "x").mkdir()
    with pytest.raises(OSError):
        replace_text(place / "x", "text")
    assert [file.name for file in place.iterdir()] == ["x"]
    (place / "file").touch()
    with pytest.raises(FileExistsError):
        replace_text(place / "file/x", "text")


def test_the_mark_of_a_rollback(roots: Roots) -> None:
    assert rolled_back(roots) == (0, 0)
    roots.state.mkdir()
    replace_text(rollback_mark(roots), "12 11\n")
    assert rolled_back(roots) == (12, 11)


@pytest.mark.parametrize("text", ["", "12", "a b", "1 2 3", "é"])
def test_a_mark_that_is_rubbish_is_not_no_mark(roots: Roots, text: str) -> None:
    roots.state.mkdir()
    replace_text(rollback_mark(roots), text)
    with pytest.raises(ValueError):
        rolled_back(roots)
