# Leave the dry run of an engine that was made with dry_run=True.

from luminous_nix.self_healing import create_self_healing_engine

engine = create_self_healing_engine(dry_run=True)

engine.dry_run = False  # Enable actual execution
