"""Every command in the docs is run, and every link in them leads somewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted(page for page in CHECKOUT.glob("**/*.md") if ".venv" not in page.parts)


def console_commands() -> list[str]:
    """The lines behind `$` in console blocks, without their comments."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```console\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            found += [line[2:].partition("  #")[0].strip() for line in block.splitlines() if line.startswith("$ ")]
    return sorted(set(found))


def environment(home: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    own = {name: str(home / name.lower()) for name in ("STATE_DIRECTORY", "RUNTIME_DIRECTORY")}
    return {"PATH": path, "HOME": str(home), "PYTHONPATH": str(CHECKOUT / "src"), **own}


@pytest.mark.parametrize("command", [line for line in console_commands() if line.startswith("luminous-healing ")])
def test_a_documented_command_runs(command: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "luminous_nix.self_healing.cli", *command.split()[1:]]
    done = subprocess.run(argv, env=environment(tmp_path), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in {0, 1}, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout


def test_the_other_documented_commands_are_known() -> None:
    """Installing and the lab's long builds are run by make and by the lab's own tests."""
    others = {line for line in console_commands() if not line.startswith("luminous-healing ")}
    assert others <= {"pip install ."}


def test_the_package_builds_and_its_command_runs_when_installed(tmp_path: Path) -> None:
    """`pip install .` into an empty folder, without the network: the dependencies are here already."""
    target = tmp_path / "site"
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(CHECKOUT)]
    subprocess.run(argv, check=True, timeout=300, capture_output=True)
    env = {**environment(tmp_path), "PYTHONPATH": str(target)}
    code = "from luminous_nix.self_healing.cli import main; raise SystemExit(main(['completion', 'bash']))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "luminous-healing" in done.stdout
    assert (target / "luminous_nix/self_healing/py.typed").exists()
    assert not (target / "luminous_nix/__init__.py").exists()


def test_the_documented_configuration_is_accepted(tmp_path: Path) -> None:
    text = (CHECKOUT / "docs/configuration.md").read_text("utf-8")
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "config.toml").write_text(block)
    argv = [
        sys.executable,
        "-m",
        "luminous_nix.self_healing.cli",
        "config",
        "check",
        "--config",
        str(tmp_path / "config.toml"),
    ]
    done = subprocess.run(argv, env=environment(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(tomllib.loads(block)["thresholds"]) == {
        "cpu_percent", "memory_percent", "swap_percent", "disk_percent", "pressure_percent", "load_average",
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_make_targets_of_the_docs_exist() -> None:
    makefile = (CHECKOUT / "Makefile").read_text("utf-8")
    for page in PAGES:
        for target in re.findall(r"(?:^    |`)make ([a-z]+)", page.read_text("utf-8"), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_benchmark_prints_its_keys(tmp_path: Path) -> None:
    """Its shape; figures are for the benchmark's own report, never for a test."""
    argv = [sys.executable, "-m", "benchmarks.loop", "--json"]
    done = subprocess.run(argv, env=environment(tmp_path), cwd=CHECKOUT, capture_output=True, text=True, check=True)
    import json

    figures = json.loads(done.stdout)
    assert {"floor", "detection", "resolution", "end_to_end", "import_ms", "rss_mb"} <= set(figures)
    assert set(figures["detection"]) == {"p50_us", "p99_us", "per_s"}
