"""The record of a heal: what is kept, and how it is shown. Pure; the wall clock's time is for people only."""

from __future__ import annotations

from typing import Any

from .models import HealingResult
from .report import Lines, printable


def record(result: HealingResult, incident: str, opened: float) -> dict[str, Any]:
    """A document for the store. `opened` is the ledger's time, `wall` what people's clocks said."""
    issue = result.issue
    return {
        "id": incident,
        "opened": opened,
        "wall": result.timestamp.astimezone().isoformat(timespec="seconds"),
        "component": issue.component,
        "cause": issue.fingerprint(),
        "verdict": result.verdict.value,
        "issue": {
            "type": issue.type.value,
            "severity": issue.severity.name.lower(),
            "description": issue.description,
            "metric_value": issue.metric_value,
            "threshold": issue.threshold,
            "cause": issue.cause or None,
            "evidence": dict(issue.metrics),
        },
        "actions": list(result.actions_taken),
        "told": result.detail.split("\n"),
    }


_GOOD = frozenset({"healed", "recovered_by_itself"})


def history_lines(records: list[dict[str, Any]]) -> Lines:
    """One line a record, newest first."""
    lines: Lines = []
    for kept in records:
        what = f"{kept['verdict']:<19} {printable(kept['component'])}  {', '.join(kept['actions']) or '-'}"
        lines.append((_style(kept), f"{kept['wall']}  {kept['id']}  {what}"))
    return lines


def explain_lines(kept: dict[str, Any]) -> Lines:
    """The story of one heal: what was seen, what was tried, what was measured."""
    issue = kept["issue"]
    rows = [("seen", kept["wall"]), ("cause", issue["cause"])]
    rows += [("evidence", f"{name} = {value}") for name, value in issue["evidence"].items()]
    rows += [("acts", ", ".join(kept["actions"]) or "none")]
    rows += [("measured", said) for said in kept["told"]]
    lines: Lines = [("bold", f"{printable(issue['description'])} ({issue['severity']})")]
    lines += [("", f"  {name:<9} {printable(text)}") for name, text in rows if text]
    lines.append((_style(kept), f"  verdict   {kept['verdict']}"))
    return lines


def _style(kept: dict[str, Any]) -> str:
    return "green" if kept["verdict"] in _GOOD else "bold red"
