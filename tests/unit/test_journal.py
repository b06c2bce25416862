"""journal.py against real datagram sockets."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from luminous_nix.self_healing.journal import (
    JournalHandler,
    connected_to_journal,
    encode,
    notify,
    watchdog_seconds,
)


@contextmanager
def listener(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(address)
        heard.settimeout(10)
        yield heard


def test_the_service_manager_hears(tmp_path: Path) -> None:
    with listener(f"{tmp_path}/notify") as heard:
        assert notify("READY=1\nSTATUS=größer", {"NOTIFY_SOCKET": f"{tmp_path}/notify"})
        assert heard.recv(4096) == "READY=1\nSTATUS=größer".encode()


def test_an_abstract_socket() -> None:
    name = f"luminous-test-{os.getpid()}"
    with listener(f"\0{name}") as heard:
        assert notify("WATCHDOG=1", {"NOTIFY_SOCKET": f"@{name}"})
        assert heard.recv(4096) == b"WATCHDOG=1"


@pytest.mark.parametrize("address", ["", "/nonexistent/socket", "/tmp", "relative", "/" + "x" * 500])
def test_nobody_listens(address: str) -> None:
    assert notify("READY=1", {"NOTIFY_SOCKET": address} if address else {}) is False


def test_a_message_with_bytes_that_are_no_text_still_arrives(tmp_path: Path) -> None:
    with listener(f"{tmp_path}/notify") as heard:
        assert notify("STATUS=/etc/\udcff.toml", {"NOTIFY_SOCKET": f"{tmp_path}/notify"})
        assert heard.recv(4096).startswith(b"STATUS=/etc/")


ME = str(os.getpid())


@pytest.mark.parametrize(
    ("env", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": ME}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": ""}, None),
        ({"WATCHDOG_USEC": "²"}, None),
    ],
)
def test_the_watchdog(env: dict[str, str], seconds: float | None) -> None:
    assert watchdog_seconds(env) == seconds


@pytest.mark.parametrize(
    ("fields", "data"),
    [
        pytest.param({"A": "b", "C": "d e=f"}, b"A=b\nC=d e=f\n", id="plain"),
        pytest.param({"A": "x\ny"}, b"A\n\x03\x00\x00\x00\x00\x00\x00\x00x\ny\n", id="line-break"),
        pytest.param(
            {"A": "x\nPRIORITY=0"}, b"A\n\x0c" + b"\0" * 7 + b"x\nPRIORITY=0\n", id="no-field-is-smuggled-in"
        ),
        pytest.param({"A": "\udcff"}, b"A=\\udcff\n", id="surrogate"),
        pytest.param({"A": ""}, b"A=\n", id="empty"),
    ],
)
def test_the_native_protocol(fields: dict[str, str], data: bytes) -> None:
    assert encode(fields) == data


def test_a_long_value_is_cut() -> None:
    assert len(encode({"A": "x" * 1_000_000})) < 64 << 10


def test_a_record_arrives_with_its_fields(tmp_path: Path) -> None:
    handler = JournalHandler(tmp_path / "journal")
    with listener(f"{tmp_path}/journal") as heard:
        record = logging.LogRecord("luminous_nix.x", logging.WARNING, "", 1, "two\nlines", None, None)
        record.fields = {"verdict": "healed"}
        handler.emit(record)
        entry = heard.recv(65536)
    handler.close()
    assert handler.dropped == 0
    assert b"PRIORITY=4\n" in entry
    assert b"LUMINOUS_VERDICT=healed\n" in entry
    assert b"MESSAGE\n" in entry
    assert b"SYSLOG_IDENTIFIER=luminous-healing\n" in entry


def test_a_journal_that_is_gone_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handler = JournalHandler(tmp_path / "absent")
    for dropped in (1, 2):
        handler.emit(logging.LogRecord("x", logging.INFO, "", 1, "words", None, None))
        assert handler.dropped == dropped
    handler.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("stream", ["", "1:2", "junk", ":", "1:2:3"])
def test_standard_error_is_not_the_journal(stream: str) -> None:
    assert not connected_to_journal({"JOURNAL_STREAM": stream})
