# Log every reading and every step.

import logging

from luminous_nix.self_healing import SimplifiedHealingEngine

# Enable debug logging
logging.basicConfig(level=logging.DEBUG)

# Run with verbose output
engine = SimplifiedHealingEngine()
engine.verbose = True
