"""What each action of the catalogue means on this host: read, check, and return a plan. Nothing is changed here.

Every operation is named like its row in the catalogue and answers with a `Plan`, or raises ActionRefused
with the reason. The remedies are those that docs/design.md calls right: collection never deletes a
generation, caches are reclaimed and not dropped, a governor is only ever raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..steps import Plan
from .cgroups import free_memory, freeze_unit, limit_unit, thaw_unit
from .knobs import read_knob, set_knob, way_back
from .network import restart_network
from .nixos import prune_generations, rebuild_system, rollback_generation
from .plugins import has_plugin, run_plugin
from .resources import adjust_swappiness, clear_system_cache, kill_process, read_process, set_cpu_governor
from .storage import clean_disk, clean_nix_store, optimize_store, vacuum_journal
from .units import reload_service, rerun_timer, restart_service, start_unit
from .world import Operation, World

__all__ = ["OPERATIONS", "Operation", "World", "has_plugin", "read_knob", "read_process", "set_knob", "way_back"]


async def observe(_world: World, _arguments: Mapping[str, Any]) -> Plan:
    """Nothing: where no remedy is known, watching is the right answer."""
    return Plan(("watched only: nothing is known to help against it safely",), ())


OPERATIONS: Final[Mapping[str, Operation]] = {
    operation.__name__: operation
    for operation in (
        observe, restart_service, reload_service, start_unit, rerun_timer, limit_unit, freeze_unit, thaw_unit,
        clear_system_cache, free_memory, adjust_swappiness, set_cpu_governor, clean_nix_store, optimize_store,
        vacuum_journal, clean_disk, kill_process, restart_network, rebuild_system, prune_generations,
        rollback_generation, run_plugin,
    )
}  # fmt: skip
