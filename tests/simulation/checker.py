"""The invariants that show over a whole cycle: records, what was set back, and that nothing is forgotten."""

from __future__ import annotations

from .faults import Fault
from .host import POOL_OF, requires
from .rules import HOUR, Rules
from .sensors import is_trouble

_PATIENCE = 6  # cycles in which nothing stood in the way (I-24)


class Violation(BaseException):
    """An invariant does not hold."""


class Checker(Rules):
    """`before` and `after` each cycle; in between the handler tells of requests and acts."""

    def before(self) -> None:
        """A cycle begins."""
        self.shown.looks += 1
        self.broken = False
        if self.host.down:
            self._state_at_look = {
                name: state.active if not state.gave_up else "loop" for name, state in self.host.down.items()
            }
        if self.shown.values:
            self.shown.values.clear()

    def after(self) -> None:
        """A cycle is over."""
        if self.cycle:
            self._judge()
            if not self.broken and not self.ledger.fault:
                for what in self.ledger.incomplete(len(self.cycle)):
                    self.wrong("I-11", what)
            self.cycle.clear()
        self.acting = False
        if self._refused:
            self._refused.clear()
        if self.host.active:
            self._liveness()

    def _judge(self) -> None:
        """Whether the acts of this cycle had an effect, by cause; and whether what harmed was taken back."""
        for last in {deed.cause: deed for deed in self.cycle}.values():
            last.good = not self._still(last)
            if last.good:
                self.misses[last.cause].clear()
            else:
                self.misses[last.cause].append((last.started if last.ended is None else last.ended, last.look))
        for deed in self.cycle:
            visible = self.sensors["pressure"].ok and self.sensors["cpu"].ok and not self.trouble.any
            if deed.knobs and deed.effect == "harms" and visible and not (deed.restored or self.broken):
                self.wrong("I-11", f"{deed.action} did harm and was not set back")

    def _liveness(self) -> None:
        """What can be healed is tried soon, whatever else is stuck (I-24)."""
        host = self.host
        calm = (
            not host.moments and not self.stopped() and not self.ledger.fault and host.boot_clock() > 400.0
            and host.now - max(host.resumed_at, self.program_began) > 600.0 and len(host.active) <= 3
            and sum(host.now - deed.started < HOUR for deed in self.recent) < 8
        )  # fmt: skip
        for fault in host.active:
            if fault.tried or not fault.kind.healable or not fault.unit or not calm or not self._clear(fault):
                fault.calm_looks = 0
                continue
            fault.calm_looks += 1
            if fault.calm_looks == _PATIENCE:
                self.wrong("I-24", f"{fault.unit} ({fault.kind.name}) has been waiting for {_PATIENCE} calm cycles")

    def _clear(self, fault: Fault) -> bool:
        host, name = self.host, fault.unit
        state = host.down.get(name)
        return (
            state is not None and is_trouble(state) and len(host.faults_of(name)) == 1
            and not (state.gave_up and host.now - host.down_since[name] < 400.0)
            and self._together(name) < 3 and self.shown.recent_flips(name) <= 1
            and requires(name) not in host.down and POOL_OF[name] in {"watched", "plain"}
            and not any(deed.target == name for deed in self.deeds[-200:])
        )  # fmt: skip
