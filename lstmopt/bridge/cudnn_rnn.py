"""LSTM and GRU layers in cuDNN's persistent kernels, through its own interface, on an NVIDIA GPU.

torch asks cuDNN for a persistent kernel, which keeps R on the chip over all steps, in f16 alone and only
where 8 divides the batch and 128 the sizes. cuDNN has them for any size and in f32 too: this asks for them.
Names and numbers are those of ``cudnn_adv.h`` (cuDNN 8 and 9).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import byref, c_int, c_int32, c_size_t, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lstmopt.bridge.recurrent import reorder
from lstmopt.errors import LstmoptError
from lstmopt.rnn.cells import CellSpec

PERSIST_STATIC = 1
CELLS = {"LSTM": 2, "GRU": 3}
NO_BIAS, DOUBLE_BIAS = 0, 2
TYPES = {torch.float32: 0, torch.float16: 2}
TENSOR_OP_MATH, FMA_MATH = 1, 3
PACKED_STEPS_FIRST = 1
INFERENCE = 0
LIBRARIES = ("libcudnn.so.9", "libcudnn.so.8", "cudnn64_9.dll", "cudnn64_8.dll")


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
        raise LstmoptError("cuDNN", f"{name}: {describe(status).decode()}", "use another form")


def _made(name: str) -> c_void_p:
    """Returns a new handle or descriptor; they live as long as the process, as torch's do."""
    made = c_void_p()
    _call(name, byref(made))
    return made


@cache
def _handle(device: int) -> c_void_p:
    with torch.cuda.device(device):
        return _made("cudnnCreate")


class CudnnLayers(nn.Module):
    """Layers in a row, as one call of cuDNN.

    Args:
        cell: of all of them.
        parts: W ``[directions, gates * hidden, input]``, R and B of each layer, gates in ONNX's order.
        device: a CUDA device.
        dtype: f32 or f16, of weights, inputs and outputs; sums are f32.

    Raises:
        LstmoptError: cuDNN has no such kernel for them.
    """

    def __init__(
        self,
        cell: CellSpec,
        parts: Sequence[tuple[Tensor, Tensor, Tensor | None]],
        device: str,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self._device, self._dtype = torch.device(device), dtype
        self._handle = _handle(self._device.index or 0)
        first = parts[0]
        self._directions, self._hidden, self._depth = first[1].shape[0], first[1].shape[-1], len(parts)
        biased = any(b is not None for _, _, b in parts)
        dropout = _made("cudnnCreateDropoutDescriptor")
        no_seed = ctypes.c_ulonglong(0)
        _call(
            "cudnnSetDropoutDescriptor", dropout, self._handle, ctypes.c_float(0), None, c_size_t(0), no_seed
        )
        self._rnn = _made("cudnnCreateRNNDescriptor")
        math = TENSOR_OP_MATH if dtype == torch.float16 else FMA_MATH
        _call(
            "cudnnSetRNNDescriptor_v8", self._rnn, PERSIST_STATIC, CELLS[cell.kind],
            DOUBLE_BIAS if biased else NO_BIAS, self._directions - 1, 0, TYPES[dtype],
            TYPES[torch.float32], math, c_int32(first[0].shape[-1]), c_int32(self._hidden),
            c_int32(self._hidden), c_int32(self._depth), dropout, ctypes.c_uint32(0),
        )  # fmt: skip
        self._weights = self._packed(cell, parts, biased)
        self._shapes: dict[tuple[int, int], Any] = {}

    def _packed(self, cell: CellSpec, parts: Sequence[Any], biased: bool) -> Tensor:
        """Returns all weights where cuDNN reads them."""
        size = c_size_t()
        _call("cudnnGetRNNWeightSpaceSize", self._handle, self._rnn, byref(size))
        space = torch.zeros(size.value, dtype=torch.uint8, device=self._device)
        numbers = space[: size.value // self._dtype.itemsize * self._dtype.itemsize].view(self._dtype)
        matrix, vector = (_made("cudnnCreateTensorDescriptor") for _ in range(2))
        gates = len(cell.gates)

        def put(address: c_void_p, values: Tensor) -> None:
            start = (int(address.value or 0) - space.data_ptr()) // self._dtype.itemsize
            numbers[start : start + values.numel()] = values.reshape(-1).to(self._device, self._dtype)

        for layer, (w, r, b) in enumerate(parts):
            for direction in range(self._directions):
                kinds = [reorder(each[direction], cell.to_torch).chunk(gates) for each in (w, r)]
                halves = (None, None) if b is None else b[direction].chunk(2)
                biases = [
                    None if half is None else reorder(half, cell.to_torch).chunk(gates) for half in halves
                ]
                for kind, matrices in enumerate(kinds):
                    for gate, values in enumerate(matrices):
                        at, beside = c_void_p(), c_void_p()
                        _call(
                            "cudnnGetRNNWeightParams", self._handle, self._rnn,
                            c_int32(layer * self._directions + direction), size, c_void_p(space.data_ptr()),
                            c_int32(kind * gates + gate), matrix, byref(at), vector, byref(beside),
                        )  # fmt: skip
                        put(at, values)
                        own = biases[kind]
                        if biased and own is not None:
                            put(beside, own[gate])
        return space

    def _described(self, steps: int, batch: int, width: int) -> Any:
        """Returns descriptors of X, Y and a state, and cuDNN's workspace, for one shape of call."""
        if (steps, batch) not in self._shapes:
            lengths = (c_int * batch)(*([steps] * batch))
            data = []
            for size in (width, self._directions * self._hidden):
                data.append(_made("cudnnCreateRNNDataDescriptor"))
                _call(
                    "cudnnSetRNNDataDescriptor", data[-1], TYPES[self._dtype], PACKED_STEPS_FIRST,
                    c_int(steps), c_int(batch), c_int(size), lengths, None,
                )  # fmt: skip
            state = _made("cudnnCreateTensorDescriptor")
            sizes = (self._depth * self._directions, batch, self._hidden)
            strides = (batch * self._hidden, self._hidden, 1)
            axes = c_int * 3
            _call("cudnnSetTensorNdDescriptor", state, TYPES[self._dtype], 3, axes(*sizes), axes(*strides))
            work, kept = c_size_t(), c_size_t()
            _call(
                "cudnnGetRNNTempSpaceSizes", self._handle, self._rnn, INFERENCE, data[0],
                byref(work), byref(kept),
            )  # fmt: skip
            space = torch.empty(max(1, work.value), dtype=torch.uint8, device=self._device)
            self._shapes[steps, batch] = (*data, state, space, work)
        return self._shapes[steps, batch]

    def forward(self, x: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """Runs the layers.

        Args:
            x: ``[steps, batch, input]``, contiguous.
            states: h and, of an LSTM, c: ``[layers * directions, batch, hidden]``, contiguous.

        Returns:
            y ``[steps, batch, directions * hidden]``, then the states.
        """
        steps, batch, width = x.shape
        xs, ys, state, space, work = self._described(steps, batch, width)
        y = x.new_empty(steps, batch, self._directions * self._hidden)
        last = [torch.empty_like(each) for each in states]
        stream = torch.cuda.current_stream(self._device).cuda_stream
        _call("cudnnSetStream", self._handle, c_void_p(stream))
        addresses: list[Any] = [(_at(given), _at(left)) for given, left in zip(states, last, strict=True)]
        addresses += [(None, None)] * (2 - len(addresses))
        _call(
            "cudnnRNNForward", self._handle, self._rnn, INFERENCE, None, xs, _at(x), ys, _at(y),
            state, *addresses[0], state, *addresses[1], c_size_t(self._weights.numel()), _at(self._weights),
            work, _at(space), c_size_t(0), None,
        )  # fmt: skip
        return (y, *last)


def _at(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())
