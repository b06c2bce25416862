# Only some of the checks.

from luminous_nix.self_healing import SimplifiedHealingEngine

engine = SimplifiedHealingEngine()

# Only monitor critical resources
engine.detector.enabled_checks = ['cpu', 'disk', 'services']
# Skip memory checks if not needed
