"""Look for inputs that break a target: `python -m tests.fuzz all --runs 1000000 --seed 1`.

Needs the extra `fuzz`: coverage of the parsers leads the way. Each target has a process of its own. Inputs that broke
one are kept in artefacts/fuzz/; `--input FILE` runs one of them again.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import traceback
from hashlib import sha256
from pathlib import Path
from random import Random

_KEPT = Path("artefacts/fuzz")
_LONGEST = 8192
_SLOW_S = 5
_MOST_MIB = 512
_DONE = re.compile(r"Done (\d+) runs in (\d+) second")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="a target, or all")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--input", type=Path, help="run this input alone")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)  # in a process of its own, with this folder
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if chosen.inside:
        fuzz(chosen.target, chosen.runs, chosen.seed, chosen.inside)
    with tempfile.TemporaryDirectory() as scratch:
        from .targets import targets

        known = targets(Path(scratch))
        if chosen.target not in {"all", *known}:
            parser.error(f"the targets are: all, {', '.join(known)}")
        if chosen.input:
            known[chosen.target].check(chosen.input.read_bytes())
            return 0
    names = list(known) if chosen.target == "all" else [chosen.target]
    found = {name: started(name, chosen.runs, chosen.seed) for name in names}
    print(json.dumps(found, indent=1))
    return int(any(one["crashes"] or one["runs"] < chosen.runs for one in found.values()))


def started(name: str, runs: int, seed: int) -> dict[str, int]:
    """In a process of its own, because libFuzzer ends it."""
    with tempfile.TemporaryDirectory(dir=_shared_memory()) as folder:
        argv = [sys.executable, "-m", "tests.fuzz", name, f"--inside={folder}", f"--runs={runs}", f"--seed={seed}"]
        done = subprocess.run(argv, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    ended = _DONE.search(done.stderr)
    crashes = len(set(re.findall(r"^broken by (\S+)", done.stderr, re.MULTILINE)))
    if crashes or not ended:
        sys.stderr.write(done.stderr[-20_000:])
    ran, seconds = map(int, ended.groups()) if ended else (0, 0)
    return {"runs": ran, "crashes": crashes + (ended is None), "seconds": seconds}


def fuzz(name: str, runs: int, seed: int, folder: Path) -> None:
    """Does not come back. The same line of code broken twice is told once."""
    import atheris

    with atheris.instrument_imports(include=["luminous_nix.self_healing", "tomllib"]):
        from .targets import targets
    target = targets(folder / "world")[name]
    seeds = folder / "seeds"
    seeds.mkdir()
    for number, data in enumerate(target.seeds):
        (seeds / str(number)).write_bytes(data)
    told: set[str] = set()

    def check(data: bytes) -> None:
        try:
            target.check(data)
        except Exception as error:  # noqa: BLE001  whatever it is, it is a finding
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{place.filename}:{place.lineno}:{type(error).__name__}"
            if where not in told:
                told.add(where)
                sys.stderr.write(f"\nbroken by {_kept(name, data)}\n{traceback.format_exc()}\n")

    def mutate(data: bytes, most: int, number: int) -> bytes:
        if number % 2:
            return bytes(atheris.Mutate(data, most))
        return target.vary(bytes(data), Random(number))[:most]  # noqa: S311  the same input for the same seed

    _KEPT.mkdir(parents=True, exist_ok=True)
    options = [f"-runs={runs}", f"-seed={seed}", f"-max_len={_LONGEST}", f"-timeout={_SLOW_S}"]
    options += [f"-rss_limit_mb={_MOST_MIB}", f"-artifact_prefix={_KEPT}/{name}-"]
    atheris.Setup([sys.argv[0], *options, str(seeds)], check, custom_mutator=mutate)
    atheris.Fuzz()


def _shared_memory() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def _kept(name: str, data: bytes) -> Path:
    path = _KEPT / f"{name}-{sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return path


if __name__ == "__main__":
    sys.exit(main())
