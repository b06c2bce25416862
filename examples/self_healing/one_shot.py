# One healing cycle: what is wrong and what would be done (quick_heal() is a dry run unless told otherwise).

import asyncio

from luminous_nix.self_healing import quick_heal


async def main() -> None:
    # Run a single healing cycle
    results = await quick_heal()

    for result in results:
        print(f"Fixed: {result.issue.description}")
        print(f"Action: {result.action_taken}")
        print(f"Success: {result.success}")


asyncio.run(main())
