"""Reads the weights of a written-out cell by evaluating it, and proves that it is one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from lstmopt.errors import LstmoptError
from lstmopt.rnn.cells import GRU
from lstmopt.rnn.recognition.cells import Cell
from lstmopt.rnn.recognition.regions import Constants, Operand, Region, Rows, Unfit, evaluate_rows, form
from lstmopt.rnn.recognition.tracing import leaves, origin
from lstmopt.rnn.weights import RnnWeights

EXACT = 1e-9
"""Relative difference in float64 that rounding explains."""

TRIALS = 4
"""Random rows of each cell: an affine function that agrees on them is the same one."""

BLOCK = 1024
"""Basis vectors that are evaluated at a time, which bounds the memory."""

Shapes = Callable[[list[ir.Value]], Mapping[ir.Value, tuple[int, ...]]]
"""Gives the shapes that values had in an actual call."""


@dataclass(frozen=True, eq=False)
class Frame:
    """A cell with what it reads.

    Attributes:
        cell: what was found.
        inputs: what it reads beside states, in the order of its graph.
        h: the old hidden state; None where it is zero and was folded away.
        c: an LSTM's old cell state.
        product: of a GRU, see `Cell`.
        new: the new states.
    """

    cell: Cell
    inputs: tuple[Operand, ...]
    h: Operand | None
    c: Operand | None
    product: Operand | None
    new: tuple[Operand, ...]

    @property
    def hidden_size(self) -> int:
        """Units."""
        return self.new[0].features

    @property
    def input_size(self) -> int:
        """Features of all inputs together."""
        return sum(item.features for item in self.inputs)


@dataclass(frozen=True)
class Reader:
    """Reads cells of one graph.

    Args:
        constants: of the model.
        opset: of the model.
        shapes: what shapes its values have.
    """

    constants: Constants
    opset: int
    shapes: Shapes

    def leaves(self, cell: Cell) -> dict[ir.Value, list[tuple[ir.Value, bool]]]:
        """Returns what the gates read: by origin, the values and whether a matrix lies between."""
        stops = {origin(value) for value in (cell.h_before, cell.product) if value is not None}
        ends = [act.inputs[0] for act in cell.activations.values()]
        found: dict[ir.Value, bool] = {}
        for end in ends + ([cell.reset] if cell.reset_after else []):
            if end is not None:
                for value, through in leaves(end, stops, self.constants).items():
                    found[value] = found.get(value, False) or through
        grouped: dict[ir.Value, list[tuple[ir.Value, bool]]] = {}
        for value, through in found.items():
            if value is not cell.product:
                grouped.setdefault(origin(value), []).append((value, through))
        return grouped

    def frame(self, cell: Cell, h: ir.Value | None) -> Frame:
        """Returns a cell with its operands.

        Args:
            cell: what was found.
            h: the origin of the old hidden state; None where the gates do not read it.

        Raises:
            Unfit: the operands are not batches of features.
        """
        grouped = self.leaves(cell)
        if h is not None and h not in grouped:
            raise Unfit("the hidden state is not read")
        for value in cell.states:
            if value.dtype not in (None, ir.DataType.FLOAT):
                raise Unfit(f"it computes in {value.dtype.name.lower()}, and a layer in float32")
        extra = [value for value in (*cell.states, cell.before[-1], cell.product) if value is not None]
        wanted = [value for group in grouped.values() for value, _ in group] + extra
        shapes = self.shapes(wanted)

        def operand(*values: ir.Value) -> Operand:
            return Operand(values, [shapes[value] for value in values])

        inputs = [operand(*(v for v, _ in group)) for key, group in grouped.items() if key is not h]
        if not inputs:
            raise Unfit("reads no input")
        state = None if h is None else [value for value, _ in grouped[h]]
        if cell.spec is GRU and cell.before[0] is not None and state is not None:
            state += [value for value in {cell.before[0], *([cell.reset] if not cell.reset_after else [])}
                      if value is not None and value not in state]  # fmt: skip
            shapes = {**shapes, **self.shapes(state)}
        return Frame(
            cell=cell,
            inputs=tuple(inputs),
            h=None if state is None else operand(*state),
            c=operand(cell.before[1]) if len(cell.before) > 1 and cell.before[1] is not None else None,
            product=None if cell.product is None else operand(cell.product),
            new=tuple(operand(value) for value in cell.states),
        )

    def weights(self, frame: Frame) -> RnnWeights:
        """Returns the weights in float64: what the gates are on basis vectors.

        Raises:
            Unfit: a gate is no affine function of the operands, or not of the cell's form.
        """
        cell, hidden, count = frame.cell, frame.hidden_size, frame.input_size
        operands = [
            *frame.inputs,
            *([frame.h] if frame.h else []),
            *([frame.product] if frame.product else []),
        ]
        values = [cell.gates[name] for name in cell.spec.gates]
        if cell.reset_after:
            assert cell.reset is not None
            values.append(cell.reset)
        region = self._region(values, operands, cell, bypass=True)
        total = sum(operand.features for operand in operands)
        cuts = np.cumsum([operand.features for operand in operands])[:-1]
        blocks = []
        for begin in range(0, total + 1, BLOCK):
            # Row 0 is zero, row n has a one in column n - 1.
            basis = np.eye(min(BLOCK, total + 1 - begin), total, begin - 1)
            blocks.append(evaluate_rows(region, operands, np.split(basis, cuts, axis=1)))
        results = [np.concatenate(parts) for parts in zip(*blocks, strict=True)]
        if any(result.shape[1] != hidden for result in results):
            raise Unfit("gates of another size")
        bias = [result[0] for result in results]
        maps = [(result[1:] - result[0]).T for result in results]
        signs = [-1.0 if name in cell.negated else 1.0 for name in cell.spec.gates]
        zeros = np.zeros((hidden, hidden))
        has_h = frame.h is not None
        w = [sign * part[:, :count] for sign, part in zip(signs, maps, strict=False)]
        r = [
            sign * part[:, count : count + hidden] if has_h else zeros
            for sign, part in zip(signs, maps, strict=False)
        ]
        wb = [sign * part for sign, part in zip(signs, bias, strict=False)]
        rb = [np.zeros(hidden) for _ in signs]
        if frame.product is not None:
            of_product = [part[:, -frame.product.features :] for part in maps]
            if any(np.any(part) for part in (*of_product[:2], *of_product[3:])) or np.any(r[2]):
                raise Unfit("the reset gate acts elsewhere")
            if cell.reset_after:
                if not np.allclose(of_product[2], np.eye(hidden), atol=EXACT) or np.any(maps[3][:, :count]):
                    raise Unfit("the reset gate acts elsewhere")
                r[2] = maps[3][:, count : count + hidden] if has_h else zeros
                rb[2] = bias[3]
            else:
                r[2] = of_product[2]
        b = np.stack([np.stack(wb), np.stack(rb)])
        return RnnWeights(
            cell.spec,
            "forward",
            np.stack(w)[None],
            np.stack(r)[None],
            b[None],
            reset_after=cell.reset_after,
        )

    def prove(self, frame: Frame, weights: RnnWeights, seed: int) -> None:
        """Checks on random rows, in float64, that a cell computes what its weights say.

        Raises:
            Unfit: it does not.
        """
        rng = np.random.default_rng(seed)
        operands = list(frame.inputs)
        rows = [rng.standard_normal((TRIALS, operand.features)) for operand in operands]
        x = np.concatenate(rows, axis=1)
        states: list[Rows] = []
        for operand in (frame.h, frame.c):
            if operand is not None and states and frame.h is not None and operand.value in frame.h.values:
                states.append(states[0])  # both states start as one value
                continue
            states.append(np.zeros((TRIALS, frame.hidden_size)))
            if operand is not None:
                states[-1] = rng.standard_normal((TRIALS, frame.hidden_size))
                operands.append(operand)
                rows.append(states[-1])
        region = self._region(list(frame.cell.states), operands, frame.cell, bypass=False)
        expected = step(weights, x, states[0], states[1])
        got = evaluate_rows(region, operands, rows)
        for one, other in zip(got, expected, strict=False):
            if one.shape != other.shape or not np.allclose(
                one, other, rtol=0, atol=EXACT * max(1.0, float(np.abs(weights.w).max()))
            ):
                raise Unfit("is not the cell that it looks like")

    def form(self, frame: Frame) -> Hashable:
        """Returns what a cell has in common with others of which `prove` says the same."""
        operands = [*(("x", item) for item in frame.inputs), ("h", frame.h), ("c", frame.c)]
        leaves: dict[ir.Value, Hashable] = {}
        for place, (kind, operand) in enumerate(operands):
            for index, value in enumerate(() if operand is None else operand.values):
                leaves.setdefault(value, (kind, place, index))
        shapes = tuple(None if item is None else item.shapes for _, item in operands)
        return form(frame.cell.states, leaves), shapes

    def _region(self, values: list[ir.Value], operands: list[Operand], cell: Cell, bypass: bool) -> Region:
        ends = {value for operand in operands for value in operand.values}
        nodes = set(cell.activations.values()) if bypass else set()
        try:
            region = Region(values, ends, self.constants, self.opset, nodes)
        except LstmoptError as error:
            raise Unfit(error.fault) from error
        if not set(region.inputs) <= ends:
            raise Unfit("depends on something else")
        return region


def step(weights: RnnWeights, x: Rows, h: Rows, c: Rows) -> tuple[Rows, ...]:
    """Returns a cell's new states for rows of its input and states, by ONNX's equations, in float64."""
    assert weights.b is not None
    w, r, wb, rb = weights.w[0], weights.r[0], weights.b[0, 0], weights.b[0, 1]
    mine = {name: x @ w[k].T + wb[k] for k, name in enumerate(weights.cell.gates)}
    theirs = {name: h @ r[k].T + rb[k] for k, name in enumerate(weights.cell.gates)}
    if weights.cell is GRU:
        z, reset = (_sigmoid(mine[name] + theirs[name]) for name in ("z", "r"))
        inner = reset * theirs["h"] if weights.reset_after else (reset * h) @ r[2].T + rb[2]
        n = np.tanh(mine["h"] + inner)
        return ((1 - z) * n + z * h,)
    i, o, f = (_sigmoid(mine[name] + theirs[name]) for name in ("i", "o", "f"))
    c_new = f * c + i * np.tanh(mine["c"] + theirs["c"])
    return o * np.tanh(c_new), c_new


def _sigmoid(z: Rows) -> Rows:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * z)))
