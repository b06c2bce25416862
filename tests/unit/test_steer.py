"""The command's side: a real control socket with an engine behind it, or no engine and a store on disk."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing import steer
from luminous_nix.self_healing.config import Settings
from luminous_nix.self_healing.control import ControlServer
from luminous_nix.self_healing.control_client import ControlError, ControlUnavailable
from luminous_nix.self_healing.decide.policy import Policy
from luminous_nix.self_healing.heal.records import HealingRecord
from luminous_nix.self_healing.home import kept_by_another, kill_switch, open_store, state_file
from luminous_nix.self_healing.models import ActionRefused, HealingError, Verdict
from luminous_nix.self_healing.report import Lines
from tests.unit.host import FakeHost
from tests.unit.test_desk import ASKS, Counter
from tests.unit.test_engine import trouble

SETTINGS = Settings()


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's own places are those of this test; returns where the kill switch would be."""
    switch = tmp_path / "etc/disabled"
    monkeypatch.setattr(steer, "HOST_SOCKET", tmp_path / "host.sock")
    monkeypatch.setattr(steer, "SWITCH_FILE", switch)
    monkeypatch.setattr(kill_switch, "__defaults__", (switch,))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    return switch


@pytest.fixture
def ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    """We are not root."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)


@contextmanager
def running(
    host: FakeHost, at: Path, before: Callable[[Counter], Any] | None = None, **engine: Any
) -> Iterator[None]:
    """An engine and its control socket, in a thread with a loop of its own, as a daemon has."""
    ready, over = threading.Event(), threading.Event()
    problems: list[BaseException] = []

    async def serve() -> None:
        counter = Counter(host, **engine)
        if before is not None:
            await before(counter)
        server = ControlServer(at, counter.desk.verbs(), group=None, uid=0)
        await server.start()
        ready.set()
        while not over.is_set():  # noqa: ASYNC110  another thread's event
            await asyncio.sleep(0.01)
        await server.stop()
        counter.store.close()

    def work() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001
            problems.append(error)
            ready.set()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        assert ready.wait(20)
        assert not problems, problems
        yield
    finally:
        over.set()
        thread.join(20)


@pytest.fixture
def engine(host: FakeHost, tmp_path: Path) -> Iterator[None]:
    with running(host, tmp_path / "run/control.sock"):
        yield


async def heal(counter: Counter) -> None:
    assert (await counter.engine.heal_issue(trouble())).verdict is Verdict.HEALED


def hang_up(listening: socket.socket) -> None:
    listening.accept()[0].close()


def text(lines: Lines) -> str:
    return "\n".join(line for _, line in lines)


# -- with an engine ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["host.sock", "run/control.sock"])
def test_the_hosts_engine_is_asked_else_ones_own(host: FakeHost, tmp_path: Path, where: str) -> None:
    with running(host, tmp_path / where):
        assert steer.ask(SETTINGS, "status")["running"] is True


def test_what_was_healed_is_told_explained_and_undone(host: FakeHost, tmp_path: Path) -> None:
    with running(host, tmp_path / "run/control.sock", heal):
        told = steer.history(SETTINGS, "", 20)
        (record,) = told.data["records"]
        assert record["id"] in text(told.lines)
        assert steer.history(SETTINGS, "memory", 0).data == told.data  # at least one, at most a thousand
        assert steer.history(SETTINGS, "memory", 5000).data == told.data
        assert steer.history(SETTINGS, "nginx", 5).lines == [("", "there is no record of nginx")]
        explained = steer.explain(SETTINGS, "memory")
        assert explained.data["record"] == record
        assert "verdict   healed" in text(explained.lines)
        undone = steer.undo(SETTINGS, record["id"])
        assert undone.lines == [("green", "a person asked: undone: the former values are back")]
        with pytest.raises(ControlError, match="is undone already"):
            steer.undo(SETTINGS, record["id"])
        json.dumps([told.data, explained.data, undone.data])
        assert [answer.data["schema"] for answer in (told, explained, undone)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("policy", "code", "style", "words"),
    [
        (ASKS, 0, "green", "adjust_swappiness: healed"),
        (Policy(ASKS.mode, ASKS.rules, confirm_s=0.0), None, "", "has expired"),
    ],
    ids=["in time", "too late"],
)
def test_a_word_is_passed_on(
    host: FakeHost, tmp_path: Path, policy: Policy, code: int | None, style: str, words: str
) -> None:
    async def wait(counter: Counter) -> None:
        await counter.scene.cycle()

    with running(host, tmp_path / "run/control.sock", wait, policy=policy):
        identity = steer.history(SETTINGS, "", 1).data["records"][0]["id"]
        if code is None:
            with pytest.raises(ControlError, match=words):
                steer.confirm(SETTINGS, identity)
            return
        answer = steer.confirm(SETTINGS, identity)
        assert (answer.code, answer.lines[0]) == (code, (style, words))
        assert answer.data["result"]["verdict"] == "healed"


def test_a_word_that_another_gate_holds_back_is_told_with_its_reason(host: FakeHost, tmp_path: Path) -> None:
    async def wait(counter: Counter) -> None:
        await counter.scene.cycle()
        await counter.desk.ask("pause", {"reason": "holidays"})

    with running(host, tmp_path / "run/control.sock", wait, policy=ASKS):
        answer = steer.confirm(SETTINGS, steer.history(SETTINGS, "", 1).data["records"][0]["id"])
        assert answer.code == 1
        assert answer.lines[0] == ("bold red", "none: refused")
        assert "paused: holidays" in text(answer.lines)


@pytest.mark.usefixtures("engine")
def test_a_silence_is_made_shown_and_ended() -> None:
    answer = steer.silence(SETTINGS, "nginx*", 5400.0, "a test")
    assert answer.lines == [
        ("green", "nothing is done about nginx* for 90 minutes"),
        ("", f"`luminous-healing silence --end {answer.data['id']}` ends that"),
    ]
    shown = text(steer.status_lines(steer.ask(SETTINGS, "status")))
    assert f"silenced    nginx* for 90 minutes: a test ({answer.data['id']})" in shown
    assert steer.unsilence(SETTINGS, answer.data["id"]).lines == [("green", "silences ended: 1")]
    with pytest.raises(ControlError, match="there is no silence"):
        steer.unsilence(SETTINGS, answer.data["id"])
    assert steer.silence(SETTINGS, "x", 60.0, "").data["pattern"] == "x"


@pytest.mark.usefixtures("engine", "ordinary")
@pytest.mark.parametrize(("reason", "said"), [("", "a person asked for it"), ("a\x1b[2J", "a")])
def test_a_pause_goes_to_the_engine_and_ends(reason: str, said: str) -> None:
    answer = steer.pause(SETTINGS, reason)
    assert answer.lines[0][1].startswith(f"nothing acts any more: paused: {said}")
    assert "\x1b" not in text(answer.lines)
    assert answer.data["stopped"]
    assert steer.resume(SETTINGS, breakers=False, store=False).lines == [("green", "healing goes on")]


@pytest.mark.usefixtures("ordinary")
def test_what_still_holds_after_a_resume_is_told(host: FakeHost, tmp_path: Path) -> None:
    with running(host, tmp_path / "run/control.sock", switch=lambda: "the file is there"):
        with pytest.raises(HealingError, match="still nothing acts: the file is there") as problem:
            steer.resume(SETTINGS, breakers=True, store=False)
        assert "as root" in problem.value.hint


@pytest.mark.usefixtures("engine")
def test_the_engines_no_is_passed_on() -> None:
    with pytest.raises(ControlError, match="there is no record of 'nginx'") as problem:
        steer.explain(SETTINGS, "nginx")
    assert "luminous-healing history" in problem.value.hint
    with pytest.raises(HealingError, match="the store is in order"):
        steer.resume(SETTINGS, breakers=False, store=True)


def test_a_refusal_is_told_as_one(host: FakeHost, tmp_path: Path) -> None:
    async def change(counter: Counter) -> None:
        await heal(counter)
        counter.knob.write_text("33")

    with running(host, tmp_path / "run/control.sock", change):
        identity = steer.history(SETTINGS, "", 1).data["records"][0]["id"]
        with pytest.raises(ActionRefused, match="was changed since"):
            steer.undo(SETTINGS, identity)


# -- without an engine -----------------------------------------------------------------------------------------------


def test_where_nothing_was_ever_done_nothing_is_made(tmp_path: Path) -> None:
    assert steer.history(SETTINGS, "", 5) == steer.Answer(
        {"schema": 1, "records": []}, [("", "nothing was done yet")]
    )  # fmt: skip
    assert not (tmp_path / "state").exists()


def test_without_an_engine_the_store_is_asked() -> None:
    store = open_store(os.environ)
    store.keep(HealingRecord("ab" * 6, 5.0, "then", trouble(), "healed").document())
    store.close()
    assert "verdict   healed" in text(steer.explain(SETTINGS, "abab").lines)
    assert [one["id"] for one in steer.history(SETTINGS, "memory", 5).data["records"]] == ["ab" * 6]
    assert steer.ask(SETTINGS, "status")["running"] is False
    with pytest.raises(HealingError, match="waits for no word"):
        steer.confirm(SETTINGS, "ab" * 6)
    assert steer.silence(SETTINGS, "x", 60.0, "").data["pattern"] == "x"
    assert len(steer.ask(SETTINGS, "status")["silences"]) == 1  # over two commands


@pytest.mark.usefixtures("ordinary")
def test_an_ordinary_users_pause_says_whose_heals_it_holds() -> None:
    answer = steer.pause(SETTINGS, "holidays")
    assert answer.lines[0][1].startswith("no engine runs here: this holds for your own heals only")
    assert answer.lines[1][1].startswith("nothing acts any more: paused: holidays")
    assert answer.data["own"] is True


@pytest.mark.usefixtures("ordinary")
def test_a_silence_of_an_ordinary_user_says_so_too() -> None:
    assert "your own heals only" in text(steer.silence(SETTINGS, "x", 60.0, "").lines)


def test_a_socket_that_a_dead_engine_left_is_nobody(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "run/control.sock"))
    assert steer.ask(SETTINGS, "status")["running"] is False


def test_an_engine_that_does_not_answer_in_our_words_is_no_leave_to_act_for_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as strange:
        strange.bind(str(tmp_path / "run/control.sock"))
        strange.listen(1)

        def answer() -> None:
            connection, _ = strange.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(b"what?\n")

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(ControlUnavailable, match="in words unknown here"):
            steer.ask(SETTINGS, "pause")
        thread.join(10)
    assert not state_file(os.environ).exists()


def test_the_status_of_an_engine_that_may_not_be_asked_says_so(place: Path, tmp_path: Path) -> None:
    place.parent.mkdir()
    place.write_text("holidays\n")
    (tmp_path / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as strange:
        strange.bind(str(tmp_path / "run/control.sock"))
        strange.listen(1)
        thread = threading.Thread(target=hang_up, args=(strange,))
        thread.start()
        found = steer.status(SETTINGS)
        thread.join(10)
    assert found["stopped"] == f"{place} is there: holidays"
    style, line = steer.status_lines(found)[0]
    assert (style, line.split()[0]) == ("yellow", "engine")
    assert "no engine answers" in line


# -- root's pause is a file ------------------------------------------------------------------------------------------


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(("reason", "kept"), [("holidays", "holidays\n"), ("", "a person asked for it\n")])
def test_roots_pause_is_a_file_and_needs_no_engine(place: Path, tmp_path: Path, reason: str, kept: str) -> None:
    answer = steer.pause(SETTINGS, reason)
    assert place.read_text() == kept
    assert answer.lines[0][1] == f"nothing acts any more: {place} is there"
    assert answer.data["stopped"] == f"{place} is there"
    assert not (tmp_path / "state").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="a store of root's")
def test_a_pause_that_cannot_be_a_file_goes_to_the_store_and_says_so(place: Path) -> None:
    place.parent.write_text("a file where the folder should be")
    answer = steer.pause(SETTINGS, "holidays")
    assert answer.lines[0][1].startswith("nothing acts any more: paused: holidays")
    assert f"({place} could not be made: " in answer.lines[0][1]


@pytest.mark.skipif(os.geteuid() != 0, reason="a store of root's")
@pytest.mark.parametrize("paused", [True, False])
def test_root_lifts_the_file(place: Path, paused: bool) -> None:
    if paused:
        steer.pause(SETTINGS, "")
    answer = steer.resume(SETTINGS, breakers=True, store=False)
    assert answer.lines == [("green", "healing goes on")]
    assert not place.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="a store of root's")
def test_a_file_that_root_cannot_lift_is_told(place: Path) -> None:
    place.mkdir(parents=True)  # a folder of that name stops everything, too
    with pytest.raises(HealingError, match="cannot be removed: Is a directory") as problem:
        steer.resume(SETTINGS, breakers=False, store=False)
    assert problem.value.hint == "remove it by hand"


# -- how the status reads -----------------------------------------------------------------------------------------


def test_the_status_of_a_host_without_a_past() -> None:
    assert steer.status_lines(steer.NO_PAST) == [("", "heals       0 of 10 in the last hour")]


def test_the_status_names_what_stands_in_the_way_the_loudest_first() -> None:
    found = {
        **steer.NO_PAST, "stopped": "paused: \x1b[2Jx", "store": "it is corrupt", "store_lifts": "by a person",
        "breakers": [{"cause": "c", "reason": "the last heals of c did harm", "lifts": "in 5 s"}],
        "waiting": [{"id": "abcd", "component": "memory", "action": "limit_unit", "ends_in_s": 1800}],
        "silences": [{"id": "ab12", "pattern": "nginx", "ends_in_s": 60, "reason": ""}],
        "heals_last_hour": 3,
    }  # fmt: skip
    lines = steer.status_lines(found)
    assert "\x1b" not in text(lines)
    assert [line.split()[0] for _, line in lines] == [
        "stopped", "store", "lifts", "breaker", "waits", "silenced", "heals"
    ]  # fmt: skip
    assert [style for style, _ in lines] == ["bold yellow", "bold red", "", "bold red", "yellow", "yellow", ""]
    for words in ("it is corrupt: nothing will act", "lifts by a person", "did harm; lifts in 5 s",
                  "`luminous-healing confirm abcd` takes limit_unit (memory), 30 minutes left",
                  "nginx for 1 minutes (ab12)", "heals       3 of 10 in the last hour"):  # fmt: skip
        assert words in text(lines)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root meets another user's state")
def test_root_keeps_out_of_the_state_of_an_engine_that_is_not_root(tmp_path: Path) -> None:
    """Neither believed nor written: a root-owned lock there would stop the engine, a link there would lead root."""
    host = tmp_path / "luminous-healing"
    assert not kept_by_another(host)
    assert state_file({}, host) == host / "state.db"
    host.mkdir()
    assert state_file({}, host) == host / "state.db"
    os.chown(host, 12345, 12345)
    assert kept_by_another(host)
    assert state_file({}, host) == tmp_path / "luminous-healing-root/state.db"
    assert state_file({"STATE_DIRECTORY": "/run/x"}, host) == Path("/run/x/state.db")
