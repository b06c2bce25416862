"""The helper as a program that uses this library finds it, and a person's word on its way there."""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from luminous_nix.self_healing import privileged_client, steer
from luminous_nix.self_healing.act.steps import Step, WriteFile
from luminous_nix.self_healing.bus import Bus
from luminous_nix.self_healing.config import Settings
from luminous_nix.self_healing.control_client import ControlError
from luminous_nix.self_healing.decide.policy import Mode, Policy, Rule
from luminous_nix.self_healing.home import kill_switch
from luminous_nix.self_healing.models import Action, ActionRefused, ExecutionMode
from luminous_nix.self_healing.permission_handler import NixOSPermissionHandler
from luminous_nix.self_healing.privileged import client as privileged
from luminous_nix.self_healing.privileged.broker import Rules
from luminous_nix.self_healing.privileged.client import HELPER_SOCKET
from luminous_nix.self_healing.privileged.keys import load_keys, make
from luminous_nix.self_healing.privileged.protocol import Keys
from luminous_nix.self_healing.privileged.service import Polkit
from luminous_nix.self_healing.privileged_client import HybridPermissionHandler, get_hybrid_status
from tests.security.helpers import FREE, Dry, Scene, serving
from tests.unit.buses import BusDaemon
from tests.unit.host import Clock, FakeHost, no_bus
from tests.unit.test_desk import ASKS, Counter
from tests.unit.test_steer import running, text

ASKED = Rules(FREE.allowed, Policy(rules=(Rule(Mode.CONFIRM),), boot_grace_s=0.0))
Confirmed = Callable[[str, Action], Any]


@pytest.fixture
def credentials(tmp_path: Path) -> dict[str, str]:
    """What systemd hands a process on."""
    make(tmp_path / "keys")
    return {"CREDENTIALS_DIRECTORY": str(tmp_path / "keys")}


def keys_of(credentials: dict[str, str]) -> Keys:
    return load_keys(Path(credentials["CREDENTIALS_DIRECTORY"]) / "keys", "")


def socket_of(host: FakeHost) -> Path:
    host.roots.run.mkdir(exist_ok=True)
    return host.roots.run / HELPER_SOCKET


# -- without a helper ----------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_what_was_documented_goes_on_working(host: FakeHost) -> None:
    status = await get_hybrid_status()  # of this host, whatever it has
    print(f"Privileged service: {status['privileged_service']}")
    print(f"Sudo available: {status['sudo_available']}")
    assert {type(status[name]) for name in ("privileged_service", "sudo_available", "root")} == {bool}
    assert status["capabilities"].keys() >= {"clear_system_cache", "restart_service"}
    handler = HybridPermissionHandler(roots=host.roots)
    result = await handler.execute_action("clear_system_cache", {})
    assert (result.success, result.mode) == (False, "dev")
    assert "memory.reclaim" in str(result.error)


@pytest.mark.anyio
async def test_without_a_helper_it_is_done_directly(host: FakeHost, credentials: dict[str, str]) -> None:
    status = await get_hybrid_status(roots=host.roots, environment=credentials)
    assert (status["privileged_service"], status["mode"], status["is_production"]) == (False, "dev", False)
    assert status["service"] == "there is no helper on this host, or this user may not ask it"
    knob = host.write(host.roots.proc / "sys/vm/swappiness", "60\n")
    hybrid = HybridPermissionHandler(roots=host.roots, environment=credentials)
    assert hybrid.mode is ExecutionMode.DEVELOPMENT
    assert (await hybrid.execute_action("adjust_swappiness", {"value": 10})).success
    assert knob.read_text("ascii").startswith("10")
    for action, arguments in (
        ("no_such_action", {}),
        ("adjust_swappiness", {"value": 500}),
        ("adjust_swappiness", None),
    ):
        assert not (await hybrid.execute_action(action, arguments)).success


# -- with one ------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_with_a_helper_it_is_asked(host: FakeHost, credentials: dict[str, str]) -> None:
    scene = Scene(host, rules=Rules(FREE.allowed, Policy(rules=(Rule(Mode.AUTO),), boot_grace_s=0.0)))
    host.service_cache("web.service", 64 << 20)
    async with serving(scene, socket_of(host), keys=keys_of(credentials)):
        status = await get_hybrid_status(roots=host.roots, environment=credentials)
        assert (status["privileged_service"], status["mode"], status["is_production"]) == (True, "service", True)
        assert "'acting': False" in status["service"]
        assert status["capabilities"]["adjust_swappiness"].startswith("helper: ")
        hybrid = HybridPermissionHandler(roots=host.roots, environment=credentials)
        assert hybrid.mode is ExecutionMode.SERVICE
        for action, arguments in (("clear_system_cache", {}), ("adjust_swappiness", {"value": 10})):
            result = await hybrid.execute_action(action, arguments)
            assert (result.success, result.mode, result.output) == (True, "service", "done"), result.error
        scene.rules = Rules(policy=Policy(Mode.OBSERVE))
        refused = await hybrid.execute_action("adjust_swappiness", {"value": 20})
        assert (refused.success, refused.refused) == (False, True)
        assert "observe, so nothing is done" in str(refused.error)
    assert [line["op"] for line in scene.register.lines() if line["event"] == "done"] == [
        "clear_system_cache", "adjust_swappiness",
    ]  # fmt: skip


@pytest.mark.anyio
async def test_a_helper_that_does_not_believe_us(host: FakeHost, credentials: dict[str, str], tmp_path: Path) -> None:
    make(tmp_path / "others")
    others = {"CREDENTIALS_DIRECTORY": str(tmp_path / "others")}
    none = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    async with serving(Scene(host), socket_of(host), keys=keys_of(credentials)):
        for environment, said in ((others, "closed the connection without an answer"), (none, "cannot be read")):
            status = await get_hybrid_status(roots=host.roots, environment=environment)
            assert (status["privileged_service"], status["mode"]) == (False, "service")
            assert said in status["service"]
            hybrid = HybridPermissionHandler(roots=host.roots, environment=environment)
            assert said in str((await hybrid.execute_action("adjust_swappiness", {"value": 10})).error)


@pytest.mark.anyio
async def test_a_socket_at_which_nobody_is(host: FakeHost, credentials: dict[str, str]) -> None:
    scene = Scene(host)
    async with serving(scene, socket_of(host), keys=keys_of(credentials)):
        pass
    socket_of(host).touch()
    status = await get_hybrid_status(roots=host.roots, environment=credentials)
    assert (status["privileged_service"], "no helper answers" in status["service"]) == (False, True)


def test_what_the_module_offers() -> None:
    assert all(hasattr(privileged_client, name) for name in privileged_client.__all__)


# -- a person's word -----------------------------------------------------------------------------------------


ENGINE_UID = 12345
_NO_SETUID_FIXUP, _SET_SECUREBITS = 1 << 2, 28  # prctl(2)
_SETRESUID = {"x86_64": 117, "aarch64": 147}


def become(uid: int) -> None:
    """Root's thread is somebody else for whom it speaks to; what it may do on disk it may still. The kernel keeps
    that for each thread, and the C library would do it to all of them."""
    libc, words = ctypes.CDLL(None, use_errno=True), (-1, uid, -1)
    number = _SETRESUID.get(platform.machine())
    if number is None or libc.prctl(_SET_SECUREBITS, ctypes.c_ulong(_NO_SETUID_FIXUP), 0, 0, 0):
        pytest.skip("one thread cannot be another user here")
    assert libc.syscall(ctypes.c_long(number), *(ctypes.c_long(word) for word in words)) == 0
    assert os.geteuid() == uid


@contextmanager
def helping(host: FakeHost, at: Path, keys: Keys, confirmed: Confirmed) -> Iterator[list[str]]:
    """A helper in a thread of its own, as a process has; yields what it wrote down."""
    ready, over, lines = threading.Event(), threading.Event(), list[str]()
    problems: list[BaseException] = []

    def relief(step: Step) -> None:
        if isinstance(step, WriteFile):
            host.write(step.path, step.text)
            host.memory(40.0)

    async def serve() -> None:
        scene = Scene(host, rules=ASKED, runner=Dry(relief), confirmed=confirmed)
        async with serving(scene, at, keys=keys, engine_uid=ENGINE_UID):
            ready.set()
            while not over.is_set():  # noqa: ASYNC110  another thread's event
                await asyncio.sleep(0.01)
        lines.extend(line["event"] for line in scene.register.lines())

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
        yield lines
    finally:
        over.set()
        thread.join(20)


class Asking:
    """An engine in SERVICE mode with a question, its helper, and whom polkit asked."""

    def __init__(self, host: FakeHost, tmp_path: Path, credentials: dict[str, str]) -> None:
        self._host, self._run, self._keys = host, tmp_path / "run", keys_of(credentials)
        self.heard: list[tuple[str, Action]] = []
        self.says = True

    async def _person(self, subject: str, action: Action) -> None:
        self.heard.append((subject, action))
        if not self.says:
            raise ActionRefused("the person said no")

    async def _question(self, counter: Counter) -> None:
        handler = NixOSPermissionHandler(ExecutionMode.SERVICE, bus=no_bus(), roots=self._host.roots)
        counter.engine.executor.handler = handler
        (result,) = await counter.scene.cycle()
        assert "asks a person first" in str(result.error)
        become(ENGINE_UID)

    @contextmanager
    def there(self) -> Iterator[list[str]]:
        with (
            helping(self._host, socket_of(self._host), self._keys, self._person) as lines,
            running(self._host, self._run / "control.sock", self._question, policy=ASKS),
        ):
            yield lines


@pytest.fixture
def asking(host: FakeHost, tmp_path: Path, credentials: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Asking:
    """The host's own places are those of this test."""
    if os.geteuid() != 0:
        pytest.skip("only root can be both the command's user and the engine's")
    monkeypatch.setattr(steer, "HOST_SOCKET", tmp_path / "host.sock")
    monkeypatch.setattr(kill_switch, "__defaults__", (tmp_path / "disabled",))
    for module in (steer, privileged):
        monkeypatch.setattr(module, "HELPER_SOCKET", socket_of(host))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path / "run"))
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", credentials["CREDENTIALS_DIRECTORY"])
    return Asking(host, tmp_path, credentials)


def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is not root's."""
    monkeypatch.setattr(steer, "os", SimpleNamespace(geteuid=lambda: ENGINE_UID + 1, environ=os.environ))


SERVICE = Settings(mode=ExecutionMode.SERVICE)
TO_TEN = Action("adjust_swappiness", {"value": 10})


def waiting() -> str:
    (one,) = steer.ask(SERVICE, "status")["waiting"]
    return str(one["id"])


def test_roots_word_reaches_the_helper(asking: Asking) -> None:
    with asking.there() as lines:
        told = steer.confirm(SERVICE, waiting())
        assert (told.code, text(told.lines).splitlines()[0]) == (0, "adjust_swappiness: healed")
    assert asking.heard == []
    assert lines == ["grant", "intent", "done"]


@pytest.mark.parametrize("says", [True, False])
def test_anybody_elses_is_asked_for_by_polkit(
    asking: Asking, bus_daemon: BusDaemon, monkeypatch: pytest.MonkeyPatch, says: bool
) -> None:
    """Who is behind the connection to the bus that the command holds, about exactly what the record asks."""
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus_daemon.address)
    asking.says = says
    nobody(monkeypatch)
    with asking.there() as lines:
        if says:
            assert steer.confirm(SERVICE, waiting()).code == 0
        else:
            with pytest.raises(ActionRefused, match="the person said no"):
                steer.confirm(SERVICE, waiting())
    ((subject, action),) = asking.heard
    assert (subject.startswith(":1."), action) == (True, TO_TEN)
    assert lines == (["grant", "intent", "done"] if says else ["denied"])


def test_a_yes_in_the_engine_alone_is_no_word_to_the_helper(asking: Asking) -> None:
    """The engine may be somebody else's: what it says of a person counts for nothing."""
    with asking.there() as lines:
        found = steer.ask(SERVICE, "confirm", id=waiting())
        assert found["result"]["verdict"] == "refused"
        assert "a person is asked first" in str(found["result"])
    assert lines == ["denied"]


def test_a_question_that_is_answered_is_asked_of_nobody(
    asking: Asking, bus_daemon: BusDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", bus_daemon.address)
    nobody(monkeypatch)
    with asking.there():
        identity = waiting()
        assert steer.confirm(SERVICE, identity).code == 0
        with pytest.raises(ControlError, match="waits for no word"):
            steer.confirm(SERVICE, identity)
    assert len(asking.heard) == 1


# -- polkit --------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_polkit_is_not_asked_about_root_nor_about_nobody(bus_daemon: BusDaemon) -> None:
    """It would say yes to root without a word, and the engine can name any connection of root's."""
    bus = Bus(bus_daemon.address, clock=Clock())
    polkit = Polkit(bus)
    own = await bus.name()
    with pytest.raises(ActionRefused, match=r"root gives its word|polkit cannot be asked") as problem:
        await polkit(own, TO_TEN)
    assert ("root gives its word directly" in problem.value.message) is (os.geteuid() == 0)
    with pytest.raises(ActionRefused, match="polkit cannot be asked"):
        await polkit(":1.4242", TO_TEN)
    await bus.close()
    with pytest.raises(ActionRefused, match="polkit cannot be asked: D-Bus is not available"):
        await Polkit(no_bus())(own, TO_TEN)
