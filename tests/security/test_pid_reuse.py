"""Who is ended is who was meant, whatever happens to his number; and whose word counts is who gave it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import select
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, MessageType, new_error, new_method_return
from jeepney.bus_messages import message_bus
from jeepney.io.asyncio import DBusConnection, open_dbus_connection

from luminous_nix.self_healing.act.steps import EndProcess
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.decide.policy import Mode, Policy
from luminous_nix.self_healing.privileged.broker import Caller, Rules
from luminous_nix.self_healing.privileged.protocol import Code
from luminous_nix.self_healing.privileged.service import Polkit
from tests.security.crowd import ENGINE, IS_ROOT, NOBODY, public_folder
from tests.security.helpers import Scene, asked, dial, request, serving
from tests.security.pidreuse import MOMENTS, ROOT, command
from tests.unit.host import Clock, FakeHost

pytestmark = pytest.mark.anyio
ENGINES = Caller(ENGINE, 1)


def rounds(number: int, *more: str) -> dict[str, Any]:
    if not IS_ROOT:
        pytest.skip("a pid namespace with other users in it is needed: root only")
    env = {"PATH": os.defpath, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    if shutil.which("unshare") is None or subprocess.run([*command()[:5], "true"], check=False).returncode:
        pytest.skip("no pid namespace may be made here")
    done = subprocess.run(command("--rounds", str(number), *more), cwd=ROOT, env=env, check=False, text=True,
                          capture_output=True, timeout=600)  # fmt: skip
    assert done.stdout, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_no_innocent_is_hit() -> None:
    """Ten thousand: `python -m tests.security.pidreuse`."""
    told = rounds(250)
    assert told["wrong_kills"] == 0, told
    assert told["right_kills"] == told["never"] > 0
    assert set(MOMENTS) <= told.keys()
    assert told["innocents alive"] == told["changed hands"] > 100


def test_by_the_bare_number_some_would_be_hit() -> None:
    """So that the test above is known to see it."""
    told = rounds(100, "--naive")
    assert told["wrong_kills"] == sum(told[moment] for moment in MOMENTS[2:]) > 0, told


# -- a second frame ----------------------------------------------------------------------------------------------


async def test_a_second_packet_changes_nothing_of_the_first(host: FakeHost, tmp_path: Path) -> None:
    """Checked, kept and done is one and the same, whatever comes behind it at whatever moment."""
    for pid in (4321, 4322):
        folder = host.process(pid)
        if IS_ROOT:
            os.chown(folder, 1000, -1)
    at, scene = tmp_path / "helper.sock", Scene(host)

    def talk(pause: float) -> None:
        with dial(at) as connection:
            connection.send(request("kill_process", args={"pid": 4321, "start_time": 100}))
            select.select([], [], [], pause)
            with contextlib.suppress(BrokenPipeError):
                connection.send(request("kill_process", args={"pid": 4322, "start_time": 100}))
            with contextlib.suppress(ConnectionResetError):
                connection.recv(1 << 16)

    async with serving(scene, at):
        for number in range(20):
            await asyncio.to_thread(talk, number / 5000)
    done = [step.pid for step in scene.runner.steps if isinstance(step, EndProcess)]
    kept = [json.loads(line["args"])["pid"] for line in scene.register.lines() if line["event"] == "intent"]
    rest = iter(kept)
    assert all(pid in rest for pid in done), (done, kept)  # in this order; what was let go of was kept, and not done
    assert 4321 in done


# -- whose word --------------------------------------------------------------------------------------------------

_BUS = """<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "busconfig.dtd">
<busconfig><type>system</type><listen>{address}</listen><auth>EXTERNAL</auth>
<policy context="default"><allow user="*"/><allow own="*"/><allow send_type="method_call"/>
<allow send_destination="*"/><allow receive_type="method_call"/><allow receive_type="method_return"/>
<allow receive_type="error"/><allow receive_type="signal"/></policy></busconfig>
"""
_SUBJECT = """if True:
    import os, re, socket, sys
    uid = int(sys.argv[1])
    os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
    bus = socket.socket(socket.AF_UNIX)
    bus.connect(sys.argv[2])
    bus.send(b"\\0AUTH EXTERNAL " + str(uid).encode().hex().encode() + b"\\r\\n")
    assert bus.recv(4096).startswith(b"OK")
    bus.send(b"BEGIN\\r\\n" + bytes.fromhex(sys.argv[3]))
    print(re.search(rb":1\\.[0-9]+", bus.recv(4096))[0].decode(), flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def open_bus() -> Iterator[Path]:
    """A bus as the system's is: every user may come."""
    program = shutil.which("dbus-daemon")
    if program is None or not IS_ROOT:
        pytest.skip("dbus-daemon, and other users, are needed")
    with public_folder() as folder:
        at = folder / "bus.sock"
        (folder / "bus.conf").write_text(_BUS.format(address=f"unix:path={at}"), "ascii")
        child = subprocess.Popen(
            [program, f"--config-file={folder / 'bus.conf'}", "--nofork", "--nopidfile", "--print-address"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline().startswith("unix:")
        at.chmod(0o777)
        yield at
        child.kill()
        child.communicate()


@contextlib.contextmanager
def subject(uid: int, bus: Path) -> Iterator[str]:
    """The bus name of a process of this user."""
    hello = message_bus.Hello()
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _SUBJECT, str(uid), str(bus), hello.serialise(serial=1).hex()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    try:
        name = child.stdout.readline().strip()
        assert re.fullmatch(r":1\.\d+", name)
        yield name
    finally:
        child.communicate()


class FakePolkit:
    """At a real bus. It says what it is told to, and notes about whom it was asked."""

    def __init__(self) -> None:
        self.answer: tuple[bool, bool] | str = (True, False)
        self.heard: list[Any] = []

    @contextlib.asynccontextmanager
    async def on(self, bus: Path) -> AsyncIterator[None]:
        connection = await open_dbus_connection(f"unix:path={bus}")
        await connection.send(message_bus.RequestName("org.freedesktop.PolicyKit1"))
        task = asyncio.get_running_loop().create_task(self._serve(connection))
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await connection.close()

    async def _serve(self, connection: DBusConnection) -> None:
        while True:
            message = await connection.receive()
            if message.header.message_type is not MessageType.method_call:
                continue
            assert message.header.fields[HeaderFields.member] == "CheckAuthorization"
            self.heard.append(message.body)
            if isinstance(self.answer, str):
                await connection.send(new_error(message, self.answer, "s", ("no",)))
            else:
                await connection.send(new_method_return(message, "(bba{ss})", ((*self.answer, {}),)))


@contextlib.asynccontextmanager
async def asking(host: FakeHost, at: Path, polkit: FakePolkit) -> AsyncIterator[Scene]:
    bus = Bus(f"unix:path={at}", clock=Clock())
    async with polkit.on(at):
        yield Scene(host, rules=Rules(policy=Policy(Mode.CONFIRM)), confirmed=Polkit(bus))
        await bus.close()


def word(subject: str) -> Any:
    return asked("grant", args={"op": "adjust_swappiness", "args": {"value": 10}, "subject": subject})


async def test_a_process_of_root_is_nobodys_word(host: FakeHost, open_bus: Path) -> None:
    """The confused deputy: polkit says yes to root without asking. So the engine may not name any process of root's,
    nor who is not there, nor polkit or the bus themselves."""
    polkit = FakePolkit()
    async with asking(host, open_bus, polkit) as scene:
        with subject(0, open_bus) as roots, subject(NOBODY, open_bus) as gone:
            code, told = await scene.broker.answer(word(roots), ENGINES)
        assert (code, told["reason"]) == (Code.REFUSED, "root gives its word directly")
        for name in (gone, roots, ":1.999999", ":1.0"):
            assert (await scene.broker.answer(word(name), ENGINES))[0] is Code.REFUSED
        assert (await scene.broker.answer(asked(), ENGINES))[0] is Code.REFUSED
    assert polkit.heard == []
    assert list(scene.register.lines()) == []


async def test_a_persons_word_is_the_persons(host: FakeHost, open_bus: Path) -> None:
    """The subject is the bus name and no number of a process; the word is for this operation and these arguments."""
    polkit = FakePolkit()
    async with asking(host, open_bus, polkit) as scene:
        with subject(NOBODY, open_bus) as person:
            for answer in ((False, False), (False, True), "org.freedesktop.PolicyKit1.Error.Failed"):
                polkit.answer = answer
                assert (await scene.broker.answer(word(person), ENGINES))[0] is Code.REFUSED
            polkit.answer = (True, False)
            assert (await scene.broker.answer(word(person), ENGINES))[0] is Code.DONE
        other = asked(args={"value": 11})
        assert (await scene.broker.answer(other, ENGINES))[0] is Code.REFUSED
        assert (await scene.broker.answer(asked(), ENGINES))[0] is Code.DONE
        assert (await scene.broker.answer(asked(), ENGINES))[0] is Code.REFUSED
    kind, details = polkit.heard[0][0]
    assert (kind, details) == ("system-bus-name", {"name": ("s", person)})
    assert polkit.heard[0][2]["operation"] == "adjust_swappiness"
    assert "asks for adjust_swappiness(value=10):" in polkit.heard[0][2]["polkit.message"]
