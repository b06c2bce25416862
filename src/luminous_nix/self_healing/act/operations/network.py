"""The network, from its lowest broken layer up; never an interface, which may be the one somebody came by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ...bus import BusRefused, BusUnavailable
from ...models import ActionRefused
from ...observe.systemd import read_unit
from ..steps import Plan, ResolverJob
from .world import World, no_switch

_RESOLVED: Final = "systemd-resolved.service"


async def restart_network(world: World, _arguments: Mapping[str, Any]) -> Plan:
    """The resolver forgets its cache and what it learnt about its servers, which is where it gets stuck."""
    no_switch(world)
    try:
        unit = await read_unit(world.bus, _RESOLVED)
    except (BusUnavailable, BusRefused) as error:
        raise ActionRefused(f"{_RESOLVED} cannot be looked at: {error.message}", error.hint) from error
    if unit.active != "active":
        raise ActionRefused(f"there is no resolver to mend: {_RESOLVED} is {unit.active}",
                            "links and addresses are never touched: look at those yourself")  # fmt: skip
    return Plan((f"{_RESOLVED} is active; no interface is touched",),
                (ResolverJob("FlushCaches"), ResolverJob("ResetServerFeatures")))  # fmt: skip
