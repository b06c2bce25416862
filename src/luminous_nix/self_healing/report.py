"""What the command says, first as data (`--json`), then as lines for a person. Pure; cli.py prints."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .decide.judge import health_score
from .models import HealingResult, Issue, Reading, SensorHealth, Verdict

SCHEMA = 1
Lines = list[tuple[str, str]]  # (style, text); styles are rich's

_MARKS = {"ok": ("green", "✓"), "issue": ("bold red", "✗"), "unknown": ("yellow", "?")}
_VERDICTS = {
    Verdict.HEALED: ("green", "✓"), Verdict.RECOVERED_BY_ITSELF: ("green", "✓"), Verdict.DRY_RUN: ("cyan", "→"),
    Verdict.WORSE: ("bold red", "✗"),
    Verdict.REFUSED: ("yellow", "-"), Verdict.NO_EFFECT: ("bold red", "✗"), Verdict.FAILED: ("bold red", "✗"),
}  # fmt: skip


def printable(text: str) -> str:
    """Text that may come from the host, with everything escaped that a terminal could act on."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def issue_data(issue: Issue) -> dict[str, Any]:
    return {
        "type": issue.type.value,
        "severity": issue.severity.name.lower(),
        "component": issue.component,
        "description": issue.description,
        "metric_value": issue.metric_value,
        "threshold": issue.threshold,
        "cause": issue.cause or None,
        "kind": issue.kind or None,
    }


def check_data(issues: list[Issue], readings: list[Reading], sensors: Iterable[SensorHealth]) -> dict[str, Any]:
    """`check --json`. `healthy` is about what could be seen; `unknown` names what could not."""
    sensors = list(sensors)
    return {
        "schema": SCHEMA,
        "healthy": not issues and any(sensor.ok for sensor in sensors),
        "health": health_score(issues),
        "issues": [issue_data(issue) for issue in issues],
        "readings": {
            reading.name: {
                "value": reading.value,
                "unit": reading.unit,
                "status": reading.status.value,
                "threshold": reading.threshold,
            }
            for reading in readings
        },
        "sensors": {
            sensor.name: {"ok": sensor.ok, "error": sensor.error or None, "duration_ms": round(sensor.duration_ms, 4)}
            for sensor in sensors
        },
        "unknown": [sensor.name for sensor in sensors if not sensor.ok],
    }


def heal_data(results: list[HealingResult], *, healthy: bool) -> dict[str, Any]:
    """`heal --json`. `healthy` is the end state."""
    return {
        "schema": SCHEMA,
        "healthy": healthy,
        "results": [
            {
                "issue": issue_data(result.issue),
                "action": result.action_taken,
                "verdict": result.verdict.value,
                "error": result.error,
                "detail": result.detail or None,
                "duration_ms": round(result.duration_ms, 3),
            }
            for result in results
        ],
    }


def check_lines(data: dict[str, Any]) -> Lines:
    """A report of one look: readings, then what is wrong, then what could not be seen."""
    lines: Lines = []
    width = max((len(name) for name in (*data["readings"], *data["sensors"])), default=0)
    for name, reading in data["readings"].items():
        if name.startswith("pressure:") and name.endswith(":some"):
            continue
        style, mark = _MARKS[reading["status"]]
        if reading["value"] is None:
            figure = "unknown"
        else:
            percent = " %" if reading["unit"] == "percent" else "  "
            figure = f"{reading['value']:6.1f}{percent}   threshold {reading['threshold']:g}{percent.rstrip()}"
        lines.append((style, f"  {mark} {printable(name):<{width}} {figure}"))
    for name, sensor in data["sensors"].items():
        if sensor["ok"] and name == "services" and not any(issue["type"] == "service" for issue in data["issues"]):
            lines.append(("green", f"  ✓ {name:<{width}} no unit is down that should run"))
        if not sensor["ok"]:
            lines.append(("yellow", f"  ? {name:<{width}} unknown: {printable(sensor['error'] or '')}"))
    lines.append(("", ""))
    for issue in data["issues"]:
        lines.append(("bold red", f"  ✗ {issue['severity'].upper():<9} {printable(issue['description'])}"))
    lines.append(summary(data))
    return lines


def summary(data: dict[str, Any]) -> tuple[str, str]:
    """The last line of a look."""
    count = len(data["issues"])
    unknown = f"; not observed: {', '.join(data['unknown'])}" if data["unknown"] else ""
    if count:
        return "bold red", f"{count} issue{'s' if count > 1 else ''}, health {data['health']} of 100{unknown}"
    seen = any(sensor["ok"] for sensor in data["sensors"].values())
    if not seen:
        return "yellow", f"nothing could be observed{unknown}"
    return "green", f"no issues, health {data['health']} of 100{unknown}"


def heal_lines(results: list[HealingResult], *, healthy: bool, dry_run: bool) -> Lines:
    """A report of one healing cycle."""
    lines: Lines = []
    for result in results:
        style, mark = _VERDICTS[result.verdict]
        if result.verdict is Verdict.DRY_RUN and not result.would_act:
            style, mark = _VERDICTS[Verdict.REFUSED]
        lines.append((style, f"  {mark} {printable(result.issue.description)}"))
        taken = f": {printable(', '.join(result.actions_taken))}" if result.actions_taken else ""
        lines.append(("", f"      {result.verdict.value.replace('_', ' ')}{taken}"))
        said = result.error or result.detail
        lines += [("dim", f"      {printable(part)}") for part in said.split("\n") if part]
    lines.append(_heal_summary(results, healthy=healthy, dry_run=dry_run))
    return lines


def _heal_summary(results: list[HealingResult], *, healthy: bool, dry_run: bool) -> tuple[str, str]:
    if not results:
        return ("green", "nothing to heal") if healthy else ("yellow", "nothing could be observed")
    if dry_run:
        would = any(result.would_act for result in results)
        hint = "`luminous-healing heal --apply` acts" if would else "and nothing would be"
        return "cyan", f"this was a dry run: nothing was changed, {hint}"
    return ("green", "all issues are gone") if healthy else ("bold red", "issues remain")


def exit_code(issues: list[Issue], sensors: Iterable[SensorHealth]) -> int:
    """0 fine, 1 issues, 3 when nothing that was asked for could be observed."""
    if issues:
        return 1
    return 0 if any(sensor.ok for sensor in sensors) else 3
