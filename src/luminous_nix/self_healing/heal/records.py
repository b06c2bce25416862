"""HealingRecord, the proof of a heal: the evidence, each rung with every gate's answer, what was predicted, what was
measured, what was undone. Values and words; the store keeps them, the command shows them. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from ..decide.gates import ASKS, BY_REQUEST, Gate, Question
from ..models import Action, Issue, IssueType, Severity
from ..report import Lines, printable

SCHEMA: Final = 1
OPEN: Final = "open"  # under way; the verdict of a record whose program ended in the middle


@dataclass(frozen=True, slots=True)
class Rung:
    """One rung of the ladder: refused (by a gate, or by its precheck), or taken.

    `effect` was predicted to show within `deadline_s` seconds; `before` and `after` are what was measured.
    `knobs` are (name, former value, our value) of what can be set back, `undone` says how that went.
    """

    action: str
    arguments: Mapping[str, Any]
    risk: str = ""
    effect: str = ""
    deadline_s: float = 0.0
    gates: tuple[Gate, ...] = ()
    taken: bool = False
    said: str = ""
    verdict: str = ""
    before: str = ""
    after: str = ""
    harm: str = ""
    knobs: tuple[tuple[str, str, str], ...] = ()
    undone: str = ""
    held: bool = False  # its precheck refused for what passes by itself

    @property
    def shut(self) -> tuple[Gate, ...]:
        return tuple(gate for gate in self.gates if not gate.passed)

    @property
    def told(self) -> str:
        """In one line: what happened to it, or why not."""
        if not self.shut:
            return f"{self.action}: {self.said}" + (f"; {self.undone}" if self.undone else "")
        return f"{self.action}: " + "; ".join(gate.told for gate in self.shut)


@dataclass(frozen=True, slots=True)
class HealingRecord:
    """`opened` is the ledger's time in seconds, `wall` what people's clocks said. `asks` is the rung that waits for
    a person's word, until the ledger's time in `asks_until`."""

    id: str
    opened: float
    wall: str
    issue: Issue
    verdict: str = OPEN
    rungs: tuple[Rung, ...] = ()
    automatic: bool = True
    asks: Action | None = None
    asks_until: float = 0.0
    notes: tuple[str, ...] = ()
    boot: str = ""  # id of the boot it was opened in

    @property
    def taken(self) -> list[str]:
        return [rung.action for rung in self.rungs if rung.taken]

    @property
    def told(self) -> list[str]:
        return [*(self.named(rung.told) for rung in self.rungs), *self.notes]

    def named(self, text: str) -> str:
        """With the id in the place of the word."""
        return text.replace(ASKS, f"`luminous-healing confirm {self.id}`")

    def with_rung(self, rung: Rung) -> HealingRecord:
        return replace(self, rungs=(*self.rungs, rung))

    def document(self) -> dict[str, Any]:
        """As JSON's types; `parse` is its inverse."""
        issue = self.issue
        return {
            "schema": SCHEMA, "id": self.id, "opened": self.opened, "wall": self.wall,
            "component": issue.component, "cause": issue.fingerprint(), "verdict": self.verdict,
            "automatic": self.automatic, "boot": self.boot,
            "issue": {
                "type": issue.type.value, "severity": issue.severity.name.lower(), "description": issue.description,
                "component": issue.component, "kind": issue.kind, "metric_value": issue.metric_value,
                "threshold": issue.threshold, "cause": issue.cause or None, "evidence": dict(issue.metrics),
                "affected_components": list(issue.affected_components),
            },
            "asks": None if self.asks is None else {
                "action": self.asks.name, "parameters": dict(self.asks.parameters), "until": self.asks_until,
            },
            "rungs": [_rung_data(rung) for rung in self.rungs],
            "actions": self.taken,
            "told": self.told,
            "notes": list(self.notes),
        }  # fmt: skip

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> HealingRecord:
        """Raises KeyError, TypeError or ValueError for what is no record."""
        issue, asks = document["issue"], document.get("asks")
        return cls(
            str(document["id"]), float(document["opened"]), str(document["wall"]),
            Issue(
                IssueType(issue["type"]), Severity[issue["severity"].upper()], issue["description"],
                document["component"], float(issue["metric_value"]), float(issue["threshold"]),
                metrics=issue["evidence"], kind=issue.get("kind", ""), cause=issue["cause"] or "",
                affected_components=tuple(issue.get("affected_components", ())),
            ),
            str(document["verdict"]), tuple(_rung(data) for data in document.get("rungs", ())),
            bool(document.get("automatic", True)),
            Action(asks["action"], asks["parameters"]) if asks else None, float(asks["until"]) if asks else 0.0,
            tuple(document.get("notes", document["told"])), str(document.get("boot", "")),
        )  # fmt: skip


def _rung_data(rung: Rung) -> dict[str, Any]:
    plain = {name: getattr(rung, name) for name in Rung.__slots__}
    return plain | {
        "arguments": dict(rung.arguments),
        "gates": [gate._asdict() for gate in rung.gates],
        "knobs": [list(knob) for knob in rung.knobs],
    }


def _rung(data: Mapping[str, Any]) -> Rung:
    gates = tuple(Gate(**gate) for gate in data["gates"])
    knobs = tuple((str(name), str(former), str(ours)) for name, former, ours in data["knobs"])
    return Rung(**{**data, "gates": gates, "knobs": knobs})


def opened(identity: str, issue: Issue, at: float, wall: datetime, *, automatic: bool) -> HealingRecord:
    """A record to begin with."""
    return HealingRecord(identity, at, wall.astimezone().isoformat(timespec="seconds"), issue, automatic=automatic)


def described(question: Question, told: tuple[Gate, ...] = ()) -> Rung:
    """The rung that a question is about, with what the catalogue predicts of it."""
    spec = question.spec
    return Rung(spec.name, question.arguments, spec.risk.value, spec.effect, spec.deadline_s, told)


# -- how it is shown -----------------------------------------------------------------------------------------

_GOOD: Final = frozenset({"healed", "recovered_by_itself"})


def history_lines(records: list[dict[str, Any]]) -> Lines:
    """One line a record, newest first."""
    lines: Lines = []
    for kept in records:
        what = f"{kept['verdict']:<19} {printable(kept['component'])}  {', '.join(kept['actions']) or _why(kept)}"
        lines.append((_style(kept["verdict"]), f"{kept['wall']}  {kept['id']}  {what}"))
    return lines


def _why(kept: Mapping[str, Any]) -> str:
    """The rule that held the first rung back."""
    shut = (gate["rule"] for rung in kept.get("rungs", ()) for gate in rung["gates"] if not gate["passed"])
    rule = next(shut, "")
    return f"- ({rule})" if rule else "-"


def explain_lines(document: Mapping[str, Any], now: float | None = None) -> Lines:
    """The story of one heal: what was seen, each gate, what was tried, what was measured, what was not done."""
    kept = HealingRecord.parse(document)
    issue = kept.issue
    lines: Lines = [("bold", f"{printable(issue.description)} ({issue.severity.name.lower()})")]
    lines.append((_style(kept.verdict), f"  verdict   {_VERDICTS.get(kept.verdict, kept.verdict)}"))
    lines += _waits(kept, now)
    rows = [("seen", kept.wall), ("cause", "" if issue.cause in issue.description else issue.cause)]
    rows += [("evidence", f"{name} = {value}") for name, value in issue.metrics.items() if name not in _INNER]
    rows += [("affects", ", ".join(issue.affected_components))]
    lines += [("", f"  {name:<9} {printable(str(text))}") for name, text in rows if text]
    for number, rung in enumerate(kept.rungs, 1):
        lines += [(style, kept.named(text)) for style, text in _rung_lines(number, rung)]
    lines += [("", f"  {'told':<9} {printable(note)}") for note in kept.notes]
    return lines


def _waits(kept: HealingRecord, now: float | None) -> Lines:
    if kept.asks is None or (now is not None and now >= kept.asks_until):
        return []
    left = "" if now is None else f" within {(kept.asks_until - now) / 60:.0f} minutes"
    return [("yellow", f"  waits     `luminous-healing confirm {kept.id}`{left} takes {kept.asks.name}")]


_INNER: Final = frozenset({"since_us", "running", "again"})  # evidence for the program, not for people
_VERDICTS: Final = {
    OPEN: "open: it is under way, or the program ended in the middle",
    "worse": "worse: something else suffered",
    "no_effect": "no_effect: it was measured not to help",
    "refused": "refused: nothing was done",
    "recovered_by_itself": "recovered_by_itself: nothing had to be done",
}


def _rung_lines(number: int, rung: Rung) -> Lines:
    arguments = ", ".join(f"{name}={value}" for name, value in rung.arguments.items())
    state = "taken" if rung.taken else "not taken"
    lines: Lines = [
        ("bold" if rung.taken else "yellow", f"  rung {number}    {rung.action}({printable(arguments)}): {state}")
    ]
    if rung.risk:
        by = f", to show within {rung.deadline_s:.0f} s" if rung.deadline_s else ""
        lines.append(("dim", f"            risk      {rung.risk}; predicted: {rung.effect}{by}"))
    lines += _gate_lines(rung.gates)
    said = "" if rung.said == rung.after else rung.said
    rows = [("before", rung.before), ("said", said), ("after", rung.after), ("harm", rung.harm)]
    rows += [("measured", rung.verdict if rung.taken else ""), ("undone", rung.undone)]
    return [*lines, *(("", f"            {name:<9} {printable(text)}") for name, text in rows if text)]


def _gate_lines(gates: tuple[Gate, ...]) -> Lines:
    lines: Lines = []
    for gate in sorted(gates, key=lambda gate: gate.passed):  # what held it back comes first
        if gate.said == BY_REQUEST:
            continue
        mark, style = ("✓", "dim") if gate.passed else ("✗", "yellow")
        lifts = f"; lifts {gate.lifts}" if gate.lifts else ""
        lines.append((style, f"            gate {mark}    {gate.rule}: {printable(gate.said)}{lifts}"))
    if skipped := [gate.rule for gate in gates if gate.said == BY_REQUEST]:
        lines.append(("dim", f"            gate ✓    {BY_REQUEST}: {', '.join(skipped)}"))
    return lines


def _style(verdict: str) -> str:
    return "green" if verdict in _GOOD else "yellow" if verdict in {"refused", OPEN} else "bold red"
