"""The cached root filesystem that every guest starts from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SUITE = "bookworm"
PACKAGES = """
    systemd systemd-sysv systemd-oomd libpam-systemd udev kmod dbus dbus-user-session polkitd sudo python3 nix-bin
    procps util-linux e2fsprogs iproute2 openssh-server ca-certificates stress-ng less
"""
CLEAN_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "TERM": "dumb",
}

# systemd-nspawn hands out cgroup v1 controllers read-only; this runs before systemd looks at them. They show
# only the guest's own part of the tree.
CONTAINER_INIT = """#!/bin/sh
while read -r _ dir type _; do
    [ "$type" != cgroup ] || mount -o remount,bind,rw "$dir"
done < /proc/self/mounts
exec /lib/systemd/systemd "$@"
"""
FILES = {
    # A frozen mirror is as good as a live one, and documentation only costs time.
    "etc/apt/apt.conf.d/90lab": 'APT::Install-Recommends "false";\n'
    'Acquire::Check-Valid-Until "false";\nAcquire::Check-Date "false";\n',
    "etc/dpkg/dpkg.cfg.d/lab": "force-unsafe-io\n"
    "path-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n",
    "etc/hostname": "lab\n",
    "etc/hosts": "127.0.0.1 localhost lab\n",
    "etc/nix/nix.conf": "sandbox = false\nbuild-users-group =\nsubstitute = false\n"
    "experimental-features = nix-command\n",
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=persistent\nRateLimitIntervalSec=0\n",
    "var/lib/systemd/linger/tester": "",
    "usr/sbin/lab-init": CONTAINER_INIT,
    "usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",
}
SETUP = """
useradd --create-home --uid 1000 --shell /bin/bash tester
systemctl set-default multi-user.target
systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer systemd-networkd-wait-online.service
mkdir -p /nix/store /var/log/journal
apt-get clean
rm -f /var/lib/dbus/machine-id /etc/resolv.conf /var/lib/apt/lists/*_*
: > /etc/machine-id
"""


class ImageError(Exception):
    """An image could not be built."""


def cache_dir() -> Path:
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "luminous-lab"
    return Path(os.environ.get("LUMINOUS_LAB_CACHE") or default)


def run_dir(name: str) -> Path:
    """A fresh directory for one running guest."""
    parent = cache_dir() / "run"
    parent.mkdir(parents=True, exist_ok=True)
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def recipe() -> str:
    """What the base image is made from: everything in this file."""
    return Path(__file__).read_text(encoding="utf-8")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_cached(kind: str, key: str) -> bool:
    return (cache_dir() / f"{kind}-{key}").is_dir()


def cached(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """The directory KIND-KEY of the cache, built first if need be. Only a complete one has that name."""
    ready = cache_dir() / f"{kind}-{key}"
    if ready.is_dir():
        return ready
    cache_dir().mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir() / f"{kind}.lock"):
        if not ready.is_dir():
            work = Path(tempfile.mkdtemp(prefix=f"{kind}-building-", dir=cache_dir()))
            try:
                work.chmod(0o755)
                build(work)
                work.rename(ready)
            except BaseException:
                shutil.rmtree(work, ignore_errors=True)
                raise
    return ready


def host_run(argv: Sequence[str], timeout: float = 900, env: Mapping[str, str] | None = None) -> str:
    """Run a program of the host and return its output."""
    done = subprocess.run(
        argv, capture_output=True, check=False, text=True, errors="replace", timeout=timeout, env=env
    )
    if done.returncode:
        raise ImageError(f"{' '.join(argv)}: status {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout


def in_root(root: Path, *argv: str, timeout: float = 900) -> str:
    """Run a program in a root filesystem, in process and mount namespaces that go away with it."""
    env = {**CLEAN_ENV, "DEBIAN_FRONTEND": "noninteractive"}
    env.update({key: value for key, value in os.environ.items() if key in ("http_proxy", "https_proxy")})
    isolate = ["unshare", "--mount", "--pid", "--fork", "--kill-child", f"--root={root}", "--mount-proc"]
    return host_run([*isolate, *argv], timeout, env)


def install_packages(root: Path, packages: Sequence[str]) -> None:
    shutil.copyfile("/etc/resolv.conf", root / "etc/resolv.conf")
    in_root(root, "apt-get", "-q", "update")
    in_root(root, "apt-get", "-q", "install", "--yes", *packages)


def write_files(root: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755 if text.startswith("#!") else 0o644)


def mirror() -> list[str]:
    """The mirror: as told, else the first that the host's apt has for the suite, else debootstrap's own."""
    told = os.environ.get("LUMINOUS_LAB_MIRROR")
    if told or not shutil.which("apt-get"):
        return [told] if told else []
    query = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages", f"Release: {SUITE}"]
    return host_run(query, timeout=60).split()[:1]


def _build_base(root: Path) -> None:
    host_run(["debootstrap", "--variant=minbase", SUITE, str(root), *mirror()])
    write_files(root, FILES)
    install_packages(root, PACKAGES.split())
    in_root(root, "sh", "-euc", SETUP)
    (root / "usr/sbin/policy-rc.d").unlink()


def base_key() -> str:
    return digest(recipe())


def base_image() -> Path:
    return cached("base", base_key(), _build_base)
