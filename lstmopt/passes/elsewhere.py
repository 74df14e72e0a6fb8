"""Targets that are another machine: models are written for it, latency tables stand in for its speed.

Nothing is timed there. What is known of accuracy comes from what stands in for the runtime, see
`runtimes.stand_in`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lstmopt.errors import LstmoptError
from lstmopt.measure.kind import Kind
from lstmopt.measure.statistics import Ratio, Timing
from lstmopt.measure.table import LatencyTable
from lstmopt.passes.latency import LatencyModel, Layer, called_layers, fitting, latency_models
from lstmopt.rnn.reader import find_rnns
from lstmopt.runtimes import runtime

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.passes.candidates import Built
    from lstmopt.targets import Target


def is_elsewhere(target: Target) -> bool:
    """Whether no runtime of a target runs here, and one can be written for."""
    statuses = [runtime(item.runtime).status() for item in target.runtimes]
    return not any(status.usable for status in statuses) and any(status.ahead for status in statuses)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What latency tables predict, in the place of a `measure.Comparison`.

    Attributes:
        latency_us: by candidate: of the layers that can change, everything else left out.
    """

    latency_us: Mapping[str, float]
    trusted = False
    kept_interrupted = False

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates."""
        return tuple(self.latency_us)

    def timing(self, name: str) -> Timing:
        """Returns a candidate's latency, of 0 samples."""
        value = self.latency_us[name]
        return Timing(median=value, p10=value, p90=value, p99=value, low=value, high=value, samples=0)

    def ratio(self, name: str, other: str) -> Ratio:
        """Returns the latency of one candidate over another's; how far it is off is not known."""
        value = self.latency_us[name] / self.latency_us[other]
        return Ratio(value=value, low=value, high=value)


def predict(
    builds: Sequence[Built], original: ir.Model, tables: Sequence[LatencyTable], target: Target
) -> Prediction:
    """Returns what every deployment of every model would take; names are `candidates.key`.

    Args:
        builds: the models: the original, or such with other hidden sizes.
        original: whose layers the tables are of.
        tables: measured on the target.
        target: for threads and shape.

    Raises:
        LstmoptError: the tables do not tell it.
    """
    from lstmopt.passes.candidates import key

    models = {model.kind: model for model in latency_models(original, tables, (), target)}
    found = {}
    for built in builds:
        sizes = {
            layer.name: layer.weights.hidden_size
            for layer in find_rnns(built.model)
            if layer.weights is not None
        }
        for deployment in built.deployments:
            model = models.get(Kind(deployment.runtime, deployment.precision))
            if model is None:
                raise untold(original, tables, target, deployment.runtime, deployment.precision)
            found[key(built.name, deployment)] = _predicted(model, sizes)
    return Prediction(found)


def _predicted(model: LatencyModel, sizes: Mapping[str, int]) -> float:
    return model.predict({name: sizes[name] for name in model.tables})


def untold(
    model: ir.Model, tables: Sequence[LatencyTable], target: Target, name: str, precision: str
) -> LstmoptError:
    """Returns the error of tables that leave a layer out.

    Args:
        model: the original.
        tables: that were given.
        target: where it would run.
        name: of the runtime.
        precision: in it.
    """
    lacking = [
        layer
        for layer in called_layers(model, target)
        if not any((t.runtime, t.precision) == (name, precision) for t in fitting(tables, layer, target))
    ]
    given = f"{len(tables)} latency tables" if tables else "no latency table"
    what = "of any layer that can change"
    if lacking:
        batch, steps = lacking[0].call(target)
        what = f"of {_told(lacking[0])} (batch {batch}, {steps} steps, {target.threads} thread(s))"
    return LstmoptError(
        f"target {target.name}",
        f"{name} does not run here ({runtime(name).status().reason}), and {given} given tells its latency "
        f"in {precision} {what}",
        "run lstmopt probe on the target, and give its tables with --latency-table, or run this there",
    )


def _told(layer: Layer) -> str:
    inputs = layer.hidden_size if layer.input_size is None else layer.input_size
    return f"{layer.name}, {layer.cell}, input size {inputs}, hidden size {layer.hidden_size}"
