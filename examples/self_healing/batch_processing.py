# Heal all that was detected, worst first.

import asyncio

from luminous_nix.self_healing import SimplifiedHealingEngine


async def main() -> None:
    engine = SimplifiedHealingEngine()

    # Process multiple issues together
    issues = await engine.detector.detect_issues()
    results = await engine.heal_issues_batch(issues)


asyncio.run(main())
