"""Filesystems, the journal and the nix store, for real."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.integration.conftest import Host

pytestmark = pytest.mark.container


@pytest.fixture
def small(host: Host) -> Iterator[str]:
    """A loop filesystem of 32 MiB with 512 inodes."""
    host.guest.run("truncate", "-s", "32M", "/srv/small.img")
    host.guest.run("mkfs.ext4", "-q", "-F", "-O", "^has_journal", "-m", "0", "-N", "512", "/srv/small.img")
    host.guest.run("mkdir", "-p", "/srv/small disk")
    host.guest.run("mount", "-o", "loop", "/srv/small.img", "/srv/small disk")
    yield "/srv/small disk"
    host.guest.run("umount", "/srv/small disk")


def statvfs(host: Host, path: str) -> os.statvfs_result:
    done = host.guest.run("python3", "-c", "import os, sys; print(*os.statvfs(sys.argv[1]))", path)
    return os.statvfs_result(int(word) for word in done.stdout.split())


def test_a_full_loop_filesystem_is_noticed_with_the_kernels_figure(host: Host, small: str) -> None:
    host.guest.run("fallocate", "-l", "29M", f"{small}/filler")
    data = host.data("check")
    at = statvfs(host, small)
    used = at.f_blocks - at.f_bfree
    truth = 100 * used / (used + at.f_bavail)
    assert truth > 90
    assert abs(data["readings"][f"disk:{small}"]["value"] - truth) < 1
    (issue,) = [issue for issue in data["issues"] if issue["kind"] == "bytes" and small in issue["description"]]
    assert issue["type"] == "resource"
    assert abs(issue["metric_value"] - truth) < 1


def test_exhausted_inodes_are_noticed(host: Host, small: str) -> None:
    host.guest.run(
        "sh", "-c", 'cd "$1" && i=0; while : > "f$i" && [ $i -lt 600 ]; do i=$((i+1)); done', "sh", small, check=False
    )
    data = host.data("check")
    assert data["readings"][f"inodes:{small}"]["value"] > 95
    assert [issue["kind"] for issue in data["issues"] if small in issue["description"]] == ["inodes"]


def test_freeing_elsewhere_is_refused(host: Host, small: str) -> None:
    """The store and the journal are not on the full filesystem: collecting there would not help."""
    host.guest.run("fallocate", "-l", "29M", f"{small}/filler")
    results = host.data("heal", "--apply")["results"]
    (result,) = [result for result in results if small in result["issue"]["description"]]
    assert result["verdict"] == "refused"
    assert f"the nix store is not on {small}" in result["error"]
    assert f"the journal is not on {small}" in result["error"]


def test_a_collection_frees_dead_paths_and_keeps_live_ones(host: Host) -> None:
    """Debian's nix, a store of its own: two dead paths go, the rooted one stays, no generation is touched."""
    run = host.guest.run
    live = run("sh", "-c", "echo live > /var/tmp/live && nix-store --add /var/tmp/live").stdout.strip()
    run("nix-store", "--add-root", "/var/tmp/live-root", "--indirect", "--realise", live)
    add = "head -c 3000000 /dev/urandom > /var/tmp/dead%d && nix-store --add /var/tmp/dead%d"
    dead = [run("sh", "-c", add % (n, n)).stdout.strip() for n in range(2)]
    script = (
        "import asyncio; from luminous_nix.self_healing import SimpleExecutor;"
        "r = asyncio.run(SimpleExecutor().execute({'action': 'clean_nix_store', 'parameters': {}}, dry_run=DRY));"
        "print(r); raise SystemExit(not r.success)"
    )
    env = {"LUMINOUS_DEV_MODE": "1", "PYTHONPATH": "/opt/luminous/src:/opt/luminous/deps"}
    told = run("python3", "-c", script.replace("DRY", "True"), env=env)
    assert "no generation is deleted" in told.stdout
    assert run("ls", *dead).returncode == 0
    run("python3", "-c", script.replace("DRY", "False"), env=env, timeout=180)
    assert run("ls", *dead, check=False).returncode != 0
    assert run("nix-store", "--check-validity", live).returncode == 0


def test_a_large_journal_is_vacuumed_down_to_half(host: Host) -> None:
    run = host.guest.run
    for _ in range(3):
        run(
            "sh",
            "-c",
            "head -c 24000000 /dev/urandom | base64 -w 1000 | systemd-cat -t noise; journalctl --rotate",
            timeout=120,
        )
    size = "du -sm /var/log/journal | cut -f1"
    before = int(run("sh", "-c", size).stdout)
    script = (
        "import asyncio; from luminous_nix.self_healing import SimpleExecutor;"
        "print(asyncio.run(SimpleExecutor().execute("
        "{'action': 'vacuum_journal', 'parameters': {'keep_bytes': 33554432}})))"
    )
    env = {"LUMINOUS_DEV_MODE": "1", "PYTHONPATH": "/opt/luminous/src:/opt/luminous/deps"}
    said = run("python3", "-c", script, env=env).stdout
    assert "success=True" in said
    assert int(run("sh", "-c", size).stdout) < before
