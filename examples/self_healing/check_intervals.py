# How often the host is looked at; the first loop runs until Ctrl-C or engine.stop(), then comes the second.

import asyncio

from luminous_nix.self_healing import SimplifiedHealingEngine


async def main() -> None:
    engine = SimplifiedHealingEngine()

    # Less frequent for stable systems
    await engine.start_monitoring(interval=300)  # 5 minutes

    # More frequent for critical systems
    await engine.start_monitoring(interval=30)   # 30 seconds


asyncio.run(main())
