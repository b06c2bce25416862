"""Mutation run on the decisions: change one thing of a module at a time, and see whether its tests notice.

    make mutation                        # policy, gates and limits: some ten minutes on two cores
    python tools/mutation.py limits      # one of them

Prints how many mutants were killed, and each that survived. The working tree is not touched: every worker has a
copy of its own. Needs cosmic-ray, whose operators make the mutants; `make mutation` installs it.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import count
from pathlib import Path
from typing import NamedTuple

import hypothesis
import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).resolve().parent.parent
DECIDE = Path("src/luminous_nix/self_healing/decide")
# Each module with the tests that are about it, the quick ones first.
TESTS = {
    "policy": ("tests/unit/test_policy.py", "tests/unit/test_gates.py", "tests/property/test_policy.py"),
    "gates": ("tests/unit/test_gates.py", "tests/property/test_gates.py"),
    "limits": ("tests/unit/test_limits.py", "tests/unit/test_gates.py", "tests/property/test_limits.py"),
}
# Of the replacements of an operator those that a slip of the hand could be: `is` in place of `<`, or a shift in place
# of a sum, only make the score look better.
_SLIPS = re.compile(
    r"core/(ReplaceBinaryOperator_(Add_(Sub|Mul)|Sub_(Add|Mod)|Mul_(Div|Add)|Div_(Mul|FloorDiv|Sub)|FloorDiv_(Div|Mul)"
    r"|Mod_(Add|FloorDiv|Mul)|Pow_(Mul|Div)|BitOr_BitAnd|BitAnd_BitOr)"
    r"|ReplaceComparisonOperator_(Eq_(NotEq|LtE|GtE)|NotEq_Eq|Lt_(LtE|Gt|GtE|Eq|NotEq)|LtE_(Lt|Gt|GtE|Eq)"
    r"|Gt_(GtE|Lt|LtE|Eq|NotEq)|GtE_(Gt|Lt|LtE|Eq)|Is_IsNot|IsNot_Is)"
    r"|ReplaceUnaryOperator_(USub_UAdd|Delete_USub|Delete_Not)|AddNot|ReplaceTrueWithFalse|ReplaceFalseWithTrue"
    r"|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceBreakWithContinue|ReplaceContinueWithBreak|ExceptionReplacer"
    r"|NumberReplacer|RemoveDecorator|ZeroIterationForLoop)"
)
_PATIENCE_S = 60.0


class Mutant(NamedTuple):
    module: str
    operator: str
    occurrence: int
    line: int


def words_only(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where annotations stand: `from __future__ import annotations` makes them mere words."""
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.AnnAssign(annotation=words):
                found.append(words)
            case ast.arg(annotation=ast.expr() as words) | ast.FunctionDef(returns=ast.expr() as words):
                found.append(words)
    return [((node.lineno, node.col_offset), (node.end_lineno or 0, node.end_col_offset or 0)) for node in found]


def mutants(tree: Path, module: str) -> Iterator[Mutant]:
    source = (tree / DECIDE / f"{module}.py").read_text("utf-8")
    words = words_only(source)
    nodes = list(ast_nodes(get_ast(source)))
    for name in operator_names():
        if not _SLIPS.fullmatch(name):
            continue
        operator = get_operator(name)()
        number = count()
        for node in nodes:
            for begin, _ in operator.mutation_positions(node):
                occurrence = next(number)
                if not any(first <= begin < last for first, last in words):
                    yield Mutant(module, name.removeprefix("core/"), occurrence, begin[0])


def run_tests(tree: Path, module: str) -> int:
    """In a child, so that each run imports the module anew; returns pytest's exit code, or that of a signal."""
    child = os.fork()
    if child == 0:
        code = 9
        with contextlib.suppress(BaseException):
            nowhere = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nowhere, descriptor)
            os.chdir(tree)
            sys.path[:0] = [str(tree), str(tree / "src")]
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--assert=plain", *TESTS[module]]))
        os._exit(code)
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


def judge(tree: Path, stamp: int, mutant: Mutant) -> bool:
    """Whether the tests notice. `stamp` is the file's time, so that no compiled file of before is taken for it."""
    path = tree / DECIDE / f"{mutant.module}.py"
    original = path.read_text("utf-8")
    changed = mutate_code(original, get_operator(f"core/{mutant.operator}")(), mutant.occurrence)
    path.write_text(changed, "utf-8")
    os.utime(path, (stamp, stamp))
    try:
        return run_tests(tree, mutant.module) != 0
    finally:
        path.write_text(original, "utf-8")
        os.utime(path, (stamp, stamp))


def copied(place: Path) -> Path:
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "lab", "simulation"))
    shutil.copy(ROOT / "pyproject.toml", place)
    (place / "tests/conftest.py").unlink()  # guests of the lab
    return place


def work(tree: Path, share: Sequence[tuple[int, Mutant]]) -> list[tuple[Mutant, bool]]:
    return [(mutant, judge(tree, 1_000_000_000 + number, mutant)) for number, mutant in share]


def score(tree: Path, module: str, found: list[tuple[Mutant, bool]]) -> float:
    survivors = [mutant for mutant, killed in found if not killed]
    killed = len(found) - len(survivors)
    lines = (tree / DECIDE / f"{module}.py").read_text("utf-8").splitlines()
    share = killed / len(found) if found else 1.0
    print(f"{module}: {killed} of {len(found)} mutants killed, {share:.1%}; {len(survivors)} survived")
    for mutant in sorted(survivors, key=lambda one: one.line):
        print(
            f"  {module}.py:{mutant.line}  {mutant.operator} #{mutant.occurrence}  {lines[mutant.line - 1].strip()}"
        )
    return share


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("modules", nargs="*", choices=[*TESTS, []], metavar="MODULE", help=", ".join(TESTS))
    parser.add_argument("--least", type=float, default=0.9, help="the least share that must be killed (0.9)")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="workers at a time (2)")
    options = parser.parse_args()
    modules = options.modules or list(TESTS)
    began = time.monotonic()
    good = True
    with tempfile.TemporaryDirectory(prefix="mutation-") as place:
        trees = [copied(Path(place) / str(number)) for number in range(options.jobs)]
        for module in modules:
            if code := run_tests(trees[0], module):
                print(f"{module}: its tests fail as it is (exit code {code}): nothing to measure", file=sys.stderr)
                return 2
            todo = list(enumerate(mutants(trees[0], module)))
            with ProcessPoolExecutor(options.jobs) as pool:
                parts = pool.map(work, trees, [todo[number :: options.jobs] for number in range(options.jobs)])
                found = [one for part in parts for one in part]
            good &= score(trees[0], module, found) >= options.least
    print(f"{time.monotonic() - began:.0f} s, hypothesis {hypothesis.__version__}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
