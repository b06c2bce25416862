"""Write the shell completions from the command line's own parser; `--check` only compares."""

import sys
from pathlib import Path

import shtab

from luminous_nix.self_healing.cli import SHELLS, build_parser

HOME = Path(__file__).parents[1] / "src/luminous_nix/self_healing/completions"


def main() -> int:
    stale = []
    for shell in SHELLS:
        text = shtab.complete(build_parser(), shell=shell).rstrip() + "\n"
        path = HOME / shell
        if not path.exists() or path.read_text("utf-8") != text:
            stale.append(shell)
            if "--check" not in sys.argv:
                path.write_text(text, "utf-8")
    if stale:
        print(f"{'stale' if '--check' in sys.argv else 'written'}: {', '.join(stale)}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
