# Heal the failed ones among your critical services, every 30 seconds, until Ctrl-C.

import asyncio

from luminous_nix.self_healing import SimplifiedHealingEngine
from luminous_nix.self_healing import IssueType

engine = SimplifiedHealingEngine()

# Configure to focus on services
engine.detector.thresholds['cpu_percent'] = 95  # Only critical CPU
engine.detector.thresholds['memory_percent'] = 95  # Only critical memory

# Monitor specific services
critical_services = ['nginx', 'postgresql', 'redis']

async def monitor_services():
    while True:
        issues = await engine.detector.detect_issues()

        # Filter for service issues
        service_issues = [i for i in issues
                         if i.type == IssueType.SERVICE
                         and i.component in critical_services]

        for issue in service_issues:
            result = await engine.heal_issue(issue)
            if result.success:
                print(f"✅ Healed: {issue.description}")
            else:
                print(f"❌ Failed: {result.error}")

        await asyncio.sleep(30)  # Check every 30 seconds


asyncio.run(monitor_services())
