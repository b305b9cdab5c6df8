"""Gates of other packages (`genrec.gates`): what one is given, what it must give back, and who it is from.

Those named in `plugins.gates` of params.yaml judge every candidate of a night, a calibration and a bench, after
genrec's own. A package that is not there, or fails, stops the night: a gate somebody asked for is never left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from genrec.config import Params
from genrec.errors import ConfigError, PluginError, unknown
from genrec.evaluation.gates import CHECKS, IN_WORDS, SHIPPED, Gate, verdict_of
from genrec.evaluation.statistics import Measure
from genrec.models.bundle import Bundle
from genrec.plugins import Plugin, guarded, installed, parameters
from genrec.section import Section

if TYPE_CHECKING:
    from genrec.evaluation.judge import Erased, Forgotten, Measured


@dataclass(frozen=True, eq=False)
class Judged:
    """A candidate and what it is compared with.

    erased: the data without and with the forgotten rows, limits and bootstrap; groups: what is forgotten; champion and
    `before`, the champion as measured; candidate and `after`; exact: the candidate never saw the rows.
    """

    erased: "Erased"
    groups: "Sequence[Forgotten]"
    champion: Bundle
    before: "Measured"
    candidate: Bundle
    after: "Measured"
    exact: bool


class GateRule(Section):
    """A gate of another package. Its fields are its parameters, the keys of `plugins.gates.<name>`."""

    def __call__(self, judged: Judged) -> Gate | None:
        """The gate, made by `gates.from_measure` and named as the entry point is; None where it does not apply."""
        raise NotImplementedError


@dataclass(frozen=True)
class NamedRule:
    """A rule with its parameters, and the plugin it is."""

    plugin: Plugin
    rule: GateRule

    def judge(self, judged: Judged) -> list[Gate]:
        """Its gate, if it has one. Raises PluginError where it fails, or its verdict is not that of its figures."""
        return guarded(self.plugin, lambda judged: self._checked(self.rule(judged)), PluginError)(judged)

    def _checked(self, gate: Gate | None) -> list[Gate]:
        if gate is None:
            return []
        plain = replace(
            gate, value=float(gate.value), low=float(gate.low), high=float(gate.high), n=int(gate.n),
            limit=tuple(map(float, gate.limit)) if isinstance(gate.limit, tuple) else float(gate.limit),
        )  # fmt: skip
        expected = {"PASS", "FAIL", "INCONCLUSIVE"}
        if gate.check in CHECKS:
            measure = Measure(plain.value, plain.low, plain.high, plain.n)
            expected = {verdict_of(measure, gate.check, plain.limit), "INCONCLUSIVE"}
        if gate.name != self.plugin.name or gate.check not in (*CHECKS, IN_WORDS) or gate.verdict not in expected:
            told = f"{gate.name!r}, check {gate.check!r}, verdict {gate.verdict!r}"
            raise PluginError(f"The {self.plugin} gave {told}, one of which is wrong. Make it with gates.from_measure.")
        return [plain]


def plugins() -> dict[str, Plugin]:
    """The gates of other installed packages, none of them imported."""
    return installed("gate", SHIPPED)


def rules(params: Params) -> tuple[NamedRule, ...]:
    """The gates of `plugins.gates`. Raises ConfigError for an unknown name or key, PluginError for a broken package."""
    found, others = [], plugins()
    for name, values in params.plugins.gates.items():
        if name not in others:
            remedy = "Install its package, on GPU workers too, or take it out of plugins.gates in params.yaml."
            raise ConfigError(unknown("installed gate", name, others, remedy))
        rule = others[name].load(GateRule, subclass=True)
        found.append(NamedRule(others[name], parameters(rule, values, f"plugins.gates.{name}")))
    return tuple(found)
