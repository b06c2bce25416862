"""What systemd lets the helper do, as polkit's rule, and the actions about which the helper asks polkit. [pure]"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from ..privileged.ways import POWERS, PREFIX, UNIT_PATTERN, Power
from .units import EXECUTOR, File, Site

# Of an allowed unit. After its start limit a unit restarts only once it is reset; limits are set as properties,
# because what is written to its cgroup reverts at the next daemon-reload.
VERBS: Final = ("restart", "reload", "reset-failed", "set-property")
# systemd 252 lets anybody do this without asking; later versions ask.
RESOLVER: Final = ("org.freedesktop.resolve1.flush-caches", "org.freedesktop.resolve1.reset-server-features")

# The project's own: what a person at the desktop is asked for → the words, and for an active session.
ACTIONS: Final[Mapping[str, tuple[str, str]]] = MappingProxyType({
    "org.luminous.healing.restart": ("restart, reload or limit a service to heal it", "auth_admin_keep"),
    "org.luminous.healing.collect": ("collect unused software, journal files and temporary files", "auth_admin_keep"),
    "org.luminous.healing.kill": ("end a process to heal this computer", "auth_admin"),
    "org.luminous.healing.act": ("change this computer to heal it", "auth_admin"),
    "org.luminous.healing.rollback": ("switch to, activate or remove a generation of the system", "auth_admin"),
})  # fmt: skip


def polkit_files(site: Site) -> Mapping[str, File]:
    """Path → file. The rule comes early: the first one that answers decides."""
    return MappingProxyType({
        f"{site.rules_directory}/10-luminous-healing.rules": File(rule(site.allowed_units)),
        f"{site.actions_directory}/org.luminous.healing.policy": File(actions()),
    })  # fmt: skip


def act_patterns(allowed: Iterable[str], *, stoppable: bool = False) -> tuple[str, ...]:
    """Anchored regular expressions of the act units that the helper may start; `stoppable` those that it may end in
    the middle: never the system's own switch."""
    units = tuple(allowed)
    powers = (power for power in POWERS.values() if not (stoppable and power.root))
    return tuple(pattern for power in powers if (pattern := _pattern(power, units)) is not None)


def _pattern(power: Power, allowed: tuple[str, ...]) -> str | None:
    start = f"^{re.escape(PREFIX + power.name)}"
    if power.instance is None:
        return rf"{start}\.service$"
    instance = power.instance
    if power.allowed:
        if not allowed:
            return None
        if not instance.startswith(UNIT_PATTERN):
            raise ValueError(f"{power.name} must begin with an allowed unit")
        instance = f"(?:{'|'.join(map(re.escape, allowed))})" + instance.removeprefix(UNIT_PATTERN)
    return rf"{start}@(?:{instance})\.service$"


def rule(allowed: Iterable[str]) -> str:
    """The rule, in JavaScript. A detail that systemd does not send is undefined, and a regular expression would be
    tried on the word "undefined": so its type is looked at first."""
    units = tuple(allowed)
    return _RULE % {
        "user": json.dumps(EXECUTOR),
        "units": _array(units),
        "verbs": _array(VERBS),
        "acts": _array(act_patterns(units)),
        "stoppable": _array(act_patterns(units, stoppable=True)),
        "resolver": _array(RESOLVER),
    }


def _array(words: Iterable[str]) -> str:
    inner = ",\n".join(f"        {json.dumps(word)}" for word in words)
    return f"[\n{inner}\n    ]" if inner else "[]"


_RULE: Final = """\
// Made by luminous-healing install, from its allow-list: do not edit.
polkit.addRule(function(action, subject) {
    if (subject.user !== %(user)s) {
        return polkit.Result.NOT_HANDLED;
    }
    var units = %(units)s;
    var verbs = %(verbs)s;
    var acts = %(acts)s;
    var stoppable = %(stoppable)s;
    var resolver = %(resolver)s;
    if (resolver.indexOf(action.id) >= 0) {
        return polkit.Result.YES;
    }
    if (action.id !== "org.freedesktop.systemd1.manage-units") {
        return polkit.Result.NO;
    }
    var unit = action.lookup("unit");
    var verb = action.lookup("verb");
    if (typeof unit !== "string" || typeof verb !== "string") {
        return polkit.Result.NO;
    }
    if (verbs.indexOf(verb) >= 0 && units.indexOf(unit) >= 0) {
        return polkit.Result.YES;
    }
    // Never of a unit that is not ours: a transient one of an absent name would run whatever the asker likes.
    var ours = verb === "start" || verb === "reset-failed" ? acts : verb === "stop" ? stoppable : [];
    for (var i = 0; i < ours.length; i++) {
        if (new RegExp(ours[i]).test(unit)) {
            return polkit.Result.YES;
        }
    }
    return polkit.Result.NO;
});
"""


def actions() -> str:
    """The actions, in XML. Never a plain yes: who sits at the screen is not thereby the administrator."""
    rows = "".join(
        f"""\
  <action id="{name}">
    <description>{words[0].upper()}{words[1:]}</description>
    <message>Authentication is required to {words}</message>
    <defaults>
      <allow_any>auth_admin</allow_any>
      <allow_inactive>auth_admin</allow_inactive>
      <allow_active>{active}</allow_active>
    </defaults>
    <annotate key="org.freedesktop.policykit.owner">unix-user:{EXECUTOR}</annotate>
  </action>
"""
        for name, (words, active) in ACTIONS.items()
    )
    return f"{_XML}<policyconfig>\n  <vendor>Luminous Dynamics</vendor>\n{rows}</policyconfig>\n"


_XML: Final = """\
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE policyconfig PUBLIC "-//freedesktop//DTD PolicyKit Policy Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/PolicyKit/1/policyconfig.dtd">
<!-- Made by luminous-healing install: do not edit. -->
"""
