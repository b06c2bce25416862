"""Any bytes as a configuration file, and any text in the environment: settings, or ConfigError."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from luminous_nix.self_healing.config import KEYS, Loaded, load
from luminous_nix.self_healing.models import ConfigError


def _outcome(data: bytes, env: Mapping[str, str]) -> Loaded | ConfigError:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            return load(Path(file.name), env)
        except ConfigError as error:
            return error


def _well_formed(outcome: Loaded | ConfigError) -> bool:
    if isinstance(outcome, ConfigError):
        return bool(outcome.problems) and all(outcome.problems)
    limits = outcome.settings.limits
    return limits.heals_per_hour <= 10 and limits.cooldown_s >= 300 and len(outcome.rows()) == len(KEYS)


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    assert _well_formed(_outcome(data, {}))


_VALUES = st.sampled_from(
    ["1", "-1", "nan", "inf", "1e400", "9" * 400, "9" * 5000, "true", "''", "[]", "['a']", "[['x']]", "{}", "{a=1}",
     "1979-05-27", "07:32:00", "'\\u0000'", "'nginx'", "['cpu', 'cpu']", "0x_", "[1, 'a']", "'''\n'''"]
)  # fmt: skip
_NAMES = st.one_of(
    st.sampled_from([*KEYS, "thresholds", "limits", "thresholds.cpu", "'a b'", "x.y.z"]), st.text("abc.-")
)


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=6))
def test_any_keys_with_any_values(lines: list[tuple[str, str]]) -> None:
    text = "".join(f"{name} = {value}\n" for name, value in lines)
    assert _well_formed(_outcome(text.encode(), {}))


@given(st.dictionaries(
    st.one_of(st.sampled_from([key.replace(".", "__").upper() for key in KEYS]), st.text(max_size=9)),
    st.one_of(_VALUES, st.text(max_size=30)), max_size=3,
))  # fmt: skip
def test_any_environment(variables: dict[str, str]) -> None:
    env = {f"LUMINOUS_HEALING_{name}": text for name, text in variables.items()}
    assert _well_formed(_outcome(b"", env))
