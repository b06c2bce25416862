# Try things out in development mode and in a dry run.

import os

from luminous_nix.self_healing import SimplifiedHealingEngine

os.environ['LUMINOUS_DEV_MODE'] = '1'
engine = SimplifiedHealingEngine()
engine.dry_run = True
