"""Forged, torn, swapped, late and oddly written frames: none is believed. And what an honest pair says passes."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import random
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import FrozenInstanceError, replace
from functools import partial
from typing import Any

import pytest

from luminous_nix.self_healing.decide.actions import CATALOGUE
from luminous_nix.self_healing.models import HealingError
from luminous_nix.self_healing.privileged.protocol import (
    GRACE_NS,
    LONGEST_BODY,
    LONGEST_FRAME,
    WINDOW_NS,
    Code,
    Denied,
    Key,
    Keys,
    Reply,
    Request,
    encode_reply,
    encode_request,
    fresh,
    parse_reply,
    parse_request,
)

NOW = 200 * 86_400 * 10**9  # a host that has been up for 200 days
BOOT = "0b4cc36e-8e0c-4a2a-9d5f-6a1f0d8f6d11"
NONCE = "00112233445566778899aabbccddeeff"
KEY, FORMER, STRANGER = Key(b"\1" * 32), Key(b"\2" * 32), Key(b"\3" * 32)
KEYS = Keys(KEY)
REQUEST = Request(BOOT, NOW, NONCE, "restart_service", {"service": "nginx.service"}, False, "unit_failed", "e" * 64)
REPLY = Reply(NONCE, Code.DONE, {"job": 12, "unit": "nginx.service"})
FRAME, ANSWER = encode_request(REQUEST, KEY), encode_reply(REPLY, KEY)
BODY = FRAME[37:]


def forge(body: bytes, key: Key = KEY, domain: bytes = b"luminous-req-v1\0", version: bytes = b"\1") -> bytes:
    """A frame written from the specification alone, with a good mac."""
    signed = domain + key.id + len(body).to_bytes(4, "big") + body
    return version + key.id + hmac.new(key.secret, signed, hashlib.sha256).digest() + body


def denial(act: Callable[[], object]) -> Code | None:
    try:
        act()
    except Denied as denied:
        return denied.code
    return None


def asked(frame: bytes, keys: Keys = KEYS, now: int = NOW) -> Code | None:
    return denial(lambda: parse_request(frame, keys, now))


def told(frame: bytes, key: Key = KEY, nonce: str = NONCE) -> Code | None:
    return denial(lambda: parse_reply(frame, key, nonce))


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


WIRE: Mapping[str, Any] = json.loads(BODY)


def body(**changes: Any) -> bytes:
    return canonical({**WIRE, **changes})


# -- what is honest passes


def test_the_frame_is_what_the_specification_says() -> None:
    assert forge(BODY) == FRAME
    assert forge(ANSWER[37:], domain=b"luminous-rep-v1\0") == ANSWER
    assert canonical(WIRE) == BODY
    assert set(WIRE) == {
        "v", "boot_id", "ts_boot_ns", "nonce", "op", "args", "dry_run", "reason_code", "evidence_hash",
    }  # fmt: skip
    assert (LONGEST_BODY, LONGEST_FRAME, WINDOW_NS, GRACE_NS) == (4096, 16_384, 30 * 10**9, 600 * 10**9)


def test_a_request_and_its_reply() -> None:
    assert parse_request(FRAME, KEYS, NOW) == (REQUEST, KEY)
    reply = parse_reply(ANSWER, KEY, NONCE)
    assert (reply, reply.ok) == (REPLY, True)
    assert [Reply(NONCE, code).ok for code in Code if code is not Code.DONE] == [False] * (len(Code) - 1)


ARGUMENTS: Mapping[str, Mapping[str, Any]] = {
    "restart_service": {"service": "a\\x2db@1.service", "running": True}, "reload_service": {"service": "a.service"},
    "start_unit": {"unit": "a.socket"}, "rerun_timer": {"unit": "a.timer"}, "freeze_unit": {"unit": "a.service"},
    "limit_unit": {"unit": "a.service", "memory_high_bytes": 1 << 44}, "thaw_unit": {"unit": "a.service"},
    "adjust_swappiness": {"value": 0}, "kill_process": {"pid": 4321, "start_time": (1 << 53) - 1},
    "clean_disk": {"filesystem": '/mnt/a "b" \\c'},
    "run_plugin": {"name": "mine", "issue": {"figures": {"a": -1, "b": "x"}, "of": [1, True]}, "parameters": {}},
}  # fmt: skip


@pytest.mark.parametrize("op", CATALOGUE)
@pytest.mark.parametrize("dry_run", [False, True])
def test_every_action_of_the_catalogue(op: str, dry_run: bool) -> None:
    request = replace(REQUEST, op=op, args=ARGUMENTS.get(op, {}), dry_run=dry_run)
    assert parse_request(encode_request(request, KEY), KEYS, NOW)[0] == request


@pytest.mark.parametrize("time", [0, 1, 1 << 53, (1 << 64) - 1])
def test_any_time_since_the_boot(time: int) -> None:
    request = replace(REQUEST, ts_boot_ns=time)
    assert parse_request(encode_request(request, KEY), KEYS, NOW)[0] == request


def test_what_was_parsed_cannot_be_changed() -> None:
    request = parse_request(FRAME, KEYS, NOW)[0]
    with pytest.raises(TypeError):
        request.args["service"] = "sshd.service"  # type: ignore[index]
    with pytest.raises(TypeError):
        parse_reply(ANSWER, KEY, NONCE).result["job"] = 13  # type: ignore[index]
    for value, name in (
        (request, "op"),
        (REPLY, "code"),
        (KEY, "secret"),
        (KEYS, "current"),
        (KEYS, "previous_until_ns"),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, getattr(value, name))


# -- forged


def test_no_bit_can_be_flipped() -> None:
    accepted = 0
    for frame, check in ((FRAME, asked), (ANSWER, told)):
        for at in range(len(frame)):
            for bit in range(8):
                other = bytearray(frame)
                other[at] ^= 1 << bit
                code = check(bytes(other))
                accepted += code is None
                assert code is (Code.VERSION if at < 1 else Code.KEY if at < 5 else Code.MAC)
    assert accepted == 0


def test_no_byte_can_be_replaced() -> None:
    frames = (FRAME[:at] + bytes([value]) + FRAME[at + 1 :] for at in range(len(FRAME)) for value in range(256))
    assert [frame for frame in frames if frame != FRAME and asked(frame) is None] == []


def test_nothing_can_be_cut_off_or_added() -> None:
    for frame, check in ((FRAME, asked), (ANSWER, told)):
        torn = [frame[:length] for length in range(len(frame))] + [frame[start:] for start in range(1, len(frame))]
        longer = [frame + end for end in (b"\0", b" ", b"}", b"\n", frame, bytes(LONGEST_BODY))]
        longer += [start + frame for start in (b"\0", b"\1", frame)]
        assert [other for other in torn + longer if check(other) is None] == []
    assert {asked(FRAME[:length]) for length in range(38)} == {Code.SIZE}


def test_macs_cannot_be_swapped() -> None:
    other = encode_request(replace(REQUEST, nonce="f" * 32), KEY)
    assert asked(FRAME[:37] + other[37:]) is Code.MAC
    assert asked(other[:37] + FRAME[37:]) is Code.MAC
    assert asked(FRAME[:5] + FRAME[5:37][::-1] + BODY) is Code.MAC


def test_another_key() -> None:
    assert asked(encode_request(REQUEST, STRANGER)) is Code.KEY
    assert asked(KEY.id.join([b"\1", encode_request(REQUEST, STRANGER)[5:]])) is Code.MAC  # labelled as ours
    assert told(encode_reply(REPLY, STRANGER)) is Code.KEY
    assert told(b"\1" + KEY.id + encode_reply(REPLY, STRANGER)[5:]) is Code.MAC


@pytest.mark.parametrize("version", [0, 2, 0x31, 255])
def test_another_version(version: int) -> None:
    assert asked(forge(BODY, version=bytes([version]))) is Code.VERSION
    assert asked(forge(BODY, domain=b"luminous-req-v%d\0" % version)) is Code.MAC


def test_a_request_is_no_reply() -> None:
    assert told(FRAME) is Code.MAC
    assert asked(ANSWER) is Code.MAC
    assert told(FRAME[:37] + ANSWER[37:]) is Code.MAC
    assert told(forge(BODY, domain=b"luminous-rep-v1\0")) is Code.SCHEMA
    assert asked(forge(ANSWER[37:])) is Code.SCHEMA


DOMAIN, LENGTH = b"luminous-req-v1\0", len(BODY).to_bytes(4, "big")


@pytest.mark.parametrize("signed", [
    BODY, KEY.id + BODY, DOMAIN + BODY, DOMAIN + KEY.id + BODY, DOMAIN[:-1] + KEY.id + LENGTH + BODY,
    DOMAIN + KEY.id + LENGTH[::-1] + BODY, DOMAIN + LENGTH + KEY.id + BODY, DOMAIN + KEY.id + LENGTH, b"",
])  # fmt: skip
def test_a_mac_over_anything_else(signed: bytes) -> None:
    mac = hmac.new(KEY.secret, signed, hashlib.sha256).digest()
    assert asked(b"\1" + KEY.id + mac + BODY) is Code.MAC


def test_a_reply_answers_its_own_request_only() -> None:
    assert told(ANSWER, nonce="f" * 32) is Code.NONCE
    assert told(ANSWER, nonce="") is Code.NONCE


def test_the_mac_comes_before_any_parsing() -> None:
    assert asked(FRAME[:37] + b"[" * LONGEST_BODY) is Code.MAC
    assert asked(FRAME[:37] + b"[" * 100_000) is Code.SIZE


def forgeries(chance: random.Random) -> Iterator[bytes]:
    """Frames by somebody who has seen many good ones, and has no key that counts now."""
    seen = [encode_request(replace(REQUEST, nonce=f"{chance.getrandbits(128):032x}"), KEY) for _ in range(64)]
    known = set(seen)
    own = [encode_request(replace(REQUEST, op="observe", args={}), key) for key in (FORMER, STRANGER)]
    own += [encode_reply(REPLY, KEY), forge(BODY, domain=b"luminous-req-v2\0"), forge(BODY, domain=b"")]
    while True:
        one, two = chance.choice(seen), chance.choice([*seen, *own])
        flipped, at = bytearray(one), chance.randrange(len(one))
        for _ in range(chance.randint(1, 4)):
            flipped[chance.randrange(len(one))] ^= 1 << chance.randrange(8)
        mac = chance.randbytes(32)
        frames = (
            bytes(flipped), one[:at], one[at:], one + chance.randbytes(1 + at), one[:at] + two[at:],
            one[:37] + two[37:], two[:5] + one[5:], one[:5] + mac + one[37:], one[:5] + two[5:37] + one[37:],
            one[:at] + one[at + 1 :], one[:at] + chance.randbytes(1) + one[at:], two[:36] + mac, chance.randbytes(at),
            one[:37] + one[37:].replace(b"nginx", b"cron"), one[:37] + one[37:].replace(b"false", b"true"),
            one[:1] + STRANGER.id + one[5:], one.replace(b"restart_service", b"freeze_unit", 1),
        )  # fmt: skip
        yield from (frame for frame in frames if frame not in known)


def test_forged_frames_by_the_thousand() -> None:
    count, keys = (10**6 if os.environ.get("LUMINOUS_LONG") else 20_000), Keys(KEY, FORMER, NOW - 1)
    frames = forgeries(random.Random(20))  # noqa: S311  the same forgeries on every run
    codes = [asked(next(frames), keys) for _ in range(count)]
    assert codes.count(None) == 0
    assert set(codes) == {Code.SIZE, Code.VERSION, Code.KEY, Code.MAC}  # nothing got as far as the parser


# -- a good mac over bad words: the asker has the key, and is not believed for that


@pytest.mark.parametrize("name", WIRE)
def test_a_field_that_is_missing(name: str) -> None:
    assert asked(forge(canonical({key: WIRE[key] for key in WIRE if key != name}))) is Code.SCHEMA


@pytest.mark.parametrize("name", ["extra", "", "V", "Op", "path", "env", "argv", "zzz", "argz", "user"])
def test_a_field_that_nobody_knows(name: str) -> None:
    assert asked(forge(body(**{name: {}}))) is Code.SCHEMA
    assert told(forge(canonical({**json.loads(ANSWER[37:]), name: {}}), domain=b"luminous-rep-v1\0")) is Code.SCHEMA


ODD: tuple[Any, ...] = (0, 1, 2, -1, True, False, "", "1", "False", "X", [], {}, [[]], {"a": 1}, ["a"])
RIGHT = {canonical([name, value]) for name, value in [*WIRE.items(), ("dry_run", True)]}


@pytest.mark.parametrize("name", WIRE)
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_field_of_another_type(name: str, value: Any) -> None:
    expected = Code.ARGUMENTS if (name, type(value)) == ("args", dict) else Code.SCHEMA
    assert asked(forge(body(**{name: value}))) is (None if canonical([name, value]) in RIGHT else expected)


@pytest.mark.parametrize(("name", "value"), [
    ("boot_id", BOOT.upper()), ("boot_id", BOOT.replace("-", "")), ("boot_id", BOOT + "0"), ("boot_id", BOOT[:-1]),
    ("boot_id", "{" + BOOT + "}"), ("boot_id", uuid.UUID(BOOT).urn), ("boot_id", "g" + BOOT[1:]),
    ("boot_id", BOOT[1:]), ("boot_id", "0" + BOOT),
    ("nonce", NONCE[:-1]), ("nonce", NONCE + "0"), ("nonce", NONCE.upper()), ("nonce", " " + NONCE[1:]),
    ("nonce", "g" * 32), ("evidence_hash", "e" * 63), ("evidence_hash", "e" * 65), ("evidence_hash", "E" * 64),
    ("ts_boot_ns", "0" * 15), ("ts_boot_ns", "0" * 17), ("ts_boot_ns", "-" + "0" * 15),
    ("ts_boot_ns", "0x" + "0" * 14), ("ts_boot_ns", "_0" * 8), ("ts_boot_ns", 5), ("reason_code", "Unit"),
    ("reason_code", "a b"), ("reason_code", ""), ("op", ""),
    ("reason_code", "a" * 33), ("reason_code", "1"), ("reason_code", "a.b"), ("reason_code", "a|b"), ("op", "a" * 33),
    ("op", "restart service"), ("op", "../restart"), ("op", "RESTART_SERVICE"), ("v", 10), ("v", 11), ("v", "1"),
])  # fmt: skip
def test_a_field_out_of_shape(name: str, value: Any) -> None:
    assert asked(forge(body(**{name: value}))) is Code.SCHEMA


@pytest.mark.parametrize("op", ["state", "restart_unit", "restart_service_", "run", "eval", "x" * 32, "none", "null"])
def test_an_action_that_the_catalogue_lacks(op: str) -> None:
    assert asked(forge(body(op=op))) is Code.OPERATION


@pytest.mark.parametrize(("op", "args"), [
    ("restart_service", {}), ("restart_service", {"service": "nginx"}), ("restart_service", {"service": ""}),
    ("restart_service", {"service": "*.service"}), ("restart_service", {"service": "a/../b.service"}),
    ("restart_service", {"service": "-a.service"}), ("restart_service", {"service": "a.service", "mode": "isolate"}),
    ("restart_service", {"service": ["a.service"]}), ("restart_service", {"service": "a@.service"}),
    ("restart_service", {"service": "a.service", "again": 1}), ("restart_service", {"unit": "a.service"}),
    ("restart_service", {"service": "a.service b.service"}), ("restart_service", {"service": "a.target"}),
    ("adjust_swappiness", {"value": 201}), ("adjust_swappiness", {"value": True}),
    ("adjust_swappiness", {"value": "1"}), ("kill_process", {"pid": 1, "start_time": 5}),
    ("kill_process", {"pid": 77}), ("kill_process", {"pid": "77", "start_time": 5}),
    ("prune_generations", {"keep": 2}), ("rollback_generation", {"generation": 0}), ("observe", {"x": 1}),
    ("set_cpu_governor", {"governor": "../../x"}), ("run_plugin", {"name": "a/b"}), ("run_plugin", {"name": "A"}),
    ("clean_disk", {"filesystem": "etc"}), ("rebuild_system", {"flake": "x"}),
])  # fmt: skip
def test_arguments_out_of_the_grammar(op: str, args: Mapping[str, Any]) -> None:
    assert asked(forge(body(op=op, args=args))) is Code.ARGUMENTS


def swapped(old: bytes, new: bytes) -> bytes:
    assert BODY.count(old) == 1
    return BODY.replace(old, new)


STRINGS = (
    rb"ngi\n.service", b"ngi\n.service", rb"ngi\u006e.service", b"ngi\xc3\xa9.service", rb"\u00e9.service",
    b"a\0.service",
    rb"\ud800.service", rb"\ud83d\ude00.service", b"\xed\xa0\x80.service", b"\xff.service", rb"a\/b.service",
    b"a\x7f.service", b"a.service\\", rb"\x41.service", b"a" * 257,
)  # fmt: skip
NUMBERS = (
    b"1.0", b"1e3", b"1E0", b"-0", b"-1.5", b"01", b"+1", b"0x1", b"NaN", b"Infinity", b"-Infinity", b"null", b"1 ",
    b"%d" % (1 << 53), b"-%d" % (1 << 53), b"9" * 17, b"9" * 3000, b"1_0", b"\xd9\xa1", b"--1", b"-",
)  # fmt: skip
UNCANONICAL = [
    b" ", b"{", b"}", b"null", b"[]", b"1", b'""', b'"', b'"\\', b"true", b"{}{}", BODY + BODY, BODY + b" ",
    b" " + BODY,
    BODY + b"\n", BODY + b"\0", b"\xef\xbb\xbf" + BODY, BODY.decode().encode("utf-16"), BODY[:-1], BODY[1:],
    BODY.decode().encode("utf-32-be"), b'{"v":1,' + BODY[1:], b"{ " + BODY[1:], b"{," + BODY[1:],
    swapped(b'"v":1', b'"v": 1'), swapped(b',"v"', b', "v"'), swapped(b',"v"', rb',"\u0076"'),
    swapped(b'"v":1', b'"v":1,'), swapped(b'"v":1', b'"v":1,"v":1'), swapped(b'"v":1', b'"v":2,"v":1'),
    swapped(b'"op":', b'"op":"observe","op":'), swapped(b'"v":1', b"'v':1"), swapped(b'"v":1', b"v:1"),
    swapped(b'"v":1', b'"v":1/**/'), swapped(b"false", b"False"), swapped(b'"v":1', b'"v":truefalse'),
    swapped(b'"service":', b'"service":"a.service","service":'), json.dumps(WIRE).encode(),
    swapped(b'"service":', rb'"service":"a.service","\u0073ervice":'), json.dumps(WIRE, indent=1).encode(),
    json.dumps(dict(sorted(WIRE.items(), reverse=True)), separators=(",", ":")).encode(),
    *(swapped(b"nginx.service", text) for text in STRINGS), *(swapped(b'"v":1', b'"v":' + text) for text in NUMBERS),
    *(swapped(b'{"service"', b'{"a":%s,"service"' % text) for text in NUMBERS),
]  # fmt: skip


@pytest.mark.parametrize("index", range(len(UNCANONICAL)))
def test_another_way_to_write_it(index: int) -> None:
    assert asked(forge(UNCANONICAL[index])) is Code.FORM


def test_nothing_at_all() -> None:
    assert asked(forge(b"")) is Code.SIZE
    assert asked(forge(b"{}")) is Code.SCHEMA


@pytest.mark.parametrize("pair", ["[]", "{}"])
@pytest.mark.parametrize("length", [5, 1000, LONGEST_BODY, 100_000])
def test_a_depth_bomb(pair: str, length: int) -> None:
    for text in (
        pair[0] * length,
        pair * length,
        pair[0] * (length // 2) + pair[1] * (length // 2),
        '{"a":' * length,
    ):
        assert asked(forge(text.encode())) is (Code.SIZE if len(text) > LONGEST_BODY else Code.FORM)


def test_four_levels_and_no_more() -> None:
    def nested(inner: Any) -> bytes:
        return body(op="run_plugin", args={"name": "mine", "issue": {"a": inner}})

    assert asked(forge(nested({"b": 1}))) is None
    assert asked(forge(nested([1]))) is None
    assert asked(forge(nested({"b": {}}))) is Code.FORM
    assert asked(forge(nested([[]]))) is Code.FORM


def test_a_body_has_four_kibibytes_at_most() -> None:
    def long(fill: int) -> Request:
        parameters = {f"{at:02}": "x" * 256 for at in range(13)} | {"zy": "x" * 160, "zz": "x" * fill}
        return replace(REQUEST, op="run_plugin", args={"name": "mine", "parameters": parameters})

    room = LONGEST_BODY + 37 - len(encode_request(long(0), KEY))
    assert 0 < room < 256
    frame = encode_request(long(room), KEY)
    assert (len(frame), asked(frame)) == (37 + LONGEST_BODY, None)
    assert denial(lambda: encode_request(long(room + 1), KEY)) is Code.SIZE


@pytest.mark.parametrize("change", [
    {"nonce": "x"}, {"op": "status"}, {"args": {}}, {"args": {"service": "nginx"}}, {"ts_boot_ns": -1},
    {"ts_boot_ns": 1 << 64}, {"reason_code": "it failed"}, {"boot_id": ""}, {"dry_run": 0},
    {"args": {"service": "é.service"}}, {"args": {"service": 1.5}}, {"args": {"service": {1, 2}}},
    {"args": {"service": None}}, {"args": {"service": b"a.service"}}, {"args": {"service": float("nan")}},
])  # fmt: skip
def test_what_would_be_denied_is_not_sent(change: dict[str, Any]) -> None:
    assert denial(lambda: encode_request(replace(REQUEST, **change), KEY)) is not None


@pytest.mark.parametrize("result", [
    {"a": 1.5}, {"a": None}, {"a": "two\nlines"}, {"a": "é"}, {"a": "x" * 257}, {"a": 1 << 53},
    {"a": {"b": {"c": {}}}}, {str(at): "x" * 256 for at in range(16)},
])  # fmt: skip
def test_a_reply_is_bounded_too(result: Mapping[str, Any]) -> None:
    assert denial(lambda: encode_reply(Reply(NONCE, Code.DONE, result), KEY)) in {Code.FORM, Code.SIZE}


@pytest.mark.parametrize("change", [
    {"code": "fine"}, {"code": ""}, {"code": "done|"}, {"code": 1}, {"code": ["done"]}, {"result": []},
    {"result": "x"}, {"nonce": "x"}, {"v": 2},
])  # fmt: skip
def test_a_reply_out_of_shape(change: dict[str, Any]) -> None:
    words = canonical({**json.loads(ANSWER[37:]), **change})
    assert told(forge(words, domain=b"luminous-rep-v1\0")) is Code.SCHEMA


# -- freshness and keys


@pytest.mark.parametrize(("late", "code"), [
    (0, None), (WINDOW_NS, None), (-WINDOW_NS, None), (WINDOW_NS + 1, Code.STALE), (-WINDOW_NS - 1, Code.STALE),
    (NOW, Code.STALE), (1 << 63, Code.STALE),
])  # fmt: skip
def test_a_request_is_of_now(late: int, code: Code | None) -> None:
    assert denial(lambda: fresh(REQUEST, NOW + late, BOOT)) is code


def test_a_request_is_of_this_boot() -> None:
    for boot in (str(uuid.UUID(int=0)), BOOT.upper(), ""):
        assert denial(partial(fresh, REQUEST, NOW, boot)) is Code.BOOT


@pytest.mark.parametrize(("until", "found"), [
    (NOW + 1, True), (NOW + GRACE_NS, True), (NOW, False), (NOW - 1, False), (0, False), (NOW + GRACE_NS + 1, False),
    (1 << 63, False),
])  # fmt: skip
def test_the_former_key_has_ten_minutes(until: int, found: bool) -> None:
    keys, frame = Keys(KEY, FORMER, until), encode_request(REQUEST, FORMER)
    assert asked(frame, keys) is (None if found else Code.KEY)
    assert keys.find(FORMER.id, NOW) is (FORMER if found else None)
    assert keys.find(KEY.id, NOW) is KEY
    assert keys.find(STRANGER.id, NOW) is None
    assert keys.find(b"", NOW) is None
    assert Keys(KEY, None, until).find(FORMER.id, NOW) is None


def test_the_reply_is_signed_with_the_key_of_the_request() -> None:
    request, key = parse_request(encode_request(REQUEST, FORMER), Keys(KEY, FORMER, NOW + 1), NOW)
    assert key is FORMER
    assert parse_reply(encode_reply(REPLY, key), FORMER, request.nonce).ok
    assert told(encode_reply(REPLY, key), KEY) is Code.KEY


@pytest.mark.parametrize("secret", [b"", b"\1" * 31, b"\1" * 33])
def test_a_key_of_another_length_is_none(secret: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Key(secret)


def test_a_key_is_not_shown() -> None:
    key = Key(b"very secret, and of 32 bytes, so")
    assert "secret, and" not in f"{key!r} {key} {Keys(key, key)!r}"


@pytest.mark.parametrize("code", Code)
def test_a_denial_has_a_code_and_no_word_of_the_asker(code: Code) -> None:
    denied = Denied(code)
    assert isinstance(denied, HealingError)
    assert (str(denied), denied.code, denied.hint) == (f"denied: {code}", code, "")


@pytest.mark.parametrize("text", [b"1" * 4000 + b"x", b"-1" * 2000 + b"x", b'"' * 4001, b'"a\\"' * 1000, b"{" * 4000])
def test_no_text_takes_longer_than_its_length(text: bytes) -> None:
    """A pattern that tries every way to cut a number apart would never end here."""
    assert asked(forge(text)) is Code.FORM
    assert asked(forge(b'{"args":{' + text[:3900] + b"}}")) is Code.FORM
