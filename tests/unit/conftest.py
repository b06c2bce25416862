"""A folder of files that stands for a host, and a real bus."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.buses import BusDaemon
from tests.unit.host import FakeHost


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    return FakeHost(tmp_path / "host")


@pytest.fixture
def bus_daemon(tmp_path: Path) -> Iterator[BusDaemon]:
    daemon = BusDaemon(tmp_path / "bus.sock")
    daemon.start()
    yield daemon
    daemon.stop()
