# The three ways to an engine after a migration.

# Old import (still works - backward compatible)
from luminous_nix.self_healing import SelfHealingEngine

# New import (recommended)
from luminous_nix.self_healing import SimplifiedHealingEngine

# Or use the convenience function
from luminous_nix.self_healing import create_self_healing_engine
engine = create_self_healing_engine()
