"""The engine on a simulated host (tests/simulation), many seeds, beside the same host on which nobody does anything.

violations        invariants that did not hold, over all ticks of all seeds
availability      share of watched units that run, filesystems with room, memory, processor and disks that can be had,
                  over all ticks; `worse_seeds` is on how many seeds it was lower with the engine
repair_time_ratio mean duration of faults that an automatic action can mend, with / without the engine
acts_on_healthy   acts on what was truly well

Every fourth seed keeps its store in a file, with faults of the file.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.simulation.run import Options, Outcome, baseline, simulate

PROCESSES = 2


def both(seed: int, ticks: int) -> tuple[Outcome, Outcome]:
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.db" if seed % 4 == 0 else None
        return simulate(seed, ticks, Options(path=path, strict=False)), baseline(seed, ticks)


def mean(outcomes: list[Outcome]) -> float:
    lasted = [ticks for outcome in outcomes for ticks in outcome.repairs.values()]
    return sum(lasted) / max(1, len(lasted))


def share(outcomes: list[Outcome]) -> float:
    return sum(outcome.points_up for outcome in outcomes) / sum(outcome.points for outcome in outcomes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--ticks", type=int, default=50_000, help="per seed")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    began = time.perf_counter()
    with ProcessPoolExecutor(PROCESSES) as pool:
        pairs = list(pool.map(both, range(chosen.seeds), [chosen.ticks] * chosen.seeds))
    took = time.perf_counter() - began
    ran, idle = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    result = {
        "ticks": chosen.seeds * chosen.ticks,
        "seeds": chosen.seeds,
        "violations": sum(len(outcome.violations) for outcome in ran),
        "seconds": round(took, 1),
        "availability": {
            "with": round(share(ran), 5),
            "without": round(share(idle), 5),
            "worse_seeds": sum(one.availability < other.availability for one, other in pairs),
        },
        "repair_time_ratio": round(mean(ran) / mean(idle), 3) if mean(idle) else 1.0,
        "acts_on_healthy": sum(outcome.on_healthy for outcome in ran),
    }
    if chosen.json:
        print(json.dumps(result))
        return
    print(json.dumps(result, indent=2))
    for outcome in ran:
        for tick, invariant, what in outcome.violations:
            print(f"seed {outcome.seed}, tick {tick}: {invariant}: {what}")
    print(Counter(action for outcome in ran for _, action, _ in outcome.acts))


if __name__ == "__main__":
    main()
