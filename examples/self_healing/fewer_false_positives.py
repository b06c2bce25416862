# Less sensitive thresholds, when too much is reported.

from luminous_nix.self_healing import SimplifiedHealingEngine

engine = SimplifiedHealingEngine()

engine.detector.thresholds['cpu_percent'] = 85  # Less sensitive
engine.detector.thresholds['memory_percent'] = 90
