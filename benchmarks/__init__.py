"""Figures, measured on the host that runs them: `python -m benchmarks.loop --json`."""
