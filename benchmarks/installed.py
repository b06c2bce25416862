"""The boundary as `luminous-healing install` puts it on a host: a container with systemd, the engine as its own user.

heal_s            from the kill of an allowed unit until it is active again, by the engine and through the helper
cold_ms           a status while no helper runs: systemd starts it
warm_status_ms    the same while it runs, connection included
warm_mutation_ms  an act that is durable before and after, and starts no unit: a CPU weight over D-Bus and polkit
audit_whole       what `luminous-healing audit verify` says at the end
exited_when_idle  with --idle: whether the helper is gone after five minutes without a request

Times are of the asking side, as root in the container; medians and 99th percentiles in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.lab.container import Container
from tests.lab.demo import service, unit_property, wait_for
from tests.lab.guest import Guest
from tests.lab.install import install_project

CHECKOUT = Path(__file__).parent.parent
HELPER = "luminous-healing-executor.service"
UNITS = [f"demo-{number}.service" for number in range(8)]
SETTINGS = f"""interval = 1
enabled_checks = ["services"]
allowed_units = {json.dumps(UNITS)}
[policy]
boot_grace_seconds = 0
resume_grace_seconds = 0
"""
ASK = """
import asyncio, json, pathlib, statistics, sys, time
from luminous_nix.self_healing.privileged.client import helper_client
client = helper_client(pathlib.Path("/run"), {})
async def timed(op, arguments):
    began = time.perf_counter()
    reply = await client.ask(op, arguments)
    assert reply.ok, dict(reply.result)
    return 1e3 * (time.perf_counter() - began)
async def main():
    took = [await timed(op, arguments) for op, arguments in json.loads(sys.argv[1])]
    told = statistics.quantiles(took, n=100)[98] if len(took) > 1 else took[0]
    print(json.dumps({"median": round(statistics.median(took), 2), "p99": round(told, 2), "count": len(took)}))
asyncio.run(main())
"""


def asked(guest: Guest, *requests: tuple[str, dict[str, Any]]) -> dict[str, float]:
    told: dict[str, float] = json.loads(guest.run("python3", "-I", "-c", ASK, json.dumps(requests)).stdout)
    return told


def measured(guest: Guest, *, idle: bool) -> dict[str, Any]:
    install_project(guest, CHECKOUT)
    guest.run("mkdir", "-p", "/etc/luminous-healing")
    guest.write("/etc/luminous-healing/config.toml", SETTINGS)
    for unit in UNITS:
        service(guest, unit.removesuffix(".service"), "/bin/sleep infinity", None)
        guest.run("systemctl", "start", unit)
    guest.run("luminous-healing", "install", "--now", timeout=120)
    guest.run("systemctl", "kill", "-s", "KILL", UNITS[0])
    began = time.perf_counter()
    wait_for(lambda: unit_property(guest, UNITS[0], "ActiveState") == "active", what="it is healed", timeout=60)
    result: dict[str, Any] = {"heal_s": round(time.perf_counter() - began, 2)}
    cold = []
    for _ in range(5):
        guest.run("systemctl", "stop", HELPER)
        cold.append(asked(guest, ("status", {}))["median"])
    result["cold_ms"] = {"median": sorted(cold)[2], "worst": max(cold), "count": len(cold)}
    result["warm_status_ms"] = asked(guest, *[("status", {})] * 500)
    acts = [("limit_unit", {"unit": unit, "cpu_weight": 50}) for unit in UNITS[1:]]
    result["warm_mutation_ms"] = asked(guest, *acts)
    verified = guest.run("luminous-healing", "audit", "verify", "--json")
    result["audit_whole"] = json.loads(verified.stdout)["whole"]
    users = guest.run("ps", "-o", "user:40=", "-C", "python3").stdout.split()
    result["users"] = sorted(set(users))
    if idle:
        guest.run("systemctl", "stop", "luminous-healing")
        time.sleep(310)
        result["exited_when_idle"] = unit_property(guest, HELPER, "ActiveState") == "inactive"
        result["result"] = unit_property(guest, HELPER, "Result")
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--idle", action="store_true", help="wait until the helper ends by itself, five minutes")
    given = parser.parse_args()
    with Container.boot("installed") as guest:
        result = measured(guest, idle=given.idle)
    print(json.dumps(result, indent=None if given.json else 2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
