"""What `install` makes: the units, the rule, and how it treats a tree that others changed."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from luminous_nix.self_healing.cli import main
from luminous_nix.self_healing.deploy import host
from luminous_nix.self_healing.deploy.install import CONFIG, MANIFEST, install, uninstall
from luminous_nix.self_healing.deploy.polkit import ACTIONS, VERBS, act_patterns, actions, rule
from luminous_nix.self_healing.deploy.tree import Tree
from luminous_nix.self_healing.deploy.units import File, Site, act_file, fragments, unit_files
from luminous_nix.self_healing.models import ActionRefused, ConfigError, HealingError
from luminous_nix.self_healing.privileged.ways import POWERS, Power, power_of

ALLOWED = ("nginx.service", r"a\x2db.service")


def directives(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def units(site: Site | None = None) -> dict[str, dict[str, list[str]]]:
    files = unit_files(site or Site())
    return {path.rpartition("/")[2]: directives(file.text) for path, file in files.items()}


# -- units ---------------------------------------------------------------------------------------------------


def test_every_power_has_its_unit_and_no_other() -> None:
    acts = {name for name in units() if "-act-" in name}
    assert acts == {act_file(power) for power in POWERS.values()}


@pytest.mark.parametrize("power", POWERS.values(), ids=lambda power: power.name)
def test_an_act_unit_has_one_power(power: Power) -> None:
    unit = units()[act_file(power)]
    instance = " %i" if power.instance is not None else ""
    assert unit["ExecStart"] == [
        f"/usr/bin/python3 -I -m luminous_nix.self_healing.privileged.act {power.name}{instance}"
    ]
    assert unit["Type"] == ["oneshot"]
    assert unit["StartLimitIntervalSec"] == ["0"]
    assert unit["TimeoutStartSec"] == [f"{power.timeout_s:.0f}"]
    assert unit["NoNewPrivileges"] == ["yes"]
    if power.root:
        assert "ReadWritePaths" not in unit
        return
    assert unit["CapabilityBoundingSet"] == [" ".join(power.capabilities)]
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["PrivateNetwork"] == ["yes"]
    assert unit["RestrictAddressFamilies"] == ["AF_UNIX" if power.sockets or power.daemon else "none"]
    writes = [path.removeprefix("-") for path in unit.get("ReadWritePaths", [""])[0].split()]
    assert bool(writes) is bool(power.writes)
    assert all(any(Path(path).is_relative_to(top) for top in power.writes) for path in writes)
    hidden = unit["InaccessiblePaths"][0].split()
    for door in ("/run/dbus", "/run/luminous-healing", "/run/luminous-healing-executor.sock",
                 "/var/lib/luminous-healing-keys"):  # fmt: skip
        assert f"-{door}" in hidden
    seen = power.daemon or power.name == "generations"  # which sees it, and has no address family to ask it with
    assert ("-/nix/var/nix/daemon-socket" in hidden) is not seen
    assert ("DynamicUser" in unit) is power.daemon
    assert unit["User"] == ["luminous-healing-nix" if power.daemon else "root"]


def test_the_daemon_is_named_where_it_is_asked() -> None:
    unit = units()["luminous-healing-act-gc@.service"]
    assert unit["Environment"] == ["NIX_REMOTE=daemon"]
    assert "NIX_REMOTE" not in unit["UnsetEnvironment"][0].split()


def test_engine_and_helper_are_two_users_and_neither_is_root() -> None:
    engine, helper = units()["luminous-healing.service"], units()["luminous-healing-executor.service"]
    assert (engine["User"], helper["User"]) == (["luminous-healing"], ["luminous-healing-executor"])
    assert (engine["CapabilityBoundingSet"], helper["CapabilityBoundingSet"]) == ([""], ["CAP_KILL"])
    assert "audit" not in engine["LoadCredential"][0]
    assert {"PYTHONPATH", "LD_PRELOAD", "GCONV_PATH", "LOCPATH", "NIX_PATH"} <= set(
        engine["UnsetEnvironment"][0].split()
    )


def test_only_the_engine_may_connect() -> None:
    socket = units()["luminous-healing-executor.socket"]
    assert (socket["SocketUser"], socket["SocketMode"]) == (["luminous-healing"], ["0600"])


def test_what_can_be_written_is_not_executed() -> None:
    """And nothing is named in ExecPaths=: systemd 252 would leave it writable."""
    for name, unit in units().items():
        if not name.endswith(".service") or "ProtectSystem" not in unit:  # a socket, a timer; or root, without walls
            continue
        not_executed = set(unit["NoExecPaths"][0].split())
        assert "ExecPaths" not in unit
        assert {"-/tmp", "-/var/tmp", "-/dev/shm"} <= not_executed
        written = " ".join(unit.get("ReadWritePaths", [])).split()
        assert {path for path in written if not path.startswith(("-/proc/", "-/sys/"))} <= not_executed
        assert {f"-/var/lib/{path}" for path in unit.get("StateDirectory", [])} <= not_executed


@pytest.mark.parametrize(
    "path", ["python3", "/opt/my venv/bin/python", "/a\nUser=root", "/a%i", "/a'b", "/a$b", "/ä"]
)
def test_a_path_that_a_unit_file_cannot_say(path: str) -> None:
    with pytest.raises(ValueError):
        Site(python=path)


# -- polkit --------------------------------------------------------------------------------------------------

GOOD = {
    "swappiness": "60", "governor": "policy0:powersave", "reclaim": "nginx.service:1048576", "journal": "104857600",
    "gc": "104857600", "generations": "12-13", "rollback": "7", "plugin": "mine", "freeze": "nginx.service",
    "thaw": r"a\x2db.service",
}  # fmt: skip


def startable(unit: str, allowed: tuple[str, ...] = ALLOWED) -> bool:
    return any(re.search(pattern, unit, re.ASCII) for pattern in act_patterns(allowed))


@pytest.mark.parametrize("power", POWERS.values(), ids=lambda power: power.name)
def test_every_power_may_be_started_with_what_it_takes(power: Power) -> None:
    assert startable(power.unit(GOOD.get(power.name, "")))


@pytest.mark.parametrize("unit", [
    "nginx.service", "luminous-healing.service", "luminous-healing-act-rollback@.service",
    "luminous-healing-act-rollback@0.service", "luminous-healing-act-rollback@1x.service",
    "luminous-healing-act-swappiness@201.service", "luminous-healing-act-freeze@ssh.service.service",
    "luminous-healing-act-freeze@nginxxservice.service", "luminous-healing-act-freeze@.service",
    "luminous-healing-act-dropcaches@1.service", "luminous-healing-act-dropcaches.service.service",
    "xluminous-healing-act-dropcaches.service", "luminous-healing-act-dropcachesxservice", "undefined",
])  # fmt: skip
def test_nothing_else_may_be_started(unit: str) -> None:
    assert not startable(unit)


def test_the_rule_knows_what_the_table_knows() -> None:
    for power in POWERS.values():
        unit = power.unit(GOOD.get(power.name, ""))
        assert power_of(unit) is not None
    assert not startable("luminous-healing-act-freeze@nginx.service.service", allowed=())


def test_a_name_that_systemd_refuses_is_no_act_unit() -> None:
    longest = "a" * 201 + ".service"
    assert len(unit := POWERS["freeze"].unit(longest)) <= 255
    assert power_of(unit) == (POWERS["freeze"], longest)
    for zeros, known in ((8, True), (9, False)):
        unit = POWERS["reclaim"].unit(f"{'a' * 200}.service:1{'0' * zeros}")
        assert (len(unit) <= 255, power_of(unit) is not None) == (known, known), len(unit)


def test_names_in_the_rule_are_words_and_never_code() -> None:
    text = rule((r"a\x2db.service",))
    assert r'"a\\x2db.service"' in text
    assert text.count("polkit.Result.YES") == 3
    for verb in VERBS:
        assert f'"{verb}"' in text


def test_the_actions_ask_and_never_grant() -> None:
    found = ET.fromstring(actions().split("<!DOCTYPE")[0].partition("?>")[2] + actions().partition("-->\n")[2])  # noqa: S314
    assert [action.get("id") for action in found.findall("action")] == list(ACTIONS)
    for action in found.findall("action"):
        answers = {answer.tag: answer.text for answer in action.findall("defaults/*")}
        assert set(answers) == {"allow_any", "allow_inactive", "allow_active"}
        assert set(answers.values()) <= {"auth_admin", "auth_admin_keep"}
        owner = action.find("annotate[@key='org.freedesktop.policykit.owner']")
        assert owner is not None
        assert owner.text == "unix-user:luminous-healing-executor"


def test_users_and_directories() -> None:
    users, directories = (file.text for file in fragments(Site()).values())
    assert users.count("\nu ") == 3
    assert "d /etc/luminous-healing/plugins 0755 root root -" in directories


# -- install -------------------------------------------------------------------------------------------------

UNIT = "etc/systemd/system/luminous-healing.service"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def put(root: Path, *, dry_run: bool = False) -> dict[str, Any]:
    return install(root, dry_run=dry_run, now=False).data


def content(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.is_symlink()}


def configure(root: Path, text: str) -> None:
    (root / CONFIG[1:]).parent.mkdir(parents=True, exist_ok=True)
    (root / CONFIG[1:]).write_text(text)


def test_a_second_install_has_nothing_to_do(root: Path) -> None:
    first = put(root)
    so_far = content(root)
    times = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert f"/{UNIT}" in first["written"]
    second = put(root)
    assert (second["written"], second["removed"], second["edited"]) == ([], [], [])
    assert content(root) == so_far
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == times


def test_a_dry_run_writes_nothing(root: Path) -> None:
    assert put(root, dry_run=True)["written"]
    assert list(root.iterdir()) == []
    put(root)
    so_far = content(root)
    assert uninstall(root, dry_run=True).data["removed"]
    assert content(root) == so_far


def test_modes_do_not_follow_the_umask(root: Path) -> None:
    put(root)
    assert (root / UNIT).stat().st_mode & 0o7777 == 0o644
    assert (root / MANIFEST[1:]).stat().st_mode & 0o7777 == 0o600
    (root / UNIT).chmod(0o666)
    assert put(root)["written"] == [f"/{UNIT}"]
    assert (root / UNIT).stat().st_mode & 0o7777 == 0o644


def test_the_allow_list_reaches_the_rule(root: Path) -> None:
    configure(root, 'allowed_units = ["nginx.service", "redis.service", "nginx.service"]\n')
    assert put(root)["allowed_units"] == ["nginx.service", "redis.service"]
    written = (root / "etc/polkit-1/rules.d/10-luminous-healing.rules").read_text()
    assert '"redis.service"' in written
    configure(root, 'allowed_units = ["redis.service"]\n')
    assert put(root)["written"] == ["/etc/polkit-1/rules.d/10-luminous-healing.rules"]
    assert "nginx" not in (root / "etc/polkit-1/rules.d/10-luminous-healing.rules").read_text()


def test_a_later_file_of_the_configuration_decides(root: Path) -> None:
    configure(root, 'allowed_units = ["nginx.service"]\n')
    (root / "etc/luminous-healing/conf.d").mkdir()
    (root / "etc/luminous-healing/conf.d/9.toml").write_text('allowed_units = ["redis.service"]\n')
    assert put(root)["allowed_units"] == ["redis.service"]


@pytest.mark.parametrize("text", [
    'allowed_units = ["ssh.service"]', 'allowed_units = ["luminous-healing-executor.service"]',
    'allowed_units = ["*"]',
    'allowed_units = ["nginx"]', 'allowed_units = ["nginx.service\\n"]', 'allowed_units = "nginx.service"',
    "allowed_units = [1]", 'allowed_units = ["getty@.service"]', "allowed_units = [", 'allowed_units = [""]',
    "allowed_units = [0x" + "f" * 4000 + "]",
])  # fmt: skip
def test_a_wrong_allow_list_writes_nothing(root: Path, text: str) -> None:
    configure(root, text)
    so_far = content(root)
    with pytest.raises(ConfigError):
        put(root)
    assert content(root) == so_far


def test_the_configuration_is_never_overwritten(root: Path) -> None:
    configure(root, "interval = 5\n")
    assert CONFIG not in put(root)["written"]
    assert (root / CONFIG[1:]).read_text() == "interval = 5\n"


def test_an_edited_file_stops_everything(root: Path) -> None:
    put(root)
    (root / UNIT).write_text("[Service]\nUser=root\n")
    configure(root, 'allowed_units = ["redis.service"]\n')
    so_far = content(root)
    with pytest.raises(ActionRefused, match="changed since"):
        put(root)
    assert content(root) == so_far


def test_a_file_that_was_there_before_is_somebody_elses(root: Path) -> None:
    (root / UNIT).parent.mkdir(parents=True)
    (root / UNIT).write_text("mine\n")
    with pytest.raises(ActionRefused):
        put(root)
    assert [path for path in root.rglob("*") if path.is_file()] == [root / UNIT]


def test_a_file_of_an_earlier_version_is_renewed_or_goes(root: Path) -> None:
    put(root)
    old = root / "etc/systemd/system/luminous-healing-act-former.service"
    kept = root / "etc/systemd/system/luminous-healing-act-kept.service"
    for path in (old, kept, root / UNIT):
        path.write_text("earlier\n")
    manifest = json.loads((root / MANIFEST[1:]).read_text())
    digest = hashlib.sha256(b"earlier\n").hexdigest()
    for path in (old, kept, root / UNIT):
        manifest["files"][f"/{path.relative_to(root)}"] = [digest]
    (root / MANIFEST[1:]).write_text(json.dumps(manifest))
    kept.write_text("changed by somebody\n")
    done = put(root)
    assert done["removed"] == [f"/{old.relative_to(root)}"]
    assert done["written"] == [f"/{UNIT}"]
    assert done["edited"] == [f"/{kept.relative_to(root)}"]
    assert not old.exists()
    assert kept.exists()


def test_uninstall_takes_what_it_brought(root: Path) -> None:
    before = root / "etc/systemd/system/other.service"
    before.parent.mkdir(parents=True)
    before.write_text("other\n")
    put(root)
    done = uninstall(root, dry_run=False).data
    assert f"/{UNIT}" in done["removed"]
    assert set(content(root)) == {str(before), str(root / CONFIG[1:])}
    assert uninstall(root, dry_run=False).data["removed"] == []


def test_uninstall_leaves_what_was_edited(root: Path) -> None:
    put(root)
    (root / UNIT).write_text("mine now\n")
    done = uninstall(root, dry_run=False).data
    assert done["edited"] == [f"/{UNIT}"]
    assert (root / UNIT).read_text() == "mine now\n"


def test_an_end_in_the_middle_is_taken_up_again(root: Path) -> None:
    """As it stands when the second of two installs ended after the first of its files."""
    rules = root / "etc/polkit-1/rules.d/10-luminous-healing.rules"
    kept = root / MANIFEST[1:]
    configure(root, 'allowed_units = ["nginx.service"]\n')
    put(root)
    former, text = json.loads(kept.read_text()), rules.read_text()
    configure(root, 'allowed_units = ["redis.service"]\n')
    put(root)
    both = json.loads(kept.read_text())
    for path, digests in both["files"].items():
        both["files"][path] = [*former["files"][path], *digests]
    kept.write_text(json.dumps(both))
    (root / UNIT).unlink()
    for now in (text, rules.read_text()):
        rules.write_text(now)
        configure(root, 'allowed_units = ["postgresql.service"]\n')
        assert put(root)["edited"] == []
        assert put(root)["written"] == []
        kept.write_text(json.dumps(both))


def test_a_link_is_not_followed(root: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious\n")
    (root / UNIT).parent.mkdir(parents=True)
    (root / UNIT).symlink_to(victim)
    with pytest.raises(ActionRefused):
        put(root)
    assert victim.read_text() == "precious\n"


@pytest.mark.parametrize("part", ["etc", "etc/systemd", "etc/systemd/system", "usr/share", "var/lib"])
def test_a_linked_directory_leads_nowhere(root: Path, tmp_path: Path, part: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (root / part).parent.mkdir(parents=True, exist_ok=True)
    (root / part).symlink_to(outside)
    with pytest.raises(HealingError):
        put(root)
    assert list(outside.iterdir()) == []


def test_uninstall_does_not_follow_a_link_either(root: Path, tmp_path: Path) -> None:
    put(root)
    outside = tmp_path / "outside"
    (root / "etc/systemd/system").rename(outside)
    (root / "etc/systemd/system").symlink_to(outside)
    so_far = sorted(outside.iterdir())
    assert f"/{UNIT}" in uninstall(root, dry_run=False).data["edited"]
    assert sorted(outside.iterdir()) == so_far


@pytest.mark.parametrize("text", [
    "", "[]", "{", '{"files": 3}', '{"files": {"/etc/shadow": ["00"]}}',
    '{"files": {"/etc/systemd/system/../luminous-healing.conf": ["00"]}}',
    '{"files": {"/etc/systemd/system/ssh.service": ["00"]}}',
])  # fmt: skip
def test_a_manifest_that_is_not_ours(root: Path, text: str) -> None:
    put(root)
    (root / MANIFEST[1:]).write_text(text)
    so_far = content(root)
    for again in (put, lambda root: uninstall(root, dry_run=False)):
        with pytest.raises(HealingError):
            again(root)
    assert content(root) == so_far


def test_a_root_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(HealingError, match="no directory"):
        put(tmp_path / "absent")


def test_nothing_starts_below_a_root(root: Path) -> None:
    with pytest.raises(HealingError, match="--now"):
        install(root, dry_run=False, now=True)
    assert list(root.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_a_file_that_somebody_else_owns_is_written_anew(root: Path) -> None:
    put(root)
    os.chown(root / UNIT, 1000, 1000)
    assert put(root)["written"] == [f"/{UNIT}"]
    assert (root / UNIT).stat().st_uid == 0


def test_the_tree_stays_below_its_root(root: Path) -> None:
    for path in ("../x", "/../x", "/a/../../x", "x"):
        with pytest.raises(ValueError):
            Tree(root).write(path, b"", 0o644)


def test_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install", "--root", str(root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == 1
    assert told["steps"] == []
    assert main(["uninstall", "--root", str(root), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert f"would be removed   /{UNIT}" in out
    assert "stays" in out
    (root / UNIT).write_text("mine\n")
    assert main(["install", "--root", str(root)]) == 1
    assert "nothing was written" in capsys.readouterr().err


def test_a_host_without_systemd_is_refused() -> None:
    if Path("/run/systemd/system").is_dir():
        pytest.skip("systemd runs here")
    with pytest.raises(ActionRefused):
        install(None, dry_run=False, now=False)


def test_code_that_others_can_change_is_refused(tmp_path: Path) -> None:
    """tmp_path lies where everybody writes, whoever runs this."""
    with pytest.raises(ActionRefused):
        host.check_code([tmp_path])


def test_every_file_has_a_plain_mode() -> None:
    files: list[File] = [*unit_files(Site()).values(), *fragments(Site()).values()]
    assert {file.mode for file in files} == {0o644}
