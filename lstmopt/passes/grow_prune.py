"""The stage `GrowPrune`: prunes the LSTMs while it restores the accuracy by training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from lstmopt.errors import LstmoptError
from lstmopt.sparsity.formats import format_named
from lstmopt.sparsity.formats.shared import I8Shared
from lstmopt.sparsity.patterns import Pattern, Unstructured, parse_pattern

if TYPE_CHECKING:
    import onnx_ir as ir

    from lstmopt.bridge.module import OnnxModule
    from lstmopt.bridge.pace import Pace
    from lstmopt.bridge.pruning import Group, Matrix
    from lstmopt.bridge.rounding import Rounding
    from lstmopt.bridge.training import Length, Settings
    from lstmopt.pipeline import State

RATES = {"adam": 2e-3, "sgd": 1.0}
VALIDATION_CALLS = 8
LEAST_STEPS = 4
UNROLL = 8
"""Calls of a stream that a gradient goes through."""


@dataclass(frozen=True)
class GrowPrune:
    """Gradual magnitude pruning with distillation, from the dense model.

    The density falls along a cubic ramp, masks are renewed by magnitude on the way, part of the budget
    can go to weights that the gradient asks for, and the loss mixes the task's with the distance from a
    teacher (`State.teacher`, or the original). Where the data have no labels the teacher alone counts.

    Args:
        density: share of the LSTMs' weights that stay, over all layers; or a mapping from a layer's name
            to its own (a layer that is not named stays dense).
        pattern: which masks are legal, see `lstmopt.sparsity.patterns.parse_pattern`; None takes the
            target's first.
        epochs: passes over the training data, where neither steps nor seconds are given here or by
            `State.budget`.
        steps: optimiser steps.
        seconds: wall-clock seconds, from which the number of steps is found.
        batch: sequences a step.
        sequence: time steps a window.
        optimizer: "adam" or "sgd".
        learning_rate: at the start; None takes 0.002 for adam and 1 for sgd, and less in proportion where
            the training has fewer than 500 steps.
        clip: bound on the gradient's norm.
        dropout: probability on the LSTMs' inputs and outputs; None takes up to 0.2, less as the density
            falls, and none without labels or where the data are hardly seen twice.
        alpha: share of the distillation in the loss.
        temperature: of the distillation.
        regrow: share of the weights that is exchanged at the first renewal of the masks, falling to 0.
        mask_every: steps between renewals of the masks.
        ramp: share of the training in which the density falls.
        start_density: density at the first step.
        hold: share of the training in which the learning rate stays.
        final_rate: what is left of the learning rate at the end, as a share.
        rounding: name of the format of `lstmopt.sparsity.formats` to whose weights the pruned
            matrices are rounded; None leaves them in full. The model that comes out holds the rounded
            weights exactly. States and inputs, which some formats round too, are computed in full (or
            in bfloat16, see `amp`).
        rounding_share: share of the training, its last, that computes with rounded weights while the
            optimiser moves the full ones; 0 rounds the trained weights and no more.
        prune_decoder: density of the MatMul and Gemm weights that read the LSTMs; None leaves them dense.
        amp: compute products in bfloat16; None does so where the CPU does and it is faster, and not on a GPU,
            on which training is done where there is one that runs the graph.
        threads: of torch; None leaves its setting, and with a budget of time tries one thread as well.
        seed: None takes the state's.
    """

    density: float | Mapping[str, float] = 0.1
    pattern: str | None = None
    epochs: float = 4.0
    steps: int | None = None
    seconds: float | None = None
    batch: int = 32
    sequence: int = 64
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float | None = None
    clip: float = 5.0
    dropout: float | None = None
    alpha: float = 0.5
    temperature: float = 1.0
    regrow: float = 0.3
    mask_every: int = 50
    ramp: float = 0.5
    start_density: float = 0.5
    hold: float = 0.4
    final_rate: float = 0.02
    rounding: str | None = None
    rounding_share: float = 0.1
    prune_decoder: float | None = None
    amp: bool | None = None
    threads: int | None = None
    seed: int | None = None

    name: ClassVar[str] = "grow-prune"
    needs: ClassVar[tuple[str, ...]] = ("model", "data")
    gives: ClassVar[tuple[str, ...]] = ("masks",)

    def __post_init__(self) -> None:
        densities = {"density": self.density} if isinstance(self.density, float | int) else self.density
        shares = {
            **{
                f"density of {name}" if name != "density" else name: value
                for name, value in densities.items()
            },
            "prune_decoder": self.prune_decoder,
            "start_density": self.start_density,
            "ramp": self.ramp,
            "hold": self.hold,
            "final_rate": self.final_rate,
            "alpha": self.alpha,
            "regrow": self.regrow,
            "dropout": self.dropout,
            "rounding_share": self.rounding_share,
        }
        for name, value in shares.items():
            if value is not None and not 0 <= value <= 1:
                raise LstmoptError(f"GrowPrune {name}", f"{value} is not within 0..1", "give a share")
        positive = ("epochs", "steps", "seconds", "batch", "sequence", "clip", "temperature", "mask_every")
        for name in (*positive, "learning_rate", "threads"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise LstmoptError(f"GrowPrune {name}", f"{value} is not positive", "give a number above 0")
        if self.optimizer not in RATES:
            raise LstmoptError(f"GrowPrune optimizer {self.optimizer!r}", "is unknown", "use adam or sgd")
        if self.ramp >= 1:
            raise LstmoptError("GrowPrune ramp", "leaves no training at the target density", "give below 1")
        if self.pattern is not None:
            parse_pattern(self.pattern)
        if self.rounding is not None:
            format_named(self.rounding)
            if self.ramp > 1 - self.rounding_share:
                raise LstmoptError(
                    "GrowPrune rounding_share",
                    f"{self.rounding_share} of the training begins before the density is reached",
                    f"give at most {1 - self.ramp:g}, or a shorter ramp",
                )

    def run(self, state: State) -> State:
        """Returns the state with the pruned and trained model and its masks.

        Raises:
            LstmoptError: there is nothing to prune, an operator cannot be trained through, or the
                training diverged.
        """
        import numpy as np
        import torch

        from lstmopt.bridge.batching import free_batch
        from lstmopt.bridge.module import OnnxModule, write_back
        from lstmopt.bridge.placing import placed_for_training
        from lstmopt.bridge.pruning import Pruner
        from lstmopt.bridge.runner import ModuleRunner, Stream, output_variances
        from lstmopt.bridge.schedule import Schedule
        from lstmopt.bridge.training import Trainer, has_native_bfloat16
        from lstmopt.passes.candidates import heaviest_call
        from lstmopt.tasks.base import with_interface
        from lstmopt.tasks.examples import Distillation

        task, data = state.task, state.data
        pattern = parse_pattern(state.target.pattern if self.pattern is None else self.pattern)
        if self.amp and not (torch.cuda.is_available() or has_native_bfloat16()):
            raise LstmoptError("GrowPrune amp", "this CPU does not compute in bfloat16", "leave amp out")
        with _threads(self.threads), ExitStack() as stack:
            module = OnnxModule(state.model)
            settings = self._settings(state)
            unreached = _unreached(state, module, settings)
            groups = self._groups(state.model, module, pattern, unreached)
            rounding, notes = self._rounding(module, groups)
            notes += _left_dense(state.model, module, groups, unreached)
            source = state.teacher if state.teacher is not None else state.original
            teacher = None
            if self.alpha > 0 or not state.labelled or module.cuts:
                source, teacher = _teacher(source, module.cuts)
            original = teacher if source is state.original else None
            if original is None:
                original = OnnxModule(state.original).eval().requires_grad_(False)
            used = {
                id(each): (each, partial(heaviest_call, graph, state.target, 0))
                for graph, each in (
                    (state.model, module),
                    (state.original, original),
                    *(() if teacher is None else ((source, teacher),)),
                )
            }
            where = stack.enter_context(placed_for_training(list(used.values())))
            interface = free_batch(task.interface, state.model, module)
            trained = with_interface(task, interface)
            length, epoch_steps = self._length(replace(state, task=trained), settings)
            reference = ModuleRunner(state.original, original)
            student = ModuleRunner(state.model, module)
            limit = VALIDATION_CALLS * settings.batch * (settings.sequence if task.name == "lm" else 1)

            def validate() -> float:
                return float(task.evaluate(student, data.valid, reference=reference, limit=limit).loss)

            stream = None if teacher is None else Stream(source, teacher, interface)
            if stream is not None and isinstance(trained, Distillation):
                batches = trained.calls(data.train, settings.batch, np.random.default_rng(settings.seed))
                trained = replace(trained, variances=output_variances(stream, batches, trained.compared))
            trainer = Trainer(
                task=trained,
                train=data.train,
                student=Stream(state.model, module, interface),
                teacher=stream,
                pruner=Pruner(module, groups, regrow=self.regrow > 0),
                rounding=rounding,
                schedule=Schedule(
                    start_density=self.start_density,
                    ramp=self.ramp,
                    hold=self.hold,
                    final_rate=self.final_rate,
                    regrow=self.regrow,
                    rounded=self.rounding_share,
                ),
                settings=settings,
                length=length,
                epoch_steps=epoch_steps,
                validate=validate,
                path=state.workdir / "checkpoint.safetensors",
                key=repr(
                    (self, settings.seed, sorted((n, tuple(w.shape)) for n, w in module.weights.items()))
                ),
                progress=state.progress,
                pace=self._pace(length, module),
            )
            loss = trainer.run()
        state.progress(f"trained, loss {loss:.4f} on the first part of the validation data", 1.0)
        return replace(
            state,
            model=write_back(state.model, module),
            masks={name: mask.cpu().numpy() for name, mask in module.masks.items()},
            pattern=str(pattern),
            rounding=self.rounding,
            notes=(
                *state.notes,
                *(note for note in (*module.notes, *notes, *where) if note not in state.notes),
            ),
        )

    def _pace(self, length: Length, module: OnnxModule) -> Pace | None:
        """Returns what finds the fastest number of threads, where time counts.

        So many steps give the same weights each time, which another number of threads would not.
        """
        import torch

        from lstmopt.bridge.pace import Pace

        if self.threads is not None or length.seconds is None or module.device.type != "cpu":
            return None
        return Pace((torch.get_num_threads(), 1))

    def _rounding(self, module: OnnxModule, groups: list[Group]) -> tuple[Rounding | None, tuple[str, ...]]:
        """Returns what rounds the pruned matrices, and what the user should know of it."""
        from lstmopt.bridge.rounding import Rounding

        if self.rounding is None:
            return None, ()
        item = format_named(self.rounding)
        matrices = [
            m for group in groups for m in group.matrices if m.gates or not isinstance(item, I8Shared)
        ]
        share = f"{self.rounding_share:.0%} of the training"
        note = f"pruned weights are rounded to {self.rounding}, and were so in the last {share}"
        return Rounding(module, matrices, item), (note,)

    def _groups(
        self, model: ir.Model, module: OnnxModule, pattern: Pattern, unreached: Sequence[str]
    ) -> list[Group]:
        from lstmopt.bridge.pruning import Group, decoder_matrices, recurrent_matrices

        layers = recurrent_matrices(model, module, unreached)
        if not layers:
            fault, mend = (
                ("no call of the training data reaches an LSTM or GRU", "give data that do with --data")
                if unreached
                else ("the model has no LSTM or GRU weights that can be pruned", "see lstmopt inspect")
            )
            raise LstmoptError("GrowPrune", fault, mend)
        groups: list[Group] = []
        if isinstance(self.density, Mapping):
            unknown = [name for name in self.density if name not in layers]
            if unknown:
                reached = unknown[0] not in unreached
                fault = "no such layer" if reached else "no call of the training data reaches it"
                raise LstmoptError(
                    f"GrowPrune density of {unknown[0]}", fault, f"name one of {', '.join(layers)}"
                )
            groups += [Group(layers[name], pattern, value) for name, value in self.density.items()]
        else:
            everything: tuple[Matrix, ...] = sum(layers.values(), ())
            groups.append(Group(everything, pattern, self.density))
        if self.prune_decoder is not None:
            taken = {matrix.weight for group in groups for matrix in group.matrices}
            decoder = tuple(m for m in decoder_matrices(model, module) if m.weight not in taken)
            if not decoder:
                raise LstmoptError(
                    "GrowPrune prune_decoder", "no MatMul or Gemm reads the LSTMs", "leave it out"
                )
            groups.append(Group(decoder, Unstructured(), self.prune_decoder))
        return groups

    def _settings(self, state: State) -> Settings:
        from lstmopt.bridge.training import Settings

        return Settings(
            batch=self.batch,
            sequence=self.sequence,
            optimizer=self.optimizer,
            learning_rate=RATES[self.optimizer] if self.learning_rate is None else self.learning_rate,
            # Calls of a language model are windows of many steps; others may be a single step.
            unroll=UNROLL if state.task.interface.states and state.task.name != "lm" else 1,
            cautious=self.learning_rate is None,
            clip=self.clip,
            # A teacher's outputs are worth learning exactly: nothing is dropped where they are all there is.
            dropout=self.dropout if state.labelled or self.dropout is not None else 0.0,
            alpha=self.alpha,
            temperature=self.temperature,
            mask_every=self.mask_every,
            seed=state.seed if self.seed is None else self.seed,
            amp=self.amp,
        )

    def _length(self, state: State, settings: Settings) -> tuple[Length, int]:
        """Returns how long to train, and the steps of an epoch."""
        import numpy as np

        from lstmopt.bridge.training import Length

        rng = np.random.default_rng(0)
        part = state.data.train
        each = sum(
            1 for _ in state.task.batches(part, batch=settings.batch, sequence=settings.sequence, rng=rng)
        )
        if not each:
            raise LstmoptError(
                "data",
                f"gives no training batch of {settings.batch} x {settings.sequence}",
                "give more data, or a smaller GrowPrune(batch=...)",
            )
        each = -(-each // settings.unroll)
        budget = state.budget
        if self.seconds is not None or (self.steps is None and budget.seconds is not None):
            return Length(seconds=self.seconds if self.seconds is not None else budget.seconds), each
        steps = self.steps if self.steps is not None else budget.steps
        if steps is None:
            steps = max(1, round(self.epochs * each))
        return Length(steps=max(LEAST_STEPS, steps)), each


def _unreached(state: State, module: OnnxModule, settings: Settings) -> list[str]:
    """Returns the layers in bodies that no call of the training data reaches: nothing would restore them."""
    import numpy as np

    from lstmopt.bridge.pruning import results_in_bodies
    from lstmopt.bridge.runner import Stream, computed

    inside = results_in_bodies(state.model)
    if not inside:
        return []
    rng = np.random.default_rng(settings.seed)
    batches = state.task.batches(state.data.train, batch=settings.batch, sequence=settings.sequence, rng=rng)
    values = {value for value in inside.values() if value is not None}
    found = computed(Stream(state.model, module, state.task.interface), batches, values)
    return [name for name, value in inside.items() if value not in found]


def _left_dense(
    model: ir.Model, module: OnnxModule, groups: Sequence[Group], unreached: Sequence[str]
) -> tuple[str, ...]:
    """Returns what the user should know of layers that no training call reaches."""
    from lstmopt.bridge.pruning import read_weights

    if not unreached:
        return ()
    read, weights = {layer.name: names for layer, names in read_weights(model).items()}, module.weights
    density = {matrix.weight: group.density for group in groups for matrix in group.matrices}
    notes = [
        f"{name}: no call of the training data reaches it, but it shares weights with a layer that is pruned"
        if any(weight in density for weight in read[name])
        else f"{name} keeps its weights: no call of the training data reaches it"
        for name in unreached
    ]
    sizes = {name: weights[name].numel() for names in read.values() for name in names if name in weights}
    share = sum(size * density.get(name, 1.0) for name, size in sizes.items()) / sum(sizes.values())
    return (*notes, f"{share:.0%} of all LSTM and GRU weights stay, those of such layers among them")


def _teacher(source: ir.Model, cuts: Sequence[str]) -> tuple[ir.Model, OnnxModule]:
    """Returns a teacher whose activations at the cuts are captured, and its graph.

    Where the user's graph does not name them, its simplified form does: that is what is trained.
    """
    from lstmopt.bridge.module import OnnxModule
    from lstmopt.bridge.program import named_values
    from lstmopt.passes.simplify import simplify

    if not set(cuts) <= set(named_values(source)):
        source, _ = simplify(source)
    teacher = OnnxModule(source).eval().requires_grad_(False)
    teacher.capture(cuts)
    return source, teacher


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
