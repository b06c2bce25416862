"""The shared keys on disk: made once, handed on, rotated, and refused when they are not what they must be."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.models import HealingError
from luminous_nix.self_healing.privileged.keys import (
    KEY_DIRECTORY,
    boot_id,
    boot_ns,
    credential,
    hand_on,
    load_keys,
    load_secret,
    main,
    make,
    rotate,
)
from luminous_nix.self_healing.privileged.protocol import GRACE_NS
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, no_bus

BOOT, NEXT_BOOT = "0b4cc36e-8e0c-4a2a-9d5f-6a1f0d8f6d11", "1c5dd47f-9f1d-4b3b-8e60-7b2a1e9a7e22"
NOW = 10**12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "keys"
    make(made)
    return made


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


# -- made ----------------------------------------------------------------------------------------------------


def test_what_is_missing_is_made_and_nothing_is_made_twice(tmp_path: Path) -> None:
    folder = tmp_path / "deep/keys"
    assert make(folder) == ["keys", "audit"]
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert make(folder) == []
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    (folder / "keys").unlink()
    assert make(folder) == ["keys"]
    assert (folder / "audit").read_bytes() == first["audit"]
    assert (folder / "keys").read_bytes() != first["keys"]


def test_nobody_but_their_owner_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(mode=0o755)
    before = os.umask(0)
    try:
        make(folder)
        rotate(folder, boot=BOOT, now_ns=NOW)
    finally:
        os.umask(before)
    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == {"keys": 0o400, "audit": 0o400}


def test_each_is_another(folder: Path, tmp_path: Path) -> None:
    make(tmp_path / "others")
    keys = [load_keys(at / "keys", BOOT).current.secret for at in (folder, tmp_path / "others")]
    secrets = [load_secret(at / "audit") for at in (folder, tmp_path / "others")]
    assert len({*keys, *secrets}) == 4
    assert {len(secret) for secret in (*keys, *secrets)} == {32}


# -- rotated -------------------------------------------------------------------------------------------------


def test_the_former_one_counts_for_ten_minutes_of_this_boot(folder: Path) -> None:
    path = folder / "keys"
    former = load_keys(path, BOOT).current
    rotate(folder, boot=BOOT, now_ns=NOW)
    keys = load_keys(path, BOOT)
    assert keys.current.secret != former.secret
    found = [keys.find(former.id, NOW + later) for later in (0, GRACE_NS - 1, GRACE_NS, GRACE_NS + 1)]
    assert [key is not None and key.secret == former.secret for key in found] == [True, True, False, False]
    assert keys.find(former.id, NOW - 1) is None  # of a time before: no clock of this boot said that
    assert keys.find(keys.current.id, NOW + 100 * GRACE_NS) is keys.current
    rebooted = load_keys(path, NEXT_BOOT)
    assert rebooted.current.secret == keys.current.secret
    assert [rebooted.find(former.id, at) for at in (0, NOW, NOW + 1)] == [None] * 3


def test_only_one_former_key_is_kept(folder: Path) -> None:
    path = folder / "keys"
    first = load_keys(path, BOOT).current
    rotate(folder, boot=BOOT, now_ns=NOW)
    second = load_keys(path, BOOT).current
    rotate(folder, boot=BOOT, now_ns=NOW + 1)
    keys = load_keys(path, BOOT)
    assert keys.find(first.id, NOW + 2) is None
    assert keys.find(second.id, NOW + 2) is not None


def test_a_rotation_leaves_nothing_behind_and_the_audits_key_alone(folder: Path) -> None:
    before = (folder / "audit").read_bytes()
    rotate(folder, boot=BOOT, now_ns=NOW)
    assert sorted(path.name for path in folder.iterdir()) == ["audit", "keys"]
    assert (folder / "audit").read_bytes() == before


# -- what is no key ------------------------------------------------------------------------------------------


def words(**changes: Any) -> bytes:
    good = {"current": "11" * 32, "previous": "22" * 32, "boot_id": BOOT, "until_ns": NOW}
    return json.dumps({name: value for name, value in {**good, **changes}.items() if value is not None}).encode()


BROKEN = {
    "empty": b"", "no JSON": b"{", "a list": b"[1]", "a number": b"5", "no current": words(current=None),
    "no former": words(previous=None), "no boot": words(boot_id=None), "no end": words(until_ns=None),
    "short": words(current="11" * 31), "long": words(current="11" * 33), "no hex": words(current="zz" * 32),
    "a number as key": words(current=5), "former short": words(previous="22"), "end in words": words(until_ns="soon"),
    "cut": words()[:-20], "too long": words(more="x" * 5000), "bytes": b"\xff" * 32,
    "no end ever": words(until_ns=float("inf")), "deep": b"[" * 4000,
}  # fmt: skip


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_said_to_be_one_and_a_rotation_replaces_it(folder: Path, text: bytes) -> None:
    path = folder / "keys"
    path.chmod(0o600)
    path.write_bytes(text)
    with pytest.raises(HealingError, match=r"is no key file|cannot be read") as problem:
        load_keys(path, BOOT)
    assert problem.value.hint
    rotate(folder, boot=BOOT, now_ns=NOW)
    keys = load_keys(path, BOOT)
    assert (keys.previous, mode(path)) == (None, 0o400)


def test_what_a_message_says_of_a_broken_file_is_nothing_of_its_content(folder: Path) -> None:
    path = folder / "keys"
    path.chmod(0o600)
    path.write_bytes(words(previous="33" * 31))
    with pytest.raises(HealingError) as problem:
        load_keys(path, BOOT)
    assert "1111" not in f"{problem.value} {problem.value.hint} {problem.value.__cause__}"
    assert problem.value.__suppress_context__


@pytest.mark.parametrize("text", [b"", b"11" * 31, b"zz" * 32, b"\xff", b"{}"])
def test_a_broken_audit_key(folder: Path, text: bytes) -> None:
    path = folder / "audit"
    path.chmod(0o600)
    path.write_bytes(text)
    with pytest.raises(HealingError, match=r"is no key file|cannot be read"):
        load_secret(path)


def test_a_missing_file(tmp_path: Path) -> None:
    for load in (load_secret, lambda path: load_keys(path, BOOT)):
        with pytest.raises(HealingError, match="cannot be read: No such file"):
            load(tmp_path / "keys")


def test_a_link_is_not_followed_and_a_rotation_does_not_write_through_it(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    for name in ("keys", "audit"):
        (folder / name).rename(elsewhere)
        (folder / name).symlink_to(elsewhere)
    text = elsewhere.read_bytes()
    with pytest.raises(HealingError, match="cannot be read"):
        load_keys(folder / "keys", BOOT)
    with pytest.raises(HealingError, match="cannot be read"):
        load_secret(folder / "audit")
    assert make(folder) == []
    rotate(folder, boot=BOOT, now_ns=NOW)
    assert not (folder / "keys").is_symlink()
    assert elsewhere.read_bytes() == text


def test_a_folder_in_place_of_a_key(folder: Path) -> None:
    (folder / "keys").unlink()
    (folder / "keys").mkdir()
    with pytest.raises(HealingError, match="cannot be read"):
        load_keys(folder / "keys", BOOT)


# -- where and when ------------------------------------------------------------------------------------------


def test_the_boot_is_the_one_that_systemd_told() -> None:
    told = BOOT.replace("-", "")
    assert boot_id({"LUMINOUS_BOOT_ID": told}) == BOOT
    kernels = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    for other in ("", BOOT, told[:-1], told + "0", told.upper(), told + "\n", "%b"):
        assert boot_id({"LUMINOUS_BOOT_ID": other}) == kernels
    assert boot_id({}) == kernels


def test_the_boot_is_asked_of_our_own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUMINOUS_BOOT_ID", BOOT.replace("-", ""))
    assert boot_id() == BOOT
    assert boot_ns() <= boot_ns()


def test_where_a_process_finds_its_copy() -> None:
    assert credential("keys", {"CREDENTIALS_DIRECTORY": "/run/credentials/x.service"}) == Path(
        "/run/credentials/x.service/keys"
    )
    for environment in ({}, {"CREDENTIALS_DIRECTORY": ""}):
        assert credential("audit", environment) == KEY_DIRECTORY / "audit"


# -- handed on -----------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_helper_lets_go_of_its_key_before_the_engine_takes_the_new_one(bus_daemon: BusDaemon) -> None:
    systemd = Systemd()
    async with systemd.on(bus_daemon.address):
        await hand_on(Bus(bus_daemon.address, clock=Clock()))
        assert systemd.jobs == [
            ("StopUnit", ("luminous-healing-executor.service", "replace")),
            ("TryRestartUnit", ("luminous-healing.service", "replace")),
        ]
        systemd.denied = "org.freedesktop.systemd1.NoSuchUnit"  # not installed, or only one of them
        await hand_on(Bus(bus_daemon.address, clock=Clock()))
        systemd.denied = "org.freedesktop.DBus.Error.AccessDenied"
        bus = Bus(bus_daemon.address, clock=Clock())
        with pytest.raises(HealingError, match="did not get the new key: not today"):
            await hand_on(bus)
        await bus.close()


@pytest.mark.anyio
async def test_without_a_bus_it_is_said_who_has_the_old_key() -> None:
    with pytest.raises(HealingError, match=r"luminous-healing-executor\.service did not get the new key"):
        await hand_on(no_bus())


@pytest.mark.parametrize("argv", [[], ["x"], ["make", "rotate"], ["--help"]])
def test_what_the_program_does_not_know(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    before = os.umask(0o022)
    try:
        assert main(argv) == 2
    finally:
        os.umask(before)
    assert capsys.readouterr().err == "usage: keys make|rotate\n"
