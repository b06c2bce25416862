"""A simulated host, driven by a seed, under the real engine (see run.py)."""
