"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/luminous_nix/self_healing"
SOURCES = sorted(PACKAGE.rglob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def test_the_heart_stays_small() -> None:
    heart = ("observe/detector.py", "decide/resolver.py", "act/executor.py", "healing_engine.py")
    assert sum(len((PACKAGE / part).read_text("utf-8").splitlines()) for part in heart) <= 800


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_functions_fit_on_a_screen(path: Path) -> None:
    functions = [
        node for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]  # fmt: skip
    assert [node.name for node in functions if (node.end_lineno or 0) - node.lineno >= 60] == []


FORBIDDEN = re.compile(
    r"\bsubprocess\b|os\.system|shell=True|create_subprocess_shell|os\.popen|os\.spawn|os\.exec|os\.kill\("
    r"|(?<![.\w])(eval|exec)\(|\bpickle\b|\bmarshal\b"
)


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_one_spawner_and_no_dangerous_call(path: Path) -> None:
    text = path.read_text("utf-8")
    if path.name == "process.py":
        assert text.count("create_subprocess_exec") == 1
        text = text.replace("asyncio.create_subprocess_exec", "").replace("asyncio.subprocess.", "")
    assert FORBIDDEN.findall(text) == []
    assert "create_subprocess" not in text


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src")}
    return subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, check=False, timeout=60
    )


def test_completions_are_fresh() -> None:
    pytest.importorskip("shtab")
    done = python(str(ROOT / "tools/completions.py"), "--check")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_packaging_is_fresh() -> None:
    done = python(str(ROOT / "tools/packaging.py"), "--check")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_importing_the_package_costs_nothing() -> None:
    code = (
        "import sys, luminous_nix.self_healing as it; assert it.__version__;"
        "print([name for name in ('asyncio', 'msgspec', 'jeepney', 'rich', 'logging') if name in sys.modules])"
    )
    assert python("-c", code).stdout == "[]\n"


def test_every_public_name_is_there_and_no_other() -> None:
    code = (
        "import luminous_nix.self_healing as it; assert set(it.__all__) <= set(dir(it));"
        "[getattr(it, name) for name in it.__all__]; it.nothing"
    )
    done = python("-c", code)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("has no attribute 'nothing'")


def test_the_outer_package_is_a_namespace_for_others() -> None:
    assert not (PACKAGE.parent / "__init__.py").exists()
    assert (PACKAGE / "py.typed").exists()
