"""What an argument of an action may be: one check a kind, each returns the value or raises ValueError. [pure]

The message of the error completes the sentence "NAME must be …".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..models import unit_name

_MAPPING_LIMIT: Final = 1 << 16  # characters of JSON


@dataclass(frozen=True, slots=True)
class Argument:
    check: Callable[[Any], Any]
    required: bool = False


def integer(low: int, high: int) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return check


def word(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[a-z][a-z0-9_-]{0,31}", value, re.ASCII):
        raise ValueError("a short word of lower-case letters")
    return value


def flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def mount_point(value: Any) -> str:
    """Chosen among the host's own mounts and never handed to a program: only its shape is checked here."""
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value or len(value) > 4096:
        raise ValueError("an absolute path")
    return value


def mapping(value: Any) -> dict[str, Any]:
    """A copy made through JSON, so that nothing else ever reaches a plugin and nobody changes it later."""
    try:
        text = json.dumps(value, allow_nan=False) if isinstance(value, Mapping) else ""
    except (TypeError, ValueError, RecursionError):
        text = ""
    if not text or len(text) > _MAPPING_LIMIT:
        raise ValueError("a mapping of plain values (JSON), of 64 KiB at most")
    copy: dict[str, Any] = json.loads(text)
    return copy


_UNIT: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9:_.@\\-]{0,200}\.(service|socket|timer|mount)", re.ASCII)


def valid_unit(value: Any) -> str:
    """A unit's full name, `.service` supplied when no type is said. Raises ValueError.

    fullmatch, because `$` would let a newline pass.
    """
    name = unit_name(value) if isinstance(value, str) else ""
    if not _UNIT.fullmatch(name) or "@." in name:  # a bare template is no unit
        raise ValueError("the name of a service, socket, timer or mount unit")
    return name
