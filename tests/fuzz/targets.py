"""What must hold for any bytes: each check returns, or the defect comes out of it.

A check says in its own words what may be accepted: it shares no pattern with what it checks.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from random import Random
from typing import Any

from luminous_nix.self_healing.act.operations import World
from luminous_nix.self_healing.act.operations.knobs import set_knob
from luminous_nix.self_healing.act.steps import SetProperties, UnitJob, WriteFile
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.config import KEYS, load
from luminous_nix.self_healing.control import Peer, Verb, _no, _request, checked, encode
from luminous_nix.self_healing.decide.actions import CATALOGUE, protected, valid_unit
from luminous_nix.self_healing.deploy.install import allowed_units
from luminous_nix.self_healing.deploy.polkit import act_patterns, rule
from luminous_nix.self_healing.deploy.tree import Tree
from luminous_nix.self_healing.desk import _VERBS
from luminous_nix.self_healing.models import ActionRefused, ConfigError, HealingError, Roots
from luminous_nix.self_healing.observe.procfs import (
    cpu_percent,
    parse_cpu,
    parse_load,
    parse_memory,
    parse_mountinfo,
    parse_pressure,
    parse_process,
    real_filesystems,
)
from luminous_nix.self_healing.privileged.protocol import (
    OWN,
    Code,
    Denied,
    Key,
    Keys,
    Reply,
    Request,
    encode_reply,
    encode_request,
    parse_reply,
    parse_request,
)
from luminous_nix.self_healing.privileged.ways import POWERS, PREFIX, power_of

from .vary import Vary, json_changed, toml_changed, torn

_TORN = torn()


@dataclass(frozen=True, slots=True)
class Target:
    check: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    vary: Vary = _TORN


KEY, FORMER = Key(b"k" * 32), Key(b"f" * 32)
BOOT, NONCE = "0b4cc36e-8e0c-4a2a-9d5f-6a1f0d8f6d11", "00112233445566778899aabbccddeeff"
_REQUESTS, _REPLIES = b"luminous-req-v1\0", b"luminous-rep-v1\0"
_LOWER, _DIGITS = "abcdefghijklmnopqrstuvwxyz", "0123456789"
_UNIT_SIGNS = set(_LOWER + _LOWER.upper() + _DIGITS + ":_.@\\-")


# -- frames --------------------------------------------------------------------------------------------------


def _sealed(domain: bytes, body: bytes, key: Key) -> bytes:
    """As the protocol's text says, and not by its code."""
    signed = domain + key.id + len(body).to_bytes(4, "big") + body
    return b"\1" + key.id + hmac.new(key.secret, signed, hashlib.sha256).digest() + body


def _parsed_request(frame: bytes, keys: Keys) -> tuple[Request, Key] | None:
    try:
        return parse_request(frame, keys, 0)
    except Denied:
        return None


def _parsed_reply(frame: bytes) -> Reply | None:
    try:
        return parse_reply(frame, KEY, NONCE)
    except Denied:
        return None


def frame(data: bytes) -> None:
    """Any bytes: believed only with a good mac of a key in force."""
    if found := _parsed_request(data, Keys(KEY, FORMER, 1)):
        request, key = found
        assert key in {KEY, FORMER}
        assert data == _sealed(_REQUESTS, data[37:], key) == encode_request(request, key)
    if reply := _parsed_reply(data):
        assert data == _sealed(_REPLIES, data[37:], KEY) == encode_reply(reply, KEY)


def body(data: bytes) -> None:
    """Any bytes under a good mac: believed only as the one way to write what they say."""
    if found := _parsed_request(sealed := _sealed(_REQUESTS, data, KEY), Keys(KEY)):
        request, _ = found
        words = _canonical(data)
        assert encode_request(request, KEY) == sealed
        assert set(words) == {"v", "boot_id", "ts_boot_ns", "nonce", "op", "args", "dry_run", "reason_code",
                              "evidence_hash"}  # fmt: skip
        assert type(words["dry_run"]) is bool
        assert _hex(words["nonce"], 32)
        assert _hex(words["ts_boot_ns"], 16)
        assert _hex(words["evidence_hash"], 64)
        assert _hex(words["boot_id"].replace("-", ""), 32)
        assert set(words["reason_code"]) <= set(_LOWER + _DIGITS + "_-")
        _known(words["op"], words["args"])
    if reply := _parsed_reply(sealed := _sealed(_REPLIES, data, KEY)):
        words = _canonical(data)
        assert encode_reply(reply, KEY) == sealed
        assert set(words) == {"v", "nonce", "code", "result"}
        assert words["nonce"] == NONCE
        assert words["code"] in set(Code)


def _canonical(data: bytes) -> dict[str, Any]:
    words: dict[str, Any] = json.loads(data)
    assert json.dumps(words, sort_keys=True, separators=(",", ":")).encode() == data
    assert len(data) <= 4096
    assert type(words["v"]) is int
    assert words["v"] == 1
    _plain(words, 1)
    return words


def _plain(value: Any, depth: int) -> None:
    if isinstance(value, dict | list):
        assert depth <= 4
        for inner in [*value, *value.values()] if isinstance(value, dict) else value:
            _plain(inner, depth + 1)
    elif isinstance(value, str):
        assert len(value) <= 256
        assert all(" " <= sign <= "~" for sign in value)
    else:
        assert type(value) is bool or (type(value) is int and abs(value) < 1 << 53)


def _known(op: str, args: Mapping[str, Any]) -> None:
    assert op in CATALOGUE or op in OWN
    assert set(args) <= set(OWN[op] if op in OWN else CATALOGUE[op].arguments)
    for name in ("service", "unit"):
        assert name not in args or is_unit(args[name])
    if op == "grant":
        _known(args["op"], args["args"])


def _hex(text: Any, length: int) -> bool:
    return type(text) is str and len(text) == length and set(text) <= set(_DIGITS + "abcdef")


# -- names ---------------------------------------------------------------------------------------------------


def is_unit(name: str) -> bool:
    stem, _, kind = name.rpartition(".")
    return (
        kind in {"service", "socket", "timer", "mount"}
        and 1 <= len(stem) <= 201
        and set(stem) <= _UNIT_SIGNS
        and stem[0] not in ":.@\\-"
        and not stem.endswith("@")
    )


def unit(data: bytes) -> None:
    """Any text as the name of a unit."""
    text = data.decode("utf-8", "surrogateescape")
    with contextlib.suppress(ValueError):
        name = valid_unit(text)
        assert name in {text, f"{text}.service"}
        assert is_unit(name)
        assert valid_unit(name) == name


_LONGEST_NAME = 255  # unit-name.h
_ALLOWED = ("web.service", "a@b.service", "x\\x2dy.service", "_z:1.service")
_ACTS = re.compile("|".join(act_patterns(_ALLOWED)).replace("$", r"\Z"))  # where JavaScript's $ matches
_WORLD = World(
    Bus("unix:path=/nonexistent/bus", clock=lambda: 0.0), Roots(*map(Path, ("/p", "/s", "/r", "/j", "/n")))
)


def power(data: bytes) -> None:
    """Any text as the name of an act unit: what is one names its power and instance, and systemd can have it."""
    text = data.decode("utf-8", "surrogateescape")
    found, polkit_says = power_of(text), _ACTS.search(text) is not None
    if found is None:
        assert not polkit_says or len(text) > _LONGEST_NAME
        return
    row, instance = found
    unit = instance.rpartition(":")[0] if row.name == "reclaim" else instance
    assert polkit_says is (not row.allowed or unit in _ALLOWED)
    assert row is POWERS[row.name]
    assert (
        row.unit(instance)
        == text
        == PREFIX + row.name + ("" if row.instance is None else f"@{instance}") + ".service"
    )
    assert (row.instance is None) is (instance == "")
    assert set(text) <= _UNIT_SIGNS
    assert len(text) <= _LONGEST_NAME


def knob(data: bytes) -> None:
    """Any text as the name of a knob and its value: what is one becomes a known path or call."""
    name, _, value = data.decode("utf-8", "surrogateescape").partition("=")
    try:
        step = set_knob(_WORLD, name, value)
    except ActionRefused:
        return
    assert name.isascii()
    assert value.isascii()
    if isinstance(step, WriteFile):
        parts = str(step.path).split("/")
        if parts[-1] == "scaling_governor":
            assert parts[:5] == ["", "s", "devices", "system", "cpu"]
            assert parts[5] == "cpufreq"
            assert parts[6].startswith("policy")
            assert parts[6].removeprefix("policy").isdecimal()
            assert len(parts) == 8
        else:
            assert parts == ["", "p", "sys", "vm", "swappiness"]
            assert 0 <= int(value) <= 200
        assert step.text == value
        which, _, instance = step.power.partition("@")
        assert power_of(POWERS[which].unit(instance)) == (POWERS[which], instance)
        return
    assert isinstance(step, SetProperties | UnitJob)
    assert is_unit(step.unit)
    assert step.unit.endswith(".service")
    assert not protected(step.unit)
    if isinstance(step, SetProperties):
        ((_, kind, number),) = step.properties
        assert kind == "t"
        assert 0 <= number < 1 << 64
    else:
        assert step.method in {"FreezeUnit", "ThawUnit"}


# -- settings ------------------------------------------------------------------------------------------------


class Configuration:
    """A file's text, and after a NUL the environment as NAME=VALUE lines."""

    def __init__(self, root: Path) -> None:
        self._tree, self._path = Tree(root), root / "etc/luminous-healing/config.toml"
        self._path.parent.mkdir(parents=True)
        self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def __call__(self, data: bytes) -> None:
        text, _, rest = data.partition(b"\0")
        pairs = [line.partition("=") for line in rest.decode("utf-8", "surrogateescape").split("\n") if line]
        environment = {f"LUMINOUS_HEALING_{name}": value for name, _, value in pairs}
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text, 0)
        installed = self._installed()
        try:
            loaded = load(self._path, environment)
        except ConfigError as error:
            if not error.problems:
                raise
            return
        settings = loaded.settings
        assert 1 <= settings.interval <= 86400
        assert 0 <= settings.limits.heals_per_hour <= 10
        assert 300 <= settings.limits.cooldown_s <= 86400
        assert settings.limits.others
        assert all(is_unit(name) and not protected(name) for name in settings.allowed_units)
        assert all(0 <= value <= 1e6 for value in settings.thresholds.values())
        assert isfinite(settings.policy.boot_grace_s + settings.policy.resume_grace_s + settings.policy.confirm_s)
        assert rule(settings.allowed_units).isascii()
        json.dumps([row[:2] for row in loaded.rows()], allow_nan=False)
        for spec in CATALOGUE.values():
            settings.policy.mode_of(spec, {}, "web.service")
        if not any(name.startswith("LUMINOUS_HEALING_ALLOWED_UNITS") for name in map(str.upper, environment)):
            assert installed == tuple(
                dict.fromkeys(settings.allowed_units)
            )  # polkit is told what the helper believes

    def _installed(self) -> tuple[str, ...] | None:
        try:
            return allowed_units(self._tree, strict=False)
        except HealingError:
            return None


# -- the kernel's tables -------------------------------------------------------------------------------------


def _percent(value: float | None) -> bool:
    return value is None or 0.0 <= value <= 100.0 + 1e-9  # one rounding of 100 * a / b


def cpu(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        busy, total = parse_cpu(data)
        assert 0 <= busy <= total
        assert _percent(cpu_percent((0, 0), (busy, total)))


def memory(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        used, swap = parse_memory(data)
        assert _percent(used)
        assert _percent(swap)


def load_average(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        load = parse_load(data)
        assert isfinite(load)
        assert load >= 0


def pressure(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        some, full = parse_pressure(data)
        assert _percent(some)
        assert _percent(full)


def process(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        stat = parse_process(data)
        assert stat.command.isascii()
        assert stat.command.isprintable()
        assert type(stat.parent) is type(stat.start_time) is int


def mounts(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    found = parse_mountinfo(text)
    assert len(found) <= text.count(" - ")
    for tmpfs in (False, True):
        paths = real_filesystems(found, tmpfs=tmpfs)
        assert set(paths) <= {mount.path for mount in found}
        assert list(paths) == sorted(set(paths))
        assert len(paths) <= len({mount.device for mount in found})


# -- the control socket --------------------------------------------------------------------------------------


async def _unserved(arguments: Mapping[str, Any], peer: Peer) -> dict[str, Any]:
    raise AssertionError((arguments, peer))


VERBS = {name: Verb(rights, takes, _unserved, optional) for name, (rights, takes, _, optional) in _VERBS.items()}


def control(data: bytes) -> None:
    """A request's line, with the verbs that an engine has; the answer is one line in any case."""
    try:
        name, given = _request(data)
        assert type(name) is str
        assert type(given) is dict
        answer = encode({"ok": True, "result": checked(VERBS[name], given) if name in VERBS else given})
    except HealingError as error:
        answer = _no(error.message, error.hint)
    assert answer.isascii()
    assert answer.index(b"\n") == len(answer) - 1
    json.loads(answer)


# -- all of them ---------------------------------------------------------------------------------------------


def _asks(op: str, args: Mapping[str, Any]) -> bytes:
    return encode_request(Request(BOOT, 1 << 60, NONCE, op, args, False, "disk", "e" * 64), KEY)


_ASKED = tuple(
    _asks(op, args)
    for op, args in (
        ("observe", {}), ("status", {}), ("restart_service", {"again": True, "service": "web.service"}),
        ("adjust_swappiness", {"value": 10}), ("kill_process", {"pid": 77, "start_time": 5}),
        ("limit_unit", {"unit": "web.service", "memory_high_bytes": 1 << 30}), ("prune_generations", {"keep": 3}),
        ("run_plugin", {"name": "mine", "parameters": {"a": [1, "two"]}, "unit": "web.service"}),
        ("clean_disk", {"filesystem": "/"}), ("restore", {"knobs": [["vm.swappiness", "60", "10"]]}),
        ("grant", {"op": "rebuild_system", "args": {}, "subject": ":1.5"}),
    )
)  # fmt: skip
_TOLD = tuple(
    encode_reply(Reply(NONCE, code, result), KEY)
    for code, result in ((Code.DONE, {"a": [1, {"b": True}]}), (Code.REFUSED, {"reason": "why", "hint": "how"}))
)
_UNITS = (*_ALLOWED, "nginx", "a.socket", "b.timer", "c.mount", "d@.service", "-.mount", "a" * 201 + ".service")
_POWERS = (
    *(row.unit() for row in POWERS.values() if row.instance is None),
    *(PREFIX + rest + ".service" for rest in (
        "swappiness@60", "governor@policy0:performance", "reclaim@web.service:1048576", "freeze@a@b.service",
        "thaw@x\\x2dy.service", "journal@16777216", "gc@104857600", "generations@1-2-30", "rollback@12",
        "plugin@mine",
        "reclaim@" + "a" * 201 + ".service:10000000000000",
    )),
)  # fmt: skip
_KNOBS = (
    "vm.swappiness=60", "vm.swappiness=200", "cpufreq:policy0=performance", "unit:web.service:MemoryHigh=1048576",
    "unit:web.service:CPUQuotaPerSecUSec=infinity", "unit:a@b.service:IOWeight=100", "frozen:web.service=1",
    "frozen:web.service=0",
)  # fmt: skip
_SETTINGS = (
    """interval = 5
mode = "dev"
dry_run = true
allowed_units = ["web.service", "a@b.service"]
""",
    """enabled_checks = ["cpu", "services"]
monitored_units = ["web"]
ignore_mounts = ["/mnt/*"]
[thresholds]
cpu = 75
load_average = 4.5
[limits]
heals_per_hour = 3
cooldown_seconds = 600
""",
    """[policy]
mode = "confirm"
maintenance = ["Sat,Sun 02:00-04:00"]
boot_grace_seconds = 0
[[policy.rules]]
mode = "auto"
unit = "web*"
action = "restart_*"
category = "service"
""",
    """interval = 5
\0interval=7
ALLOWED_UNITS=a.service,b.service
THRESHOLDS__CPU=0x10
LIMITS__HEALS_PER_HOUR=2
POLICY__MODE="observe"
DRY_RUN=yes
""",
)
_TOML = (
    b"[policy]", b"[[policy.rules]]", b"[limits]", b"[thresholds]", b" = ", b"'''", b'"""', b"inf", b"nan",
    b"1979-05-27",
    b"allowed_units = ['sshd.service']", b"allowed_units = ['nginx']", b"{a = 1}", b"interval", b"07:32:00",
    b"# ", b"[[",
    b"\0LIMITS__COOLDOWN_SECONDS=", b"]]", b"0b1", b"1_000", b"\\U0001F600",
)  # fmt: skip
_MEMINFO = (
    b"MemTotal:  8000000 kB\nMemFree:  1000000 kB\nMemAvailable:  4000000 kB\nSwapTotal:  100 kB\nSwapFree:  40 kB\n"
)
_PRESSURE = (
    b"some avg10=0.00 avg60=1.50 avg300=0.00 total=123\n",
    b"some avg10=0.00 avg60=1.50 avg300=0.00 total=123\nfull avg10=0.00 avg60=99.99 avg300=0.00 total=1\n",
)
_MOUNTS = (
    b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n23 22 0:20 / /tmp rw - tmpfs tmpfs rw\n",
    b"30 22 0:30 / /mnt/a\\040b rw - fuse.sshfs me@there rw\n31 22 7:0 / /snap rw - squashfs /dev/loop0 ro\n",
)
_LINES = tuple(
    json.dumps({"schema": 1, "do": name, "arguments": given}).encode() + b"\n"
    for name, given in (
        ("status", {}), ("history", {"component": "web", "number": 5}), ("explain", {"what": "web.service"}),
        ("silence", {"pattern": "web*", "seconds": 60.5, "reason": "why"}), ("resume", {"breakers": True}),
        ("undo", {"id": "ab12"}),
    )
)  # fmt: skip
_AMOUNTS = (
    b"kB", b"-1", b"0", b"1" * 30, b"1e308", b"1_0", b"cpu ", b"some", b"full", b" avg60=", b"inf", b"101",
    b")", b"(",
)  # fmt: skip
_JSON = json_changed(
    *CATALOGUE, *OWN, "service", "unit", "args", "value", "knobs", ":1.1", NONCE, BOOT, {"service": "web.service"}
)


def _texts(*texts: str) -> tuple[bytes, ...]:
    return tuple(text.encode() for text in texts)


def targets(scratch: Path) -> Mapping[str, Target]:
    """`scratch` is an empty directory, or will be made."""
    amounts = torn(*_AMOUNTS)
    units = (b"unit:", b"frozen:", b"cpufreq:", b"=", b":MemoryHigh", b"web.service")
    table = torn(b" - ", b"\\040", b"\\134", b"/dev/", b"overlay", b"zfs", b"tmpfs", b"0:20")
    return {
        "frame": Target(frame, (*_ASKED, *_TOLD, b"\1" + FORMER.id + b"\0" * 40)),
        "body": Target(body, tuple(found[37:] for found in (*_ASKED, *_TOLD)), _JSON),
        "unit": Target(unit, _texts(*_UNITS)),
        "power": Target(power, _texts(*_POWERS), torn(PREFIX.encode(), b"web.service", b":1048576", b"-1")),
        "knob": Target(knob, _texts(*_KNOBS), torn(*units)),
        "config": Target(Configuration(scratch), _texts(*_SETTINGS), toml_changed(KEYS, *_TOML)),
        "cpu": Target(cpu, (b"cpu  1 2 3 4 5 6 7 8 9 10\ncpu0 1 2 3\n",), amounts),
        "memory": Target(memory, (_MEMINFO, _MEMINFO.replace(b" 100 kB", b" 0 kB")), amounts),
        "load": Target(load_average, (b"0.52 0.58 0.59 1/467 12345\n",), amounts),
        "pressure": Target(pressure, _PRESSURE, amounts),
        "process": Target(process, (b"77 (a b) c) S 1 77 77 0 -1 4 1 2 3 4 5 6 7 8 20 0 1 0 4711 9 9\n",), amounts),
        "mounts": Target(mounts, _MOUNTS, table),
        "control": Target(control, _LINES, json_changed("do", "schema", "arguments", *VERBS, "pattern", "id",
        1e308, 60)),
    }  # fmt: skip


def varied(target: Target, random: Random, number: int) -> Iterator[bytes]:
    """Inputs without a fuzzer: the seeds, and what changes make of them and of each other."""
    pool = list(target.seeds)
    yield from pool
    for _ in range(number - len(pool)):
        data = target.vary(random.choice(pool), random)
        if len(pool) < 64 and random.random() < 0.01:
            pool.append(data)
        yield data
