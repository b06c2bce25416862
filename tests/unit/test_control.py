"""control.py over real sockets, with real other users."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luminous_nix.self_healing import control
from luminous_nix.self_healing.control import LONGEST, ControlServer, Peer, Rights, Verb, socket_path
from luminous_nix.self_healing.control_client import ControlError, ControlUnavailable, ask_now
from luminous_nix.self_healing.models import HealingError

ROOT = Path(__file__).parents[2]
NOBODY = 65534
MEMBERS = 64321  # a group that no account has
PATIENT = 60.0  # seconds; a test waits that long for what ought to happen at once
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")


class Service:
    """A server on a loop of its own thread, and verbs that do what the tests need."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.held = threading.Event()
        self.release = threading.Event()
        self.finished = threading.Event()
        self.ran: list[str] = []
        self.turns = 0  # of the event loop, once `count_turns` was called
        self.server = ControlServer(path, self.verbs(), **{"group": None, **options})
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def verbs(self) -> dict[str, Verb]:
        def verb(rights: Rights, answer: Callable[[Mapping[str, Any]], Any], **arguments: Any) -> Verb:
            async def run(given: Mapping[str, Any], peer: Peer) -> dict[str, Any]:
                result: dict[str, Any] = answer(given)
                return result

            return Verb(rights, arguments, run, frozenset({"note"} & set(arguments)))

        async def who(given: Mapping[str, Any], peer: Peer) -> dict[str, Any]:
            return {"pid": peer.pid, "uid": peer.uid, "gids": sorted(peer.gids)}

        return {
            "who": Verb(Rights.READ, {}, who),
            "echo": verb(Rights.READ, dict, text=str, count=int, share=float, names=_names, note=str),
            "pause": verb(Rights.CALM, dict, minutes=int),
            "confirm": verb(Rights.ACT, self._confirm, id=int),
            "fail": verb(Rights.READ, _raise(HealingError("no \ud800 such\nthing", "look again"))),
            "burst": verb(Rights.READ, _raise(RuntimeError("a secret"))),
            "turn": verb(Rights.READ, lambda _: {"turn": self.turns}),
            "nan": verb(Rights.READ, lambda _: {"x": float("nan")}),
            "set": verb(Rights.READ, lambda _: {"x": {1}}),
            "much": verb(Rights.READ, lambda _: {"x": "x" * (8 << 20)}),
            "stubborn": Verb(Rights.ACT, {}, self._stubborn),
            "hold": Verb(Rights.ACT, {}, self._hold),
        }

    def _confirm(self, given: Mapping[str, Any]) -> dict[str, Any]:
        self.ran.append("confirm")
        return {"confirmed": given["id"]}

    async def _hold(self, *_: Any) -> dict[str, Any]:
        self.held.set()
        await asyncio.to_thread(self.release.wait, PATIENT)
        self.finished.set()
        return {}

    async def _stubborn(self, *_: Any) -> dict[str, Any]:
        try:
            return await self._hold()
        except asyncio.CancelledError:
            return {}

    def do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENT)

    def end(self) -> None:
        self.release.set()
        self.do(self.server.stop())
        self.do(asyncio.sleep(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def count_turns(self) -> None:
        self.turns += 1
        if not self.release.is_set():
            self._loop.call_soon(lambda: self._loop.create_task(self.count_turns()))

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        return ask_now(self.path, do, arguments, within=PATIENT)


def _raise(error: Exception) -> Callable[[Mapping[str, Any]], Any]:
    def answer(given: Mapping[str, Any]) -> Any:
        raise error

    return answer


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("a list of names is wanted")
    return tuple(value)


@contextlib.contextmanager
def serving(path: Path, **options: Any) -> Iterator[Service]:
    service = Service(path, **options)
    try:
        service.do(service.server.start())
        yield service
    finally:
        service.end()


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path that other users can reach."""
    folder = Path(tempfile.mkdtemp(prefix="ctl", dir="/tmp"))
    folder.chmod(0o755)
    yield folder / "run/control.sock"
    shutil.rmtree(folder)


@pytest.fixture
def service(place: Path) -> Iterator[Service]:
    with serving(place) as running:
        yield running


@contextlib.contextmanager
def connected(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PATIENT)
        connection.connect(str(path))
        yield connection


def line_of(connection: socket.socket) -> dict[str, Any]:
    with connection.makefile("rb") as lines:
        answer = json.loads(lines.readline())
    assert answer["schema"] == 1
    assert isinstance(answer, dict)
    return answer


def raw(path: Path, line: bytes) -> dict[str, Any]:
    with connected(path) as connection:
        connection.sendall(line + b"\n")
        return line_of(connection)


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def eventually(true: Callable[[], bool]) -> bool:
    until = time.monotonic() + PATIENT
    while not true() and time.monotonic() < until:
        time.sleep(0.01)
    return true()


def refused(service: Service, do: str, **arguments: Any) -> tuple[str, str]:
    with pytest.raises(ControlError) as refusal:
        service.ask(do, **arguments)
    return refusal.value.message, refusal.value.hint


# --- requests and answers ---------------------------------------------------------------------------------------


def test_a_request_is_answered(service: Service) -> None:
    assert service.ask("confirm", id=7) == {"confirmed": 7}
    everything = {"text": "ä\n", "count": 1, "share": 2, "names": ["a"], "note": "n"}
    assert service.ask("echo", **everything) == everything
    assert ask_now(service.path, "who")["pid"] == os.getpid()


def test_several_requests_on_one_connection(service: Service) -> None:
    with connected(service.path) as connection, connection.makefile("rb") as lines:
        request = b'{"schema":1,"do":"pause","arguments":{"minutes":%d}}\n'
        connection.sendall(b"".join(request % number for number in range(50)) + b"nonsense\n" + request % 99)
        answers = [json.loads(lines.readline()) for _ in range(52)]
    assert [answer["result"]["minutes"] for answer in answers if answer["ok"]] == [*range(50), 99]
    assert not answers[50]["ok"]


def test_many_requests_at_once_leave_the_loop_its_turns(service: Service) -> None:
    service.do(service.count_turns())
    with connected(service.path) as connection, connection.makefile("rb") as lines:
        connection.sendall(b'{"schema":1,"do":"turn"}\n' * 200)
        turns = [json.loads(lines.readline())["result"]["turn"] for _ in range(200)]
    service.release.set()
    assert turns[-1] - turns[0] >= 66  # two steps to a turn counted


def test_an_answer_is_one_line_with_a_schema(service: Service) -> None:
    assert raw(service.path, b'{"schema": 1, "do": "who"}')["ok"] is True
    answer = raw(service.path, b'{"schema": 1, "do": "fail"}')
    assert answer == {"schema": 1, "ok": False, "error": "no \ud800 such\nthing", "hint": "look again"}
    assert raw(service.path, b"[]")["hint"].startswith("a request is one line like")


def test_what_the_verb_says_reaches_the_asker(service: Service) -> None:
    assert refused(service, "fail") == ("no \ud800 such\nthing", "look again")


@pytest.mark.parametrize("do", ["burst", "nan", "set"])
def test_an_error_of_a_verb_is_logged_and_not_told(
    service: Service, do: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert refused(service, do) == ("an error of this program", "its log tells more")
    assert any(record.exc_info for record in caplog.records)
    assert service.ask("who")


@pytest.mark.parametrize(
    ("do", "arguments", "error", "hint"),
    [
        ("confrim", {}, "unknown request 'confrim'", "did you mean 'confirm'?"),
        ("", {}, "unknown request ''", "known: burst, confirm, "),
        ("x" * 9999, {}, "unknown request 'xxx", "known: "),
        ("pause", {"minuets": 1}, "unknown argument 'minuets'", "did you mean 'minutes'?"),
        ("pause", {"minutes": 1, "x": None}, "unknown argument 'x'", "known: minutes"),
        ("who", {"x": 1}, "unknown argument 'x'", "it takes no arguments"),
        ("pause", {}, "the argument 'minutes' is missing", "it takes: minutes"),
        ("pause", {"minutes": "1"}, "minutes must be int, not str", ""),
        ("pause", {"minutes": True}, "minutes must be int, not bool", ""),
        ("pause", {"minutes": None}, "minutes must be int, not NoneType", ""),
        ("pause", {"minutes": 1.0}, "minutes must be int, not float", ""),
        ("echo", {"text": "", "count": 1, "share": True, "names": []}, "share must be float, not bool", ""),
        ("echo", {"text": "", "count": 1, "share": 1 << 53, "names": []}, "share must be float, not int", ""),
        ("echo", {"text": "", "count": 1, "share": 0, "names": [1]}, "names: a list of names is wanted", ""),
    ],
)
def test_what_does_not_fit_is_named(
    service: Service, do: str, arguments: dict[str, Any], error: str, hint: str
) -> None:
    told = refused(service, do, **arguments)
    assert told[0].startswith(error)
    assert told[1].startswith(hint)
    assert len(told[0]) < 120


@pytest.mark.parametrize(
    "line",
    [
        b"", b"{", b"null", b"1", b'"x"', b"[]", b"{}", b"\xff", b"\xef\xbb\xbf{}", b"\0",
        '{"schema":1,"do":"who"}'.encode("utf-16-le"),
        b'{"do":"who"}', b'{"schema":2,"do":"who"}', b'{"schema":"1","do":"who"}', b'{"schema":true,"do":"who"}',
        b'{"schema":1.0,"do":"who"}', b'{"schema":1}', b'{"schema":1,"do":1}', b'{"schema":1,"do":["who"]}',
        b'{"schema":1,"do":"who","arguments":[]}', b'{"schema":1,"do":"who","arguments":null}',
        b'{"schema":1,"do":"who","argument":{}}', b'{"schema":1,"do":"who","uid":0}',
        b'{"schema":1,"do":"fail","do":"who"}', b'{"schema":1,"do":"who","arguments":{"a":1,"a":1}}',
        b'{"schema":1,"do":"pause","arguments":{"minutes":NaN}}',
        b'{"schema":1,"do":"pause","arguments":{"minutes":-Infinity}}',
        b'{"schema":1,"do":"echo","arguments":{"share":1e999}}',
        b'{"schema":1,"do":"pause","arguments":{"minutes":' + b"9" * 5000 + b"}}",
        b'{"schema":1,"do":"\\ud800"}',
        b'{"schema":1,"do":"who"} {"schema":1,"do":"who"}', b'{"schema":1,"do":"who"}\r{}',
        b"[" * 60_000, b'{"a":' * 10_000,
        b'{"schema":1,"do":"who","arguments":{"a":' + b"[" * 900 + b"]" * 900 + b"}}",
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused(service: Service, line: bytes) -> None:
    with connected(service.path) as connection:
        connection.sendall(line + b"\n")
        answer = line_of(connection)
        assert answer["ok"] is False
        assert len(answer["error"]) < 200
        assert "error of this program" not in answer["error"]
        connection.sendall(b'{"schema":1,"do":"who"}\n')  # the connection lives on
        assert line_of(connection)["ok"] is True


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999", '"\\ud800"', '{"a":1,"a":1}', "[" * 60_000])
def test_what_others_read_differently_is_not_json_here(service: Service, value: str) -> None:
    answer = raw(service.path, b'{"schema":1,"do":"echo","arguments":{"share":%s}}' % value.encode())
    assert answer["error"].startswith("not JSON: ")


def test_the_longest_request_and_one_that_is_longer(service: Service) -> None:
    request = b'{"schema":1,"do":"who"}'
    assert raw(service.path, request.ljust(LONGEST))["ok"] is True
    for size in (LONGEST + 1, 20 * LONGEST):
        with connected(service.path) as connection:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(request.ljust(size) + b"\n")
            assert line_of(connection)["error"] == f"a request has at most {LONGEST} bytes"
            assert is_closed(connection)


words = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["minutes", "text"]), inner),
    max_leaves=8,
)
near = st.fixed_dictionaries(
    {}, optional={
        "schema": st.just(1) | words, "arguments": st.dictionaries(st.sampled_from(["minutes", "id"]), words) | words,
        "do": st.sampled_from(["who", "pause", "confirm", "fail", "burst"]) | words, "x": words,
    },
)  # fmt: skip
garbage = st.binary(max_size=2000) | st.one_of(near, words).map(lambda value: json.dumps(value).encode())


def test_any_line_is_answered_with_one_line(service: Service) -> None:
    logging.getLogger("luminous_nix.self_healing.control").setLevel(logging.CRITICAL)
    with connected(service.path) as connection, connection.makefile("rb") as answers:

        @settings(deadline=None, derandomize=True, max_examples=400)
        @given(garbage)
        def any_line(line: bytes) -> None:
            connection.sendall(line + b"\n")
            for _ in range(line.count(b"\n") + 1):
                answer = json.loads(answers.readline())
                assert answer["schema"] == 1
                assert isinstance(answer["result"], dict) if answer["ok"] else answer["error"]

        try:
            any_line()
        finally:
            logging.getLogger("luminous_nix.self_healing.control").setLevel(logging.NOTSET)
    assert service.ask("who")


# --- connections -------------------------------------------------------------------------------------------------


def test_half_a_line_and_gone(service: Service) -> None:
    with connected(service.path) as connection:
        connection.sendall(b'{"schema":1,"do":"confirm","arguments":{"id":1}}')
        connection.shutdown(socket.SHUT_WR)
        assert is_closed(connection)
    with connected(service.path) as connection:
        connection.sendall(b'{"schema":1,')
    assert eventually(lambda: not service.server._open)
    assert service.ran == []
    assert service.ask("who")


def test_an_asker_that_only_stopped_writing_is_answered(service: Service) -> None:
    with connected(service.path) as connection:
        connection.sendall(b'{"schema":1,"do":"who"}\n')
        connection.shutdown(socket.SHUT_WR)
        assert line_of(connection)["ok"] is True


def test_an_idle_connection_is_closed_and_dripping_does_not_help(place: Path) -> None:
    with serving(place, idle=0.3) as service, connected(place) as idle, connected(place) as dripping:
        assert is_closed(idle)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for _ in range(int(PATIENT * 100)):
                dripping.sendall(b" ")
                time.sleep(0.01)
        assert is_closed(dripping)
        assert service.ask("who")


def test_an_asker_that_does_not_read_is_let_go(place: Path) -> None:
    with serving(place, patience=0.3) as service, connected(place) as connection:
        connection.sendall(b'{"schema":1,"do":"much"}\n')
        assert eventually(lambda: len(service.server._open) == 1)
        assert service.ask("who")
        assert eventually(lambda: not service.server._open)
        got = 0
        with contextlib.suppress(ConnectionResetError):
            while more := connection.recv(1 << 20):
                got += len(more)
        assert got < 8 << 20
        assert len(service.ask("much")["x"]) == 8 << 20


def test_a_verb_outlives_its_asker(service: Service) -> None:
    with connected(service.path) as connection:
        connection.sendall(b'{"schema":1,"do":"hold"}\n{"schema":1,"do":"confirm","arguments":{"id":1}}\n')
        assert service.held.wait(PATIENT)
    assert service.ask("who")  # the server saw the end of the other one, and answers
    assert not service.finished.is_set()
    service.release.set()
    assert service.finished.wait(PATIENT)
    assert eventually(lambda: not service.server._open)
    assert service.ran == []  # what it asked for afterwards is not begun


def test_forty_at_once(service: Service) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(service.path)) for _ in range(40)]
        answers = []
        for connection in connections:
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(b'{"schema":1,"do":"who"}\n')
            answers.append(line_of(connection))
        assert [answer["ok"] for answer in answers] == [True] * 32 + [False] * 8
        assert answers[-1]["error"] == "too many connections"
        assert refused(service, "who")[0] == "too many connections"
    assert eventually(lambda: not service.server._open)
    assert service.ask("who")


EMFILE = """
import asyncio, os, resource, sys
from pathlib import Path
from luminous_nix.self_healing.control import ControlServer, Rights, Verb
async def who(given, peer):
    return {}
async def main():
    server = ControlServer(Path(sys.argv[1]), {"who": Verb(Rights.READ, {}, who)}, group=None)
    await server.start()
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 3, used + 3))
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop()
asyncio.run(main())
"""


def test_without_descriptors_it_waits_and_goes_on(place: Path) -> None:
    command = [sys.executable, "-c", EMFILE, str(place)]
    env = {"PYTHONPATH": str(ROOT / "src")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=env, text=True, **pipes) as child:  # type: ignore[call-overload]
        assert child.stdout.readline() == "ready\n"
        with contextlib.ExitStack() as stack:
            for _ in range(10):
                stack.enter_context(connected(place))
            with pytest.raises(ControlUnavailable, match="no answer"):
                ask_now(place, "who", within=0.5)
        assert ask_now(place, "who", within=PATIENT) == {}
        _, errors = child.communicate("", PATIENT)
    assert child.returncode == 0
    assert 0 < errors.count("cannot take a connection now: Too many open files") < 60
    assert not place.exists()


# --- who may what ------------------------------------------------------------------------------------------------

AS_OTHER = """
import json, os, sys
from pathlib import Path
from luminous_nix.self_healing.control_client import ask_now
from luminous_nix.self_healing.models import HealingError
path, uid, gid, groups, asked = json.loads(sys.argv[1])
os.setgroups(groups); os.setgid(gid); os.setuid(uid)
for do, arguments in asked:
    try:
        print(json.dumps({"ok": ask_now(Path(path), do, arguments, within=60)}))
    except HealingError as error:
        print(json.dumps({"class": type(error).__name__, "error": error.message, "hint": error.hint}))
"""


def other(code: str, argument: Any) -> subprocess.Popen[str]:
    env = {"PYTHONPATH": str(ROOT / "src")}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(argument)], env=env, stdin=pipe, stdout=pipe, text=True
    )


ALL: list[tuple[str, dict[str, Any]]] = [("who", {}), ("pause", {"minutes": 1}), ("confirm", {"id": 1})]


def asks(
    path: Path, *, uid: int = NOBODY, gid: int = NOBODY, groups: list[int] | None = None
) -> list[dict[str, Any]]:
    with other(AS_OTHER, [str(path), uid, gid, groups or [], ALL]) as child:
        told, _ = child.communicate(timeout=PATIENT)
    return [json.loads(line) for line in told.splitlines()]


@as_root
@pytest.mark.parametrize(("gid", "groups"), [(MEMBERS, []), (NOBODY, [MEMBERS]), (NOBODY, [*range(200), MEMBERS])])
def test_a_member_may_see_and_calm(place: Path, gid: int, groups: list[int]) -> None:
    with serving(place, group=MEMBERS) as service:
        who, pause, confirm = asks(place, gid=gid, groups=groups)
        assert service.ran == []
    assert who["ok"]["uid"] == NOBODY
    assert who["ok"]["gids"] == sorted({gid, *groups})
    assert pause["ok"] == {"minutes": 1}
    assert confirm["error"] == "confirm is for root and the engine's own user"
    assert confirm["class"] == "ControlError"


@as_root
def test_a_stranger_does_not_reach_the_socket(place: Path) -> None:
    with serving(place, group=MEMBERS):
        told = asks(place)
    assert {answer["class"] for answer in told} == {"ControlUnavailable"}
    assert "no permission" in told[0]["error"]
    assert "join the group" in told[0]["hint"]


@as_root
@pytest.mark.parametrize("group", [None, MEMBERS])
def test_a_stranger_who_reaches_it_is_turned_away(place: Path, group: int | None) -> None:
    with serving(place, group=group) as service:
        place.chmod(0o666)
        told = asks(place, groups=[1, 2])
        assert service.ran == []
    assert [answer["error"] for answer in told] == ["you may not ask this engine"] * 3
    assert {answer["class"] for answer in told} == {"ControlError"}


@as_root
def test_without_a_group_nobody_but_the_owner_and_root(place: Path) -> None:
    with serving(place, group=None):
        assert all("no permission" in answer["error"] for answer in asks(place, gid=0))
        assert [answer["ok"] for answer in asks(place, uid=0)][1:] == [{"minutes": 1}, {"confirmed": 1}]


@as_root
def test_the_engines_own_user_may_everything(place: Path) -> None:
    with serving(place, group=None, uid=NOBODY):
        os.chown(place, NOBODY, NOBODY)
        assert [sorted(answer) for answer in asks(place)] == [["ok"]] * 3
        assert ask_now(place, "who")["uid"] == 0


@as_root
def test_more_groups_than_can_be_read_count_for_nothing(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(place, group=MEMBERS):
        told = asks(place, groups=[*range(300), MEMBERS])
    assert {answer["error"] for answer in told} == {"you may not ask this engine"}
    assert any("only the first counts" in record.message for record in caplog.records)


CROWD = """
import json, os, socket, sys
path, uid, gid = json.loads(sys.argv[1])
os.setgroups([]); os.setgid(gid); os.setuid(uid)
crowd = []
for number in range(40):
    one = socket.socket(socket.AF_UNIX)
    one.connect(path)
    crowd.append(one)
admitted = 0
for one in crowd:
    try:
        one.sendall(b'{"schema":1,"do":"who"}\\n')
    except BrokenPipeError:
        pass
    admitted += json.loads(one.makefile("rb").readline())["ok"]
print(admitted, flush=True)
sys.stdin.read()
"""


@as_root
def test_root_always_gets_in(place: Path) -> None:
    with serving(place, group=MEMBERS), other(CROWD, [str(place), NOBODY, MEMBERS]) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "28\n"
        with contextlib.ExitStack() as stack:
            for _ in range(3):
                stack.enter_context(connected(place))
            assert ask_now(place, "confirm", {"id": 1}, within=PATIENT) == {"confirmed": 1}
        child.communicate("", PATIENT)


def test_who_asks_is_noted_when_more_is_asked_than_seen(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        service.ask("who")
        service.ask("confirm", id=1)
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.INFO] == [
        f"confirm, asked for by uid {os.geteuid()}, pid {os.getpid()}"
    ]


# --- the file ----------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_files_mode_is_right_from_the_first_moment(
    place: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    group = os.getegid()
    monkeypatch.setattr(control, "_open_to", lambda path, _: seen.append(mode(path)))
    before = os.umask(umask)
    try:
        with serving(place, group=group):
            assert seen == [0o600]
        monkeypatch.undo()
        with serving(place, group=group):
            assert (mode(place), place.stat().st_gid) == (0o660, group)
        with serving(place, group=None):
            assert mode(place) == 0o600
    finally:
        os.umask(before)
    assert mode(place.parent) == 0o755


def test_a_group_that_cannot_be_had_leaves_it_closed(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", refuse)
    with serving(place, group=MEMBERS) as service:
        assert mode(place) == 0o600
        assert service.ask("who")
    assert any("stays closed to group" in record.message for record in caplog.records)


def test_a_directory_that_exists_keeps_its_mode(place: Path) -> None:
    place.parent.mkdir(mode=0o700)
    with serving(place):
        assert mode(place.parent) == 0o700


def refused_start(path: Path, **options: Any) -> HealingError:
    with pytest.raises(HealingError) as refusal, serving(path, **options):
        pass
    assert refusal.value.hint
    return refusal.value


def test_what_a_dead_server_left_is_removed(place: Path) -> None:
    place.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place))
    with serving(place) as service:
        assert service.ask("who")
    assert not place.exists()


def test_a_living_server_is_left_alone(service: Service) -> None:
    assert "another engine listens at" in refused_start(service.path).message
    assert service.ask("who")


def test_a_living_server_with_a_full_queue_is_left_alone(place: Path) -> None:
    place.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as busy, connected_nowhere(busy, place):
        assert "another engine listens at" in refused_start(place).message
        with pytest.raises(ControlUnavailable, match="no answer"):
            ask_now(place, "who", within=0.1)


@contextlib.contextmanager
def connected_nowhere(listener: socket.socket, path: Path) -> Iterator[None]:
    listener.bind(str(path))
    listener.listen(0)
    with connected(path):
        yield


def test_what_is_not_a_socket_stays(place: Path) -> None:
    place.parent.mkdir()
    place.write_text("mine", "utf-8")
    assert "is not a socket" in refused_start(place).message
    assert place.read_text("utf-8") == "mine"
    place.unlink()
    place.symlink_to("/nonexistent")
    assert "is not a socket" in refused_start(place).message
    place.unlink()
    place.mkdir()
    assert "is not a socket" in refused_start(place).message


def test_a_socket_of_another_kind_stays(place: Path) -> None:
    place.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(str(place))
        assert "cannot listen at" in refused_start(place).message
        assert place.is_socket()


def test_a_place_that_cannot_be(place: Path) -> None:
    folder = place.parent.parent
    room = 107 - len(os.fsencode(folder)) - 1
    assert "too long" in refused_start(folder / ("x" * (room + 1))).message
    with serving(folder / ("x" * room)) as service:
        assert service.ask("who")
    assert "cannot listen at" in refused_start(Path("/proc/control.sock")).message
    place.parent.write_text("", "utf-8")
    assert "cannot listen at" in refused_start(place).message


def test_stop_leaves_a_file_that_is_not_ours(place: Path) -> None:
    with serving(place):
        place.unlink()
        place.write_text("another's", "utf-8")
    assert place.exists()


def test_stop_leaves_a_socket_of_another(place: Path) -> None:
    with socket.socket(socket.AF_UNIX) as another:
        with serving(place):
            place.rename(place.with_name("old"))
            another.bind(str(place))
        assert place.is_socket()


def test_stop_ends_connections_and_verbs_and_may_be_called_again(place: Path) -> None:
    with serving(place) as service:
        with connected(place) as idle, connected(place) as holding:
            holding.sendall(b'{"schema":1,"do":"hold"}\n')
            assert service.held.wait(PATIENT)
            service.do(service.server.stop())
            assert is_closed(idle)
            assert is_closed(holding)
        assert not service.finished.is_set()
        service.do(service.server.stop())
        service.do(service.server.start())  # and again
        assert service.ask("who")


def test_stop_ends_a_connection_whose_verb_does_not_mind(service: Service) -> None:
    with connected(service.path) as connection:
        connection.sendall(b'{"schema":1,"do":"stubborn"}\n')
        assert service.held.wait(PATIENT)
        service.do(service.server.stop())
        assert line_of(connection)["ok"] is True
        assert is_closed(connection)


FLOOD = """
import os, socket, sys
path, uid, gid = __import__("json").loads(sys.argv[1])
os.setgroups([]); os.setgid(gid); os.setuid(uid)
print("ready", flush=True)
for number in range(20_000):
    with socket.socket(socket.AF_UNIX) as one:
        one.setblocking(False)
        one.connect_ex(path)
"""


@as_root
def test_a_flood_of_connections_ends_nothing(place: Path) -> None:
    with serving(place, group=MEMBERS) as service, other(FLOOD, [str(place), NOBODY, MEMBERS]) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        while child.poll() is None:
            assert service.ask("confirm", id=1) == {"confirmed": 1}
        assert eventually(lambda: not service.server._open)
        assert service.ask("who")


# --- the asking side ---------------------------------------------------------------------------------------------


def test_nobody_listens(place: Path) -> None:
    with pytest.raises(ControlUnavailable, match="No such file") as absent:
        ask_now(place, "who")
    assert "luminous-healing run" in absent.value.hint
    place.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(place))
    with pytest.raises(ControlUnavailable, match="refused"):
        ask_now(place, "who")
    with pytest.raises(ControlUnavailable, match="too long"):
        ask_now(Path("/" + "x" * 200), "who")


def test_no_answer_in_time(service: Service) -> None:
    with pytest.raises(ControlUnavailable, match=r"within 0\.2 s"):
        ask_now(service.path, "hold", within=0.2)
    service.release.set()
    assert service.finished.wait(PATIENT)


@pytest.mark.parametrize(
    "answer",
    [
        b"", b"{", b"nonsense\n", b"[]\n", b"{}\n", b'{"ok": true}\n', b'{"ok": false}\n',
        b'{"ok": 1, "result": {}}\n',
        b'{"ok": true, "result": []}\n', b'{"ok": false, "error": 1, "hint": null}\n', b"[" * 100_000 + b"\n",
    ],
)  # fmt: skip
def test_words_that_are_no_answer(place: Path, answer: bytes) -> None:
    place.parent.mkdir()

    def strange() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1000)
            connection.sendall(answer)

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        thread = threading.Thread(target=strange)
        thread.start()
        with pytest.raises(ControlUnavailable):
            ask_now(place, "who", within=PATIENT)
        thread.join()


@pytest.mark.parametrize(
    ("environment", "uid", "path"),
    [
        ({"RUNTIME_DIRECTORY": "/run/a:/run/b", "XDG_RUNTIME_DIR": "/x"}, 0, "/run/a/control.sock"),
        ({"RUNTIME_DIRECTORY": "/run/a"}, 7, "/run/a/control.sock"),
        ({"RUNTIME_DIRECTORY": "", "XDG_RUNTIME_DIR": "/x", "HOME": "/h"}, 0, "/run/luminous-healing/control.sock"),
        ({"XDG_RUNTIME_DIR": "/x", "HOME": "/h"}, 7, "/x/luminous-healing/control.sock"),
        ({"HOME": "/h"}, 7, "/h/.local/state/luminous-healing/control.sock"),
        ({}, 7, "/nonexistent/.local/state/luminous-healing/control.sock"),
    ],
)
def test_the_place(environment: dict[str, str], uid: int, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    assert socket_path(environment) == Path(path)
