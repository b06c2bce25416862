"""Any bytes as a frame, and any words under a good mac: understood and written back to the same bytes, or Denied."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from luminous_nix.self_healing.privileged.protocol import (
    GRACE_NS,
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

KEY = Key(b"k" * 32)
BOOT, NONCE = "0b4cc36e-8e0c-4a2a-9d5f-6a1f0d8f6d11", "0" * 32
REQUESTS, REPLIES = b"luminous-req-v1\0", b"luminous-rep-v1\0"


def sealed(body: bytes, domain: bytes) -> bytes:
    signed = domain + KEY.id + len(body).to_bytes(4, "big") + body
    return b"\1" + KEY.id + hmac.new(KEY.secret, signed, hashlib.sha256).digest() + body


def reads(frame: bytes) -> bool:
    """Whether it is believed; if so, it is the one way to write what it says."""
    try:
        request, key = parse_request(frame, Keys(KEY), 0)
    except Denied:
        return False
    assert encode_request(request, key) == frame
    return True


def answers(frame: bytes) -> bool:
    try:
        reply = parse_reply(frame, KEY, NONCE)
    except Denied:
        return False
    assert encode_reply(reply, KEY) == frame
    return True


ASCII = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
HEX = st.text("0123456789abcdef", min_size=32, max_size=32)
WHOLE = st.integers(1 - (1 << 53), (1 << 53) - 1)
PLAIN = st.dictionaries(ASCII, st.one_of(ASCII, WHOLE, st.booleans(), st.lists(WHOLE, max_size=3)), max_size=4)
ACTS: st.SearchStrategy[tuple[str, dict[str, Any]]] = st.one_of(
    st.just(("observe", {})),
    st.tuples(st.just("adjust_swappiness"), st.fixed_dictionaries({"value": st.integers(0, 200)})),
    st.tuples(st.just("restart_service"), st.fixed_dictionaries(
        {"service": st.from_regex(r"\A[a-zA-Z0-9][a-z:_.\\-]{0,20}\.service\Z")}, optional={"again": st.booleans()})),
    st.tuples(st.just("run_plugin"), st.fixed_dictionaries({"name": st.just("mine"), "parameters": PLAIN})),
)  # fmt: skip
TIMES = st.integers(0, (1 << 64) - 1)


@st.composite
def requests(draw: st.DrawFn) -> Request:
    op, args = draw(ACTS)
    return Request(BOOT, draw(TIMES), draw(HEX), op, args, draw(st.booleans()), "unit_failed", 2 * draw(HEX))


REQUEST = Request(BOOT, 1 << 60, NONCE, "run_plugin", {"name": "mine", "issue": {"a": [1]}}, True, "disk", "e" * 64)
BODY = encode_request(REQUEST, KEY)[37:]
ANSWER = encode_reply(Reply(NONCE, Code.DONE, {"a": [1]}), KEY)[37:]
PIECES = st.one_of(
    st.binary(max_size=3),
    st.sampled_from(
        [b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b" ", b"0", b"-", b"1.0", b"1e9", b"NaN", b"null", b"true",
         b"\\u0061", b"\\ud800", b"\xc3\xa9", b"\xef\xbb\xbf", b"[" * 50, b"9" * 20, b'"v":1', b',"v":1', b'"a":']
    ),
)  # fmt: skip
EDITS = st.lists(st.tuples(st.integers(0, len(BODY)), st.integers(0, 4), PIECES), max_size=3)


def edited(body: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
    for at, cut, piece in edits:
        body = body[:at] + piece + body[at + cut :]
    return body


@given(st.binary(max_size=200))
def test_any_bytes_as_a_frame(data: bytes) -> None:
    assert not reads(data)
    assert not reads(b"\1" + KEY.id + data)
    assert not answers(b"\1" + KEY.id + data)


@given(st.binary(max_size=100))
def test_any_bytes_under_a_good_mac(data: bytes) -> None:
    assert not reads(sealed(data, REQUESTS))
    assert not answers(sealed(data, REPLIES))


@given(EDITS)
def test_a_good_body_edited(edits: list[tuple[int, int, bytes]]) -> None:
    reads(sealed(edited(BODY, edits), REQUESTS))
    answers(sealed(edited(ANSWER, edits), REPLIES))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from([*json.loads(BODY), "code", "result", "x"]), JSON, max_size=3), st.booleans())
def test_any_values_in_the_fields(changes: dict[str, Any], ascii_only: bool) -> None:
    for good, domain, check in ((BODY, REQUESTS, reads), (ANSWER, REPLIES, answers)):
        words = {**json.loads(good), **changes}
        text = json.dumps(words, sort_keys=True, separators=(",", ":"), ensure_ascii=ascii_only)
        believed = check(sealed(text.encode("utf-8", "surrogatepass"), domain))
        assert not believed or set(words) == set(json.loads(good))


@given(requests())
def test_what_is_asked_is_what_is_read(request: Request) -> None:
    frame = encode_request(request, KEY)
    assert parse_request(frame, Keys(KEY), 0) == (request, KEY)
    assert reads(frame)


@given(HEX, st.sampled_from(Code), PLAIN)
def test_what_is_answered_is_what_is_read(nonce: str, code: Code, result: dict[str, Any]) -> None:
    reply = Reply(nonce, code, result)
    assert parse_reply(encode_reply(reply, KEY), KEY, nonce) == reply


@given(TIMES, st.integers(0, 1 << 65), st.integers(0, 1 << 62))
def test_what_is_stale_stays_stale(time: int, now: int, later: int) -> None:
    """So a nonce may be forgotten as soon as its request is older than the window."""
    request = Request(BOOT, time, NONCE, "observe", {}, False, "disk", "e" * 64)

    def passes(at: int) -> bool:
        try:
            fresh(request, at, BOOT)
        except Denied:
            return False
        return True

    assert passes(now) == (time - WINDOW_NS <= now <= time + WINDOW_NS)
    assert not (now > time and not passes(now) and passes(now + later))


@given(st.integers(0, 1 << 62), st.integers(-2 * GRACE_NS, 2 * GRACE_NS))
def test_a_former_key_never_outlives_its_grace(until: int, offset: int) -> None:
    former = Key(b"f" * 32)
    found = Keys(KEY, former, until).find(former.id, until + offset)
    assert found is (former if -GRACE_NS <= offset < 0 else None)
