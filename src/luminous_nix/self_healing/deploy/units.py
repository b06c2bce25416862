"""The unit files of the trust boundary, from one table of directives a kind of unit. [pure]

A directive with several values is written once for each; None takes away what is common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Final

from ..privileged.ways import POWERS, PREFIX, Power

ENGINE: Final = "luminous-healing"
EXECUTOR: Final = "luminous-healing-executor"
NIX_USER: Final = "luminous-healing-nix"
KEYS: Final = "/var/lib/luminous-healing-keys"
_SOCKET: Final = f"/run/{EXECUTOR}.sock"
_KEYS_UNIT: Final = f"{ENGINE}-keys.service"
_PACKAGE: Final = "luminous_nix.self_healing"

Directives = dict[str, str | tuple[str, ...] | None]


@dataclass(frozen=True, slots=True)
class Site:
    """What differs from host to host."""

    python: str = "/usr/bin/python3"
    allowed_units: tuple[str, ...] = ()
    unit_directory: str = "/etc/systemd/system"
    sysusers_directory: str = "/etc/sysusers.d"
    tmpfiles_directory: str = "/etc/tmpfiles.d"
    rules_directory: str = "/etc/polkit-1/rules.d"
    actions_directory: str = "/usr/share/polkit-1/actions"  # the only place where polkit 122 looks

    def __post_init__(self) -> None:
        path = self.python
        if not path.startswith("/") or not path.isascii() or set(path) & set(" \t\n\"'\\%$;"):
            raise ValueError(f"a unit file cannot name {path!r:.120}")


@dataclass(frozen=True, slots=True)
class File:
    text: str
    mode: int = 0o644


# -- directives ----------------------------------------------------------------------------------------------

# A stranger's word about where code, settings or character tables lie.
_ENVIRONMENT: Final = (
    "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT", "PYTHONWARNINGS",
    "PYTHONUSERBASE", "PYTHONPLATLIBDIR", "PYTHONCASEOK", "LD_PRELOAD", "LD_LIBRARY_PATH", "LD_AUDIT", "LD_DEBUG",
    "LD_PROFILE", "GLIBC_TUNABLES", "GCONV_PATH", "LOCPATH", "NLSPATH", "HOSTALIASES", "RES_OPTIONS", "TMPDIR",
    "NIX_PATH", "NIX_REMOTE", "NIX_CONFIG", "NIX_CONF_DIR", "NIX_USER_CONF_FILES", "NIX_STATE_DIR",
    "NIX_STORE_DIR", "NIX_DAEMON_SOCKET_PATH", "DBUS_SYSTEM_BUS_ADDRESS", "LUMINOUS_DEV_MODE",
    "LUMINOUS_HEALING_MODE",
)  # fmt: skip


def _absent(*paths: str) -> str:
    """With a "-", because they need not exist."""
    return " ".join(f"-{path}" for path in paths)


# What can be written is not executed. Not "/", with ExecPaths= for the system's programs: in systemd 252 each path
# there becomes a mount of its own that ProtectSystem= passes over, and /usr is writable.
_NOWHERE_EXECUTABLE: Final = _absent("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108

# ProtectSystem=strict does not reach file systems mounted below / where one of ProtectKernelTunables=,
# ProtectControlGroups= and ProtectProc= is set too, in systemd 252: so those places are named.
_READ_ONLY: Final = _absent(
    "/boot", "/efi", "/etc", "/media", "/mnt", "/nix", "/opt", "/run", "/srv", "/usr", "/var"
)  # fmt: skip

_COMMON: Final[Directives] = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "DevicePolicy": "closed",
    "PrivateMounts": "yes",
    "PrivateNetwork": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectControlGroups": "yes",
    "ProtectClock": "yes",
    "ProtectHostname": "yes",
    "ProtectProc": "invisible",
    "ProcSubset": "all",  # /proc/sys and /proc/meminfo are read, or are the very file to write
    "RestrictAddressFamilies": "AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": ("@system-service", "~@privileged @resources @setuid @keyring @memlock"),
    "SystemCallErrorNumber": "EPERM",  # SQLite calls fchown as root: refused, it goes on
    "IPAddressDeny": "any",
    "KeyringMode": "private",
    "UMask": "0077",
    "LimitCORE": "0",
    "RemoveIPC": "yes",
    "NoExecPaths": _NOWHERE_EXECUTABLE,
    "ReadOnlyPaths": _READ_ONLY,
}

# Where the helper's word or another power could be had: of no use to anybody but its owner.
_DOORS: Final = ("/run/dbus", "/run/systemd/private", f"/run/{ENGINE}", _SOCKET, KEYS)
_NIX_DAEMON: Final = "/nix/var/nix/daemon-socket"
_BOOT: Final = "LUMINOUS_BOOT_ID=%b"  # this boot as PID 1 knows it, in a container too

_SERVICE: Final[Directives] = {
    "Type": "notify",
    "Environment": _BOOT,
    "NotifyAccess": "main",
    "Restart": "on-failure",
    "TimeoutStopSec": "30",
    "SupplementaryGroups": "systemd-journal",
    "ProtectProc": "default",  # other users' processes are what is diagnosed
}

_ENGINE_DIRECTIVES: Final[Directives] = {
    "NoExecPaths": f"{_NOWHERE_EXECUTABLE} {_absent(f'/var/lib/{ENGINE}', f'/run/{ENGINE}')}",
    "User": ENGINE,
    "Group": ENGINE,
    "StateDirectory": ENGINE,
    "StateDirectoryMode": "0700",
    "RuntimeDirectory": ENGINE,
    "RuntimeDirectoryMode": "0750",  # the group passes through to control.sock
    "LoadCredential": f"keys:{KEYS}/keys",
    "PrivateUsers": "yes",
    "ProtectHome": "read-only",  # with "yes" a full /home would read as empty
    "InaccessiblePaths": _absent(KEYS, "/run/systemd/private", _NIX_DAEMON),
    "WatchdogSec": "60",
    "RestartSec": "5",
    "MemoryMax": "192M",
    "TasksMax": "32",
    "CPUQuota": "25%",
    "IOWeight": "20",
    "OOMScoreAdjust": "-500",
}

_HELPER_DIRECTIVES: Final[Directives] = {
    "NoExecPaths": f"{_NOWHERE_EXECUTABLE} {_absent(f'/var/lib/{EXECUTOR}')}",
    "User": EXECUTOR,
    "Group": EXECUTOR,
    "CapabilityBoundingSet": "CAP_KILL",
    "AmbientCapabilities": "CAP_KILL",
    "StateDirectory": EXECUTOR,
    "StateDirectoryMode": "0700",
    "LoadCredential": (f"keys:{KEYS}/keys", f"audit:{KEYS}/audit"),
    "InaccessiblePaths": _absent(KEYS, "/run/systemd/private", f"/run/{ENGINE}", _NIX_DAEMON),
    "WatchdogSec": "30",
    "RestartSec": "2",
    "MemoryMax": "64M",
    "TasksMax": "16",
    "LimitNOFILE": "256",
    "LimitFSIZE": "128M",
    "OOMScoreAdjust": "-900",
}

_ONE_SHOT: Final[Directives] = {"Type": "oneshot", "User": "root"}

_KEYS_DIRECTIVES: Final[Directives] = {
    "NoExecPaths": f"{_NOWHERE_EXECUTABLE} {_absent(KEYS)}",
    "StateDirectory": PurePosixPath(KEYS).name,
    "StateDirectoryMode": "0700",
    "RestrictAddressFamilies": "none",
    "InaccessiblePaths": _absent("/run/dbus", "/run/systemd/private", f"/run/{ENGINE}", _SOCKET, _NIX_DAEMON),
}

_ROTATE: Final[Directives] = {  # it tells systemd over D-Bus to let both ends load the new key
    "Environment": _BOOT,  # the former key's grace is this boot's
    **_KEYS_DIRECTIVES,
    "RestrictAddressFamilies": "AF_UNIX",
    "InaccessiblePaths": _absent("/run/systemd/private", f"/run/{ENGINE}", _SOCKET, _NIX_DAEMON),
    "TimeoutStartSec": "120",
}

_ACT: Final[Directives] = {
    "PrivateUsers": "yes",  # uid 0 still owns root's files; a capability, however come by, is worth nothing outside
    "RestrictAddressFamilies": "none",
    "InaccessiblePaths": _absent(*_DOORS, _NIX_DAEMON),
}

# The Nix daemon serves anybody, and refuses everybody what is live. The user is a fixed one where sysusers made it:
# nix looks its user up, which a dynamic one survives only where libnss-systemd is installed.
_DAEMON: Final[Directives] = {
    "User": NIX_USER,
    "DynamicUser": "yes",
    "RestrictAddressFamilies": "AF_UNIX",
    "InaccessiblePaths": _absent(*_DOORS),
    "Environment": "NIX_REMOTE=daemon",
    "IOSchedulingClass": "idle",
    "CPUWeight": "20",
    "Nice": "19",
}

# The system's own switch mounts, writes boot loaders and wrappers: it needs the host as it is. Its safety is the
# policy before it: a person's word, one a day, only what is known to be good.
_ROOT: Final[Directives] = {
    "NoNewPrivileges": "yes",
    "LockPersonality": "yes",
    "RestrictRealtime": "yes",
    "SystemCallArchitectures": "native",
    "IPAddressDeny": "any",
    "RestrictAddressFamilies": "AF_UNIX AF_NETLINK",
    "UMask": "0022",
    "LimitCORE": "0",
    "KeyringMode": "private",
}

# ProtectControlGroups= wins over ReadWritePaths= for the same directory, so what lies below it is named: the slice of
# ordinary services. Another slice takes a drop-in.
_SLICE: Final = _absent("/sys/fs/cgroup/system.slice", "/sys/fs/cgroup/unified/system.slice")

# What one power needs besides.
_PARTICULAR: Final[Mapping[str, Directives]] = {
    "tmpfiles": {"PrivateTmp": None},  # the host's own is what it cleans
    # nix-env gives up where its user's home or the daemon's socket may not be looked at. An empty home will do, and
    # without any address family the socket cannot be asked for anything.
    # Its empty homes are not in NoExecPaths=: that would win over ProtectHome=tmpfs and show the real ones.
    "generations": {"ProtectHome": "tmpfs", "InaccessiblePaths": _absent(*_DOORS)},
    "reclaim": {"ReadWritePaths": _SLICE},
    "freeze": {"ReadWritePaths": _SLICE},
    "thaw": {"ReadWritePaths": _SLICE},
}


# -- units ---------------------------------------------------------------------------------------------------


def unit_files(site: Site) -> Mapping[str, File]:
    """Path → file, of every unit."""
    units = {
        f"{ENGINE}.service": _engine(site),
        f"{EXECUTOR}.socket": _socket(),
        f"{EXECUTOR}.service": _helper(site),
        _KEYS_UNIT: _keys(site),
        f"{ENGINE}-rotate.service": _rotate(site),
        f"{ENGINE}-rotate.timer": _timer(),
        **{act_file(power): _act(site, power) for power in POWERS.values()},
    }
    return MappingProxyType({f"{site.unit_directory}/{name}": File(_HEAD + text) for name, text in units.items()})


def act_file(power: Power) -> str:
    """The name of its unit file: a template where it takes an instance."""
    return f"{PREFIX}{power.name}{'@' if power.instance is not None else ''}.service"


def fragments(site: Site) -> Mapping[str, File]:
    """Path → file, of the users and directories."""
    texts = {site.sysusers_directory: _USERS, site.tmpfiles_directory: _DIRECTORIES}
    return MappingProxyType({f"{path}/{ENGINE}.conf": File(_HEAD + text) for path, text in texts.items()})


_HEAD: Final = "# Made by luminous-healing install: changes go into a drop-in, or the next install refuses.\n"
_USERS: Final = f"""\
u {ENGINE} - "Luminous healing, the engine" / -
u {EXECUTOR} - "Luminous healing, the helper" / -
u {NIX_USER} - "Luminous healing, what asks the Nix daemon" / -
"""
_DIRECTORIES: Final = f"""\
d /etc/{ENGINE} 0755 root root -
d /etc/{ENGINE}/plugins 0755 root root -
"""


def _engine(site: Site) -> str:
    unit: Directives = {
        "Description": "Notices trouble on this host and repairs it within strict limits",
        "Requires": _KEYS_UNIT,
        "Wants": f"{EXECUTOR}.socket",
        "After": f"{_KEYS_UNIT} {EXECUTOR}.socket dbus.socket",
        "StartLimitIntervalSec": "600",  # its own restart loop ends, and stays ended
        "StartLimitBurst": "5",
    }
    service = _COMMON | _SERVICE | _ENGINE_DIRECTIVES
    service |= {"ExecReload": "/bin/kill -HUP $MAINPID"}
    return _unit(unit, Service=_run(site, f"{_PACKAGE}.cli run") | service, Install={"WantedBy": "multi-user.target"})


def _socket() -> str:
    socket: Directives = {
        "ListenSequentialPacket": _SOCKET,
        "SocketUser": ENGINE,  # nobody else but root may connect
        "SocketGroup": "root",
        "SocketMode": "0600",
        "RemoveOnStop": "yes",
        "Backlog": "64",
        "TriggerLimitIntervalSec": "0",  # a helper that ends when idle must not trip it
    }
    return _unit(
        {"Description": "Where the engine asks for what needs privilege"},
        Socket=socket, Install={"WantedBy": "sockets.target"},
    )  # fmt: skip


def _helper(site: Site) -> str:
    unit: Directives = {
        "Description": "Checks, limits and records what the engine asks for; is not root",
        "Requires": f"{_KEYS_UNIT} {EXECUTOR}.socket",
        "After": f"{_KEYS_UNIT} {EXECUTOR}.socket dbus.socket",
        "StartLimitIntervalSec": "0",  # failures are counted on disk
    }
    return _unit(unit, Service=_run(site, f"{_PACKAGE}.privileged.service") | _COMMON | _SERVICE | _HELPER_DIRECTIVES)


def _keys(site: Site) -> str:
    service: Directives = {**_COMMON, **_ONE_SHOT, "RemainAfterExit": "yes", **_KEYS_DIRECTIVES}
    return _unit(
        {"Description": "Makes the keys of engine and helper where they are missing"},
        Service=_run(site, f"{_PACKAGE}.privileged.keys make") | service,
    )


def _rotate(site: Site) -> str:
    unit: Directives = {
        "Description": "Gives engine and helper a new key",
        "Requires": _KEYS_UNIT,
        "After": f"{_KEYS_UNIT} dbus.socket",
    }
    return _unit(unit, Service=_run(site, f"{_PACKAGE}.privileged.keys rotate") | _COMMON | _ONE_SHOT | _ROTATE)


def _timer() -> str:
    return _unit(
        {"Description": "A new key for engine and helper every month"},
        Timer={"OnCalendar": "monthly", "RandomizedDelaySec": "6h", "Persistent": "yes"},
        Install={"WantedBy": "timers.target"},
    )


def _act(site: Site, power: Power) -> str:
    instance = "" if power.instance is None else " %i"  # raw: what was asked for is what is checked
    command = _run(site, f"{_PACKAGE}.privileged.act {power.name}{instance}")
    walls = _ONE_SHOT | _ROOT if power.root else _COMMON | _ONE_SHOT | _ACT
    own: Directives = {"TimeoutStartSec": f"{power.timeout_s:.0f}"}
    if power.daemon:
        own |= _DAEMON | {"UnsetEnvironment": _unset("NIX_REMOTE")}
    if power.sockets:
        own["RestrictAddressFamilies"] = "AF_UNIX"
    if power.capabilities:  # of the host, which they are not in a user namespace
        own |= {"CapabilityBoundingSet": " ".join(power.capabilities), "PrivateUsers": None}
    if power.writes:
        own["ReadWritePaths"] = _absent(*power.writes)
        files = [path for path in power.writes if not path.startswith(("/proc/", "/sys/"))]  # those hold no programs
        own["NoExecPaths"] = " ".join(dict.fromkeys([*_NOWHERE_EXECUTABLE.split(), *_absent(*files).split()]))
    own |= _PARTICULAR.get(power.name, {})
    unit: Directives = {
        "Description": f"One act: {power.does}" + (" (%i)" if instance else ""),
        "StartLimitIntervalSec": "0",  # the helper limits how often; systemd would only forget why
        "CollectMode": "inactive",  # how a failed act ended is read afterwards: it is not forgotten by itself
    }
    return _unit(unit, Service=command | walls | own)


def _run(site: Site, arguments: str) -> Directives:
    """`python -I`: neither the environment nor the current directory says what is imported."""
    return {"ExecStart": f"{site.python} -I -m {arguments}", "UnsetEnvironment": _unset()}


def _unset(*but: str) -> str:
    return " ".join(name for name in _ENVIRONMENT if name not in but)


def _unit(unit: Directives, **sections: Directives) -> str:
    return "\n".join(f"[{name}]\n{_lines(section)}" for name, section in {"Unit": unit, **sections}.items())


def _lines(section: Directives) -> str:
    return "".join(
        f"{key}={value}\n"
        for key, given in section.items() if given is not None
        for value in (given if isinstance(given, tuple) else (given,))
    )  # fmt: skip
