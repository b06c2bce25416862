"""A short turn of the fuzzers' targets, without a fuzzer: the same seed, the same inputs."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from tests.fuzz.targets import targets, varied

NAMES = (
    "frame", "body", "unit", "power", "knob", "config", "cpu", "memory", "load", "pressure", "process",
    "mounts", "control",
)  # fmt: skip
RUNS = 20_000
SLOW = {"config": 4_000}  # each is a file, read twice


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes(name: str, tmp_path: Path) -> None:
    target = targets(tmp_path)[name]
    for data in varied(target, Random(name), SLOW.get(name, RUNS)):  # noqa: S311
        try:
            target.check(data)
        except Exception as error:  # which input it was is half of the finding
            error.add_note(f"{name}: {data!r}")
            raise


def test_every_target_has_its_turn(tmp_path: Path) -> None:
    assert tuple(targets(tmp_path)) == NAMES
