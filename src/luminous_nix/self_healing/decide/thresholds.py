"""The limits that readings are held against. [pure]"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from typing import Final

from ..models import ConfigError, nearest

_ALIASES: Final = {
    "cpu": "cpu_percent", "memory": "memory_percent", "swap": "swap_percent", "disk": "disk_percent",
    "load": "load_average", "pressure": "pressure_percent",
}  # fmt: skip


class Thresholds(MutableMapping[str, float]):
    """The limits of readings, live: an assignment holds from the next look on.

    Keys `cpu_percent`, `memory_percent`, `swap_percent`, `disk_percent`, `pressure_percent` (0 to 100) and
    `load_average` (plain); `cpu`, `memory`, … stand for them. Raises ConfigError for another key or value.
    """

    def __init__(self, values: Mapping[str, float] | None = None, *, cpus: int = 1) -> None:
        self.values_: dict[str, float] = {
            "cpu_percent": 80.0, "memory_percent": 85.0, "disk_percent": 90.0, "load_average": 2.0 * cpus,
            "swap_percent": 80.0, "pressure_percent": 60.0,
        }  # fmt: skip
        self.update({} if values is None else values)

    @staticmethod
    def canonical(key: str) -> str:
        """`cpu` → `cpu_percent`; another name stays as it is."""
        return _ALIASES.get(key, key)

    def _key(self, key: str) -> str:
        name = _ALIASES.get(key, key)
        if name not in self.values_:
            raise ConfigError([f"there is no threshold {key!r}"], nearest(str(key), self.values_))
        return name

    def __getitem__(self, key: str) -> float:
        return self.values_[_ALIASES.get(key, key)]

    def __setitem__(self, key: str, value: float) -> None:
        name = self._key(key)
        high = 1e6 if name == "load_average" else 100.0
        if type(value) not in {int, float} or not 0.0 <= value <= high:
            raise ConfigError([f"{key}: must be a number from 0 to {high:g}, not {value!r:.80}"])
        self.values_[name] = float(value)

    def __delitem__(self, key: str) -> None:
        raise ConfigError([f"{key}: a threshold cannot be removed"], "leave the check out of enabled_checks")

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)

    def __repr__(self) -> str:
        return f"Thresholds({self.values_})"
