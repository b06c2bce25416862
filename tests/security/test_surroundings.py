"""What surrounds the helper is somebody else's: environment, names of processes and units, folders. And what it knows
stays with it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.privileged import keys
from luminous_nix.self_healing.privileged.broker import Caller, printable_word
from luminous_nix.self_healing.privileged.keys import boot_ns
from luminous_nix.self_healing.privileged.protocol import Code, Key, Keys, Reply, encode_reply, parse_reply
from luminous_nix.self_healing.privileged.register import audit_line
from tests.security.apart import APARTS_KEY, ROOT, SECRET, apart, result
from tests.security.crowd import ENGINE, HELPER, IS_ROOT, MALLORY, Peer, peer, public_folder
from tests.security.helpers import KEY, Scene, asked, request
from tests.security.test_floods import exchange
from tests.security.test_matrix import UNITS, units
from tests.unit.buses import BusDaemon
from tests.unit.host import Clock, FakeHost

pytestmark = pytest.mark.anyio
HOSTILE = 'evil\n\x1b[2J\x1b]0;owned\x07\r\0\x7f\x9b31m\u202e\u2028\udcff\U0001f4a3"\\\', event="done"'

# -- words -----------------------------------------------------------------------------------------------------

anything = st.text(st.characters(codec=None), max_size=600) | st.sampled_from([HOSTILE, HOSTILE * 40, "\\" * 999])
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
    | anything,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(anything, inner, max_size=4), max_leaves=8,
)  # fmt: skip
NAMES = ("event", "op", "target", "args", "nonce", "reason", "evidence", "why", "wall", "uid", "pid", "act", "at")


def one_printable_line(line: str) -> dict[str, Any]:
    assert len(line) <= 4096
    assert all(" " <= sign <= "~" for sign in line)
    found: dict[str, Any] = json.loads(line)
    return found


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES), values))
def test_an_audit_line_is_one_printable_line(fields: dict[str, Any]) -> None:
    found = one_printable_line(audit_line(fields))
    assert found.keys() == fields.keys()
    for name, value in fields.items():
        if isinstance(value, str) and len(json.dumps(value)) <= 256 and "\x7f" not in value:
            assert found[name] == value


@settings(max_examples=400, deadline=None)
@given(anything, anything)
def test_a_reply_says_printable_words(reason: str, hint: str) -> None:
    words = {"reason": printable_word(reason), "hint": printable_word(hint)}
    frame = encode_reply(Reply("0" * 32, Code.REFUSED, words), KEY)
    assert all(0x20 <= sign <= 0x7E for sign in frame[37:])
    assert dict(parse_reply(frame, KEY, "0" * 32).result) == words


async def test_names_that_others_chose(
    host: FakeHost, bus_daemon: BusDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    """Of processes, units and folders: in replies, audit and log they are printable, and no line is two."""
    folder = host.process(4321, cgroup="/system.slice/" + HOSTILE.replace("\0", "").replace("\udcff", ""))
    if IS_ROOT:
        os.chown(folder, 1000, -1)
    stat = (folder / "stat").read_text("ascii").replace("(worker)", "(a) b\n\x1b[1m)")
    (folder / "stat").write_text(stat, "ascii")
    reclaim = host.service_cache("idle.service", 64 << 20)
    odd = os.fsencode(reclaim.parents[1]) + b"/\xff\n\x1b[1m.service"
    shutil.copytree(reclaim.parent, os.fsdecode(odd))
    systemd = units()
    for name in ("up.service", "down.service"):
        systemd.unit[name] |= {"Description": ("s", HOSTILE.replace("\0", "").replace("\udcff", ""))}
        systemd.unit[name] |= {"SubState": ("s", "x\n\x1b[2J"), "ActiveState": ("s", "y\n\x1b[2J")}
    bus = Bus(bus_daemon.address, clock=Clock())
    async with systemd.on(bus_daemon.address):
        scene = Scene(host, bus=bus)
        scene.rules = scene.rules._replace(allowed=UNITS)
        for op, args in (
            ("kill_process", {"pid": 4321, "start_time": 100}), ("kill_process", {"pid": 4321, "start_time": 9999}),
            ("restart_service", {"service": "down.service"}), ("reload_service", {"service": "up.service"}),
            ("limit_unit", {"unit": "up.service"}), ("clear_system_cache", {}), ("free_memory", {}),
            ("restart_service", {"service": "no-such.service"}),
        ):  # fmt: skip
            for dry_run in (True, False):
                asking = asked(op, args=args, dry_run=dry_run)
                code, said = await scene.broker.answer(asking, Caller(0, 1))
                assert code in {Code.DONE, Code.REFUSED}, (op, code, said)
                encode_reply(Reply("0" * 32, code, said), KEY)
                assert all(" " <= sign <= "~" for word in said.values() if isinstance(word, str) for sign in word)
        await bus.close()
    for line in scene.register._read("SELECT line FROM audit"):
        one_printable_line(line[0])
    assert not any("\n" in record.getMessage() or "\x1b" in record.getMessage() for record in caplog.records)


# -- the environment -------------------------------------------------------------------------------------------


@pytest.fixture
def trap(tmp_path: Path) -> dict[str, str]:
    """An environment in which everything leads into a folder of the attacker's; what runs there leaves a mark."""
    mark = tmp_path / "mark"
    here = tmp_path / "trap"
    here.mkdir()
    for name in ("journalctl", "nix-store", "systemd-tmpfiles", "sh", "python3", "env", "evil"):
        (here / name).write_text(f"#!/bin/sh\necho {name} >> {mark}\n", "ascii")
        (here / name).chmod(0o755)
    for name in ("sitecustomize", "usercustomize", "json", "sqlite3", "startup", "jeepney", "luminous_nix"):
        (here / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write({name!r})\n", "ascii")
    (here / "gconv-modules").write_text("module EVIL// INTERNAL evil 1\n", "ascii")
    folder = str(here)
    return {
        "PATH": folder, "PYTHONPATH": folder, "PYTHONHOME": "/nonexistent", "PYTHONSTARTUP": f"{folder}/startup.py",
        "PYTHONINSPECT": "1", "PYTHONUSERBASE": folder, "PYTHONPLATLIBDIR": folder, "PYTHONBREAKPOINT": "evil.evil",
        "PYTHONWARNINGS": "error", "PYTHONIOENCODING": "ascii", "PYTHONCASEOK": "1", "GCONV_PATH": folder,
        "LOCPATH": folder, "LC_ALL": "C", "LANG": "xx_\udcff", "NIX_REMOTE": f"unix://{folder}/nix",
        "NIX_PATH": folder,
        "NIX_CONF_DIR": folder, "HOME": folder, "XDG_CONFIG_HOME": folder, "TMPDIR": folder, "IFS": "/",
        "BASH_ENV": f"{folder}/sh", "ENV": f"{folder}/sh", "LUMINOUS_DEV_MODE": "1", "MARK": str(mark),
        "LUMINOUS_HEALING_MODE": "dev", "SYSTEMD_PAGER": f"{folder}/evil", "PAGER": f"{folder}/evil",
        "EDITOR": f"{folder}/evil", "\udcff\udcfe": "\udcff",
    }  # fmt: skip


def in_the_trap(trap: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", *arguments], env=trap, cwd=trap["HOME"], capture_output=True, text=True, check=False,
        stdin=subprocess.DEVNULL, timeout=120,
    )  # fmt: skip


def test_an_act_unit_believes_no_environment(trap: dict[str, str]) -> None:
    """As its unit starts it: isolated. It refuses what it refuses anywhere, and nothing of the trap has run."""
    for argv in (["swappiness", "201"], ["plugin", "no-such-plugin"], ["freeze", "no-such-unit.service"], ["x\n"],
                 ["governor", "policy9999:performance"], ["reclaim", "sshd.service:1048576"]):  # fmt: skip
        done = in_the_trap(trap, "-m", "luminous_nix.self_healing.privileged.act", *argv)
        assert done.returncode in {1, 3}, done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not Path(trap["MARK"]).exists()


def test_what_is_started_gets_an_environment_made_from_nothing(trap: dict[str, str]) -> None:
    code = (
        "import asyncio; from luminous_nix.self_healing.process import find, run;"
        "assert find('evil') is None; print(find('sh'));"
        "done = asyncio.run(run((find('env'),), timeout=30)); print(done)"
    )
    done = in_the_trap(trap, "-c", code)
    assert done.returncode == 0, done.stderr
    assert trap["HOME"] not in done.stdout
    assert "PYTHON" not in done.stdout
    assert "PATH=/" in done.stdout
    assert not Path(trap["MARK"]).exists()


def test_a_helper_under_a_hostile_environment(trap: dict[str, str]) -> None:
    """The one of these tests comes from a folder, so its search path stays; all else is hostile."""
    kept = {name: value for name, value in trap.items() if name not in {"PYTHONHOME", "PYTHONPLATLIBDIR"}}
    env = kept | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    del env["PYTHONWARNINGS"], env["PYTHONSTARTUP"], env["PYTHONINSPECT"]
    with public_folder() as folder, apart(folder, environment=env) as one:
        done = exchange(one.at, request("adjust_swappiness", key=APARTS_KEY))
        refused = exchange(one.at, request("restart_service", args={"service": "x.service"}, key=APARTS_KEY))
        assert (result(done)["code"], result(refused)["code"]) == ("done", "refused")
        assert "Traceback" not in one.said()
    assert not Path(trap["MARK"]).exists()


def test_what_the_loader_obeys_is_taken_away_by_the_unit() -> None:
    """A process cannot refuse LD_PRELOAD by itself: systemd does not hand it on."""
    found = [path.read_text("utf-8") for path in (ROOT / "packaging").rglob("*.service")]
    ours = [text for text in found if "luminous_nix" in text]
    assert len(ours) > 10
    for text in ours:
        taken = " ".join(re.findall(r"^UnsetEnvironment=(.*)$", text, re.MULTILINE)).split()
        assert {"LD_PRELOAD", "LD_AUDIT", "LD_LIBRARY_PATH", "GCONV_PATH", "PYTHONPATH",
                "DBUS_SYSTEM_BUS_ADDRESS"} <= set(taken)  # fmt: skip
        assert re.search(r"^ExecStart=\S+ -I ", text, re.MULTILINE)


# -- the program itself ----------------------------------------------------------------------------------------


class Service:
    """service.py as systemd starts it: its own user, its socket as descriptor 3, its keys as credentials."""

    def __init__(self, folder: Path, environment: dict[str, str], wrapped: tuple[str, ...] = ()) -> None:
        self.at, self.folder, self.key = folder / "helper.sock", folder, Key(SECRET)
        private = folder / "private"
        keys.make(private)
        (private / "keys").unlink()
        keys._write(private / "keys", keys._text(SECRET.hex(), "", "", 0))
        self.audit = (private / "audit").read_text("ascii").strip()
        (folder / "state").mkdir(mode=0o700)
        for path in (folder / "state", private, *private.iterdir()):
            os.chown(path, HELPER, HELPER)
        passwd = Path("/etc/passwd").read_text("utf-8")
        user = f"luminous-healing:x:{ENGINE}:{ENGINE}::/:/bin/false"
        (folder / "passwd").write_text(f"{passwd.rstrip()}\n{user}\n", "utf-8")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(str(self.at))
        self.at.chmod(0o666)
        listener.listen(64)
        script = (
            f"mount --bind {folder}/passwd /etc/passwd && export LISTEN_PID=$$ && exec setpriv --reuid {HELPER}"
            f" --regid {HELPER} --clear-groups --no-new-privs --inh-caps=-all,+kill --ambient-caps=-all,+kill"
            ' --bounding-set=-all,+kill "$@"'
        )
        env = environment | {"LISTEN_FDS": "1", "CREDENTIALS_DIRECTORY": str(private),
                             "STATE_DIRECTORY": str(folder / "state")}  # fmt: skip
        program = [sys.executable, "-I", "-m", "luminous_nix.self_healing.privileged.service"]
        with (folder / "stderr").open("w", encoding="utf-8") as errors:
            self.child = subprocess.Popen(
                ["/usr/bin/unshare", "--mount", "/bin/sh", "-c", script, "sh", *wrapped, *program],
                env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=errors, stderr=errors,
                pass_fds=(3,),
                preexec_fn=lambda: os.dup2(listener.fileno(), 3),  # noqa: PLW1509  no thread holds a lock here
            )  # fmt: skip
        listener.close()

    def said(self) -> str:
        return (self.folder / "stderr").read_text("utf-8", "replace")

    def status(self) -> bytes:
        return request("status", key=self.key)


@pytest.fixture
def service(trap: dict[str, str]) -> Iterator[Service]:
    if not IS_ROOT or not shutil.which("setpriv") or not Path("/usr/bin/unshare").exists():
        pytest.skip("root, setpriv and unshare are needed")
    with public_folder() as folder:
        hostile = {name: value for name, value in trap.items() if name != "PATH"} | {"PATH": os.defpath}
        one = Service(folder, hostile)
        until = time.monotonic() + 60
        while one.child.poll() is None and "audit head" not in one.said() and time.monotonic() < until:
            time.sleep(0.05)
        if one.child.poll() is not None and ("Permission denied" in one.said() or "mount:" in one.said()):
            pytest.skip(f"it cannot be started here: {one.said()[-200:]}")
        yield one
        assert one.child.poll() is None, one.said()
        one.child.send_signal(signal.SIGTERM)
        assert one.child.wait(60) == 0


def test_the_program_as_systemd_starts_it(service: Service, trap: dict[str, str]) -> None:
    """Not root, no core, CAP_KILL alone; under a hostile environment; and its secrets are nowhere to be seen."""
    proc, heard = Path(f"/proc/{service.child.pid}"), []
    with contextlib.closing(peer_of(service, 0)) as root, contextlib.closing(peer_of(service, MALLORY)) as mallory:
        heard += root.talk(service.status()) + root.talk(request("adjust_swappiness", key=service.key))
        heard += root.talk(os.urandom(100)) + root.talk(service.status()[:-1])
        assert mallory.talk(service.status()) == [b""]
    with contextlib.closing(peer_of(service, ENGINE)) as engine:  # the right user, outside of the engine's unit
        heard += engine.talk(request("adjust_swappiness", key=service.key))
        assert "not of the engine's unit" in result(heard[-1])["result"]["reason"]
    assert result(heard[0])["code"] == "done"
    assert (proc / "status").read_text("ascii").count(f"\t{HELPER}\t{HELPER}\t{HELPER}\t{HELPER}\n") == 2
    assert re.search(r"^CapEff:\s+0+20$", (proc / "status").read_text("ascii"), re.MULTILINE)
    assert re.search(r"^Max core file size\s+0\s+0\s", (proc / "limits").read_text("ascii"), re.MULTILINE)
    everything = b"".join((
        *heard, (proc / "cmdline").read_bytes(), (proc / "environ").read_bytes(), service.said().encode(),
        *(path.read_bytes() for path in (service.folder / "state").iterdir()),
    ))  # fmt: skip
    for secret in (SECRET, bytes.fromhex(service.audit)):
        for form in (secret, secret.hex().encode(), secret.hex().upper().encode(), base64.b64encode(secret)):
            assert form not in everything
    assert "Traceback" not in service.said()
    assert "audit head 0:" in service.said()  # a cut end shows by what the journal was told
    assert not Path(trap["MARK"]).exists()


def peer_of(service: Service, uid: int) -> Peer:
    return Peer(uid, service.at)


def test_keys_do_not_show_themselves() -> None:
    for thing in (Key(SECRET), Keys(Key(SECRET), Key(SECRET), 5)):
        assert SECRET.hex() not in repr(thing)
        assert repr(SECRET)[2:-1] not in repr(thing)


# -- refusals touch nothing ------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_refusal_opens_starts_and_asks_nothing() -> None:
    """Every system call that names a file, starts a process or speaks to somebody, from the first refusal to the
    last: nothing outside of the state directory."""
    with public_folder() as folder:
        trace = folder / "trace"
        wrapped = ("strace", "-f", "-qq", "-o", str(trace), "-e", "trace=%file,%process,connect,socket,bind,sendto")
        if subprocess.run([*wrapped, "true"], check=False, capture_output=True).returncode:
            pytest.skip("strace may not trace here")
        with apart(folder, *(("--engine", str(ENGINE)) if IS_ROOT else ()), wrapped=wrapped) as one:
            for _ in range(20):  # the lines of this minute are written, and all is warm
                exchange(one.at, os.urandom(100))
            done = request("adjust_swappiness", key=APARTS_KEY)
            assert result(exchange(one.at, done))["code"] == "done"
            at = settled(trace)
            for frame in (b"", b"\1", os.urandom(300), b"\1" * 20_000, request("status"), request("kill_process",
                          args={"pid": 4321, "start_time": 1}), done, done[:-1] + b"]",
                          request(key=APARTS_KEY, ts_boot_ns=boot_ns() - 40 * 10**9)):  # fmt: skip
                exchange(one.at, frame)
            if IS_ROOT:
                with peer(MALLORY, one.at) as mallory:
                    assert mallory.talk(done) == [b""]
            size = settled(trace)
        calls = trace.read_bytes()[at:size].decode("utf-8", "replace").splitlines()
    outside = [
        call for call in calls
        if not re.search(r"^\d+ +(sendto\(\d+, \"(\\1|\\0)|exit|\+\+\+)", call)
        and not re.search(rf'"{re.escape(str(folder))}/state/', call)
    ]  # fmt: skip
    assert outside == []


def settled(trace: Path) -> int:
    """Its size once nothing more is written."""
    size = -1
    while size != (now := trace.stat().st_size):
        size = now
        time.sleep(0.5)
    return size
