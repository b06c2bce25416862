# What the engine counted, and its success rate.

from luminous_nix.self_healing import SimplifiedHealingEngine

engine = SimplifiedHealingEngine()

metrics = engine.get_metrics()
if metrics['success_rate'] < 0.8:  # Less than 80% success
    # Review and adjust configuration
    pass
