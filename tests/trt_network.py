"""Computes in numpy what a parsed TensorRT network says, layer by layer: what the parser has understood.

A machine without a GPU cannot run an engine, but a parser that misreads an ONNX node is found by this. It
knows the layers that recurrent nodes and the usual ones around them become.
"""

import numpy as np

NUMPY = {
    "FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_,
    "INT8": np.int8, "UINT8": np.uint8,
}  # fmt: skip
CLASSES = {
    "ELEMENTWISE": "IElementWiseLayer", "MATRIX_MULTIPLY": "IMatrixMultiplyLayer",
    "TRIP_LIMIT": "ITripLimitLayer", "LOOP_OUTPUT": "ILoopOutputLayer",
    "CONCATENATION": "IConcatenationLayer", "REVERSE_SEQUENCE": "IReverseSequenceLayer",
}  # fmt: skip
ELEMENTWISE = {
    "SUM": np.add, "PROD": np.multiply, "MAX": np.maximum, "MIN": np.minimum, "SUB": np.subtract,
    "FLOOR_DIV": np.floor_divide,
    "AND": np.logical_and, "OR": np.logical_or, "EQUAL": np.equal, "GREATER": np.greater, "LESS": np.less,
}  # fmt: skip


BOUNDARIES = ("TRIP_LIMIT", "RECURRENCE", "ITERATOR", "LOOP_OUTPUT")


class Network:
    """An interpreter of one network.

    Args:
        trt: the module that parsed it.
        network: what it was parsed into.
    """

    def __init__(self, trt, network):
        self._trt = trt
        self._network = network
        self._producer, self._kinds, self._loops, self._varies = {}, {}, {}, {}
        for index in range(network.num_layers):
            layer = network.get_layer(index)
            kind = layer.type.name
            layer.__class__ = getattr(trt, CLASSES.get(kind, f"I{kind.title().replace('_', '')}Layer"))
            for port in range(layer.num_outputs):
                self._producer[layer.get_output(port).name] = layer
            self._kinds[layer.name] = kind
            if kind in BOUNDARIES:
                self._loops.setdefault(loop_of(layer), {}).setdefault(kind, []).append(layer)

    def run(self, feeds):
        """Returns the outputs by name."""
        self._known = dict(feeds)
        network = self._network
        return {
            network.get_output(index).name: self._value(network.get_output(index), self._known)
            for index in range(network.num_outputs)
        }

    def _value(self, tensor, step):
        """Returns a tensor's value; what does not change from step to step of a loop is kept."""
        name = tensor.name
        if name in step:
            return step[name]
        known = step if self._changes(name) else self._known
        if name not in known:
            layer = self._producer[name]
            known[name] = self._layer(layer, known)
            assert known[name].dtype == NUMPY[tensor.dtype.name], (name, known[name].dtype, tensor.dtype)
        return known[name]

    def _changes(self, name):
        """Whether a tensor depends on the step of a loop that is not over."""
        layer = self._producer.get(name)
        if layer is None or self._kinds[layer.name] == "LOOP_OUTPUT":
            return False
        if name not in self._varies:
            self._varies[name] = self._kinds[layer.name] in ("RECURRENCE", "ITERATOR") or any(
                self._changes(each.name) for each in self._inputs(layer) if each is not None
            )
        return self._varies[name]

    def _loop(self, output):
        by_kind = self._loops[loop_of(output)]
        count = int(self._value(by_kind["TRIP_LIMIT"][0].get_input(0), self._known))
        states = {
            each.get_output(0).name: self._value(each.get_input(0), self._known)
            for each in by_kind["RECURRENCE"]
        }
        outputs = []
        kind = output.kind.name
        source = output.get_input(0)
        for index in range(count):
            step = dict(states)
            for each in by_kind.get("ITERATOR", ()):
                whole = self._value(each.get_input(0), self._known)
                at = whole.shape[each.axis] - 1 - index if each.reverse else index
                step[each.get_output(0).name] = np.take(whole, at, axis=each.axis)
            if kind != "LAST_VALUE":
                outputs.append(self._value(source, step))
            states = {
                each.get_output(0).name: self._value(each.get_input(1), step)
                for each in by_kind["RECURRENCE"]
            }
        if kind == "LAST_VALUE":
            return states[source.name]
        return np.stack(outputs[::-1] if kind == "REVERSE" else outputs, axis=output.axis)

    def _layer(self, layer, step):
        kind = self._kinds[layer.name]
        if kind == "LOOP_OUTPUT":
            return self._loop(layer)
        values = [None if each is None else self._value(each, step) for each in self._inputs(layer)]
        return getattr(self, f"_{kind.lower()}")(layer, *values)

    def _inputs(self, layer):
        """Returns a layer's inputs, of a recurrence the first alone: the other is of the step before."""
        count = 1 if self._kinds[layer.name] == "RECURRENCE" else layer.num_inputs
        return [layer.get_input(index) for index in range(count)]

    def _constant(self, layer):
        return (
            np.array(layer.weights).reshape(tuple(layer.shape)).astype(NUMPY[layer.get_output(0).dtype.name])
        )

    def _shape(self, layer, x):
        return np.array(x.shape, np.int64)

    def _cast(self, layer, x):
        return x.astype(NUMPY[layer.get_output(0).dtype.name])

    def _identity(self, layer, x):
        return self._cast(layer, x)

    def _shuffle(self, layer, x, wanted=None):
        x = np.transpose(x, order(layer.first_transpose, x.ndim))
        sizes = sizes_of(layer.reshape_dims) if wanted is None else wanted
        if sizes is not None:
            if layer.zero_is_placeholder:
                sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
            x = x.reshape([int(size) for size in sizes])
        return np.transpose(x, order(layer.second_transpose, x.ndim))

    def _unsqueeze(self, layer, x, axes):
        return np.expand_dims(x, tuple(int(axis) for axis in axes))

    def _squeeze(self, layer, x, axes):
        return np.squeeze(x, tuple(int(axis) for axis in axes))

    def _reduce(self, layer, x):
        axes = tuple(axis for axis in range(x.ndim) if layer.axes >> axis & 1)
        made = {"SUM": np.sum, "MAX": np.max, "MIN": np.min, "PROD": np.prod}[layer.op.name]
        return made(x, axis=axes, keepdims=layer.keep_dims).astype(x.dtype)

    def _slice(self, layer, x, start=None, shape=None, stride=None, *rest):
        assert layer.mode.name in ("STRICT_BOUNDS", "DEFAULT", "CLAMP"), layer.mode
        start = tuple(layer.start) if start is None else start
        shape = tuple(layer.shape) if shape is None else shape
        stride = tuple(layer.stride) if stride is None else stride
        for axis, (first, size, by) in enumerate(zip(start, shape, stride, strict=True)):
            x = np.take(x, int(first) + int(by) * np.arange(int(size)), axis=axis)
        return x

    def _concatenation(self, layer, *values):
        return np.concatenate(values, axis=layer.axis)

    def _matrix_multiply(self, layer, a, b):
        operands = []
        for x, how in ((a, layer.op0), (b, layer.op1)):
            operands.append(np.swapaxes(x, -1, -2) if how.name == "TRANSPOSE" else x)
        return np.matmul(*(each.astype(np.float64) for each in operands)).astype(a.dtype)

    def _elementwise(self, layer, a, b):
        assert a.dtype == b.dtype
        name = layer.op.name
        if name == "DIV":
            return np.true_divide(a, b).astype(a.dtype) if a.dtype.kind == "f" else a // b
        made = ELEMENTWISE[name](a, b)
        return made if made.dtype == np.bool_ else made.astype(a.dtype)

    def _activation(self, layer, x):
        alpha, beta = layer.alpha, layer.beta
        wide = x.astype(np.float64)
        made = {
            "SIGMOID": lambda: 1 / (1 + np.exp(-wide)),
            "TANH": lambda: np.tanh(wide),
            "RELU": lambda: np.maximum(wide, 0),
            "CLIP": lambda: np.clip(wide, alpha, beta),
            "LEAKY_RELU": lambda: np.where(wide < 0, alpha * wide, wide),
            "HARD_SIGMOID": lambda: np.clip(alpha * wide + beta, 0, 1),
            "SCALED_TANH": lambda: alpha * np.tanh(beta * wide),
            "THRESHOLDED_RELU": lambda: np.where(wide > alpha, wide, 0),
            "ELU": lambda: np.where(wide < 0, alpha * (np.exp(wide) - 1), wide),
            "SOFTSIGN": lambda: wide / (1 + np.abs(wide)),
            "SOFTPLUS": lambda: alpha * np.log(np.exp(beta * wide) + 1),
        }[layer.type.name]()
        return made.astype(x.dtype)

    def _unary(self, layer, x):
        made = {"NOT": np.logical_not, "NEG": np.negative, "ABS": np.abs, "EXP": np.exp}[layer.op.name]
        return made(x)

    def _select(self, layer, condition, a, b):
        return np.where(condition, a, b)

    def _gather(self, layer, x, indices):
        assert layer.mode.name == "DEFAULT"
        return np.take(x, indices, axis=layer.axis)

    def _fill(self, layer, shape=None, start=None, step=None):
        sizes = [int(size) for size in (tuple(layer.shape) if shape is None else shape)]
        assert layer.operation.name == "LINSPACE"
        start = layer.alpha if start is None else start
        by = np.atleast_1d(np.asarray(layer.beta if step is None else step))
        made = np.full(sizes, start, np.float64)
        for axis in range(len(sizes)):
            made = made + by[axis] * np.arange(sizes[axis]).reshape(
                [-1 if k == axis else 1 for k in range(len(sizes))]
            )
        return made.astype(NUMPY[layer.get_output(0).dtype.name])

    def _reverse_sequence(self, layer, x, lengths):
        made = x.copy()
        batch, time = layer.batch_axis, layer.sequence_axis
        for row, length in enumerate(lengths):
            whole = np.moveaxis(made, (batch, time), (0, 1))
            whole[row, : int(length)] = whole[row, : int(length)][::-1].copy()
        return made


def loop_of(layer):
    """Returns what tells a loop from others: the wrapper of it is another object each time."""
    return layer.loop.name


def sizes_of(dims):
    """Returns the sizes that are set, None where none are: asking them for their number raises."""
    try:
        return None if dims is None else tuple(dims)
    except ValueError:
        return None


def order(permutation, rank):
    return [permutation[axis] for axis in range(rank)]
