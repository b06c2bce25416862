"""Plugins: what may be run, and what it is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from luminous_nix.self_healing.act.operations import has_plugin
from luminous_nix.self_healing.act.steps import RunProgram
from luminous_nix.self_healing.models import ActionRefused
from tests.unit.host import FakeHost
from tests.unit.worlds import plan, rooted, world

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of root")]


def plugin(host: FakeHost, name: str = "mend", script: str = "exit 0") -> Path:
    file = rooted(host).write(host.root / "plugins" / name, f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    file.parent.chmod(0o755)
    return file


async def test_a_plugin_is_told_the_trouble_on_its_input(host: FakeHost) -> None:
    file = plugin(host)
    found = await plan(world(host), "run_plugin", name="mend", issue={"component": "disk"})
    (step,) = found.steps
    assert isinstance(step, RunProgram)
    assert (step.command, step.timeout_s, step.unprivileged, step.refused_exit) == ((str(file),), 60.0, False, 2)
    assert json.loads(step.stdin) == {"schema": 1, "issue": {"component": "disk"}, "dry_run": False}


async def test_a_plugin_may_be_told_a_unit_and_parameters(host: FakeHost) -> None:
    plugin(host)
    (step,) = (await plan(world(host), "run_plugin", name="mend", unit="a.service", parameters={"x": 1})).steps
    assert isinstance(step, RunProgram)
    told = {"schema": 1, "issue": {}, "dry_run": False, "unit": "a.service", "parameters": {"x": 1}}
    assert json.loads(step.stdin) == told
    with pytest.raises(ActionRefused, match=r"sshd.service is in the protected set"):
        await plan(world(host), "run_plugin", name="mend", unit="sshd.service")


async def refused(host: FakeHost, said: str, name: str = "mend") -> None:
    assert not has_plugin(host.roots, name)
    with pytest.raises(ActionRefused, match=said):
        await plan(world(host), "run_plugin", name=name)


async def test_a_plugin_that_is_not_there(host: FakeHost) -> None:
    await refused(rooted(host), "there is no plugin .*: No such file")
    plugin(host, "other")
    await refused(host, "there is no plugin .*/mend: No such file")


@pytest.mark.parametrize("name", ["", ".", "..", "../mend", "a/b", "Mend", "mend\n", "-x", "mend.sh", "a" * 33, "é"])
async def test_a_name_that_is_none(host: FakeHost, name: str) -> None:
    plugin(host)
    await refused(host, "is no name of a plugin", name)


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
@pytest.mark.parametrize("which", ["file", "folder"])
async def test_what_others_can_change_is_not_run(host: FakeHost, mode: int, which: str) -> None:
    file = plugin(host)
    (file if which == "file" else file.parent).chmod(mode)
    await refused(host, "can be changed by others than root")


@pytest.mark.parametrize("which", ["file", "folder"])
async def test_what_is_not_roots_is_not_run(host: FakeHost, which: str) -> None:
    file = plugin(host)
    os.chown(file if which == "file" else file.parent, 1000, 0)
    await refused(host, "can be changed by others than root")


async def test_a_link_is_not_followed(host: FakeHost) -> None:
    file = plugin(host, "other")
    file.with_name("mend").symlink_to(file)
    await refused(host, "mend is not a regular file")
    file.parent.rename(file.parent.with_name("real"))
    file.parent.symlink_to("real")
    await refused(host, "plugins is not a folder", "other")


async def test_what_is_no_program_is_not_run(host: FakeHost) -> None:
    file = plugin(host)
    file.chmod(0o644)
    await refused(host, "is not executable")
    file.unlink()
    file.mkdir()
    await refused(host, "is not a regular file")
