# A resolver of your own: its plain mapping is then the only remedy.

from typing import Any, Dict

from luminous_nix.self_healing import SimplifiedHealingEngine
from luminous_nix.self_healing import SimpleResolver, Issue

class CustomResolver(SimpleResolver):
    def get_action(self, issue: Issue) -> Dict[str, Any]:
        # Add custom logic for specific scenarios
        if issue.component == "my_special_service":
            return {
                'action': 'custom_restart',
                'parameters': {
                    'service': issue.component,
                    'wait_time': 10
                }
            }

        # Fall back to default resolution
        return super().get_action(issue)

# Use custom resolver
engine = SimplifiedHealingEngine()
engine.resolver = CustomResolver()
