"""How privilege is had: chosen once, when the handler is made. Nothing downstream asks again.

SERVICE mode sends everything privileged through the helper. DEVELOPMENT mode acts directly as root, else
through `sudo -n`, else in user space where that helps, else it answers with the command to type.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from .act.operations import OPERATIONS, World, has_plugin, way_back
from .act.runners import ChainRunner, DirectRunner, ManualRunner, Runner, SudoRunner
from .act.steps import AskHelper, Knob, Plan, Step, typed
from .bus import Bus
from .decide.actions import CATALOGUE, specify
from .models import (
    Action,
    ActionFailed,
    ActionRefused,
    ExecutionMode,
    ExecutionResult,
    HealingError,
    NeedsPrivilege,
    Roots,
)
from .privileged.client import HELPER_SOCKET, HelperRunner, helper_client, narrowed
from .privileged.protocol import GRANT, RESTORE
from .privileged.ways import WAYS, asked
from .process import find

__all__ = ["ExecutionMode", "NixOSPermissionHandler", "development_wanted"]

_YES: Final = frozenset({"1", "true", "yes", "on"})
_NO_HELPER: Final = "SERVICE mode needs the helper, and there is none on this host ({socket} is missing)"
_HOW: Final = (
    "`luminous-healing install` sets it up, `systemctl start luminous-healing-executor.socket` starts it;"
    ' to act without it set LUMINOUS_DEV_MODE=1, or mode = "dev" in the configuration, and run as root or with sudo'
)

_STOPPED: Final = "stopped by the kill switch: "
_ASK_EVERY_S: Final = 0.2
_HELPER_MARGIN_S: Final = 30.0  # for its own looks before and after the act
_RESTORE_S: Final = 90.0
_ASKING_S: Final = 150.0  # a person types a password
_LET_GO_S: Final = 2.0  # process.py ends a child and what it started in less


def development_wanted(environment: Mapping[str, str]) -> bool:
    """Whether LUMINOUS_DEV_MODE is 1, true, yes or on."""
    return environment.get("LUMINOUS_DEV_MODE", "").strip().lower() in _YES


async def _let_go(work: asyncio.Future[str]) -> None:
    """End the step if it runs. What the kernel or systemd are at already goes on without us."""
    if not work.done():
        work.cancel()
        await asyncio.wait({work}, timeout=_LET_GO_S)
    if work.done() and not work.cancelled():
        work.exception()  # what it ended with is told already, or overtaken


class NixOSPermissionHandler:
    """Executes actions of the catalogue with the privilege of its mode.

    `mode` None reads LUMINOUS_DEV_MODE now. `runner` replaces the mode's own choice (tests, simulation).
    `switch` is the kill switch: it answers why nothing may act now, or nothing. It is asked before each step,
    and while one runs. `rooted`: whoever carries steps out can write what only root may (SERVICE mode, the helper).
    `allowed` are the units that may be touched in SERVICE mode, if they are known here: the helper has the last word,
    but need not be started to say no.
    """

    def __init__(
        self,
        mode: ExecutionMode | None = None,
        *,
        bus: Bus | None = None,
        roots: Roots | None = None,
        runner: Runner | None = None,
        environment: Mapping[str, str] | None = None,
        switch: Callable[[], str] = lambda: "",
        rooted: bool = False,
        allowed: Iterable[str] | None = None,
    ) -> None:
        environment = os.environ if environment is None else environment
        wanted = development_wanted(environment)
        self.mode = mode or (ExecutionMode.DEVELOPMENT if wanted else ExecutionMode.SERVICE)
        self._allowed = None if allowed is None else frozenset(allowed)
        self._asks = runner is None and self.mode is ExecutionMode.SERVICE
        self.world = World(bus or Bus(clock=time.monotonic), roots or Roots(), rooted=rooted or self._asks)
        self._socket = self.world.roots.run / HELPER_SOCKET
        self._sudo = find("sudo") if os.geteuid() != 0 else None
        self._runner = runner or self._choose(environment)
        self.switch = switch

    def _choose(self, environment: Mapping[str, str]) -> Runner:
        if self.mode is ExecutionMode.SERVICE:
            return HelperRunner(helper_client(self.world.roots.run, environment))
        root = os.geteuid() == 0
        direct = DirectRunner(self.world.bus, self.world.roots, privileged=root)
        return ChainRunner(direct, *([SudoRunner(self._sudo)] if self._sudo else []), ManualRunner())

    def known(self, action: Action) -> Action:
        """The action itself, or `run_plugin` of the plugin that has the name of one that the catalogue lacks."""
        if action.name in CATALOGUE or not has_plugin(self.world.roots, action.name):
            return action
        return Action("run_plugin", {"name": action.name, "parameters": dict(action.parameters)})

    async def prepare(self, action: Action) -> Plan:
        """What the action would do here, after its precheck. Raises ActionRefused; nothing is changed."""
        spec, arguments = specify(self.known(action))
        try:
            plan = await OPERATIONS[spec.name](self.world, arguments)
        except (OSError, ValueError) as error:
            raise ActionRefused(f"{spec.name}: the precheck could not look: {error}") from error
        within = spec.timeout_s + _HELPER_MARGIN_S
        return self._through_helper(plan, spec.name, asked(spec.name, {**arguments, **plan.settled}), within)

    def _through_helper(self, plan: Plan, op: str, arguments: Mapping[str, Any], within: float) -> Plan:
        """In SERVICE mode the plan is one step; what it would come to is the helper's to find."""
        if not self._asks or not plan.steps:
            return plan
        if self._allowed is not None:
            plan = narrowed(plan, self._allowed)
        return replace(plan, steps=(AskHelper(op, arguments, within),))

    async def execute_healing_action(
        self, action: str, parameters: Mapping[str, Any] | None = None
    ) -> ExecutionResult:
        """Check, then act. It raises nothing: what goes wrong is in the result.

        `knobs` of the result is what was set, or may have been when a step failed: what `restore` takes.
        """

        async def plan() -> Plan:
            return await self.prepare(Action.parse({"action": action, "parameters": parameters}))

        return await self._carry_out(plan)

    async def restore(self, knobs: Iterable[tuple[str, str, str]]) -> ExecutionResult:
        """Set each knob (name, former value, ours) back, unless somebody changed one of them since: then none."""

        async def plan() -> Plan:
            known = list(knobs)
            try:
                back = await way_back(self.world, known)
            except (OSError, ValueError) as error:
                raise ActionRefused(f"restore: it could not be looked at: {error}") from error
            return self._through_helper(back, RESTORE, {"knobs": [list(knob) for knob in known]}, _RESTORE_S)

        return await self._carry_out(plan)

    async def vouch(self, action: Action, subject: str) -> None:
        """Have polkit ask the person who speaks through this bus name about this very action; a yes counts once.
        Raises ActionRefused."""
        if not self._asks or not isinstance(self._runner, HelperRunner):
            raise ActionRefused("only the helper asks polkit, in SERVICE mode", "root can confirm it directly")
        spec, arguments = specify(action)
        word = {"op": spec.name, "args": asked(spec.name, arguments), "subject": subject}
        await self._runner.run(AskHelper(GRANT, word, _ASKING_S))

    async def carry_out(self, plan: Plan) -> ExecutionResult:
        """A plan that `prepare` or `way_back` made just now. It raises nothing, as above."""

        async def ready() -> Plan:
            return plan

        return await self._carry_out(ready)

    async def _carry_out(self, planning: Callable[[], Awaitable[Plan]]) -> ExecutionResult:
        started = time.perf_counter()
        said: list[str] = []
        problem: HealingError | None = None
        knobs: tuple[Knob, ...] = ()
        try:
            plan = await planning()
            knobs = plan.knobs
            for step in plan.steps:
                said.append(await self._unless_stopped(step))
        except (ActionRefused, NeedsPrivilege, ActionFailed) as error:
            problem = error
        refused = not said and isinstance(problem, ActionRefused | NeedsPrivilege)
        return ExecutionResult(
            problem is None,
            "; ".join(filter(None, said)),
            problem.message if problem else None,
            (problem.hint or None) if problem else None,
            self.mode.value,
            (time.perf_counter() - started) * 1e3,
            refused=refused,
            knobs=() if refused else knobs,
        )

    def _stopped(self) -> str:
        try:
            return self.switch()
        except OSError as error:  # whether we may cannot be told, so we may not
            return f"it cannot be asked: {error}"

    async def _unless_stopped(self, step: Step) -> str:
        """Carry the step out, and let go of it when the kill switch says so meanwhile."""
        if why := self._stopped():
            raise ActionRefused(_STOPPED + why)
        if self._asks and (why := self.unavailable):
            raise NeedsPrivilege(why, _HOW)
        work = asyncio.ensure_future(self._runner.run(step))
        try:
            while not (await asyncio.wait({work}, timeout=_ASK_EVERY_S))[0]:
                if why := self._stopped():
                    raise ActionFailed(_STOPPED + why, f"in the middle of: {self.typed(step)}")
            return work.result()
        finally:
            await _let_go(work)

    @property
    def unavailable(self) -> str:
        """Why nothing can be done here whatever the precheck says; empty when something can."""
        missing = self.mode is ExecutionMode.SERVICE and not self._socket.exists()
        return _NO_HELPER.format(socket=self._socket) if missing else ""

    @property
    def powerless(self) -> str:
        """Why no step can be carried out by whoever carries them out here; else empty."""
        return f"{why} ({_HOW})" if self._asks and (why := self.unavailable) else ""

    def typed(self, step: Step) -> str:
        """A step as it would be done here."""
        return typed(step, root=os.geteuid() == 0)

    def get_permission_status(self) -> dict[str, Any]:
        """`mode`, `is_production`, `capabilities`: each action with how it would be had here."""
        if self.mode is ExecutionMode.SERVICE:
            how = "unavailable: no helper" if self.unavailable else "helper"
        elif os.geteuid() == 0:
            how = "direct"
        else:
            how = "sudo, where it needs no password" if self._sudo else "command to type"
        rows = {
            name: (f"{how}: {WAYS[name]}" if how == "helper" else how) + ("" if spec.auto else "; asks first")
            for name, spec in CATALOGUE.items()
            if spec.deadline_s
        }
        if self.mode is ExecutionMode.DEVELOPMENT and os.geteuid() != 0:
            rows["kill_process"] = "own processes only; asks first"
        return {
            "mode": self.mode.value,
            "is_production": self.mode is ExecutionMode.SERVICE,
            "capabilities": rows,
        }
