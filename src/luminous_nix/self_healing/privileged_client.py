"""Privilege as it is to be had: the helper first, else what an unprivileged program can do by itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from .models import ExecutionMode, ExecutionResult, HealingError, Roots
from .permission_handler import NixOSPermissionHandler
from .privileged.client import HELPER_SOCKET, HelperClient, HelperUnavailable, helper_client
from .privileged.protocol import STATUS
from .process import find

__all__ = ["HelperClient", "HybridPermissionHandler", "get_hybrid_status", "helper_client"]


class HybridPermissionHandler:
    """The helper where this host has one that we may ask, else directly, through sudo, or in user space.

    Chosen when it is made. `environment` names the credentials of the caller (systemd's), the process's own unless
    given.
    """

    def __init__(self, *, roots: Roots | None = None, environment: Mapping[str, str] | None = None) -> None:
        roots = roots or Roots()
        self.mode = ExecutionMode.SERVICE if _may_ask(roots) else ExecutionMode.DEVELOPMENT
        self.handler = NixOSPermissionHandler(self.mode, roots=roots, environment=environment)

    async def execute_action(self, action: str, parameters: Mapping[str, Any] | None = None) -> ExecutionResult:
        """Check, then act. It raises nothing: what goes wrong is in the result."""
        return await self.handler.execute_healing_action(action, parameters)


def _may_ask(roots: Roots) -> bool:
    return os.access(roots.run / HELPER_SOCKET, os.R_OK | os.W_OK)


async def get_hybrid_status(
    *, roots: Roots | None = None, environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """`privileged_service` and `sudo_available`: whether they are to be had here; `service` what the helper says of
    itself, or why it says nothing; `root`, `mode`, `capabilities`."""
    roots = roots or Roots()
    hybrid = HybridPermissionHandler(roots=roots, environment=environment)
    answers, service = False, "there is no helper on this host, or this user may not ask it"
    if _may_ask(roots):
        client = helper_client(roots.run, os.environ if environment is None else environment)
        try:
            reply = await client.ask(STATUS, {}, within=5.0)
            answers, service = reply.ok, str(dict(reply.result)) if reply.ok else f"it says {reply.code}"
        except (HelperUnavailable, HealingError) as error:
            service = error.message
    return {
        "privileged_service": answers,
        "service": service,
        "sudo_available": find("sudo") is not None,
        "root": os.geteuid() == 0,
        **hybrid.handler.get_permission_status(),
    }
