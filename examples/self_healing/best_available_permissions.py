# The engine as it is, every 60 seconds, until Ctrl-C.

import asyncio

from luminous_nix.self_healing.healing_engine import SelfHealingEngine


async def main() -> None:
    # Engine automatically uses best available permissions
    engine = SelfHealingEngine()
    await engine.start_monitoring()


asyncio.run(main())
