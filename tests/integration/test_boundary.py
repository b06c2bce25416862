"""The trust boundary on a real systemd: what passes, what is refused at each of its walls, and what holds when one is
missing. What an act does with its power is in test_deploy.py."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luminous_nix.self_healing.deploy.units import Site, unit_files
from tests.lab.container import Container
from tests.lab.demo import service, unit_property, wait_for
from tests.lab.fixtures import missing_for_container
from tests.lab.guest import Guest
from tests.lab.install import install_project

from .conftest import CHECKOUT, CONFIG, SWITCH

pytestmark = pytest.mark.container
HELPER, ENGINE = "luminous-healing-executor", "luminous-healing"
SETTINGS = """interval = 1
allowed_units = ["demo.service", "absent.service", "asked.service", "typed.service"]
enabled_checks = ["services"]
[policy]
boot_grace_seconds = 0
resume_grace_seconds = 0
[[policy.rules]]
mode = "confirm"
unit = "asked"
[[policy.rules]]
mode = "confirm"
unit = "typed"
"""
ASK = """
import asyncio, json, pathlib, sys
from luminous_nix.self_healing.privileged.client import helper_client
reply = asyncio.run(helper_client(pathlib.Path("/run"), {}).ask(sys.argv[1], json.loads(sys.argv[2])))
print(json.dumps([reply.code, dict(reply.result)]))
"""
WITH_KEY = """
import asyncio, json, pathlib, sys
from luminous_nix.self_healing.models import HealingError
from luminous_nix.self_healing.privileged.client import HelperClient
from luminous_nix.self_healing.privileged.protocol import Key, Keys
keys = Keys(Key(bytes.fromhex(sys.argv[1])))
client = HelperClient(pathlib.Path("/run/luminous-healing-executor.sock"), lambda: keys)
try:
    print(json.dumps(asyncio.run(client.ask("status", {})).code))
except HealingError as error:
    print(json.dumps(error.message))
"""
AUDIT = """
import json, pathlib
from luminous_nix.self_healing.privileged.keys import credential, load_secret
from luminous_nix.self_healing.privileged.register import read_audit, verify
rows, checkpoint = read_audit(pathlib.Path("/var/lib/luminous-healing-executor/register.db"))
key = load_secret(credential("audit", {}))
cut = verify(rows[1:], checkpoint, key)
print(json.dumps([verify(rows, checkpoint, key), bool(cut), [json.loads(row.line) for row in rows]]))
"""


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """With the engine running as it is installed; `demo` is allowed, `other` is not, `absent` is but is not there,
    and `asked` is when a person says so."""
    if reason := missing_for_container():
        pytest.skip(reason)
    with Container.boot("boundary") as booted:
        install_project(booted, CHECKOUT)
        booted.write(CONFIG, SETTINGS)
        for name in ("demo", "other", "asked"):
            service(booted, name, "/bin/sleep infinity", None, ExecReload="/bin/true")
            booted.run("systemctl", "start", name)
        booted.run("luminous-healing", "install", "--now", timeout=120)
        yield booted


def python(guest: Guest, program: str, *argv: str) -> Any:
    return json.loads(guest.run("python3", "-I", "-c", program, *argv).stdout)


def ask(guest: Guest, op: str, **arguments: Any) -> tuple[str, dict[str, Any]]:
    """As root, who may do everything that the allow-list and the limits let through."""
    code, result = python(guest, ASK, op, json.dumps(arguments))
    return code, result


def records(guest: Guest, component: str) -> list[dict[str, Any]]:
    found = json.loads(guest.run("luminous-healing", "history", component, "--json").stdout)
    return list(found["records"])


def kill(guest: Guest, name: str) -> None:
    guest.run("systemctl", "kill", "-s", "KILL", name)


# -- a heal --------------------------------------------------------------------------------------------------


def test_a_killed_unit_is_healed_through_the_helper(guest: Guest) -> None:
    before = unit_property(guest, "demo", "InvocationID")
    kill(guest, "demo")
    (record,) = wait_for(
        lambda: [one for one in records(guest, "demo") if one["verdict"] != "open"], what="a verdict"
    )
    assert record["verdict"] == "healed"
    assert unit_property(guest, "demo", "ActiveState") == "active"
    assert unit_property(guest, "demo", "InvocationID") != before
    users = [user_of(guest, unit) for unit in (f"{ENGINE}.service", f"{HELPER}.service")]
    assert users == [ENGINE, HELPER]


def user_of(guest: Guest, unit: str) -> str:
    pid = unit_property(guest, unit, "MainPID")
    return guest.run("stat", "-c", "%U", f"/proc/{pid}").stdout.strip()


def test_another_unit_is_only_proposed(guest: Guest) -> None:
    kill(guest, "other")
    (record,) = wait_for(
        lambda: [one for one in records(guest, "other") if one["verdict"] != "open"], what="a record"
    )
    assert "is not among the units that may be touched" in json.dumps(record)
    assert unit_property(guest, "other", "ActiveState") == "failed"
    code, result = ask(guest, "restart_service", service="other.service")
    assert (code, "not among the units" in result["reason"]) == ("refused", True)
    guest.run("systemctl", "start", "other")


def test_the_audit_is_whole_and_a_missing_line_shows(guest: Guest) -> None:
    wrong, cut_shows, lines = python(guest, AUDIT)
    assert (wrong, cut_shows) == ("", True)
    uid = int(guest.run("id", "-u", ENGINE).stdout)
    acts = [(line["event"], line["op"], line["target"], line["uid"]) for line in lines if "target" in line]
    act = ("restart_service", "demo.service", uid)
    assert acts[:2] == [("intent", *act), ("done", *act)]


def test_a_helper_that_ended_comes_back_when_it_is_asked(guest: Guest) -> None:
    guest.run("systemctl", "stop", f"{HELPER}.service")
    assert unit_property(guest, f"{HELPER}.socket", "ActiveState") == "active"
    code, status = ask(guest, "status")
    assert (code, status["store"]) == ("done", "")
    assert unit_property(guest, f"{HELPER}.service", "ActiveState") == "active"


def key_of(guest: Guest) -> str:
    found: str = json.loads(guest.run("cat", "/var/lib/luminous-healing-keys/keys").stdout)["current"]
    return found


def rotated(guest: Guest) -> str:
    """The key of before."""
    former = key_of(guest)
    found = json.loads(guest.run("luminous-healing", "rotate-key", "--json", timeout=120).stdout)
    assert (found["rotated"], key_of(guest) != former) == (True, True)
    wait_for(lambda: unit_property(guest, f"{ENGINE}.service", "ActiveState") == "active", what="the engine")
    return former


def test_what_asks_is_done_on_roots_word_also_right_after_a_rotation(guest: Guest) -> None:
    """The command gives root's word to the helper, and the engine has it done, both with the new key."""
    kill(guest, "asked")
    (record,) = wait_for(lambda: [one for one in records(guest, "asked") if one.get("asks")], what="a question")
    assert record["asks"]["action"] in {"restart_service", "start_unit"}
    code, result = ask(guest, "status")
    assert code == "done", result
    invocation = unit_property(guest, f"{ENGINE}.service", "InvocationID")
    rotated(guest)
    assert unit_property(guest, f"{ENGINE}.service", "InvocationID") != invocation  # it has it by a new start
    done = guest.run("luminous-healing", "confirm", record["id"], check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[0] == f"{record['asks']['action']}: healed"
    assert unit_property(guest, "asked", "ActiveState") == "active"
    uid = int(guest.run("id", "-u", ENGINE).stdout)
    lines = json.loads(guest.run("luminous-healing", "audit", "show", "--number", "50", "--json").stdout)["audit"]
    acts = [(line["event"], line["uid"]) for line in lines if line.get("event") in {"grant", "intent", "done"}]
    assert acts[-3:] == [("grant", 0), ("intent", uid), ("done", uid)]


def test_an_administrators_password_takes_what_asks(guest: Guest) -> None:
    """A member of the group on a terminal: polkit's agent asks there, with the request in its words."""
    guest.run("usermod", "--append", "--groups", f"sudo,{ENGINE}", "tester")
    guest.run("sh", "-c", "echo tester:secret | chpasswd")
    service(guest, "typed", "/bin/sleep infinity", None)
    guest.run("systemctl", "start", "typed")
    kill(guest, "typed")
    (record,) = wait_for(lambda: [one for one in records(guest, "typed") if one["asks"]], what="it asks")
    command = ["runuser", "-u", "tester", "--", "luminous-healing", "confirm", record["id"]]
    code, shown = on_a_terminal(guest.enter(command), "assword: ", "secret\n")
    assert code == 0, shown
    assert "asks for restart_service(service=typed.service)" in shown
    assert "restart_service: healed" in shown
    assert unit_property(guest, "typed", "ActiveState") == "active"
    lines = json.loads(guest.run("luminous-healing", "audit", "show", "--number", "3", "--json").stdout)["audit"]
    assert [(line["event"], line["op"]) for line in lines] == [
        ("grant", "grant"), ("intent", "restart_service"), ("done", "restart_service"),
    ]  # fmt: skip
    assert lines[0]["subject"].startswith(":1.")


def on_a_terminal(command: list[str], until: str, answer: str) -> tuple[int, str]:
    """Run it on a terminal of its own, type the answer when it is asked for; (exit status, what was shown)."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvp(command[0], command)  # noqa: S606
    shown, typed_at, deadline = "", 0.0, time.monotonic() + 120
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                data = os.read(terminal, 4096)
            except OSError:  # it ended
                break
            shown += data.decode("utf-8", "replace")
        if until in shown and not typed_at:
            typed_at = time.monotonic() + 1.0  # what is typed before the echo is off is thrown away
        if 0.0 < typed_at <= time.monotonic():
            os.write(terminal, answer.encode())
            typed_at = float("inf")
    else:
        os.kill(child, signal.SIGKILL)
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), shown


def test_a_key_that_was_rotated_twice_opens_nothing(guest: Guest) -> None:
    """The one before counts for its grace, and an older one at no time."""
    oldest = rotated(guest)
    assert python(guest, WITH_KEY, oldest) == "done"
    former = rotated(guest)
    assert "without an answer" in python(guest, WITH_KEY, oldest)
    assert [python(guest, WITH_KEY, key) for key in (former, key_of(guest))] == ["done", "done"]


def test_root_verifies_and_reads_the_audit(guest: Guest) -> None:
    code, status = ask(guest, "status")
    found = json.loads(guest.run("luminous-healing", "audit", "verify", "--head", status["head"], "--json").stdout)
    assert (code, found["whole"], found["wrong"]) == ("done", True, None)
    strange = guest.run("luminous-healing", "audit", "verify", "--head", f"1:{'0' * 64}", check=False)
    assert (strange.returncode, "is missing at the end" in strange.stdout) == (1, True)
    shown = guest.run("luminous-healing", "audit", "show", "--number", "3").stdout.splitlines()
    assert [int(line.split()[0]) for line in shown] == list(range(found["lines"] - 2, found["lines"] + 1))
    for verb in ("verify", "show", "renew"):
        denied = guest.run("luminous-healing", "audit", verb, user="tester", check=False)
        assert (denied.returncode != 0, "only root may do that" in denied.stderr) == (True, True)
    code, result = ask(guest, "vacuum_journal", keep_bytes=16 << 20)  # root's look was in nobody's way
    assert "store" not in str(result.get("reason", "")), result


def test_the_kill_switch_holds_without_the_engine(guest: Guest) -> None:
    guest.run("systemctl", "stop", f"{ENGINE}.service")
    kill(guest, "demo")
    guest.write(SWITCH, "enough\n")
    try:
        code, result = ask(guest, "restart_service", service="demo.service")
        assert (code, "nothing may act" in result["reason"], "enough" in result["reason"]) == ("refused", True, True)
        assert unit_property(guest, "demo", "ActiveState") == "failed"
    finally:
        guest.run("rm", SWITCH)
        guest.run("systemctl", "restart", "demo")
        guest.run("systemctl", "start", f"{ENGINE}.service")


# -- the bus -------------------------------------------------------------------------------------------------

CALLS = """
import ast, json, sys
from jeepney import DBusAddress, new_method_call
from jeepney.io.blocking import open_dbus_connection
bus, told = open_dbus_connection("SYSTEM"), {}
for what, (name, path, interface, member, signature, body) in ast.literal_eval(sys.stdin.read()).items():
    call = new_method_call(DBusAddress(path, name, interface), member, signature or None, body)
    fields = bus.send_and_get_reply(call, timeout=20).header.fields
    told[what] = fields.get(4, "")
print(json.dumps(told))
"""
_SYSTEMD, _ROOT = "org.freedesktop.systemd1", "/org/freedesktop/systemd1"
Call = tuple[str, str, str, str, str, tuple[Any, ...]]


def manager(member: str, signature: str = "", *body: Any) -> Call:
    return _SYSTEMD, _ROOT, f"{_SYSTEMD}.Manager", member, signature, body


def of_unit(unit: str, member: str, signature: str = "", *body: Any, interface: str = "Unit") -> Call:
    """By the unit's own object, beside the manager."""
    path = "".join(sign if sign.isalnum() else f"_{ord(sign):02x}" for sign in unit)
    return _SYSTEMD, f"{_ROOT}/unit/{path}", f"{_SYSTEMD}.{interface}", member, signature, body


def login(member: str, signature: str, *body: Any) -> Call:
    name = "org.freedesktop.login1"
    return name, "/org/freedesktop/login1", f"{name}.Manager", member, signature, body


def other(what: str, member: str, signature: str, *body: Any) -> Call:
    name = f"org.freedesktop.{what}"
    return name, "/" + name.replace(".", "/"), name, member, signature, body


_RUN = ("ExecStart", ("a(sasb)", [("/bin/touch", ["/bin/touch", "/made-by-the-helper"], False)]))
_WEIGHT = [("CPUWeight", ("t", 50))]
_ACT = "luminous-healing-act-{}.service"
JOBS: dict[str, Call] = {
    "restart another": manager("RestartUnit", "ss", "other.service", "replace"),
    "restart the engine": manager("RestartUnit", "ss", f"{ENGINE}.service", "replace"),
    "restart polkit": manager("RestartUnit", "ss", "polkit.service", "replace"),
    "restart a target": manager("RestartUnit", "ss", "multi-user.target", "replace"),
    "stop": manager("StopUnit", "ss", "demo.service", "replace"),
    "start": manager("StartUnit", "ss", "demo.service", "replace"),
    "start an absent one": manager("StartUnit", "ss", "absent.service", "replace"),
    "try-restart": manager("TryRestartUnit", "ss", "demo.service", "replace"),
    "reload-or-restart": manager("ReloadOrRestartUnit", "ss", "demo.service", "replace"),
    "isolate": manager("StartUnit", "ss", "rescue.target", "isolate"),
    "kill": manager("KillUnit", "ssi", "demo.service", "all", 9),
    "its stop": of_unit("demo.service", "Stop", "s", "replace"),
    "its kill": of_unit("demo.service", "Kill", "si", "all", 9),
    "its job": of_unit("demo.service", "EnqueueJob", "ss", "stop", "replace"),
    "its freezer": of_unit("demo.service", "Freeze"),
    "its files": of_unit("demo.service", "Clean", "as", ["all"]),
    "its reference": manager("RefUnit", "s", "demo.service"),
    "all failed units": manager("ResetFailed"),
    "another failed unit": manager("ResetFailedUnit", "s", "other.service"),
    "all jobs": manager("ClearJobs"),
    **{
        f"start act {act}": manager("StartUnit", "ss", _ACT.format(act), "replace")
        for act in ("generations@1x", "freeze@other.service", "freeze@demo.service@x", "swappiness@201", "rollback@0",
                    "plugin@..", "gc@1")
    },
    "stop another act": manager("StopUnit", "ss", _ACT.format("freeze@other.service"), "replace"),
    "stop the system's own switch": manager("StopUnit", "ss", _ACT.format("rollback@12"), "replace"),
}  # fmt: skip
ROOTS_OWN: dict[str, Call] = {
    **{
        f"transient {name}": manager("StartTransientUnit", "ssa(sv)a(sa(sv))", name, "fail", [_RUN], [])
        for name in ("fresh.service", "absent.service", _ACT.format("swappiness@60"), _ACT.format("generations@12"))
    },
    "properties of another": manager("SetUnitProperties", "sba(sv)", "other.service", True, _WEIGHT),
    "properties by its object": of_unit("other.service", "SetProperties", "ba(sv)", True, _WEIGHT),
    "bind mount": manager("BindMountUnit", "sssbb", "demo.service", "/etc", "/tmp/x", False, True),
    "bind mount by its object": of_unit(
        "demo.service", "BindMount", "ssbb", "/etc", "/tmp/x", False, True, interface="Service"
    ),
    "mount image": manager("MountImageUnit", "sssbba(ss)", "demo.service", "/x.img", "/tmp/x", False, True, []),
    "reload": manager("Reload"),
    "execute again": manager("Reexecute"),
    "reboot": manager("Reboot"),
    "power off": manager("PowerOff"),
    "exit": manager("Exit"),
    "enable": manager("EnableUnitFiles", "asbb", ["other.service"], True, True),
    "disable": manager("DisableUnitFiles", "asb", ["other.service"], True),
    "mask": manager("MaskUnitFiles", "asbb", ["other.service"], True, True),
    "link": manager("LinkUnitFiles", "asbb", ["/tmp/x.service"], True, True),
    "preset": manager("PresetAllUnitFiles", "sbb", "full", True, True),
    "dependency": manager("AddDependencyUnitFiles", "asssbb", ["other.service"], "basic.target", "Wants", True, True),
    "revert": manager("RevertUnitFiles", "as", [f"{HELPER}.service"]),
    "default target": manager("SetDefaultTarget", "sb", "rescue.target", True),
    "environment": manager("SetEnvironment", "as", ["LD_PRELOAD=/x"]),
    "status on the screen": manager("SetShowStatus", "s", "yes"),
    "log level": (
        _SYSTEMD, _ROOT, "org.freedesktop.DBus.Properties", "Set", "ssv", (f"{_SYSTEMD}.Manager", "LogLevel",
        ("s", "debug"))
    ),
    "login: reboot": login("Reboot", "b", False),
    "login: power off": login("PowerOff", "b", False),
    "login: scheduled": login("ScheduleShutdown", "st", "reboot", 1 << 60),
    "login: kill a user": login("KillUser", "ui", 1000, 9),
    "login: end a user": login("TerminateUser", "u", 1000),
    "login: linger": login("SetUserLinger", "ubb", 1000, True, False),
    "login: hold a shutdown": login("Inhibit", "ssss", "shutdown", "x", "y", "block"),
    "host name": other("hostname1", "SetStaticHostname", "sb", "taken", False),
    "time zone": other("timedate1", "SetTimezone", "sb", "UTC", False),
    "locale": other("locale1", "SetLocale", "asb", ["LANG=C"], False),
}  # fmt: skip
# polkit lets these through, for the unit or the verb is right; systemd has its own reasons.
ELSEWHERE: dict[str, Call] = {
    "restart an absent one": manager("RestartUnit", "ss", "absent.service", "replace"),
    "isolate by a restart": manager("RestartUnit", "ss", "demo.service", "isolate"),
    "isolate an act": manager("StartUnit", "ss", _ACT.format("tmpfiles"), "isolate"),
    "another program": manager("SetUnitProperties", "sba(sv)", "demo.service", True, [_RUN]),
    "another user": manager("SetUnitProperties", "sba(sv)", "demo.service", True, [("User", ("s", "root"))]),
    "another slice": manager("SetUnitProperties", "sba(sv)", "demo.service", True, [("Slice", ("s", "x.slice"))]),
    "processes of others": manager("AttachProcessesToUnit", "ssau", "demo.service", "/", [1]),
    "a name with a newline": manager("StartUnit", "ss", _ACT.format("tmpfiles") + "\n", "replace"),
    "a name without a type": manager("RestartUnit", "ss", "demo", "replace"),
}
ALLOWED: dict[str, Call] = {
    "reload": manager("ReloadUnit", "ss", "demo.service", "replace"),
    "reset-failed": manager("ResetFailedUnit", "s", "demo.service"),
    "set-property": manager("SetUnitProperties", "sba(sv)", "demo.service", True, _WEIGHT),
    **{
        f"act {act}": manager("StartUnit", "ss", _ACT.format(act), "replace")
        for act in ("thaw@demo.service", "tmpfiles", "journal@16777216")
    },
    "stop an act": manager("StopUnit", "ss", _ACT.format("tmpfiles"), "replace"),
    "restart": manager("RestartUnit", "ss", "demo.service", "replace"),
}
DENIALS = {
    f"org.freedesktop.DBus.Error.{name}"
    for name in ("AccessDenied", "InteractiveAuthorizationRequired", "AuthFailed")
}


def calls(guest: Guest, user: str, table: dict[str, Call]) -> dict[str, str]:
    """What is asked for → the error's name, empty when there was none."""
    argv = ("runuser", "-u", user, "--", "python3", "-I", "-c", CALLS)
    done = guest.run(*argv, stdin=repr(table), timeout=120)
    told: dict[str, str] = json.loads(done.stdout)
    return told


def test_the_helper_gets_none_of_what_it_must_not_have(guest: Guest) -> None:
    forbidden = JOBS | ROOTS_OWN
    assert len(forbidden) >= 60
    told = calls(guest, HELPER, forbidden)
    assert {what: error for what, error in told.items() if error not in DENIALS} == {}
    assert guest.run("ls", "/made-by-the-helper", check=False).returncode == 2


def test_what_polkit_cannot_see_systemd_refuses(guest: Guest) -> None:
    assert {what: error for what, error in calls(guest, HELPER, ELSEWHERE).items() if not error} == {}
    assert unit_property(guest, "demo", "ActiveState") == "active"


def test_the_helper_gets_what_it_is_for(guest: Guest) -> None:
    assert calls(guest, HELPER, ALLOWED) == dict.fromkeys(ALLOWED, "")


@pytest.mark.parametrize("user", [ENGINE, "nobody"])
def test_nobody_else_gets_anything(guest: Guest, user: str) -> None:
    told = calls(guest, user, ALLOWED | JOBS | ROOTS_OWN)
    assert {what: error for what, error in told.items() if error not in DENIALS} == {}


def test_without_polkit_nothing_privileged_happens(guest: Guest) -> None:
    """And with it again everything does."""
    guest.run("systemctl", "mask", "--runtime", "--now", "polkit.service")
    try:
        told = calls(guest, HELPER, ALLOWED | JOBS | ROOTS_OWN)
        assert [what for what, error in told.items() if not error] == []
        guest.run("systemctl", "stop", "demo")
        code, result = ask(guest, "vacuum_journal", keep_bytes=16 << 20)
        assert code in {"refused", "failed"}, result
    finally:
        guest.run("systemctl", "unmask", "--runtime", "polkit.service")
        guest.run("systemctl", "start", "demo")
    assert calls(guest, HELPER, ALLOWED) == dict.fromkeys(ALLOWED, "")


# -- the walls -----------------------------------------------------------------------------------------------

PROBE = Path(__file__).with_name("probe.py")
WALLED = sorted(
    path.rpartition("/")[2]
    for path, file in unit_files(Site()).items()
    if path.endswith(".service") and "ProtectSystem=" in file.text
)
_ACTS = "luminous-healing-act-"
_BUS, _LOCAL = "connect /run/dbus/system_bus_socket", "socket UNIX"
_KEYS = {
    f"{how} /var/lib/luminous-healing-keys{file}"
    for how, file in (("read", "/keys"), ("read", "/audit"), ("write", ""))
}
# Its own /tmp and /var/tmp (but for tmpfiles); shared memory, which is the host's. Nothing there can be executed.
EVERYBODY = {"run /usr/bin/true", "write /tmp", "write /var/tmp", "write /dev/shm", "write /dev/mqueue"}
UID_0 = {"open /proc/1/oom_score_adj"}  # a file of its own user; to write a lower score takes a capability
BESIDES = {
    f"{ENGINE}.service": {
        _BUS, _LOCAL, "connect /run/luminous-healing-executor.sock", "connect /run/luminous-healing/control.sock",
        "read /home/tester/.profile", "read /var/lib/luminous-healing/state.db", "write /run/luminous-healing",
        "write /var/lib/luminous-healing",
    },
    f"{HELPER}.service": {_BUS, _LOCAL, f"write /var/lib/{HELPER}", f"read /var/lib/{HELPER}/register.db"},
    "luminous-healing-keys.service": _KEYS,
    "luminous-healing-rotate.service": _KEYS | {_BUS, _LOCAL},
    f"{_ACTS}journal@.service": {_LOCAL, "write /var/log/journal", "write /run/log/journal"},
    f"{_ACTS}gc@.service": {_LOCAL},
    f"{_ACTS}optimise.service": {_LOCAL},
    f"{_ACTS}generations@.service": {  # empty ones of its own
        f"{how} {home}" for how in ("write", "run from") for home in ("/home", "/root", "/run/user")
    },
}  # fmt: skip
_CAP_KILL = 1 << 5


@pytest.fixture(scope="module")
def probed(guest: Guest) -> dict[str, dict[str, Any]]:
    """Unit → what the probe could do in a copy of it, with every directive but those of starting."""
    guest.write("/usr/local/lib/probe.py", PROBE.read_text("utf-8"))
    names = {name: name.replace("luminous-healing", "probe").replace("@", "") for name in WALLED}
    for name, probe in names.items():
        lines = guest.run("cat", f"/etc/systemd/system/{name}").stdout.splitlines()
        dropped = ("ExecStart=", "Type=", "NotifyAccess=", "Restart", "WatchdogSec=", "RemainAfterExit=")
        lines = [line for line in lines if not line.startswith(dropped)]
        at = lines.index("[Service]") + 1
        lines[at:at] = ["Type=oneshot", "ExecStart=/usr/bin/python3 -I /usr/local/lib/probe.py",
                        f"StandardOutput=truncate:/run/{probe}.out", "RuntimeDirectoryPreserve=yes"]  # fmt: skip
        guest.write(f"/run/systemd/system/{probe}", "\n".join(lines) + "\n")
    guest.run("systemctl", "daemon-reload")
    guest.run("systemctl", "start", *names.values(), timeout=120)
    return {name: json.loads(guest.run("cat", f"/run/{probe}.out").stdout) for name, probe in names.items()}


@pytest.mark.parametrize("unit", WALLED)
def test_behind_its_walls_a_unit_can_do_no_more_than_it_must(probed: dict[str, dict[str, Any]], unit: str) -> None:
    found = probed[unit]
    expected = EVERYBODY | BESIDES.get(unit, set()) | (UID_0 if found["uid"] == 0 else set())
    assert set(found["could"]) - expected == set()
    assert expected - set(found["could"]) <= {f"read /var/lib/{HELPER}/register.db"}
    held = {found[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert held == {_CAP_KILL if unit == f"{HELPER}.service" else 0}
    assert (found["NoNewPrivs"], found["Seccomp"]) == (1, 2)
    assert (found["uid"] == 0) is (unit not in {f"{ENGINE}.service", f"{HELPER}.service", f"{_ACTS}gc@.service",
                                                f"{_ACTS}optimise.service"})  # fmt: skip
