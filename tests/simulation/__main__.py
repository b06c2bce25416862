"""Replay a run: `python -m tests.simulation --seed 3 --ticks 5000`."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .checker import Violation
from .run import Options, baseline, simulate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ticks", type=int, default=10_000)
    parser.add_argument("--disk", action="store_true", help="keep the store in a file, with its faults")
    parser.add_argument("--all", action="store_true", help="go on after a violation, and list them")
    parser.add_argument("--acts", action="store_true", help="list the acts")
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.db" if chosen.disk else None
        began = time.perf_counter()
        try:
            ran = simulate(chosen.seed, chosen.ticks, Options(path=path, strict=not chosen.all))
        except Violation as violation:
            print(violation)
            return 1
        took = time.perf_counter() - began
    idle = baseline(chosen.seed, chosen.ticks)
    for tick, action, target in ran.acts if chosen.acts else ():
        print(f"{tick:>8}  {action:<20} {target}")
    for tick, invariant, what in ran.violations:
        print(f"{tick:>8}  {invariant:<8} {what}")
    with_, without = (sum(outcome.repairs.values()) / max(1, len(outcome.repairs)) for outcome in (ran, idle))
    print(f"{ran.ticks} ticks in {took:.1f} s ({took / ran.ticks * 1e6:.0f} µs each), {len(ran.acts)} acts, "
          f"{ran.mended} faults mended, {ran.restarts} restarts, {ran.issues} issues shown")  # fmt: skip
    print(f"availability {ran.availability:.5f} with, {idle.availability:.5f} without; "
          f"a healable fault lasts {with_:.1f} ticks with, {without:.1f} without")  # fmt: skip
    print(dict(Counter(action for _, action, _ in ran.acts)), dict(Counter(rule for _, rule, _ in ran.violations)))
    return bool(ran.violations)


if __name__ == "__main__":
    sys.exit(main())
