"""What every test may use: the guests of the lab, and one asyncio backend."""

import pytest

from tests.lab.fixtures import container, machine

__all__ = ["container", "machine"]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
