"""One verified request → an answer. Everything that the engine already asked itself is asked again here, because the
engine may be wrong, or somebody else's: the allow-list, the policy, the limits on disk, the precheck."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple

from ..act.operations import way_back
from ..act.steps import EndProcess, Plan, UnitJob
from ..bus import BusRefused, BusUnavailable
from ..decide.actions import CATALOGUE
from ..decide.limits import Act, Limits, windows
from ..decide.limits import Request as Asked
from ..decide.policy import Mode, Policy
from ..ledger import StoreFault
from ..models import Action, ActionRefused, ConfigError
from ..observe.systemd import relations
from ..permission_handler import NixOSPermissionHandler
from .client import narrowed, touched
from .protocol import GRANT, RESTORE, STATUS, Code, Denied, Request, frozen
from .register import Knobs, Register
from .ways import taken

log = logging.getLogger(__name__)

_GRANT_S: Final = 300.0
_ACT, _WORD = "act", "person's word"  # of each one at a time
_LONGEST_WORD: Final = 256
# Who would be restarted with it, because systemd hands a restart on to them.
_CARRIED_ALONG: Final = ("RequiredBy", "BoundBy", "RequisiteOf", "ConsistsOf")
_RUNNING: Final = frozenset({"active", "activating", "reloading"})


class Rules(NamedTuple):
    """What the root-owned configuration allows; it can only narrow what the tables have."""

    allowed: frozenset[str] = frozenset()
    policy: Policy = Policy()
    limits: Limits = Limits()
    stopped: str = ""  # why nothing may act at all


class Caller(NamedTuple):
    uid: int
    pid: int

    @property
    def person(self) -> bool:
        """Root asks by hand; the engine asks by itself."""
        return self.uid == 0


Answer = tuple[Code, dict[str, Any]]


class Broker:
    """`rules` reads the configuration as it is now. `confirmed` asks polkit about a person (subject, operation,
    arguments) and raises ActionRefused. `running` names an act unit of before that is not done yet, which may be when
    its asker went away. One act at a time; who comes meanwhile is told to come again."""

    def __init__(
        self, register: Register, handler: NixOSPermissionHandler, *, rules: Callable[[], Rules],
        confirmed: Callable[[str, Action], Any], switch: Callable[[], str],
        wall: Callable[[], float] = time.time, limits: Limits | None = None,
        running: Callable[[], Awaitable[str]] | None = None,
    ) -> None:  # fmt: skip
        self._running = running
        self._register, self._handler = register, handler
        self._rules, self._confirmed, self._switch = rules, confirmed, switch
        self._wall, self._limits = wall, limits
        self._under_way: set[str] = set()
        self.counts: dict[str, int] = {}

    @property
    def acting(self) -> bool:
        return _ACT in self._under_way

    def status(self) -> dict[str, Any]:
        """What a reply to `status` holds. Nothing is written, and nothing is read from disk."""
        return {
            "acting": self.acting, "store": printable_word(self._register.fault), "head": self._head(),
            "refused": sum(self.counts.values()),
        }  # fmt: skip

    def _head(self) -> str:
        return "" if self._register.fault else self._register.head()

    async def answer(self, request: Request, caller: Caller) -> Answer:
        """Raises nothing but CancelledError: what goes wrong is in the answer."""
        if request.op == STATUS:
            return Code.DONE, self.status()
        # A person may take minutes to answer: nobody who wants to act waits for that, and root waits for nobody.
        kind = _ACT if request.op != GRANT else _WORD if not caller.person else ""
        if kind in self._under_way:
            return Code.BUSY, {"reason": f"another {kind} is under way", "hint": "one at a time: ask again"}
        self._under_way.add(kind)
        self._register.retry()  # a disk that was full may have room again
        try:
            if request.op == GRANT:
                return await self._grant(request, caller)
            return await self._act(request, caller)
        except Denied as error:
            return error.code, {"reason": _DENIED.get(error.code, "")}
        except (ActionRefused, StoreFault, ConfigError) as error:
            return Code.REFUSED, _told(error.message, error.hint)
        finally:
            self._under_way.discard(kind)

    # -- acting ----------------------------------------------------------------------------------------------

    async def _act(self, request: Request, caller: Caller) -> Answer:
        rules = self._rules()
        if why := self._switch() or rules.stopped:
            raise ActionRefused(f"nothing may act: {why}")
        if self._running and (unit := await self._running()):
            return Code.BUSY, _told(f"{unit} is not done yet", "one at a time: ask again")
        plan = narrowed(await self._planned(request, caller), rules.allowed)
        units, ended = touched(plan), self._unit_of_the_ended(plan)
        granted = self._permitted(request, caller, units or ended, rules)
        await self._alone(plan)
        target = _target(request, units)
        automatic = not (caller.person or granted)
        if automatic:
            self._by_itself(request, rules)
            ends = any(isinstance(step, EndProcess) for step in plan.steps)
            if ends and not (ended and ended[0] in rules.allowed):
                raise ActionRefused("that process is of no unit that may be touched", "a person may confirm it")
        if not caller.person and granted != frozen(request.op, request.args):  # a figure that nobody named
            _far_enough(request)
        asked = Asked(target, request.op, request.nonce, "", automatic)
        now = self._register.now()
        if denial := windows(self._register.acts(), self._limits or rules.limits, asked, now):
            lifts = denial.lifts_in_s
            words = _told(f"{denial.name_and_reason}", f"lifts {denial.lifts}")
            return Code.REFUSED, {**words, **({"lifts_in_s": int(lifts) + 1} if lifts != float("inf") else {})}
        if request.dry_run:
            return Code.DONE, {"would": printable_word(" | ".join(plan.checks))}
        act = Act(target, request.op, request.nonce, "", now, automatic=automatic)
        entry = self._entry(request, caller, target)
        knobs: Knobs = tuple((knob.name, knob.former, knob.ours) for knob in plan.knobs)
        number = self._register.begin(
            act, request.ts_boot_ns, knobs, granted, {"event": "intent", **entry}, person=caller.person
        )
        return await self._carried_out(number, plan, entry)

    async def _carried_out(self, number: int, plan: Plan, entry: Mapping[str, Any]) -> Answer:
        code, said = Code.UNKNOWN, {"reason": "the asker went away in the middle"}
        log.info("%s of %s", entry["op"], entry["target"], extra={"fields": {"nonce": entry["nonce"]}})
        try:
            result = await self._handler.carry_out(plan)
            if result.success:
                code, said = Code.DONE, {"said": printable_word(result.output)}
            else:
                code = Code.REFUSED if result.refused else Code.FAILED
                said = _told(result.error or "", result.suggestion or "")
        except asyncio.CancelledError:
            raise
        except Exception as error:  # an error of this program must not leave an act without its line
            log.exception("an error of this program")
            code, said = Code.FAILED, {"reason": f"an error of this program: {type(error).__name__}"}
        finally:
            why = said.get("reason", "")
            log.info("%s of %s: %s %s", entry["op"], entry["target"], code, why)
            try:
                self._register.end(number, code, {"event": code.value, "why": why, **entry})
            except StoreFault as error:  # it happened, and the next start tells that its outcome is not known
                log.critical("the result could not be kept: %s", error.message)
                code, said = Code.UNKNOWN, _told(error.message, error.hint)
        return code, said

    async def _way_back(self, knobs: list[tuple[str, str, str]], caller: Caller) -> Plan:
        """Back to what was before our last act on a knob; what a person set is a person's to set back. Raises
        ActionRefused."""
        last = self._register.last_set()
        for knob in knobs:
            found, person = last.get(knob[0], (("", "", ""), False))
            if found != knob:
                raise ActionRefused(f"{knob[0]!r:.120} was not set by us last", "only what we set is set back")
            if person and not caller.person:
                raise ActionRefused(f"{knob[0]!r:.120} was set by root", "whoever set it sets it back")
        plan = await way_back(self._handler.world, knobs)
        if not caller.person and any(isinstance(one, UnitJob) and one.method == "FreezeUnit" for one in plan.steps):
            raise ActionRefused("to freeze a unit again is for a person", "`luminous-healing undo`, as root")
        return plan

    async def _planned(self, request: Request, caller: Caller) -> Plan:
        """After its precheck, by what this process sees itself. Raises ActionRefused, Denied."""
        if request.op == RESTORE:
            return await self._way_back([tuple(knob) for knob in request.args["knobs"]], caller)
        if not taken(request.op, request.args):
            raise Denied(Code.ARGUMENTS)
        return await self._handler.prepare(Action(request.op, dict(request.args)))

    def _permitted(self, request: Request, caller: Caller, units: list[str], rules: Rules) -> str:
        """The grant to be spent, or empty where none is needed. Raises ActionRefused."""
        unit = units[0] if units else ""
        if request.op == RESTORE:  # only back to what was: nobody is asked, but where nothing may be done nothing is
            mode, why = rules.policy.mode_of(CATALOGUE["limit_unit"], {}, unit)
        else:
            mode, why = _strictest(rules.policy, request, unit)
        if mode is Mode.OBSERVE:
            raise ActionRefused(f"{why}: observe, so nothing is done", "another mode in [policy]")
        if mode is Mode.AUTO or caller.person or request.op == RESTORE:
            return ""
        for args in _as_granted(request.args):
            if self._register.granted(request_id := frozen(request.op, args)):
                return request_id
        raise ActionRefused(
            f"{why}: a person is asked first", "`luminous-healing confirm`, as root or through polkit"
        )

    def _by_itself(self, request: Request, rules: Rules) -> None:
        """What holds when nobody said so: hours, the time since the boot. Raises ActionRefused."""
        now = time.localtime(self._wall())
        if window := rules.policy.maintained(now.tm_wday, now.tm_hour * 60 + now.tm_min):
            raise ActionRefused(f"maintenance: {window}", "it lifts when that window ends")
        up = request.ts_boot_ns / 1e9
        if up < rules.policy.boot_grace_s and request.op != RESTORE:
            raise ActionRefused(f"boot grace: up for {up:.0f} s", f"in {rules.policy.boot_grace_s - up:.0f} s")

    def _unit_of_the_ended(self, plan: Plan) -> list[str]:
        """The service whose process a plan ends, for the policy's rules. Raises ActionRefused."""
        for step in plan.steps:
            if isinstance(step, EndProcess):
                path = self._handler.world.roots.proc / str(step.pid) / "cgroup"
                try:
                    groups = path.read_text("utf-8", "replace").strip().rpartition(":")[2].split("/")
                except OSError as error:
                    raise ActionRefused(f"whose process {step.pid} is cannot be told: {error.strerror}") from None
                return [part for part in reversed(groups) if part.endswith(".service")][:1]
        return []

    async def _alone(self, plan: Plan) -> None:
        """A restart of a unit that is down would take along what runs and requires it. Raises ActionRefused."""
        for step in plan.steps:
            if not (isinstance(step, UnitJob) and step.method == "StartUnit"):
                continue
            try:
                around = await relations(self._handler.world.bus, step.unit, *_CARRIED_ALONG)
            except (BusUnavailable, BusRefused) as error:
                raise ActionRefused(f"who depends on {step.unit} cannot be asked: {error.message}") from error
            if running := sorted(name for name, active in around.items() if active in _RUNNING):
                raise ActionRefused(f"a restart of {step.unit} would restart {running[0]} too, which runs",
                                    f"systemctl start {step.unit}, as root, would not")  # fmt: skip

    # -- a person's word -------------------------------------------------------------------------------------

    async def _grant(self, request: Request, caller: Caller) -> Answer:
        """Root's word counts as it is. For anybody else polkit asks the person, who sees what it is about."""
        op, args, subject = request.args["op"], request.args["args"], request.args.get("subject")
        if not taken(op, args) or request.dry_run:  # a word is given, or it is not
            raise Denied(Code.ARGUMENTS)
        if why := self._switch():
            raise ActionRefused(f"nothing may act: {why}")
        if not caller.person:
            if subject is None:
                raise ActionRefused("whose word this is was not said", "root may give it directly")
            await self._confirmed(subject, Action(op, dict(args)))
        entry = {**self._entry(request, caller, op), "subject": subject or "root"}
        self._register.grant(frozen(op, args), _GRANT_S, uid=caller.uid, nonce=request.nonce, ns=request.ts_boot_ns,
                             entry={"event": "grant", **entry})  # fmt: skip
        return Code.DONE, {"lifts_in_s": int(_GRANT_S)}

    def _entry(self, request: Request, caller: Caller, target: str) -> dict[str, Any]:
        return {
            "wall": int(self._wall()), "op": request.op, "target": target, "args": json.dumps(dict(request.args)),
            "nonce": request.nonce, "uid": caller.uid, "pid": caller.pid, "reason": request.reason_code,
            "evidence": request.evidence_hash[:16],
        }  # fmt: skip


_SAME_DEED: Final = (frozenset({"restart_service", "start_unit", "rerun_timer"}),)
_MODES: Final = (Mode.OBSERVE, Mode.CONFIRM, Mode.AUTO)
# How far the engine may go by itself, whatever figures it names.
_LEAST: Final[Mapping[str, int]] = {
    "memory_high_bytes": 64 << 20, "cpu_quota_percent": 10, "cpu_weight": 10, "io_weight": 10,
    "keep_bytes": 64 << 20,
}  # fmt: skip

_DENIED: Final[Mapping[Code, str]] = {
    Code.ARGUMENTS: "the helper takes no such arguments",
    Code.REPLAY: "this request was carried out before, or tried",
    Code.REFUSED: "the person's word was used up",
}


def _strictest(policy: Policy, request: Request, unit: str) -> tuple[Mode, str]:
    """The policy's word on the operation, and a rule's on any other that comes to the same deed."""
    mode, why = policy.mode_of(CATALOGUE[request.op], request.args, unit)
    for other in next((same for same in _SAME_DEED if request.op in same), ()):
        its, its_why = policy.mode_of(CATALOGUE[other], {}, unit)
        if its_why.startswith("rule") and _MODES.index(its) < _MODES.index(mode):
            mode, why = its, f"{its_why} ({other})"
    return mode, why


def _far_enough(request: Request) -> None:
    """Raises ActionRefused."""
    for name, least in _LEAST.items():
        if request.args.get(name, least) < least:
            raise ActionRefused(f"{name} below {least} is for a person to say")


def _as_granted(args: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """A word was given for these arguments, or before the figure was known to which a unit is limited."""
    return dict(args), {name: value for name, value in args.items() if name != "memory_high_bytes"}


def printable_word(text: str) -> str:
    """Printable ASCII, as replies and audit lines are made of, and no longer than a word may be."""
    plain = text.encode("ascii", "backslashreplace").decode("ascii")
    return "".join(sign if " " <= sign <= "~" else "?" for sign in plain)[:_LONGEST_WORD]


def _told(reason: str, hint: str) -> dict[str, Any]:
    return {"reason": printable_word(reason), "hint": printable_word(hint)}


def _target(request: Request, units: list[str]) -> str:
    plugin = request.args.get("name")
    return units[0] if units else f"plugin:{plugin}" if plugin else request.op
