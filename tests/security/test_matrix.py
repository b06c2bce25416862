"""Who asks for what, with which key, and when: everything that is not exactly right is refused, and counted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from luminous_nix.self_healing.act.steps import UNLIMITED
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.decide.actions import CATALOGUE
from luminous_nix.self_healing.decide.policy import Mode, Policy, Rule
from luminous_nix.self_healing.privileged.broker import Caller, Rules
from luminous_nix.self_healing.privileged.keys import boot_ns
from luminous_nix.self_healing.privileged.protocol import GRACE_NS, WINDOW_NS, Code, Key, Keys, parse_reply
from tests.security.crowd import ENGINE, IS_ROOT, MALLORY, ROOT, WHO, Peer, peer, public_folder
from tests.security.helpers import EVERY_OP, KEY, Scene, asked, request, serving
from tests.unit.buses import BusDaemon, Systemd
from tests.unit.host import Clock, FakeHost

pytestmark = pytest.mark.anyio
FORMER, STRANGER = Key(b"\2" * 32), Key(b"\3" * 32)
OURS = WHO if IS_ROOT else {"engine": os.geteuid(), "mallory": os.geteuid()}  # the latter: where another is awaited
MIB = 1 << 20

# For each operation arguments that the protocol takes.
ARGUMENTS: Final[Mapping[str, Mapping[str, Any]]] = {
    "restart_service": {"service": "down.service"},
    "reload_service": {"service": "up.service"},
    "start_unit": {"unit": "down.service"},
    "rerun_timer": {"unit": "job.timer"},
    "limit_unit": {"unit": "up.service", "memory_high_bytes": 64 * MIB},
    "freeze_unit": {"unit": "up.service"},
    "thaw_unit": {"unit": "cold.service"},
    "adjust_swappiness": {"value": 10},
    "kill_process": {"pid": 4321, "start_time": 100},
    "run_plugin": {"name": "no-such-plugin"},
    "restore": {"knobs": [["vm.swappiness", "60", "10"]]},
    "grant": {"op": "adjust_swappiness", "args": {"value": 11}},
}
# What the host of this test allows; the others need a NixOS, a journal or programs, and end at their precheck.
POSSIBLE: Final = frozenset({
    "observe", "restart_service", "reload_service", "start_unit", "rerun_timer", "limit_unit", "freeze_unit",
    "thaw_unit", "clear_system_cache", "free_memory", "adjust_swappiness", "set_cpu_governor", "restart_network",
    "status",
})  # fmt: skip
UNITS: Final = frozenset({"down.service", "up.service", "cold.service", "job.service", "job.timer"})
AUTO: Final = Rules(UNITS, Policy(rules=(Rule(Mode.AUTO, "*", "*", "*"),)))

KEYS_SENT: Final = ("good", "bad", "former", "too old", "none")
TIMES: Final = ("fresh", "replayed", "future", "stale", "other boot")


def units() -> Systemd:
    names = ("MemoryHigh", "CPUWeight", "CPUQuotaPerSecUSec", "IOWeight")
    bounds: dict[str, tuple[str, Any]] = dict.fromkeys(names, ("t", UNLIMITED))
    systemd = Systemd()
    failed = {"Result": ("s", "exit-code"), "ExecMainCode": ("i", 1), "ExecMainStatus": ("i", 1)}
    systemd.put("down.service", "failed", "failed", typed=failed)
    systemd.put("job.service", "failed", "failed", typed=failed, TriggeredBy=("as", ["job.timer"]))
    systemd.put("job.timer", "active", "waiting", typed={"Unit": ("s", "job.service")})
    for name, state in (("up.service", "running"), ("cold.service", "frozen")):
        systemd.put(name, "active", "running", typed=bounds, FreezerState=("s", state), CanReload=("b", True))
    systemd.put("systemd-resolved.service", "active", "running")
    return systemd


@contextlib.asynccontextmanager
async def scenery(host: FakeHost, daemon: BusDaemon, path: Path | None = None) -> AsyncIterator[Scene]:
    """A host on which most of the catalogue can be done, and a dry actuator."""
    host.cpufreq("powersave")
    host.service_cache("up.service", 64 * MIB)
    os.chown(host.process(4321), 1000, -1) if IS_ROOT else host.process(4321)
    bus = Bus(daemon.address, clock=Clock())
    async with units().on(daemon.address):
        yield Scene(host, path, bus=bus, rules=AUTO)
        await bus.close()


@pytest.fixture
def public() -> Iterator[Path]:
    with public_folder() as folder:
        yield folder


def signed(op: str, key: str, time: str) -> bytes:
    """The frame of one combination, made now."""
    now = boot_ns()
    moments: dict[str, dict[str, Any]] = {
        "future": {"ts_boot_ns": now + WINDOW_NS + 3600 * 10**9},
        "stale": {"ts_boot_ns": max(0, now - WINDOW_NS - 10**9)},
        "other boot": {"boot_id": str(uuid.uuid4())},
    }
    by = {"good": KEY, "none": KEY, "bad": STRANGER}.get(key, FORMER)
    frame = request(op, key=by, args=ARGUMENTS.get(op, {}), **moments.get(time, {}))
    return frame[:5] + b"\0" * 32 + frame[37:] if key == "none" else frame


def told(answer: bytes, frame: bytes, key: str) -> Code | None:
    """The code of an answer that is ours, None when the connection just ended."""
    if not answer:
        return None
    nonce = frame[frame.index(b'"nonce":"') + 9 :][:32].decode()
    return parse_reply(answer, FORMER if key == "former" else KEY, nonce).code


AWAITED: Final = {"fresh": None, "replayed": Code.REPLAY, "future": Code.STALE, "stale": Code.STALE,
                  "other boot": Code.BOOT}  # fmt: skip


class Doors:
    """Two helpers over one broker: at one the former key has its grace, at the other that is over."""

    def __init__(self, scene: Scene, folder: Path) -> None:
        self.scene, self.young, self.old = scene, folder / "young.sock", folder / "old.sock"

    @contextlib.asynccontextmanager
    async def open(self, engine_uid: int) -> AsyncIterator[None]:
        young, old = Keys(KEY, FORMER, boot_ns() + GRACE_NS), Keys(KEY, FORMER, boot_ns())
        async with (
            serving(self.scene, self.young, keys=young, engine_uid=engine_uid),
            serving(self.scene, self.old, keys=old, engine_uid=engine_uid),
        ):
            yield

    def at(self, key: str) -> Path:
        return self.old if key == "too old" else self.young


async def test_every_combination(
    host: FakeHost, bus_daemon: BusDaemon, public: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Operation, user, key and time. What is not right in all four does nothing, gets no word, and is counted."""
    caplog.set_level(logging.WARNING)
    tried: Counter[str] = Counter()
    async with scenery(host, bus_daemon) as scene:
        doors = Doors(scene, public)
        for who, uid in OURS.items():
            engine = ENGINE if IS_ROOT else uid + (who == "mallory")
            async with doors.open(engine):
                with peer(uid, doors.young) as one, peer(os.geteuid(), doors.young) as first:
                    believed = who in {"root", "engine"}
                    for door in (doors.young, doors.old):  # which are older than the frames then
                        await asyncio.to_thread(first.talk, request("status"), at=door)
                    for op in EVERY_OP:
                        for key in KEYS_SENT:
                            for time in TIMES:
                                await combination(doors, one, first, believed, op, key, time, tried)
    assert "error of this program" not in caplog.text
    assert tried["refused"] >= (3000 if IS_ROOT else 1000)
    assert tried["accepted"] >= (2 if IS_ROOT else 1) * 2 * (len(EVERY_OP) - 1)
    assert sum(1 for op in EVERY_OP if tried[op]) >= len(POSSIBLE)


async def combination(
    doors: Doors, one: Peer, first: Peer, believed: bool, op: str, key: str, time: str, tried: Counter[str]
) -> None:  # fmt: skip
    scene, at = doors.scene, doors.at(key)
    frame = signed(op, key, time)
    if time == "replayed":
        await asyncio.to_thread(first.talk, frame, at=at)
    steps, acts = len(scene.runner.steps), len(scene.register.acts())
    counted = sum(scene.broker.counts.values())
    (answer,) = await asyncio.to_thread(one.talk, frame, at=at)
    code = told(answer, frame, key)
    name = (one.uid, op, key, time, code)
    known = believed and key in {"good", "former"}
    if known and time == "fresh":
        tried["accepted"] += 1
        assert code in {Code.DONE, Code.REFUSED}, name
        assert code is Code.DONE or op not in POSSIBLE, name
        tried[op] += code is Code.DONE
        return
    tried["refused"] += 1
    assert code is (AWAITED[time] if known else None), name
    assert (len(scene.runner.steps), len(scene.register.acts())) == (steps, acts), name
    assert sum(scene.broker.counts.values()) == counted + 1, name


STOPPED: Final = [
    (AUTO._replace(allowed=frozenset()), "is not among the units"),
    (AUTO._replace(policy=Policy(rules=(Rule(Mode.OBSERVE, "*", "*", "*"),))), "observe, so nothing is done"),
    (AUTO._replace(policy=Policy(rules=(Rule(Mode.CONFIRM, "*", "*", "*"),))), "a person is asked first"),
    (AUTO._replace(stopped="healing_enabled = false"), "nothing may act"),
]


@pytest.mark.parametrize(("rules", "why"), STOPPED, ids=["allow-list", "observe", "confirm", "stopped"])
async def test_every_operation_is_held_by_every_rule(
    host: FakeHost, bus_daemon: BusDaemon, rules: Rules, why: str
) -> None:
    """The engine, with its key, asks for all of the catalogue: what root's configuration says is what happens."""
    held = 0
    async with scenery(host, bus_daemon) as scene:
        scene.rules = rules
        for op in CATALOGUE:
            code, said = await scene.broker.answer(asked(op, args=ARGUMENTS.get(op, {})), Caller(ENGINE, 1))
            held += why in said.get("reason", "")
            if why != "is not among the units" or "service" in str(ARGUMENTS.get(op, {})):
                assert code is Code.REFUSED, (op, said)
        assert held >= (6 if "units" in why else len(POSSIBLE) - 1), held
        if "units" not in why:
            assert scene.runner.steps == []
            assert scene.register.acts() == []


@pytest.mark.skipif(not IS_ROOT, reason="another user is needed: root only")
async def test_a_name_of_an_address_is_nobody(host: FakeHost, public: Path) -> None:
    """dirty_sock: the address of the client's own end is the client's to choose, and is never looked at."""
    scene, at = Scene(host), public / "helper.sock"
    own = public / "own"
    own.mkdir(mode=0o777)
    own.chmod(0o777)
    async with serving(scene, at, engine_uid=ENGINE):
        with peer(MALLORY, at) as mallory, peer(ENGINE, at) as engine:
            for name in ("x;uid=0;", f"x;uid={ENGINE};", "x uid=0 pid=1", "x\n0\n"):
                sent = await asyncio.to_thread(mallory.talk, request(), bound=str(own / name))
                assert sent == [b""], name
            assert scene.register.acts() == []
            assert await asyncio.to_thread(engine.talk, request(), bound=str(own / "y;uid=61004;")) != [b""]
    assert [line["uid"] for line in scene.register.lines()] == [MALLORY] * 4 + [ENGINE] * 2


@pytest.mark.skipif(not IS_ROOT, reason="another user is needed: root only")
async def test_the_mode_of_the_socket_keeps_others_outside(host: FakeHost, public: Path) -> None:
    """As systemd makes it: root and the engine's group."""
    scene, at = Scene(host), public / "helper.sock"
    async with serving(scene, at, engine_uid=ENGINE):
        at.chmod(0o660)
        os.chown(at, 0, ENGINE)
        with peer(ENGINE, at) as engine, peer(MALLORY, at) as mallory, peer(ROOT, at) as root:
            assert await asyncio.to_thread(engine.talk, request()) != [b""]
            assert await asyncio.to_thread(root.talk, request()) != [b""]
            with pytest.raises(ConnectionError, match="Permission denied"):
                await asyncio.to_thread(mallory.talk, request())
    assert len(scene.register.acts()) == 2


@pytest.mark.skipif(not IS_ROOT, reason="another user is needed: root only")
async def test_credentials_that_are_sent_along_are_not_those_of_the_peer(host: FakeHost, public: Path) -> None:
    """SCM_CREDENTIALS may be chosen by who has the right; SO_PEERCRED is fixed at connect."""
    scene, at = Scene(host), public / "helper.sock"
    code = """if True:
        import os, socket, struct, sys
        os.setresuid(61004, 61004, 0)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(sys.argv[1])
        os.setresuid(0, 0, 0)
        try:
            claimed = struct.pack("3i", os.getpid(), 0, 0)
            connection.sendmsg([bytes.fromhex(sys.argv[2])], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, claimed)])
            print(connection.recv(1 << 16))
        except OSError:
            print(b"")
    """
    async with serving(scene, at, engine_uid=ENGINE):
        argv = [sys.executable, "-I", "-S", "-c", code, str(at), request().hex()]
        done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("b''\n", "")
    assert scene.register.acts() == []


# -- the engine's unit ----------------------------------------------------------------------------------------

UNIT = "luminous-healing.service"
INSIDE = [
    "0::/system.slice/luminous-healing.service\n",
    "1:name=systemd:/system.slice/luminous-healing.service\n0::/\n",
    "0::/system.slice/system-healing.slice/luminous-healing.service\n",
]
OUTSIDE = [
    "0::/system.slice/other.service\n",
    "0::/user.slice/user-61001.slice/user@61001.service/app.slice/luminous-healing.service\n",
    "0::/user.slice/user-61001.slice/session-1.scope/luminous-healing.service\n",
    "0::/system.slice/other.service/luminous-healing.service\n",
    "0::/system.slice/luminous-healing.service (deleted)\n",
    "0::/system.slice/xluminous-healing.service\n",
    "4:memory:/system.slice/other.service/system.slice/luminous-healing.service\n0::/system.slice/other.service\n",
    "", "\n", "0::/\n",
]  # fmt: skip


@pytest.mark.parametrize(("cgroup", "inside"), [*((one, True) for one in INSIDE), *((one, False) for one in OUTSIDE)])
async def test_the_engine_speaks_from_its_own_unit(
    host: FakeHost, public: Path, tmp_path: Path, cgroup: str, inside: bool
) -> None:
    """A group that somebody else may make, and may name as he likes, is not it."""
    scene, at = Scene(host), public / "helper.sock"
    uid = ENGINE if IS_ROOT else os.geteuid()
    async with serving(scene, at, engine_uid=uid, engine_unit=UNIT, proc=tmp_path):
        with peer(uid, at) as engine:
            (tmp_path / str(engine.pid)).mkdir()
            (tmp_path / str(engine.pid) / "cgroup").write_text(cgroup, "ascii")
            frame = request()
            (answer,) = await asyncio.to_thread(engine.talk, frame)
    assert told(answer, frame, "good") is (Code.DONE if inside else Code.REFUSED)
    assert len(scene.runner.steps) == inside
