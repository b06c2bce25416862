"""What every test may use: the guests of the lab, and one asyncio backend."""

from pathlib import Path

import pytest

from tests.lab.fixtures import container, machine

__all__ = ["container", "machine"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _nobodys_past(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is remembered in a test is not this host's, and not another test's."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("STATE_DIRECTORY", str(home / "state"))
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(home / "run"))
    return home
