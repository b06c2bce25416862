"""How exposed each unit is, by systemd's own measure, and that systemd understands every line of it.

The measure counts walls; it does not know that uid 0 on the bus is root. So it is a floor, and no proof.
"""

from __future__ import annotations

import json

import pytest

from luminous_nix.self_healing.deploy.units import Site, act_file, unit_files
from luminous_nix.self_healing.privileged.ways import POWERS
from tests.lab.container import Container

SITE = Site(allowed_units=("nginx.service",), unit_directory="/run/exposure")
UNITS = {path.rpartition("/")[2]: file.text for path, file in unit_files(SITE).items()}
LIMITS = {
    "luminous-healing.service": 0.6,
    "luminous-healing-executor.service": 0.8,
    "luminous-healing-keys.service": 0.8,
    "luminous-healing-rotate.service": 0.8,
}
ACT = 0.8
# The act units that are root, with what was measured and why.
ROOT = {
    "luminous-healing-act-rollback@.service": (8.3, "switches the system: mounts, boot loader, wrappers"),
    "luminous-healing-act-rebuild.service": (8.3, "activates the current generation: the same"),
    "luminous-healing-act-boot.service": (8.3, "writes the boot loader, on whatever device it is"),
    "luminous-healing-act-plugin@.service": (8.3, "runs the administrator's own program, whatever that does"),
}


@pytest.fixture(scope="module")
def measured(container: Container) -> dict[str, float]:
    container.run("mkdir", "-p", SITE.unit_directory)
    for name, text in UNITS.items():
        container.write(f"{SITE.unit_directory}/{name}", text)
    found = {}
    for name in UNITS:
        if name.endswith(".service"):
            told = container.run(
                "systemd-analyze", "security", "--offline=true", "--no-pager", f"{SITE.unit_directory}/{name}"
            ).stdout
            found[name] = float(told.partition("Overall exposure level for ")[2].partition(": ")[2].split()[0])
    print(json.dumps(found, indent=1))
    return found


@pytest.mark.container
@pytest.mark.parametrize("name", [name for name in UNITS if name.endswith(".service")])
def test_a_unit_is_not_more_exposed_than_it_must_be(measured: dict[str, float], name: str) -> None:
    if name in ROOT:
        assert measured[name] == ROOT[name][0]
    else:
        assert measured[name] <= LIMITS.get(name, ACT)


def test_only_what_the_table_calls_root_is_root() -> None:
    assert set(ROOT) == {act_file(power) for power in POWERS.values() if power.root}


@pytest.mark.container
def test_systemd_understands_every_line(container: Container) -> None:
    try:
        for name, text in UNITS.items():
            container.write(f"/run/systemd/system/{name}", text)
        done = container.run("systemd-analyze", "verify", "--man=no", *UNITS, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    finally:
        container.run("sh", "-c", "rm -f /run/systemd/system/luminous-healing*; systemctl daemon-reload")
