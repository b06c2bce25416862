# Heal an issue that you describe yourself, in the older form.

import asyncio
from datetime import datetime

from luminous_nix.self_healing.healing_engine import SelfHealingEngine, Issue, Severity


async def main() -> None:
    engine = SelfHealingEngine()

    # Create issue
    issue = Issue(
        id="mem_001",
        timestamp=datetime.now(),
        type='memory_high',
        severity=Severity.HIGH,
        description="Memory at 88%",
        metrics={'memory_percent': 88},
        affected_components=['system.memory']
    )

    # Heal it
    result = await engine.heal_issue(issue)
    print(f"Success: {result.success}")
    print(f"Actions: {result.actions_taken}")


asyncio.run(main())
