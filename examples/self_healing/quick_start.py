# Watch this host and heal it, with the defaults, until Ctrl-C.

import asyncio

# Import the healing system
from luminous_nix.self_healing import create_self_healing_engine


async def main() -> None:
    # Create engine with defaults
    engine = create_self_healing_engine()

    # Start monitoring (runs continuously)
    await engine.start_monitoring(interval=60)  # Check every 60 seconds


asyncio.run(main())
