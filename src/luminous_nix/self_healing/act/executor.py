"""Action → outcome. A dry run checks and tells, and changes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from ..decide.actions import specify
from ..models import Action, ActionRefused, ExecutionResult
from ..permission_handler import NixOSPermissionHandler

log = logging.getLogger(__name__)


class SimpleExecutor:
    """Executes actions through a permission handler."""

    def __init__(self, handler: NixOSPermissionHandler | None = None) -> None:
        self.handler = handler or NixOSPermissionHandler()

    async def execute(self, action: Action | Mapping[str, Any], dry_run: bool = False) -> ExecutionResult:
        """Act, or with `dry_run` tell what would happen. It raises nothing: what goes wrong is in the result.

        In a dry run `success` says that the request is valid; a precheck that would refuse is told in
        `output`, not enforced.
        """
        started = time.perf_counter()
        mode = self.handler.mode.value
        try:
            request = self.handler.known(Action.parse(action))
            specify(request)
        except ActionRefused as error:
            return ExecutionResult(False, "", error.message, error.hint or None, mode, refused=True)
        if not dry_run:
            log.info("executing %s %.500s", request.name, dict(request.parameters))
            return await self.handler.execute_healing_action(request.name, request.parameters)
        refused = self.handler.unavailable
        try:
            output = (await self.handler.prepare(request)).describe(self.handler.typed)
        except ActionRefused as error:
            refused, output = error.message + (f" ({error.hint})" if error.hint else ""), ""
        told = "\n".join(filter(None, (output, f"would be refused: {refused}" if refused else "")))
        took = (time.perf_counter() - started) * 1e3
        return ExecutionResult(True, told, mode=mode, duration_ms=took, refused=bool(refused))
