# The imports after a migration: the former name and the new one.

# New V2 import (backward compatible)
from luminous_nix.self_healing import SelfHealingEngine

# Or use new name
from luminous_nix.self_healing import SimplifiedHealingEngine
