"""What the attacks need of the unit tests' world."""

from tests.unit.conftest import *  # noqa: F403  the same fake host and bus
