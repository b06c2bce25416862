"""The cached disk, kernel and key of the virtual machine: the base image and what a machine needs besides."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

from .image import base_image, base_key, cached, digest, host_run, in_root, install_packages, write_files

SIZE = "6G"
# cpufreq.asl, compiled.
CPUFREQ = """
U1NEVCgBAAAC4kxVTUxBQlBTVEFURVMAAQAAAElOVEwlCSAgoCYAFVwvA19TQl9DUFVTQzAwMAYAFVwvA19TQl9DUFVTQzAwMQYA
FDVcUE9SVAikEiwCERQKEYIMAAEIAADgAAAAAAAAAHkAERQKEYIMAAEIAADgAAAAAAAAAHkAFD5cU1RFUAikEjUDEhAGC2AJC8Bd
ChQKFAoQChASEAYLQAYLgD4KFAoUChEKERIQBgsgAwtAHwoUChQKEgoSEDNcLwNfU0JfQ1BVU0MwMDAUDF9QQ1QApFxQT1JUFAxf
UFNTAKRcU1RFUBQIX1BQQwCkABAzXC8DX1NCX0NQVVNDMDAxFAxfUENUAKRcUE9SVBQMX1BTUwCkXFNURVAUCF9QUEMApAA=
"""
# Few modules and a quick compressor: an emulated processor unpacks them at every cold boot.
INITRAMFS = {
    "etc/initramfs-tools/modules": "virtio_pci\nvirtio_blk\next4\n",
    "etc/initramfs-tools/conf.d/lab": "MODULES=list\nCOMPRESS=lz4\n",
}
FILES = {
    "etc/fstab": "/dev/vda / ext4 defaults,noatime 0 0\n",
    "etc/modules-load.d/lab.conf": "loop\nacpi-cpufreq\ncpufreq_powersave\ncpufreq_ondemand\n",
    "etc/ssh/sshd_config.d/lab.conf": "UseDNS no\nPasswordAuthentication no\nMaxSessions 100\nPrintMotd no\n",
    "etc/systemd/network/10-lab.network": "[Match]\nName=eth0\n[Network]\nAddress=10.0.2.15/24\n"
    "LinkLocalAddressing=no\nIPv6AcceptRA=no\n",
    "etc/systemd/system.conf.d/lab.conf": "[Manager]\nDefaultTimeoutStartSec=300\n",
    "var/lib/systemd/linger/root": "",  # no user manager to start at each ssh login
    "usr/sbin/policy-rc.d": "#!/bin/sh\nexit 101\n",
}
SETUP = """
systemctl enable systemd-networkd ssh
systemctl mask getty@tty1.service systemd-random-seed.service systemd-hwdb-update.service ldconfig.service
apt-get clean
rm -f /etc/resolv.conf /usr/sbin/policy-rc.d /var/lib/apt/lists/*_*
chmod 700 /root/.ssh
"""


def _build_disk(target: Path) -> None:
    root, raw, key = target / "root", target / "disk.raw", target / "key"
    host_run(["cp", "-a", "--reflink=auto", str(base_image()), str(root)])
    host_run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(key)])
    write_files(
        root,
        FILES | INITRAMFS | {"root/.ssh/authorized_keys": Path(f"{key}.pub").read_text(encoding="ascii")},
    )
    install_packages(root, ["initramfs-tools", "lz4", "linux-image-cloud-amd64"])
    in_root(root, "sh", "-euc", SETUP)
    for name, link in (("vmlinuz", "vmlinuz"), ("initrd", "initrd.img")):
        [source] = (root / "boot").glob(f"{link}-*")
        shutil.copyfile(source, target / name)
    (target / "cpufreq.aml").write_bytes(base64.b64decode(CPUFREQ))
    host_run(["truncate", f"--size={SIZE}", str(raw)])
    host_run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=1", "-d", str(root), str(raw)])
    host_run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(target / "disk.qcow2")])
    raw.unlink()
    shutil.rmtree(root)


def disk_key() -> str:
    return digest(base_key(), Path(__file__).read_text(encoding="utf-8"))


def disk_image() -> Path:
    return cached("disk", disk_key(), _build_disk)
