"""An LSTM or GRU layer in cuDNN's persistent kernel, through its own interface, on an NVIDIA GPU.

torch asks cuDNN for a persistent kernel, which keeps R on the chip over all steps, only where 8 divides the
batch and 128 the sizes. cuDNN has them for any size: this asks for them, in f16.
Names and numbers are those of ``cudnn_adv.h`` (cuDNN 9).
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import byref, c_int, c_int32, c_size_t, c_void_p
from functools import cache
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from lstmopt.bridge.recurrent import reorder
from lstmopt.errors import LstmoptError
from lstmopt.rnn.cells import CellSpec

PERSIST_STATIC = 1
CELLS = {"LSTM": 2, "GRU": 3}
NO_BIAS, DOUBLE_BIAS = 0, 2
FLOAT, HALF = 0, 2
TENSOR_OP_MATH = 1
PACKED_STEPS_FIRST = 1
INFERENCE = 0
LIBRARIES = ("libcudnn.so.9", "cudnn64_9.dll")
DTYPE = torch.float16
KEPT = 16
"""Shapes of calls whose workspace is kept; beyond, all are made anew."""

ONE_AT_A_TIME = Lock()
"""A handle, and the stream that it launches on, are those of a device, not of a thread."""


@cache
def _library() -> Any:
    """Returns cuDNN, which torch has loaded."""
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise LstmoptError("cuDNN", "its library is not where torch loads it from", "install torch with CUDA")


def _call(name: str, *arguments: Any) -> None:
    status = getattr(_library(), name)(*arguments)
    if status != 0:
        describe = _library().cudnnGetErrorString
        describe.restype = ctypes.c_char_p
        raise LstmoptError("cuDNN", f"{name}: {describe(status).decode()}", "use the runtime torch-cuda")


def _made(kind: str) -> c_void_p:
    """Returns a new descriptor, which is destroyed when nothing holds it any more."""
    made = c_void_p()
    _call(f"cudnnCreate{kind}", byref(made))
    destroy = getattr(_library(), f"cudnnDestroy{kind}")
    weakref.finalize(made, destroy, c_void_p(made.value)).atexit = False
    return made


@cache
def _handle(device: int) -> c_void_p:
    """Returns cuDNN's handle of a device, which lives as long as the process."""
    made = c_void_p()
    with torch.cuda.device(device):
        _call("cudnnCreate", byref(made))
    return made


class CudnnLayer(nn.Module):
    """A layer, as one call of cuDNN.

    Args:
        cell: its cell.
        w: ``[directions, gates * hidden, input]``, gates in ONNX's order.
        r: ``[directions, gates * hidden, hidden]``.
        b: ``[directions, 2 * gates * hidden]``, or None.

    Raises:
        LstmoptError: cuDNN has no such kernel for it.
    """

    def __init__(self, cell: CellSpec, w: Tensor, r: Tensor, b: Tensor | None) -> None:
        super().__init__()
        self._device = torch.device("cuda", torch.cuda.current_device())
        self._handle = _handle(self._device.index)
        self._directions, self._width, self._hidden = r.shape[0], w.shape[-1], r.shape[-1]
        self._dropout, self._rnn = _made("DropoutDescriptor"), _made("RNNDescriptor")
        no_seed = ctypes.c_ulonglong(0)
        _call(
            "cudnnSetDropoutDescriptor", self._dropout, self._handle, ctypes.c_float(0), None, c_size_t(0),
            no_seed,
        )  # fmt: skip
        _call(
            "cudnnSetRNNDescriptor_v8", self._rnn, PERSIST_STATIC, CELLS[cell.kind],
            NO_BIAS if b is None else DOUBLE_BIAS, self._directions - 1, 0, HALF, FLOAT, TENSOR_OP_MATH,
            c_int32(self._width), c_int32(self._hidden), c_int32(self._hidden), c_int32(1), self._dropout,
            ctypes.c_uint32(0),
        )  # fmt: skip
        self._weights = self._packed(cell, w, r, b)
        self._shapes: dict[tuple[int, int], Any] = {}

    def buffers_held(self) -> list[Any]:
        """Returns what calls of this layer read and write beside their operands."""
        return list(self._shapes.values())

    def _packed(self, cell: CellSpec, w: Tensor, r: Tensor, b: Tensor | None) -> Tensor:
        """Returns all weights where cuDNN reads them."""
        size = c_size_t()
        _call("cudnnGetRNNWeightSpaceSize", self._handle, self._rnn, byref(size))
        space = torch.zeros(size.value, dtype=torch.uint8, device=self._device)
        numbers = space[: size.value // DTYPE.itemsize * DTYPE.itemsize].view(DTYPE)
        matrix, vector = _made("TensorDescriptor"), _made("TensorDescriptor")
        gates = len(cell.gates)

        def put(address: c_void_p, values: Tensor) -> None:
            start = (int(address.value or 0) - space.data_ptr()) // DTYPE.itemsize
            numbers[start : start + values.numel()] = values.reshape(-1).to(self._device, DTYPE)

        for direction in range(self._directions):
            halves = (None, None) if b is None else b[direction].chunk(2)
            for kind, (weights, half) in enumerate(zip((w, r), halves, strict=True)):
                matrices = reorder(weights[direction], cell.to_torch).chunk(gates)
                biases = (None,) * gates if half is None else reorder(half, cell.to_torch).chunk(gates)
                for gate, (values, bias) in enumerate(zip(matrices, biases, strict=True)):
                    at, beside = c_void_p(), c_void_p()
                    _call(
                        "cudnnGetRNNWeightParams", self._handle, self._rnn, c_int32(direction), size,
                        c_void_p(space.data_ptr()), c_int32(kind * gates + gate), matrix, byref(at), vector,
                        byref(beside),
                    )  # fmt: skip
                    put(at, values)
                    if bias is not None:
                        put(beside, bias)
        return space

    def _described(self, steps: int, batch: int) -> Any:
        """Returns descriptors of X, Y and a state, and cuDNN's workspace, for one shape of call."""
        if (steps, batch) not in self._shapes:
            if len(self._shapes) >= KEPT:
                self._shapes.clear()
            lengths = (c_int * batch)(*([steps] * batch))
            data = []
            for size in (self._width, self._directions * self._hidden):
                data.append(_made("RNNDataDescriptor"))
                _call(
                    "cudnnSetRNNDataDescriptor", data[-1], HALF, PACKED_STEPS_FIRST,
                    c_int(steps), c_int(batch), c_int(size), lengths, None,
                )  # fmt: skip
            state = _made("TensorDescriptor")
            sizes = (self._directions, batch, self._hidden)
            strides = (batch * self._hidden, self._hidden, 1)
            axes = c_int * 3
            _call("cudnnSetTensorNdDescriptor", state, HALF, 3, axes(*sizes), axes(*strides))
            work, kept = c_size_t(), c_size_t()
            _call(
                "cudnnGetRNNTempSpaceSizes", self._handle, self._rnn, INFERENCE, data[0],
                byref(work), byref(kept),
            )  # fmt: skip
            space = torch.empty(max(1, work.value), dtype=torch.uint8, device=self._device)
            self._shapes[steps, batch] = (*data, state, space, work)
        return self._shapes[steps, batch]

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Runs the layer.

        Args:
            x: ``[steps, batch, input]`` in f16 on the layer's device, contiguous.
            states: h and, of an LSTM, c: ``[directions, batch, hidden]``, likewise.

        Returns:
            y ``[steps, batch, directions * hidden]``, then the states.

        Raises:
            LstmoptError: operands that are something else, or a call that cuDNN has no kernel for.
        """
        steps, batch, width = x.shape
        fitting = width == self._width and all(
            state.shape == (self._directions, batch, self._hidden) for state in states
        )
        if not fitting or not all(self._readable(each) for each in (x, *states)):
            # cuDNN takes addresses: it would read past the end.
            raise LstmoptError("cuDNN", "an operand is of another shape, type, device or layout", "report it")
        y = x.new_empty(steps, batch, self._directions * self._hidden)
        last = [torch.empty_like(each) for each in states]
        addresses: list[Any] = [(_at(given), _at(left)) for given, left in zip(states, last, strict=True)]
        addresses += [(None, None)] * (2 - len(addresses))
        stream = torch.cuda.current_stream(self._device).cuda_stream
        with ONE_AT_A_TIME:
            xs, ys, state, space, work = self._described(steps, batch)
            _call("cudnnSetStream", self._handle, c_void_p(stream))
            _call(
                "cudnnRNNForward", self._handle, self._rnn, INFERENCE, None, xs, _at(x), ys, _at(y),
                state, *addresses[0], state, *addresses[1], c_size_t(self._weights.numel()),
                _at(self._weights), work, _at(space), c_size_t(0), None,
            )  # fmt: skip
        return (y, *last)

    def _readable(self, tensor: Tensor) -> bool:
        return tensor.dtype == DTYPE and tensor.device == self._device and tensor.is_contiguous()


def _at(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())
