"""People steer a running engine: they look, hold it back, confirm and undo; and what they ordered outlives it."""

from __future__ import annotations

import json
import os
import time
from typing import Any

import pytest

from tests.integration.conftest import SWITCH, Healer, Host, Units
from tests.lab.demo import unit_property, wait_for
from tests.lab.install import HOME

pytestmark = pytest.mark.container
SOCKET = "/run/luminous-healing/control.sock"
GROUP = "luminous-healing"
ONLY = ("--check", "services")
Lab = tuple[Healer, Units]
ENGINES = ("no engine runs", "an engine runs")


@pytest.fixture(scope="module")
def member(host: Host) -> str:
    """A user of the group that may ask; `tester` is not in it."""
    host.guest.run("groupadd", "--force", GROUP)
    host.guest.run("useradd", "--create-home", "--groups", GROUP, "helper", check=False)
    return "helper"


@pytest.fixture
def running(lab: Lab, member: str) -> Lab:
    lab[0].start()
    return lab


def quiet(lab: Lab, unit: str, looks: float = 3.5) -> None:
    """The unit stays down over several looks."""
    starts = lab[1].starts(unit)
    time.sleep(looks)
    assert (lab[1].state(unit), lab[1].starts(unit)) == ("failed", starts)


def good(host: Host, *argv: str, user: str | None = None) -> str:
    code, out, err = host.command(*argv, user=user)
    assert (code, err) == (0, ""), (out, err)
    return out


def bad(host: Host, *argv: str, user: str | None = None, code: int = 2) -> str:
    """What a person is told, on standard error alone, who mistyped or may not (2), or whom a rule refuses (1)."""
    told = host.command(*argv, user=user)
    assert told[:2] == (code, ""), told
    return told[2]


# -- who may ask -------------------------------------------------------------------------------------------------


def test_the_socket_is_for_root_and_the_group(running: Lab, host: Host, member: str) -> None:
    stat = host.guest.run("stat", "-c", "%F %a %U %G", SOCKET, "/run/luminous-healing").stdout.splitlines()
    assert stat == [f"socket 660 root {GROUP}", "directory 755 root root"]
    unit = running[1].broken("asked")
    running[1].active(unit)
    record = wait_for(lambda: running[0].records("asked"), what="kept")[0]
    for user in (None, member):
        assert "heals       1 of 10 in the last hour" in host.command("status", *ONLY, user=user)[1]
        assert host.data("status", *ONLY, user=user)["steering"]["running"] is True
        assert record["id"] in good(host, "history", "asked", user=user)
        assert "verdict   healed" in good(host, "explain", unit, user=user)
    for argv in (("history",), ("explain", "asked"), ("pause",), ("silence", "x")):
        said = bad(host, *argv, user="tester")
        assert f"no permission to ask at {SOCKET}" in said
        assert "hint: ask as root, or join the group luminous-healing" in said
    assert f"no permission to ask at {SOCKET}" in host.command("status", *ONLY, user="tester")[1]


def test_what_makes_it_do_more_is_for_root(running: Lab, host: Host, member: str) -> None:
    host.command("silence", "something", user=member)
    for argv in (
        ("resume",),
        ("confirm", "0123456789ab"),
        ("undo", "0123456789ab"),
        ("silence", "--end", "something"),
    ):
        said = bad(host, *argv, user=member)
        assert "is for root and the engine's own user" in said
        assert "hint: ask as root" in said
    assert "silences ended: 1" in good(host, "silence", "--end", "something")


# -- the kill switch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["root", "member"])
def test_a_pause_holds_over_a_restart_until_it_is_lifted(running: Lab, host: Host, member: str, who: str) -> None:
    healer, units = running
    user = None if who == "root" else member
    said = good(host, "pause", "--reason", "new disks", user=user)
    assert "nothing acts any more" in said
    assert "`luminous-healing resume` ends it" in said
    if who == "root":
        assert host.guest.run("cat", SWITCH).stdout == "new disks\n"
    unit = units.broken("held")
    quiet(running, unit)
    assert "new disks" in "".join(healer.told("held", "kill switch")["told"])
    for _ in range(2):
        _, out, _ = host.command("status", *ONLY)
        assert "stopped     " in out
        assert "new disks" in out
        assert "held.service failed" in out
        healer.restart()
        quiet(running, unit)
    assert host.heal("held", *ONLY)["verdict"] == "refused"  # nor does a command, whoever asks
    assert good(host, "resume") == "healing goes on\n"
    units.active(unit)


# The daemon itself, but for the remedy: a plugin, which takes its time.
PLUGIN_DAEMON = """
import asyncio
from luminous_nix.self_healing import SimpleResolver
from luminous_nix.self_healing.cli import _set_up_logging
from luminous_nix.self_healing.config import load
from luminous_nix.self_healing.daemon import Daemon

class Plugin(SimpleResolver):
    def get_action(self, issue):
        return {"action": "dawdle", "parameters": {}}

async def main():
    daemon = Daemon(load(None), lambda: load(None))
    daemon.engine.resolver = Plugin()
    await daemon.run()

_set_up_logging(verbose=True)
asyncio.run(main())
"""
DAWDLE = "#!/bin/sh\necho $$ > /var/tmp/dawdle.pid\nsleep 30\necho done > /var/tmp/dawdle.done\n"
ALL_AUTO = """
[[policy.rules]]
mode = "auto"
action = "run_plugin"
"""


def set_at(healer: Healer, who: str) -> float:
    """When the kill switch was set."""
    if who == "root":
        return float(healer.host.guest.run("stat", "-c", "%.Y", SWITCH).stdout)
    asked = next(line for line in healer.journal() if line["MESSAGE"].startswith("pause, asked for by uid"))
    return int(asked["__REALTIME_TIMESTAMP"]) / 1e6


@pytest.mark.parametrize("who", ["root", "member"])
def test_a_pause_ends_a_program_that_is_under_way(lab: Lab, host: Host, member: str, who: str) -> None:
    """From the kill switch to the moment at which the engine has let go and written that down."""
    healer, units = lab
    healer.configure(ALL_AUTO)
    host.guest.write("/etc/luminous-healing/plugins/dawdle", DAWDLE, 0o755)
    host.guest.run("sh", "-c", "rm -f /var/tmp/dawdle.*")
    host.guest.write("/var/tmp/plugin_daemon.py", PLUGIN_DAEMON)
    healer.start("env", f"PYTHONPATH={HOME}/src:{HOME}/deps", "python3", "/var/tmp/plugin_daemon.py")
    units.broken("plugged")
    pid = wait_for(
        lambda: "".join(host.guest.run("cat", "/var/tmp/dawdle.pid", check=False).stdout.split()), what="runs"
    )
    good(host, "pause", user=None if who == "root" else member)
    wait_for(lambda: host.guest.run("test", "-d", f"/proc/{pid}", check=False).returncode, timeout=10, what="ended")
    record = healer.told("plugged", "stopped by the kill switch", timeout=10)
    entry = next(line for line in healer.journal() if line.get("LUMINOUS_VERDICT") == "failed")
    took = int(entry["__REALTIME_TIMESTAMP"]) / 1e6 - set_at(healer, who)
    print(f"\nthe kill switch, set by {who}, took {took:.2f} s in the middle of a program")
    assert took < 5
    assert record["verdict"] == "failed"
    assert host.guest.run("test", "-e", "/var/tmp/dawdle.done", check=False).returncode == 1
    host.guest.run("rm", "-r", "/etc/luminous-healing/plugins")
    good(host, "resume")


def test_a_pause_begins_nothing_more_while_a_unit_still_starts(running: Lab, host: Host) -> None:
    """What systemd is at goes on; what is measured of it is told; the next trouble is left."""
    healer, units = running
    unit = units.slow("slow", 5)
    wait_for(lambda: units.state(unit) == "activating", what="the start is under way")
    good(host, "pause")
    units.active(unit)
    record = healer.told("slow", "slow.service is active (running)")
    assert record["verdict"] == "healed"
    other = units.broken("meanwhile")
    healer.told("meanwhile", "kill switch")
    quiet(running, other, 1.5)
    good(host, "resume")
    units.active(other)


# -- silences ----------------------------------------------------------------------------------------------------


def test_a_silence_holds_back_until_it_is_ended(running: Lab, host: Host, member: str) -> None:
    healer, units = running
    said = good(host, "silence", "calm*", "1h", "--reason", "at work", user=member)
    assert "nothing is done about calm* for 60 minutes" in said
    identity = said.partition("--end ")[2].partition("`")[0]
    unit, other = units.broken("calmed"), units.broken("loud")
    units.active(other)
    quiet(running, unit)
    assert "calm* is silenced: at work" in "".join(healer.told("calmed", "silence")["told"])
    healer.restart()
    quiet(running, unit)
    assert f"silenced    calm* for 60 minutes: at work ({identity})" in host.command("status", *ONLY)[1]
    assert "silence" in host.heal("calmed", *ONLY)["error"]  # a person's request, too
    assert good(host, "silence", "--end", identity) == "silences ended: 1\n"
    units.active(unit)


def test_a_silence_ends_by_itself(running: Lab, host: Host) -> None:
    good(host, "silence", "brief.service", "4s")
    unit = running[1].broken("brief")
    running[0].told("brief", "silence: brief is silenced")
    running[1].active(unit)


# -- policy ------------------------------------------------------------------------------------------------------

ASK_FIRST = """
[[policy.rules]]
mode = "confirm"
unit = "asks*"

[[policy.rules]]
mode = "observe"
category = "service"
unit = "watched*"
"""


def test_what_asks_waits_for_a_word_and_takes_it_once(lab: Lab, host: Host, member: str) -> None:
    healer, units = lab
    healer.configure(ASK_FIRST)
    healer.start()
    unit = units.broken("asks-first")
    told = healer.told("asks-first", "rule 1 of the policy")
    identity = told["id"]
    quiet(lab, unit)
    _, out, _ = host.command("status", *ONLY)
    assert f"waits       `luminous-healing confirm {identity}` takes restart_service (asks-first)" in out
    assert f"waits     `luminous-healing confirm {identity}`" in good(host, "explain", "asks-first")
    assert good(host, "confirm", identity[:6]).startswith("restart_service: healed\n")
    assert (units.state(unit), units.starts(unit)) == ("active", 2)
    said = bad(host, "confirm", identity)
    assert f"record {identity} waits for no word: it is healed" in said
    assert units.starts(unit) == 2
    explained = good(host, "explain", identity)
    for words in ("confirm (rule 1 of the policy), confirmed", "passed: a person asked", "verdict   healed"):
        assert words in explained
    assert "waits" not in host.command("status", *ONLY)[1]


def test_a_question_survives_a_restart_of_the_engine(lab: Lab, host: Host, member: str) -> None:
    healer, units = lab
    healer.configure(ASK_FIRST)
    healer.start()
    unit = units.broken("asks-later")
    identity = healer.told("asks-later", "asks a person first")["id"]
    healer.stop()
    assert good(host, "confirm", identity).startswith("restart_service: healed\n")  # no engine runs: the command acts
    assert units.starts(unit) == 2
    healer.start()
    said = bad(host, "confirm", identity)
    assert "waits for no word" in said


def test_a_confirmed_act_is_held_by_limits_and_silences_all_the_same(lab: Lab, host: Host, member: str) -> None:
    healer, units = lab
    healer.configure(ASK_FIRST)
    healer.start()
    unit = units.broken("asks-again")
    identity = healer.told("asks-again", "asks a person first")["id"]
    good(host, "silence", "asks-again")
    code, out, _ = host.command("confirm", identity)
    assert (code, units.starts(unit)) == (1, 1)
    assert "asks-again is silenced" in out


@pytest.mark.skipif(os.environ.get("LUMINOUS_LONG") != "1", reason="takes a minute: LUMINOUS_LONG=1")
def test_a_question_expires(lab: Lab, host: Host, member: str) -> None:
    healer, units = lab
    healer.configure("confirm_seconds = 60\n" + ASK_FIRST)
    healer.start()
    unit = units.broken("asks-briefly")
    identity = healer.told("asks-briefly", "asks a person first")["id"]
    healer.stop()
    time.sleep(61)
    assert f"what record {identity} asked for has expired" in bad(host, "confirm", identity)
    assert units.starts(unit) == 1
    assert "waits" not in host.command("status", *ONLY)[1]


def test_an_ordinary_users_pause_does_not_claim_to_hold_the_host(lab: Lab, host: Host) -> None:
    """No engine runs: what an ordinary user orders is for what that user does."""
    said = good(host, "pause", user="tester")
    assert "this holds for your own heals only, the host's are root's to hold back" in said
    assert good(host, "resume", user="tester").endswith("healing goes on\n")


def test_what_is_only_observed_is_told_and_left(lab: Lab, host: Host, member: str) -> None:
    healer, units = lab
    healer.configure(ASK_FIRST)
    healer.start()
    unit = units.broken("watched-only")
    record = healer.told("watched-only", "observe, so nothing is done")
    quiet(lab, unit)
    assert record["asks"] is None
    assert "waits for no word" in bad(host, "confirm", record["id"])
    explained = good(host, "explain", "watched-only")
    assert "gate ✗    policy: rule 2 of the policy: observe, so nothing is done" in explained
    assert "verdict   refused: nothing was done" in explained


def test_the_mode_of_the_policy_caps_every_rule(lab: Lab, host: Host, member: str) -> None:
    healer, units = lab
    healer.configure('mode = "observe"\n[[policy.rules]]\nmode = "auto"\nunit = "*"\n')
    healer.start()
    unit = units.broken("capped")
    healer.told("capped", "the policy's mode: observe")
    quiet(lab, unit)


# -- undo --------------------------------------------------------------------------------------------------------

# A real limit and a real record of it; only the level of memory is made up: it falls once the limit is in force.
LIMIT = """
import asyncio, os, subprocess, sys
from luminous_nix.self_healing import ExecutionMode, NixOSPermissionHandler, SimpleDetector, SimpleExecutor
from luminous_nix.self_healing import SimpleResolver, SimplifiedHealingEngine
from luminous_nix.self_healing.daemon import open_store

UNIT = sys.argv[1]

class Memory(SimpleDetector):
    async def observe(self, **given):
        argv = ["systemctl", "show", "--value", "-p", "MemoryHigh", UNIT]
        free = subprocess.run(argv, capture_output=True, text=True).stdout.strip() == "infinity"
        return (await super().observe(**given))._replace(values={"memory": 97.0 if free else 20.0})

class Limit(SimpleResolver):
    def get_action(self, issue):
        return {"action": "limit_unit", "parameters": {"unit": UNIT, "memory_high_bytes": 64 << 20}}

async def main():
    executor = SimpleExecutor(NixOSPermissionHandler(ExecutionMode.DEVELOPMENT))
    engine = SimplifiedHealingEngine(detector=Memory(enabled_checks=["memory"]), resolver=Limit(), executor=executor,
                                     store=open_store(os.environ))
    _, (issue,) = await engine.look()
    result = await engine.heal_issue(issue)
    print(result.verdict.value, result.record)

asyncio.run(main())
"""


def limited(host: Host, unit: str) -> str:
    """The id of a heal that limited the unit."""
    done = host.guest.run("python3", "-c", LIMIT, unit, env={"PYTHONPATH": f"{HOME}/src:{HOME}/deps"})
    verdict, identity = done.stdout.split()
    assert verdict == "healed", done
    assert unit_property(host.guest, unit, "MemoryHigh") == str(64 << 20)
    return identity


@pytest.mark.parametrize("engine", ENGINES)
def test_undo_sets_a_limit_back(lab: Lab, host: Host, member: str, engine: str) -> None:
    healer, units = lab
    unit = units.start("bound")
    if engine == "an engine runs":
        healer.start()
    identity = limited(host, unit)
    assert good(host, "undo", identity) == "a person asked: undone: the former values are back\n"
    assert unit_property(host.guest, unit, "MemoryHigh") == "infinity"
    assert f"record {identity} is undone already" in bad(host, "undo", identity)
    explained = good(host, "explain", identity)
    assert "limit_unit(unit=bound.service, memory_high_bytes=67108864): taken" in explained
    assert "undone    undone: the former values are back" in explained
    assert "told      a person asked: undone: the former values are back" in explained


def test_undo_leaves_what_somebody_changed_since(running: Lab, host: Host) -> None:
    unit = running[1].start("bound")
    identity = limited(host, unit)
    host.guest.run("systemctl", "set-property", "--runtime", unit, "MemoryHigh=80M")
    said = bad(host, "undo", identity, code=1)
    assert f"unit:{unit}:MemoryHigh was changed since (it is {80 << 20}, we left {64 << 20})" in said
    assert "hint: whoever changed it decides" in said
    assert unit_property(host.guest, unit, "MemoryHigh") == str(80 << 20)
    host.guest.run("systemctl", "set-property", "--runtime", unit, f"MemoryHigh={64 << 20}")
    assert "undone: the former values are back" in good(host, "undo", identity)  # the refusal cost nothing
    assert unit_property(host.guest, unit, "MemoryHigh") == "infinity"


def test_a_pause_holds_an_undo_back(running: Lab, host: Host) -> None:
    unit = running[1].start("bound")
    identity = limited(host, unit)
    good(host, "pause")
    assert "nothing may act now" in bad(host, "undo", identity, code=1)
    assert unit_property(host.guest, unit, "MemoryHigh") == str(64 << 20)
    good(host, "resume")
    assert "the former values are back" in good(host, "undo", identity)


def test_a_start_has_no_way_back_and_says_so(running: Lab, host: Host) -> None:
    unit = running[1].broken("started")
    running[1].active(unit)
    identity = wait_for(lambda: running[0].records("started"), what="kept")[0]["id"]
    said = bad(host, "undo", identity)
    assert f"record {identity} left nothing to set back" in said
    assert running[1].state(unit) == "active"


# -- what a newcomer may type ------------------------------------------------------------------------------------

WRONG = (
    (("confirm", "deadbeef0000"), "there is no record"),
    (("undo", "deadbeef0000"), "there is no record"),
    (("explain", "deadbeef0000"), "there is no record"),
    (("explain", "no-such.service"), "there is no record"),
    (("silence", "--end", "nobody"), "there is no silence"),
    (("silence", "nginx", "soon"), "a time such as 30m, 2h or 1d"),
    (("silence", "nginx", "5"), "a time such as 30m, 2h or 1d"),
    (("silence", "nginx", "0m"), "a time such as 30m, 2h or 1d"),
    (("silence", "nginx", "99d"), "at most 30d"),
    (("resume", "--store"), "the store is in order"),
    (("confirm",), "ID"),
    (("undo",), "ID"),
    (("explain",), "ID|UNIT|COMPONENT"),
    (("silence",), "UNIT|COMPONENT"),
    (("pause", "now"), "unrecognized arguments: now"),
    (("resume", "--brakers"), "unrecognized arguments: --brakers"),
    (("history", "--number", "many"), "invalid int value"),
    (("puase",), "invalid choice: 'puase'"),
)
MISSHAPEN = (
    (("confirm", "abc"), "a record's id, or its beginning"),
    (("confirm", "../../etc/passwd"), "a record's id, or its beginning"),
    (("undo", "x y"), "a record's id, or its beginning"),
    (("silence", "; rm -rf /"), "a glob such as 'nginx*'"),
    (("silence", "nginx", "1h", "--reason", "x" * 201), "at most 200 characters"),
)


@pytest.mark.parametrize("wrong", [WRONG, MISSHAPEN], ids=["wrong", "misshapen"])
@pytest.mark.parametrize("engine", ENGINES)
def test_mistakes_are_told_in_words(
    lab: Lab, host: Host, member: str, engine: str, wrong: tuple[tuple[tuple[str, ...], str], ...]
) -> None:
    healer, _ = lab
    if engine == "an engine runs":
        healer.start()
    else:
        host.command("heal", "--apply", *ONLY)  # a store is there
    odd: list[tuple[Any, ...]] = []
    for argv, words in wrong:
        code, out, err = host.command(*argv)
        if (code, out) != (2, "") or words not in err or len(err) > 1000:
            odd.append((argv, code, out, err))
        elif "usage:" not in err and not json.loads(host.command(*argv, "--json")[1])["error"]:
            odd.append((argv, "--json tells no error"))
    assert odd == []
    assert "silenced" not in host.command("status", *ONLY)[1]
    assert host.guest.run("test", "-e", SWITCH, check=False).returncode == 1
    assert healer.running is (engine == "an engine runs")


def test_where_nothing_ever_ran(lab: Lab, host: Host) -> None:
    assert good(host, "history") == "nothing was done yet\n"
    for argv in (("explain", "nginx"), ("confirm", "deadbeef"), ("undo", "deadbeef")):
        assert "there is no record" in bad(host, *argv)
    assert "heals       0 of 10 in the last hour" in host.command("status", *ONLY)[1]


def test_an_engine_that_died_is_not_waited_for(running: Lab, host: Host) -> None:
    """kill -9 leaves its socket behind: the commands go to the store, and the next engine takes the place over."""
    healer, units = running
    unit = units.broken("before")
    units.active(unit)
    host.guest.run("systemctl", "kill", "-s", "KILL", healer.UNIT)
    wait_for(lambda: not healer.running, what="it died")
    assert host.guest.run("test", "-S", SOCKET, check=False).returncode == 0
    assert "restart_service" in good(host, "history", "before")
    assert host.data("status", *ONLY)["steering"]["running"] is False
    healer.restart()
    assert host.data("status", *ONLY)["steering"]["running"] is True


def test_a_second_engine_does_not_take_the_socket(running: Lab, host: Host) -> None:
    argv = ("timeout", "-s", "TERM", "3", "luminous-healing", "run", "--interval", "1")
    done = host.guest.run(*argv, check=False, env={"LUMINOUS_DEV_MODE": "1"})
    assert f"another engine listens at {SOCKET}" in done.stderr
    assert host.data("status", *ONLY)["steering"]["running"] is True


# -- limits ------------------------------------------------------------------------------------------------------


def test_limits_hold_over_a_restart(running: Lab, host: Host) -> None:
    """A second act on one target; then, with ten heals in the hour, the eleventh: by the engine and by a command."""
    healer, units = running
    unit = units.broken("again")
    units.active(unit)
    wait_for(lambda: healer.records("again") and healer.records("again")[0]["verdict"] == "healed", what="kept")
    healer.restart()
    units.kill(unit)
    healer.told("again", "cooldown: the last act on again.service ended")
    quiet(running, unit)
    assert units.starts(unit) == 2
    healer.stop()
    host.guest.run("systemctl", "reset-failed", unit)
    more = [units.start(f"many-{number}") for number in range(9)]
    units.kill(*more)
    results = host.data("heal", "--apply", *ONLY)["results"]  # a person's request: no shared cause is looked for
    verdicts = [result["verdict"] for result in results if result["issue"]["component"].startswith("many-")]
    assert verdicts == ["healed"] * 9
    eleventh = units.broken("eleventh")
    healer.start()
    assert "hourly limit: 10 in the last hour, at most 10 are allowed" in "".join(
        healer.told("eleventh", "hourly limit")["told"]
    )
    healer.restart()
    quiet(running, eleventh)
    assert "hourly limit" in host.heal("eleventh", *ONLY)["error"]
    assert units.starts(eleventh) == 1
    assert "heals       10 of 10 in the last hour" in host.command("status", *ONLY)[1]


def test_three_units_that_fail_together_are_one_cause(running: Lab, host: Host) -> None:
    healer, units = running
    three = [units.start(f"joint-{number}") for number in range(3)]
    units.kill(*three)
    for unit in three:
        record = healer.told(unit.removesuffix(".service"), "blast radius")
        assert record["verdict"] == "refused"
    for unit in three:
        quiet(running, unit, 1.5)
        assert units.starts(unit) == 1
    data = host.data("status", *ONLY)
    (shared,) = [issue for issue in data["issues"] if issue["kind"] == "shared_cause"]
    assert shared["type"] == "system"
    assert shared["description"] == "3 units went down together: joint-0, joint-1, joint-2"
    assert data["steering"]["heals_last_hour"] == 0
    explained = good(host, "explain", three[0])
    assert "gate ✗    blast radius: 3 units went down together: joint-0, joint-1, joint-2" in explained
    assert "verdict   refused: nothing was done" in explained
