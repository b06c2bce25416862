"""The loop's own speed on this host, beside the kernel's floor in the same run.

floor       the files that a detection reads, read with os.pread and not parsed
detection   SimpleDetector.detect_issues(): read, parse, compare, every sensor of this host
resolution  SimpleResolver.get_action() over issues of every type
end_to_end  whole dry-run cycles in which five issues are found, resolved and rehearsed with their prechecks

Floor and detection are measured in turns, a slice of each at a time, so that another load on the machine
weighs on both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

FILES = ("stat", "meminfo", "loadavg", "pressure/cpu", "pressure/memory", "pressure/io")
SLICES, SLICE = 40, 250


def percentile(sorted_ns: list[int], share: float) -> float:
    """In µs."""
    return round(sorted_ns[min(len(sorted_ns) - 1, int(share * len(sorted_ns)))] / 1e3, 2)


async def measure_detection() -> tuple[dict[str, float], dict[str, float]]:
    from luminous_nix.self_healing import SimpleDetector

    detector = SimpleDetector()
    await detector.detect_issues()
    handles = [(os.open(path, os.O_RDONLY), 4096) for name in FILES if (path := Path("/proc") / name).exists()]
    clock = time.perf_counter_ns
    floor: list[int] = []
    full: list[int] = []
    gc.disable()
    for _ in range(SLICES):
        for _ in range(SLICE):
            began = clock()
            for handle, size in handles:
                os.pread(handle, size, 0)
            floor.append(clock() - began)
        for _ in range(SLICE):
            began = clock()
            await detector.detect_issues()
            full.append(clock() - began)
    gc.enable()
    for handle, _ in handles:
        os.close(handle)
    floor.sort()
    full.sort()
    detection = {
        "p50_us": percentile(full, 0.5),
        "p99_us": percentile(full, 0.99),
        "per_s": round(1e9 * len(full) / sum(full)),
    }
    return {"p50_us": percentile(floor, 0.5)}, detection


def measure_resolution() -> dict[str, float]:
    from luminous_nix.self_healing import Issue, IssueType, Severity, SimpleResolver

    get_action = SimpleResolver().get_action
    issues = [
        Issue(IssueType.SERVICE, Severity.HIGH, "nginx.service failed", "nginx", kind="unit_failed"),
        Issue(IssueType.RESOURCE, Severity.HIGH, "CPU use at 95 %", "cpu", 95.0, 80.0),
        Issue(IssueType.RESOURCE, Severity.HIGH, "memory use at 95 %", "memory", 95.0, 85.0),
        Issue(IssueType.RESOURCE, Severity.HIGH, "disk use at 95 %", "disk", 95.0, 90.0, metrics={"mount": "/"}),
        Issue(IssueType.SYSTEM, Severity.HIGH, "health is 40", "system", 40.0, 50.0),
    ]
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(40_000):
            for issue in issues:
                get_action(issue)
        best = max(best, 40_000 * len(issues) / (time.perf_counter() - began))
    return {"per_s": round(best)}


async def measure_cycles() -> dict[str, float]:
    """Thresholds at 0 make four real issues (CPU, memory, load, the fullest disk); a failed unit is the fifth."""
    from luminous_nix.self_healing import Issue, IssueType, Severity, SimpleDetector, SimplifiedHealingEngine

    detector = SimpleDetector(
        {"cpu": 0, "memory": 0, "disk": 0, "load": 0},
        enabled_checks=["cpu", "memory", "load", "disk"],
        ignore_mounts=["/?*"],
    )
    engine = SimplifiedHealingEngine(detector=detector, dry_run=True)
    unit = Issue(IssueType.SERVICE, Severity.HIGH, "nginx.service failed", "nginx", kind="unit_failed")

    async def cycle() -> int:
        _, issues = await engine.look()
        found = [issue for issue in issues if issue.type is IssueType.RESOURCE]
        return len(await engine.heal_issues_batch([*found, unit]))

    count = await cycle()
    return {"per_s": round(await _rate(cycle, 1.5)), "issues_per_cycle": count}


async def _rate(work: Callable[[], Awaitable[object]], seconds: float) -> float:
    for _ in range(100):
        await work()
    done, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds:
        for _ in range(50):
            await work()
        done += 50
    return done / took


def in_fresh_process(code: str, times: int) -> float:
    """The median of a figure that a fresh interpreter prints."""
    figures = sorted(
        float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)
        for _ in range(times)
    )
    return figures[len(figures) // 2]


IMPORT = "import time; t = time.perf_counter(); import {}; print((time.perf_counter() - t) * 1e3)"
RSS = """
import asyncio, re
from luminous_nix.self_healing import create_self_healing_engine
engine = create_self_healing_engine(dry_run=True)
async def main():
    for _ in range(100):
        await engine.detect_and_heal()
asyncio.run(main())
print(int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="one JSON object (the default)")
    parser.parse_args()
    floor, detection = asyncio.run(measure_detection())
    resolution = measure_resolution()
    figures = {
        "floor": floor,
        "detection": detection,
        "resolution": resolution,
        "end_to_end": asyncio.run(measure_cycles()),
        "import_ms": round(in_fresh_process(IMPORT.format("luminous_nix.self_healing"), 9), 2),
        "import_engine_ms": round(in_fresh_process(IMPORT.format("luminous_nix.self_healing.healing_engine"), 9), 2),
        "rss_mb": round(in_fresh_process(RSS, 3), 1),
        "detection_over_floor": round(detection["p50_us"] / floor["p50_us"], 2),
    }
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
