"""What root does with what the helper keeps: registers as the helper writes them, whole and not."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from luminous_nix.self_healing import process
from luminous_nix.self_healing.decide.limits import Act
from luminous_nix.self_healing.deploy import keeping
from luminous_nix.self_healing.models import HealingError
from luminous_nix.self_healing.privileged.keys import load_secret, make
from luminous_nix.self_healing.privileged.protocol import Code
from luminous_nix.self_healing.privileged.register import Register
from tests.unit.host import Clock

BOOT = "0b4cc36e-8e0c-4a2a-9d5f-6a1f0d8f6d11"


class Kept:
    """A register of three acts, and its keys."""

    def __init__(self, root: Path) -> None:
        self.path, self.keys = root / "state/register.db", root / "keys"
        make(self.keys)
        self.head = self.write(3)

    def write(self, acts: int, kept_lines: int = 50_000) -> str:
        clock = Clock()
        register = Register(self.path, clock=clock, boot_id=BOOT, audit_key=load_secret(self.keys / "audit"),
                            kept_lines=kept_lines)  # fmt: skip
        assert not register.fault
        for number in range(acts):
            nonce, entry = os.urandom(16).hex(), {"op": "adjust_swappiness", "target": "system", "uid": 990}
            act = Act("system", "adjust_swappiness", nonce, "", register.now())
            begun = register.begin(act, clock.ns(), (), "", {"event": "intent", **entry})
            register.end(begun, Code.DONE, {"event": "done", "why": "", **entry, "number": number})
        head = register.head()
        register.close()
        return head

    def change(self, statement: str, *values: object) -> None:
        db = sqlite3.connect(self.path)
        with db:
            db.execute(statement, values)
        db.close()

    def verify(self, head: str = "") -> keeping.Kept:
        return keeping.verify_audit(head, self.path, self.keys)


@pytest.fixture
def kept(tmp_path: Path, root: None) -> Kept:
    return Kept(tmp_path)


@pytest.fixture
def root() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may do that")


@pytest.fixture
def systemctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of this host's: what it was called with is beside it; `status` is what it ends with."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "systemctl"
    program.write_text(
        f'#!/bin/sh\necho "$@" >>{folder}/called\necho "it says no" >&2\nexit $(cat {folder}/status)\n'
    )
    program.chmod(0o755)
    (folder / "status").write_text("0")
    monkeypatch.setattr(process, "SEARCH_PATH", str(folder))
    return folder


def called(systemctl: Path) -> list[str]:
    return (systemctl / "called").read_text().splitlines()


def text(kept: keeping.Kept) -> str:
    return "\n".join(line for _, line in kept.lines)


# -- verify --------------------------------------------------------------------------------------------------


def test_a_whole_audit(kept: Kept) -> None:
    before = kept.path.read_bytes()
    for head in ("", kept.head):
        found = kept.verify(head)
        assert found.code == 0
        assert found.data == {"schema": 1, "whole": True, "wrong": None, "lines": 6, "head": kept.head}
        assert text(found) == f"the audit is whole: 6 lines\nhead {kept.head}"
    assert kept.path.read_bytes() == before


def test_an_earlier_head_is_there_too(kept: Kept) -> None:
    earlier, later = kept.head, kept.write(2)
    assert later.startswith("10:")
    assert kept.verify(earlier).code == kept.verify(later).code == 0


def test_another_key_made_another_audit(kept: Kept) -> None:
    (kept.keys / "audit").unlink()
    make(kept.keys)
    found = kept.verify()
    assert (found.code, found.data["wrong"]) == (1, "line 1 was changed, or one before it")


@pytest.mark.parametrize(
    ("statement", "wrong"),
    [
        ("UPDATE audit SET line = replace(line, 'adjust', 'adjusT') WHERE seq = 4", "line 4 was changed"),
        ("UPDATE audit SET line = line || char(233) WHERE seq = 2", "line 2 was changed"),
        ("DELETE FROM audit WHERE seq = 3", "line 3 is missing"),
        ("DELETE FROM audit WHERE seq = 1", "line 1 is missing"),
        ("UPDATE audit SET mac = x'00' WHERE seq = 6", "line 6 was changed"),
        ("INSERT INTO meta VALUES ('checkpoint', '[3, \"00\", \"00\"]')", "the checkpoint is not ours"),
    ],
)
def test_what_was_changed_shows(kept: Kept, statement: str, wrong: str) -> None:
    kept.change(statement)
    found = kept.verify()
    assert (found.code, found.data["whole"]) == (1, False)
    assert str(found.data["wrong"]).startswith(wrong)
    assert text(found).startswith(wrong)


def test_a_cut_end_shows_to_whoever_knows_the_head(kept: Kept) -> None:
    kept.change("DELETE FROM audit WHERE seq > 4")
    assert kept.verify().code == 0  # what is there is a whole audit
    found = kept.verify(kept.head)
    assert (found.code, found.data["wrong"]) == (1, "line 6, which was told of, is missing at the end")


def test_what_was_dropped_for_its_age_is_not_missing(kept: Kept) -> None:
    kept.write(510, kept_lines=100)
    found = kept.verify()
    assert (found.code, found.data["lines"]) == (0, 102)
    assert "102 lines since line 925" in text(found)
    kept.change("DELETE FROM audit WHERE seq = 925")
    assert kept.verify().data["wrong"] == "line 925 is missing"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_file_cannot_be_read(kept: Kept, share: float) -> None:
    size = kept.path.stat().st_size
    os.truncate(kept.path, int(size * share))
    with pytest.raises(HealingError, match="cannot be read") as problem:
        kept.verify()
    assert problem.value.hint == "`luminous-healing audit renew` puts it aside"


def test_something_else_in_its_place_cannot_be_read(kept: Kept) -> None:
    kept.path.write_bytes(os.urandom(8192))
    with pytest.raises(HealingError, match="cannot be read"):
        kept.verify()
    with pytest.raises(HealingError, match="cannot be read"):
        keeping.show_audit(5, kept.path)


@pytest.mark.parametrize("value", ["5", "[]", "[1, 2, 3]", '["x", "00", "00"]', '[-1, "00", "00"]', "{", "[[[1]]]"])
def test_a_checkpoint_that_is_none(kept: Kept, value: str) -> None:
    """The file is the helper's: root reads it with care."""
    kept.change("INSERT INTO meta VALUES ('checkpoint', ?)", value)
    with pytest.raises(HealingError, match="cannot be read"):
        kept.verify()


def test_without_a_key_nothing_is_said_of_it(kept: Kept) -> None:
    (kept.keys / "audit").unlink()
    with pytest.raises(HealingError, match=r"the key .* cannot be read"):
        kept.verify()


# -- show ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "first"), [(1, 6), (4, 3), (6, 1), (1000, 1), (0, 6), (-3, 6)])
def test_the_last_lines_are_shown_oldest_first(kept: Kept, number: int, first: int) -> None:
    found = keeping.show_audit(number, kept.path)
    assert [line["seq"] for line in found.data["audit"]] == list(range(first, 7))
    assert text(found).splitlines()[-1] == f"     6 {'-':<19} done     adjust_swappiness system  uid 990"


def test_an_empty_audit(kept: Kept) -> None:
    kept.change("DELETE FROM audit")
    assert keeping.show_audit(20, kept.path).lines == [("", "nothing was asked of the helper yet")]
    assert kept.verify().data["head"].startswith("0:")


@pytest.mark.parametrize("line", ["no JSON", "[]", "5", '{"event": ["\\u001b[2J"], "op": "\\u001b]0;x\\u0007"}'])
def test_a_line_that_was_changed_is_shown_all_the_same_and_moves_no_terminal(kept: Kept, line: str) -> None:
    kept.change("UPDATE audit SET line = ? WHERE seq = 6", line)
    found = keeping.show_audit(20, kept.path)
    assert [entry["seq"] for entry in found.data["audit"]] == [1, 2, 3, 4, 5, 6]
    assert all(character.isprintable() or character == "\n" for character in text(found))


# -- who and where -------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_only_root(kept: Kept, systemctl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(HealingError, match="only root may do that"):
        kept.verify()
    with pytest.raises(HealingError, match="only root may do that"):
        keeping.show_audit(5, kept.path)
    with pytest.raises(HealingError, match="only root may do that"):
        await keeping.renew(kept.path)
    with pytest.raises(HealingError, match="only root may do that"):
        await keeping.rotate_key()
    assert not (systemctl / "called").exists()


@pytest.mark.anyio
async def test_where_there_is_none(tmp_path: Path, root: None, systemctl: Path) -> None:
    path = tmp_path / "nowhere/register.db"
    with pytest.raises(HealingError, match="nothing was asked of the helper yet"):
        keeping.verify_audit("", path, tmp_path)
    with pytest.raises(HealingError, match="nothing was asked of the helper yet"):
        keeping.show_audit(1, path)
    with pytest.raises(HealingError, match="the helper is not installed"):
        await keeping.renew(path)
    assert not (systemctl / "called").exists()
    assert not path.parent.exists()


# -- renew and rotate ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_a_spoilt_register_is_put_aside_and_a_new_one_begins(kept: Kept, systemctl: Path) -> None:
    kept.path.write_bytes(b"spoilt" * 1000)
    found = await keeping.renew(kept.path)
    aside = kept.path.with_name("register.db.corrupt-1")
    assert found.data == {"schema": 1, "kept_aside": str(aside)}
    assert aside.read_bytes() == b"spoilt" * 1000
    assert called(systemctl) == ["stop luminous-healing-executor.service"]
    kept.write(1)
    assert kept.verify().data["lines"] == 2


@pytest.mark.anyio
async def test_a_register_that_is_gone_begins_anew(kept: Kept, systemctl: Path) -> None:
    kept.path.unlink()
    with pytest.raises(AssertionError):  # what was done is not known, so the helper does nothing
        kept.write(1)
    found = await keeping.renew(kept.path)
    assert (found.data["kept_aside"], found.lines) == (None, [("yellow", "a new register begins")])
    kept.write(1)
    assert kept.verify().code == 0


@pytest.mark.anyio
async def test_a_new_key_is_systemds_to_hand_on(systemctl: Path, root: None) -> None:
    found = await keeping.rotate_key()
    assert found.data == {"schema": 1, "rotated": True}
    assert called(systemctl) == ["start luminous-healing-rotate.service"]
    (systemctl / "status").write_text("1")
    with pytest.raises(HealingError, match="the new key could not be handed on: it says no") as problem:
        await keeping.rotate_key()
    assert problem.value.hint == "journalctl -u luminous-healing-rotate"
