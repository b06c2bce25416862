"""What people may ask of a running engine, or of the store when none runs: one set of verbs for the control socket,
the command and the dashboards."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from .control import Peer, Rights, Verb, checked
from .decide.limits import Act, breaker
from .decide.policy import Silence
from .heal.records import HealingRecord
from .healing_engine import SimplifiedHealingEngine
from .models import ActionRefused, HealingError, Verdict
from .report import heal_data, issue_data

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_S: Final = 30 * 86400
_UNDO: Final = "undo"
_MOST_SILENCES: Final = 64


def seconds(text: str) -> float:
    """`90s`, `30m`, `2h`, `1d` → seconds. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,6})([smhd])", text.strip(), re.ASCII)
    span = int(found[1]) * _UNITS_S[found[2]] if found else 0
    if not 0 < span <= _LONGEST_S:
        raise ValueError("a time such as 30m, 2h or 1d, at most 30d")
    return float(span)


def _pattern(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[\w:.@\\*?\[\]/!-]{1,200}", value, re.ASCII):
        raise ValueError("a unit or component, or a glob such as 'nginx*'")
    return value


def _id(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-z]{4,32}", value, re.ASCII):
        raise ValueError("a record's id, or its beginning (four characters at least)")
    return value


def _bus_name(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r":1\.[0-9]{1,15}", value, re.ASCII):
        raise ValueError("a unique bus name, such as :1.42")
    return value


def _words(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 200:
        raise ValueError("at most 200 characters")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= 1000:
        raise ValueError("a whole number from 1 to 1000")
    return value


def _component(value: Any) -> str:
    return _words(value).removesuffix(".service")


_Asked = Callable[["Desk", Mapping[str, Any]], Awaitable[dict[str, Any]]]


class Desk:
    """Asks an engine. `running` is false in a command that has no daemon to ask: then the store is all there is."""

    def __init__(self, engine: SimplifiedHealingEngine, *, running: bool = True) -> None:
        self._engine = engine
        self._store = engine.store
        self._running = running

    def verbs(self) -> dict[str, Verb]:
        """Each verb with who may use it and what it takes."""
        return {
            name: Verb(rights, arguments, partial(_serve, self, run), optional)
            for name, (rights, arguments, run, optional) in _VERBS.items()
        }

    async def ask(self, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Without a socket in between, and with the same checks. Raises HealingError."""
        return await _VERBS[name][2](self, checked(self.verbs()[name], arguments))

    async def status(self, _: Mapping[str, Any]) -> dict[str, Any]:
        """What stands in the way of acting, and how much of the limits is used."""
        store, engine = self._store, self._engine
        acts, now = ([] if store.fault else store.acts()), store.now()
        resets: Mapping[str, float] = {} if store.fault else store.resets
        causes = {act.cause for act in acts}
        never = float("-inf")
        latches = frozenset() if store.fault else store.latches
        found = [(cause, breaker(acts, engine.limits, cause, now, resets.get(cause, never), present=False))
                 for cause in sorted(causes)]  # fmt: skip
        return {
            "running": self._running,
            "stopped": engine.stopped() or None,
            "powerless": engine.executor.handler.powerless or None,
            "store": store.fault or None,
            "store_lifts": store.remedy if store.fault else None,
            "dry_run": engine.dry_run,
            "mode": engine.policy.mode.value,
            "maintenance": engine.maintenance() or None,
            "silences": [
                {"id": one.id, "pattern": one.pattern, "ends_in_s": round(one.until - now), "reason": one.reason}
                for one in ([] if store.fault else store.silences())
            ],
            "breakers": [
                {"cause": cause, "reason": denial.reason, "lifts": denial.lifts} for cause, denial in found if denial
            ] + [
                {"cause": cause, "reason": f"three times open in 24 h for {cause}: a person is needed",
                 "lifts": "when a person resets it"}
                for cause in sorted(latches - {cause for cause, denial in found if denial})
            ],
            "heals_last_hour": sum(now - act.started < 3600 for act in acts),
            "heals_per_hour": engine.limits.heals_per_hour,
            "waiting": [
                {"id": document["id"], "component": document["component"], "action": document["asks"]["action"],
                 "ends_in_s": round(document["asks"]["until"] - now)}
                for document in ([] if store.fault else store.records(number=200))
                if document.get("asks") and document["asks"]["until"] > now
            ],
            "open": [
                {**issue_data(incident.issue), "open_for_s": round(now - incident.opened)}
                for incident in engine.incidents.open
            ],
        }  # fmt: skip

    async def history(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        component, number = arguments.get("component", ""), arguments.get("number", 20)
        return {"records": self._store.records(component=component, number=number)}

    async def explain(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A record by its id, else the newest of a unit, a component or an issue's fingerprint."""
        what = arguments["what"].removesuffix(".service")
        if not what:
            raise HealingError(
                "whose heal?", "an id, a unit or a component, as `luminous-healing history` lists them"
            )
        found = [self._store.record(what)] if re.fullmatch(r"[0-9a-f]{4,12}", what) else []
        found += self._store.records(component=what, number=1)
        found += self._store.records(cause=what, number=1)  # an issue's fingerprint
        document = next((document for document in found if document), None)
        if document is None:
            raise HealingError(f"there is no record of {what!r:.100}", "`luminous-healing history` lists them")
        return {"record": document, "now": self._store.now()}

    async def confirm(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Take the rung that a record asks for."""
        record = self._record(arguments["id"])
        if record.asks is None:
            done = f"it is {record.verdict}" if record.taken else "it asks for nothing"
            raise HealingError(
                f"record {record.id} waits for no word: {done}", "`luminous-healing explain` tells why"
            )
        if self._store.now() >= record.asks_until:
            raise HealingError(f"what record {record.id} asked for has expired", "a fresh look asks anew")
        result = await self._engine.confirm(record)
        data = heal_data([result], healthy=result.success)["results"][0]
        return {"id": record.id, "result": data}

    async def confirm_as(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The same for somebody who may only look: polkit asks who is behind the bus name `subject`."""
        record = self._record(arguments["id"])
        if record.asks is not None and self._store.now() < record.asks_until:
            await self._engine.executor.handler.vouch(record.asks, arguments["subject"])
        return await self.confirm({"id": arguments["id"]})

    async def undo(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Set back what a heal set, unless somebody changed it since."""
        record = self._record(arguments["id"])
        rungs = [rung for rung in record.rungs if rung.taken and rung.knobs and not rung.undone.startswith("undone")]
        if not rungs:
            why = "is undone already" if any(rung.undone for rung in record.rungs) else "left nothing to set back"
            raise HealingError(f"record {record.id} {why}", "what was started, collected or deleted has no way back")
        if why := self._engine.stopped() or (await self._engine.host_state()).busy:
            raise ActionRefused(f"nothing may act now: {why}")
        if self._engine.dry_run:
            raise ActionRefused("nothing is set back in a dry run")
        said: list[str] = []
        with self._store.exclusive():
            for rung in reversed(rungs):
                record = await self._set_back(record, rung.knobs)
                said.append(record.notes[-1])
        return {"id": record.id, "told": said}

    async def _set_back(self, record: HealingRecord, knobs: tuple[tuple[str, str, str], ...]) -> HealingRecord:
        store = self._store
        act = Act(
            record.issue.component, _UNDO, f"{record.id}-undo", f"{_UNDO}/{record.id}", store.now(), automatic=False
        )
        number = store.begin(act)
        answer = await self._engine.executor.handler.restore(knobs)
        if answer.refused:
            store.forget(number)
            raise ActionRefused(str(answer.error), answer.suggestion or "")
        told = "undone: the former values are back" if answer.success else f"not undone: {answer.error}"
        rungs = tuple(
            replace(rung, undone=told) if rung.knobs == knobs and rung.taken else rung for rung in record.rungs
        )
        record = replace(record, rungs=rungs, notes=(*record.notes, f"a person asked: {told}"))
        store.end(number, ended=store.now(), effective=answer.success, document=record.document())
        if not answer.success:
            raise HealingError(told, answer.suggestion or "")
        return record

    async def silence(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing is done about what the pattern covers, for a while."""
        span = arguments["seconds"]
        if not 0 < span <= _LONGEST_S:
            raise HealingError("a silence lasts from 1 second to 30 days")
        if len(self._store.silences()) >= _MOST_SILENCES:
            raise HealingError(f"there are {_MOST_SILENCES} silences already", "`luminous-healing silence --end ID`")
        until = self._store.now() + span
        silence = Silence(secrets.token_hex(3), arguments["pattern"], until, arguments.get("reason", ""))
        self._store.silence(silence)
        return {"id": silence.id, "pattern": silence.pattern, "ends_in_s": round(span)}

    async def unsilence(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """End silences by id or pattern."""
        if not (count := self._store.end_silence(arguments["id"])):
            raise HealingError(
                f"there is no silence {arguments['id']!r:.100}", "`luminous-healing status` lists them"
            )
        return {"ended": count}

    async def pause(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Nothing acts any more, until `resume`: also after a restart."""
        self._store.pause(arguments.get("reason") or "a person asked for it")
        return {"stopped": self._engine.stopped()}

    async def resume(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """End the pause; `breakers` closes the breakers too, `store` begins a new store in place of a lost one."""
        kept = None
        if arguments.get("store"):
            kept = self._store.start_anew()
        if arguments.get("breakers"):
            for cause in sorted({act.cause for act in self._store.acts()} | self._store.latches):
                self._store.reset(cause)
        self._store.pause("")
        return {"stopped": self._engine.stopped() or None, **({"kept_aside": str(kept)} if kept else {})}

    def _record(self, prefix: str) -> HealingRecord:
        document = self._store.record(prefix)
        if document is None:
            raise HealingError(f"there is no record {prefix!r:.40}, or more than one begins so",
                               "`luminous-healing history` lists them")  # fmt: skip
        return HealingRecord.parse(document)


async def _serve(desk: Desk, run: _Asked, arguments: Mapping[str, Any], peer: Peer) -> dict[str, Any]:
    del peer  # its rights were looked at by the socket
    return await run(desk, arguments)


_SILENCE: Final[dict[str, Any]] = {"pattern": _pattern, "seconds": float, "reason": _words}
_VERBS: Final[dict[str, tuple[Rights, dict[str, Any], _Asked, frozenset[str]]]] = {
    "status": (Rights.READ, {}, Desk.status, frozenset()),
    "history": (Rights.READ, {"component": _component, "number": _number}, Desk.history,
                frozenset({"component", "number"})),
    "explain": (Rights.READ, {"what": _words}, Desk.explain, frozenset()),
    "confirm": (Rights.ACT, {"id": _id}, Desk.confirm, frozenset()),
    "confirm_as": (Rights.CALM, {"id": _id, "subject": _bus_name}, Desk.confirm_as, frozenset()),
    "undo": (Rights.ACT, {"id": _id}, Desk.undo, frozenset()),
    "silence": (Rights.CALM, _SILENCE, Desk.silence, frozenset({"reason"})),
    "unsilence": (Rights.ACT, {"id": _pattern}, Desk.unsilence, frozenset()),
    "pause": (Rights.CALM, {"reason": _words}, Desk.pause, frozenset({"reason"})),
    "resume": (Rights.ACT, {"breakers": bool, "store": bool}, Desk.resume, frozenset({"breakers", "store"})),
}  # fmt: skip

FAILED: Final = frozenset({Verdict.FAILED.value, Verdict.NO_EFFECT.value, Verdict.WORSE.value, Verdict.REFUSED.value})
