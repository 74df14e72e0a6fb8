"""LSTM and GRU: torch's fused kernels where they compute the same, a loop over time where they do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import _VF, Tensor
from torch.nn import functional as F

from lstmopt.bridge.node import Node, Op
from lstmopt.rnn.cells import GRU, LSTM, CellSpec
from lstmopt.rnn.scan import ALPHAS, BETAS

Activation = Callable[[Tensor], Tensor]
States = tuple[Tensor, ...]
Step = Callable[[Tensor, States], States]
"""One step: the gates' input part ``[batch, gates * hidden]`` and the states to the new states."""


def _named(name: str, alpha: float | None, beta: float | None) -> Activation | None:
    """Returns an activation of ONNX's recurrent operators; ONNX Runtime's parameters where none is given."""
    a = alpha if alpha is not None else ALPHAS.get(name.lower(), 0.0)
    b = beta if beta is not None else BETAS.get(name.lower(), 0.0)
    known: dict[str, Activation] = {
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "relu": torch.relu,
        "softsign": F.softsign,
        "softplus": F.softplus,
        "affine": lambda x: a * x + b,
        "leakyrelu": lambda x: F.leaky_relu(x, a),
        "thresholdedrelu": lambda x: torch.where(x >= a, x, torch.zeros_like(x)),
        "scaledtanh": lambda x: a * torch.tanh(b * x),
        "hardsigmoid": lambda x: (a * x + b).clamp(0, 1),
        "elu": lambda x: F.elu(x, a),
    }
    return known.get(name.lower())


def _activations(node: Node, cell: CellSpec, directions: int) -> list[tuple[Activation, ...]]:
    """Returns the activations of each direction, with the alphas and betas that theirs take."""
    names = tuple(node.get("activations") or cell.activations * directions)
    alphas, betas = list(node.get("activation_alpha") or ()), list(node.get("activation_beta") or ())
    made: list[Activation] = []
    for name in names:
        alpha = alphas.pop(0) if name.lower() in ALPHAS and alphas else None
        beta = betas.pop(0) if name.lower() in BETAS and betas else None
        function = _named(name, alpha, beta)
        if function is None:
            raise node.error(f"activation {name!r} is not supported")
        made.append(function)
    each = len(cell.activations)
    return [tuple(made[i * each : (i + 1) * each]) for i in range(directions)]


def is_default(node: Node, cell: CellSpec, directions: int) -> bool:
    """Whether a node has its cell's usual activations."""
    names = tuple(node.get("activations") or ())
    return not names or tuple(name.lower() for name in names) == tuple(
        name.lower() for name in cell.activations * directions
    )


@dataclass
class _Call:
    """Operands of one recurrent node, in ONNX's layout 0."""

    x: Tensor
    w: Tensor
    r: Tensor
    b: Tensor | None
    lengths: Tensor | None
    states: States
    directions: int
    backward: tuple[bool, ...]


def _operands(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    given: Sequence[Tensor | None],
) -> _Call:
    if node.get("layout", 0):
        x = x.transpose(0, 1)
        given = [None if state is None else state.transpose(0, 1) for state in given]
    direction = node.get("direction", "forward")
    directions = 2 if direction == "bidirectional" else 1
    # The fused kernel would read past the end of tensors that do not fit.
    expected = (directions, x.shape[1], r.shape[-1])
    for name, have, want in (
        ("X", x.shape[2:], w.shape[2:]),
        ("R", r.shape[:2], w.shape[:2]),
        *(("an initial state", tuple(state.shape), expected) for state in given if state is not None),
    ):
        if have != want:
            raise node.error(f"{name} has sizes {list(have)}, expected {list(want)}")
    zero = x.new_zeros(directions, x.shape[1], r.shape[-1])
    states = tuple(zero if state is None else state.to(x.dtype) for state in given)
    if lengths is not None and bool((lengths >= x.shape[0]).all()):
        lengths = None
    if lengths is not None:
        states = tuple(_begun(state, lengths) for state in states)
    backward = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
    if node.run.training and node.run.dropout > 0 and node.drop_input:
        x = F.dropout(x, node.run.dropout)
    return _Call(x, w, r, b, None if lengths is None else lengths.long(), states, directions, backward)


def _results(node: Node, y: Tensor, states: States) -> States:
    """Returns Y, then the last states; Y is dropped while fine-tuning, the states are carried whole."""
    if node.run.training and node.run.dropout > 0:
        y = F.dropout(y, node.run.dropout)
    if node.get("layout", 0):
        return (y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states))
    return (y, *states)


def _begun(values: Tensor, lengths: Tensor) -> Tensor:
    """Returns values ``[..., batch, hidden]``, zeros for sequences of length 0, as of ONNX Runtime."""
    return values.masked_fill((lengths < 1).unsqueeze(-1), 0)


def _turn(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverses time, of each sequence within its own length."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(x.shape[0], device=x.device).unsqueeze(1)
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)
    return x.gather(0, places.unsqueeze(-1).expand(x.shape))


def _fused(
    function: Callable[..., Any], call: _Call, order: tuple[int, ...], stateful: bool
) -> tuple[Tensor, States]:
    """Runs torch's kernel; Y is ``[sequence, directions, batch, hidden]``."""
    weights: list[Tensor] = []
    for direction in range(call.directions):
        weights += [reorder(call.w[direction], order), reorder(call.r[direction], order)]
        if call.b is not None:
            weights += [reorder(half, order) for half in call.b[direction].chunk(2)]
    single_reverse = call.backward == (True,)
    x = _turn(call.x, call.lengths) if single_reverse else call.x
    steps, batch = x.shape[:2]
    options = (call.b is not None, 1, 0.0, torch.is_grad_enabled(), call.directions == 2)
    if call.lengths is None:
        hx: Any = list(call.states) if stateful else call.states[0]
        y, *last = function(x, hx, weights, *options, False)
    else:
        y, last = _packed(function, x, call, weights, options, stateful)
    y = _turn(y, call.lengths) if single_reverse else y
    if single_reverse and call.lengths is not None:
        y = y * (torch.arange(steps, device=y.device).unsqueeze(1) < call.lengths).unsqueeze(-1)
    return y.reshape(steps, batch, call.directions, -1).transpose(1, 2), tuple(last)


def _packed(
    function: Callable[..., Any],
    x: Tensor,
    call: _Call,
    weights: list[Tensor],
    options: tuple[Any, ...],
    stateful: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The same over sequences of unequal lengths; outputs beyond a length are 0.

    torch packs no sequence of length 0: such a one runs for a step, and what it leaves is dropped.
    """
    from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

    assert call.lengths is not None
    packed = pack_padded_sequence(x, call.lengths.clamp(min=1).cpu(), enforce_sorted=False)
    assert packed.sorted_indices is not None and packed.unsorted_indices is not None
    states = [state.index_select(1, packed.sorted_indices) for state in call.states]
    data, *last = function(
        packed.data, packed.batch_sizes, states if stateful else states[0], weights, *options
    )
    output = PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
    y, _ = pad_packed_sequence(output, total_length=x.shape[0])
    last = [state.index_select(1, packed.unsorted_indices) for state in last]
    return _begun(y, call.lengths), [_begun(state, call.lengths) for state in last]


def reorder(matrix: Tensor, order: tuple[int, ...]) -> Tensor:
    """Puts the gates' rows into torch's order, differentiably."""
    gates = matrix.chunk(len(order))
    return torch.cat([gates[index] for index in order])


def _looped(call: _Call, steps: Sequence[Callable[[], tuple[Tensor, Step]]]) -> tuple[Tensor, States]:
    """Runs a cell step by step, for each direction by its own step."""
    outputs: list[Tensor] = []
    lasts: list[States] = []
    for direction, make in enumerate(steps):
        inputs, step = make()
        if call.backward[direction]:
            inputs = _turn(inputs, call.lengths)
        states = tuple(state[direction] for state in call.states)
        ys: list[Tensor] = []
        for time, row in enumerate(inputs.unbind(0)):
            new = step(row, states)
            y = new[0]
            if call.lengths is not None:
                alive = (time < call.lengths).unsqueeze(-1)
                new = tuple(torch.where(alive, a, b) for a, b in zip(new, states, strict=True))
                y = y * alive
            states = new
            ys.append(y)
        y = torch.stack(ys)
        if call.backward[direction]:
            y = _turn(y, call.lengths)
            if call.lengths is not None:
                alive = torch.arange(len(ys), device=y.device).unsqueeze(1) < call.lengths
                y = y * alive.unsqueeze(-1)
        outputs.append(y)
        lasts.append(states)
    return torch.stack(outputs, dim=1), tuple(torch.stack(state) for state in zip(*lasts, strict=True))


def _clipped(x: Tensor, bound: float | None) -> Tensor:
    return x if bound is None else x.clamp(-bound, bound)


def lstm(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
) -> States:
    """ONNX's LSTM: Y ``[sequence, directions, batch, hidden]``, Y_h, Y_c ``[directions, batch, hidden]``."""
    call = _operands(node, x, w, r, b, lengths, [initial_h, initial_c])
    bound = node.get("clip")
    plain = p is None and bound is None and not node.get("input_forget", 0)
    if plain and is_default(node, LSTM, call.directions):
        return _results(node, *_fused(_VF.lstm, call, LSTM.to_torch, stateful=True))
    activations = _activations(node, LSTM, call.directions)

    def make(direction: int) -> tuple[Tensor, Step]:
        bias = None if b is None else sum(b[direction].chunk(2))
        inputs = F.linear(call.x, w[direction], bias)  # type: ignore[arg-type]
        peepholes = {} if p is None else LSTM.by_peephole(p[direction].chunk(len(LSTM.peepholes)))
        f, g, h = activations[direction]

        def step(row: Tensor, states: States) -> States:
            hidden, cell = states
            product = row + hidden @ r[direction].t()
            gates = LSTM.by_gate(product.chunk(len(LSTM.gates), dim=-1))

            def opened(gate: str, seen: Tensor) -> Tensor:
                x = gates[gate] + peepholes[gate] * seen if peepholes else gates[gate]
                return f(_clipped(x, bound))

            i = opened("i", cell)
            forget = 1 - i if node.get("input_forget", 0) else opened("f", cell)
            cell = forget * cell + i * g(_clipped(gates["c"], bound))
            return opened("o", cell) * h(cell), cell

        return inputs, step

    return _results(node, *_looped(call, [lambda d=d: make(d) for d in range(call.directions)]))  # type: ignore[misc]


def gru(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
) -> States:
    """ONNX's GRU, either reset form."""
    call = _operands(node, x, w, r, b, lengths, [initial_h])
    bound, after = node.get("clip"), node.get("linear_before_reset", 0)
    if after and bound is None and is_default(node, GRU, call.directions):
        return _results(node, *_fused(_VF.gru, call, GRU.to_torch, stateful=False))
    activations = _activations(node, GRU, call.directions)

    def make(direction: int) -> tuple[Tensor, Step]:
        zero = w.new_zeros(w.shape[1])
        wb, rb = (zero, zero) if b is None else b[direction].chunk(2)
        inputs = F.linear(call.x, w[direction], wb)
        count = len(GRU.gates)
        matrices, biases = GRU.by_gate(r[direction].chunk(count)), GRU.by_gate(rb.chunk(count))
        f, g = activations[direction]

        def step(row: Tensor, states: States) -> States:
            (hidden,) = states
            given = GRU.by_gate(row.chunk(count, dim=-1))

            def product(gate: str, read: Tensor) -> Tensor:
                return F.linear(read, matrices[gate], biases[gate])

            z = f(_clipped(given["z"] + product("z", hidden), bound))
            reset = f(_clipped(given["r"] + product("r", hidden), bound))
            inner = reset * product("h", hidden) if after else product("h", reset * hidden)
            new = g(_clipped(given["h"] + inner, bound))
            return ((1 - z) * new + z * hidden,)

        return inputs, step

    return _results(node, *_looped(call, [lambda d=d: make(d) for d in range(call.directions)]))  # type: ignore[misc]


def rnn(
    node: Node,
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
) -> States:
    """ONNX's RNN, a layer without gates."""
    call = _operands(node, x, w, r, b, lengths, [initial_h])
    names = tuple(node.get("activations") or ("Tanh",) * call.directions)
    alphas, betas = list(node.get("activation_alpha") or ()), list(node.get("activation_beta") or ())
    bound = node.get("clip")

    def make(direction: int) -> tuple[Tensor, Step]:
        alpha = alphas.pop(0) if names[direction].lower() in ALPHAS and alphas else None
        beta = betas.pop(0) if names[direction].lower() in BETAS and betas else None
        f = _named(names[direction], alpha, beta)
        if f is None:
            raise node.error(f"activation {names[direction]!r} is not supported")
        bias = None if b is None else sum(b[direction].chunk(2))
        inputs = F.linear(call.x, w[direction], bias)  # type: ignore[arg-type]

        def step(row: Tensor, states: States) -> States:
            return (f(_clipped(row + states[0] @ r[direction].t(), bound)),)

        return inputs, step

    return _results(node, *_looped(call, [lambda d=d: make(d) for d in range(call.directions)]))  # type: ignore[misc]


RECURRENT: Mapping[str, Op] = {"LSTM": lstm, "GRU": gru, "RNN": rnn}
