"""Install the Debian packages that the tests on real guests need, when this is root on a Debian-like host.

Anywhere else it says what it leaves out: the tests that need them are then skipped by name.
"""

import os
import shutil
import subprocess
import sys

# Command that shows that it is there → the package that brings it.
NEEDED = {
    "debootstrap": "debootstrap",
    "systemd-nspawn": "systemd-container",
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mkfs.ext4": "e2fsprogs",
    "ssh": "openssh-client",
    "nsenter": "util-linux",
    "nix-store": "nix-bin",
    "dbus-daemon": "dbus",
    "tmux": "tmux",
    "strace": "strace",
}


def main() -> int:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    missing = sorted({package for command, package in NEEDED.items() if not shutil.which(command, path=path)})
    if not missing:
        return 0
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        print(f"not installed, so some tests will be skipped: {' '.join(missing)}", file=sys.stderr)
        return 0
    print(f"installing {' '.join(missing)}", file=sys.stderr)
    apt = ["apt-get", "-q", "-y", "-o", "Dpkg::Use-Pty=0", "-o", "APT::Install-Recommends=false"]
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ([*apt, "update"], [*apt, "install", *missing]):
        done = subprocess.run(command, env=env, check=False, stdout=subprocess.DEVNULL)
        if done.returncode:
            print(f"{' '.join(command)} ended with {done.returncode}", file=sys.stderr)
            return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
