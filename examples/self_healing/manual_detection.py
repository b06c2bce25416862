# Detect, decide and execute by hand, each step by itself, in a dry run.

import asyncio

from luminous_nix.self_healing import SimplifiedHealingEngine


async def main() -> None:
    engine = SimplifiedHealingEngine()

    # Detect issues
    issues = await engine.detector.detect_issues()

    # Resolve each issue
    for issue in issues:
        action = engine.resolver.get_action(issue)
        result = await engine.executor.execute(action, dry_run=True)


asyncio.run(main())
