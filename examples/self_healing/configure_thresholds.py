# Thresholds of your own; what the mapping leaves out keeps its default.

from luminous_nix.self_healing import SimplifiedHealingEngine

engine = SimplifiedHealingEngine()

# Customize thresholds
engine.detector.thresholds = {
    'cpu_percent': 75.0,      # Trigger at 75% CPU
    'memory_percent': 80.0,    # Trigger at 80% memory
    'disk_percent': 85.0,      # Trigger at 85% disk
    'load_average': 3.0,       # Trigger at load 3.0
}
