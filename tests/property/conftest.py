from __future__ import annotations

from hypothesis import HealthCheck, settings

# No deadline: a slow machine is no bug. Derandomised: the same cases on every run of the gate.
settings.register_profile(
    "gate", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)
settings.load_profile("gate")
