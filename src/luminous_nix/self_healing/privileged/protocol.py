"""What engine and helper say to each other: frames, canonical bytes, keys, freshness. [pure]

    frame = version (1 byte) | key id (4) | mac (32) | body, one in a packet
    mac = HMAC-SHA256 over domain | key id | length of the body (4 bytes, big endian) | body

The mac is checked over the bytes as they came, before anything is parsed; it never replaces the kernel's word about
the peer. The body is JSON with one way to write a value: what is signed, understood and logged cannot differ.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final

from ..decide.actions import CATALOGUE, specify
from ..models import Action, ActionRefused, HealingError

LONGEST_BODY: Final = 4 << 10
LONGEST_FRAME: Final = 16 << 10  # to receive at most: what is longer arrives cut, which no mac survives
WINDOW_NS: Final = 30_000_000_000
GRACE_NS: Final = 600_000_000_000  # of a former key
_REQUEST: Final = b"luminous-req-v1\0"
_REPLY: Final = b"luminous-rep-v1\0"
_VERSION: Final = b"\1"
_HEADER: Final = 1 + 4 + 32
# Printable ASCII without spaces between; no float, no null, no escape but of a quote and a backslash.
# Possessive, so that no text takes longer than its length: what a token took it does not give back.
_STRING: Final = rb'"(?:[ !#-\[\]-~]|\\["\\]){0,256}+"'
_TEXT: Final = re.compile(rb"(?:" + _STRING + rb"|-?[0-9]{1,16}+|true|false|[,:{}\[\]])*+")
_STRINGS: Final = re.compile(_STRING)
_PARTS: Final = re.compile(rb"[0-9]+|[{\[]|[}\]]")
_DEEPEST: Final = 4
_ENCODER: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


class Code(StrEnum):
    """All that one end tells the other of why: no word of the asker's is ever in it."""

    SIZE, VERSION, KEY, MAC = "size", "version", "key", "mac"  # nobody is answered: the connection just ends
    FORM, SCHEMA = "form", "schema"  # not canonical; a field is missing, unknown or out of shape
    OPERATION, ARGUMENTS = "operation", "arguments"
    BOOT, STALE, REPLAY = "boot", "stale", "replay"
    NONCE = "nonce"  # the answer to something else
    BUSY, REFUSED = "busy", "refused"  # full; by policy, a limit or a precheck. Nothing was touched
    DONE, FAILED, UNKNOWN = "done", "failed", "unknown"  # the last: begun, and nobody knows how it ended


_NONCE: Final = b'"[0-9a-f]{32}"'  # what a field's canonical JSON must match
_WORD: Final = b'"[a-z][a-z0-9_-]{0,31}"'
_REQUEST_FIELDS: Final = {
    "v": b"1", "boot_id": b'"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}"', "ts_boot_ns": b'"[0-9a-f]{16}"',
    "nonce": _NONCE, "op": _WORD, "args": rb"\{.*\}", "dry_run": b"true|false", "reason_code": _WORD,
    "evidence_hash": b'"[0-9a-f]{64}"',
}  # fmt: skip
_REPLY_FIELDS: Final = {"v": b"1", "nonce": _NONCE, "code": f'"(?:{"|".join(Code)})"'.encode(), "result": rb"\{.*\}"}
# One pattern for the whole body, whose names come in their order. Between the last brace of `args` or `result` and
# that of the body there is none, so what matches there are the body's own fields.
_FIELDS: Final = {
    domain: (patterns.keys(), re.compile(rb"\{" + rb",".join(
        b'"' + name.encode() + b'":(?:' + pattern + b")" for name, pattern in sorted(patterns.items())
    ) + rb"\}"))
    for domain, patterns in ((_REQUEST, _REQUEST_FIELDS), (_REPLY, _REPLY_FIELDS))
}  # fmt: skip


STATUS: Final = "status"
RESTORE: Final = "restore"
GRANT: Final = "grant"
_MOST_KNOBS: Final = 8


def _knobs(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= _MOST_KNOBS
        and all(
            isinstance(knob, list) and len(knob) == 3 and all(type(part) is str for part in knob) for knob in value
        )
    )


def _grantable(value: Any) -> bool:
    return isinstance(value, str) and value in CATALOGUE


def _bus_name(value: Any) -> bool:
    return value is None or (isinstance(value, str) and re.fullmatch(r":1\.[0-9]{1,15}", value, re.ASCII) is not None)


# The helper's operations beside those of the catalogue: each argument with what it must be.
OWN: Final[Mapping[str, Mapping[str, Callable[[Any], bool]]]] = MappingProxyType({
    STATUS: {},
    RESTORE: {"knobs": _knobs},
    # A person says yes to one operation with its arguments. `subject`: whom polkit asks; root needs none.
    GRANT: {"op": _grantable, "args": lambda value: isinstance(value, dict), "subject": _bus_name},
})  # fmt: skip


class Denied(HealingError):  # noqa: N818  like ActionRefused: an answer, not a malfunction
    """Not believed, not understood, or too late."""

    def __init__(self, code: Code) -> None:
        super().__init__(f"denied: {code}")
        self.code = code


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """32 random bytes. The id follows from them, so that no two ends can label one key differently."""

    secret: bytes = field(repr=False)
    id: bytes = field(init=False)

    def __post_init__(self) -> None:
        if len(self.secret) != 32:  # an empty file would make a key that everybody has
            raise ValueError("a key has 32 bytes")
        object.__setattr__(self, "id", hmac.digest(self.secret, b"luminous-key-id-v1\0", "sha256")[:4])


@dataclass(frozen=True, slots=True)
class Keys:
    """The key in force, and for a while the one before. `previous_until_ns` is on the clock of this boot."""

    current: Key
    previous: Key | None = None
    previous_until_ns: int = 0

    def find(self, key_id: bytes, now_boot_ns: int) -> Key | None:
        """Which key may verify now. A grace longer than any may be is another boot's or a mistake: there is none."""
        if key_id == self.current.id:
            return self.current
        in_grace = 0 < self.previous_until_ns - now_boot_ns <= GRACE_NS
        return self.previous if in_grace and self.previous and key_id == self.previous.id else None


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked for. Its arguments are those of the catalogue's row; nothing is read from the asker again."""

    boot_id: str
    ts_boot_ns: int
    nonce: str
    op: str
    args: Mapping[str, Any]
    dry_run: bool
    reason_code: str
    evidence_hash: str


@dataclass(frozen=True, slots=True)
class Reply:
    nonce: str  # the request's
    code: Code
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return self.code is Code.DONE


def encode_request(request: Request, key: Key) -> bytes:
    """The frame. Raises Denied for what `parse_request` would deny."""
    words = {name: getattr(request, name) for name in _REQUEST_FIELDS if name != "v"}
    # As hexadecimal digits, because nanoseconds since the boot pass 2**53, the end of JSON's integers, in 104 days.
    words |= {"v": 1, "args": dict(request.args), "ts_boot_ns": f"{request.ts_boot_ns:016x}"}
    frame = _seal(_REQUEST, key, _dumps(words))
    parse_request(frame, Keys(key), 0)
    return frame


def parse_request(frame: bytes, keys: Keys, now_boot_ns: int) -> tuple[Request, Key]:
    """The request, and the key that signed it: it signs the reply too. Raises Denied."""
    fields, key = _open(_REQUEST, frame, keys, now_boot_ns)
    args = _arguments(fields["op"], fields["args"])
    fields |= {"args": MappingProxyType(args), "ts_boot_ns": int(fields["ts_boot_ns"], 16)}
    return Request(**fields), key


def _arguments(op: str, given: dict[str, Any]) -> dict[str, Any]:
    """Checked, and in their one writing: `nginx` instead of `nginx.service` is another. Raises Denied."""
    if op in OWN:
        if given.keys() - OWN[op].keys() or not all(OWN[op][name](given.get(name)) for name in OWN[op]):
            raise Denied(Code.ARGUMENTS)
        if op == GRANT:
            _arguments(given["op"], given["args"])
        return given
    if op not in CATALOGUE:
        raise Denied(Code.OPERATION)
    try:
        args = specify(Action(op, given))[1]
    except ActionRefused:
        raise Denied(Code.ARGUMENTS) from None
    if args != given:
        raise Denied(Code.ARGUMENTS)
    return args


def frozen(op: str, args: Mapping[str, Any]) -> str:
    """What a person's word is bound to: this operation with these arguments, and no other."""
    return hashlib.sha256(b"luminous-frozen-v1\0" + _dumps({"op": op, "args": dict(args)})).hexdigest()


def fresh(request: Request, now_boot_ns: int, boot_id: str) -> None:
    """Raises Denied unless it is of this boot and of now. So long its nonce must be remembered: it comes once."""
    if request.boot_id != boot_id:
        raise Denied(Code.BOOT)
    if abs(now_boot_ns - request.ts_boot_ns) > WINDOW_NS:
        raise Denied(Code.STALE)


def encode_reply(reply: Reply, key: Key) -> bytes:
    """The frame. Raises Denied for what `parse_reply` would deny."""
    words = {"v": 1, "nonce": reply.nonce, "code": reply.code, "result": dict(reply.result)}
    body = _dumps(words)
    if len(body) > LONGEST_BODY:
        raise Denied(Code.SIZE)
    _fields(body, _REPLY)
    return _seal(_REPLY, key, body)


def parse_reply(frame: bytes, key: Key, nonce: str) -> Reply:
    """The answer to the request that had this nonce and was signed with this key. Raises Denied."""
    fields = _open(_REPLY, frame, Keys(key), 0)[0]
    if fields["nonce"] != nonce:
        raise Denied(Code.NONCE)
    return Reply(nonce, Code(fields["code"]), MappingProxyType(fields["result"]))


def _seal(domain: bytes, key: Key, body: bytes) -> bytes:
    signed = domain + key.id + len(body).to_bytes(4, "big") + body
    return _VERSION + key.id + hmac.digest(key.secret, signed, "sha256") + body


def _open(domain: bytes, frame: bytes, keys: Keys, now_boot_ns: int) -> tuple[dict[str, Any], Key]:
    if not _HEADER < len(frame) <= _HEADER + LONGEST_BODY:
        raise Denied(Code.SIZE)
    if frame[:1] != _VERSION:
        raise Denied(Code.VERSION)
    key = keys.find(frame[1:5], now_boot_ns)
    if key is None:
        raise Denied(Code.KEY)
    body = frame[_HEADER:]
    if not hmac.compare_digest(frame, _seal(domain, key, body)):
        raise Denied(Code.MAC)
    return _fields(body, domain), key


def _dumps(value: Any) -> bytes:
    try:
        return _ENCODER.encode(value).encode()
    except (TypeError, ValueError, RecursionError):
        raise Denied(Code.FORM) from None


def _plain(body: bytes) -> bool:
    """Whether the parser may see it: no token, number or depth that it could stumble over."""
    if not _TEXT.fullmatch(body):
        return False
    depth = 0
    for part in _PARTS.findall(_STRINGS.sub(b"", body)):
        if part.isdigit():
            if int(part) >= 1 << 53:
                return False
            continue
        depth += 1 if part in b"{[" else -1
        if depth > _DEEPEST:
            return False
    return True


def _fields(body: bytes, domain: bytes) -> dict[str, Any]:
    """All the fields and no other, each as its pattern says; the version is left out then."""
    try:
        fields = json.loads(body) if _plain(body) else None
    except ValueError:
        fields = None
    if not isinstance(fields, dict) or _dumps(fields) != body:  # a name that is there twice ends here too
        raise Denied(Code.FORM)
    names, pattern = _FIELDS[domain]
    if fields.keys() != names or not pattern.fullmatch(body):
        raise Denied(Code.SCHEMA)
    del fields["v"]
    return fields
