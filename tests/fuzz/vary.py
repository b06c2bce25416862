"""How an input is made from another one: torn, spliced, or changed where its grammar lets it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

Vary = Callable[[bytes, Random], bytes]

PIECES = (
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"\n", b"\0", b"\t", b"\r", b"/", b"..", b"%", b"$",
    b"@", b"-",
    b".service", b".socket", b"0", b"1.0", b"1e999", b"-0", b"NaN", b"null", b"true", b"false", b"\\u0061",
    b"\\ud800",
    b"\xc3\xa9", b"\xff", b"\xef\xbb\xbf", b"\xd9\xa1", b"[" * 40, b"9" * 20, b"9" * 4400, b"0x" + b"f" * 4000,
)  # fmt: skip


def torn(*pieces: bytes) -> Vary:
    """Up to four edits of bytes: cut, doubled, moved, flipped, or one of these words put in."""
    words = (*pieces, *pieces, *PIECES) if pieces else PIECES

    def vary(data: bytes, random: Random) -> bytes:
        for _ in range(random.randint(1, 4)):
            data = _edited(data, random, words)
        return data

    return vary


def _edited(data: bytes, random: Random, words: Sequence[bytes]) -> bytes:
    at = random.randint(0, len(data))
    end = min(len(data), at + (random.randint(0, 3) if random.random() < 0.7 else random.randint(0, 64)))
    how = random.randrange(6)
    if how == 0:
        return data[:at] + data[end:]
    if how == 1:
        return data[:end] + data[at:]
    if how == 2 and at < len(data):
        return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
    if how == 3:
        return data[:at] + random.randbytes(random.randint(1, 4)) + data[end:]
    return data[:at] + random.choice(words) + (data[at:] if how == 4 else data[end:])


def json_changed(*words: Any) -> Vary:
    """One value of a JSON text becomes another, or a name; then written in one of several ways, mostly the right one.
    What is no JSON is torn."""
    tear = torn()

    def vary(data: bytes, random: Random) -> bytes:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            return tear(data, random)
        for _ in range(random.randint(1, 2)):
            value = _changed(value, random, words)
        way = random.randrange(12)
        separators = (", ", ": ") if way == 0 else (",", ":")
        try:
            text = json.dumps(value, sort_keys=way != 1, separators=separators, ensure_ascii=way != 2)
        except (TypeError, ValueError, RecursionError):
            return tear(data, random)
        found = text.encode("utf-8", "surrogatepass")
        return tear(found, random) if way == 3 else found

    return vary


def toml_changed(keys: Sequence[str], *words: bytes) -> Vary:
    """One line of KEY = VALUE gets another key or value; or the text is torn."""
    tear = torn(*words)

    def vary(data: bytes, random: Random) -> bytes:
        if random.random() < 0.3:
            return tear(data, random)
        lines = data.split(b"\n")
        at = random.randrange(len(lines))
        key, equals, value = lines[at].partition(b"=")
        if not equals or random.random() < 0.3:
            key = random.choice(keys).rpartition(".")[2].encode()
        if random.random() < 0.8:
            value = random.choice((*_VALUES, *words))
        if random.random() < 0.2:
            value = b"[" + value + b"]"
        lines[at : at + random.randint(0, 1)] = [key + b" = " + value]
        return b"\n".join(lines)

    return vary


_VALUES = (
    b"0", b"1", b"-1", b"5", b"300", b"1e3", b"1e400", b"nan", b"-inf", b"true", b'""', b'"auto"',
    b'"web.service"', b"[]", b"{}",
    b'["web.service", "web.service"]', b'["web"]', b'["sshd.service"]', b'["a/b.service"]',
    b'["a.service\\n"]', b'["*"]', b"[1]",
    b"1979-05-27", b"07:32:00", b'"mon-fri 22:00-06:00"', b"0x" + b"f" * 4000, b"9" * 4400, b"[" * 300 + b"]" * 300,
    b'{mode = "auto", unit = "["}', b'{mode = "observe", extra = "x"}', b"{mode = 1}", b'{action = "["}',
    b'"\\u0000"',
    b'"\\U0001F600"', b"9223372036854775808", b"0b1", b"1_000", b"'" + b"x" * 5000 + b"'",
)  # fmt: skip
_ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 200, 201, 1 << 53, (1 << 53) - 1, -(1 << 53), 1 << 64, 1.0, 1e300, "", "a",
    "A", "é", "\n",
    "\x7f", "\ud800", "/", "../x", "x" * 256, "x" * 257, "a.service", "a@.service", "a@b.service",
    "a.service\n", [], {},
    [[]], {"a": {"b": {"c": {}}}}, ["vm.swappiness", "60", "10"], [["vm.swappiness", "60", "10"]],
)  # fmt: skip


def _changed(value: Any, random: Random, words: Sequence[Any]) -> Any:
    if isinstance(value, dict) and value and random.random() < 0.85:
        name = random.choice(list(value))
        how = random.randrange(8)
        if how == 0:
            return {other: inner for other, inner in value.items() if other != name}
        if how == 1:
            return {**value, str(random.choice((*_ODD, *words))): _any(random, words)}
        return {**value, name: _changed(value[name], random, words)}
    if isinstance(value, list) and value and random.random() < 0.7:
        at = random.randrange(len(value))
        how = random.randrange(6)
        if how == 0:
            return value[:at] + value[at + 1 :]
        if how == 1:
            return [*value, *value][: random.randint(1, 12)]
        return [*value[:at], _changed(value[at], random, words), *value[at + 1 :]]
    if isinstance(value, str) and random.random() < 0.5:
        tear = torn(b".service", b"@")
        return tear(value.encode("utf-8", "surrogatepass"), random).decode("latin-1")
    return _any(random, words)


def _any(random: Random, words: Sequence[Any]) -> Any:
    return random.choice(words if words and random.random() < 0.5 else _ODD)
