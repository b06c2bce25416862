"""Write packaging/: the files that `luminous-healing install` makes, for a default host; `--check` only compares."""

import sys
from pathlib import Path

from luminous_nix.self_healing.deploy.polkit import polkit_files
from luminous_nix.self_healing.deploy.units import Site, fragments, unit_files

HOME = Path(__file__).parents[1] / "packaging"
SITE = Site(
    unit_directory="systemd",
    sysusers_directory="sysusers.d",
    tmpfiles_directory="tmpfiles.d",
    rules_directory="polkit-1/rules.d",
    actions_directory="polkit-1/actions",
)


def main() -> int:
    wanted = {**unit_files(SITE), **fragments(SITE), **polkit_files(SITE)}
    there = {str(path.relative_to(HOME)) for path in HOME.rglob("*") if path.is_file()}
    stale = [path for path, file in wanted.items() if path not in there or (HOME / path).read_text() != file.text]
    left = sorted(there - wanted.keys())
    if "--check" not in sys.argv:
        for path in stale:
            (HOME / path).parent.mkdir(parents=True, exist_ok=True)
            (HOME / path).write_text(wanted[path].text, "utf-8")
        for path in left:
            (HOME / path).unlink()
    if stale or left:
        print(f"{'stale' if '--check' in sys.argv else 'written'}: {', '.join([*stale, *left])}")
    return 1 if (stale or left) and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
